package index_test

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/manekinet/maneki/calc/index"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/selector"
)

// world is the specification: everything that the index was told, and the
// members computed from it in the plainest way.
type world struct {
	items   map[string]index.Item
	parents map[string]map[string]string
	wants   map[policy.SetID]index.Want
	refs    map[policy.SetID]int
}

func newWorld() *world {
	return &world{map[string]index.Item{}, map[string]map[string]string{}, map[policy.SetID]index.Want{}, map[policy.SetID]int{}}
}

func (w *world) labels(it index.Item) map[string]string {
	out := map[string]string{}
	for _, name := range slices.Backward(it.Parents) {
		maps.Copy(out, w.parents[name])
	}
	maps.Copy(out, it.Labels)
	return out
}

func (w *world) members(want index.Want) []desired.Member {
	all := map[desired.Member]bool{}
	for _, it := range w.items {
		if !want.Selector.Match(w.labels(it)) {
			continue
		}
		for _, n := range it.Nets {
			if want.Port == "" {
				all[desired.Member{Net: n.Masked()}] = true
				continue
			}
			for _, p := range it.Ports {
				if p.Name == want.Port && p.Proto == want.Proto && n.IsSingleIP() {
					all[desired.Member{Net: n, Proto: p.Proto, Port: p.Port}] = true
				}
			}
		}
	}
	var out []desired.Member
	for m := range all {
		inside := false
		for o := range all {
			inside = inside || want.Port == "" && o != m && o.Net.Bits() < m.Net.Bits() && o.Net.Contains(m.Net.Addr())
		}
		if !inside {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, desired.Member.Compare)
	return out
}

func drawWord(t *rapid.T, what string, n int) string {
	return what + fmt.Sprint(rapid.IntRange(0, n-1).Draw(t, what))
}

func drawLabels(t *rapid.T) map[string]string {
	return rapid.MapOfN(rapid.SampledFrom([]string{"a", "b", "c"}), rapid.SampledFrom([]string{"0", "1", "2"}), 0, 3).Draw(t, "labels")
}

func drawNet(t *rapid.T) netip.Prefix {
	a := netip.AddrFrom4([4]byte{10, 0, byte(rapid.IntRange(0, 1).Draw(t, "x")), byte(rapid.IntRange(0, 3).Draw(t, "y"))})
	bits := rapid.SampledFrom([]int{0, 23, 24, 30, 31, 32, 32, 32, 32}).Draw(t, "bits")
	if rapid.Bool().Draw(t, "v6") {
		b := a.As4()
		a = netip.AddrFrom16([16]byte{0: 0xfd, 14: b[2], 15: b[3]})
		bits += 96
	}
	return netip.PrefixFrom(a, bits)
}

func drawItem(t *rapid.T) index.Item {
	it := index.Item{Labels: drawLabels(t)}
	for range rapid.IntRange(0, 2).Draw(t, "parents") {
		it.Parents = append(it.Parents, drawWord(t, "p", 3))
	}
	for range rapid.IntRange(0, 3).Draw(t, "nets") {
		it.Nets = append(it.Nets, drawNet(t))
	}
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		it.Ports = append(it.Ports, index.Port{Name: drawWord(t, "port", 2), Proto: 6, Port: uint16(rapid.IntRange(80, 82).Draw(t, "port"))})
	}
	return it
}

func drawWant(t *rapid.T) index.Want {
	texts := []string{
		"all()", "a == '0'", "a == '1' && b == '0'", "a in {'0', '1'} || a == '2' && has(b)", "!has(c)", "b != '1'",
		"has(a) && c not in {'0'}", "has(b)", "a in {}", "a == '0' || b == '0'", "c starts with '1' && a == '0'",
	}
	s, err := selector.Parse(rapid.SampledFrom(texts).Draw(t, "selector"))
	if err != nil {
		t.Fatal(err)
	}
	if rapid.IntRange(0, 3).Draw(t, "kind") == 0 {
		return index.NamedPort(s, 6, drawWord(t, "port", 2))
	}
	return index.Addresses(s)
}

