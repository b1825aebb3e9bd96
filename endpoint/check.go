package endpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// Check reports, as ErrBroken, the first thing of an attachment that is not as Attach made it: the endpoint, the
// addresses in IPAM, the pair, the container's addresses and routes, the host's routes. want are the addresses that
// the caller was given; empty for any.
func (m *Manager) Check(ctx context.Context, id ID, netns *os.File, want []netip.Prefix) error {
	if err := checkNetns(netns, m.host.id); err != nil {
		return fmt.Errorf("check %s: %w: %w", id, ErrInvalid, err)
	}
	unlock, err := m.locks.lock(ctx, id.hostName(m.Prefix))
	if err != nil {
		return fmt.Errorf("check %s: %w", id, err)
	}
	defer unlock()
	if err := m.check(ctx, id, netns, want); err != nil {
		return fmt.Errorf("check %s: %w", id, err)
	}
	return nil
}

func (m *Manager) check(ctx context.Context, id ID, netns *os.File, want []netip.Prefix) error {
	own := id.endpoint(m.Node, id.hostName(m.Prefix))
	w, err := m.weps.Get(ctx, own.Namespace, own.Name)
	if errors.Is(err, datastore.ErrNotFound) {
		return fmt.Errorf("%w: endpoint %s/%s is not in the datastore", ErrBroken, own.Namespace, own.Name)
	}
	if err != nil {
		return err
	}
	if w.Spec.ContainerID != id.ContainerID {
		return fmt.Errorf("%w: endpoint %s/%s is of container %s", ErrBroken, w.Namespace, w.Name, w.Spec.ContainerID)
	}
	have, err := addresses(w)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
	for _, p := range want {
		if !slices.Contains(have, p) {
			return fmt.Errorf("%w: endpoint %s/%s does not have %s", ErrBroken, w.Namespace, w.Name, p)
		}
	}
	if err := m.checkAssigned(ctx, id, have); err != nil {
		return err
	}
	if err := m.checkKernel(netns, id.IfName, w); err != nil {
		return err
	}
	return m.host.checkRoutes(w.Spec.InterfaceName, have)
}

// checkAssigned compares with IPAM.
func (m *Manager) checkAssigned(ctx context.Context, id ID, have []netip.Prefix) error {
	assigned, err := m.IPAM.Client().ByHandle(ctx, id.handle())
	if err == nil && len(assigned) == 0 && id.handle() != id.firstHandle() {
		assigned, err = m.IPAM.Client().ByHandle(ctx, id.firstHandle())
	}
	if err != nil {
		return err
	}
	for _, p := range have {
		if !slices.Contains(assigned, p.Addr()) {
			return fmt.Errorf("%w: address %s is not assigned to handle %s", ErrBroken, p.Addr(), id.handle())
		}
	}
	return nil
}

// checkKernel compares the pair and the container's side with the endpoint.
func (m *Manager) checkKernel(netns *os.File, ifName string, w *api.WorkloadEndpoint) error {
	outer, err := m.host.link(w.Spec.InterfaceName)
	if err != nil {
		return fmt.Errorf("%w: host interface %s: %w", ErrBroken, w.Spec.InterfaceName, err)
	}
	if outer.Type() != "veth" || outer.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("%w: host interface %s is a %s, flags %s", ErrBroken, w.Spec.InterfaceName, outer.Type(), outer.Attrs().Flags)
	}
	var handle *netlink.Handle
	err = visit(netns, m.host.home, func() (err error) {
		handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("open netlink in container: %w", err)
	}
	defer handle.Close()
	link, err := handle.LinkByName(ifName)
	if err != nil {
		return fmt.Errorf("%w: interface %s in the container: %w", ErrBroken, ifName, err)
	}
	attrs := link.Attrs()
	mac, _ := net.ParseMAC(w.Spec.MAC)
	switch {
	// The kernel gives each end the other's index as its parent.
	case attrs.ParentIndex != outer.Attrs().Index || outer.Attrs().ParentIndex != attrs.Index:
		return fmt.Errorf("%w: %s in the container is not joined to %s", ErrBroken, ifName, w.Spec.InterfaceName)
	case attrs.Flags&net.FlagUp == 0:
		return fmt.Errorf("%w: %s in the container is down", ErrBroken, ifName)
	case !bytes.Equal(attrs.HardwareAddr, mac):
		return fmt.Errorf("%w: %s in the container has hardware address %s, not %s", ErrBroken, ifName, attrs.HardwareAddr, mac)
	}
	addrs, err := addresses(w)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
	return checkInside(handle, link, addrs)
}

