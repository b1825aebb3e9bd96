package ipam

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"go4.org/netipx"
)

// Allocation is one address in use.
type Allocation struct {
	Addr     netip.Addr
	Handle   string            // empty for allocations made without
	Attrs    map[string]string // as stored
	Node     string            // Attrs["node"]
	Block    netip.Prefix
	Affinity string // the block's owner, "host:<node>" or "virtual:<name>"; may be empty
	Pool     string // empty when its pool is gone
	Sequence uint64 // for ReleaseOptions
}

// Type is what `ipam show --show-borrowed` prints under TYPE.
func (a Allocation) Type() string {
	switch {
	case a.Attrs["type"] != "":
		return a.Attrs["type"]
	case a.Attrs["pod"] != "":
		return "pod"
	case a.Attrs["service"] != "":
		return "service"
	}
	return ""
}

// AllocatedTo is what `ipam show --show-borrowed` prints under ALLOCATED-TO: the
// pod or service with its namespace, else the node of a tunnel, else the handle.
func (a Allocation) AllocatedTo() string {
	for _, k := range []string{"pod", "service"} {
		if name := a.Attrs[k]; name != "" {
			return a.Attrs["namespace"] + "/" + name
		}
	}
	if a.Attrs["type"] != "" {
		return a.Node
	}
	return a.Handle
}

// Borrowed reports whether the address is used by another node than the one its
// block belongs to.
func (a Allocation) Borrowed() bool {
	return a.Node != "" && a.Affinity != "host:"+a.Node
}

// Block is one block as reports need it.
type Block struct {
	CIDR        netip.Prefix
	Affinity    string // "host:<node>", "virtual:<name>" or empty
	ClaimTime   string // RFC 3339; may be empty
	Sequence    uint64
	Total       int
	Free        int // neither in use, nor cooling down; reserved ones included
	Cooling     int // released, and not yet available
	Allocations []Allocation

	cooling []netip.Addr
}

func newBlockView(b *block, st *settings) Block {
	v := Block{CIDR: b.cidr, Affinity: b.affinity, ClaimTime: b.claimTime, Sequence: b.sequence, Total: len(b.alloc), Free: len(b.free)}
	pool := ""
	if p, ok := st.containing(b.cidr.Addr()); ok {
		pool = p.name
	}
	for o := range b.alloc {
		if b.isCooling(o) {
			v.cooling = append(v.cooling, addrAt(b.cidr, o))
		}
		owner := b.owner(o)
		if owner == nil {
			continue
		}
		v.Allocations = append(v.Allocations, Allocation{
			Addr: addrAt(b.cidr, o), Handle: handleOf(owner), Attrs: owner.Secondary, Node: owner.Secondary["node"],
			Block: b.cidr, Affinity: b.affinity, Pool: pool, Sequence: b.seqOf[o],
		})
	}
	v.Cooling = len(v.cooling)
	return v
}

// Blocks lists all blocks in address order. Blocks that cannot be understood
// are left out and reported in corrupt.
func (c *Client) Blocks(ctx context.Context) (blocks []Block, corrupt []error, err error) {
	st, err := c.readSettings(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("list blocks: %w", err)
	}
	return c.views(ctx, st)
}