// step changes the world and the index alike.
func (w *world) step(t *rapid.T, x *index.Index[string]) {
	switch rapid.IntRange(0, 9).Draw(t, "step") {
	case 0, 1, 2, 3:
		k, it := drawWord(t, "item", 6), drawItem(t)
		w.items[k] = it
		x.Put(k, it)
	case 4:
		k := drawWord(t, "item", 6)
		delete(w.items, k)
		x.Delete(k)
	case 5:
		p := drawWord(t, "p", 3)
		w.parents[p] = drawLabels(t)
		x.SetParent(p, w.parents[p])
	case 6:
		p := drawWord(t, "p", 3)
		delete(w.parents, p)
		x.SetParent(p, nil)
	case 7, 8:
		want := drawWant(t)
		w.wants[want.ID] = want
		w.refs[want.ID]++
		x.Acquire(want)
	case 9:
		want := drawWant(t)
		x.Release(want)
		if w.refs[want.ID]--; w.refs[want.ID] <= 0 {
			delete(w.refs, want.ID)
			delete(w.wants, want.ID)
		}
	}
}

func list(m *desired.Members) []desired.Member {
	return slices.SortedFunc(m.All(), desired.Member.Compare)
}

// TestAgainstSpecification: after any sequence of changes the index holds what
// the plain computation gives, names every set that changed, and each set knows
// how it came from what it was.
func TestAgainstSpecification(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, x := newWorld(), index.New[string]()
		before := map[policy.SetID]*desired.Members{}
		for range rapid.IntRange(1, 12).Draw(t, "rounds") {
			for range rapid.IntRange(0, 6).Draw(t, "steps") {
				w.step(t, x)
			}
			changed := x.Flush()
			for id, want := range w.wants {
				got := x.Members(id)
				if g, e := list(got), w.members(want); !slices.Equal(g, e) {
					t.Fatalf("%s (%s): %v, want %v", id, want.Selector, g, e)
				}
				old, known := before[id]
				if known && old.Digest() != got.Digest() && !slices.Contains(changed, id) {
					t.Fatalf("%s changed and is not named", id)
				}
				add, del := got.Since(old)
				if again := old.Change(add, del); again.Digest() != got.Digest() {
					t.Fatalf("%s: the change from what it was gives %v, want %v", id, list(again), list(got))
				}
				before[id] = got
			}
			for id := range before {
				if _, wanted := w.wants[id]; !wanted {
					delete(before, id)
					if x.Members(id).Len() != 0 {
						t.Fatalf("%s was released and still has members", id)
					}
				}
			}
			if x.Len() != len(w.items) {
				t.Fatalf("%d items, want %d", x.Len(), len(w.items))
			}
		}
	})
}

// TestNothingIsKept: what has been taken out again leaves nothing behind.
func TestNothingIsKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, x := newWorld(), index.New[string]()
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			w.step(t, x)
			if rapid.Bool().Draw(t, "flush") {
				x.Flush()
			}
		}
		for k := range w.items {
			x.Delete(k)
		}
		for p := range w.parents {
			x.SetParent(p, nil)
		}
		for id, want := range w.wants {
			for range w.refs[id] {
				x.Release(want)
			}
		}
		x.Flush()
		if left := x.Sizes(); left != [6]int{} {
			t.Fatalf("left: %v", left)
		}
	})
}

