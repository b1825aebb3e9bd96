package ipam

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/manekinet/maneki/api"
)

// maxHostBits bounds a block: /20 and /116, 4096 addresses (spec/calico.md §3).
const maxHostBits = 12

// noAttribute marks a free ordinal in block.alloc.
const noAttribute = -1

// block is one allocation block in the form that decisions are made on. A
// block in a cache is never changed: clone it first.
type block struct {
	cidr      netip.Prefix
	affinity  string // "host:<node>" or "virtual:<name>"; empty when nobody owns it
	claimTime string // RFC 3339, empty when unknown
	alloc     []int  // per ordinal: index into attrs, or noAttribute
	seqOf     []uint64
	free      []int // FIFO of free ordinals: taken at the head, given back at the tail
	attrs     []api.IPAMAttribute
	sequence  uint64
	extra     map[string]json.RawMessage
}

// newBlock is an empty block that owner claims now.
func newBlock(cidr netip.Prefix, owner string, now time.Time) *block {
	n := 1 << hostBits(cidr)
	b := &block{
		cidr: cidr, affinity: owner, claimTime: now.UTC().Format(time.RFC3339),
		alloc: make([]int, n), seqOf: make([]uint64, n), free: make([]int, n),
		sequence: uint64(now.UnixNano()),
	}
	for i := range n {
		b.alloc[i], b.free[i] = noAttribute, i
	}
	return b
}

// decodeBlock reads the stored form and refuses one that contradicts itself,
// because handing out an address from it could hand it out twice. An ordinal
// that is neither allocated nor free is harmless and put back on the queue.
func decodeBlock(cidr netip.Prefix, data []byte) (*block, error) {
	var w api.IPAMBlock
	if err := w.UnmarshalJSON(data); err != nil {
		return nil, fmt.Errorf("decode block %s: %w", cidr, err)
	}
	if p, err := netip.ParsePrefix(w.CIDR); err != nil || p.Masked() != cidr {
		return nil, fmt.Errorf("decode block %s: its cidr is %q", cidr, w.CIDR)
	}
	if hostBits(cidr) > maxHostBits {
		return nil, fmt.Errorf("decode block %s: larger than %d addresses", cidr, 1<<maxHostBits)
	}
	n := 1 << hostBits(cidr)
	if len(w.Allocations) != n {
		return nil, fmt.Errorf("decode block %s: %d allocations, want %d", cidr, len(w.Allocations), n)
	}
	b := &block{
		cidr: cidr, affinity: deref(w.Affinity), claimTime: deref(w.AffinityClaimTime),
		alloc: make([]int, n), seqOf: make([]uint64, n),
		attrs: w.Attributes, sequence: w.SequenceNumber, extra: w.Extra,
	}
	if b.affinity == "" && w.HostAffinity != nil && *w.HostAffinity != "" {
		b.affinity = "host:" + *w.HostAffinity
	}
	if err := b.readOrdinals(&w); err != nil {
		return nil, fmt.Errorf("decode block %s: %w", cidr, err)
	}
	return b, nil
}

func (b *block) readOrdinals(w *api.IPAMBlock) error {
	for i, a := range w.Allocations {
		b.alloc[i] = noAttribute
		if a == nil {
			continue
		}
		if *a < 0 || *a >= len(w.Attributes) {
			return fmt.Errorf("ordinal %d has attribute %d of %d", i, *a, len(w.Attributes))
		}
		b.alloc[i] = *a
		b.seqOf[i] = w.SequenceNumberFor[strconv.Itoa(i)]
	}
	queued := make([]bool, len(b.alloc))
	for _, o := range w.Unallocated {
		switch {
		case o < 0 || o >= len(b.alloc):
			return fmt.Errorf("free ordinal %d is outside", o)
		case b.alloc[o] != noAttribute:
			return fmt.Errorf("ordinal %d is both free and allocated", o)
		case queued[o]:
			return fmt.Errorf("ordinal %d is free twice", o)
		}
		queued[o] = true
		b.free = append(b.free, o)
	}
	for o := range b.alloc {
		if b.alloc[o] == noAttribute && !queued[o] {
			b.free = append(b.free, o)
		}
	}
	return nil
}

