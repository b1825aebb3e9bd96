package ipam

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// wide is an unsigned 128-bit number: an address, or a position in a pool. An
// IPv4 address sits in the low 32 bits.
type wide struct{ hi, lo uint64 }

func wideOf(a netip.Addr) wide {
	if a.Is4() {
		b := a.As4()
		return wide{lo: uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return wide{hi: binary.BigEndian.Uint64(b[:8]), lo: binary.BigEndian.Uint64(b[8:])}
}

// addr is the address of the family whose number w is.
func (w wide) addr(is4 bool) netip.Addr {
	if is4 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(w.lo))
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], w.hi)
	binary.BigEndian.PutUint64(b[8:], w.lo)
	return netip.AddrFrom16(b)
}

func (w wide) add(v wide) wide {
	lo, carry := bits.Add64(w.lo, v.lo, 0)
	hi, _ := bits.Add64(w.hi, v.hi, carry)
	return wide{hi: hi, lo: lo}
}

func (w wide) sub(v wide) wide {
	lo, borrow := bits.Sub64(w.lo, v.lo, 0)
	hi, _ := bits.Sub64(w.hi, v.hi, borrow)
	return wide{hi: hi, lo: lo}
}

func (w wide) shl(n int) wide {
	if n >= 64 {
		return wide{hi: w.lo << (n - 64)}
	}
	return wide{hi: w.hi<<n | w.lo>>(64-n), lo: w.lo << n}
}

func (w wide) shr(n int) wide {
	if n >= 64 {
		return wide{lo: w.hi >> (n - 64)}
	}
	return wide{hi: w.hi >> n, lo: w.lo>>n | w.hi<<(64-n)}
}

// low keeps the lowest n bits.
func (w wide) low(n int) wide {
	switch {
	case n >= 128:
		return w
	case n >= 64:
		return wide{hi: w.hi & (1<<(n-64) - 1), lo: w.lo}
	}
	return wide{lo: w.lo & (1<<n - 1)}
}

func (w wide) less(v wide) bool {
	return w.hi < v.hi || w.hi == v.hi && w.lo < v.lo
}

// ordinalOf is a's position in block, or false when it is outside.
func ordinalOf(block netip.Prefix, a netip.Addr) (int, bool) {
	if !block.Contains(a) {
		return 0, false
	}
	return int(wideOf(a).sub(wideOf(block.Addr())).lo), true
}

// addrAt is the address at position ordinal of block.
func addrAt(block netip.Prefix, ordinal int) netip.Addr {
	return wideOf(block.Addr()).add(wide{lo: uint64(ordinal)}).addr(block.Addr().Is4())
}

// hostBits is the number of bits below p's prefix.
func hostBits(p netip.Prefix) int { return p.Addr().BitLen() - p.Bits() }

// familyOf is 4 or 6.
func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}
