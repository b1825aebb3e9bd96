package ipam

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"go4.org/netipx"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

var (
	errTaken    = errors.New("block belongs to another owner")
	errBusy     = errors.New("block is in use")
	errNoBlocks = errors.New("no block left to claim")
)

// claimStep is what is to be done next towards a claim.
type claimStep uint8

const (
	claimDone    claimStep = iota // both sides agree
	claimCreate                   // no block: create it
	claimConfirm                  // the block is ours: confirm the affinity
	claimYield                    // the block is another's: delete our affinity, if any
)

// nextClaimStep is the two-phase claim of spec/calico.md §3 as a function of
// what is stored, so that finishing a claim that somebody else's crash left
// half made is no other path than making one.
func nextClaimStep(owner string, a affinityEntry, b *block) claimStep {
	switch {
	case b == nil:
		return claimCreate
	case b.affinity != owner:
		return claimYield
	case a.rev == "" || a.state != api.AffinityConfirmed:
		return claimConfirm
	}
	return claimDone
}

// claim makes cidr a block of k's owner, creating it or finishing a claim, and
// remembers it; errTaken when it is somebody else's. On a store with
// transactions affinity and block are written at once. On another store the
// affinity is first pending, then the block is created, then the affinity is
// confirmed.
func (c *Client) claim(ctx context.Context, k *cache, cidr netip.Prefix) error {
	a, b := affinityEntry{}, blockEntry{} // the guess: neither is there
	known := false
	lost := 0
	for attempt := range casAttempts {
		if err := pause(ctx, attempt); err != nil {
			return fmt.Errorf("claim block %s: %w", cidr, err)
		}
		_, claimed := k.affine[cidr]
		if known || claimed || attempt > 0 {
			var err error
			if a, b, err = c.readClaim(ctx, k.owner, cidr); err != nil {
				return fmt.Errorf("claim block %s: %w", cidr, err)
			}
		}
		known = true
		err := c.claimOnce(ctx, k, cidr, a, b)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errAgain) || isRace(err):
		case errors.Is(err, datastore.ErrUnavailable) && lost < maxLost:
			lost++ // what was written shows in the next reading
		default:
			return fmt.Errorf("claim block %s: %w", cidr, err)
		}
	}
	return fmt.Errorf("claim block %s: given up after %d attempts: %w", cidr, casAttempts, datastore.ErrConflict)
}

// maxLost is how often in a row a write whose outcome is unknown is followed
// up by reading before the operation fails.
const maxLost = 8

// errAgain says that a step was done and another is to follow.
var errAgain = errors.New("another step follows")

func (c *Client) readClaim(ctx context.Context, owner string, cidr netip.Prefix) (affinityEntry, blockEntry, error) {
	a, err := c.getAffinity(ctx, owner, cidr)
	if err != nil {
		return a, blockEntry{}, err
	}
	b, err := c.getBlock(ctx, cidr)
	return a, b, err
}

// claimOnce does the next step, or all that are left when the store can.
func (c *Client) claimOnce(ctx context.Context, k *cache, cidr netip.Prefix, a affinityEntry, b blockEntry) error {
	switch nextClaimStep(k.owner, a, b.block) {
	case claimYield:
		if a.rev != "" {
			if err := c.store.Delete(ctx, affinityKey(k.owner, cidr), datastore.At(a.rev)); err != nil {
				return err
			}
		}
		k.forget(cidr)
		return errTaken
	case claimConfirm:
		op, err := affinityOp(k.owner, cidr, a, api.AffinityConfirmed)
		if err != nil {
			return err
		}
		ops := []datastore.Op{op}
		if c.txn {
			ops = append(ops, datastore.Op{Key: blockKey(cidr), Check: true, If: datastore.At(b.rev)})
		}
		rev, err := datastore.Commit(ctx, c.store, ops)
		if err != nil {
			return err
		}
		a = affinityEntry{state: api.AffinityConfirmed, rev: rev}
	case claimCreate:
		rev, fresh, err := c.createBlock(ctx, k.owner, cidr, a)
		if err != nil {
			return err
		}
		a, b = affinityEntry{state: api.AffinityConfirmed, rev: rev}, blockEntry{block: fresh, rev: rev}
	case claimDone:
	}
	if k.affine == nil {
		k.affine, k.blocks = map[netip.Prefix]affinityEntry{}, map[netip.Prefix]blockEntry{}
	}
	k.affine[cidr] = a
	k.order = nil
	k.rememberBlock(cidr, b)
	return nil
}

