package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/manekinet/maneki/api"
)

// staleAfter is how old what a Host remembers of its full blocks may be before
// it is read again in the hope that somebody released an address, instead of
// claiming another block.
const staleAfter = 10 * time.Second

// planAuto plans a request for addresses by number: both families or nothing.
func (d *draft) planAuto(ctx context.Context) error {
	r := d.j.auto
	d.j.assigned = nil
	for _, f := range []struct {
		family, n int
		named     []string
	}{{4, r.Num4, r.Pools4}, {6, r.Num6, r.Pools6}} {
		if f.n == 0 {
			continue
		}
		p := &autoPlan{draft: d, family: f.family, want: f.n, owner: ownerAttribute(r.Handle, r.Attrs)}
		if err := p.run(ctx, f.named); err != nil {
			return err
		}
		d.j.assigned = append(d.j.assigned, p.got...)
	}
	return nil
}

// autoPlan is the assignment of one family's addresses.
type autoPlan struct {
	*draft
	family int
	want   int
	owner  api.IPAMAttribute
	pools  []pool
	got    []Assignment
}

// run goes through the steps of spec/calico.md §3: own blocks, new blocks, and
// blocks of others.
func (p *autoPlan) run(ctx context.Context, named []string) error {
	r, k := p.j.auto, p.l.cache
	var err error
	p.pools, err = p.l.st.eligible(poolQuery{
		family: p.family, named: named, use: r.Use, host: r.Host,
		nodeLabels: r.NodeLabels, namespaceLabels: r.NamespaceLabels,
	})
	if err != nil {
		return err
	}
	if k.loaded.IsZero() {
		if err := p.l.c.load(ctx, k); err != nil {
			return err
		}
	}
	if err := p.l.c.prune(ctx, k, p.l.st, r.Host, r.NodeLabels); err != nil {
		return err
	}
	if err := p.fromOwn(ctx); err != nil || p.short() == 0 {
		return err
	}
	if time.Since(k.loaded) > staleAfter {
		if err := p.reload(ctx); err != nil || p.short() == 0 {
			return err
		}
	}
	exhausted, err := p.fromNew(ctx)
	if err != nil || p.short() == 0 {
		return err
	}
	if exhausted && !p.l.st.config.StrictAffinity {
		if err := p.borrow(ctx); err != nil || p.short() == 0 {
			return err
		}
	}
	return p.shortage(exhausted)
}

func (p *autoPlan) short() int { return p.want - len(p.got) }

// reload reads the owner's blocks again and assigns from what was released in
// them meanwhile.
func (p *autoPlan) reload(ctx context.Context) error {
	if err := p.l.c.load(ctx, p.l.cache); err != nil {
		return err
	}
	for cidr := range p.l.readBlocks {
		_, changed := p.l.blocks[cidr]
		_, changedHere := p.blocks[cidr]
		if !changed && !changedHere {
			delete(p.l.readBlocks, cidr)
		}
	}
	return p.fromOwn(ctx)
}

// fromOwn assigns from the owner's blocks, finishing claims that were left half
// made.
func (p *autoPlan) fromOwn(ctx context.Context) error {
	k := p.l.cache
	for _, pool := range p.pools {
		for _, cidr := range k.own(pool) {
			if p.short() == 0 {
				return nil
			}
			if k.affine[cidr].state != api.AffinityConfirmed || k.blocks[cidr].block == nil {
				err := p.l.c.claim(ctx, k, cidr)
				if errors.Is(err, errTaken) {
					continue
				}
				if err != nil {
					return err
				}
			}
			if err := p.take(ctx, pool, cidr); err != nil {
				return err
			}
		}
	}
	return nil
}

// take assigns what it can from one block.
func (p *autoPlan) take(ctx context.Context, pool pool, cidr netip.Prefix) error {
	if b := p.l.cache.blocks[cidr].block; b != nil && b.full() && p.blocks[cidr] == nil && p.l.blocks[cidr] == nil {
		return nil // as far as is known; the common case of a host with many blocks
	}
	b, err := p.edit(ctx, cidr)
	var corrupt corruptError
	if errors.As(err, &corrupt) {
		p.l.c.log.Warn("block skipped", "block", cidr, "err", err)
		return nil
	}
	if b == nil || err != nil {
		return err
	}
	if b.affinity != p.l.cache.owner && p.l.st.config.StrictAffinity {
		return nil
	}
	addrs := b.assign(p.short(), p.owner, p.unusable)
	if len(addrs) == 0 {
		return nil
	}
	if err := p.count(ctx, p.j.handle(), cidr, len(addrs)); err != nil {
		return err
	}
	p.keep(b)
	p.draft.pools[pool.name] = pool
	for _, a := range addrs {
		p.got = append(p.got, Assignment{Addr: a, Block: cidr, Pool: pool.name})
	}
	return nil
}

