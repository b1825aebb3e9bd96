package rib

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unique"

	"pgregory.net/rapid"

	"github.com/manekinet/maneki/bgp/message"
)

func src(n byte, internal bool) *Source {
	return &Source{Addr: netip.AddrFrom4([4]byte{10, 0, 0, n}), ID: netip.AddrFrom4([4]byte{1, 0, 0, n}), Internal: internal}
}

func attrs(change func(*message.Attrs)) Attrs {
	a := message.Attrs{NextHop: netip.MustParseAddr("10.9.9.9"), LocalPref: 100}
	if change != nil {
		change(&a)
	}
	return unique.Make(a)
}

// TestBest is RFC 4271 §9.1.2.2 step by step: the first path is to win in each row.
func TestBest(t *testing.T) {
	path := func(asns ...uint32) func(*message.Attrs) {
		return func(a *message.Attrs) {
			for i := len(asns) - 1; i >= 0; i-- {
				*a = a.Prepend(asns[i])
			}
		}
	}
	med := func(as, v uint32) Attrs {
		return attrs(func(a *message.Attrs) { path(as)(a); a.MED, a.HasMED = v, true })
	}
	for _, c := range []struct {
		name  string
		paths []Path
	}{
		{"own first", []Path{{Source: &Source{Local: true}, Attrs: attrs(nil)}, {Source: src(1, true), Attrs: attrs(func(a *message.Attrs) { a.LocalPref = 900 })}}},
		{"local preference", []Path{{Source: src(9, true), Attrs: attrs(func(a *message.Attrs) { a.LocalPref = 200; path(1, 2, 3)(a) })}, {Source: src(1, true), Attrs: attrs(nil)}}},
		{"path length", []Path{{Source: src(9, true), Attrs: attrs(path(5))}, {Source: src(1, false), Attrs: attrs(path(1, 2))}}},
		{"origin", []Path{{Source: src(9, true), Attrs: attrs(nil)}, {Source: src(1, true), Attrs: attrs(func(a *message.Attrs) { a.Origin = 2 })}}},
		{"MED within an AS", []Path{{Source: src(9, false), Attrs: med(7, 1)}, {Source: src(1, false), Attrs: med(7, 2)}}},
		{"MED of different AS is not compared", []Path{{Source: src(1, false), Attrs: med(7, 9)}, {Source: src(9, false), Attrs: med(8, 1)}}},
		{"external", []Path{{Source: src(9, false), Attrs: attrs(nil)}, {Source: src(1, true), Attrs: attrs(nil)}}},
		{"router ID", []Path{{Source: src(1, true), Attrs: attrs(nil)}, {Source: src(9, true), Attrs: attrs(nil)}}},
		{"originator ID stands for the router ID", []Path{{Source: src(9, true), Attrs: attrs(func(a *message.Attrs) { a.OriginatorID = netip.MustParseAddr("0.0.0.1") })}, {Source: src(1, true), Attrs: attrs(nil)}}},
		{"shorter cluster list", []Path{
			{Source: &Source{Addr: netip.MustParseAddr("10.0.0.9"), ID: netip.MustParseAddr("1.0.0.1")}, Attrs: attrs(nil)},
			{Source: &Source{Addr: netip.MustParseAddr("10.0.0.1"), ID: netip.MustParseAddr("1.0.0.1")}, Attrs: attrs(func(a *message.Attrs) { a.ClusterList = "abcd" })},
		}},
		{"address", []Path{
			{Source: &Source{Addr: netip.MustParseAddr("10.0.0.1"), ID: netip.MustParseAddr("1.0.0.1")}, Attrs: attrs(nil)},
			{Source: &Source{Addr: netip.MustParseAddr("10.0.0.2"), ID: netip.MustParseAddr("1.0.0.1")}, Attrs: attrs(nil)},
		}},
		{"reachable next hop", []Path{{Source: src(9, true), Attrs: attrs(nil)}, {Source: src(1, false), Attrs: attrs(func(a *message.Attrs) { a.LocalPref = 900 }), Unreachable: true}}},
		{"demoted", []Path{{Source: src(9, true), Attrs: attrs(nil)}, {Source: src(1, false), Attrs: attrs(func(a *message.Attrs) { a.LocalPref = 900 }), Demoted: true}}},
		{"barred is never chosen", []Path{{Source: src(9, true), Attrs: attrs(nil)}, {Source: src(1, false), Attrs: attrs(func(a *message.Attrs) { a.LocalPref = 900 }), Barred: true}}},
		// RFC 4451 §3.2.2: compared in pairs, MED makes a cycle of these three.
		{"MED cycle", []Path{{Source: src(2, false), Attrs: med(7, 1)}, {Source: src(1, false), Attrs: med(7, 2)}, {Source: src(3, false), Attrs: med(8, 0)}}},
	} {
		for turn := range len(c.paths) { // the order of arrival must not matter
			in := append(append([]Path{}, c.paths[turn:]...), c.paths[:turn]...)
			if got := in[best(in).best]; got != c.paths[0] {
				t.Errorf("%s, order %d: %v won", c.name, turn, got.Source)
			}
		}
	}
}

