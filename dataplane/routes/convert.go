package routes

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
)

// keyOf is the key of a kernel route; false for one without a destination of either family.
func keyOf(r netlink.Route) (desired.RouteKey, bool) {
	if r.Dst == nil {
		return desired.RouteKey{}, false
	}
	addr, ok := netip.AddrFromSlice(r.Dst.IP)
	if !ok {
		return desired.RouteKey{}, false
	}
	if r.Family == unix.AF_INET {
		addr = addr.Unmap()
	}
	ones, _ := r.Dst.Mask.Size()
	return desired.RouteKey{Table: r.Table, Dst: netip.PrefixFrom(addr, ones), Priority: uint32(r.Priority)}, true
}

// valueOf is a kernel route as a desired one; Other for every shape that Put does not write.
func valueOf(r netlink.Route, dev string) desired.Route {
	v := desired.Route{Proto: int(r.Protocol)}
	switch {
	case len(r.MultiPath) > 0 || r.Encap != nil || r.Via != nil || r.Tos != 0:
		v.Type = desired.Other
	case r.Type == unix.RTN_BLACKHOLE:
		v.Type = desired.Blackhole // an IPv6 one names lo, which says nothing
	case r.Type != unix.RTN_UNICAST:
		v.Type = desired.Other
	default:
		v.Gateway, v.Src = fromIP(r.Gw), fromIP(r.Src)
		v.Dev, v.MTU = dev, r.MTU
		v.Onlink = r.Flags&unix.RTNH_F_ONLINK != 0
		v.LinkScope = r.Family == unix.AF_INET && r.Scope == netlink.SCOPE_LINK
	}
	return v
}

// kernelRoute is what Put writes.
func kernelRoute(k desired.RouteKey, v desired.Route, linkIndex int) *netlink.Route {
	r := &netlink.Route{
		Dst:       toIPNet(k.Dst),
		Table:     k.Table,
		Priority:  int(k.Priority),
		Protocol:  netlink.RouteProtocol(v.Proto),
		Type:      unix.RTN_UNICAST,
		LinkIndex: linkIndex,
		Gw:        toIP(v.Gateway),
		Src:       toIP(v.Src),
		MTU:       v.MTU,
		Family:    unix.AF_INET,
	}
	if k.Dst.Addr().Is6() {
		r.Family = unix.AF_INET6
	}
	if v.Type == desired.Blackhole {
		r.Type = unix.RTN_BLACKHOLE
	}
	if v.Onlink {
		r.Flags |= unix.RTNH_F_ONLINK
	}
	if v.LinkScope {
		r.Scope = netlink.SCOPE_LINK
	}
	return r
}

func fromIP(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip) // nil gives the invalid address: not set
	return a.Unmap()
}

func toIP(a netip.Addr) net.IP {
	if !a.IsValid() {
		return nil
	}
	return a.AsSlice()
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
