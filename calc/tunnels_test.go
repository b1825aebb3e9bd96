package calc_test

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/desired"
)

func tunnelScenario(mode string, addresses bool) scenario {
	addr := func(text string) string {
		if addresses {
			return `, "ipv4VXLANTunnelAddr": "` + text + `"`
		}
		return ""
	}
	object := func(kind, name, spec string) json.RawMessage {
		return json.RawMessage(`{"apiVersion": "projectcalico.org/v3", "kind": "` + kind + `", "metadata": {"name": "` + name + `"}, "spec": ` + spec + `}`)
	}
	return scenario{
		Node: "n1", MTU: 1500, Links: []link{{Name: "eth0", Addrs: []string{"172.18.0.2/24"}}},
		Objects: []json.RawMessage{
			object("Node", "n1", `{"bgp": {"ipv4Address": "172.18.0.2/24"}`+addr("10.1.0.1")+`}`),
			object("Node", "node1", `{"bgp": {"ipv4Address": "172.18.0.3/24"}`+addr("10.1.0.64")+`}`),
			object("IPPool", "p", `{"cidr": "10.1.0.0/16", "vxlanMode": "`+mode+`"}`),
			object("FelixConfiguration", "default", `{"vxlanVNI": 77, "vxlanPort": 4790, "vxlanMTU": 1400}`),
		},
		Affinities: map[string]map[string]string{"node1": {"10.1.0.64/26": "confirmed"}},
		Learnt:     []learnt{{Prefix: "10.1.0.64/26", NextHop: "172.18.0.3", Peer: "172.18.0.3"}},
	}
}

// TestASwitchNeverLeavesADestinationWithoutARoute walks through the states that
// a change of mode passes: every one of them routes the other host's block, and
// a device stays until its address is withdrawn.
func TestASwitchNeverLeavesADestinationWithoutARoute(t *testing.T) {
	key := desired.NewRouteKey(netip.MustParsePrefix("10.1.0.64/26"))
	direct, tunnel := "via 172.18.0.3 dev eth0 proto 80", "via 10.1.0.64 dev vxlan.calico proto 80 onlink"
	core := calc.New(calc.Options{Node: "n1", InterfacePrefix: "cali"})
	for i, step := range []struct {
		mode      string
		addresses bool
		route     string
		device    bool
	}{
		{"Never", false, "via 172.18.0.3 dev eth0 proto 81", false},
		{"Always", false, direct, true}, // the device is there before anybody is told its address
		{"Always", true, tunnel, true},
		{"CrossSubnet", true, direct, true},
		{"Never", true, "via 172.18.0.3 dev eth0 proto 81", true}, // others may still send through it
		{"Never", false, "via 172.18.0.3 dev eth0 proto 81", false},
	} {
		s := core.Apply(tunnelScenario(step.mode, step.addresses).batch(t))
		if got := s.Routes[key].String(); got != step.route {
			t.Errorf("step %d: route %q, want %q", i, got, step.route)
		}
		if _, ok := s.Tunnels[desired.VXLANDevice]; ok != step.device {
			t.Errorf("step %d: tunnels %s", i, s.Tunnels)
		}
	}
}

// TestTunnelParameters: numbers of the configuration, and the MAC that was
// measured on a real node1 (spec/calico.md §5.6).
func TestTunnelParameters(t *testing.T) {
	s := calc.New(calc.Options{Node: "n1", InterfacePrefix: "cali"}).Apply(tunnelScenario("Always", true).batch(t))
	d := s.Tunnels[desired.VXLANDevice]
	if d.VNI != 77 || d.Port != 4790 || d.MTU != 1400 || s.MTU != 1400 {
		t.Errorf("device %+v, workloads' MTU %d", d, s.MTU)
	}
	if got := s.FDB[desired.FDBKey{Dev: desired.VXLANDevice, MAC: "66:f9:37:c3:7e:94"}]; got != netip.MustParseAddr("172.18.0.3") {
		t.Errorf("forwarding table\n%s", s.FDB)
	}
}
