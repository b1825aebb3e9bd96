package resource

import (
	"context"
	"errors"
	"fmt"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// ensureTiers creates those of the built-in tiers that are not stored.
func (c *Client) ensureTiers(ctx context.Context) error {
	tiers := datastore.For[api.Tier](c.store)
	for _, t := range api.BuiltInTiers() {
		_, err := tiers.Get(ctx, "", t.Name)
		if errors.Is(err, ErrNotExist) {
			err = tiers.Create(ctx, t)
		}
		if err != nil && !errors.Is(err, ErrExists) {
			return fmt.Errorf("create tier %s: %w", t.Name, err)
		}
	}
	return nil
}

// checkTier refuses a policy whose tier is not there. The built-in tiers are
// made sooner or later.
func (c *Client) checkTier(ctx context.Context, kind string, o api.Object) error {
	tier, ok := api.TierOf(o)
	if !ok || api.IsBuiltInTier(tier) {
		return nil
	}
	_, err := c.store.Get(ctx, datastore.Key{Kind: "Tier", Name: tier})
	if errors.Is(err, ErrNotExist) {
		var wrong api.FieldErrors
		wrong.Add(kind+".Spec.Tier", tier, "the tier does not exist; create it first")
		return wrong.Err()
	}
	return err
}

// deleteTier deletes a tier that is neither built in nor has a policy (spec/calico.md §1.3).
func (c *Client) deleteTier(ctx context.Context, key datastore.Key, rev datastore.Revision) error {
	refuse := func(reason string) error {
		return &Error{Class: ErrUnsupported, Operation: "Delete", Kind: key.Kind, Name: key.Name, Reason: reason}
	}
	if api.IsBuiltInTier(key.Name) {
		return refuse("Cannot delete " + key.Name + " tier")
	}
	if _, err := c.store.Get(ctx, key); err != nil {
		return err
	}
	for _, kind := range api.TieredKinds() {
		k, err := api.LookupKind(kind)
		if err != nil {
			return err
		}
		policies, _, problems, err := datastore.ListObjects(ctx, c.store, k, "")
		if err != nil {
			return fmt.Errorf("list %s: %w", k.Plural, err)
		}
		if len(problems) > 0 { // of which the tier is unknown
			return fmt.Errorf("find the policies of tier %s: %w", key.Name, errors.Join(problems...))
		}
		for _, p := range policies {
			if tier, _ := api.TierOf(p); tier == key.Name {
				return refuse("Cannot delete a non-empty tier")
			}
		}
	}
	_, err := datastore.For[api.Tier](c.store).Delete(ctx, "", key.Name, rev)
	return err
}
