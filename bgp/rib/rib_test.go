package rib

import (
	"fmt"
	"net/netip"
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
		{"barred is never chosen", []Path{{Source: src(9, true), Attrs: attrs(nil)}, {Source: src(1, false), Attrs: attrs(func(a *message.Attrs) { a.LocalPref = 900 }), Barred: true}}},
		// RFC 4451 §3.2.2: compared in pairs, MED makes a cycle of these three.
		{"MED cycle", []Path{{Source: src(2, false), Attrs: med(7, 1)}, {Source: src(1, false), Attrs: med(7, 2)}, {Source: src(3, false), Attrs: med(8, 0)}}},
	} {
		for turn := range len(c.paths) { // the order of arrival must not matter
			in := append(append([]Path{}, c.paths[turn:]...), c.paths[:turn]...)
			if got := in[best(in)]; got != c.paths[0] {
				t.Errorf("%s, order %d: %v won", c.name, turn, got.Source)
			}
		}
	}
}

// TestAnyOrder puts and drops at random and compares the table with a choice made afresh, the counters
// with a recount, and "changed" with what really changed.
func TestAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tab := New()
		var sources []*Source
		for i := range 4 {
			sources = append(sources, src(byte(i+1), i%2 == 0))
		}
		model := map[netip.Prefix]map[*Source]Path{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			p := netip.MustParsePrefix(fmt.Sprintf("10.0.%d.0/24", rapid.IntRange(0, 3).Draw(t, "prefix")))
			s := rapid.SampledFrom(sources).Draw(t, "source")
			before, had := tab.Best(p)
			var changed bool
			if model[p] == nil {
				model[p] = map[*Source]Path{}
			}
			switch rapid.IntRange(0, 3).Draw(t, "action") {
			case 0:
				changed = tab.Drop(p, s)
				delete(model[p], s)
			case 1:
				stale := rapid.Bool().Draw(t, "only stale")
				tab.Sweep(s, func(_ netip.Prefix, path Path) bool { return path.Stale || !stale })
				for _, paths := range model {
					if path, ok := paths[s]; ok && (path.Stale || !stale) {
						delete(paths, s)
					}
				}
				continue
			case 2:
				tab.Update(s, func(_ netip.Prefix, path Path) Path { path.Stale = true; return path })
				for _, paths := range model {
					if path, ok := paths[s]; ok {
						path.Stale = true
						paths[s] = path
					}
				}
				continue
			default:
				pref := rapid.Uint32Range(100, 102).Draw(t, "pref")
				path := Path{
					Source: s, Barred: rapid.IntRange(0, 4).Draw(t, "barred") == 0,
					Attrs: attrs(func(a *message.Attrs) { a.LocalPref = pref }),
				}
				changed = tab.Put(p, path)
				model[p][s] = path
			}
			after, has := tab.Best(p)
			if changed != (had != has || before != after) {
				t.Fatalf("changed = %v, but best went from %v to %v", changed, before, after)
			}
		}
		check(t, tab, sources, model)
	})
}

func check(t *rapid.T, tab *Table, sources []*Source, model map[netip.Prefix]map[*Source]Path) {
	type counts struct{ received, accepted, stale int }
	want := map[*Source]counts{}
	dests := 0
	for p, paths := range model {
		var list []Path
		for s, path := range paths {
			c := want[s]
			c.received++
			if !path.Barred {
				c.accepted++
			}
			if path.Stale {
				c.stale++
			}
			want[s] = c
			list = append(list, path)
		}
		if len(list) > 0 {
			dests++
		}
		got, ok := tab.Best(p)
		if i := -1; len(list) > 0 {
			if i = best(list); ok != (i >= 0) || (ok && got != list[i]) {
				t.Fatalf("%s: best %v %v, want index %d of %v", p, got, ok, i, list)
			}
		} else if ok {
			t.Fatalf("%s: best %v of nothing", p, got)
		}
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
