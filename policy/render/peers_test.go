package render

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/manekinet/maneki/desired"
)

// TestPeersAreClassified: after any updates every address is in the class of just the atoms that have it, but for atoms
// that were asked for one rendering ago; and the map holds exactly the addresses that are members themselves.
func TestPeersAreClassified(t *testing.T) {
	all := []string{"10.0.0.1/32", "10.0.0.2/32", "10.0.0.9/32", "10.0.0.0/30", "10.0.0.0/8", "0.0.0.0/0", "10.0.0.8/31", "fd00::1/128", "fd00::/64", "::/0", "255.255.255.255/32"}
	rapid.Check(t, func(t *rapid.T) {
		x := newPeers("x")
		var last map[atomID]*desired.Members
		for now := uint64(1); now <= uint64(rapid.IntRange(1, 8).Draw(t, "renderings")); now++ {
			want := map[atomID]*desired.Members{}
			for _, id := range rapid.SliceOfNDistinct(rapid.SampledFrom([]atomID{"s:a", "s:b", "s:c", "n:6:http:x"}), 0, 4, rapid.ID).Draw(t, "atoms") {
				var list []desired.Member
				for _, text := range rapid.SliceOfNDistinct(rapid.SampledFrom(all), 0, 4, rapid.ID).Draw(t, string(id)) {
					m := desired.Member{Net: netip.MustParsePrefix(text)}
					if id[0] == 'n' {
						if !m.Net.IsSingleIP() {
							continue
						}
						m.Proto, m.Port = 6, rapid.SampledFrom([]uint16{80, 81}).Draw(t, "port")
					}
					list = append(list, m)
				}
				want[id] = desired.NewMembers(list...)
			}
			x.update(now, want)
			checkPeers(t, x, want, last)
			last = want
		}
	})
}

func checkPeers(t *rapid.T, x *peers, want, last map[atomID]*desired.Members) {
	hosts := 0
	for _, text := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.8", "10.0.0.9", "10.0.0.10", "11.0.0.0", "255.255.255.255", "fd00::1", "fd00::2", "fe80::1"} {
		a := netip.MustParseAddr(text)
		var atoms []atomID
		self := false
		for id := range x.atoms {
			m := want[id]
			if _, asked := want[id]; !asked {
				m = last[id]
			}
			in := false
			for e := range m.All() {
				in = in || e.Net.Contains(a)
				self = self || e.Net == netip.PrefixFrom(a, a.BitLen())
			}
			if in {
				atoms = append(atoms, id)
			}
		}
		slices.Sort(atoms)
		got := x.covering(a)
		h := x.hosts[a]
		if (h != nil) != self {
			t.Fatalf("%s: an address of its own: %v, expected %v", a, h != nil, self)
		}
		if h != nil {
			hosts++
			got = h.class.atoms
			chain := hostElement(a, h.class)
			if !slices.Contains(x.elements[family(a)].List(), chain) || x.classes[h.class.key] != h.class {
				t.Fatalf("%s: not in the map", a)
			}
		}
		if !slices.Equal(got, atoms) {
			t.Fatalf("%s: class of %v, expected %v", a, got, atoms)
		}
	}
	for id := range x.atoms {
		_, asked := want[id]
		_, before := last[id]
		if !asked && !before {
			t.Fatalf("%s is still there", id)
		}
	}
	if n := x.elements[0].Len() + x.elements[1].Len(); n != hosts || len(x.hosts) != hosts {
		t.Fatalf("%d elements and %d addresses, expected %d", n, len(x.hosts), hosts)
	}
}

// TestSweep compares with asking every number.
func TestSweep(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.SampledFrom([]uint16{0, 1, 2, 3, 10, 80, 81, 82, 65533, 65534, 65535})
		var spans []span[uint16, int]
		for i := range rapid.IntRange(0, 6).Draw(t, "spans") {
			a, b := number.Draw(t, "from"), number.Draw(t, "to")
			spans = append(spans, span[uint16, int]{min(a, b), max(a, b), i})
		}
		got, end := map[uint16]string{}, -1
		sweep(spans, cmp.Compare[uint16], func(n uint16) uint16 { return n + 1 }, func(n uint16) uint16 { return n - 1 }, func(from, to uint16, what []int) {
			if int(from) <= end || to < from {
				t.Fatalf("%d-%d after %d", from, to, end)
			}
			for n := int(from); n <= int(to); n++ {
				got[uint16(n)] = fmt.Sprint(what)
			}
			end = int(to)
		})
		for n := range 65536 {
			var want []int
			for _, s := range spans {
				if int(s.from) <= n && n <= int(s.to) {
					want = append(want, s.what)
				}
			}
			if want != nil && got[uint16(n)] != fmt.Sprint(want) || want == nil && got[uint16(n)] != "" {
				t.Fatalf("%d: %s, expected %v", n, got[uint16(n)], want)
			}
		}
	})
}