func parse(tb testing.TB, text string) *selector.Selector {
	tb.Helper()
	s, err := selector.Parse(text)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// TestOverlappingNetworks: the inner networks of a set come back when the outer
// one goes.
func TestOverlappingNetworks(t *testing.T) {
	x := index.New[string]()
	want := index.Addresses(parse(t, "all()"))
	x.Acquire(want)
	put := func(name, nets string) {
		var it index.Item
		for _, n := range strings.Fields(nets) {
			it.Nets = append(it.Nets, netip.MustParsePrefix(n))
		}
		x.Put(name, it)
	}
	put("inner", "10.0.0.1/32 10.0.1.0/24 10.0.1.9/32 fd00::1/128 ::ffff:10.0.0.2/128")
	put("outer", "10.0.0.0/8 fd00::/64")
	for _, c := range []struct {
		do   func()
		want string
	}{
		{func() {}, "[10.0.0.0/8 fd00::/64]"},
		{func() { put("outer", "10.0.0.0/23") }, "[10.0.0.0/23 fd00::1]"},
		{func() { x.Delete("outer") }, "[10.0.0.1 10.0.0.2 10.0.1.0/24 fd00::1]"},
		{func() { put("all", "0.0.0.0/0 ::/0") }, "[0.0.0.0/0 ::/0]"},
		{func() { x.Delete("all"); x.Delete("inner") }, "[]"},
	} {
		c.do()
		x.Flush()
		if got := fmt.Sprint(list(x.Members(want.ID))); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

// filled is an index like that of a cluster: endpoints of many applications, and
// a set for each selector.
func filled(b *testing.B, endpoints, selectors int) *index.Index[int] {
	x := index.New[int]()
	x.SetParent("kns.default", map[string]string{"pcns.projectcalico.org/name": "default"})
	for i := range endpoints {
		x.Put(i, endpoint(i, i))
	}
	for i := range selectors {
		x.Acquire(index.Addresses(parse(b, fmt.Sprintf("projectcalico.org/namespace == 'default' && app == 'app-%d'", i))))
	}
	x.Flush()
	return x
}

func endpoint(i, app int) index.Item {
	a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	return index.Item{
		Labels:  map[string]string{"app": fmt.Sprintf("app-%d", app%1000), "projectcalico.org/namespace": "default", "projectcalico.org/orchestrator": "k8s"},
		Parents: []string{"kns.default"},
		Nets:    []netip.Prefix{netip.PrefixFrom(a, 32)},
	}
}

// One endpoint comes and goes among 10 000, with 500 and 5000 selectors.
func BenchmarkEndpoint(b *testing.B) {
	for _, n := range []int{500, 5000} {
		b.Run(fmt.Sprintf("selectors=%d", n), func(b *testing.B) {
			x := filled(b, 10_000, n)
			for i := 0; b.Loop(); i++ {
				x.Put(20_000, endpoint(20_000, i))
				x.Flush()
			}
		})
	}
}

// One address moves among the 100 000 of one set.
func BenchmarkLargeSet(b *testing.B) {
	x := index.New[int]()
	x.Acquire(index.Addresses(parse(b, "all()")))
	for i := range 100_000 {
		x.Put(i, endpoint(i, i))
	}
	x.Flush()
	for i := 0; b.Loop(); i++ {
		x.Put(0, endpoint(200_000+i%2, 0))
		x.Flush()
	}
}

// A new selector among 50 000 endpoints.
func BenchmarkSelector(b *testing.B) {
	x := filled(b, 50_000, 500)
	want := index.Addresses(parse(b, "app == 'app-7' && !has(x)"))
	for b.Loop() {
		x.Acquire(want)
		x.Flush()
		x.Release(want)
	}
}

// One network more or less in a set of 50 000 networks.
func BenchmarkNetworkSet(b *testing.B) {
	x := index.New[int]()
	x.Acquire(index.Addresses(parse(b, "all()")))
	var it index.Item
	for i := range 50_000 {
		it.Nets = append(it.Nets, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	x.Put(0, it)
	x.Flush()
	for i := 0; b.Loop(); i++ {
		x.Put(0, index.Item{Nets: it.Nets[i%2:]})
		x.Flush()
	}
}

// BenchmarkMemory reports what one of 50 000 endpoints costs.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		before := heap()
		x := filled(b, 50_000, 100)
		b.ReportMetric(float64(heap()-before)/50_000, "B/endpoint")
		if x.Len() != 50_000 {
			b.Fatal("lost")
		}
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
