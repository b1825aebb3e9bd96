package resource

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// createPool stores a pool that neither overlaps another one nor covers blocks
// of another size. Two overlapping pools that are created at the same moment
// both pass the first look, so a second one follows the write; the pool that
// finds another one beside itself then takes itself back.
func (c *Client) createPool(ctx context.Context, p *api.IPPool) error {
	key := datastore.ObjectKey(p)
	if err := c.checkOverlap(ctx, p); err != nil {
		return classify(err, "create", key)
	}
	if err := c.checkBlocks(ctx, p); err != nil {
		return classify(err, "create", key)
	}
	if err := datastore.CreateObject(ctx, c.store, p); err != nil {
		return classify(err, "create", key)
	}
	overlap := c.checkOverlap(ctx, p)
	var wrong *api.FieldErrors
	if !errors.As(overlap, &wrong) {
		return nil // none, or nobody knows; the pool is there
	}
	rev := datastore.Revision(p.ResourceVersion)
	if err := c.store.Delete(context.WithoutCancel(ctx), key, datastore.At(rev)); err != nil {
		return fmt.Errorf("take back %s, which %w: %w", key, overlap, err)
	}
	p.ResourceVersion, p.UID, p.CreationTimestamp = "", "", nil
	return overlap
}

// checkOverlap compares p with every other stored pool.
func (c *Client) checkOverlap(ctx context.Context, p *api.IPPool) error {
	pools, _, problems, err := datastore.For[api.IPPool](c.store).List(ctx, "")
	if err != nil {
		return fmt.Errorf("list pools: %w", err)
	}
	for _, problem := range problems {
		c.log.Warn("skip unreadable pool in overlap check", "err", problem)
	}
	cidr, _ := p.Prefix()
	for _, other := range pools {
		have, ok := other.Prefix()
		if !ok || other.Name == p.Name || !have.Overlaps(cidr) {
			continue
		}
		var wrong api.FieldErrors
		wrong.Add("IPPool.Spec.CIDR", p.Spec.CIDR, fmt.Sprintf("IPPool(%s) CIDR overlaps with IPPool(%s) CIDR %s", p.Name, other.Name, other.Spec.CIDR))
		return wrong.Err()
	}
	return nil
}

// checkBlocks refuses a pool over blocks, left by an earlier one, that have
// another size: their addresses could not be told apart from the new blocks'.
func (c *Client) checkBlocks(ctx context.Context, p *api.IPPool) error {
	blocks, _, err := c.store.List(ctx, datastore.Query{Kind: datastore.KindIPAMBlock})
	if err != nil {
		return fmt.Errorf("list blocks: %w", err)
	}
	cidr, _ := p.Prefix()
	for _, b := range blocks {
		block, err := netip.ParsePrefix(b.Key.Name)
		if err != nil || !block.Overlaps(cidr) || block.Bits() == p.Spec.BlockSize {
			continue
		}
		var wrong api.FieldErrors
		wrong.Add("IPPool.Spec.BlockSize", strconv.Itoa(p.Spec.BlockSize),
			fmt.Sprintf("IPPool block size conflicts with the existing block %s; use block size %d or release its addresses", block, block.Bits()))
		return wrong.Err()
	}
	return nil
}

// keepsIdentity refuses the edits that would orphan a pool's blocks.
func keepsIdentity(old, p *api.IPPool) error {
	var wrong api.FieldErrors
	if was, now := canonical(old), canonical(p); was != now {
		wrong.Add("IPPool.Spec.CIDR", p.Spec.CIDR, "IPPool CIDR cannot be modified, it is "+old.Spec.CIDR)
	}
	stored := *old
	stored.Default() // an old pool may have been stored without its block size
	if stored.Spec.BlockSize != p.Spec.BlockSize {
		wrong.Add("IPPool.Spec.BlockSize", strconv.Itoa(p.Spec.BlockSize), fmt.Sprintf("IPPool BlockSize cannot be modified, it is %d", stored.Spec.BlockSize))
	}
	return wrong.Err()
}

func canonical(p *api.IPPool) string {
	if cidr, ok := p.Prefix(); ok {
		return cidr.String()
	}
	return p.Spec.CIDR
}

// deletePool disables the pool, so that no host claims another block of it,
// waits until the hosts have seen that, gives back their claims, and deletes
// it. If it is interrupted the pool stays disabled and deleting it again goes
// on (spec/calico.md §3). Addresses in use stay assigned.
func (c *Client) deletePool(ctx context.Context, key datastore.Key, rev datastore.Revision) error {
	pools := datastore.For[api.IPPool](c.store)
	p, err := c.disablePool(ctx, key, rev)
	if err != nil {
		return err
	}
	if cidr, ok := p.Prefix(); ok {
		if err := c.settle(ctx); err != nil {
			return fmt.Errorf("wait for hosts to see that %s is disabled: %w", key, err)
		}
		if err := c.ipam.ReleasePool(ctx, cidr); err != nil {
			return err
		}
	}
	_, err = pools.Delete(ctx, "", key.Name, datastore.Revision(p.ResourceVersion))
	return err
}

// disablePool returns the pool as it is stored now, disabled. A pool that
// cannot be read is only deleted.
func (c *Client) disablePool(ctx context.Context, key datastore.Key, rev datastore.Revision) (*api.IPPool, error) {
	entry, err := c.store.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	if rev != "" && rev != entry.Rev {
		return nil, stale("delete", key, string(rev), string(entry.Rev))
	}
	pools := datastore.For[api.IPPool](c.store)
	if _, err := pools.Decode(entry); err != nil {
		c.log.Warn("delete unreadable pool", "err", err)
		unreadable := &api.IPPool{}
		unreadable.Name, unreadable.ResourceVersion = key.Name, string(entry.Rev)
		return unreadable, nil
	}
	return pools.Modify(ctx, "", key.Name, func(p *api.IPPool) error {
		p.Spec.Disabled = true
		return nil
	})
}