// one identifies a path to a destination.
type one struct {
	source *Source
	id     uint32
}

// TestAnyOrder puts and drops at random and compares the table with a choice made afresh, the counters
// with a recount, and "changed" with what really changed. Two of the sources have several paths (RFC 7911).
func TestAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tab := New()
		var sources []*Source
		for i := range 4 {
			sources = append(sources, src(byte(i+1), i%2 == 0))
		}
		model := map[netip.Prefix]map[one]Path{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			p := netip.MustParsePrefix(fmt.Sprintf("10.0.%d.0/24", rapid.IntRange(0, 3).Draw(t, "prefix")))
			s := rapid.SampledFrom(sources).Draw(t, "source")
			id := uint32(0)
			if s.Internal {
				id = rapid.Uint32Range(0, 2).Draw(t, "id")
			}
			before, beforeHops := tab.Offers(p), tab.Hops(p)
			var changed bool
			if model[p] == nil {
				model[p] = map[one]Path{}
			}
			switch rapid.IntRange(0, 3).Draw(t, "action") {
			case 0:
				changed = tab.Drop(p, s, id)
				delete(model[p], one{s, id})
			case 1:
				stale := rapid.Bool().Draw(t, "only stale")
				tab.Sweep(s, func(_ netip.Prefix, path Path) bool { return path.Stale || !stale })
				for _, paths := range model {
					maps.DeleteFunc(paths, func(k one, path Path) bool { return k.source == s && (path.Stale || !stale) })
				}
				continue
			case 2:
				tab.Update(s, func(_ netip.Prefix, path Path) Path { path.Stale = true; return path })
				for _, paths := range model {
					for k, path := range paths {
						if k.source == s {
							path.Stale = true
							paths[k] = path
						}
					}
				}
				continue
			default:
				pref, hop := rapid.Uint32Range(100, 102).Draw(t, "pref"), rapid.Byte().Draw(t, "hop")%3
				path := Path{
					Source: s, ID: id, Barred: rapid.IntRange(0, 4).Draw(t, "barred") == 0,
					Attrs: attrs(func(a *message.Attrs) { a.LocalPref = pref; a.NextHop = netip.AddrFrom4([4]byte{10, 9, 9, hop}) }),
				}
				changed = tab.Put(p, path)
				model[p][one{s, id}] = path
			}
			after, hops := tab.Offers(p), tab.Hops(p)
			if changed != (!slices.Equal(before, after) || !slices.Equal(beforeHops, hops)) {
				t.Fatalf("changed = %v, but the offers went from %v to %v", changed, before, after)
			}
		}
		check(t, tab, sources, model)
	})
}

