package desired_test

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/manekinet/maneki/desired"
)

func drawMember(t *rapid.T) desired.Member {
	a := netip.AddrFrom4([4]byte{10, 0, byte(rapid.IntRange(0, 1).Draw(t, "c")), byte(rapid.IntRange(0, 7).Draw(t, "d"))})
	bits := rapid.SampledFrom([]int{24, 30, 32}).Draw(t, "bits")
	p, _ := a.Prefix(bits)
	return desired.Member{Net: p}
}

// TestMembersAreASet compares with a plain map over long histories, and asks
// for the difference between any two moments.
func TestMembersAreASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m *desired.Members
		model := map[desired.Member]bool{}
		type moment struct {
			m     *desired.Members
			model map[desired.Member]bool
		}
		history := []moment{{nil, map[desired.Member]bool{}}}
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			add := rapid.SliceOfN(rapid.Custom(drawMember), 0, 3).Draw(t, "add")
			del := rapid.SliceOfN(rapid.Custom(drawMember), 0, 3).Draw(t, "del")
			m = m.Change(add, del)
			for _, e := range del {
				delete(model, e)
			}
			for _, e := range add {
				model[e] = true
			}
			history = append(history, moment{m, maps.Clone(model)})
		}
		if m.Len() != len(model) || m.Digest() != desired.NewMembers(slices.Collect(maps.Keys(model))...).Digest() {
			t.Fatalf("%d members, digest %v", m.Len(), m.Digest())
		}
		seen := map[desired.Member]bool{}
		for e := range m.All() {
			if seen[e] || !model[e] || !m.Has(e) {
				t.Fatalf("member %v: seen %v, wanted %v", e, seen[e], model[e])
			}
			seen[e] = true
		}
		if len(seen) != len(model) {
			t.Fatalf("%d members listed of %d", len(seen), len(model))
		}
		old := rapid.SampledFrom(history).Draw(t, "old")
		add, del := m.Since(old.m)
		got := maps.Clone(old.model)
		for _, e := range del {
			if !got[e] {
				t.Fatalf("%v is taken out twice", e)
			}
			delete(got, e)
		}
		for _, e := range add {
			if got[e] {
				t.Fatalf("%v is added twice", e)
			}
			got[e] = true
		}
		if !maps.Equal(got, model) {
			t.Fatalf("from the older moment: %v, want %v", got, model)
		}
	})
}

func TestMembersContain(t *testing.T) {
	m := desired.NewMembers(desired.Member{Net: prefix("10.0.0.0/8")}, desired.Member{Net: prefix("fd00::1/128"), Proto: 6, Port: 80})
	for _, tt := range []struct {
		addr  string
		proto uint8
		port  uint16
		want  bool
	}{
		{"10.1.2.3", 0, 0, true}, {"11.0.0.1", 0, 0, false}, {"fd00::1", 6, 80, true}, {"fd00::1", 6, 81, false}, {"10.1.2.3", 6, 80, false},
	} {
		if got := m.Contains(addr(tt.addr), tt.proto, tt.port); got != tt.want {
			t.Errorf("%s %d %d: %v", tt.addr, tt.proto, tt.port, got)
		}
	}
	var none *desired.Members
	if none.Contains(addr("10.0.0.1"), 0, 0) || none.Len() != 0 || none.Change(nil, nil) != nil {
		t.Error("nil is not the empty set")
	}
}

// BenchmarkMembersChange moves one address in a set of 100 000.
func BenchmarkMembersChange(b *testing.B) {
	var list []desired.Member
	for i := range 100_000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		list = append(list, desired.Member{Net: netip.PrefixFrom(a, 32)})
	}
	m := desired.NewMembers(list...)
	extra := []desired.Member{{Net: prefix("11.0.0.1/32")}}
	for b.Loop() {
		next := m.Change(extra, list[:1])
		next.Since(m)
		m = next.Change(list[:1], extra)
	}
}
