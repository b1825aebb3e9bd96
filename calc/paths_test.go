package calc_test

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/desired"
)

// TestMeasuredPathsDecide: a path that takes less than the interfaces say lowers
// the tunnel, the workloads and the routes to that host; broken checksums turn
// offload off; what is as it should be changes nothing.
func TestMeasuredPathsDecide(t *testing.T) {
	plain, tunnel := desired.PathKey{Node: "node1"}, desired.PathKey{Node: "node1", Device: desired.VXLANDevice}
	block := desired.NewRouteKey(netip.MustParsePrefix("10.1.0.64/26"))
	for _, tt := range []struct {
		name, mode, override string
		facts                map[desired.PathKey]desired.PathFact
		workloads, device    int
		route                string
		noOffload            bool
	}{
		{"nothing known", "CrossSubnet", "", nil, 1450, 1450, "via 172.18.0.3 dev eth0 proto 80", false},
		{
			"as it should be", "CrossSubnet", "",
			map[desired.PathKey]desired.PathFact{plain: {Answered: true, MTU: 1500, Limit: 1500}, tunnel: {Answered: true, MTU: 1450, Limit: 1450}},
			1450, 1450, "via 172.18.0.3 dev eth0 proto 80", false,
		},
		{
			"narrow, plain", "CrossSubnet", "",
			map[desired.PathKey]desired.PathFact{plain: {Answered: true, MTU: 1400, Limit: 1500}},
			1350, 1350, "via 172.18.0.3 dev eth0 proto 80 mtu 1400", false,
		},
		{
			"narrow, and silent since", "Always", "",
			map[desired.PathKey]desired.PathFact{plain: {MTU: 1400, Limit: 1500}},
			1350, 1350, "via 10.1.0.64 dev vxlan.calico proto 80 onlink", false,
		},
		{
			"never below what IPv6 needs", "Always", "",
			map[desired.PathKey]desired.PathFact{plain: {Answered: true, MTU: 600, Limit: 1500}},
			1300, 1300, "via 10.1.0.64 dev vxlan.calico proto 80 onlink", false,
		},
		{
			"a tunnel is no measure of the underlay", "Always", "",
			map[desired.PathKey]desired.PathFact{tunnel: {Answered: true, MTU: 900, Limit: 1450}},
			1450, 1450, "via 10.1.0.64 dev vxlan.calico proto 80 onlink", false,
		},
		{
			"broken checksums", "Always", "",
			map[desired.PathKey]desired.PathFact{tunnel: {Answered: true, NoChecksum: true}},
			1450, 1450, "via 10.1.0.64 dev vxlan.calico proto 80 onlink", true,
		},
		{"broken checksums as configured", "Always", "Other=1,ChecksumOffloadBroken=true", nil, 1450, 1450, "via 10.1.0.64 dev vxlan.calico proto 80 onlink", true},
		{
			"a host that is gone", "Always", "",
			map[desired.PathKey]desired.PathFact{{Node: "gone"}: {Answered: true, MTU: 1300, Limit: 1500}},
			1450, 1450, "via 10.1.0.64 dev vxlan.calico proto 80 onlink", false,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sc := tunnelScenario(tt.mode, true)
			sc.Objects = append(sc.Objects[:3:3], json.RawMessage(`{"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": {"featureDetectOverride": "`+tt.override+`"}}`))
			if tt.override == "" {
				sc.Objects = sc.Objects[:3]
			}
			b := sc.batch(t)
			b.Paths = tt.facts
			s := calc.New(calc.Options{Node: "n1", InterfacePrefix: "cali"}).Apply(b)
			d := s.Tunnels[desired.VXLANDevice]
			if s.MTU != tt.workloads || d.MTU != tt.device || d.NoOffload != tt.noOffload {
				t.Errorf("workloads %d, device %s", s.MTU, s.Tunnels)
			}
			if got := s.Routes[block].String(); got != tt.route {
				t.Errorf("route %q, want %q", got, tt.route)
			}
			want := []desired.Path{
				{PathKey: plain, Local: netip.MustParseAddr("172.18.0.2"), Remote: netip.MustParseAddr("172.18.0.3"), Limit: 1500},
				{PathKey: tunnel, Local: netip.MustParseAddr("10.1.0.1"), Remote: netip.MustParseAddr("10.1.0.64"), Limit: tt.device},
			}
			if len(s.Paths) != 2 || s.Paths[0] != want[0] || s.Paths[1] != want[1] {
				t.Errorf("paths %+v, want %+v", s.Paths, want)
			}
		})
	}
}
