package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// maxCachedHandles bounds the handles remembered for one host: those released
// by somebody else would otherwise stay for ever.
const maxCachedHandles = 8192

// blockEntry is a block with the revision it was read at; block is nil and rev
// empty when there is none.
type blockEntry struct {
	block *block
	rev   datastore.Revision
}

// handleEntry is a handle's counters with their revision, empty when the handle
// is not there or is believed not to be.
type handleEntry struct {
	counts counts
	rev    datastore.Revision
}

// affinityEntry is a host's claim with its revision, empty when there is none.
type affinityEntry struct {
	state api.AffinityState
	rev   datastore.Revision
}

// cache is what one owner of blocks remembers between batches. Only one
// goroutine uses it at a time. Everything in it may be stale: the commit's
// preconditions find out.
type cache struct {
	owner  string // "host:<node>"; empty: nobody, for releases only
	loaded time.Time

	affine  map[netip.Prefix]affinityEntry
	blocks  map[netip.Prefix]blockEntry // the owner's; a claim without a block has an empty entry
	order   []netip.Prefix              // keys of affine by address; nil: to be sorted
	handles map[string]handleEntry      // as last written here
	taken   map[netip.Prefix]bool       // blocks known to exist; nil: never listed
	pruned  string                      // pools and labels at the last look for blocks to give up
	inUse   map[netip.Addr]bool         // addresses passed over and reported

	// current returns settings kept up to date by a watch, or nil.
	current func() *settings
}

func newCache(owner string) *cache {
	return &cache{owner: owner, handles: map[string]handleEntry{}, current: func() *settings { return nil }}
}

// passedOver reports an address that the kernel uses, once.
func (k *cache) passedOver(log *slog.Logger, a netip.Addr) {
	if k.inUse == nil {
		k.inUse = map[netip.Addr]bool{}
	}
	if !k.inUse[a] {
		k.inUse[a] = true
		log.Warn("address passed over: this machine uses it although nobody was given it", "address", a)
	}
}

// own lists the owner's blocks of p in address order.
func (k *cache) own(p pool) []netip.Prefix {
	if k.order == nil {
		k.order = sortedCIDRs(k.affine)
	}
	var out []netip.Prefix
	for _, cidr := range k.order {
		if p.holds(cidr) {
			out = append(out, cidr)
		}
	}
	return out
}

// ownedOf counts the owner's blocks of one family.
func (k *cache) ownedOf(family int) int {
	n := 0
	for cidr := range k.affine {
		if familyOf(cidr.Addr()) == family {
			n++
		}
	}
	return n
}

func (k *cache) rememberHandle(id string, e handleEntry) {
	if e.rev == "" {
		delete(k.handles, id)
		return
	}
	if len(k.handles) >= maxCachedHandles {
		k.handles = map[string]handleEntry{}
	}
	k.handles[id] = e
}

// rememberBlock keeps a block of the owner's and forgets one that is not. A
// block that was the owner's and is no longer means that somebody released the
// claim: then everything is read again.
func (k *cache) rememberBlock(cidr netip.Prefix, e blockEntry) {
	if e.block != nil && k.taken != nil {
		k.taken[cidr] = true
	}
	if _, ours := k.affine[cidr]; !ours {
		return
	}
	if e.block == nil || e.block.affinity != k.owner {
		k.forgetAll()
		return
	}
	k.blocks[cidr] = e
}

// forget drops one claim.
func (k *cache) forget(cidr netip.Prefix) {
	delete(k.affine, cidr)
	delete(k.blocks, cidr)
	k.order = nil
}

// forgetAll makes the next assignment read the owner's blocks.
func (k *cache) forgetAll() {
	k.loaded = time.Time{}
	k.affine, k.blocks, k.order = nil, nil, nil
}

func blockKey(cidr netip.Prefix) datastore.Key {
	return datastore.Key{Kind: datastore.KindIPAMBlock, Name: cidr.String()}
}

func affinityKey(owner string, cidr netip.Prefix) datastore.Key {
	return datastore.Key{Kind: datastore.KindBlockAffinity, Namespace: owner, Name: cidr.String()}
}

func handleKey(id string) datastore.Key {
	return datastore.Key{Kind: datastore.KindIPAMHandle, Name: id}
}

// getBlock reads one block; there being none is no error.
func (c *Client) getBlock(ctx context.Context, cidr netip.Prefix) (blockEntry, error) {
	e, err := c.store.Get(ctx, blockKey(cidr))
	if errors.Is(err, datastore.ErrNotFound) {
		return blockEntry{}, nil
	}
	if err != nil {
		return blockEntry{}, fmt.Errorf("read block %s: %w", cidr, err)
	}
	b, err := decodeBlock(cidr, e.Value)
	if err != nil {
		return blockEntry{}, corruptError{err}
	}
	return blockEntry{block: b, rev: e.Rev}, nil
}

// corruptError marks a stored object that cannot be understood, which is
// reported and passed over.
type corruptError struct{ error }

func (e corruptError) Unwrap() error { return e.error }

// storedBlocks are all blocks as read, by CIDR.
type storedBlocks map[netip.Prefix]datastore.Entry