// createBlock writes a new block and the claim on it. Without transactions it
// ends with errAgain, after which the affinity is still to be confirmed.
func (c *Client) createBlock(ctx context.Context, owner string, cidr netip.Prefix, a affinityEntry) (datastore.Revision, *block, error) {
	fresh := newBlock(cidr, owner, c.now())
	value, err := fresh.encode()
	if err != nil {
		return "", nil, err
	}
	create := datastore.Op{Key: blockKey(cidr), Value: value, If: datastore.Absent()}
	if c.txn {
		confirmed, err := affinityOp(owner, cidr, a, api.AffinityConfirmed)
		if err != nil {
			return "", nil, err
		}
		rev, err := datastore.Commit(ctx, c.store, []datastore.Op{confirmed, create})
		return rev, fresh, err
	}
	var ops []datastore.Op
	if a.rev == "" || a.state != api.AffinityPending {
		pending, err := affinityOp(owner, cidr, a, api.AffinityPending)
		if err != nil {
			return "", nil, err
		}
		ops = append(ops, pending)
	}
	if _, err := datastore.Commit(ctx, c.store, append(ops, create)); err != nil {
		return "", nil, err
	}
	return "", nil, errAgain
}

// affinityOp writes a claim's state over what was read.
func affinityOp(owner string, cidr netip.Prefix, was affinityEntry, state api.AffinityState) (datastore.Op, error) {
	value, err := json.Marshal(api.BlockAffinity{State: state})
	op := datastore.Op{Key: affinityKey(owner, cidr), Value: value, If: datastore.Absent()}
	if was.rev != "" {
		op.If = datastore.At(was.rev)
	}
	return op, err
}

// maxGuesses is how many claims may fail, because others took the blocks since
// they were listed, before the blocks are listed again.
const maxGuesses = 8

// claimFree finds a block for the owner in the pools and claims it: one that is
// not there, or one of the owner's that its claims do not list; if there is
// none, an empty block that another host claimed a minute ago or earlier. It
// returns errNoBlocks when nothing is left.
//
// The blocks that exist are remembered between calls, so that claiming many
// blocks does not list all blocks each time; creation fails if one exists after
// all.
func (c *Client) claimFree(ctx context.Context, k *cache, st *settings, pools []pool, host string) (pool, netip.Prefix, error) {
	for range casAttempts {
		if k.taken != nil {
			p, cidr, err := c.claimUnlisted(ctx, k, st, pools, host)
			if !errors.Is(err, errNoBlocks) {
				return p, cidr, err
			}
		}
		stored, err := c.listEntries(ctx)
		if err != nil {
			return pool{}, netip.Prefix{}, err
		}
		k.taken = map[netip.Prefix]bool{}
		for cidr := range stored {
			k.taken[cidr] = true
		}
		p, cidr, err := c.claimUnlisted(ctx, k, st, pools, host)
		if errors.Is(err, errGuess) {
			continue
		}
		if errors.Is(err, errNoBlocks) {
			p, cidr, err = c.claimListed(ctx, k, st, pools, host, stored)
		}
		if errors.Is(err, errNoBlocks) {
			k.taken = nil // a block that goes away is to be found the next time
		}
		return p, cidr, err
	}
	return pool{}, netip.Prefix{}, fmt.Errorf("claim a block: given up after %d listings: %w", casAttempts, datastore.ErrConflict)
}

// errGuess says that blocks believed to be free were taken; it is an
// errNoBlocks that a new listing may cure.
var errGuess = fmt.Errorf("%w: the listing is stale", errNoBlocks)

// claimUnlisted claims the first block that is not known to exist.
func (c *Client) claimUnlisted(ctx context.Context, k *cache, st *settings, pools []pool, host string) (pool, netip.Prefix, error) {
	guesses := 0
	for _, p := range pools {
		avoid := append(oddBlocks(k.taken, p), c.connected(p.cidr)...)
		covered := func(block netip.Prefix) (netip.Addr, bool) {
			if last, ok := st.covered(block); ok {
				return last, true
			}
			return overlapEnd(block, avoid)
		}
		for cidr := range newWalk(p.cidr, p.blockBits, host, c.now()).blocks(covered) {
			if k.taken[cidr] {
				continue
			}
			err := c.claim(ctx, k, cidr)
			k.taken[cidr] = true
			var corrupt corruptError
			if errors.Is(err, errTaken) || errors.As(err, &corrupt) {
				if guesses++; guesses == maxGuesses {
					return pool{}, netip.Prefix{}, errGuess
				}
				continue
			}
			return p, cidr, err
		}
	}
	if guesses > 0 {
		return pool{}, netip.Prefix{}, errGuess
	}
	return pool{}, netip.Prefix{}, errNoBlocks
}

