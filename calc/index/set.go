package index

import (
	"iter"
	"net/netip"

	"github.com/gaissmai/bart"

	"github.com/manekinet/maneki/desired"
)

// set counts what items contribute, and knows which of it are members: in a set
// of addresses those that no other contribution contains.
//
// As long as all contributions are single addresses each of them is a member,
// and nothing more than the members is kept. With the first wider network there
// is a tree.
type set struct {
	want    Want
	refs    int
	content *desired.Members
	flushed bool                     // at least once
	pending map[desired.Member]bool  // against content: true to be added, false to be taken out
	extra   map[desired.Member]int32 // contributions of a member beyond the first, without a tree
	tree    *bart.Table[int32]       // contributions with their number, or nil
	wide    int                      // networks in the tree that are not a single address
}

// members are an item's contributions.
func (t *set) members(it *item) iter.Seq[desired.Member] {
	return func(yield func(desired.Member) bool) {
		for _, n := range it.nets {
			if t.want.Port == "" {
				if !yield(desired.Member{Net: n}) {
					return
				}
				continue
			}
			for _, p := range it.ports {
				if p.Name == t.want.Port && p.Proto == t.want.Proto && n.IsSingleIP() &&
					!yield(desired.Member{Net: n, Proto: p.Proto, Port: p.Port}) {
					return
				}
			}
		}
	}
}

// count adds or takes away one contribution.
func (t *set) count(m desired.Member, sign int) {
	if t.tree == nil && t.want.Port == "" && !m.Net.IsSingleIP() {
		t.grow()
	}
	switch {
	case t.tree != nil && sign > 0:
		t.widen(m.Net)
	case t.tree != nil:
		t.narrow(m.Net)
	case sign > 0 && t.has(m):
		t.extra[m]++
	case sign > 0:
		t.enter(m)
	case t.extra[m] > 1:
		t.extra[m]--
	case t.extra[m] == 1:
		delete(t.extra, m)
	default:
		t.leave(m)
	}
}

func (t *set) has(m desired.Member) bool {
	if there, said := t.pending[m]; said {
		return there
	}
	return t.content.Has(m)
}

func (t *set) enter(m desired.Member) {
	if there, said := t.pending[m]; said && !there {
		delete(t.pending, m)
	} else {
		t.pending[m] = true
	}
}

func (t *set) leave(m desired.Member) {
	if there, said := t.pending[m]; said && there {
		delete(t.pending, m)
	} else {
		t.pending[m] = false
	}
}

// grow makes the tree of contributions that are all single addresses so far.
func (t *set) grow() {
	t.tree = &bart.Table[int32]{}
	insert := func(m desired.Member) { t.tree.Insert(m.Net, 1+t.extra[m]) }
	for m := range t.content.All() {
		if there, said := t.pending[m]; !said || there {
			insert(m)
		}
	}
	for m, there := range t.pending {
		if there {
			insert(m)
		}
	}
	t.extra = nil
}

// shrink drops the tree when only single addresses are left.
func (t *set) shrink() {
	t.extra = map[desired.Member]int32{}
	for p, n := range t.tree.All() {
		if n > 1 {
			t.extra[desired.Member{Net: p}] = n - 1
		}
	}
	t.tree = nil
}

func (t *set) widen(p netip.Prefix) {
	n, there := t.tree.Get(p)
	t.tree.Insert(p, n+1)
	if there {
		return
	}
	if !p.IsSingleIP() {
		t.wide++
	}
	if t.covered(p) {
		return
	}
	t.enter(desired.Member{Net: p})
	if p.IsSingleIP() {
		return
	}
	for q := range t.tree.Subnets(p) {
		if m := (desired.Member{Net: q}); q != p && t.has(m) {
			t.leave(m)
		}
	}
}

func (t *set) narrow(p netip.Prefix) {
	if n, _ := t.tree.Get(p); n > 1 {
		t.tree.Insert(p, n-1)
		return
	}
	t.tree.Delete(p)
	if !p.IsSingleIP() {
		t.wide--
	}
	if !t.covered(p) {
		t.leave(desired.Member{Net: p})
		t.uncover(p)
	}
	if t.wide == 0 {
		t.shrink()
	}
}

// uncover makes members of what only p, which is gone, had contained.
func (t *set) uncover(p netip.Prefix) {
	if p.IsSingleIP() {
		return
	}
	var last netip.Prefix
	for q := range t.tree.Subnets(p) { // wider ones come before what they contain
		if !last.IsValid() || !last.Contains(q.Addr()) {
			t.enter(desired.Member{Net: q})
			last = q
		}
	}
}

// covered reports whether another contribution contains p.
func (t *set) covered(p netip.Prefix) bool {
	for q := range t.tree.Supernets(p) {
		if q != p {
			return true
		}
	}
	return false
}

// flush applies what is pending and reports whether the set is another one now.
func (t *set) flush() bool {
	first := !t.flushed
	t.flushed = true
	if len(t.pending) == 0 {
		return first
	}
	var add, del []desired.Member
	for m, there := range t.pending {
		if there {
			add = append(add, m)
		} else {
			del = append(del, m)
		}
	}
	// A map that was large once would stay large.
	t.pending = map[desired.Member]bool{}
	if t.content.Len() == 0 && len(del) == 0 {
		t.content = desired.NewMembers(add...)
	} else {
		t.content = t.content.Change(add, del)
	}
	return true
}
