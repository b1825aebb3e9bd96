package resource

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/ipam"
)

// tunnelHandles own the addresses of a node's tunnel devices (spec/calico.md §3).
func tunnelHandles(node string) []string {
	return []string{
		"ipip-tunnel-addr-" + node,
		"vxlan-tunnel-addr-" + node,
		"vxlan-v6-tunnel-addr-" + node,
		"wireguard-tunnel-addr-" + node,
		"wireguard-v6-tunnel-addr-" + node,
	}
}

// deleteNode deletes what belongs to a node and then the node (spec/calico.md
// §1.5): addresses of its endpoints and tunnels, the endpoints, its claims on
// blocks, its BGP peers, its own configurations and its host endpoints. The node goes last, so that
// an interrupted deletion can be repeated. What is gone already is no error.
func (c *Client) deleteNode(ctx context.Context, key datastore.Key, rev datastore.Revision) error {
	entry, err := c.store.Get(ctx, key)
	if err != nil {
		return err
	}
	if rev != "" && rev != entry.Rev {
		return stale("delete", key, string(rev), string(entry.Rev))
	}
	for _, step := range []struct {
		what string
		do   func(ctx context.Context, node string) error
	}{
		{"workload endpoints", c.deleteEndpoints},
		{"tunnel addresses", c.releaseTunnels},
		{"addresses and blocks", c.ipam.ReleaseHost},
		{"BGP peers", c.deletePeers},
		{"configurations", c.deleteConfigurations},
		{"host endpoints", c.deleteHostEndpoints},
	} {
		if err := step.do(ctx, key.Name); err != nil {
			return fmt.Errorf("delete the %s of node %s: %w", step.what, key.Name, err)
		}
	}
	_, err = datastore.For[api.Node](c.store).Delete(ctx, "", key.Name, rev)
	return err
}

func (c *Client) deleteEndpoints(ctx context.Context, node string) error {
	endpoints := datastore.For[api.WorkloadEndpoint](c.store)
	list, _, problems, err := endpoints.List(ctx, "")
	if err != nil {
		return err
	}
	c.warn("skip unreadable endpoint", problems)
	for _, w := range list {
		if w.Spec.Node != node {
			continue
		}
		for _, n := range w.Spec.IPNetworks {
			if err := c.releaseEndpointAddr(ctx, node, n); err != nil {
				return fmt.Errorf("release %s of %s/%s: %w", n, w.Namespace, w.Name, err)
			}
		}
		if _, err := endpoints.Delete(ctx, w.Namespace, w.Name, ""); err != nil && !errors.Is(err, ErrNotExist) {
			return err
		}
	}
	return nil
}

// releaseEndpointAddr releases an endpoint's address unless the allocation says
// that it belongs to another node: an endpoint is what somebody wrote, the
// allocation is what holds.
func (c *Client) releaseEndpointAddr(ctx context.Context, node, network string) error {
	p, err := netip.ParsePrefix(network)
	if err != nil || !p.IsSingleIP() {
		return nil // never came from IPAM
	}
	a, err := c.ipam.Lookup(ctx, p.Addr())
	if errors.Is(err, ipam.ErrNotAssigned) {
		return nil
	}
	if err != nil {
		return err
	}
	if owner := a.Attrs["node"]; owner != "" && owner != node {
		c.log.Warn("keep address of an endpoint of the deleted node, it belongs to another node", "addr", p.Addr(), "node", node, "owner", owner)
		return nil
	}
	_, err = c.ipam.ReleaseExactly(ctx, ipam.ReleaseOptions{Addr: p.Addr(), Handle: a.Handle, Sequence: a.Sequence})
	if errors.Is(err, ipam.ErrStale) {
		return nil // somebody else's by now
	}
	return err
}

func (c *Client) releaseTunnels(ctx context.Context, node string) error {
	for _, handle := range tunnelHandles(node) {
		if _, err := c.ipam.ReleaseByHandle(ctx, handle); err != nil {
			return err
		}
	}
	return nil
}

func (c *Client) deletePeers(ctx context.Context, node string) error {
	peers := datastore.For[api.BGPPeer](c.store)
	list, _, problems, err := peers.List(ctx, "")
	if err != nil {
		return err
	}
	c.warn("skip unreadable BGP peer", problems)
	for _, p := range list {
		if p.Spec.Node != node {
			continue
		}
		if _, err := peers.Delete(ctx, "", p.Name, ""); err != nil && !errors.Is(err, ErrNotExist) {
			return err
		}
	}
	return nil
}

func (c *Client) deleteHostEndpoints(ctx context.Context, node string) error {
	endpoints := datastore.For[api.HostEndpoint](c.store)
	list, _, problems, err := endpoints.List(ctx, "")
	if err != nil {
		return err
	}
	c.warn("skip unreadable host endpoint", problems)
	for _, h := range list {
		if h.Spec.Node != node {
			continue
		}
		if _, err := endpoints.Delete(ctx, "", h.Name, ""); err != nil && !errors.Is(err, ErrNotExist) {
			return err
		}
	}
	return nil
}

func (c *Client) deleteConfigurations(ctx context.Context, node string) error {
	for _, kind := range []string{"FelixConfiguration", "BGPConfiguration"} {
		key := datastore.Key{Kind: kind, Name: api.NodeConfigName(node)}
		if err := c.store.Delete(ctx, key, datastore.Always()); err != nil && !errors.Is(err, ErrNotExist) {
			return err
		}
	}
	return nil
}

func (c *Client) warn(msg string, problems []error) {
	for _, p := range problems {
		c.log.Warn(msg, "err", p)
	}
}
