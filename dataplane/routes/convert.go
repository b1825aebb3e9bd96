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

// valueOf is a kernel route as a desired one; Other for every shape that Put does not write. names gives the interface
// names of its next hops.
func valueOf(r netlink.Route, names []string) desired.Route {
	v := desired.Route{Proto: int(r.Protocol)}
	switch {
	case r.Encap != nil || r.Tos != 0:
		v.Type = desired.Other
	case len(r.MultiPath) > 0:
		multipathOf(&v, r, names)
	case r.Type == unix.RTN_BLACKHOLE:
		v.Type = desired.Blackhole // an IPv6 one names lo, which says nothing
	case r.Type == unix.RTN_LOCAL:
		v.Type = desired.Local
	case r.Type != unix.RTN_UNICAST:
		v.Type = desired.Other
	default:
		gateway, ok := gatewayOf(r.Gw, r.Via)
		if !ok {
			return desired.Route{Type: desired.Other, Proto: int(r.Protocol)}
		}
		v.Gateway, v.Src = gateway, fromIP(r.Src)
		v.MTU = r.MTU
		if len(names) == 1 {
			v.Dev = names[0]
		}
		v.Onlink = r.Flags&unix.RTNH_F_ONLINK != 0
		v.LinkScope = r.Family == unix.AF_INET && r.Scope == netlink.SCOPE_LINK
	}
	return v
}

// multipathOf fills in several next hops. The kernel keeps those whose interface is down and marks them dead; they are
// of the route all the same.
func multipathOf(v *desired.Route, r netlink.Route, names []string) {
	hops := make([]desired.NextHop, 0, len(r.MultiPath))
	for i, nh := range r.MultiPath {
		gateway, ok := gatewayOf(nh.Gw, nh.Via)
		if !ok || !gateway.IsValid() || nh.Hops != 0 || nh.Encap != nil || nh.NewDst != nil || r.Type != unix.RTN_UNICAST {
			*v = desired.Route{Type: desired.Other, Proto: int(r.Protocol)}
			return
		}
		hops = append(hops, desired.NextHop{Gateway: gateway, Dev: names[i], Onlink: nh.Flags&unix.RTNH_F_ONLINK != 0})
	}
	*v = v.Via(desired.NewNextHops(hops...))
	v.Src, v.MTU = fromIP(r.Src), r.MTU
}

// gatewayOf is the gateway of either kind: RTA_GATEWAY of the route's own family, or RTA_VIA of another one. It is
// false for a family that Put does not write.
func gatewayOf(gw net.IP, via netlink.Destination) (netip.Addr, bool) {
	if via == nil {
		return fromIP(gw), true
	}
	v, ok := via.(*netlink.Via)
	if !ok || v.AddrFamily != unix.AF_INET6 {
		return netip.Addr{}, false
	}
	a, ok := netip.AddrFromSlice(v.Addr)
	return a, ok
}

// loopback is the device of a local route: the kernel accepts no other.
const loopback = "lo"

// kernelRoute is what Put writes; index has the interfaces by name.
func kernelRoute(k desired.RouteKey, v desired.Route, index map[string]int) *netlink.Route {
	r := &netlink.Route{
		Dst:      toIPNet(k.Dst),
		Table:    k.Table,
		Priority: int(k.Priority),
		Protocol: netlink.RouteProtocol(v.Proto),
		Type:     unix.RTN_UNICAST,
		Src:      toIP(v.Src),
		MTU:      v.MTU,
		Family:   unix.AF_INET,
	}
	setHops(r, k, v, index)
	if k.Dst.Addr().Is6() {
		r.Family = unix.AF_INET6
	}
	if v.Type == desired.Blackhole {
		r.Type = unix.RTN_BLACKHOLE
	}
	if v.Type == desired.Local { // the kernel accepts no wider scope
		r.Type, r.Scope, r.LinkIndex = unix.RTN_LOCAL, netlink.SCOPE_HOST, index[loopback]
	}
	if v.LinkScope {
		r.Scope = netlink.SCOPE_LINK
	}
	return r
}

// setHops writes one next hop into the route itself and several into its list.
func setHops(r *netlink.Route, k desired.RouteKey, v desired.Route, index map[string]int) {
	hops := v.Hops()
	for _, h := range hops {
		flags := 0
		if h.Onlink {
			flags = unix.RTNH_F_ONLINK
		}
		var gw net.IP
		var via netlink.Destination
		if h.Gateway.Is6() && k.Dst.Addr().Is4() {
			via = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: toIP(h.Gateway)}
		} else {
			gw = toIP(h.Gateway)
		}
		if len(hops) > 1 {
			r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{LinkIndex: index[h.Dev], Gw: gw, Via: via, Flags: flags})
			continue
		}
		r.LinkIndex, r.Gw, r.Via = index[h.Dev], gw, via
		r.Flags |= flags
	}
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
