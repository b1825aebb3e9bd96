package resource

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/ipam"
)

// applyAttempts is how often Apply and Replace look again after somebody else's
// write (spec/calico.md §1.2).
const applyAttempts = 10

// Client reads and writes the v3 resources of one datastore. Its methods are
// safe for concurrent use.
type Client struct {
	store datastore.Store
	ipam  *ipam.Client
	log   *slog.Logger
	// settle waits until the hosts have seen that a pool is disabled.
	settle func(ctx context.Context) error
}

// New returns a Client of the store; log nil discards.
func New(store datastore.Store, log *slog.Logger) *Client {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Client{store: store, ipam: ipam.New(store, ipam.Options{Log: log}), log: log, settle: settle}
}

// settleTime is Calico's wait between disabling a pool and releasing its claims
// (spec/calico.md §3).
const settleTime = 500 * time.Millisecond

func settle(ctx context.Context) error {
	t := time.NewTimer(settleTime)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Get reads one resource, with its resourceVersion. namespace is empty for
// kinds without.
func (c *Client) Get(ctx context.Context, k api.Kind, namespace, name string) (api.Object, error) {
	if isDefaultAllow(k.Name, name) {
		return api.NewDefaultAllowProfile(), nil
	}
	key := datastore.Key{Kind: k.Name, Namespace: namespace, Name: name}
	if k.Name == "BlockAffinity" {
		o, err := c.getAffinity(ctx, key)
		return o, classify(err, "get", key)
	}
	o, err := datastore.GetObject(ctx, c.store, k, namespace, name)
	if err == nil {
		err = c.showIPAM(ctx, o)
	}
	if err != nil {
		return nil, classify(err, "get", key)
	}
	return o, nil
}

// List reads all resources of a kind, of one namespace or (empty) of all, in
// the order of their names. Stored values that cannot be read are left out and
// reported in problems.
func (c *Client) List(ctx context.Context, k api.Kind, namespace string) (objects []api.Object, problems []error, err error) {
	if k.Name == "BlockAffinity" {
		objects, problems, err = c.listAffinities(ctx)
	} else {
		objects, _, problems, err = datastore.ListObjects(ctx, c.store, k, namespace)
	}
	if err == nil {
		err = c.showIPAM(ctx, objects...)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list %s: %w", k.Plural, err)
	}
	if k.Name == "Profile" {
		objects = withDefaultAllow(objects)
	}
	return objects, problems, nil
}

// Create stores a new resource, defaulted and validated. On success o has its
// uid, creationTimestamp and resourceVersion.
func (c *Client) Create(ctx context.Context, o api.Object) error {
	key, err := prepare(o)
	if err != nil {
		return err
	}
	if isDefaultAllow(key.Kind, key.Name) {
		return &Error{Class: ErrExists, Operation: "create", Kind: key.Kind, Name: key.Name}
	}
	if rv := o.Meta().ResourceVersion; rv != "" {
		var e api.FieldErrors
		e.Add(key.Kind+".Metadata.ResourceVersion", rv, "field must not be set for a Create request")
		return e.Err()
	}
	switch r := o.(type) {
	case *api.IPPool:
		return c.createPool(ctx, r)
	case *api.BlockAffinityView:
		return blockAffinitiesAreIPAMs("Create", key)
	case *api.BGPPeer:
		err = c.checkFilters(ctx, r)
	default:
		err = c.checkTier(ctx, key.Kind, o)
	}
	if err == nil {
		err = datastore.CreateObject(ctx, c.store, o)
	}
	if i, ok := o.(*api.IPAMConfiguration); ok && err == nil {
		err = c.configureIPAM(ctx, i.Spec)
	}
	return classify(err, "create", key)
}

// Replace puts o in the place of the stored resource, whose uid and
// creationTimestamp stay. If o has a resourceVersion it must be the stored one;
// else whatever is stored is replaced.
func (c *Client) Replace(ctx context.Context, o api.Object) error {
	key, err := prepare(o)
	if err != nil {
		return err
	}
	return retry(ctx, o, func() error { return c.replaceOnce(ctx, key, o) })
}

// Apply replaces the resource or creates it if there is none.
func (c *Client) Apply(ctx context.Context, o api.Object) error {
	key, err := prepare(o)
	if err != nil {
		return err
	}
	return retry(ctx, o, func() error {
		err := c.replaceOnce(ctx, key, o)
		if !errors.Is(err, ErrNotExist) || o.Meta().ResourceVersion != "" {
			return err
		}
		if err = c.Create(ctx, o); errors.Is(err, ErrExists) {
			return &Error{Class: ErrConflict, Operation: "create", Kind: key.Kind, Namespace: key.Namespace, Name: key.Name}
		}
		return err
	})
}

// retry repeats a write that lost against another one, unless the caller named
// the version he wants to replace.
func retry(ctx context.Context, o api.Object, write func() error) error {
	pinned := o.Meta().ResourceVersion != ""
	for attempt := 1; ; attempt++ {
		err := write()
		if pinned || !errors.Is(err, ErrConflict) || attempt == applyAttempts {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(attempt) * 5 * time.Millisecond):
		}
	}
}

