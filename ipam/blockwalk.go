package ipam

import (
	"cmp"
	"hash/fnv"
	"iter"
	"math/rand"
	"net/netip"
	"slices"
	"time"
)

// walk is the order in which one host tries the blocks of one pool: from a
// pseudo-random start once round. Hosts start at different places so that they
// seldom race for the same block, and a host starts at the same place again.
type walk struct {
	pool  netip.Prefix
	bits  int  // prefix length of a block
	start wide // index of the first block
}

// walkSeed is FNV-1 (32 bits) of the host's name (spec/calico.md §3).
func walkSeed(host string) uint32 {
	h := fnv.New32()
	h.Write([]byte(host))
	return h.Sum32()
}

// newWalk is the walk of host through the blocks of length bits in pool.
// Blocks of one address are walked from a place that changes with the time:
// a host that claims many would otherwise pass over all it has each time.
func newWalk(pool netip.Prefix, bits int, host string, now time.Time) walk {
	seed := int64(walkSeed(host))
	if bits == pool.Addr().BitLen() {
		seed = now.UnixNano()
	}
	r := rand.New(rand.NewSource(seed))
	start := wide{hi: r.Uint64(), lo: r.Uint64()}
	return walk{pool: pool, bits: bits, start: start.low(bits - pool.Bits())}
}

// blocks yields once every block that covered does not name. covered tells the
// last address of the range that covers a block entirely; such a range is
// jumped over at one step. A huge pool is not enumerated: the caller stops when
// it has what it wants.
func (w walk) blocks(covered func(netip.Prefix) (last netip.Addr, ok bool)) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		k := w.bits - w.pool.Bits()
		count, one := wide{lo: 1}.shl(k), wide{lo: 1}
		for d := (wide{}); d.less(count); d = d.add(one) {
			i := w.start.add(d).low(k)
			block := w.at(i)
			last, ok := covered(block)
			if !ok {
				if !yield(block) {
					return
				}
				continue
			}
			end := count.sub(one)
			if w.pool.Contains(last) {
				end = w.index(last)
			}
			if i.less(end) { // land on the range's last block, which it may cover in part
				d = d.add(end.sub(i)).sub(one)
			}
		}
	}
}

// index is the position in the pool of the block that holds a.
func (w walk) index(a netip.Addr) wide {
	return wideOf(a).sub(wideOf(w.pool.Addr())).shr(w.pool.Addr().BitLen() - w.bits)
}

func (w walk) at(index wide) netip.Prefix {
	base := wideOf(w.pool.Addr())
	a := base.add(index.shl(w.pool.Addr().BitLen() - w.bits)).addr(w.pool.Addr().Is4())
	return netip.PrefixFrom(a, w.bits)
}

// sort puts blocks of the pool into the walk's order, which is how existing
// blocks are visited without enumerating the pool.
func (w walk) sort(blocks []netip.Prefix) {
	slices.SortFunc(blocks, func(a, b netip.Prefix) int {
		da, db := w.distance(a), w.distance(b)
		return cmp.Or(cmp.Compare(da.hi, db.hi), cmp.Compare(da.lo, db.lo))
	})
}

func (w walk) distance(block netip.Prefix) wide {
	return w.index(block.Addr()).sub(w.start).low(w.bits - w.pool.Bits())
}
