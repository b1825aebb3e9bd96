package ipam

import (
	"context"
	"maps"
	"net/netip"

	"github.com/manekinet/maneki/datastore"
)

// ledger is the working copy of what one commit changes: what was read, with
// the revisions that become preconditions, and what it shall be.
type ledger struct {
	c     *Client
	cache *cache
	st    *settings

	readBlocks  map[netip.Prefix]blockEntry
	readHandles map[string]handleEntry
	blocks      map[netip.Prefix]*block // changed; an orphan that is idle gets deleted
	handles     map[string]counts       // changed; empty means delete
	pools       map[string]pool         // assigned from: they must still be as read
	assigns     bool
	with        []datastore.Op
	withKeys    map[datastore.Key]bool
}

func newLedger(c *Client, k *cache, st *settings) *ledger {
	return &ledger{
		c: c, cache: k, st: st,
		readBlocks: map[netip.Prefix]blockEntry{}, readHandles: map[string]handleEntry{},
		blocks: map[netip.Prefix]*block{}, handles: map[string]counts{},
		pools: map[string]pool{}, withKeys: map[datastore.Key]bool{},
	}
}

// block returns a block as the ledger has it, changed or as read; nil when it
// is not there. The caller must not change it.
func (l *ledger) block(ctx context.Context, cidr netip.Prefix) (*block, error) {
	if b, ok := l.blocks[cidr]; ok {
		return b, nil
	}
	e, ok := l.readBlocks[cidr]
	if !ok {
		if e, ok = l.cache.blocks[cidr]; !ok {
			var err error
			if e, err = l.c.getBlock(ctx, cidr); err != nil {
				return nil, err
			}
		}
		l.readBlocks[cidr] = e
	}
	return e.block, nil
}

// supply puts a block that was read anyway where block finds it.
func (l *ledger) supply(cidr netip.Prefix, e blockEntry) {
	if _, ok := l.readBlocks[cidr]; !ok {
		l.readBlocks[cidr] = e
	}
}

// handle returns a handle's counters. With guess, a handle that nothing is
// known of is taken to be absent: the commit finds out.
func (l *ledger) handle(ctx context.Context, id string, guess bool) (counts, error) {
	if n, ok := l.handles[id]; ok {
		return n, nil
	}
	e, ok := l.readHandles[id]
	if !ok {
		if e, ok = l.cache.handles[id]; !ok && !guess {
			var err error
			if e, err = l.c.getHandle(ctx, id); err != nil {
				return nil, err
			}
		}
		l.readHandles[id] = e
	}
	return e.counts, nil
}

// empty reports whether nothing would be written.
func (l *ledger) empty() bool { return len(l.blocks) == 0 && len(l.handles) == 0 && len(l.with) == 0 }

// blockOp is the write of one changed block.
func (l *ledger) blockOp(cidr netip.Prefix) (datastore.Op, error) {
	b, read := l.blocks[cidr], l.readBlocks[cidr]
	op := datastore.Op{Key: blockKey(cidr), If: datastore.At(read.rev)}
	if b.affinity == "" && b.idle() {
		op.Delete = true
		return op, nil
	}
	b.sequence = read.block.sequence + 1
	var err error
	op.Value, err = b.encode()
	return op, err
}

// handleOp is the write of one changed handle; false when there is none to make.
func (l *ledger) handleOp(id string) (datastore.Op, bool, error) {
	n, read := l.handles[id], l.readHandles[id]
	op := datastore.Op{Key: handleKey(id), If: datastore.At(read.rev)}
	if read.rev == "" {
		op.If = datastore.Absent()
	}
	if len(n) == 0 {
		op.Delete = true
		return op, read.rev != "", nil
	}
	var err error
	op.Value, err = n.encode()
	return op, true, err
}