// replaceOnce replaces exactly the version whose rules it has checked.
func (c *Client) replaceOnce(ctx context.Context, key datastore.Key, o api.Object) error {
	if isDefaultAllow(key.Kind, key.Name) {
		return builtIn("Update", key)
	}
	if key.Kind == "BlockAffinity" {
		return blockAffinitiesAreIPAMs("Update", key)
	}
	k, err := api.LookupKind(key.Kind)
	if err != nil {
		return err
	}
	old, err := datastore.GetObject(ctx, c.store, k, key.Namespace, key.Name)
	if err != nil {
		return classify(err, "update", key)
	}
	m := o.Meta()
	stored, wanted := old.Meta().ResourceVersion, m.ResourceVersion
	if wanted != "" && wanted != stored {
		return stale("update", key, wanted, stored)
	}
	if err := c.mayReplace(ctx, key, old, o); err != nil {
		return err
	}
	before := *m
	m.ResourceVersion, m.UID, m.CreationTimestamp = stored, old.Meta().UID, old.Meta().CreationTimestamp
	if err := datastore.UpdateObject(ctx, c.store, o); err != nil {
		*m = before
		return classify(err, "update", key)
	}
	if i, ok := o.(*api.IPAMConfiguration); ok {
		return classify(c.configureIPAM(ctx, i.Spec), "update", key)
	}
	return nil
}

// mayReplace judges what o changes of the stored object.
func (c *Client) mayReplace(ctx context.Context, key datastore.Key, old, o api.Object) error {
	if p, ok := o.(*api.IPPool); ok {
		return keepsIdentity(old.(*api.IPPool), p)
	}
	was, _ := api.TierOf(old)
	if is, ok := api.TierOf(o); ok && is != was {
		return classify(c.checkTier(ctx, key.Kind, o), "update", key)
	}
	return nil
}

// Delete removes the resource that o names, with what belongs to it. If o has a
// resourceVersion it must be the stored one. Nothing else of o is looked at.
func (c *Client) Delete(ctx context.Context, o api.Object) error {
	key := datastore.ObjectKey(o)
	k, err := api.LookupKind(key.Kind)
	if err != nil {
		return err
	}
	if isDefaultAllow(key.Kind, key.Name) {
		return builtIn("Delete", key)
	}
	rev := datastore.Revision(o.Meta().ResourceVersion)
	switch k.Name {
	case "IPPool":
		err = c.deletePool(ctx, key, rev)
	case "Node":
		err = c.deleteNode(ctx, key, rev)
	case "Tier":
		err = c.deleteTier(ctx, key, rev)
	case "BlockAffinity":
		err = blockAffinitiesAreIPAMs("Delete", key)
	case "IPAMConfiguration":
		if _, err = datastore.DeleteObject(ctx, c.store, k, "", key.Name, rev); err == nil {
			s := api.DefaultIPAMConfig()
			err = c.configureIPAM(ctx, api.IPAMConfigurationSpec{AutoAllocateBlocks: s.AutoAllocateBlocks})
		}
	default:
		_, err = datastore.DeleteObject(ctx, c.store, k, key.Namespace, key.Name, rev)
	}
	return classify(err, "delete", key)
}

// prepare fills defaults and validates, and returns the key.
func prepare(o api.Object) (datastore.Key, error) {
	o.Default()
	if err := o.Validate(); err != nil {
		return datastore.Key{}, err
	}
	return datastore.ObjectKey(o), nil
}
