package calc_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/desired"
)

// changeScenario is this host and one on another subnet, which BGP has a route to.
func changeScenario(pool string, own, other map[string]string) scenario {
	object := func(kind, name, spec string) json.RawMessage {
		return json.RawMessage(`{"apiVersion": "projectcalico.org/v3", "kind": "` + kind + `", "metadata": {"name": "` + name + `"}, "spec": ` + spec + `}`)
	}
	node := func(name, addr string, tunnels map[string]string) json.RawMessage {
		return object("Node", name, fmt.Sprintf(`{"bgp": {"ipv4Address": %q, "ipv4IPIPTunnelAddr": %q}, "ipv4VXLANTunnelAddr": %q}`, addr, tunnels["ipip"], tunnels["vxlan"]))
	}
	return scenario{
		Node: "n1", MTU: 1500, Links: []link{{Name: "eth0", Addrs: []string{"172.18.0.2/24"}}},
		Objects: []json.RawMessage{
			node("n1", "172.18.0.2/24", own), node("n2", "172.19.0.3/24", other),
			object("IPPool", "p", `{"cidr": "10.1.0.0/16"`+pool+`}`),
		},
		Affinities: map[string]map[string]string{"n2": {"10.1.0.64/26": "confirmed"}},
		Learnt:     []learnt{{Prefix: "10.1.0.64/26", NextHop: "172.19.0.3", Peer: "172.18.0.1"}},
		Underlay:   []underlay{{Dst: "0.0.0.0/0", Via: "172.18.0.1", Dev: "eth0"}},
	}
}

// TestAChangeWaitsForTheOtherHost walks through changes of a pool in which the other host is slow, in every order that
// matters: packets go as they went until it can take them otherwise.
func TestAChangeWaitsForTheOtherHost(t *testing.T) {
	const (
		never, ipip, vxlan = "", `, "ipipMode": "Always"`, `, "vxlanMode": "Always"`

		byBGP, byIPIP, byVXLAN = "via 172.18.0.1 dev eth0 proto 81", "via 172.19.0.3 dev tunl0 proto 80 onlink", "via 10.1.0.65 dev vxlan.calico proto 80 onlink"
	)
	type step struct {
		pool       string
		own, other string // devices whose address is on the Node
		settled    bool
		want       string
		lent       string // device that is used although no pool asks for it
	}
	for name, steps := range map[string][]step{
		"never to IPIP": {
			{never, "", "", false, byBGP, ""},
			{ipip, "", "", false, byBGP, ""},
			{ipip, "ipip", "", false, byBGP, ""},
			{ipip, "ipip", "ipip", false, byIPIP, ""},
		},
		"never to IPIP, the other host first": {
			{never, "", "", false, byBGP, ""},
			{never, "", "ipip", false, byBGP, ""},
			{ipip, "", "ipip", false, byIPIP, ""},
		},
		"never to IPIP, the other host never has an address": {
			{never, "", "", false, byBGP, ""},
			{ipip, "ipip", "", false, byBGP, ""},
			{ipip, "ipip", "", true, byIPIP, ""},
		},
		"never to VXLAN": {
			{never, "", "", false, byBGP, ""},
			{vxlan, "vxlan", "", false, byBGP, ""},
			{vxlan, "vxlan", "vxlan", false, byVXLAN, ""},
		},
		"IPIP to VXLAN": {
			{ipip, "ipip", "ipip", false, byIPIP, ""},
			{vxlan, "ipip", "ipip", false, byIPIP, "ipip"},
			{vxlan, "ipip vxlan", "ipip", false, byIPIP, "ipip"},
			{vxlan, "ipip vxlan", "ipip", true, byIPIP, "ipip"},
			{vxlan, "ipip vxlan", "ipip vxlan", false, byVXLAN, ""},
			{vxlan, "vxlan", "vxlan", false, byVXLAN, ""},
		},
		"VXLAN to IPIP": {
			{vxlan, "vxlan", "vxlan", false, byVXLAN, ""},
			{ipip, "vxlan", "vxlan", false, byVXLAN, "vxlan"},
			{ipip, "vxlan ipip", "vxlan ipip", false, byIPIP, ""},
		},
		"IPIP to never and back": {
			{ipip, "ipip", "ipip", false, byIPIP, ""},
			{never, "ipip", "ipip", false, byBGP, ""},
			{never, "ipip", "", false, byBGP, ""},
			{ipip, "ipip", "", false, byBGP, ""},
			{ipip, "ipip", "ipip", false, byIPIP, ""},
		},
		"a start with a host that has no address": {
			{ipip, "ipip", "", false, byIPIP, ""},
		},
	} {
		t.Run(name, func(t *testing.T) {
			core := calc.New(calc.Options{Node: "n1", InterfacePrefix: "cali"})
			addrs := func(devices, last string) map[string]string {
				out := map[string]string{}
				for _, d := range []string{"ipip", "vxlan"} {
					if slices.Contains(strings.Fields(devices), d) {
						out[d] = "10.1.0." + last
					}
				}
				return out
			}
			for i, s := range steps {
				b := changeScenario(s.pool, addrs(s.own, "1"), addrs(s.other, "65")).batch(t)
				b.Settled = s.settled
				state := core.Apply(b)
				if got := state.Routes[desired.NewRouteKey(netip.MustParsePrefix("10.1.0.64/26"))].String(); got != s.want {
					t.Errorf("step %d: route %q, want %q", i, got, s.want)
				}
				uses := map[string]bool{"ipip": state.Use.IPIP.Used, "vxlan": state.Use.VXLAN.Used}
				for device, used := range uses {
					asked := s.pool == map[string]string{"ipip": ipip, "vxlan": vxlan}[device]
					if used != (asked || s.lent == device) {
						t.Errorf("step %d: %s is used: %t", i, device, used)
					}
				}
			}
		})
	}
}

// TestAnEncapsulationThatIsSwitchedOff: ipipEnabled: false makes the pool one without encapsulation to this host, and the
// address of its device is given back.
func TestAnEncapsulationThatIsSwitchedOff(t *testing.T) {
	for field, tt := range map[string]struct{ pool, device string }{
		"ipipEnabled":  {`, "ipipMode": "Always"`, "ipip"},
		"vxlanEnabled": {`, "vxlanMode": "Always"`, "vxlan"},
	} {
		for _, enabled := range []bool{true, false} {
			s := changeScenario(tt.pool, map[string]string{}, map[string]string{tt.device: "10.1.0.65"})
			s.Objects = append(s.Objects, json.RawMessage(fmt.Sprintf(
				`{"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": {%q: %t}}`, field, enabled)))
			state := calc.New(calc.Options{Node: "n1", InterfacePrefix: "cali"}).Apply(s.batch(t))
			route := state.Routes[desired.NewRouteKey(netip.MustParsePrefix("10.1.0.64/26"))]
			if plain := route.Dev == "eth0"; plain == enabled {
				t.Errorf("%s %t: route %s", field, enabled, route)
			}
			if used := state.Use.IPIP.Used || state.Use.VXLAN.Used; used != enabled || len(state.Tunnels) > 0 != enabled {
				t.Errorf("%s %t: used %t, devices %s", field, enabled, used, state.Tunnels)
			}
		}
	}
}