// encode is the stored form.
func (b *block) encode() ([]byte, error) {
	w := api.IPAMBlock{
		CIDR:              b.cidr.String(),
		Allocations:       make([]*int, len(b.alloc)),
		Unallocated:       b.free,
		Attributes:        b.attrs,
		SequenceNumber:    b.sequence,
		SequenceNumberFor: map[string]uint64{},
		Extra:             b.extra,
	}
	if b.affinity != "" {
		w.Affinity = &b.affinity
	}
	if b.claimTime != "" {
		w.AffinityClaimTime = &b.claimTime
	}
	if w.Unallocated == nil {
		w.Unallocated = []int{}
	}
	if w.Attributes == nil {
		w.Attributes = []api.IPAMAttribute{}
	}
	for i := range b.alloc {
		if b.alloc[i] == noAttribute {
			continue
		}
		w.Allocations[i] = &b.alloc[i]
		if b.seqOf[i] != 0 {
			w.SequenceNumberFor[strconv.Itoa(i)] = b.seqOf[i]
		}
	}
	data, err := w.MarshalJSON() // json.Marshal would scan the result once more
	if err != nil {
		return nil, fmt.Errorf("encode block %s: %w", b.cidr, err)
	}
	return data, nil
}

// clone is a copy to change. Attribute values are shared: they are never
// changed in place.
func (b *block) clone() *block {
	c := *b
	c.alloc = slices.Clone(b.alloc)
	c.seqOf = slices.Clone(b.seqOf)
	c.free = slices.Clone(b.free)
	c.attrs = slices.Clone(b.attrs)
	return &c
}

// assign takes up to n free ordinals from the head of the queue, passing over
// those that skip names, and gives them to owner.
func (b *block) assign(n int, owner api.IPAMAttribute, skip func(netip.Addr) bool) []netip.Addr {
	var taken []netip.Addr
	rest := make([]int, 0, len(b.free))
	for _, o := range b.free {
		a := addrAt(b.cidr, o)
		if len(taken) == n || skip(a) {
			rest = append(rest, o)
			continue
		}
		b.give(o, owner)
		taken = append(taken, a)
	}
	b.free = rest
	return taken
}

// errAssigned is AssignIP's refusal of an address that is in use.
var errAssigned = errors.New("address already assigned in block")

// assignAddr gives one named address to owner. An address that is cooling down
// may be asked for by name: whoever names it knows why.
func (b *block) assignAddr(a netip.Addr, owner api.IPAMAttribute) error {
	o, ok := ordinalOf(b.cidr, a)
	if !ok {
		return fmt.Errorf("address %s is not in block %s", a, b.cidr)
	}
	if b.alloc[o] != noAttribute && !b.isCooling(o) {
		return errAssigned
	}
	b.alloc[o] = noAttribute
	b.free = slices.DeleteFunc(b.free, func(f int) bool { return f == o })
	b.give(o, owner)
	b.compact()
	return nil
}

// give points ordinal o at owner, sharing an equal attribute.
func (b *block) give(o int, owner api.IPAMAttribute) {
	b.alloc[o] = b.attribute(owner)
	b.seqOf[o] = b.sequence
}

func (b *block) attribute(want api.IPAMAttribute) int {
	for i := range b.attrs {
		if sameAttribute(b.attrs[i], want) {
			return i
		}
	}
	b.attrs = append(b.attrs, want)
	return len(b.attrs) - 1
}

func sameAttribute(a, b api.IPAMAttribute) bool {
	return len(a.Extra) == 0 && len(b.Extra) == 0 &&
		samePointer(a.HandleID, b.HandleID) && samePointer(a.ReleasedAt, b.ReleasedAt) &&
		maps.Equal(a.Secondary, b.Secondary)
}

func samePointer(a, b *string) bool {
	return (a == nil) == (b == nil) && deref(a) == deref(b)
}

// release frees allocated ordinals: at once, or after cooldown by pointing
// them at an attribute that holds only the time.
func (b *block) release(ordinals []int, now time.Time, cooldown time.Duration) {
	for _, o := range ordinals {
		b.seqOf[o] = 0
		if cooldown > 0 {
			// Rounded up, so that whole seconds never shorten the wait.
			at := now.Add(time.Second - time.Nanosecond).UTC().Truncate(time.Second).Format(time.RFC3339)
			b.alloc[o] = b.attribute(api.IPAMAttribute{ReleasedAt: &at})
			continue
		}
		b.alloc[o] = noAttribute
		b.free = append(b.free, o)
	}
	b.compact()
}

