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

// collector is what a peer that takes several paths knows: next hops by path.
type collector struct {
	member *Member
	source *rib.Source
	paths  map[message.NLRI]netip.Addr
}

func (c *collector) pull(t *rapid.T) {
	msgs, err := c.member.Next()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range msgs {
		u, err := message.DecodeUpdate(b[message.HeaderLen:], message.Session{FourOctetAS: true, Families: 1, Internal: true, PathsIn: 1})
		if err != nil || u.Malformed != "" {
			t.Fatalf("%+v %v", u, err)
		}
		for _, n := range u.Withdrawn {
			delete(c.paths, n)
		}
		for _, r := range u.Reach {
			for _, n := range r.Routes {
				c.paths[n] = r.Attrs.NextHop
			}
		}
	}
}

// TestSeveralPaths (RFC 7911): a reflector's clients announce the same destinations. Whoever has pulled to the end knows
// all offers, but for its own, each once, and under different identifiers.
func TestSeveralPaths(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := policy
		p.Internal, p.Client, p.ClusterID, p.PathIDs = true, true, netip.MustParseAddr("1.1.1.1"), message.IPv4.Set()
		g, table := NewGroup(p), rib.New()
		sources := []*rib.Source{{Local: true, Internal: true}}
		for i := range 4 {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 2)})
			sources = append(sources, &rib.Source{Addr: a, ID: a, Internal: true, Client: true})
		}
		var members []*collector
		for _, s := range sources[1:] {
			members = append(members, &collector{member: g.Join(s), source: s, paths: map[message.NLRI]netip.Addr{}})
		}
		prefix := func() netip.Prefix {
			return netip.MustParsePrefix(fmt.Sprintf("192.168.%d.0/24", rapid.IntRange(0, 2).Draw(t, "prefix")))
		}
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			s, to := rapid.SampledFrom(sources).Draw(t, "who"), prefix()
			switch rapid.IntRange(0, 5).Draw(t, "action") {
			case 0:
				rapid.SampledFrom(members).Draw(t, "puller").pull(t)
				continue
			case 1:
				rapid.SampledFrom(members).Draw(t, "refresher").member.Restart()
				continue
			case 2:
				table.Drop(to, s, 0)
			default:
				a := message.Attrs{LocalPref: rapid.Uint32Range(100, 101).Draw(t, "pref"), HasLocalPref: true, NextHop: s.Addr}
				table.Put(to, rib.Path{Source: s, Attrs: unique.Make(a)})
			}
			g.Change(to, table.Offers(to))
		}
		for _, c := range members {
			for c.member.Pending() {
				c.pull(t)
			}
			want := map[message.NLRI]netip.Addr{}
			for to := range table.All() {
				for _, o := range table.Offers(to) {
					hop := o.Source.Addr
					if o.Source.Local {
						hop = p.NextHop
					}
					if o.Source != c.source {
						want[message.NLRI{Prefix: to, ID: o.Index}] = hop
					}
				}
			}
			if !maps.Equal(c.paths, want) {
				t.Fatalf("%s knows %v, want %v", c.source.Addr, c.paths, want)
			}
		}
	})
}

// TestSeveralPathsOneHop: where the policy gives all paths the same next hop, one is enough.
func TestSeveralPathsOneHop(t *testing.T) {
	p := policy
	p.PathIDs = message.IPv4.Set() // external: next hop self
	g, to := NewGroup(p), netip.MustParsePrefix("192.168.0.0/24")
	path := func(n byte) rib.Path {
		a := netip.AddrFrom4([4]byte{10, 0, 0, n})
		return rib.Path{Source: &rib.Source{Addr: a, Internal: true}, Attrs: unique.Make(message.Attrs{NextHop: a}), Index: uint32(n)}
	}
	g.Change(to, []rib.Path{path(2), path(1), path(3)})
	if g.Advertised() != 1 || g.routes[message.NLRI{Prefix: to, ID: 2}] == nil {
		t.Errorf("%d routes: %v", g.Advertised(), g.routes)
	}
	g.Change(to, nil)
	if g.Advertised() != 0 || len(g.highest) != 0 {
		t.Errorf("%d routes are left, and %v", g.Advertised(), g.highest)
	}
}
