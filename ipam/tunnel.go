package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/manekinet/maneki/api"
)

// TunnelKind is a kind of tunnel device that has an address of its own.
type TunnelKind string

// The kinds, as they begin the names of handles (spec/calico.md §3).
const (
	TunnelIPIP        TunnelKind = "ipip"
	TunnelVXLAN       TunnelKind = "vxlan"
	TunnelVXLANv6     TunnelKind = "vxlan-v6"
	TunnelWireguard   TunnelKind = "wireguard"
	TunnelWireguardV6 TunnelKind = "wireguard-v6"
)

// tunnelTypes is the attribute "type" of each kind's addresses.
func tunnelTypes() map[TunnelKind]string {
	return map[TunnelKind]string{
		TunnelIPIP:        "ipipTunnelAddress",
		TunnelVXLAN:       "vxlanTunnelAddress",
		TunnelVXLANv6:     "vxlanV6TunnelAddress",
		TunnelWireguard:   "wireguardTunnelAddress",
		TunnelWireguardV6: "wireguardV6TunnelAddress",
	}
}

// Handle is the handle of host's tunnel address.
func (k TunnelKind) Handle(host string) string { return string(k) + "-tunnel-addr-" + host }

func (k TunnelKind) family() int {
	if strings.HasSuffix(string(k), "-v6") {
		return 6
	}
	return 4
}

// uses reports whether packets of a pool go through this kind of tunnel.
// WireGuard carries every pool.
func (k TunnelKind) uses(p pool) bool {
	mode := api.EncapAlways
	switch k {
	case TunnelIPIP:
		mode = p.spec.IPIPMode
	case TunnelVXLAN, TunnelVXLANv6:
		mode = p.spec.VXLANMode
	case TunnelWireguard, TunnelWireguardV6:
	}
	return mode != "" && mode != api.EncapNever
}

// TunnelRequest asks for the address of one tunnel device.
type TunnelRequest struct {
	Host       string
	Kind       TunnelKind
	NodeLabels map[string]string
}

// assigner is what a Client and a Host have in common.
type assigner interface {
	AutoAssign(context.Context, Request) ([]Assignment, error)
	ReleaseByHandle(context.Context, string) ([]netip.Addr, error)
	ReleaseExactly(context.Context, ...ReleaseOptions) ([]netip.Addr, error)
}

// EnsureTunnelAddr returns the tunnel address of a host. It keeps the one the
// host has as long as its pool is enabled, allows tunnels, uses this
// encapsulation and selects the node; otherwise it assigns another and releases
// the old one. If no pool asks for such a tunnel it releases what there is and
// returns the zero Addr.
func (c *Client) EnsureTunnelAddr(ctx context.Context, r TunnelRequest) (netip.Addr, error) {
	return c.ensureTunnel(ctx, c, r)
}

// EnsureTunnelAddr is Client.EnsureTunnelAddr for this node.
func (h *Host) EnsureTunnelAddr(ctx context.Context, r TunnelRequest) (netip.Addr, error) {
	var err error
	if r.Host, err = h.own(r.Host); err != nil {
		return netip.Addr{}, err
	}
	return h.client.ensureTunnel(ctx, h, r)
}

// ReleaseTunnelAddr releases a host's tunnel address, if it has one.
func (c *Client) ReleaseTunnelAddr(ctx context.Context, host string, kind TunnelKind) error {
	_, err := c.ReleaseByHandle(ctx, kind.Handle(host))
	return err
}

// ReleaseTunnelAddr is Client.ReleaseTunnelAddr for this node.
func (h *Host) ReleaseTunnelAddr(ctx context.Context, kind TunnelKind) error {
	_, err := h.ReleaseByHandle(ctx, kind.Handle(h.name))
	return err
}

func (c *Client) ensureTunnel(ctx context.Context, a assigner, r TunnelRequest) (netip.Addr, error) {
	kind, known := tunnelTypes()[r.Kind]
	if !known || r.Host == "" {
		return netip.Addr{}, fmt.Errorf("assign tunnel address: kind %q of host %q: want ipip, vxlan, vxlan-v6, wireguard or wireguard-v6 and a host", r.Kind, r.Host)
	}
	fail := func(err error) (netip.Addr, error) {
		return netip.Addr{}, fmt.Errorf("assign %s tunnel address of %s: %w", r.Kind, r.Host, err)
	}
	st, err := c.readSettings(ctx)
	if err != nil {
		return fail(err)
	}
	handle, names := r.Kind.Handle(r.Host), st.tunnelPools(r.Kind, r.NodeLabels)
	if len(names) == 0 {
		if _, err := a.ReleaseByHandle(ctx, handle); err != nil {
			return fail(err)
		}
		return netip.Addr{}, nil
	}
	held, err := c.ByHandle(ctx, handle)
	if err != nil {
		return fail(err)
	}
	var keep netip.Addr
	var old []ReleaseOptions
	for _, addr := range held {
		if p, ok := st.containing(addr); ok && names[p.name] && !keep.IsValid() {
			keep = addr
			continue
		}
		old = append(old, ReleaseOptions{Addr: addr, Handle: handle})
	}
	if !keep.IsValid() {
		req := Request{
			Host: r.Host, Handle: handle, Use: api.UseTunnel, NodeLabels: r.NodeLabels,
			Attrs: map[string]string{"node": r.Host, "type": kind},
		}
		if r.Kind.family() == 6 {
			req.Num6, req.Pools6 = 1, sortedKeys(names)
		} else {
			req.Num4, req.Pools4 = 1, sortedKeys(names)
		}
		got, err := a.AutoAssign(ctx, req)
		if err != nil {
			return fail(err)
		}
		keep = got[0].Addr
	}
	if _, err := a.ReleaseExactly(ctx, old...); err != nil {
		return fail(err)
	}
	return keep, nil
}

// tunnelPools are the names of the pools that need this kind of tunnel on a
// node with these labels.
func (s *settings) tunnelPools(kind TunnelKind, nodeLabels map[string]string) map[string]bool {
	names := map[string]bool{}
	for _, p := range s.pools {
		if p.enabled() && p.allows(api.UseTunnel) && kind.uses(p) &&
			familyOf(p.cidr.Addr()) == kind.family() && p.node.Match(nodeLabels) {
			names[p.name] = true
		}
	}
	return names
}