// overlapEnd tells whether block overlaps one of the prefixes, and the last
// address up to which there is nothing to claim for that reason.
func overlapEnd(block netip.Prefix, prefixes []netip.Prefix) (last netip.Addr, ok bool) {
	for _, p := range prefixes {
		if !p.Overlaps(block) {
			continue
		}
		if p.Bits() < block.Bits() {
			return netipx.PrefixLastIP(p), true
		}
		return netipx.PrefixLastIP(block), true
	}
	return netip.Addr{}, false
}

// connected are this machine's subnets that reach into the pool.
func (c *Client) connected(pool netip.Prefix) []netip.Prefix {
	if c.subnets == nil {
		return nil
	}
	var out []netip.Prefix
	for _, s := range c.subnets() {
		if s.Overlaps(pool) && s.Bits() > pool.Bits() {
			out = append(out, s.Masked())
		}
	}
	return out
}

// oddBlocks are the blocks inside p, or around parts of it, that are not of its
// size: remains of an earlier pool, which no new block may overlap.
func oddBlocks(taken map[netip.Prefix]bool, p pool) []netip.Prefix {
	var odd []netip.Prefix
	for cidr := range taken {
		if cidr.Bits() != p.blockBits && cidr.Overlaps(p.cidr) {
			odd = append(odd, cidr)
		}
	}
	return odd
}

// claimListed claims a block among those that exist: the owner's own with space
// that no affinity mentions, or else an empty one of somebody else.
func (c *Client) claimListed(ctx context.Context, k *cache, st *settings, pools []pool, host string, stored storedBlocks) (pool, netip.Prefix, error) {
	for _, p := range pools {
		blocks, _ := c.decode(stored, p.holds)
		cidrs := slices.Collect(maps.Keys(blocks))
		avoid := c.connected(p.cidr)
		newWalk(p.cidr, p.blockBits, host, c.now()).sort(cidrs)
		for _, adopt := range []bool{true, false} {
			for _, cidr := range cidrs {
				b := blocks[cidr].block.clone()
				b.collect(c.now(), st.cooldown())
				if _, avoided := overlapEnd(cidr, avoid); avoided {
					continue
				}
				if _, listed := k.affine[cidr]; listed || len(b.free) == 0 || (b.affinity == k.owner) != adopt || st.reserved.ContainsPrefix(cidr) {
					continue
				}
				err := c.takeOver(ctx, k, blocks[cidr], b)
				if errors.Is(err, errTaken) || errors.Is(err, errBusy) {
					continue
				}
				return p, cidr, err
			}
		}
	}
	return pool{}, netip.Prefix{}, errNoBlocks
}

// takeOver claims an existing block. seen is what was listed; b is the same
// after the garbage step.
func (c *Client) takeOver(ctx context.Context, k *cache, seen blockEntry, b *block) error {
	if b.affinity == k.owner {
		return c.claim(ctx, k, b.cidr)
	}
	if !b.idle() || !b.claimedBefore(c.now().Add(-minClaimAge)) {
		return errBusy
	}
	if b.affinity == "" {
		err := c.store.Delete(ctx, blockKey(b.cidr), datastore.At(seen.rev))
		if err != nil && !isRace(err) {
			return err
		}
		return c.claim(ctx, k, b.cidr)
	}
	err := c.releaseClaim(ctx, releaseClaim{owner: b.affinity, cidr: b.cidr, onlyIdle: true, sequence: seen.block.sequence})
	if err != nil {
		return err
	}
	c.log.Info("took over an empty block", "block", b.cidr, "from", b.affinity, "to", k.owner)
	return c.claim(ctx, k, b.cidr)
}

// releaseClaim says which claim to give up.
type releaseClaim struct {
	owner    string
	cidr     netip.Prefix
	onlyIdle bool   // errBusy unless the block is empty
	sequence uint64 // errBusy unless the block is as it was then; 0: any
}

// releaseStep is what is to be done next to give up a claim.
type releaseStep uint8

const (
	releaseDone   releaseStep = iota
	releaseKeep               // the block is needed after all: confirm the claim again
	releaseDelete             // the block is empty: delete it, and the affinity
	releaseDisown             // the block is in use: clear its owner, and delete the affinity
	releaseForget             // only the affinity is left: delete it
)

// nextReleaseStep is the release of spec/calico.md §3 as a function of what is
// stored.
func nextReleaseStep(r releaseClaim, a affinityEntry, b *block) releaseStep {
	switch {
	case b == nil || b.affinity != r.owner:
		if a.rev == "" {
			return releaseDone
		}
		return releaseForget
	case r.onlyIdle && !b.idle(), r.sequence != 0 && b.sequence != r.sequence:
		return releaseKeep
	case b.idle():
		return releaseDelete
	}
	return releaseDisown
}

