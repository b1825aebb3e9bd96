package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// buildUnderlay makes the bridges and plugs routers and hosts in. Every link
// is made in the switch's namespace with its far end already in the member's,
// so nothing passes through the root namespace.
func (l *Lab) buildUnderlay(context.Context) error {
	switches := map[string]*netlink.Handle{}
	defer func() {
		for _, h := range switches {
			h.Close()
		}
	}()
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
			if err := l.plugIn(n, switches); err != nil {
				return fmt.Errorf("plug in %s: %w", n.Name, err)
			}
		}
	}
	return nil
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

func (l *Lab) plugIn(n NodePlan, switches map[string]*netlink.Handle) error {
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
	for _, port := range n.Ports {
		if err := connect(switches[port.Subnet], h, inside, n.Name, port); err != nil {
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

// connect makes one veth pair: port NAME on the switch, port.Device inside.
func connect(sw, in *netlink.Handle, inside netns.NsHandle, name string, port Port) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, port.MTU
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
	end, err := sw.LinkByName(name)
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
