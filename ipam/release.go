package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// planHandle plans the release of everything a handle holds. The handle itself
// goes too, whatever it counted: a counter without addresses is what a crash
// left.
func (d *draft) planHandle(ctx context.Context) error {
	id := d.j.byHandle
	n, err := d.l.handle(ctx, id, false)
	if err != nil {
		return fmt.Errorf("release handle %s: %w", id, err)
	}
	freed := append([]netip.Addr(nil), d.j.released...)
	for _, text := range sortedKeys(n) {
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			d.l.c.log.Warn("block of a handle skipped", "handle", id, "block", text, "err", err)
			continue
		}
		b, err := d.edit(ctx, cidr)
		if err != nil {
			return fmt.Errorf("release handle %s: %w", id, err)
		}
		if b == nil {
			continue
		}
		ordinals := b.ordinalsOfHandle(id)
		if len(ordinals) == 0 {
			continue
		}
		for _, a := range b.addrs(ordinals) {
			if !slices.Contains(freed, a) { // found again after an attempt whose outcome was unknown
				freed = append(freed, a)
			}
		}
		b.release(ordinals, d.l.c.now(), d.l.st.cooldown())
		d.keep(b)
	}
	if d.l.readHandles[id].rev != "" || len(n) > 0 {
		d.handles[id] = counts{}
	}
	d.j.released = freed
	return nil
}

// planRelease plans the release of named addresses: all that are still what the
// caller says they are, or none.
func (d *draft) planRelease(ctx context.Context) error {
	d.j.missing = nil
	for _, o := range d.j.byAddr {
		if err := d.planReleaseOne(ctx, o); err != nil {
			return fmt.Errorf("release %s: %w", o.Addr, err)
		}
	}
	if d.j.pins == nil {
		d.j.pins = map[netip.Addr]pin{}
	}
	return nil
}

func (d *draft) planReleaseOne(ctx context.Context, o ReleaseOptions) error {
	cidr, ok, err := d.blockHolding(ctx, o.Addr)
	if err != nil {
		return err
	}
	if !ok {
		d.j.absent(o.Addr)
		return nil
	}
	b, err := d.edit(ctx, cidr)
	if err != nil {
		return err
	}
	if b == nil {
		d.j.absent(o.Addr)
		return nil
	}
	ordinal, _ := ordinalOf(cidr, o.Addr)
	owner := b.owner(ordinal)
	if owner == nil {
		d.j.absent(o.Addr)
		return nil
	}
	found := pin{handle: handleOf(owner), seq: b.seqOf[ordinal]}
	if was, again := d.j.pins[o.Addr]; again && was != found {
		return nil // released by an earlier attempt, and somebody else's by now
	}
	if o.Handle != "" && cleanHandle(o.Handle) != found.handle || o.Sequence != 0 && o.Sequence != found.seq {
		return fmt.Errorf("it is held by handle %q since sequence number %d: %w", found.handle, found.seq, ErrStale)
	}
	d.j.pin(o.Addr, found)
	b.release([]int{ordinal}, d.l.c.now(), d.l.st.cooldown())
	d.keep(b)
	if found.handle == "" {
		return nil
	}
	return d.count(ctx, found.handle, cidr, -1)
}

func (j *job) pin(a netip.Addr, p pin) {
	if j.pins == nil {
		j.pins = map[netip.Addr]pin{}
	}
	j.pins[a] = p
	if !slices.Contains(j.released, a) {
		j.released = append(j.released, a)
	}
}

// absent records an address that nobody holds, unless an earlier attempt of
// this job may have released it.
func (j *job) absent(a netip.Addr) {
	if _, ours := j.pins[a]; !ours {
		j.missing = append(j.missing, a)
	}
}

// blockHolding finds the block that holds a: by the pools, or else among all
// blocks, because a pool may be gone before its addresses are.
func (d *draft) blockHolding(ctx context.Context, a netip.Addr) (netip.Prefix, bool, error) {
	if pool, ok := d.l.st.containing(a); ok {
		cidr := pool.blockOf(a)
		b, err := d.l.block(ctx, cidr)
		if b != nil || err != nil {
			return cidr, b != nil, err
		}
	}
	blocks, corrupt, err := d.l.c.listBlocks(ctx)
	if err != nil {
		return netip.Prefix{}, false, err
	}
	for cidr, e := range blocks {
		if cidr.Contains(a) {
			delete(d.l.readBlocks, cidr)
			d.l.supply(cidr, e)
			return cidr, true, nil
		}
	}
	for cidr, err := range corrupt {
		if cidr.Contains(a) {
			return netip.Prefix{}, false, err
		}
	}
	return netip.Prefix{}, false, nil
}