// releaseClaim gives up a claim: in one transaction, or with the affinity
// marked pendingDeletion first, then the block, then the affinity.
func (c *Client) releaseClaim(ctx context.Context, r releaseClaim) error {
	st, err := c.readSettings(ctx)
	if err != nil {
		return fmt.Errorf("release block %s: %w", r.cidr, err)
	}
	lost := 0
	for attempt := range casAttempts {
		if err := pause(ctx, attempt); err != nil {
			return fmt.Errorf("release block %s: %w", r.cidr, err)
		}
		a, b, err := c.readClaim(ctx, r.owner, r.cidr)
		if err != nil {
			return fmt.Errorf("release block %s: %w", r.cidr, err)
		}
		err = c.releaseOnce(ctx, r, st, a, b)
		switch {
		case err == nil, errors.Is(err, errBusy):
			return err
		case errors.Is(err, errAgain) || isRace(err):
		case errors.Is(err, datastore.ErrUnavailable) && lost < maxLost:
			lost++
		default:
			return fmt.Errorf("release block %s: %w", r.cidr, err)
		}
	}
	return fmt.Errorf("release block %s: given up after %d attempts: %w", r.cidr, casAttempts, datastore.ErrConflict)
}

func (c *Client) releaseOnce(ctx context.Context, r releaseClaim, st *settings, a affinityEntry, e blockEntry) error {
	var b *block
	if e.block != nil {
		b = e.block.clone()
		b.collect(c.now(), st.cooldown())
	}
	step := nextReleaseStep(r, a, b)
	switch step {
	case releaseDone:
		return nil
	case releaseKeep:
		return c.keepClaim(ctx, r, a)
	case releaseDelete, releaseDisown, releaseForget:
	}
	var ops []datastore.Op
	if !c.txn && step != releaseForget && a.rev != "" && a.state != api.AffinityPendingDeletion {
		op, err := affinityOp(r.owner, r.cidr, a, api.AffinityPendingDeletion)
		if err != nil {
			return err
		}
		if _, err := c.store.Put(ctx, op.Key, op.Value, op.If); err != nil {
			return err
		}
		return errAgain
	}
	switch step {
	case releaseDelete:
		ops = append(ops, datastore.Op{Key: blockKey(r.cidr), Delete: true, If: datastore.At(e.rev)})
	case releaseDisown:
		b.disown()
		b.sequence++
		value, err := b.encode()
		if err != nil {
			return err
		}
		ops = append(ops, datastore.Op{Key: blockKey(r.cidr), Value: value, If: datastore.At(e.rev)})
	case releaseDone, releaseKeep, releaseForget:
	}
	if a.rev != "" {
		ops = append(ops, datastore.Op{Key: affinityKey(r.owner, r.cidr), Delete: true, If: datastore.At(a.rev)})
	}
	_, err := datastore.Commit(ctx, c.store, ops)
	return err
}

// keepClaim ends a release that must not happen.
func (c *Client) keepClaim(ctx context.Context, r releaseClaim, a affinityEntry) error {
	if a.rev == "" || a.state != api.AffinityPendingDeletion {
		return errBusy
	}
	op, err := affinityOp(r.owner, r.cidr, a, api.AffinityConfirmed)
	if err != nil {
		return err
	}
	if _, err := c.store.Put(ctx, op.Key, op.Value, op.If); err != nil {
		return err
	}
	return errBusy
}

// prune gives up the owner's empty blocks in pools that no longer select the
// node. It looks again when a pool or the labels change.
func (c *Client) prune(ctx context.Context, k *cache, st *settings, host string, nodeLabels map[string]string) error {
	if k.owner != "host:"+host {
		return nil // not a node's blocks
	}
	mark := fmt.Sprint(st.mark, nodeLabels)
	if k.pruned == mark {
		return nil
	}
	for _, cidr := range sortedCIDRs(k.affine) {
		b := k.blocks[cidr].block
		if b == nil || !b.idle() || st.selects(cidr, nodeLabels) {
			continue
		}
		err := c.releaseClaim(ctx, releaseClaim{owner: k.owner, cidr: cidr, onlyIdle: true, sequence: b.sequence})
		if errors.Is(err, errBusy) {
			continue
		}
		if err != nil {
			return err
		}
		c.log.Info("gave up an empty block of a pool that no longer selects this node", "block", cidr, "owner", k.owner)
		k.forget(cidr)
	}
	k.pruned = mark
	return nil
}

// pause waits before an attempt that is not the first: a random time that grows
// to 50 ms, so that many writers of one block get through in turn.
func pause(ctx context.Context, attempt int) error {
	if attempt == 0 {
		return nil
	}
	limit := min(time.Millisecond<<min(attempt, 6), 50*time.Millisecond)
	return sleep(ctx, jitter(limit))
}
