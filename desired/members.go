package desired

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync/atomic"
)

// Member is one element of a set: a prefix of addresses, and in a set of named
// ports also a protocol and a port. It is comparable.
type Member struct {
	Net   netip.Prefix // masked
	Proto uint8        // IP protocol number; 0 in a set of addresses
	Port  uint16       // 0 in a set of addresses
}

// String prints a member as nft does: "10.0.0.0/8", "10.0.0.1 . 6 . 80".
func (m Member) String() string {
	net := m.Net.String()
	if m.Net.IsSingleIP() {
		net = m.Net.Addr().String()
	}
	if m.Proto == 0 {
		return net
	}
	return fmt.Sprintf("%s . %d . %d", net, m.Proto, m.Port)
}

// Compare orders members by address, length, protocol and port.
func (m Member) Compare(o Member) int {
	return cmp.Or(m.Net.Addr().Compare(o.Net.Addr()), cmp.Compare(m.Net.Bits(), o.Net.Bits()), cmp.Compare(m.Proto, o.Proto), cmp.Compare(m.Port, o.Port))
}

// Digest identifies the content of a set: two sets with the same members have
// the same digest, in whatever order they came. It is comparable, so that a set
// of 100 000 members is compared in a few nanoseconds.
type Digest struct {
	Size int
	Sum  [2]uint64 // of the members' hashes, modulo 2^64 each
}

// add counts a member in (sign 1) or out (sign -1). Sums of hashes do not depend
// on the order, and a member can be taken out again.
func (d *Digest) add(m Member, sign int) {
	b := make([]byte, 0, 24)
	a := m.Net.Addr().As16()
	b = append(b, a[:]...)
	b = append(b, byte(m.Net.Bits()), btoi(m.Net.Addr().Is4()), m.Proto)
	b = binary.BigEndian.AppendUint16(b, m.Port)
	d.count(b, sign)
}

// count is add for an element of any kind, given as bytes.
func (d *Digest) count(b []byte, sign int) {
	h := sha256.Sum256(b)
	d.Size += sign
	for i := range d.Sum {
		d.Sum[i] += uint64(sign) * binary.BigEndian.Uint64(h[8*i:])
	}
}

// MembersDigest is the digest of a list without repetitions.
func MembersDigest(list []Member) Digest {
	var d Digest
	for _, m := range list {
		d.add(m, 1)
	}
	return d
}

func btoi(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// rebaseAfter bounds how many small changes are kept as changes: beyond that, or
// when they outweigh the content, the content is written out.
const rebaseAfter = 256

// Members is the content of a set: immutable, cheap to change by a few members
// (the change is kept beside the older content, which is shared), cheap to
// compare with what it was made from. nil is the empty set. Safe for concurrent
// use.
type Members struct {
	digest   Digest
	prev     *Members            // what this was made from
	add, del []Member            // against prev, or against from; sorted
	all      map[Member]struct{} // the content written out; then prev is nil
	depth    int                 // changes since all was written out
	weight   int                 // members in those changes

	// from is what a content that was written out was made from, for Since. It is forgotten when the next content is
	// written out: the chain of all that ever was must not stay alive.
	from atomic.Pointer[Members]
}

// NewMembers returns the set of these members.
func NewMembers(list ...Member) *Members {
	m := &Members{all: make(map[Member]struct{}, len(list))}
	for _, e := range list {
		if _, there := m.all[e]; !there {
			m.all[e] = struct{}{}
			m.digest.add(e, 1)
		}
	}
	return m
}

// Change returns the set with members added and taken out. What is there
// already, or is not there, changes nothing; a set that does not change is
// returned itself. A member in both lists is in the result.
func (m *Members) Change(add, del []Member) *Members {
	next := &Members{prev: m, digest: m.Digest()}
	add = dedup(add)
	for _, e := range dedup(del) {
		if m.Has(e) && !contains(add, e) {
			next.del = append(next.del, e)
			next.digest.add(e, -1)
		}
	}
	for _, e := range add {
		if !m.Has(e) {
			next.add = append(next.add, e)
			next.digest.add(e, 1)
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

func dedup(list []Member) []Member {
	if len(list) < 2 {
		return list
	}
	sorted := slices.SortedFunc(slices.Values(list), Member.Compare)
	return slices.Compact(sorted)
}

// contains searches a list that dedup made.
func contains(sorted []Member, e Member) bool {
	_, found := slices.BinarySearchFunc(sorted, e, Member.Compare)
	return found
}

// rebase writes the content out.
func (m *Members) rebase() {
	all := make(map[Member]struct{}, m.digest.Size)
	for e := range m.All() {
		all[e] = struct{}{}
	}
	old := m.prev
	m.all, m.prev, m.depth, m.weight = all, nil, 0, 0
	for n := old; n != nil; n = n.prev {
		if n.all != nil {
			n.from.Store(nil)
		}
	}
	m.from.Store(old)
}

// Digest identifies the content.
func (m *Members) Digest() Digest {
	if m == nil {
		return Digest{}
	}
	return m.digest
}

// Len is the number of members.
func (m *Members) Len() int { return m.Digest().Size }

// Has reports whether e itself is a member; see Contains for addresses.
func (m *Members) Has(e Member) bool {
	for ; m != nil; m = m.prev {
		if m.all != nil {
			_, there := m.all[e]
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

// Contains reports whether a member covers the address; proto and port are 0 for
// a set of addresses.
func (m *Members) Contains(a netip.Addr, proto uint8, port uint16) bool {
	if m.Len() == 0 {
		return false
	}
	for bits := a.BitLen(); bits >= 0; bits-- {
		p, err := a.Prefix(bits)
		if err == nil && m.Has(Member{Net: p, Proto: proto, Port: port}) {
			return true
		}
	}
	return false
}

// All lists the members in no order.
func (m *Members) All() iter.Seq[Member] {
	return func(yield func(Member) bool) {
		if m == nil {
			return
		}
		if m.all != nil {
			for e := range m.all {
				if !yield(e) {
					return
				}
			}
			return
		}
		state := map[Member]bool{} // what the newer changes say
		for n := m; n != nil; n = n.prev {
			if n.all != nil {
				for e := range n.all {
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

// Since says what has to be added to old and taken out of it to make m. It costs
// as much as the change where m was made from old by a few changes, else as much
// as both contents.
func (m *Members) Since(old *Members) (add, del []Member) {
	change := map[Member]int{}
	n := m
	for n != nil && n != old {
		older := n.prev
		if n.all != nil {
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
	for e := range m.All() {
		if !old.Has(e) {
			add = append(add, e)
		}
	}
	for e := range old.All() {
		if !m.Has(e) {
			del = append(del, e)
		}
	}
	return sorted(add), sorted(del)
}

func tally(change map[Member]int, add, del []Member) {
	for _, e := range add {
		change[e]++
	}
	for _, e := range del {
		change[e]--
	}
}

func sorted(list []Member) []Member {
	slices.SortFunc(list, Member.Compare)
	return list
}
