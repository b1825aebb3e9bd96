package export

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"unique"

	"pgregory.net/rapid"

	"github.com/manekinet/maneki/bgp/message"
	"github.com/manekinet/maneki/bgp/rib"
)

// TestMoversConverge moves members between the group of a reflector's clients and that of its other
// internal peers, at any moment. Whoever has pulled to the end must know exactly what its group sends.
func TestMoversConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cluster := netip.MustParseAddr("1.1.1.1")
		plain, client := policy, policy
		plain.Internal, client.Internal = true, true
		plain.ClusterID, client.ClusterID, client.Client = cluster, cluster, true
		groups := [2]*Group{NewGroup(plain), NewGroup(client)}
		sources := []*rib.Source{{Local: true, Internal: true}}
		for i := range 3 {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 2)})
			sources = append(sources, &rib.Source{Addr: a, ID: a, Internal: true, Client: i == 0})
		}
		want := map[netip.Prefix]rib.Path{}
		var members []*listener
		for _, s := range sources[1:] {
			members = append(members, &listener{member: groups[0].Join(s), source: s, routes: map[netip.Prefix]uint32{}})
		}
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			switch k := rapid.IntRange(0, 9).Draw(t, "action"); {
			case k <= 1:
				m := rapid.SampledFrom(members).Draw(t, "mover").member
				m.Move(groups[rapid.IntRange(0, 1).Draw(t, "to")])
			case k == 2:
				rapid.SampledFrom(members).Draw(t, "refresher").member.Restart()
			case k <= 5:
				rapid.SampledFrom(members).Draw(t, "puller").pull(t)
			default:
				p := netip.MustParsePrefix(fmt.Sprintf("192.168.%d.0/24", rapid.IntRange(0, 4).Draw(t, "prefix")))
				var offers []rib.Path
				delete(want, p)
				if rapid.IntRange(0, 2).Draw(t, "gone") > 0 {
					a := message.Attrs{NextHop: netip.MustParseAddr("10.0.0.9")}
					for range rapid.IntRange(1, 3).Draw(t, "attrs") {
						a = a.Prepend(65000)
					}
					want[p] = rib.Path{Source: rapid.SampledFrom(sources).Draw(t, "from"), Attrs: unique.Make(a)}
					offers = []rib.Path{want[p]}
				}
				for _, g := range groups {
					g.Change(p, offers)
				}
			}
		}
		for _, l := range members {
			for l.member.Pending() {
				l.pull(t)
			}
			expect := map[netip.Prefix]uint32{}
			for p, path := range want {
				if a, ok := l.member.group.policy.Apply(p, path); ok && path.Source != l.source {
					expect[p] = uint32(a.Value().PathLen())
				}
			}
			if !maps.Equal(l.routes, expect) {
				t.Fatalf("member of %s knows %v, want %v", l.source.Addr, l.routes, expect)
			}
			l.member.Leave()
		}
	})
}
