package selector

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The labels under which the upstream parser was measured (spec/calico.md §5.3).
func measuredLabels() map[string]string {
	return map[string]string{"a": "b", "k": "", "x.y/z": "v"}
}

func TestParse(t *testing.T) {
	tests := []struct {
		in, text string
		match    bool
	}{
		{"", "all()", true},
		{" \t ", "all()", true},
		{"all()", "all()", true},
		{"all( \t)", "all()", true},
		{"global()", "global()", true},
		{"!all()", "!all()", false},
		{"a == 'b'", `a == "b"`, true},
		{`a=="b"`, `a == "b"`, true},
		{`a == "it's"`, `a == "it's"`, false},
		{`a == 'say "x"'`, `a == 'say "x"'`, false},
		{"a != 'b'", `a != "b"`, false},
		{"nix == 'b'", `nix == "b"`, false},
		{"nix != 'b'", `nix != "b"`, true},
		{"nix in {'b'}", `nix in {"b"}`, false},
		{"nix not in {'b'}", `nix not in {"b"}`, true},
		{"nix contains ''", `nix contains ""`, false},
		{"nix starts with ''", `nix starts with ""`, false},
		{"nix ends with ''", `nix ends with ""`, false},
		{"k == ''", `k == ""`, true},
		{"has(k)", "has(k)", true},
		{"has( x.y/z )", "has(x.y/z)", true},
		{"has(nix)", "has(nix)", false},
		{"!has(nix)", "!has(nix)", true},
		{"! ! has(nix)", "has(nix)", false},
		{"!!!has(nix)", "!has(nix)", true},
		{"!(!has(nix))", "has(nix)", false},
		{"a in {}", "a in {}", false},
		{"a not in {}", "a not in {}", true},
		{"a in {'c','b','b'}", `a in {"b", "c"}`, true},
		{"a in{'b',}", `a in {"b"}`, true},
		{"a notin {'b'}", `a not in {"b"}`, false},
		{"a not  \tin {'c'}", `a not in {"c"}`, true},
		{"x.y/z startswith 'v'", `x.y/z starts with "v"`, true},
		{"x.y/z starts with 'w'", `x.y/z starts with "w"`, false},
		{"x.y/z endswith''", `x.y/z ends with ""`, true},
		{"x.y/z ends  with 'w'", `x.y/z ends with "w"`, false},
		{"x.y/z contains 'v'", `x.y/z contains "v"`, true},
		{"x.y/z contains 'vv'", `x.y/z contains "vv"`, false},
		{"in == 'x'", `in == "x"`, false},
		{"all == 'x'", `all == "x"`, false},
		{"has == 'x'", `has == "x"`, false},
		{"not in {'x'}", `not in {"x"}`, false}, // the label "not"
		{"not not in {'x'}", `not not in {"x"}`, true},
		{"in in {'x'}", `in in {"x"}`, false},
		{"contains contains 'x'", `contains contains "x"`, false},
		{"-a != 'x'", `-a != "x"`, true},
		{"!(a=='b')", `!a == "b"`, false},
		{"!(a=='b' && has(k))", `!(a == "b" && has(k))`, false},
		{"a=='b'&&k==''||m=='z'", `((a == "b" && k == "") || m == "z")`, true},
		{"a=='b'&&(k==''||m=='z')", `(a == "b" && (k == "" || m == "z"))`, true},
		{"((((a=='b'))))", `a == "b"`, true},
		{"has(a) && has(k) && has(nix)", "(has(a) && has(k) && has(nix))", false},
		{"(has(a) || has(k)) || has(nix)", "((has(a) || has(k)) || has(nix))", true},
		{"a == 'x\ny'", "a == \"x\ny\"", false},
	}
	for _, tt := range tests {
		s, err := Parse(tt.in)
		if err != nil {
			t.Errorf("Parse(%q): %v", tt.in, err)
			continue
		}
		if s.String() != tt.text {
			t.Errorf("Parse(%q) prints\n %s, want\n %s", tt.in, s, tt.text)
		}
		labels := measuredLabels()
		if got := s.Match(labels); got != tt.match {
			t.Errorf("%q matches: %v, want %v", tt.in, got, tt.match)
		}
		get := func(k string) (string, bool) { v, ok := labels[k]; return v, ok }
		if got := s.MatchFunc(get); got != tt.match {
			t.Errorf("%q matches by function: %v, want %v", tt.in, got, tt.match)
		}
	}
}

