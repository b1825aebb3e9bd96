// Package links reads the interfaces of a network namespace: their addresses for finding a node's own, their MTU for
// computing that of workloads. It changes nothing.
package links

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Interface is one network interface.
type Interface struct {
	Name  string
	Index int
	MTU   int  // bytes
	Up    bool // administratively
	MAC   net.HardwareAddr
	Addrs []netip.Prefix // address with the length of its subnet; usual ones first, then deprecated and temporary ones
}

// maxListings bounds how often a listing is repeated that the kernel says was interrupted by a change.
const maxListings = 5

// List is all interfaces in the order of their index; a nil handle means the namespace of the calling thread. Addresses
// that lost duplicate address detection are left out: they are somebody else's.
func List(h *netlink.Handle) ([]Interface, error) {
	h = orCurrent(h)
	links, err := listing(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := listing(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	slices.SortStableFunc(addrs, func(a, b netlink.Addr) int { return rank(a) - rank(b) })

	list := make([]Interface, 0, len(links))
	for _, l := range links {
		at := l.Attrs()
		i := Interface{Name: at.Name, Index: at.Index, MTU: at.MTU, Up: at.RawFlags&unix.IFF_UP != 0, MAC: at.HardwareAddr}
		for _, a := range addrs {
			if p, ok := prefix(a); ok && a.LinkIndex == at.Index {
				i.Addrs = append(i.Addrs, p)
			}
		}
		list = append(list, i)
	}
	slices.SortFunc(list, func(a, b Interface) int { return a.Index - b.Index })
	return list, nil
}

// orCurrent: the zero handle opens a socket for every request, on the thread that makes it.
func orCurrent(h *netlink.Handle) *netlink.Handle {
	if h == nil {
		return &netlink.Handle{}
	}
	return h
}

func listing[T any](list func() ([]T, error)) (got []T, err error) {
	for range maxListings {
		got, err = list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return got, err
}

// rank puts addresses last that the kernel would rather not use for new connections (RFC 4862 §5.5.4, RFC 8981).
func rank(a netlink.Addr) int {
	switch {
	case a.Flags&unix.IFA_F_DEPRECATED != 0:
		return 2
	case a.Flags&unix.IFA_F_TEMPORARY != 0 && a.IP.To4() == nil: // in IPv4 the same bit means "secondary"
		return 1
	}
	return 0
}

func prefix(a netlink.Addr) (netip.Prefix, bool) {
	if a.IPNet == nil || a.Flags&unix.IFA_F_DADFAILED != 0 {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(a.IP)
	ones, _ := a.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones), ok
}

// Towards asks the kernel how it would reach an address: by which interface and with which source address. A nil handle
// means the namespace of the calling thread.
func Towards(h *netlink.Handle, dst netip.Addr) (iface string, src netip.Addr, err error) {
	h = orCurrent(h)
	routes, err := h.RouteGet(dst.Unmap().AsSlice())
	if err != nil {
		return "", src, fmt.Errorf("find route to %s: %w", dst, err)
	}
	for _, r := range routes {
		if r.LinkIndex == 0 {
			continue
		}
		link, err := h.LinkByIndex(r.LinkIndex)
		if err != nil {
			return "", src, fmt.Errorf("find interface %d of route to %s: %w", r.LinkIndex, dst, err)
		}
		src, _ = netip.AddrFromSlice(r.Src)
		return link.Attrs().Name, src.Unmap(), nil
	}
	return "", src, fmt.Errorf("find route to %s: %w", dst, unix.ENETUNREACH)
}