// checkInside compares addresses and routes of the container.
func checkInside(handle *netlink.Handle, link netlink.Link, want []netip.Prefix) error {
	have, err := handle.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses in container: %w", err)
	}
	for _, p := range want {
		if !slices.ContainsFunc(have, func(a netlink.Addr) bool { return fromIPNet(a.IPNet) == p }) {
			return fmt.Errorf("%w: the container does not have address %s", ErrBroken, p)
		}
	}
	routes, err := handle.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list routes in container: %w", err)
	}
	for _, r := range containerRoutes(0, want) {
		if !slices.ContainsFunc(routes, func(x netlink.Route) bool { return fromKernel(x) == fromKernel(r) }) {
			return fmt.Errorf("%w: the container does not have route %s", ErrBroken, fromKernel(r).Dst)
		}
	}
	return nil
}

// checkRoutes looks for the host's routes to the container.
func (h *host) checkRoutes(hostName string, want []netip.Prefix) error {
	link, err := h.link(hostName)
	if err != nil {
		return fmt.Errorf("%w: host interface %s: %w", ErrBroken, hostName, err)
	}
	var routes []netlink.Route
	err = h.with(func(nl *netlink.Handle) (err error) {
		routes, err = nl.RouteList(link, netlink.FAMILY_ALL)
		return err
	})
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", hostName, err)
	}
	for _, p := range want {
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return fromIPNet(r.Dst) == p }) {
			return fmt.Errorf("%w: the host has no route to %s through %s", ErrBroken, p, hostName)
		}
	}
	return nil
}

// fromIPNet is the inverse of ipNet; the zero prefix for nil.
func fromIPNet(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	if !ok {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a.Unmap(), ones)
}

// fromKernel reduces a route to destination and gateway. The kernel's dump has no destination for a default route.
func fromKernel(r netlink.Route) Route {
	out := Route{Dst: fromIPNet(r.Dst)}
	if gw, ok := netip.AddrFromSlice(r.Gw); ok {
		out.Gateway = gw.Unmap()
	}
	if !out.Dst.IsValid() {
		out.Dst = default4
		if out.Gateway.Is6() {
			out.Dst = default6
		}
	}
	return out
}

// missing is what alias returns for an interface that is not there; no alias can hold a zero byte.
const missing = "\x00"

// alias is the alias of a host interface.
func (h *host) alias(name string) (string, error) {
	link, err := h.link(name)
	if notFound(err) {
		return missing, nil
	}
	if err != nil {
		return "", fmt.Errorf("find interface %s: %w", name, err)
	}
	return link.Attrs().Alias, nil
}

// removeIf removes a host interface if it has the alias.
func (h *host) removeIf(name, alias string) error {
	have, err := h.alias(name)
	if err != nil || have != alias {
		return err
	}
	return h.removeLink(name)
}

// ourLinks are the host interfaces with an alias of ours: name to alias.
func (m *Manager) ourLinks() (map[string]string, error) {
	var links []netlink.Link
	err := m.host.with(func(nl *netlink.Handle) (err error) {
		links, err = nl.LinkList()
		return err
	})
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // an incomplete list is completed by the next call
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	ours := map[string]string{}
	for _, l := range links {
		if a := l.Attrs(); l.Type() == "veth" && strings.HasPrefix(a.Alias, aliasPrefix) {
			ours[a.Name] = a.Alias
		}
	}
	return ours, nil
}