func TestParseErrors(t *testing.T) {
	long := strings.Repeat("x", maxLabel+1)
	tests := []struct {
		in  string
		pos int
		msg string
	}{
		{"a ==", 4, "expected string"},
		{"a == b", 5, "expected string"},
		{"a != ", 5, "expected string"},
		{"a = 'b'", 2, "expected =="},
		{"a == 'b' & has(c)", 9, "expected &&"},
		{"a == 'b' | has(c)", 9, "expected ||"},
		{"a == 'b", 5, "unterminated string"},
		{"has(a", 5, "no closing ')' after has("},
		{"has(a b)", 6, "no closing ')' after has("},
		{"has()", 4, "no label after has("},
		{"all(x)", 4, "no closing ')' after all("},
		{"global(", 7, "no closing ')' after global("},
		{"has (a)", 4, "expected == or != not: TokLParen()"},
		{"all ()", 4, "expected == or != not: TokLParen()"},
		{"a", 1, "expected == or != not: TokEOF()"},
		{"a (", 2, "expected == or != not: TokLParen()"},
		{"a in {'b'", 9, "expected }"},
		{"a in {'b' 'c'}", 10, "expected }"},
		{"a in {,}", 6, "expected }"},
		{"a in 'b'", 5, "expected set literal {...}"},
		{"a inside {'b'}", 2, `expected operator after label "a"`},
		{"a\n", 1, `expected operator after label "a"`},
		{"a == 'b'\n", 8, `unexpected character '\n'`},
		{"a == 'b' x", 9, "unexpected content at end of selector [TokLabel(x) TokEOF()]"},
		{"has(a))", 6, "unexpected content at end of selector [TokRParen() TokEOF()]"},
		{"(has(a)", 7, "expected )"},
		{"()", 1, "expected a label, has(, all(), global(), ! or ( not: TokRParen()"},
		{"has(a) &&", 9, "expected a label, has(, all(), global(), ! or ( not: TokEOF()"},
		{"|| has(a)", 0, "expected a label, has(, all(), global(), ! or ( not: TokOr()"},
		{"!", 1, "expected a label, has(, all(), global(), ! or ( not: TokEOF()"},
		{"§ == 'x'", 0, "unexpected character '§'"},
		{long + " == 'x'", 0, "a label has at most 512 characters"},
		{"has(" + long + ")", 4, "a label has at most 512 characters"},
		{strings.Repeat("(", maxDepth+1) + "all()", maxDepth, "more than 200 nested parentheses"},
	}
	for _, tt := range tests {
		s, err := Parse(tt.in)
		var syntax *SyntaxError
		if !errors.As(err, &syntax) {
			t.Errorf("Parse(%q) = %v, %v; want a SyntaxError", tt.in, s, err)
			continue
		}
		if syntax.Pos != tt.pos || syntax.Msg != tt.msg || syntax.Input != tt.in {
			t.Errorf("Parse(%.40q): byte %d: %s\n want byte %d: %s", tt.in, syntax.Pos, syntax.Msg, tt.pos, tt.msg)
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("Parse(%.40q): error of several lines: %v", tt.in, err)
		}
	}
}

