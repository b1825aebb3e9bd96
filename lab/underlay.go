package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// buildUnderlay makes the bridges and plugs routers and hosts in. Every link
// is made in the switch's namespace with its far end already in the member's,
// so nothing passes through the root namespace.
func (l *Lab) buildUnderlay(ctx context.Context) error {
	switches := map[string]*netlink.Handle{}
	defer func() {
		for _, h := range switches {
			h.Close()
		}
	}()
	index := firstPortIndex
	for _, sw := range l.plan.Switches {
		h, err := l.netlinkAt(sw.Subnet)
		if err != nil {
			return err
		}
		switches[sw.Subnet] = h
		l.cfg.Step("switch " + sw.Subnet)
		if err := buildSwitch(h, sw); err != nil {
			return fmt.Errorf("build switch %s: %w", sw.Subnet, err)
		}
	}
	for _, nodes := range [][]NodePlan{l.plan.Routers, l.plan.Hosts} {
		for _, n := range nodes {
			l.cfg.Step("link " + n.Name)
			if err := l.plugIn(n, switches, index); err != nil {
				return fmt.Errorf("plug in %s: %w", n.Name, err)
			}
			index += len(n.Ports)
		}
	}
	for name, h := range switches {
		if err := waitForwarding(ctx, h); err != nil {
			return fmt.Errorf("build switch %s: %w", name, err)
		}
	}
	return nil
}

// firstPortIndex is where interface indexes of switch ports start. A veth whose
// two ends happen to have the same index looks to the kernel like a device
// without a peer, and it then reports the carrier only once a second
// (linkwatch_urgent_event): the port would drop everything that long.
const firstPortIndex = 1000

// waitForwarding waits until every port of a switch has its carrier.
func waitForwarding(ctx context.Context, h *netlink.Handle) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		links, err := h.LinkList()
		if err != nil {
			return fmt.Errorf("list ports: %w", err)
		}
		i := slices.IndexFunc(links, func(l netlink.Link) bool {
			return l.Attrs().MasterIndex != 0 && l.Attrs().OperState != netlink.OperUp
		})
		if i < 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the carrier of port %s: %w", links[i].Attrs().Name, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// netlinkAt opens a netlink socket in a member's network namespace.
func (l *Lab) netlinkAt(member string) (*netlink.Handle, error) {
	p, err := l.pause(member)
	if err != nil {
		return nil, err
	}
	fd, err := netns.GetFromPid(p.PID)
	if err != nil {
		return nil, fmt.Errorf("open namespace of %s: %w", member, err)
	}
	defer fd.Close()
	h, err := netlink.NewHandleAt(fd, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in %s: %w", member, err)
	}
	return h, nil
}

func buildSwitch(h *netlink.Handle, sw SwitchPlan) error {
	snooping := false // would swallow neighbour discovery: there is no querier
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = bridgeName, sw.MTU
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := h.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	if err := addAddresses(h, bridge, sw.Gateways); err != nil {
		return err
	}
	return h.LinkSetUp(bridge)
}

// plugIn connects all ports of a node; index is free for the first switch port.
func (l *Lab) plugIn(n NodePlan, switches map[string]*netlink.Handle, index int) error {
	p, err := l.pause(n.Name)
	if err != nil {
		return err
	}
	inside, err := netns.GetFromPid(p.PID)
	if err != nil {
		return err
	}
	defer inside.Close()
	h, err := netlink.NewHandleAt(inside, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	for i, port := range n.Ports {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.Index = n.Name, port.MTU, index+i
		if err := connect(switches[port.Subnet], h, inside, attrs, port); err != nil {
			return fmt.Errorf("%s: %w", port.Device, err)
		}
	}
	for _, r := range n.Routes {
		if err := h.RouteAdd(&netlink.Route{Dst: ipNet(r.Dst), Gw: r.Via.AsSlice()}); err != nil {
			return fmt.Errorf("add route %s via %s: %w", r.Dst, r.Via, err)
		}
	}
	return nil
}

// connect makes one veth pair: attrs on the switch, port.Device inside.
func connect(sw, in *netlink.Handle, inside netns.NsHandle, attrs netlink.LinkAttrs, port Port) error {
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: port.Device, PeerMTU: uint32(port.MTU),
		PeerHardwareAddr: port.MAC, PeerNamespace: netlink.NsFd(inside),
	}
	if err := sw.LinkAdd(veth); err != nil {
		return fmt.Errorf("add link: %w", err)
	}
	bridge, err := sw.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	end, err := sw.LinkByName(attrs.Name)
	if err != nil {
		return err
	}
	if err := errors.Join(sw.LinkSetMaster(end, bridge), sw.LinkSetUp(end)); err != nil {
		return err
	}
	dev, err := in.LinkByName(port.Device)
	if err != nil {
		return err
	}
	if err := addAddresses(in, dev, port.Addresses); err != nil {
		return err
	}
	return in.LinkSetUp(dev)
}

func addAddresses(h *netlink.Handle, link netlink.Link, list []netip.Prefix) error {
	for _, p := range list {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		} else {
			addr.Broadcast = net.IP(lastAddr(p.Masked()).AsSlice())
		}
		if err := h.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	return nil
}

// ipNet converts at the edge to netlink; host bits are kept.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
