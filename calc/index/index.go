// Package index keeps the members of sets that selectors select, as labels and
// addresses change: the one incremental part of the calculation. A change costs
// as much as what it changes, however many selectors and endpoints there are.
//
// What is equal is kept once: items with the same labels and parents form a
// group, and a selector is tried on groups. Which selectors match a group is not
// remembered (of 50 000 groups and 1000 selectors that would be the largest
// thing in memory) but found again, among the few selectors whose requirements
// the group's labels fulfil.
package index

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"unique"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/selector"
)

// Item is something that selectors select: an endpoint or a set of networks.
type Item struct {
	Labels  map[string]string // its own
	Parents []string          // asked in this order for labels that are not its own (its profiles)
	Nets    []netip.Prefix    // invalid ones do not count
	Ports   []Port
}

// Port is a named port of an item.
type Port struct {
	Name  string
	Proto uint8 // IP protocol number
	Port  uint16
}

// Want is a set that somebody needs: the addresses of what the selector selects,
// or, if Port is not empty, address, protocol and port of the port of that name
// and protocol.
type Want struct {
	ID       policy.SetID
	Selector *selector.Selector
	Proto    uint8
	Port     string
}

// Addresses is the set of the addresses.
func Addresses(s *selector.Selector) Want {
	return Want{ID: policy.SetID(s.ID()), Selector: s}
}

// NamedPort is the set of a named port.
func NamedPort(s *selector.Selector, proto uint8, name string) Want {
	digest := strings.TrimPrefix(s.ID(), "s:")
	return Want{ID: policy.SetID(fmt.Sprintf("n:%d:%s:%s", proto, name, digest)), Selector: s, Proto: proto, Port: name}
}

// Kind is what the members of the set are.
func (w Want) Kind() policy.SetKind {
	if w.Port != "" {
		return policy.AddressPorts
	}
	return policy.Addresses
}

// String is what is selected, for people.
func (w Want) String() string {
	if w.Port != "" {
		return fmt.Sprintf("port %s of %s", w.Port, w.Selector)
	}
	return w.Selector.String()
}

// Index is not safe for concurrent use. Use New.
type Index[K comparable] struct {
	seed       maphash.Seed
	items      map[K]*item
	groups     map[uint64]*group // by the hash of labels and parents; chained
	parents    map[string]*parent
	selections map[string]*selection // by the selector's text
	sets       map[policy.SetID]*set
	byKey      map[string]map[*selection]struct{} // by the labels that a selector looks at
	pivots     pivots
	dirty      map[*set]struct{}
	round      uint64 // marks the selections of one change
}

// New returns an index without items and sets.
func New[K comparable]() *Index[K] {
	return &Index[K]{
		seed:       maphash.MakeSeed(),
		items:      map[K]*item{},
		groups:     map[uint64]*group{},
		parents:    map[string]*parent{},
		selections: map[string]*selection{},
		sets:       map[policy.SetID]*set{},
		byKey:      map[string]map[*selection]struct{}{},
		pivots:     pivots{byKey: map[string]*pivot{}},
		dirty:      map[*set]struct{}{},
	}
}

// item is what is kept of an Item: 50 000 of them must not weigh much.
type item struct {
	group *group
	at    int            // in group.items
	nets  []netip.Prefix // masked, sorted, distinct
	ports []Port         // sorted, distinct
}

// Put adds or replaces an item.
func (x *Index[K]) Put(k K, in Item) {
	g := x.group(in.Labels, in.Parents)
	next := item{group: g, nets: normalNets(in.Nets), ports: normalPorts(in.Ports)}
	old := x.items[k]
	if old == nil {
		it := &next
		x.items[k] = it
		g.enter(it)
		x.matching(g, func(s *selection) { x.contribute(s, it, 1) })
		return
	}
	was := *old
	if was.group == g {
		old.nets, old.ports = next.nets, next.ports
		if !slices.Equal(was.nets, next.nets) || !slices.Equal(was.ports, next.ports) {
			x.matching(g, func(s *selection) { x.differ(s, &was, old) })
		}
		return
	}
	x.round++
	before, after := x.collect(was.group), x.collect(g)
	for _, s := range before {
		s.round = x.round
	}
	x.leave(old)
	old.group, old.nets, old.ports = g, next.nets, next.ports
	g.enter(old)
	for _, s := range after {
		if s.round == x.round {
			s.round = 0
			x.differ(s, &was, old)
		} else {
			x.contribute(s, old, 1)
		}
	}
	for _, s := range before {
		if s.round == x.round {
			x.contribute(s, &was, -1)
		}
	}
}

