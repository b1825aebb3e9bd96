package desired

import (
	"iter"
	"slices"
	"sync/atomic"
)

// rebaseAfter bounds how many small changes are kept as changes: beyond that, or
// when they outweigh the content, the content is written out.
const rebaseAfter = 256

// item is what a content is made of. encode appends what tells it from others.
type item[T any] interface {
	comparable
	Compare(T) int
	encode([]byte) []byte
}

// content is items without an order: immutable, cheap to change by a few items
// (the change is kept beside the older content, which is shared), cheap to
// compare with what it was made from. nil is the empty one. Safe for concurrent
// use.
type content[T item[T]] struct {
	digest   Digest
	prev     *content[T]    // what this was made from
	add, del []T            // against prev, or against from; sorted
	whole    map[T]struct{} // the content written out; then prev is nil
	depth    int            // changes since whole was written out
	weight   int            // items in those changes

	// from is what a content that was written out was made from, for Since. It is forgotten when the next content is
	// written out: the chain of all that ever was must not stay alive.
	from atomic.Pointer[content[T]]
}

func newContent[T item[T]](list []T) *content[T] {
	m := &content[T]{whole: make(map[T]struct{}, len(list))}
	for _, e := range list {
		if _, there := m.whole[e]; !there {
			m.whole[e] = struct{}{}
			m.count(e, 1)
		}
	}
	return m
}

func (m *content[T]) count(e T, sign int) {
	b := make([]byte, 0, 128)
	m.digest.count(e.encode(b), sign)
}

// digestOf is the digest of a list without repetitions.
func digestOf[T item[T]](list []T) Digest {
	var m content[T]
	for _, e := range list {
		m.count(e, 1)
	}
	return m.digest
}

// change adds and takes out; see Members.Change.
func (m *content[T]) change(add, del []T) *content[T] {
	next := &content[T]{prev: m, digest: m.id()}
	add = dedup(add)
	for _, e := range dedup(del) {
		if m.has(e) && !contains(add, e) {
			next.del = append(next.del, e)
			next.count(e, -1)
		}
	}
	for _, e := range add {
		if !m.has(e) {
			next.add = append(next.add, e)
			next.count(e, 1)
		}
	}
	if len(next.add)+len(next.del) == 0 {
		return m
	}
	next.depth, next.weight = 1, len(next.add)+len(next.del)
	if m != nil {
		next.depth, next.weight = next.depth+m.depth, next.weight+m.weight
	}
	if m == nil || next.depth > rebaseAfter || next.weight > next.digest.Size/2+64 {
		next.rebase()
	}
	return next
}

func dedup[T item[T]](list []T) []T {
	if len(list) < 2 {
		return list
	}
	sorted := slices.SortedFunc(slices.Values(list), T.Compare)
	return slices.Compact(sorted)
}

// contains searches a list that dedup made.
func contains[T item[T]](sorted []T, e T) bool {
	_, found := slices.BinarySearchFunc(sorted, e, T.Compare)
	return found
}

// rebase writes the content out.
func (m *content[T]) rebase() {
	whole := make(map[T]struct{}, m.digest.Size)
	for e := range m.all() {
		whole[e] = struct{}{}
	}
	old := m.prev
	m.whole, m.prev, m.depth, m.weight = whole, nil, 0, 0
	for n := old; n != nil; n = n.prev {
		if n.whole != nil {
			n.from.Store(nil)
		}
	}
	m.from.Store(old)
}

func (m *content[T]) id() Digest {
	if m == nil {
		return Digest{}
	}
	return m.digest
}

func (m *content[T]) has(e T) bool {
	for ; m != nil; m = m.prev {
		if m.whole != nil {
			_, there := m.whole[e]
			return there
		}
		if contains(m.add, e) {
			return true
		}
		if contains(m.del, e) {
			return false
		}
	}
	return false
}

// all lists the items in no order.
func (m *content[T]) all() iter.Seq[T] {
	return func(yield func(T) bool) {
		if m == nil {
			return
		}
		if m.whole != nil {
			for e := range m.whole {
				if !yield(e) {
					return
				}
			}
			return
		}
		state := map[T]bool{} // what the newer changes say
		for n := m; n != nil; n = n.prev {
			if n.whole != nil {
				for e := range n.whole {
					if _, said := state[e]; !said && !yield(e) {
						return
					}
				}
				return
			}
			for _, e := range n.add {
				if _, said := state[e]; !said {
					state[e] = true
					if !yield(e) {
						return
					}
				}
			}
			for _, e := range n.del {
				if _, said := state[e]; !said {
					state[e] = false
				}
			}
		}
	}
}

// since is what makes m of old; see Members.Since.
func (m *content[T]) since(old *content[T]) (add, del []T) {
	change := map[T]int{}
	n := m
	for n != nil && n != old {
		older := n.prev
		if n.whole != nil {
			if older = n.from.Load(); older == nil {
				break
			}
		}
		tally(change, n.add, n.del)
		n = older
	}
	if n == old {
		for e, by := range change {
			switch {
			case by > 0:
				add = append(add, e)
			case by < 0:
				del = append(del, e)
			}
		}
		return sorted(add), sorted(del)
	}
	for e := range m.all() {
		if !old.has(e) {
			add = append(add, e)
		}
	}
	for e := range old.all() {
		if !m.has(e) {
			del = append(del, e)
		}
	}
	return sorted(add), sorted(del)
}

func tally[T item[T]](change map[T]int, add, del []T) {
	for _, e := range add {
		change[e]++
	}
	for _, e := range del {
		change[e]--
	}
}

func sorted[T item[T]](list []T) []T {
	slices.SortFunc(list, T.Compare)
	return list
}