func (c *Client) views(ctx context.Context, st *settings) (blocks []Block, corrupt []error, err error) {
	stored, bad, err := c.listBlocks(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, cidr := range sortedCIDRs(stored) {
		b := stored[cidr].block.clone()
		b.collect(c.now(), st.cooldown())
		blocks = append(blocks, newBlockView(b, st))
	}
	for _, cidr := range sortedCIDRs(bad) {
		corrupt = append(corrupt, bad[cidr])
	}
	return blocks, corrupt, nil
}

// BlockUsage is one block's line of `ipam show --show-blocks`.
type BlockUsage struct {
	CIDR     netip.Prefix
	Affinity string
	Total    float64
	InUse    float64
	Reserved float64 // reserved, and neither in use nor cooling down
	Cooling  float64 // released, and not yet available
	Free     float64 // the rest
}

// PoolUsage is one pool's line of `ipam show`. The numbers of addresses are
// floats because an IPv6 pool holds more than an integer does; Total is exact
// as a power of two. InUse + Reserved + Cooling + Free = Total.
type PoolUsage struct {
	Pool     string
	CIDR     netip.Prefix
	Disabled bool
	Total    float64
	InUse    float64
	Reserved float64
	Cooling  float64
	Free     float64
	Blocks   []BlockUsage
}

// Usage counts the addresses of every pool, in name order. Blocks outside all
// pools come last, under an invalid CIDR and no name, if there are any.
func (c *Client) Usage(ctx context.Context) ([]PoolUsage, error) {
	st, err := c.readSettings(ctx)
	if err != nil {
		return nil, fmt.Errorf("count addresses: %w", err)
	}
	blocks, _, err := c.views(ctx, st)
	if err != nil {
		return nil, fmt.Errorf("count addresses: %w", err)
	}
	var out []PoolUsage
	for _, p := range st.pools {
		u := PoolUsage{Pool: p.name, CIDR: p.cidr, Disabled: p.spec.Disabled, Total: size(p.cidr), Reserved: reservedIn(st.reserved, p.cidr)}
		blocks = slices.DeleteFunc(blocks, func(b Block) bool {
			if !p.cidr.Contains(b.CIDR.Addr()) {
				return false
			}
			u.add(b, st.reserved)
			return true
		})
		u.Free = math.Max(0, u.Total-u.InUse-u.Reserved-u.Cooling)
		out = append(out, u)
	}
	if len(blocks) > 0 {
		var rest PoolUsage
		for _, b := range blocks {
			rest.Total += float64(b.Total)
			rest.Reserved += reservedIn(st.reserved, b.CIDR)
			rest.add(b, st.reserved)
		}
		rest.Free = math.Max(0, rest.Total-rest.InUse-rest.Reserved-rest.Cooling)
		out = append(out, rest)
	}
	return out, nil
}

// add counts a block. What is reserved but in use or cooling down counts as
// that.
func (u *PoolUsage) add(b Block, reserved *netipx.IPSet) {
	bu := BlockUsage{
		CIDR: b.CIDR, Affinity: b.Affinity, Total: float64(b.Total),
		InUse: float64(len(b.Allocations)), Cooling: float64(b.Cooling), Reserved: reservedIn(reserved, b.CIDR),
	}
	taken := slices.Clone(b.cooling)
	for _, a := range b.Allocations {
		taken = append(taken, a.Addr)
	}
	for _, a := range taken {
		if reserved.Contains(a) {
			bu.Reserved--
			u.Reserved--
		}
	}
	bu.Free = math.Max(0, bu.Total-bu.InUse-bu.Reserved-bu.Cooling)
	u.InUse += bu.InUse
	u.Cooling += bu.Cooling
	u.Blocks = append(u.Blocks, bu)
}

// size is the number of addresses of p.
func size(p netip.Prefix) float64 { return math.Ldexp(1, hostBits(p)) }

// reservedIn is the number of reserved addresses in p.
func reservedIn(set *netipx.IPSet, p netip.Prefix) float64 {
	var n float64
	for _, r := range set.Prefixes() {
		switch {
		case !r.Overlaps(p):
		case r.Bits() >= p.Bits():
			n += size(r)
		default:
			n += size(p)
		}
	}
	return n
}

// Borrowed lists the addresses used by another node than their block's, in
// address order.
func (c *Client) Borrowed(ctx context.Context) ([]Allocation, error) {
	blocks, _, err := c.Blocks(ctx)
	if err != nil {
		return nil, err
	}
	var out []Allocation
	for _, b := range blocks {
		for _, a := range b.Allocations {
			if a.Borrowed() {
				out = append(out, a)
			}
		}
	}
	return out, nil
}

// Lookup says who holds an address, or ErrNotAssigned.
func (c *Client) Lookup(ctx context.Context, addr netip.Addr) (Allocation, error) {
	st, err := c.readSettings(ctx)
	if err != nil {
		return Allocation{}, fmt.Errorf("look up %s: %w", addr, err)
	}
	l := newLedger(c, newCache(""), st)
	cidr, ok, err := l.draft(&job{}).blockHolding(ctx, addr)
	if err != nil {
		return Allocation{}, fmt.Errorf("look up %s: %w", addr, err)
	}
	if ok {
		for _, a := range newBlockView(l.readBlocks[cidr].block, st).Allocations {
			if a.Addr == addr {
				return a, nil
			}
		}
	}
	return Allocation{}, fmt.Errorf("%s is %w", addr, ErrNotAssigned)
}

// ByHandle lists the addresses a handle holds, in address order.
func (c *Client) ByHandle(ctx context.Context, handle string) ([]netip.Addr, error) {
	handle = cleanHandle(handle)
	h, err := c.getHandle(ctx, handle)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, text := range sortedKeys(h.counts) {
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			c.log.Warn("block of a handle skipped", "handle", handle, "block", text, "err", err)
			continue
		}
		e, err := c.getBlock(ctx, cidr)
		if err != nil {
			return nil, fmt.Errorf("read handle %s: %w", handle, err)
		}
		if e.block != nil {
			out = append(out, e.block.addrs(e.block.ordinalsOfHandle(handle))...)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out, nil
}