func check(t *rapid.T, tab *Table, sources []*Source, model map[netip.Prefix]map[one]Path) {
	type counts struct{ received, accepted, stale int }
	want := map[*Source]counts{}
	dests := 0
	for p, paths := range model {
		var list []Path
		for k, path := range paths {
			c := want[k.source]
			c.received++
			if !path.Barred {
				c.accepted++
			}
			if path.Stale {
				c.stale++
			}
			want[k.source] = c
			list = append(list, path)
		}
		if len(list) > 0 {
			dests++
		}
		if len(list) == 0 {
			if got, ok := tab.Best(p); ok {
				t.Fatalf("%s: best %v of nothing", p, got)
			}
			continue
		}
		checkOffers(t, tab.Offers(p), list)
	}
	if tab.Len() != dests {
		t.Fatalf("%d destinations, want %d", tab.Len(), dests)
	}
	for _, s := range sources {
		if got := (counts{s.Received(), s.Accepted(), s.Stale()}); got != want[s] {
			t.Fatalf("counters of %s: %+v, want %+v", s.Addr, got, want[s])
		}
	}
}

// checkOffers compares the offers with a choice made afresh: the best path is the first, and each index and next
// hop occurs once.
func checkOffers(t *rapid.T, got, list []Path) {
	var want []Path
	if c := best(list); c.best >= 0 {
		want = append(want, list[c.best])
		for _, i := range c.offers[min(1, len(c.offers)):] {
			want = append(want, list[i])
		}
	}
	indices, hops := map[uint32]bool{}, map[netip.Addr]bool{}
	for i := range got {
		indices[got[i].Index], hops[got[i].Attrs.Value().NextHop] = true, true
		got[i].Index = 0 // the table's own
	}
	if !slices.Equal(got, want) {
		t.Fatalf("offers %v, want %v of %v", got, want, list)
	}
	if len(indices) != len(got) || len(hops) != len(got) || indices[0] {
		t.Fatalf("indices %v and next hops %v of %v", indices, hops, got)
	}
}