// checkOps are the conditions under which the decision to assign was made: the
// configuration and the pools are as they were read.
func (l *ledger) checkOps() []datastore.Op {
	if !l.assigns {
		return nil
	}
	config := datastore.Op{Key: configKey(), Check: true, If: datastore.Absent()}
	if l.st.configRev != "" {
		config.If = datastore.At(l.st.configRev)
	}
	var ops []datastore.Op
	add := func(op datastore.Op) {
		if !l.withKeys[op.Key] { // else the caller's own operation on it decides
			ops = append(ops, op)
		}
	}
	add(config)
	for _, name := range sortedKeys(l.pools) {
		key := datastore.Key{Kind: "IPPool", Name: name}
		add(datastore.Op{Key: key, Check: true, If: datastore.At(l.pools[name].rev)})
	}
	return ops
}

// ops is the whole commit: handles before blocks, so that on a store that stops
// half way a handle never lacks an address.
func (l *ledger) ops() ([]datastore.Op, error) {
	var ops []datastore.Op
	for _, id := range sortedKeys(l.handles) {
		op, needed, err := l.handleOp(id)
		if err != nil {
			return nil, err
		}
		if needed {
			ops = append(ops, op)
		}
	}
	for _, cidr := range sortedCIDRs(l.blocks) {
		op, err := l.blockOp(cidr)
		if err != nil {
			return nil, err
		}
		ops = append(ops, op)
	}
	ops = append(ops, l.checkOps()...)
	return append(ops, l.with...), nil
}

// absorb puts the committed state into the cache.
func (l *ledger) absorb(rev datastore.Revision) {
	for cidr, b := range l.blocks {
		if b.affinity == "" && b.idle() {
			l.cache.rememberBlock(cidr, blockEntry{})
			continue
		}
		l.cache.rememberBlock(cidr, blockEntry{block: b, rev: rev})
	}
	for id, n := range l.handles {
		e := handleEntry{counts: n, rev: rev}
		if len(n) == 0 {
			e = handleEntry{}
		}
		l.cache.rememberHandle(id, e)
	}
}

// draft is one job's changes to a ledger. They reach it when the job is planned
// to the end, so that a job that fails leaves nothing in the others' commit.
type draft struct {
	l       *ledger
	j       *job
	blocks  map[netip.Prefix]*block
	handles map[string]counts
	pools   map[string]pool
	skipped int // addresses passed over because the kernel uses them
}

func (l *ledger) draft(j *job) *draft {
	return &draft{l: l, j: j, blocks: map[netip.Prefix]*block{}, handles: map[string]counts{}, pools: map[string]pool{}}
}

// edit is a copy of a block to change, with the garbage step done; nil when the
// block is not there. It counts once keep is called.
func (d *draft) edit(ctx context.Context, cidr netip.Prefix) (*block, error) {
	b, ok := d.blocks[cidr]
	if !ok {
		var err error
		if b, err = d.l.block(ctx, cidr); b == nil || err != nil {
			return nil, err
		}
	}
	b = b.clone()
	b.collect(d.l.c.now(), d.l.st.cooldown())
	return b, nil
}

func (d *draft) keep(b *block) { d.blocks[b.cidr] = b }

// count adds n addresses of a block to a handle.
func (d *draft) count(ctx context.Context, id string, cidr netip.Prefix, n int) error {
	cur, ok := d.handles[id]
	if !ok {
		var err error
		guess := !d.j.readHandle && d.j.handle() == id
		if cur, err = d.l.handle(ctx, id, guess); err != nil {
			return err
		}
	}
	d.handles[id] = cur.plus(cidr.String(), n)
	return nil
}

// commit moves the draft into the ledger.
func (d *draft) commit() {
	maps.Copy(d.l.blocks, d.blocks)
	maps.Copy(d.l.handles, d.handles)
	maps.Copy(d.l.pools, d.pools)
	d.l.assigns = d.l.assigns || d.j.handle() != ""
	for _, op := range d.j.with() {
		d.l.with = append(d.l.with, op)
		d.l.withKeys[op.Key] = true
	}
}
