package trace

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/dataplane/nft"
)

// maxListings bounds how often a listing is repeated that the kernel says was
// interrupted by a change.
const maxListings = 5

func listing[T any](list func() ([]T, error)) (got []T, err error) {
	for range maxListings {
		if got, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return got, err
}

// Look reads the network namespace that the calling thread is in; the caller
// holds the thread (runtime.LockOSThread) if it is not the process's own. The
// view asks the kernel for routes until it is closed.
func Look(name string, kind Kind) (*View, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("look at %s: open netlink: %w", name, err)
	}
	v := &View{Name: name, Kind: kind, Seen: Kernel, close: h.Close}
	k := &kernel{handle: h, names: map[int]string{}}
	v.ask = k.ask
	if err := k.read(v); err != nil {
		h.Close()
		return nil, fmt.Errorf("look at %s: %w", name, err)
	}
	return v, nil
}

// InNamespace runs f on a thread of its own inside the network namespace at a
// path such as /proc/7/ns/net. The thread ends with it.
func InNamespace(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the runtime ends the thread with the goroutine
		done <- func() error {
			ns, err := os.Open(path)
			if err != nil {
				return fmt.Errorf("open network namespace: %w", err)
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", path, err)
			}
			return f()
		}()
	}()
	return <-done
}

// kernel is one namespace's netlink socket.
type kernel struct {
	handle *netlink.Handle
	names  map[int]string
}

