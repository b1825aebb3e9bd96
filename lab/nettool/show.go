package nettool

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses writes the interfaces of the current network namespace in the form
// of `ip addr`. device "" means all.
func Addresses(out io.Writer, device string) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	found := false
	for _, l := range links {
		if device != "" && l.Attrs().Name != device {
			continue
		}
		found = true
		addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
		}
		if _, err := io.WriteString(out, formatLink(l, names, addrs)); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("there is no interface %q", device)
	}
	return nil
}

func formatLink(l netlink.Link, names map[int]string, addrs []netlink.Addr) string {
	a := l.Attrs()
	var b strings.Builder
	fmt.Fprintf(&b, "%d: %s", a.Index, a.Name)
	if a.ParentIndex != 0 && a.ParentIndex != a.Index {
		// The number belongs to another namespace when that namespace has an id.
		if name := names[a.ParentIndex]; name != "" && a.NetNsID < 0 {
			b.WriteString("@" + name)
		} else {
			fmt.Fprintf(&b, "@if%d", a.ParentIndex)
		}
	}
	fmt.Fprintf(&b, ": <%s> mtu %d", linkFlags(a), a.MTU)
	if a.MasterIndex != 0 {
		fmt.Fprintf(&b, " master %s", nameOf(names, a.MasterIndex))
	}
	fmt.Fprintf(&b, " state %s\n", strings.ToUpper(a.OperState.String()))
	if len(a.HardwareAddr) > 0 {
		fmt.Fprintf(&b, "    link/%s %s\n", linkType(a), a.HardwareAddr)
	} else {
		fmt.Fprintf(&b, "    link/%s\n", linkType(a))
	}
	for _, addr := range addrs {
		b.WriteString("    " + formatAddr(addr) + "\n")
	}
	return b.String()
}

func linkType(a *netlink.LinkAttrs) string {
	if a.EncapType == "" {
		return "none"
	}
	return a.EncapType
}

func nameOf(names map[int]string, index int) string {
	if n, ok := names[index]; ok {
		return n
	}
	return fmt.Sprintf("if%d", index)
}

func linkFlags(a *netlink.LinkAttrs) string {
	var words []string
	for _, f := range []struct {
		bit  uint32
		word string
	}{
		{unix.IFF_LOOPBACK, "LOOPBACK"},
		{unix.IFF_BROADCAST, "BROADCAST"},
		{unix.IFF_POINTOPOINT, "POINTOPOINT"},
		{unix.IFF_MULTICAST, "MULTICAST"},
		{unix.IFF_NOARP, "NOARP"},
		{unix.IFF_UP, "UP"},
		{unix.IFF_LOWER_UP, "LOWER_UP"},
	} {
		if a.RawFlags&f.bit != 0 {
			words = append(words, f.word)
		}
	}
	return strings.Join(words, ",")
}

func formatAddr(a netlink.Addr) string {
	p, ok := prefixOf(a.IPNet)
	if !ok {
		return "inet ?"
	}
	word := "inet"
	if p.Addr().Is6() {
		word = "inet6"
	}
	s := fmt.Sprintf("%s %s scope %s", word, p, netlink.Scope(a.Scope))
	if a.Scope == int(netlink.SCOPE_UNIVERSE) {
		s = fmt.Sprintf("%s %s scope global", word, p)
	}
	if a.Label != "" {
		s += " " + a.Label
	}
	return s
}

// prefixOf converts at the edge from netlink; host bits are kept.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones), true
}

// Routes writes the main table of the current network namespace in the form of
// `ip route` (`ip -6 route` with v6), sorted by destination.
func Routes(out io.Writer, v6 bool) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	family := netlink.FAMILY_V4
	if v6 {
		family = netlink.FAMILY_V6
	}
	routes, err := h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	links, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	slices.SortStableFunc(routes, func(a, b netlink.Route) int { return routeDst(a).Compare(routeDst(b)) })
	for _, r := range routes {
		if _, err := fmt.Fprintln(out, FormatRoute(r, names)); err != nil {
			return err
		}
	}
	return nil
}

func routeDst(r netlink.Route) netip.Prefix {
	if p, ok := prefixOf(r.Dst); ok {
		return p
	}
	if r.Family == netlink.FAMILY_V6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// FormatRoute is one line of `ip route`; names are the interfaces by index.
func FormatRoute(r netlink.Route, names map[int]string) string {
	var b strings.Builder
	if word := routeTypes[r.Type]; word != "" {
		b.WriteString(word + " ")
	}
	dst := routeDst(r)
	switch {
	case dst.Bits() == 0:
		b.WriteString("default")
	case dst.IsSingleIP():
		b.WriteString(dst.Addr().String())
	default:
		b.WriteString(dst.String())
	}
	b.WriteString(nextHop(r.Gw, r.LinkIndex, r.Flags, names))
	if p := r.Protocol.String(); r.Protocol != unix.RTPROT_BOOT {
		b.WriteString(" proto " + p)
	}
	if r.Scope == netlink.SCOPE_LINK || r.Scope == netlink.SCOPE_HOST {
		b.WriteString(" scope " + r.Scope.String())
	}
	if src, ok := netip.AddrFromSlice(r.Src); ok {
		b.WriteString(" src " + src.Unmap().String())
	}
	if r.Priority != 0 {
		fmt.Fprintf(&b, " metric %d", r.Priority)
	}
	if r.MTU != 0 {
		fmt.Fprintf(&b, " mtu %d", r.MTU)
	}
	for _, hop := range r.MultiPath {
		fmt.Fprintf(&b, "\n\tnexthop%s weight %d", nextHop(hop.Gw, hop.LinkIndex, hop.Flags, names), hop.Hops+1)
	}
	return b.String()
}

// routeTypes are the words before the destination (rtnetlink(7)).
var routeTypes = map[int]string{
	unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit",
	unix.RTN_THROW: "throw", unix.RTN_LOCAL: "local", unix.RTN_BROADCAST: "broadcast",
}

func nextHop(gw net.IP, link, flags int, names map[int]string) string {
	var b strings.Builder
	if a, ok := netip.AddrFromSlice(gw); ok {
		b.WriteString(" via " + a.Unmap().String())
	}
	if link != 0 {
		b.WriteString(" dev " + nameOf(names, link))
	}
	if flags&unix.RTNH_F_ONLINK != 0 {
		b.WriteString(" onlink")
	}
	if flags&unix.RTNH_F_LINKDOWN != 0 {
		b.WriteString(" linkdown")
	}
	return b.String()
}
