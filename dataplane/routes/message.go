package routes

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// attribute is one attribute of a netlink message (netlink(7), struct rtattr).
type attribute struct {
	kind  uint16
	value []byte
}

// attributes splits the part of a message that follows its header. The library's function for that panics on a message
// that is cut short.
func attributes(data []byte) ([]attribute, error) {
	var attrs []attribute
	for len(data) >= unix.SizeofRtAttr {
		size := int(nl.NativeEndian().Uint16(data))
		if size < unix.SizeofRtAttr || size > len(data) {
			return nil, fmt.Errorf("netlink attribute of %d bytes in %d", size, len(data))
		}
		attrs = append(attrs, attribute{nl.NativeEndian().Uint16(data[2:]) & nl.NLA_TYPE_MASK, data[unix.SizeofRtAttr:size]})
		data = data[min(len(data), align(size)):]
	}
	return attrs, nil
}

// align rounds up to the next multiple of four: attributes begin there.
func align(size int) int { return (size + unix.RTA_ALIGNTO - 1) &^ (unix.RTA_ALIGNTO - 1) }

// parseRoute reads a route notification (rtnetlink(7), RTM_NEWROUTE and RTM_DELROUTE) as far as keyOf, valueOf and ours
// look at it. The library reads such messages only on goroutines and channels of its own.
func parseRoute(data []byte) (netlink.Route, error) {
	if len(data) < unix.SizeofRtMsg {
		return netlink.Route{}, fmt.Errorf("route message of %d bytes: must be at least %d", len(data), unix.SizeofRtMsg)
	}
	msg := nl.DeserializeRtMsg(data)
	attrs, err := attributes(data[unix.SizeofRtMsg:])
	if err != nil {
		return netlink.Route{}, fmt.Errorf("route message: %w", err)
	}
	r := netlink.Route{
		Family: int(msg.Family), Table: int(msg.Table), Type: int(msg.Type), Tos: int(msg.Tos), Flags: int(msg.Flags),
		Protocol: netlink.RouteProtocol(msg.Protocol), Scope: netlink.Scope(msg.Scope),
	}
	size := net.IPv4len
	if msg.Family == unix.AF_INET6 {
		size = net.IPv6len
	}
	if int(msg.Dst_len) > 8*size {
		return r, fmt.Errorf("route message: prefix of %d bits", msg.Dst_len)
	}
	r.Dst = &net.IPNet{IP: make(net.IP, size), Mask: net.CIDRMask(int(msg.Dst_len), 8*size)}
	for _, attr := range attrs {
		if err := parseRouteAttr(&r, attr.kind, attr.value); err != nil {
			return r, err
		}
	}
	return r, nil
}

func parseRouteAttr(r *netlink.Route, kind uint16, value []byte) error {
	number := func(to *int) error {
		if len(value) < 4 {
			return fmt.Errorf("route message: attribute %d of %d bytes: must be 4", kind, len(value))
		}
		*to = int(nl.NativeEndian().Uint32(value))
		return nil
	}
	switch kind {
	case unix.RTA_DST:
		if len(value) != len(r.Dst.IP) {
			return fmt.Errorf("route message: destination of %d bytes: must be %d", len(value), len(r.Dst.IP))
		}
		r.Dst.IP = value
	case unix.RTA_GATEWAY:
		r.Gw = value
	case unix.RTA_PREFSRC:
		r.Src = value
	case unix.RTA_OIF:
		return number(&r.LinkIndex)
	case unix.RTA_PRIORITY:
		return number(&r.Priority)
	case unix.RTA_TABLE:
		return number(&r.Table)
	case unix.RTA_METRICS:
		return parseMetrics(r, value)
	case unix.RTA_MULTIPATH:
		r.MultiPath = []*netlink.NexthopInfo{}
		return parseNextHops(r, value)
	case unix.RTA_ENCAP:
		r.Encap = &netlink.MPLSEncap{}
	case unix.RTA_VIA:
		r.Via = parseVia(value)
	}
	return nil
}

// parseVia reads a gateway of another family (struct rtvia: the family, then the address).
func parseVia(value []byte) *netlink.Via {
	if len(value) < 2 {
		return &netlink.Via{}
	}
	return &netlink.Via{AddrFamily: int(nl.NativeEndian().Uint16(value)), Addr: value[2:]}
}

func parseMetrics(r *netlink.Route, value []byte) error {
	metrics, err := attributes(value)
	if err != nil {
		return fmt.Errorf("route message: metrics: %w", err)
	}
	for _, m := range metrics {
		if m.kind == unix.RTAX_MTU && len(m.value) >= 4 {
			r.MTU = int(nl.NativeEndian().Uint32(m.value))
		}
	}
	return nil
}

func parseNextHops(r *netlink.Route, value []byte) error {
	for len(value) > 0 {
		if len(value) < unix.SizeofRtNexthop {
			return fmt.Errorf("route message: next hop of %d bytes", len(value))
		}
		hop := nl.DeserializeRtNexthop(value)
		size := align(int(hop.RtNexthop.Len))
		if size < unix.SizeofRtNexthop || size > len(value) {
			return fmt.Errorf("route message: next hop of %d bytes in %d", size, len(value))
		}
		info := &netlink.NexthopInfo{LinkIndex: int(hop.Ifindex), Hops: int(hop.Hops), Flags: int(hop.Flags)}
		attrs, err := attributes(value[unix.SizeofRtNexthop:min(int(hop.RtNexthop.Len), size)])
		if err != nil {
			return fmt.Errorf("route message: next hop: %w", err)
		}
		for _, attr := range attrs {
			switch attr.kind {
			case unix.RTA_GATEWAY:
				info.Gw = attr.value
			case unix.RTA_VIA:
				info.Via = parseVia(attr.value)
			case unix.RTA_ENCAP:
				info.Encap = &netlink.MPLSEncap{}
			case unix.RTA_NEWDST:
				info.NewDst = &netlink.MPLSDestination{}
			}
		}
		r.MultiPath = append(r.MultiPath, info)
		value = value[size:]
	}
	return nil
}
