package index

import (
	"hash/maphash"
	"slices"
	"strings"
)

// group is all items with the same labels and parents.
type group struct {
	hash    uint64
	next    *group // of the same hash
	labels  []label
	parents []*parent
	items   []*item
}

type label struct{ key, value string }

// parent is what labels are inherited from, whether anything is known of it or
// not.
type parent struct {
	name   string
	labels map[string]string
	groups map[*group]struct{}
}

// value is a label of the group's items: their own, else their first parent's
// that has it (spec/calico.md §5.1).
func (g *group) value(key string) (string, bool) {
	for i := range g.labels {
		if g.labels[i].key == key {
			return g.labels[i].value, true
		}
	}
	for _, p := range g.parents {
		if v, ok := p.labels[key]; ok {
			return v, true
		}
	}
	return "", false
}

func (g *group) enter(it *item) {
	it.at = len(g.items)
	g.items = append(g.items, it)
}

// group finds or makes the group of labels and parents.
func (x *Index[K]) group(labels map[string]string, parents []string) *group {
	sorted := make([]label, 0, len(labels))
	for k, v := range labels {
		sorted = append(sorted, label{k, v})
	}
	slices.SortFunc(sorted, func(a, b label) int { return strings.Compare(a.key, b.key) })
	hash := x.hash(sorted, parents)
	for g := x.groups[hash]; g != nil; g = g.next {
		sameParent := func(p *parent, name string) bool { return p.name == name }
		if slices.Equal(g.labels, sorted) && slices.EqualFunc(g.parents, parents, sameParent) {
			return g
		}
	}
	for i := range sorted {
		sorted[i] = label{intern(sorted[i].key), intern(sorted[i].value)}
	}
	g := &group{hash: hash, next: x.groups[hash], labels: sorted}
	for _, name := range parents {
		p := x.parent(name)
		g.parents = append(g.parents, p)
		p.groups[g] = struct{}{}
	}
	x.groups[hash] = g
	return g
}

func (x *Index[K]) hash(labels []label, parents []string) uint64 {
	var h maphash.Hash
	h.SetSeed(x.seed)
	write := func(s string) {
		h.WriteString(s)
		h.WriteByte(0)
	}
	for _, l := range labels {
		write(l.key)
		write(l.value)
	}
	h.WriteByte(1)
	for _, p := range parents {
		write(p)
	}
	return h.Sum64()
}

// leave takes an item out of its group, and the group away if it was the last.
func (x *Index[K]) leave(it *item) {
	g := it.group
	last := len(g.items) - 1
	g.items[it.at] = g.items[last]
	g.items[it.at].at = it.at
	g.items[last] = nil
	g.items = g.items[:last]
	if last > 0 {
		return
	}
	for _, p := range g.parents {
		delete(p.groups, g)
		x.dropParent(p)
	}
	if x.groups[g.hash] == g {
		if g.next == nil {
			delete(x.groups, g.hash)
		} else {
			x.groups[g.hash] = g.next
		}
		return
	}
	for prev := x.groups[g.hash]; prev != nil; prev = prev.next {
		if prev.next == g {
			prev.next = g.next
			return
		}
	}
}

func (x *Index[K]) parent(name string) *parent {
	p := x.parents[name]
	if p == nil {
		name = intern(name)
		p = &parent{name: name, groups: map[*group]struct{}{}}
		x.parents[name] = p
	}
	return p
}

// dropParent forgets a parent that has no labels and that no group names.
func (x *Index[K]) dropParent(p *parent) {
	if p.labels == nil && len(p.groups) == 0 {
		delete(x.parents, p.name)
	}
}