// unusable reports that automatic assignment must pass an address over.
func (d *draft) unusable(a netip.Addr) bool {
	if d.l.st.reserved.Contains(a) {
		return true
	}
	if d.skipped >= maxInUseSkips {
		return true
	}
	if d.l.c.inUse(a) {
		d.skipped++
		d.l.cache.passedOver(d.l.c.log, a)
		return true
	}
	return false
}

// fromNew claims further blocks. exhausted means that there was none left to
// claim.
func (p *autoPlan) fromNew(ctx context.Context) (exhausted bool, err error) {
	k, st := p.l.cache, p.l.st
	limit := st.blockLimit(p.j.auto.MaxBlocks)
	for p.short() > 0 && st.config.AutoAllocateBlocks {
		if k.ownedOf(p.family) >= limit {
			if k.loaded.Before(p.j.begun) { // claims may have been released meanwhile
				if err := p.reload(ctx); err != nil {
					return false, err
				}
				continue
			}
			return false, fmt.Errorf("host %s owns %d IPv%d blocks of at most %d: %w",
				p.j.auto.Host, k.ownedOf(p.family), p.family, limit, ErrBlockLimit)
		}
		pool, cidr, err := p.l.c.claimFree(ctx, k, st, p.pools, p.j.auto.Host)
		if errors.Is(err, errNoBlocks) {
			if !k.loaded.Before(p.j.begun) {
				return true, nil
			}
			if err := p.reload(ctx); err != nil {
				return false, err
			}
			continue
		}
		if err != nil {
			return false, err
		}
		if err := p.take(ctx, pool, cidr); err != nil {
			return false, err
		}
	}
	return false, nil
}

// borrow assigns from blocks of others, in the same order in which this host
// would claim them.
func (p *autoPlan) borrow(ctx context.Context) error {
	blocks, _, err := p.l.c.listBlocks(ctx)
	if err != nil {
		return err
	}
	for _, pool := range p.pools {
		var cidrs []netip.Prefix
		for cidr, e := range blocks {
			if pool.holds(cidr) && e.block.affinity != p.l.cache.owner {
				cidrs = append(cidrs, cidr)
				p.l.supply(cidr, e)
			}
		}
		newWalk(pool.cidr, pool.blockBits, p.j.auto.Host, p.l.c.now()).sort(cidrs)
		for _, cidr := range cidrs {
			if p.short() == 0 {
				return nil
			}
			if err := p.take(ctx, pool, cidr); err != nil {
				return err
			}
		}
	}
	return nil
}

// shortage says why there are not enough addresses.
func (p *autoPlan) shortage(exhausted bool) error {
	why := "no more free affine blocks and automatic allocation of blocks is off"
	switch {
	case exhausted && p.l.st.config.StrictAffinity:
		why = "no more free affine blocks and strict affinity is on"
	case exhausted:
		why = "no block of the eligible pools has a free address"
	}
	if p.skipped > 0 {
		why += fmt.Sprintf(" (%d passed over because this machine uses them)", p.skipped)
	}
	return fmt.Errorf("assigned %d out of %d requested IPv%d addresses: %s: %w", len(p.got), p.want, p.family, why, ErrExhausted)
}

// planAddr plans the assignment of one named address.
func (d *draft) planAddr(ctx context.Context) error {
	r, k := d.j.addr, d.l.cache
	d.j.assigned = nil
	pool, ok := d.l.st.containing(r.Addr)
	if !ok || !pool.enabled() {
		return fmt.Errorf("assign %s: the address is not in a configured and enabled pool: %w", r.Addr, ErrNoQualifiedPool)
	}
	if r.Use != "" && !pool.allows(r.Use) {
		return fmt.Errorf("assign %s: pool %s does not allow use %s: %w", r.Addr, pool.name, r.Use, ErrNoQualifiedPool)
	}
	cidr := pool.blockOf(r.Addr)
	b, err := d.edit(ctx, cidr)
	if err != nil {
		return fmt.Errorf("assign %s: %w", r.Addr, err)
	}
	if b == nil {
		if err := d.l.c.claim(ctx, k, cidr); err != nil && !errors.Is(err, errTaken) {
			return fmt.Errorf("assign %s: %w", r.Addr, err)
		}
		delete(d.l.readBlocks, cidr)
		if b, err = d.edit(ctx, cidr); b == nil || err != nil {
			return fmt.Errorf("assign %s: block %s went away: %w", r.Addr, cidr, errors.Join(err, ErrExhausted))
		}
	}
	if d.l.st.config.StrictAffinity && b.affinity != k.owner {
		return fmt.Errorf("assign %s: block %s belongs to %q and strict affinity is on: %w", r.Addr, cidr, b.affinity, ErrExhausted)
	}
	if err := b.assignAddr(r.Addr, ownerAttribute(r.Handle, r.Attrs)); err != nil {
		return fmt.Errorf("assign %s: %w", r.Addr, err)
	}
	if err := d.count(ctx, r.Handle, cidr, 1); err != nil {
		return err
	}
	d.keep(b)
	d.pools[pool.name] = pool
	d.j.assigned = []Assignment{{Addr: r.Addr, Block: cidr, Pool: pool.name}}
	return nil
}