// Delete takes an item out; one that is not there is no error.
func (x *Index[K]) Delete(k K) {
	it := x.items[k]
	if it == nil {
		return
	}
	x.matching(it.group, func(s *selection) { x.contribute(s, it, -1) })
	x.leave(it)
	delete(x.items, k)
}

// Len is the number of items.
func (x *Index[K]) Len() int { return len(x.items) }

// SetParent sets the labels that items inherit from a parent; nil takes them
// away.
func (x *Index[K]) SetParent(name string, labels map[string]string) {
	p := x.parents[name]
	if p == nil {
		if labels == nil {
			return
		}
		p = x.parent(name)
	}
	was, is := p.labels, maps.Clone(labels)
	for s := range x.looking(was, is) {
		for g := range p.groups {
			p.labels = was
			before := s.sel.MatchFunc(g.value)
			p.labels = is
			after := s.sel.MatchFunc(g.value)
			if before == after {
				continue
			}
			sign := 1
			if before {
				sign = -1
			}
			for _, it := range g.items {
				x.contribute(s, it, sign)
			}
		}
	}
	p.labels = is
	x.dropParent(p)
}

// looking are the selections that look at a label in which the two sets of
// labels differ.
func (x *Index[K]) looking(a, b map[string]string) map[*selection]struct{} {
	out := map[*selection]struct{}{}
	note := func(m, other map[string]string) {
		for k, v := range m {
			if w, ok := other[k]; !ok || v != w {
				maps.Copy(out, x.byKey[k])
			}
		}
	}
	note(a, b)
	note(b, a)
	return out
}

// contribute adds (sign 1) or takes away (sign -1) all of an item in all sets of
// a selection.
func (x *Index[K]) contribute(s *selection, it *item, sign int) {
	for _, t := range s.sets {
		for m := range t.members(it) {
			t.count(m, sign)
		}
		x.dirty[t] = struct{}{}
	}
}

// differ replaces an item's earlier form in all sets of a selection.
func (x *Index[K]) differ(s *selection, was, is *item) {
	for _, t := range s.sets {
		if t.want.Port == "" {
			added, removed := difference(was.nets, is.nets)
			for _, n := range added {
				t.count(desired.Member{Net: n}, 1)
			}
			for _, n := range removed {
				t.count(desired.Member{Net: n}, -1)
			}
		} else {
			for m := range t.members(is) {
				t.count(m, 1)
			}
			for m := range t.members(was) {
				t.count(m, -1)
			}
		}
		x.dirty[t] = struct{}{}
	}
}

// difference walks two sorted lists.
func difference(was, is []netip.Prefix) (added, removed []netip.Prefix) {
	for len(was) > 0 && len(is) > 0 {
		switch c := was[0].Compare(is[0]); {
		case c < 0:
			removed, was = append(removed, was[0]), was[1:]
		case c > 0:
			added, is = append(added, is[0]), is[1:]
		default:
			was, is = was[1:], is[1:]
		}
	}
	return append(added, is...), append(removed, was...)
}

func normalNets(in []netip.Prefix) []netip.Prefix {
	if len(in) == 0 {
		return nil
	}
	out := make([]netip.Prefix, 0, len(in))
	for _, n := range in {
		if n.Addr().Is4In6() && n.Bits() >= 96 {
			n = netip.PrefixFrom(n.Addr().Unmap(), n.Bits()-96)
		}
		if n.IsValid() {
			out = append(out, n.Masked())
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

func normalPorts(in []Port) []Port {
	var out []Port
	for _, p := range in {
		if p.Name != "" {
			p.Name = intern(p.Name)
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b Port) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
	})
	return slices.Compact(out)
}

// intern keeps one copy of a text that many items have.
func intern(s string) string { return unique.Make(s).Value() }
