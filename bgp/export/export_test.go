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

var policy = Policy{LocalASN: 64512, NextHop: netip.MustParseAddr("10.0.0.1"), Families: message.IPv4.Set(), FourOctetAS: true}

// listener is what a peer knows after the messages it was sent.
type listener struct {
	member *Member
	source *rib.Source
	routes map[netip.Prefix]uint32 // to the MED, which stands for the attributes
}

func (l *listener) pull(t *rapid.T) {
	msgs, err := l.member.Next()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range msgs {
		if _, _, err := message.Header(b); err != nil {
			t.Fatal(err)
		}
		u, err := message.DecodeUpdate(b[message.HeaderLen:], message.Session{FourOctetAS: true, Families: 3, Internal: true})
		if err != nil || u.Malformed != "" {
			t.Fatalf("%+v %v", u, err)
		}
		for _, n := range u.Withdrawn {
			delete(l.routes, n.Prefix)
		}
		for _, r := range u.Reach {
			for _, n := range r.Routes {
				l.routes[n.Prefix] = uint32(r.Attrs.PathLen())
			}
		}
	}
}

// TestMembersConverge changes routes, and lets members join, leave, restart and pull, all at random. In the
// end every member that pulled to the end must know exactly the group's routes, except its own.
func TestMembersConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := NewGroup(policy)
		sources := []*rib.Source{{Local: true}, {Addr: netip.MustParseAddr("10.0.0.2")}, {Addr: netip.MustParseAddr("10.0.0.3")}}
		want := map[netip.Prefix]rib.Path{}
		var members []*listener
		for range rapid.IntRange(1, 150).Draw(t, "steps") {
			switch k := rapid.IntRange(0, 9).Draw(t, "action"); {
			case k == 0 || len(members) == 0:
				s := rapid.SampledFrom(sources[1:]).Draw(t, "who")
				members = append(members, &listener{member: g.Join(s), source: s, routes: map[netip.Prefix]uint32{}})
			case k == 1:
				i := rapid.IntRange(0, len(members)-1).Draw(t, "leaver")
				members[i].member.Leave()
				members = append(members[:i], members[i+1:]...)
			case k == 2:
				rapid.SampledFrom(members).Draw(t, "refresher").member.Restart()
			case k <= 5:
				rapid.SampledFrom(members).Draw(t, "puller").pull(t)
			default:
				p := netip.MustParsePrefix(fmt.Sprintf("192.168.%d.0/24", rapid.IntRange(0, 5).Draw(t, "prefix")))
				if rapid.IntRange(0, 2).Draw(t, "gone") == 0 {
					delete(want, p)
					g.Change(p, nil)
					continue
				}
				a := message.Attrs{NextHop: netip.MustParseAddr("10.0.0.9")}
				for range rapid.IntRange(1, 3).Draw(t, "attrs") {
					a = a.Prepend(65000)
				}
				want[p] = rib.Path{Source: rapid.SampledFrom(sources).Draw(t, "from"), Attrs: unique.Make(a)}
				g.Change(p, []rib.Path{want[p]})
			}
		}
		for _, l := range members {
			for l.member.Pending() {
				l.pull(t)
			}
			expect := map[netip.Prefix]uint32{}
			for p, path := range want {
				if path.Source != l.source {
					expect[p] = uint32(path.Attrs.Value().PathLen() + 1)
				}
			}
			if !maps.Equal(l.routes, expect) {
				t.Fatalf("member of %s knows %v, want %v", l.source.Addr, l.routes, expect)
			}
		}
		for _, l := range members {
			l.member.Leave()
		}
		if g.Members() != 0 || g.Advertised() != len(want) {
			t.Fatalf("members %d, advertised %d", g.Members(), g.Advertised())
		}
		if g.dead.len > 0 && g.chunks[0] == nil {
			t.Fatalf("%d withdrawn routes are remembered for nobody", g.dead.len)
		}
	})
}

// TestSharing checks that members at the same place are given the very same messages, packed full.
func TestSharing(t *testing.T) {
	g := NewGroup(policy)
	self := &rib.Source{Local: true}
	const routes = 10_000
	for i := range routes {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16 + byte(i>>16), byte(i >> 8), byte(i)}), 32)
		g.Change(p, []rib.Path{{Source: self, Attrs: unique.Make(message.Attrs{})}})
	}
	a, b := g.Join(nil), g.Join(nil)
	total := 0
	for a.Pending() {
		ma, err := a.Next()
		if err != nil {
			t.Fatal(err)
		}
		mb, err := b.Next()
		if err != nil {
			t.Fatal(err)
		}
		for i := range ma {
			if &ma[i][0] != &mb[i][0] {
				t.Fatal("two members were packed for separately")
			}
			if len(ma[i]) > message.MaxLen {
				t.Fatalf("message of %d octets", len(ma[i]))
			}
		}
		total += len(ma)
	}
	if total > routes*5/4000+5 {
		t.Errorf("%d messages for %d routes: not packed full", total, routes)
	}
}

func TestPolicy(t *testing.T) {
	local, ibgp, ebgp := &rib.Source{Local: true, Internal: true}, &rib.Source{Internal: true}, &rib.Source{}
	internal, external := policy, policy
	internal.Internal = true
	hop := netip.MustParseAddr("10.9.9.9")
	community := func(c string) message.Attrs {
		s, _, err := message.ParseCommunities(c)
		if err != nil {
			t.Fatal(err)
		}
		return message.Attrs{NextHop: hop, Communities: s}
	}
	for _, c := range []struct {
		name   string
		policy Policy
		from   *rib.Source
		attrs  message.Attrs
		prefix string
		want   string // "" if not sent
	}{
		{"own, internal peer", internal, local, message.Attrs{LocalPref: 300}, "192.168.0.0/24", "hop 10.0.0.1 pref 300 path "},
		{"own with a next hop", internal, local, message.Attrs{NextHop: hop, LocalPref: 100}, "192.168.0.0/24", "hop 10.9.9.9 pref 100 path "},
		{"own, external peer", external, local, message.Attrs{LocalPref: 300}, "192.168.0.0/24", "hop 10.0.0.1 pref - path 64512"},
		{"internal to internal", internal, ibgp, message.Attrs{NextHop: hop}, "192.168.0.0/24", ""},
		{"internal to external", external, ibgp, message.Attrs{NextHop: hop}, "192.168.0.0/24", "hop 10.0.0.1 pref - path 64512"},
		{"external to internal", internal, ebgp, message.Attrs{NextHop: hop, LocalPref: 100}, "192.168.0.0/24", "hop 10.9.9.9 pref 100 path "},
		{"no-advertise", internal, ebgp, community("65535:65282"), "192.168.0.0/24", ""},
		{"no-export to external", external, ebgp, community("65535:65281"), "192.168.0.0/24", ""},
		{"no-export to internal", internal, ebgp, community("65535:65281"), "192.168.0.0/24", "hop 10.9.9.9 pref 0 path "},
		{"family not negotiated", internal, local, message.Attrs{}, "fd00::/64", ""},
	} {
		h, ok := c.policy.Apply(netip.MustParsePrefix(c.prefix), rib.Path{Source: c.from, Attrs: unique.Make(c.attrs)})
		got := ""
		if ok {
			a := h.Value()
			pref := "-"
			if a.HasLocalPref {
				pref = fmt.Sprint(a.LocalPref)
			}
			got = fmt.Sprintf("hop %s pref %s path %s", a.NextHop, pref, a.PathString())
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