func (k *kernel) read(v *View) error {
	links, err := listing(k.handle.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := listing(func() ([]netlink.Addr, error) { return k.handle.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, l := range links {
		k.names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		v.Links = append(v.Links, linkOf(l, addrs))
		if err := k.neighbours(v, l); err != nil {
			return err
		}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		if err := k.tables(v, family); err != nil {
			return err
		}
	}
	if v.Filters, err = filters(); err != nil {
		return err
	}
	v.NoForward4 = sysctlIs("net/ipv4/ip_forward", "0")
	v.NoForward6 = sysctlIs("net/ipv6/conf/all/forwarding", "0")
	return nil
}

func linkOf(l netlink.Link, addrs []netlink.Addr) Link {
	at := l.Attrs()
	out := Link{
		Name: at.Name, Type: l.Type(), Up: at.RawFlags&unix.IFF_UP != 0, MTU: at.MTU, MAC: at.HardwareAddr.String(),
		Carrier:  at.RawFlags&unix.IFF_LOWER_UP != 0,
		ProxyARP: sysctlIs("net/ipv4/conf/"+strings.ReplaceAll(at.Name, "/", ".")+"/proxy_arp", "1"),
	}
	for _, a := range addrs {
		if a.LinkIndex == at.Index && a.IPNet != nil {
			ones, _ := a.Mask.Size()
			out.Addrs = append(out.Addrs, netip.PrefixFrom(toAddr(a.IP), ones))
		}
	}
	out.Index = at.Index
	switch t := l.(type) {
	case *netlink.Veth:
		out.Peer = at.ParentIndex
	case *netlink.Vxlan:
		out.VNI, out.Port, out.Local = t.VxlanId, t.Port, toAddr(t.SrcAddr)
	case *netlink.Iptun:
		out.Local = toAddr(t.Local)
	}
	return out
}

func toAddr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// sysctlIs reads the value of the thread's own namespace.
func sysctlIs(name, value string) bool {
	text, err := os.ReadFile("/proc/sys/" + name)
	return err == nil && strings.TrimSpace(string(text)) == value
}

func (k *kernel) neighbours(v *View, l netlink.Link) error {
	at := l.Attrs()
	list, err := listing(func() ([]netlink.Neigh, error) { return k.handle.NeighList(at.Index, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list neighbours of %s: %w", at.Name, err)
	}
	for _, n := range list {
		if n.IP != nil && n.State != unix.NUD_NOARP {
			v.Neighbours = append(v.Neighbours, Neighbour{Dev: at.Name, Addr: toAddr(n.IP), MAC: n.HardwareAddr.String(), State: stateName(n.State)})
		}
	}
	if l.Type() != "vxlan" {
		return nil
	}
	list, err = listing(func() ([]netlink.Neigh, error) { return k.handle.NeighList(at.Index, unix.AF_BRIDGE) })
	if err != nil {
		return fmt.Errorf("list the forwarding table of %s: %w", at.Name, err)
	}
	for _, n := range list {
		v.FDB = append(v.FDB, FDBEntry{Dev: at.Name, MAC: n.HardwareAddr.String(), Dst: toAddr(n.IP)})
	}
	return nil
}

func stateName(state int) string {
	for _, s := range []struct {
		bit  int
		name string
	}{
		{unix.NUD_PERMANENT, "PERMANENT"},
		{unix.NUD_REACHABLE, "REACHABLE"},
		{unix.NUD_STALE, "STALE"},
		{unix.NUD_DELAY, "DELAY"},
		{unix.NUD_PROBE, "PROBE"},
		{unix.NUD_INCOMPLETE, "INCOMPLETE"},
		{unix.NUD_FAILED, "FAILED"},
	} {
		if state&s.bit != 0 {
			return s.name
		}
	}
	return "NONE"
}

// tables reads routes and rules of a family.
func (k *kernel) tables(v *View, family int) error {
	routes, err := listing(func() ([]netlink.Route, error) {
		return k.handle.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		v.Routes = append(v.Routes, k.route(r, family))
	}
	rules, err := listing(func() ([]netlink.Rule, error) { return k.handle.RuleList(family) })
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	for _, r := range rules {
		rule := Rule{Priority: max(r.Priority, 0), Table: r.Table, IIF: r.IifName, Mark: r.Mark, V6: family == unix.AF_INET6}
		if r.Src != nil {
			ones, _ := r.Src.Mask.Size()
			rule.From = netip.PrefixFrom(toAddr(r.Src.IP), ones)
		}
		v.Rules = append(v.Rules, rule)
	}
	slices.SortStableFunc(v.Rules, func(a, b Rule) int { return a.Priority - b.Priority })
	return nil
}

// ask is `ip route get fibmatch`: which route the kernel takes for a packet.
func (k *kernel) ask(q Query) (Route, error) {
	o := &netlink.RouteGetOptions{FIBMatch: true, Iif: q.In}
	if q.Src.IsValid() {
		o.SrcAddr = q.Src.AsSlice()
	}
	got, err := k.handle.RouteGetWithOptions(q.Dst.AsSlice(), o)
	if errors.Is(err, unix.EINVAL) && q.In == "" {
		// The source is not one of this namespace: ask without it.
		got, err = k.handle.RouteGetWithOptions(q.Dst.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	}
	if err != nil {
		return Route{}, err
	}
	if len(got) == 0 {
		return Route{}, errNoRoute
	}
	family := unix.AF_INET
	if q.Dst.Is6() {
		family = unix.AF_INET6
	}
	r := k.route(got[0], family)
	if r.Ways == "" {
		return r, nil
	}
	// The question above gives the route; without FIBMatch the kernel says which of the ways it takes.
	o.FIBMatch = false
	if taken, err := k.handle.RouteGetWithOptions(q.Dst.AsSlice(), o); err == nil && len(taken) > 0 {
		r.Gateway, r.Dev = toAddr(taken[0].Gw), k.names[taken[0].LinkIndex]
	}
	return r, nil
}

// filters are those of others that could drop.
func filters() ([]Filter, error) {
	chains, err := nft.Others()
	if err != nil {
		return nil, err
	}
	var out []Filter
	for _, c := range chains {
		if danger := c.Danger(); danger != "" {
			out = append(out, Filter{Name: c.String(), Hook: c.Hook, V4: c.Family != "ip6", V6: c.Family != "ip", What: danger})
		}
	}
	legacy, err := nft.LegacyTables()
	for _, table := range legacy {
		if strings.HasSuffix(table, " nat") {
			continue
		}
		family, _, _ := strings.Cut(table, " ")
		out = append(out, Filter{Name: table, V4: family == "ip", V6: family == "ip6", What: "is a table of the older iptables, whose rules are not looked at"})
	}
	return out, err
}

// route converts at the edge to netlink.
func (k *kernel) route(r netlink.Route, family int) Route {
	out := Route{
		Type: typeName(r.Type), Gateway: toAddr(r.Gw), Dev: k.names[r.LinkIndex], Onlink: r.Flags&unix.RTNH_F_ONLINK != 0,
		Table: r.Table, Priority: r.Priority, MTU: r.MTU,
	}
	everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if family == unix.AF_INET6 {
		everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	out.Dst = everything
	if r.Dst != nil {
		ones, _ := r.Dst.Mask.Size()
		out.Dst = netip.PrefixFrom(toAddr(r.Dst.IP), ones)
	}
	out.Line = line(out, int(r.Protocol), int(r.Scope), toAddr(r.Src))
	if len(r.MultiPath) > 0 { // the first is as good as any to follow, if the kernel is not asked
		out.Gateway, out.Dev = toAddr(r.MultiPath[0].Gw), k.names[r.MultiPath[0].LinkIndex]
		for _, hop := range r.MultiPath {
			out.Ways += way(toAddr(hop.Gw), k.names[hop.LinkIndex], hop.Hops+1, hop.Flags) + "\n"
		}
	}
	return out
}

// way prints a next hop of several.
func way(gateway netip.Addr, dev string, weight, flags int) string {
	text := "nexthop"
	if gateway.IsValid() {
		text += " via " + gateway.String()
	}
	text += fmt.Sprintf(" dev %s weight %d", dev, weight)
	if flags&unix.RTNH_F_LINKDOWN != 0 {
		text += " linkdown"
	}
	return text
}

func typeName(t int) RouteType {
	names := map[int]RouteType{
		unix.RTN_UNICAST: Unicast, unix.RTN_LOCAL: Local, unix.RTN_BLACKHOLE: Blackhole, unix.RTN_UNREACHABLE: "unreachable",
		unix.RTN_PROHIBIT: "prohibit", unix.RTN_BROADCAST: "broadcast", unix.RTN_MULTICAST: "multicast", unix.RTN_ANYCAST: "anycast",
		unix.RTN_THROW: "throw",
	}
	if name, ok := names[t]; ok {
		return name
	}
	return RouteType("type " + strconv.Itoa(t))
}

// line prints a route as ip-route(8) does.
func line(r Route, proto, scope int, src netip.Addr) string {
	var w []string
	if r.Type != Unicast {
		w = append(w, string(r.Type))
	}
	switch {
	case r.Dst.Bits() == 0:
		w = append(w, "default")
	case r.Dst.IsSingleIP():
		w = append(w, r.Dst.Addr().String())
	default:
		w = append(w, r.Dst.String())
	}
	if r.Gateway.IsValid() {
		w = append(w, "via", r.Gateway.String())
	}
	if r.Dev != "" && r.Type != Blackhole {
		w = append(w, "dev", r.Dev)
	}
	if r.Table != tableMain && r.Table != tableLocal && r.Table != 0 {
		w = append(w, "table", strconv.Itoa(r.Table))
	}
	switch proto {
	case unix.RTPROT_UNSPEC, unix.RTPROT_BOOT:
	case unix.RTPROT_KERNEL:
		w = append(w, "proto", "kernel")
	default:
		w = append(w, "proto", strconv.Itoa(proto))
	}
	if scope == unix.RT_SCOPE_LINK {
		w = append(w, "scope", "link")
	}
	if src.IsValid() {
		w = append(w, "src", src.String())
	}
	if r.Onlink {
		w = append(w, "onlink")
	}
	if r.MTU > 0 {
		w = append(w, "mtu", strconv.Itoa(r.MTU))
	}
	return strings.Join(w, " ")
}
