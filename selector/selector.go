package selector

import (
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"strings"
)

// Selector is a parsed selector. It is immutable.
type Selector struct {
	expr expr
	text string
}

func newSelector(e expr) *Selector {
	var b strings.Builder
	e.write(&b)
	return &Selector{expr: e, text: b.String()}
}

// Match reports whether the labels satisfy the selector. It does not allocate.
func (s *Selector) Match(labels map[string]string) bool {
	return s.expr.eval(source{labels: labels})
}

// MatchFunc is Match for labels that are not in one map: get returns the value
// of a label and whether it is there.
func (s *Selector) MatchFunc(get func(key string) (string, bool)) bool {
	return s.expr.eval(source{get: get})
}

// String is the canonical text: two selectors that were written differently
// but parse alike have the same. It parses to the same selector.
func (s *Selector) String() string { return s.text }

// ID is the unique ID that Calico derives from the canonical text: "s:" and
// the unpadded base64url of the SHA-224 of "s:" and the text. 40 bytes.
func (s *Selector) ID() string {
	sum := sha256.Sum224([]byte("s:" + s.text))
	return "s:" + base64.RawURLEncoding.EncodeToString(sum[:])
}

// IsAll reports whether the selector is all().
func (s *Selector) IsAll() bool { _, ok := s.expr.(all); return ok }

// UsesGlobal reports whether global() occurs, which is allowed only in the
// namespaceSelector of a rule.
func (s *Selector) UsesGlobal() bool {
	found := false
	walk(s.expr, func(e expr) {
		if _, ok := e.(global); ok {
			found = true
		}
	})
	return found
}

// Keys lists the labels that the selector looks at, sorted and distinct. A
// change of any other label cannot change the result.
func (s *Selector) Keys() []string {
	var keys []string
	walk(s.expr, func(e expr) {
		if k, ok := e.(interface{ label() string }); ok {
			keys = append(keys, k.label())
		}
	})
	slices.Sort(keys)
	return slices.Compact(keys)
}

// source is where labels come from: get if it is set, else the map.
type source struct {
	labels map[string]string
	get    func(string) (string, bool)
}

func (s source) value(key string) (string, bool) {
	if s.get != nil {
		return s.get(key)
	}
	v, ok := s.labels[key]
	return v, ok
}

// expr is one node of a selector.
type expr interface {
	eval(source) bool
	write(*strings.Builder)
}

type (
	all        struct{}
	global     struct{}
	not        struct{ expr expr }
	and        []expr
	or         []expr
	has        struct{ key string }
	equal      struct{ key, want string }
	notEqual   struct{ key, want string }
	contains   struct{ key, want string }
	startsWith struct{ key, want string }
	endsWith   struct{ key, want string }
	in         struct {
		key  string
		want []string // sorted
	}
	notIn struct {
		key  string
		want []string // sorted
	}
)

func (e has) label() string        { return e.key }
func (e equal) label() string      { return e.key }
func (e notEqual) label() string   { return e.key }
func (e contains) label() string   { return e.key }
func (e startsWith) label() string { return e.key }
func (e endsWith) label() string   { return e.key }
func (e in) label() string         { return e.key }
func (e notIn) label() string      { return e.key }

// walk visits every node; the nesting is bounded by the parser.
func walk(e expr, visit func(expr)) {
	visit(e)
	switch e := e.(type) {
	case not:
		walk(e.expr, visit)
	case and:
		for _, x := range e {
			walk(x, visit)
		}
	case or:
		for _, x := range e {
			walk(x, visit)
		}
	}
}

func (all) eval(source) bool    { return true }
func (global) eval(source) bool { return true }
func (e not) eval(s source) bool {
	return !e.expr.eval(s)
}

func (e and) eval(s source) bool {
	for _, x := range e {
		if !x.eval(s) {
			return false
		}
	}
	return true
}

func (e or) eval(s source) bool {
	for _, x := range e {
		if x.eval(s) {
			return true
		}
	}
	return false
}

func (e has) eval(s source) bool { _, ok := s.value(e.key); return ok }
func (e equal) eval(s source) bool {
	v, ok := s.value(e.key)
	return ok && v == e.want
}

func (e notEqual) eval(s source) bool {
	v, ok := s.value(e.key)
	return !ok || v != e.want
}

func (e contains) eval(s source) bool {
	v, ok := s.value(e.key)
	return ok && strings.Contains(v, e.want)
}

func (e startsWith) eval(s source) bool {
	v, ok := s.value(e.key)
	return ok && strings.HasPrefix(v, e.want)
}

func (e endsWith) eval(s source) bool {
	v, ok := s.value(e.key)
	return ok && strings.HasSuffix(v, e.want)
}

func (e in) eval(s source) bool {
	v, ok := s.value(e.key)
	return ok && member(e.want, v)
}

func (e notIn) eval(s source) bool {
	v, ok := s.value(e.key)
	return !ok || !member(e.want, v)
}

func member(sorted []string, v string) bool {
	_, found := slices.BinarySearch(sorted, v)
	return found
}

func (all) write(b *strings.Builder)    { b.WriteString("all()") }
func (global) write(b *strings.Builder) { b.WriteString("global()") }
func (e not) write(b *strings.Builder)  { b.WriteByte('!'); e.expr.write(b) }
func (e and) write(b *strings.Builder)  { writeList(b, e, " && ") }
func (e or) write(b *strings.Builder)   { writeList(b, e, " || ") }

func (e has) write(b *strings.Builder) {
	b.WriteString("has(")
	b.WriteString(e.key)
	b.WriteByte(')')
}

func (e equal) write(b *strings.Builder)      { writeTest(b, e.key, " == ", e.want) }
func (e notEqual) write(b *strings.Builder)   { writeTest(b, e.key, " != ", e.want) }
func (e contains) write(b *strings.Builder)   { writeTest(b, e.key, " contains ", e.want) }
func (e startsWith) write(b *strings.Builder) { writeTest(b, e.key, " starts with ", e.want) }
func (e endsWith) write(b *strings.Builder)   { writeTest(b, e.key, " ends with ", e.want) }
func (e in) write(b *strings.Builder)         { writeSet(b, e.key, " in ", e.want) }
func (e notIn) write(b *strings.Builder)      { writeSet(b, e.key, " not in ", e.want) }

func writeList(b *strings.Builder, list []expr, sep string) {
	b.WriteByte('(')
	for i, e := range list {
		if i > 0 {
			b.WriteString(sep)
		}
		e.write(b)
	}
	b.WriteByte(')')
}

func writeTest(b *strings.Builder, key, op, want string) {
	b.WriteString(key)
	b.WriteString(op)
	writeString(b, want)
}

func writeSet(b *strings.Builder, key, op string, want []string) {
	b.WriteString(key)
	b.WriteString(op)
	b.WriteByte('{')
	for i, v := range want {
		if i > 0 {
			b.WriteString(", ")
		}
		writeString(b, v)
	}
	b.WriteByte('}')
}

// writeString quotes with whichever quote the value does not hold; since there
// are no escapes, a parsed value never holds both.
func writeString(b *strings.Builder, s string) {
	quote := byte('"')
	if strings.IndexByte(s, '"') >= 0 {
		quote = '\''
	}
	b.WriteByte(quote)
	b.WriteString(s)
	b.WriteByte(quote)
}
