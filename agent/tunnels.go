package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/ipam"
)

const (
	// tunnelGrace is how long a tunnel stays after the last pool that used it has
	// changed: other hosts may not have heard of it yet and still send through it.
	tunnelGrace = 10 * time.Second
	// tunnelCheck is how often an address is compared with IPAM without a reason.
	tunnelCheck = 90 * time.Second
	// tunnelTick bounds how late the end of a grace and a new attempt come.
	tunnelTick = time.Second
)

// tunnelAddress keeps the address of one tunnel device: assigned by IPAM while
// a pool asks for the tunnel, named in this host's Node, and released after.
type tunnelAddress struct {
	kind   ipam.TunnelKind
	device string
	use    func(calc.TunnelUse) calc.DeviceUse
	field  func(*api.NodeSpec) *string
	place  func(context.Context, netip.Addr) error // puts the address onto the device; an invalid one is taken off

	checked time.Time // when IPAM last said that all is as it should be
	assign  string    // the pools it said so for
	unused  time.Time // since when no pool asks for the tunnel
	clean   bool      // nothing is assigned and the Node names none
}

func tunnelAddresses() []*tunnelAddress {
	return []*tunnelAddress{
		{
			kind: ipam.TunnelVXLAN, device: desired.VXLANDevice,
			use:   func(u calc.TunnelUse) calc.DeviceUse { return u.VXLAN },
			field: func(n *api.NodeSpec) *string { return &n.IPv4VXLANTunnelAddr },
		},
		{
			kind: ipam.TunnelVXLANv6, device: desired.VXLANDevice6,
			use:   func(u calc.TunnelUse) calc.DeviceUse { return u.VXLAN6 },
			field: func(n *api.NodeSpec) *string { return &n.IPv6VXLANTunnelAddr },
		},
		{
			kind: ipam.TunnelIPIP, device: desired.IPIPDevice,
			use: func(u calc.TunnelUse) calc.DeviceUse { return u.IPIP },
			field: func(n *api.NodeSpec) *string {
				if n.BGP == nil { // then the host has no address to tunnel from either, and no device
					return new(string)
				}
				return &n.BGP.IPv4IPIPTunnelAddr
			},
		},
	}
}

// keepTunnels follows the pools: the tunnels' addresses, and the MTU file.
func (a *Agent) keepTunnels(ctx context.Context, host *ipam.Host) error {
	select {
	case <-a.pipe.synced:
	case <-ctx.Done():
		return ctx.Err()
	}
	addrs, written := tunnelAddresses(), 0
	for _, t := range addrs {
		t.place = func(ctx context.Context, addr netip.Addr) error {
			if err := a.pipe.assign(ctx, t.device, addr); err != nil || !addr.IsValid() {
				return err
			}
			return a.tables.tunnels.WaitKeys(ctx, t.device)
		}
	}
	return every(ctx, tunnelTick, a.pipe.tunnelKick, func() {
		a.pipe.mu.Lock()
		use, mtu, locked := a.pipe.state.Use, a.pipe.state.MTU, a.pipe.state.Locked
		a.pipe.mu.Unlock()
		if mtu > 0 && mtu != written && a.opts.MTUFile != "-" {
			if err := writeFile(a.opts.MTUFile, fmt.Sprint(mtu)); err != nil {
				a.opts.Log.Error("the MTU file cannot be written", "err", err)
			} else {
				written = mtu
			}
		}
		if locked {
			return
		}
		for _, t := range addrs {
			if err := a.keepTunnel(ctx, host, t, use); err != nil && ctx.Err() == nil {
				a.opts.Log.Warn("the tunnel's address cannot be brought in order, trying again", "device", t.device, "err", err)
			}
		}
	})
}

func (a *Agent) keepTunnel(ctx context.Context, host *ipam.Host, t *tunnelAddress, use calc.TunnelUse) error {
	wish := t.use(use)
	switch now := time.Now(); {
	case wish.Used:
		t.unused, t.clean = time.Time{}, false
		// Where all such pools are disabled, those workloads that are left keep the tunnel.
		if wish.Assign == "" || wish.Assign == t.assign && wish.Addr.IsValid() && now.Sub(t.checked) < tunnelCheck {
			return nil
		}
		if err := a.assignTunnel(ctx, host, t); err != nil {
			return err
		}
		t.checked, t.assign = now, wish.Assign
	case t.clean && !wish.Addr.IsValid():
	case t.unused.IsZero() && wish.Addr.IsValid():
		t.unused = now
	case now.Sub(t.unused) >= tunnelGrace:
		// A zero unused: nothing is in the Node, but an earlier agent may have died between two steps.
		if err := a.nameTunnel(ctx, t, ""); err != nil {
			return err
		}
		if err := t.place(ctx, netip.Addr{}); err != nil {
			return err
		}
		if err := host.ReleaseTunnelAddr(ctx, t.kind); err != nil {
			return err
		}
		t.clean, t.assign = true, ""
	}
	return nil
}

// assignTunnel gets the address and tells the other hosts, who then send to the
// device: so it must be there first, and have the address, since with rp_filter
// the kernel takes nothing by a device that has none (__fib_validate_source of
// net/ipv4/fib_frontend.c).
func (a *Agent) assignTunnel(ctx context.Context, host *ipam.Host, t *tunnelAddress) error {
	wait, cancel := context.WithTimeout(ctx, tunnelTick)
	defer cancel()
	if err := a.tables.tunnels.WaitKeys(wait, t.device); err != nil {
		return err
	}
	addr, err := host.EnsureTunnelAddr(ctx, ipam.TunnelRequest{Host: a.opts.Node, Kind: t.kind, NodeLabels: a.node.labels()})
	if err != nil {
		return err
	}
	if err := t.place(wait, addr); err != nil {
		return err
	}
	text := ""
	if addr.IsValid() {
		text = addr.String()
	}
	return a.nameTunnel(ctx, t, text)
}

// nameTunnel writes the address into the Node, if it is not there.
func (a *Agent) nameTunnel(ctx context.Context, t *tunnelAddress, addr string) error {
	nodes := datastore.For[api.Node](a.store)
	n, err := nodes.Get(ctx, "", a.opts.Node)
	if errors.Is(err, datastore.ErrNotFound) {
		return nil // deleted: this host takes no part
	}
	if err != nil || *t.field(&n.Spec) == addr {
		return err
	}
	_, err = nodes.Modify(ctx, "", a.opts.Node, func(n *api.Node) error {
		*t.field(&n.Spec) = addr
		return nil
	})
	if err == nil && addr != "" {
		a.opts.Log.Info("tunnel address", "device", t.device, "address", addr)
	}
	return err
}
