package selector

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func drawLabels() *rapid.Generator[map[string]string] {
	return rapid.MapOfN(
		rapid.SampledFrom([]string{"a", "b", "in", "not", "x.y/z", "-q"}),
		rapid.SampledFrom([]string{"", "1", "12", "a b", "it's", `"`}), 0, 6)
}

// What is derived from two selectors means what its definition says.
func TestDerived(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawSelector(t, 3), drawSelector(t, 3)
		sa, sb := mustParse(t, a.text), mustParse(t, b.text)
		m := drawLabels().Draw(t, "labels")

		both := And(sa, nil, sb)
		if both.Match(m) != (a.match(m) && b.match(m)) {
			t.Fatalf("And(%s, %s) on %v is %v", sa, sb, m, both.Match(m))
		}
		if parsed := mustParse(t, "("+a.text+") && ("+b.text+")"); parsed.ID() != both.ID() {
			t.Fatalf("And gives %s, the text %s", both, parsed)
		}
		prefixed := map[string]string{"member": ""}
		for k, v := range m {
			prefixed["p."+k] = v
		}
		if in := sa.Inherited("p.", "member"); in.Match(prefixed) != a.match(m) {
			t.Fatalf("%s on %v is %v", in, prefixed, in.Match(prefixed))
		}
		for _, r := range both.Requirements() {
			v, ok := m[r.Key]
			if both.Match(m) && (!ok || r.Values != nil && !slices.Contains(r.Values, v)) {
				t.Fatalf("%s selects %v although it is said to require %v", both, m, r)
			}
		}
	})
}

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func mustParse(t fataler, text string) *Selector {
	t.Helper()
	s, err := Parse(text)
	if err != nil {
		t.Fatalf("Parse(%q): %v", text, err)
	}
	return s
}

func TestInherited(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"all()", "has(ns)"},
		{"", "has(ns)"},
		{"global()", "!has(ns)"},
		{"!global()", "has(ns)"},
		{"a == 'x' && !has(b) || all()", `((pcns.a == "x" && !has(pcns.b)) || has(ns))`},
		{"a not in {'y', 'x'}", `pcns.a not in {"x", "y"}`},
	} {
		if got := mustParse(t, c.in).Inherited("pcns.", "ns").String(); got != c.want {
			t.Errorf("%q: %s, want %s", c.in, got, c.want)
		}
	}
}

func TestRequirements(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []Requirement
	}{
		{"all()", nil},
		{"a != 'x'", nil},
		{"!has(a)", nil},
		{"a == 'x' && b in {'y', 'z'} && c != 'w'", []Requirement{{"a", []string{"x"}}, {"b", []string{"y", "z"}}}},
		{"a == 'x' || a == 'w' && b == 'q'", []Requirement{{"a", []string{"w", "x"}}}},
		{"a == 'x' || has(a)", []Requirement{{"a", nil}}},
		{"a == 'x' || b == 'y'", nil},
		{"a in {}", []Requirement{{"a", []string{}}}},
	} {
		got := mustParse(t, c.in).Requirements()
		same := func(x, y Requirement) bool {
			return x.Key == y.Key && (x.Values == nil) == (y.Values == nil) && slices.Equal(x.Values, y.Values)
		}
		if !slices.EqualFunc(got, c.want, same) {
			t.Errorf("%q requires %v, want %v", c.in, got, c.want)
		}
	}
}
