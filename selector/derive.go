package selector

import "slices"

// And selects what all of the selectors select; with none of them, everything.
// A nil one does not count.
func And(list ...*Selector) *Selector {
	var terms and
	for _, s := range list {
		if s != nil {
			terms = append(terms, s.expr)
		}
	}
	switch len(terms) {
	case 0:
		return newSelector(all{})
	case 1:
		return newSelector(terms[0])
	}
	return newSelector(terms)
}

// Equal selects what has the label with that value.
func Equal(key, value string) *Selector { return newSelector(equal{key, value}) }

// In selects what has the label with one of the values; of none, nothing.
func In(key string, values ...string) *Selector {
	want := slices.Sorted(slices.Values(values))
	return newSelector(in{key, slices.Compact(want)})
}

// Has selects what has the label.
func Has(key string) *Selector { return newSelector(has{key}) }

// Inherited is the selector of a namespace or service account read as one of the
// endpoints that belong to it: its labels, which they inherit, have the prefix;
// all() is what has the label member, and global() what has it not
// (spec/calico.md §5.1, §5.2).
func (s *Selector) Inherited(prefix, member string) *Selector {
	return newSelector(inherited(s.expr, prefix, member))
}

func inherited(e expr, prefix, member string) expr {
	list := func(in []expr) []expr {
		out := make([]expr, len(in))
		for i, x := range in {
			out[i] = inherited(x, prefix, member)
		}
		return out
	}
	switch e := e.(type) {
	case all:
		return has{member}
	case global:
		return not{has{member}}
	case not:
		x := inherited(e.expr, prefix, member)
		if n, ok := x.(not); ok { // of global()
			return n.expr
		}
		return not{x}
	case and:
		return and(list(e))
	case or:
		return or(list(e))
	case has:
		return has{prefix + e.key}
	case equal:
		return equal{prefix + e.key, e.want}
	case notEqual:
		return notEqual{prefix + e.key, e.want}
	case contains:
		return contains{prefix + e.key, e.want}
	case startsWith:
		return startsWith{prefix + e.key, e.want}
	case endsWith:
		return endsWith{prefix + e.key, e.want}
	case in:
		return in{prefix + e.key, e.want}
	case notIn:
		return notIn{prefix + e.key, e.want}
	}
	return e
}

// Requirement is a label that whatever a selector selects has.
type Requirement struct {
	Key    string
	Values []string // one of these; nil: any. Empty but not nil: nothing is selected
}

// Requirements are conditions that everything selected fulfils, so that an index
// need not try the selector on anything else. None: it may select anything.
func (s *Selector) Requirements() []Requirement { return requirements(s.expr) }

func requirements(e expr) []Requirement {
	switch e := e.(type) {
	case has:
		return []Requirement{{Key: e.key}}
	case contains:
		return []Requirement{{Key: e.key}}
	case startsWith:
		return []Requirement{{Key: e.key}}
	case endsWith:
		return []Requirement{{Key: e.key}}
	case equal:
		return []Requirement{{e.key, []string{e.want}}}
	case in:
		return []Requirement{{e.key, append([]string{}, e.want...)}}
	case and:
		var all []Requirement
		for _, x := range e {
			all = append(all, requirements(x)...)
		}
		return all
	case or:
		return common(e)
	}
	return nil
}

// common are the requirements on labels that every branch has.
func common(branches or) []Requirement {
	shared := requirements(branches[0])
	for _, x := range branches[1:] {
		other := requirements(x)
		var next []Requirement
		for _, a := range shared {
			if i := slices.IndexFunc(other, func(b Requirement) bool { return a.Key == b.Key }); i >= 0 {
				next = append(next, either(a, other[i]))
			}
		}
		shared = next
	}
	return shared
}

func either(a, b Requirement) Requirement {
	if a.Values == nil || b.Values == nil {
		return Requirement{Key: a.Key}
	}
	values := append(slices.Clone(a.Values), b.Values...)
	slices.Sort(values)
	return Requirement{a.Key, slices.Compact(values)}
}