// collect is the garbage step: it puts ordinals whose cool-down is over on the
// queue, the longest released first, and returns how many.
func (b *block) collect(now time.Time, cooldown time.Duration) int {
	type due struct {
		at      time.Time
		ordinal int
	}
	var ready []due
	for o := range b.alloc {
		if !b.isCooling(o) {
			continue
		}
		// A time that cannot be read must not block the address for ever.
		at, err := time.Parse(time.RFC3339, *b.attrs[b.alloc[o]].ReleasedAt)
		if err != nil || cooldown == 0 || !now.Before(at.Add(cooldown)) {
			ready = append(ready, due{at, o})
		}
	}
	slices.SortFunc(ready, func(x, y due) int {
		return cmp.Or(x.at.Compare(y.at), cmp.Compare(x.ordinal, y.ordinal))
	})
	for _, d := range ready {
		b.alloc[d.ordinal] = noAttribute
		b.seqOf[d.ordinal] = 0
		b.free = append(b.free, d.ordinal)
	}
	if len(ready) > 0 {
		b.compact()
	}
	return len(ready)
}

// compact drops attributes that no ordinal points at.
func (b *block) compact() {
	index := make([]int, len(b.attrs))
	for i := range index {
		index[i] = noAttribute
	}
	for _, a := range b.alloc {
		if a != noAttribute {
			index[a] = 0
		}
	}
	kept := make([]api.IPAMAttribute, 0, len(b.attrs))
	for i, used := range index {
		if used != noAttribute {
			index[i] = len(kept)
			kept = append(kept, b.attrs[i])
		}
	}
	for o, a := range b.alloc {
		if a != noAttribute {
			b.alloc[o] = index[a]
		}
	}
	b.attrs = kept
}

// isCooling reports whether ordinal o was released and waits.
func (b *block) isCooling(o int) bool {
	return b.alloc[o] != noAttribute && b.attrs[b.alloc[o]].ReleasedAt != nil
}

// full reports whether nothing can be assigned, now or after the garbage step.
func (b *block) full() bool {
	return len(b.free) == 0 && !slices.ContainsFunc(b.attrs, func(a api.IPAMAttribute) bool { return a.ReleasedAt != nil })
}

// owner is the attribute of an ordinal that is in use, or nil.
func (b *block) owner(o int) *api.IPAMAttribute {
	if b.alloc[o] == noAttribute || b.isCooling(o) {
		return nil
	}
	return &b.attrs[b.alloc[o]]
}

// live counts the ordinals in use; those cooling down are not.
func (b *block) live() int {
	n := 0
	for o := range b.alloc {
		if b.owner(o) != nil {
			n++
		}
	}
	return n
}

// idle reports whether nothing is in use and nothing cools down, so that the
// block may be deleted without shortening a cool-down.
func (b *block) idle() bool { return len(b.free) == len(b.alloc) }

// ordinalsWhere lists the ordinals in use whose attribute satisfies pred.
func (b *block) ordinalsWhere(pred func(*api.IPAMAttribute) bool) []int {
	var out []int
	for o := range b.alloc {
		if a := b.owner(o); a != nil && pred(a) {
			out = append(out, o)
		}
	}
	return out
}

func (b *block) ordinalsOfHandle(handle string) []int {
	return b.ordinalsWhere(func(a *api.IPAMAttribute) bool { return handleOf(a) == handle })
}

// addrs turns ordinals into addresses.
func (b *block) addrs(ordinals []int) []netip.Addr {
	out := make([]netip.Addr, len(ordinals))
	for i, o := range ordinals {
		out[i] = addrAt(b.cidr, o)
	}
	return out
}

// disown clears the affinity, which leaves what is in use where it is.
func (b *block) disown() { b.affinity, b.claimTime = "", "" }

// claimedBefore reports whether the claim is older than t. A block without a
// claim time was claimed by an old release, long ago.
func (b *block) claimedBefore(t time.Time) bool {
	at, err := time.Parse(time.RFC3339, b.claimTime)
	return err != nil || at.Before(t)
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
