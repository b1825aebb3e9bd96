package index

import (
	"slices"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/selector"
)

// selection is a selector with the sets that are made of what it selects.
type selection struct {
	sel   *selector.Selector
	sets  []*set
	pivot selector.Requirement // under which it is found; an empty key: always tried
	round uint64
}

// pivots find the selections that may match a group by one label that each of
// them requires.
type pivots struct {
	byKey  map[string]*pivot
	always []*selection // those that require no label
}

type pivot struct {
	byValue map[string][]*selection
	present []*selection // that require the label, with whatever value
}

// choose picks the requirement that fewest other selections are found under: of
// a namespaced selector rather its own label than the namespace.
func (p *pivots) choose(s *selector.Selector) selector.Requirement {
	var best selector.Requirement
	cost := len(p.always) + 1
	for _, r := range s.Requirements() {
		if c := p.cost(r); c < cost {
			best, cost = r, c
		}
	}
	return best
}

func (p *pivots) cost(r selector.Requirement) int {
	at := p.byKey[r.Key]
	switch {
	case at == nil:
		return 0
	case r.Values == nil:
		return len(at.present)
	}
	most := 0
	for _, v := range r.Values {
		most = max(most, len(at.byValue[v]))
	}
	return most
}

func (p *pivots) add(s *selection) {
	if s.pivot.Key == "" {
		p.always = append(p.always, s)
		return
	}
	if s.pivot.Values != nil && len(s.pivot.Values) == 0 {
		return // it selects nothing
	}
	at := p.byKey[s.pivot.Key]
	if at == nil {
		at = &pivot{byValue: map[string][]*selection{}}
		p.byKey[s.pivot.Key] = at
	}
	if s.pivot.Values == nil {
		at.present = append(at.present, s)
	}
	for _, v := range s.pivot.Values {
		at.byValue[v] = append(at.byValue[v], s)
	}
}

func (p *pivots) remove(s *selection) {
	without := func(list []*selection) []*selection {
		if i := slices.Index(list, s); i >= 0 {
			return slices.Delete(list, i, i+1)
		}
		return list
	}
	at := p.byKey[s.pivot.Key]
	switch {
	case s.pivot.Key == "":
		p.always = without(p.always)
		return
	case at == nil:
		return
	case s.pivot.Values == nil:
		at.present = without(at.present)
	}
	for _, v := range s.pivot.Values {
		if rest := without(at.byValue[v]); len(rest) > 0 {
			at.byValue[v] = rest
		} else {
			delete(at.byValue, v)
		}
	}
	if len(at.byValue)+len(at.present) == 0 {
		delete(p.byKey, s.pivot.Key)
	}
}

// matching calls visit with each selection that selects the group's items.
func (x *Index[K]) matching(g *group, visit func(*selection)) {
	get := g.value
	try := func(list []*selection) {
		for _, s := range list {
			if s.sel.MatchFunc(get) {
				visit(s)
			}
		}
	}
	under := func(key, value string) {
		if at := x.pivots.byKey[key]; at != nil {
			try(at.byValue[value])
			try(at.present)
		}
	}
	try(x.pivots.always)
	for _, l := range g.labels {
		under(l.key, l.value)
	}
	for i, p := range g.parents {
		for k, v := range p.labels {
			if !g.shadows(i, k) {
				under(k, v)
			}
		}
	}
}

// shadows reports whether the group has a label that comes before that of its
// parent number i.
func (g *group) shadows(i int, key string) bool {
	before := group{labels: g.labels, parents: g.parents[:i]}
	_, has := before.value(key)
	return has
}

func (x *Index[K]) collect(g *group) []*selection {
	var out []*selection
	x.matching(g, func(s *selection) { out = append(out, s) })
	return out
}

// Acquire makes the index keep a set, until it has been released as often.
func (x *Index[K]) Acquire(w Want) {
	if t := x.sets[w.ID]; t != nil {
		t.refs++
		return
	}
	t := &set{want: w, refs: 1, pending: map[desired.Member]bool{}, extra: map[desired.Member]int32{}}
	x.sets[w.ID] = t
	text := w.Selector.String()
	s := x.selections[text]
	if s == nil {
		s = &selection{sel: w.Selector, pivot: x.pivots.choose(w.Selector)}
		x.selections[text] = s
		x.pivots.add(s)
		for _, k := range s.sel.Keys() {
			if x.byKey[k] == nil {
				x.byKey[k] = map[*selection]struct{}{}
			}
			x.byKey[k][s] = struct{}{}
		}
	}
	s.sets = append(s.sets, t)
	x.fill(s, t)
}

// fill puts everything that is there into a new set.
func (x *Index[K]) fill(s *selection, t *set) {
	x.dirty[t] = struct{}{}
	for _, first := range x.groups {
		for g := first; g != nil; g = g.next {
			if !s.sel.MatchFunc(g.value) {
				continue
			}
			for _, it := range g.items {
				for m := range t.members(it) {
					t.count(m, 1)
				}
			}
		}
	}
}

// Release gives a set back; the last release forgets it.
func (x *Index[K]) Release(w Want) {
	t := x.sets[w.ID]
	if t == nil {
		return
	}
	if t.refs--; t.refs > 0 {
		return
	}
	delete(x.sets, w.ID)
	delete(x.dirty, t)
	text := w.Selector.String()
	s := x.selections[text]
	s.sets = slices.DeleteFunc(s.sets, func(o *set) bool { return o == t })
	if len(s.sets) > 0 {
		return
	}
	delete(x.selections, text)
	x.pivots.remove(s)
	for _, k := range s.sel.Keys() {
		if delete(x.byKey[k], s); len(x.byKey[k]) == 0 {
			delete(x.byKey, k)
		}
	}
}

// Flush brings the members of all sets up to date and returns the sets that are
// not what they were, new ones included, in no order.
func (x *Index[K]) Flush() []policy.SetID {
	var changed []policy.SetID
	for t := range x.dirty {
		if t.flush() {
			changed = append(changed, t.want.ID)
		}
	}
	clear(x.dirty)
	return changed
}

// Want returns what was asked for under an ID; false: nobody needs the set.
func (x *Index[K]) Want(id policy.SetID) (Want, bool) {
	if t := x.sets[id]; t != nil {
		return t.want, true
	}
	return Want{}, false
}

// Members is what a set held at the last Flush; nil, which is empty, also for a
// set that nobody has acquired.
func (x *Index[K]) Members(id policy.SetID) *desired.Members {
	if t := x.sets[id]; t != nil {
		return t.content
	}
	return nil
}