func TestErrorText(t *testing.T) {
	_, err := Parse("a = 'b'")
	const want = `invalid selector "a = 'b'" at byte 2: expected ==`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestID(t *testing.T) {
	s, err := Parse("a=='b'")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum224([]byte(`s:a == "b"`))
	if want := "s:" + base64.RawURLEncoding.EncodeToString(sum[:]); s.ID() != want {
		t.Errorf("ID %s, want %s", s.ID(), want)
	}
	if n := len(s.ID()); n != 40 {
		t.Errorf("ID has %d bytes, want 40", n)
	}
	same, err := Parse(` a == "b" `)
	if err != nil {
		t.Fatal(err)
	}
	if same.ID() != s.ID() {
		t.Error("two spellings of one selector have different IDs")
	}
}

func TestKeysAndGlobal(t *testing.T) {
	s, err := Parse("has(z) && (a == 'x' || !(b in {'1'})) && a != 'y' && m not in {} && c contains '' && d starts with '' && e ends with ''")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(s.Keys()), "[a b c d e m z]"; got != want {
		t.Errorf("Keys %s, want %s", got, want)
	}
	if s.UsesGlobal() || s.IsAll() {
		t.Error("a selector on labels is neither global nor all")
	}
	g, err := Parse("has(a) || !global()")
	if err != nil {
		t.Fatal(err)
	}
	if !g.UsesGlobal() {
		t.Error("global() inside an expression was not found")
	}
	blank, err := Parse("")
	if err != nil {
		t.Fatal(err)
	}
	if !blank.IsAll() {
		t.Error("the empty selector is all()")
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	s, err := Parse("app == 'web' && role in {'a', 'b', 'c'} && !(tier contains 'x') && has(zone) || name starts with 'n'")
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{"app": "web", "role": "b", "tier": "t", "zone": "z"}
	if !s.Match(labels) {
		t.Fatal("must match")
	}
	if n := testing.AllocsPerRun(100, func() { s.Match(labels) }); n != 0 {
		t.Errorf("Match allocates %v times", n)
	}
}

// spelled is a random selector: its text in some spelling and, computed beside
// it in the plainest way, whether it matches given labels.
type spelled struct {
	text  string
	match func(map[string]string) bool
}

func drawSelector(t *rapid.T, depth int) spelled {
	space := func() string { return rapid.SampledFrom([]string{"", " ", "\t", "  "}).Draw(t, "space") }
	choices := 8
	if depth > 0 {
		choices = 12
	}
	switch c := rapid.IntRange(0, choices-1).Draw(t, "node"); c {
	case 8, 9:
		sep := "&&"
		if c == 9 {
			sep = "||"
		}
		l, r := drawSelector(t, depth-1), drawSelector(t, depth-1)
		text := "(" + space() + l.text + space() + sep + space() + r.text + ")"
		if sep == "&&" {
			return spelled{text, func(m map[string]string) bool { return l.match(m) && r.match(m) }}
		}
		return spelled{text, func(m map[string]string) bool { return l.match(m) || r.match(m) }}
	case 10:
		x := drawSelector(t, depth-1)
		return spelled{"!" + space() + x.text, func(m map[string]string) bool { return !x.match(m) }}
	case 11:
		x := drawSelector(t, depth-1)
		return spelled{"(" + space() + x.text + space() + ")", x.match}
	default:
		return drawTest(t, c, space)
	}
}

func drawTest(t *rapid.T, c int, space func() string) spelled {
	key := rapid.SampledFrom([]string{"a", "b", "in", "not", "x.y/z", "-q"}).Draw(t, "key")
	value := rapid.SampledFrom([]string{"", "1", "12", "a b", "it's", `"`}).Draw(t, "value")
	quote := "'"
	if strings.Contains(value, "'") {
		quote = `"`
	}
	lit := quote + value + quote
	test := func(op string, f func(v string, ok bool) bool) spelled {
		return spelled{key + " " + op + space() + lit, func(m map[string]string) bool { v, ok := m[key]; return f(v, ok) }}
	}
	switch c {
	case 0:
		return test("==", func(v string, ok bool) bool { return ok && v == value })
	case 1:
		return test("!=", func(v string, ok bool) bool { return !ok || v != value })
	case 2:
		return test("contains", func(v string, ok bool) bool { return ok && strings.Contains(v, value) })
	case 3:
		return test("starts with", func(v string, ok bool) bool { return ok && strings.HasPrefix(v, value) })
	case 4:
		return test("ends with", func(v string, ok bool) bool { return ok && strings.HasSuffix(v, value) })
	case 5:
		return spelled{"has(" + space() + key + space() + ")", func(m map[string]string) bool { _, ok := m[key]; return ok }}
	}
	set := rapid.SliceOfN(rapid.SampledFrom([]string{"", "1", "12", "a b"}), 0, 4).Draw(t, "set")
	text := "{" + space()
	for _, v := range set {
		text += "'" + v + "'," + space()
	}
	text += "}"
	op, negated := "in", false
	if c == 7 {
		op, negated = rapid.SampledFrom([]string{"not in", "notin", "not  in"}).Draw(t, "op"), true
	}
	return spelled{key + " " + op + space() + text, func(m map[string]string) bool {
		v, ok := m[key]
		return (ok && slices.Contains(set, v)) != negated
	}}
}

// A selector means what its text says, its canonical text means the same, and
// the canonical text is a fixed point.
func TestRandomSelectors(t *testing.T) {
	labels := rapid.MapOfN(
		rapid.SampledFrom([]string{"a", "b", "in", "not", "x.y/z", "-q"}),
		rapid.SampledFrom([]string{"", "1", "12", "a b", "it's", `"`}), 0, 6)
	rapid.Check(t, func(t *rapid.T) {
		want := drawSelector(t, 4)
		s, err := Parse(want.text)
		if err != nil {
			t.Fatalf("Parse(%q): %v", want.text, err)
		}
		again, err := Parse(s.String())
		if err != nil {
			t.Fatalf("Parse(canonical %q): %v", s, err)
		}
		if again.String() != s.String() || again.ID() != s.ID() {
			t.Fatalf("canonical text changes: %q, then %q", s, again)
		}
		m := labels.Draw(t, "labels")
		if s.Match(m) != want.match(m) || again.Match(m) != want.match(m) {
			t.Fatalf("%q on %v: %v, canonical %v, want %v", want.text, m, s.Match(m), again.Match(m), want.match(m))
		}
		// Labels that Keys does not name have no influence.
		other := maps.Clone(m)
		if other == nil {
			other = map[string]string{}
		}
		other["unrelated"] = "x"
		for k := range other {
			if !slices.Contains(s.Keys(), k) {
				delete(other, k)
			}
		}
		if s.Match(other) != s.Match(m) {
			t.Fatalf("%q depends on a label that Keys %v does not name", want.text, s.Keys())
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "a == 'b' && has(c)", "!(x in {'a',\"b\",}) || all()", "a not in {} && b starts with 'x'", "has(", "in in {'in'}", "((", "a\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		s, err := Parse(in)
		if err != nil {
			var syntax *SyntaxError
			if !errors.As(err, &syntax) || syntax.Pos < 0 || syntax.Pos > len(in) {
				t.Fatalf("Parse(%q): bad error %v", in, err)
			}
			return
		}
		again, err := Parse(s.String())
		if err != nil || again.String() != s.String() {
			t.Fatalf("canonical text of %q is %q, which parses to %v, %v", in, s, again, err)
		}
		labels := measuredLabels()
		if s.Match(labels) != again.Match(labels) || s.Match(nil) != again.Match(nil) {
			t.Fatalf("%q and its canonical text %q differ", in, s)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	s, err := Parse("app == 'web' && role in {'a', 'b', 'c'} && !(tier contains 'x') && has(zone)")
	if err != nil {
		b.Fatal(err)
	}
	labels := map[string]string{"app": "web", "role": "b", "tier": "t", "zone": "z", "other": "o"}
	b.ReportAllocs()
	for b.Loop() {
		if !s.Match(labels) {
			b.Fatal("no match")
		}
	}
}

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse("app == 'web' && role in {'a', 'b', 'c'} && !(tier contains 'x') && has(zone)"); err != nil {
			b.Fatal(err)
		}
	}
}