// listEntries reads all blocks without looking into them, which is most of the
// work when there are thousands.
func (c *Client) listEntries(ctx context.Context) (storedBlocks, error) {
	entries, _, err := c.store.List(ctx, datastore.Query{Kind: datastore.KindIPAMBlock})
	if err != nil {
		return nil, fmt.Errorf("list blocks: %w", err)
	}
	out := storedBlocks{}
	for _, e := range entries {
		cidr, err := netip.ParsePrefix(e.Key.Name)
		if err != nil {
			c.log.Warn("block skipped", "key", e.Key, "err", err)
			continue
		}
		out[cidr] = e
	}
	return out, nil
}

// decode looks into the blocks that want names. Those that cannot be understood
// are reported and come apart.
func (c *Client) decode(stored storedBlocks, want func(netip.Prefix) bool) (blocks map[netip.Prefix]blockEntry, corrupt map[netip.Prefix]error) {
	blocks, corrupt = map[netip.Prefix]blockEntry{}, map[netip.Prefix]error{}
	for cidr, e := range stored {
		if !want(cidr) {
			continue
		}
		b, err := decodeBlock(cidr, e.Value)
		if err != nil {
			c.log.Warn("block skipped", "key", e.Key, "err", err)
			corrupt[cidr] = err
			continue
		}
		blocks[cidr] = blockEntry{block: b, rev: e.Rev}
	}
	return blocks, corrupt
}

// listBlocks reads all blocks and looks into them.
func (c *Client) listBlocks(ctx context.Context) (blocks map[netip.Prefix]blockEntry, corrupt map[netip.Prefix]error, err error) {
	stored, err := c.listEntries(ctx)
	if err != nil {
		return nil, nil, err
	}
	blocks, corrupt = c.decode(stored, func(netip.Prefix) bool { return true })
	return blocks, corrupt, nil
}

// getAffinity reads one claim; there being none is no error.
func (c *Client) getAffinity(ctx context.Context, owner string, cidr netip.Prefix) (affinityEntry, error) {
	v, rev, err := datastore.GetJSON[api.BlockAffinity](ctx, c.store, affinityKey(owner, cidr))
	if errors.Is(err, datastore.ErrNotFound) {
		return affinityEntry{}, nil
	}
	if err != nil {
		return affinityEntry{}, fmt.Errorf("read affinity of %s for %s: %w", owner, cidr, err)
	}
	return newAffinityEntry(v, rev), nil
}

// newAffinityEntry reads the legacy form without a state as confirmed.
func newAffinityEntry(v api.BlockAffinity, rev datastore.Revision) affinityEntry {
	if v.State == "" {
		v.State = api.AffinityConfirmed
	}
	return affinityEntry{state: v.State, rev: rev}
}

// getHandle reads one handle; there being none is no error.
func (c *Client) getHandle(ctx context.Context, id string) (handleEntry, error) {
	e, err := c.store.Get(ctx, handleKey(id))
	if errors.Is(err, datastore.ErrNotFound) {
		return handleEntry{}, nil
	}
	if err != nil {
		return handleEntry{}, fmt.Errorf("read handle %s: %w", id, err)
	}
	n, err := decodeHandle(id, e.Value)
	if err != nil {
		return handleEntry{}, corruptError{err}
	}
	return handleEntry{counts: n, rev: e.Rev}, nil
}

// load reads the owner's claims and their blocks. A claim on a block that is
// somebody else's by now is deleted.
func (c *Client) load(ctx context.Context, k *cache) error {
	entries, _, err := c.store.List(ctx, datastore.Query{Kind: datastore.KindBlockAffinity, Namespace: k.owner})
	if err != nil {
		return fmt.Errorf("list affinities of %s: %w", k.owner, err)
	}
	begun := time.Now()
	affine, blocks := map[netip.Prefix]affinityEntry{}, map[netip.Prefix]blockEntry{}
	for _, e := range entries {
		cidr, err := netip.ParsePrefix(e.Key.Name)
		if err != nil {
			c.log.Warn("affinity skipped", "key", e.Key, "err", err)
			continue
		}
		v, err := datastore.DecodeJSON[api.BlockAffinity](e)
		if err != nil {
			c.log.Warn("affinity skipped", "key", e.Key, "err", err)
			continue
		}
		b, err := c.getBlock(ctx, cidr)
		var corrupt corruptError
		switch {
		case errors.As(err, &corrupt):
			c.log.Warn("block skipped", "block", cidr, "err", err)
			continue
		case err != nil:
			return err
		case b.block != nil && b.block.affinity != k.owner:
			c.dropStaleClaim(ctx, k.owner, cidr, e.Rev)
			continue
		}
		affine[cidr], blocks[cidr] = newAffinityEntry(v, e.Rev), b
	}
	k.affine, k.blocks, k.order, k.loaded = affine, blocks, nil, begun
	return nil
}

func (c *Client) dropStaleClaim(ctx context.Context, owner string, cidr netip.Prefix, rev datastore.Revision) {
	err := c.store.Delete(ctx, affinityKey(owner, cidr), datastore.At(rev))
	if err != nil && !isRace(err) {
		c.log.Warn("cannot delete the claim on a block of another owner", "owner", owner, "block", cidr, "err", err)
	}
}

// isRace reports whether a write failed because somebody else wrote.
func isRace(err error) bool {
	return errors.Is(err, datastore.ErrConflict) || errors.Is(err, datastore.ErrExists) || errors.Is(err, datastore.ErrNotFound)
}

// sortedKeys is m's keys in order, so that writes have one order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// sortedCIDRs is m's keys in address order.
func sortedCIDRs[V any](m map[netip.Prefix]V) []netip.Prefix {
	out := slices.Collect(maps.Keys(m))
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return out
}