// ReleaseHost gives back everything a host has: the addresses whose attribute
// "node" names it, wherever they are, and its claims on blocks. Blocks that
// still hold addresses of others stay, without owner.
func (c *Client) ReleaseHost(ctx context.Context, host string) error {
	if host == "" {
		return errors.New("release host: host is empty")
	}
	blocks, _, err := c.listBlocks(ctx)
	if err != nil {
		return fmt.Errorf("release host %s: %w", host, err)
	}
	owner := "host:" + host
	claims := map[netip.Prefix]bool{}
	for _, cidr := range sortedCIDRs(blocks) {
		b := blocks[cidr].block
		if b.affinity == owner {
			claims[cidr] = true
		}
		if err := c.releaseOfNode(ctx, b, host); err != nil {
			return fmt.Errorf("release host %s: %w", host, err)
		}
	}
	entries, _, err := c.store.List(ctx, datastore.Query{Kind: datastore.KindBlockAffinity, Namespace: owner})
	if err != nil {
		return fmt.Errorf("release host %s: %w", host, err)
	}
	for _, e := range entries {
		if cidr, err := netip.ParsePrefix(e.Key.Name); err == nil {
			claims[cidr] = true
		}
	}
	for _, cidr := range sortedCIDRs(claims) {
		if err := c.releaseClaim(ctx, releaseClaim{owner: owner, cidr: cidr}); err != nil {
			return fmt.Errorf("release host %s: %w", host, err)
		}
	}
	err = c.store.Delete(ctx, datastore.Key{Kind: datastore.KindIPAMHost, Name: host}, datastore.Always())
	if err != nil && !errors.Is(err, datastore.ErrNotFound) {
		return fmt.Errorf("release host %s: %w", host, err)
	}
	return nil
}

// releaseBatch bounds the addresses of one transaction of a mass release, each
// of which may change a handle too.
const releaseBatch = 60

// releaseOfNode releases the addresses of b that belong to a node. One that
// changes hands meanwhile is left alone.
func (c *Client) releaseOfNode(ctx context.Context, b *block, node string) error {
	ordinals := b.ordinalsWhere(func(a *api.IPAMAttribute) bool { return a.Secondary["node"] == node })
	for part := range slices.Chunk(ordinals, releaseBatch) {
		var opts []ReleaseOptions
		for _, o := range part {
			opts = append(opts, ReleaseOptions{Addr: addrAt(b.cidr, o), Handle: handleOf(b.owner(o)), Sequence: b.seqOf[o]})
		}
		_, err := c.ReleaseExactly(ctx, opts...)
		if !errors.Is(err, ErrStale) {
			if err != nil {
				return err
			}
			continue
		}
		for _, o := range opts {
			if _, err := c.ReleaseExactly(ctx, o); err != nil && !errors.Is(err, ErrStale) {
				return err
			}
		}
	}
	return nil
}

// ReleasePool gives back all claims on blocks inside cidr, whoever made them.
// Addresses in use stay assigned.
func (c *Client) ReleasePool(ctx context.Context, cidr netip.Prefix) error {
	entries, _, err := c.store.List(ctx, datastore.Query{Kind: datastore.KindBlockAffinity})
	if err != nil {
		return fmt.Errorf("release pool %s: %w", cidr, err)
	}
	for _, e := range entries {
		p, err := netip.ParsePrefix(e.Key.Name)
		if err != nil || !cidr.Contains(p.Addr()) {
			continue
		}
		if err := c.releaseClaim(ctx, releaseClaim{owner: e.Key.Namespace, cidr: p}); err != nil {
			return fmt.Errorf("release pool %s: %w", cidr, err)
		}
	}
	return nil
}

// Collect does the garbage step on every block: it ends cool-downs that are
// over and deletes empty blocks that nobody owns. It returns the number of
// addresses made available.
func (c *Client) Collect(ctx context.Context) (int, error) {
	st, err := c.readSettings(ctx)
	if err != nil {
		return 0, fmt.Errorf("collect released addresses: %w", err)
	}
	blocks, _, err := c.listBlocks(ctx)
	if err != nil {
		return 0, fmt.Errorf("collect released addresses: %w", err)
	}
	total := 0
	for _, cidr := range sortedCIDRs(blocks) {
		l := newLedger(c, newCache(""), st)
		l.supply(cidr, blocks[cidr])
		b := blocks[cidr].block.clone()
		n := b.collect(c.now(), st.cooldown())
		if n == 0 && (b.affinity != "" || !b.idle()) {
			continue
		}
		l.blocks[cidr] = b
		ops, err := l.ops()
		if err != nil {
			return total, err
		}
		_, err = datastore.Commit(ctx, c.store, ops)
		if err != nil && !isRace(err) { // whoever wrote it did the garbage step
			return total, fmt.Errorf("collect released addresses of %s: %w", cidr, err)
		}
		total += n
	}
	return total, nil
}