// TestOffers is what a peer that takes several paths is sent.
func TestOffers(t *testing.T) {
	via := func(hop string, change func(*message.Attrs)) Attrs {
		return attrs(func(a *message.Attrs) {
			a.NextHop = netip.MustParseAddr(hop)
			if change != nil {
				change(a)
			}
		})
	}
	own := &Source{Local: true, Internal: true, ID: netip.MustParseAddr("1.0.0.5")}
	reflected := func(a *message.Attrs) { a.OriginatorID, a.ClusterList = netip.MustParseAddr("1.0.0.1"), "abcd" }
	for _, c := range []struct {
		name  string
		paths []Path
		want  string
	}{
		{"one", []Path{{Source: src(1, true), Attrs: via("10.0.0.1", nil)}}, "10.0.0.1"},
		{"two", []Path{{Source: src(2, true), Attrs: via("10.0.0.2", nil)}, {Source: src(1, true), Attrs: via("10.0.0.1", nil)}}, "10.0.0.1 10.0.0.2"},
		{"own beside learnt", []Path{{Source: own, Attrs: attrs(func(a *message.Attrs) { a.NextHop = netip.Addr{} })}, {Source: src(1, true), Attrs: via("10.0.0.1", nil)}}, "invalid IP 10.0.0.1"},
		{"own of a lower preference", []Path{{Source: own, Attrs: via("10.0.0.9", func(a *message.Attrs) { a.LocalPref = 1 })}, {Source: src(1, true), Attrs: via("10.0.0.1", nil)}}, "10.0.0.9"},
		{"once more by another reflector", []Path{{Source: src(9, true), Attrs: via("10.0.0.1", reflected)}, {Source: src(1, true), Attrs: via("10.0.0.1", nil)}}, "10.0.0.1"},
		{"two of one peer", []Path{{Source: src(1, true), ID: 7, Attrs: via("10.0.0.1", nil)}, {Source: src(1, true), ID: 4, Attrs: via("10.0.0.2", nil)}}, "10.0.0.2 10.0.0.1"},
		{"a worse one", []Path{{Source: src(1, true), Attrs: via("10.0.0.1", nil)}, {Source: src(2, true), Attrs: via("10.0.0.2", func(a *message.Attrs) { a.LocalPref = 1 })}}, "10.0.0.1"},
	} {
		p, tb := netip.MustParsePrefix("10.65.0.0/26"), New()
		for _, path := range c.paths {
			tb.Put(p, path)
		}
		var got []string
		for _, o := range tb.Offers(p) {
			got = append(got, o.Attrs.Value().NextHop.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
	}
}

// TestHops: what is as good as the best path is used beside it.
func TestHops(t *testing.T) {
	via := func(hop string, change func(*message.Attrs)) Attrs {
		return attrs(func(a *message.Attrs) {
			a.NextHop = netip.MustParseAddr(hop)
			if change != nil {
				change(a)
			}
		})
	}
	as := func(n uint32, med uint32) func(*message.Attrs) {
		return func(a *message.Attrs) { *a = a.Prepend(n); a.MED, a.HasMED = med, true }
	}
	var many []Path
	for i := range byte(20) {
		many = append(many, Path{Source: src(100-i, true), Attrs: via(fmt.Sprintf("10.8.0.%d", 100-i), nil)})
	}
	for _, c := range []struct {
		name  string
		paths []Path
		want  string
	}{
		{"two", []Path{{Source: src(1, true), Attrs: via("10.0.0.9", nil)}, {Source: src(2, true), Attrs: via("10.0.0.8", nil)}}, "[10.0.0.8 10.0.0.9]"},
		{"the same hop by two reflectors", []Path{{Source: src(1, true), Attrs: via("10.0.0.9", nil)}, {Source: src(2, true), Attrs: via("10.0.0.9", nil)}}, "[]"},
		{"another neighbour AS", []Path{{Source: src(1, false), Attrs: via("10.0.0.1", as(7, 5))}, {Source: src(2, false), Attrs: via("10.0.0.2", as(8, 6))}}, "[10.0.0.1 10.0.0.2]"},
		{"higher MED of one AS", []Path{{Source: src(1, false), Attrs: via("10.0.0.1", as(7, 5))}, {Source: src(2, false), Attrs: via("10.0.0.2", as(7, 6))}}, "[]"},
		{"internal beside external", []Path{{Source: src(1, false), Attrs: via("10.0.0.1", nil)}, {Source: src(2, true), Attrs: via("10.0.0.2", nil)}}, "[]"},
		{"demoted beside good", []Path{{Source: src(1, true), Attrs: via("10.0.0.1", nil), Demoted: true}, {Source: src(2, true), Attrs: via("10.0.0.2", nil)}}, "[]"},
		{"barred", []Path{{Source: src(1, true), Attrs: via("10.0.0.1", nil), Barred: true}, {Source: src(2, true), Attrs: via("10.0.0.2", nil)}}, "[]"},
		{"own beside learnt", []Path{{Source: &Source{Local: true}, Attrs: via("10.0.0.1", nil)}, {Source: src(2, true), Attrs: via("10.0.0.2", nil)}}, "[]"},
		{"lower preference", []Path{{Source: src(1, true), Attrs: via("10.0.0.1", func(a *message.Attrs) { a.LocalPref = 99 })}, {Source: src(2, true), Attrs: via("10.0.0.2", nil)}}, "[]"},
		{"too many", many, "[10.8.0.81 10.8.0.82 10.8.0.83 10.8.0.84 10.8.0.85 10.8.0.86 10.8.0.87 10.8.0.88 10.8.0.89 10.8.0.90 10.8.0.91 10.8.0.92 10.8.0.93 10.8.0.94 10.8.0.95 10.8.0.96]"},
	} {
		p := netip.MustParsePrefix("10.65.0.0/26")
		tb := New()
		for _, path := range c.paths {
			tb.Put(p, path)
		}
		if got := fmt.Sprint(tb.Hops(p)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	// A path that becomes as good, and one that ceases to be, is a change.
	p, tb := netip.MustParsePrefix("10.65.0.0/26"), New()
	first, other := src(1, true), src(2, true)
	if !tb.Put(p, Path{Source: first, Attrs: via("10.0.0.1", nil)}) || !tb.Put(p, Path{Source: other, Attrs: via("10.0.0.2", nil)}) || !tb.Drop(p, other, 0) {
		t.Error("a change of the next hops is not told")
	}
}
