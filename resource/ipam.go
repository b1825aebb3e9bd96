package resource

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// The two kinds that show what IPAM keeps in objects of its own. Claims are
// IPAM's to make and to give back, so that a BlockAffinity can only be read. An
// IPAMConfiguration is stored as Calico stores it, and what it says is written
// to the configuration that every host's IPAM reads; read, it says what holds.

func blockAffinitiesAreIPAMs(operation string, key datastore.Key) error {
	return &Error{
		Class: ErrUnsupported, Operation: operation, Kind: key.Kind, Name: key.Name,
		Reason: "claims on blocks belong to IPAM, which makes and deletes them itself",
	}
}

// listAffinities returns the view of every claim, in the order of the names.
func (c *Client) listAffinities(ctx context.Context) ([]api.Object, []error, error) {
	items, _, problems, err := datastore.ListJSON[api.BlockAffinity](ctx, c.store, datastore.Query{Kind: datastore.KindBlockAffinity})
	if err != nil {
		return nil, nil, err
	}
	var views []api.Object
	for _, i := range items {
		cidr, err := netip.ParsePrefix(i.Key.Name)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		views = append(views, affinityView(i, cidr))
	}
	slices.SortFunc(views, func(a, b api.Object) int { return cmp.Compare(a.Meta().Name, b.Meta().Name) })
	return views, problems, nil
}

func affinityView(i datastore.Item[api.BlockAffinity], cidr netip.Prefix) *api.BlockAffinityView {
	kind, owner, _ := strings.Cut(i.Key.Namespace, ":")
	v := &api.BlockAffinityView{Spec: api.BlockAffinityViewSpec{
		State:   cmp.Or(i.Value.State, api.AffinityConfirmed),
		Node:    owner,
		Type:    kind,
		CIDR:    cidr.String(),
		Deleted: api.StoredBool{On: i.Value.Deleted},
	}}
	v.Name, v.ResourceVersion = api.BlockAffinityName(owner, cidr), string(i.Rev)
	v.Default()
	return v
}

func (c *Client) getAffinity(ctx context.Context, key datastore.Key) (api.Object, error) {
	views, _, err := c.listAffinities(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range views {
		if v.Meta().Name == key.Name {
			return v, nil
		}
	}
	return nil, &Error{Class: ErrNotExist, Operation: "get", Kind: key.Kind, Name: key.Name}
}

// configureIPAM writes what the resource says to IPAM's configuration.
func (c *Client) configureIPAM(ctx context.Context, s api.IPAMConfigurationSpec) error {
	cfg, err := c.ipam.Config(ctx)
	if err != nil {
		return err
	}
	cfg.StrictAffinity, cfg.AutoAllocateBlocks = s.StrictAffinity, s.AutoAllocateBlocks
	cfg.MaxBlocksPerHost, cfg.IPCooldownSeconds = s.MaxBlocksPerHost, s.IPCooldownSeconds
	return c.ipam.SetConfig(ctx, cfg)
}

// showIPAM gives every IPAMConfiguration the configuration that holds.
func (c *Client) showIPAM(ctx context.Context, objects ...api.Object) error {
	for _, o := range objects {
		i, ok := o.(*api.IPAMConfiguration)
		if !ok {
			continue
		}
		cfg, err := c.ipam.Config(ctx)
		if err != nil {
			return err
		}
		i.Spec = api.IPAMConfigurationSpec{
			StrictAffinity: cfg.StrictAffinity, AutoAllocateBlocks: cfg.AutoAllocateBlocks,
			MaxBlocksPerHost: cfg.MaxBlocksPerHost, IPCooldownSeconds: cfg.IPCooldownSeconds,
		}
	}
	return nil
}
