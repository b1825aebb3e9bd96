package lab

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"go4.org/netipx"
)

// Plan is a topology with every address decided. Building it touches nothing.
type Plan struct {
	Switches []SwitchPlan
	Routers  []NodePlan
	Hosts    []NodePlan
}

// SwitchPlan is the bridge of one subnet.
type SwitchPlan struct {
	Subnet   string
	Prefixes []netip.Prefix // the subnet's networks, IPv4 first
	MTU      int
	// Gateways are addresses on the bridge itself: only where no router is, so
	// that hosts have a default route that resolves (a host without one does
	// not answer ARP for 169.254.1.1).
	Gateways []netip.Prefix
}

// NodePlan is a host or a router: its ports and its static routes.
type NodePlan struct {
	Name   string
	Ports  []Port
	Routes []StaticRoute
}

// Address4 is the first IPv4 address of the node.
func (n NodePlan) Address4() netip.Addr { return n.address(netip.Addr.Is4) }

// Address6 is the first IPv6 address of the node; invalid when it has none.
func (n NodePlan) Address6() netip.Addr { return n.address(netip.Addr.Is6) }

func (n NodePlan) address(family func(netip.Addr) bool) netip.Addr {
	for _, p := range n.Ports {
		for _, a := range p.Addresses {
			if family(a.Addr()) {
				return a.Addr()
			}
		}
	}
	return netip.Addr{}
}

// Port is one interface of a node and the switch port it is plugged into.
type Port struct {
	Device    string // inside the node: eth0, eth1, ...
	Subnet    string
	Addresses []netip.Prefix
	MAC       net.HardwareAddr // derived from the IPv4 address, so runs are alike
	MTU       int
}

// StaticRoute is a route of the underlay.
type StaticRoute struct {
	Dst netip.Prefix // 0.0.0.0/0 and ::/0 are the default routes
	Via netip.Addr
}

// defaultMTU is Ethernet's.
const defaultMTU = 1500

// firstHostOffset is where automatic host addresses start in a subnet that is
// large enough: h1 is .11, h2 is .12.
const firstHostOffset = 11

// segment is a subnet while addresses are given out.
type segment struct {
	Subnet
	prefixes []netip.Prefix
	taken    map[netip.Addr]string
	gateways []netip.Addr // of the first router, one per prefix
	routers  []string
}

// NewPlan decides addresses: routers take .1, .2, ... of each subnet, hosts
// their own or the next free one from .11, and a subnet without a router has
// a gateway address .254 on its switch.
func NewPlan(t Topology) (*Plan, error) {
	segments, err := newSegments(t.Subnets)
	if err != nil {
		return nil, err
	}
	p := &Plan{}
	if err := reserveHosts(t.Hosts, segments); err != nil {
		return nil, err
	}
	for _, r := range t.Routers {
		node, err := planRouter(r, segments)
		if err != nil {
			return nil, err
		}
		p.Routers = append(p.Routers, node)
	}
	for _, s := range segments {
		sw, err := planSwitch(s)
		if err != nil {
			return nil, err
		}
		p.Switches = append(p.Switches, sw)
	}
	for _, h := range t.Hosts {
		node, err := planHost(h, segments)
		if err != nil {
			return nil, err
		}
		p.Hosts = append(p.Hosts, node)
	}
	addRouterRoutes(p)
	return p, nil
}

func newSegments(subnets []Subnet) ([]*segment, error) {
	var all []*segment
	for i, s := range subnets {
		seg := &segment{Subnet: s, taken: map[netip.Addr]string{}}
		if s.MTU != 0 && (s.MTU < 1280 || s.MTU > 65521) {
			return nil, fmt.Errorf("topology: field subnets[%d].mtu: %d is not allowed, want 1280 to 65521", i, s.MTU)
		}
		p4, err := parseCIDR(fmt.Sprintf("subnets[%d].cidr", i), s.CIDR, 4)
		if err != nil {
			return nil, err
		}
		seg.prefixes = append(seg.prefixes, p4)
		if s.CIDR6 != "" {
			p6, err := parseCIDR(fmt.Sprintf("subnets[%d].cidr6", i), s.CIDR6, 6)
			if err != nil {
				return nil, err
			}
			seg.prefixes = append(seg.prefixes, p6)
		}
		for _, other := range all {
			if a, b, ok := overlap(seg.prefixes, other.prefixes); ok {
				return nil, fmt.Errorf("topology: field subnets[%d]: %s overlaps %s of subnet %s", i, a, b, other.Name)
			}
		}
		all = append(all, seg)
	}
	return all, nil
}

func overlap(a, b []netip.Prefix) (netip.Prefix, netip.Prefix, bool) {
	for _, x := range a {
		for _, y := range b {
			if x.Overlaps(y) {
				return x, y, true
			}
		}
	}
	return netip.Prefix{}, netip.Prefix{}, false
}

func parseCIDR(field, text string, family int) (netip.Prefix, error) {
	want := "10.0.0.0/24"
	longest := 29
	if family == 6 {
		want, longest = "fd00:18::/64", 125
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4() != (family == 4) || p.Addr().Is4In6() {
		return p, fmt.Errorf("topology: field %s: %q is not an IPv%d network, want the form %s", field, text, family, want)
	}
	if p != p.Masked() {
		return p, fmt.Errorf("topology: field %s: %q has host bits set, want %s", field, text, p.Masked())
	}
	if p.Bits() > longest || p.Bits() < 8 {
		return p, fmt.Errorf("topology: field %s: prefix length %d is not allowed, want 8 to %d", field, p.Bits(), longest)
	}
	if a := p.Addr(); a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() {
		return p, fmt.Errorf("topology: field %s: %q is not allowed, want a unicast network that is neither loopback nor link-local", field, text)
	}
	return p, nil
}

// offset returns the n-th address of p; ok is false past the last usable one.
func offset(p netip.Prefix, n int) (netip.Addr, bool) {
	a := p.Addr().As16()
	for i, carry := 15, n; i >= 0 && carry > 0; i-- {
		sum := int(a[i]) + carry
		a[i], carry = byte(sum), sum>>8
	}
	addr := netip.AddrFrom16(a)
	if p.Addr().Is4() {
		addr = addr.Unmap()
	}
	return addr, p.Contains(addr) && addr != lastAddr(p)
}

func lastAddr(p netip.Prefix) netip.Addr { return netipx.PrefixLastIP(p) }

// take gives the first free address of the prefix from offset start on.
func (s *segment) take(p netip.Prefix, start int, owner string) (netip.Addr, error) {
	for n := start; n < start+2*MaxHosts+len(s.taken); n++ {
		a, ok := offset(p, n)
		if !ok {
			break
		}
		if _, used := s.taken[a]; !used {
			s.taken[a] = owner
			return a, nil
		}
	}
	if start > 1 {
		return s.take(p, 1, owner)
	}
	return netip.Addr{}, fmt.Errorf("topology: subnet %s: no address left in %s for %s", s.Name, p, owner)
}

func findSegment(segments []*segment, name string) *segment {
	i := slices.IndexFunc(segments, func(s *segment) bool { return s.Name == name })
	return segments[i] // names were checked by Validate
}

// reserveHosts books the addresses that hosts ask for, before any is given out.
func reserveHosts(hosts []Host, segments []*segment) error {
	for i, h := range hosts {
		seg := findSegment(segments, h.Subnet)
		for _, w := range []struct{ field, text string }{{"address", h.Address}, {"address6", h.Address6}} {
			if w.text == "" {
				continue
			}
			field := fmt.Sprintf("hosts[%d].%s", i, w.field)
			family := 0
			if w.field == "address6" {
				family = 1
			}
			if family >= len(seg.prefixes) {
				return fmt.Errorf("topology: field %s: subnet %s has no cidr6", field, seg.Name)
			}
			if err := seg.reserve(field, w.text, seg.prefixes[family], h.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *segment) reserve(field, text string, p netip.Prefix, owner string) error {
	a, err := netip.ParseAddr(text)
	if err != nil || !p.Contains(a) || a == p.Addr() || a == lastAddr(p) {
		return fmt.Errorf("topology: field %s: %q is not a host address of %s", field, text, p)
	}
	if other, used := s.taken[a]; used {
		return fmt.Errorf("topology: field %s: %s is already the address of %s", field, a, other)
	}
	s.taken[a] = owner
	return nil
}

func planRouter(r Router, segments []*segment) (NodePlan, error) {
	node := NodePlan{Name: r.Name}
	for i, name := range r.Subnets {
		seg := findSegment(segments, name)
		port := newPort(fmt.Sprintf("eth%d", i), seg)
		for _, p := range seg.prefixes {
			a, err := seg.take(p, 1, r.Name)
			if err != nil {
				return node, err
			}
			port.Addresses = append(port.Addresses, netip.PrefixFrom(a, p.Bits()))
			if len(seg.routers) == 0 {
				seg.gateways = append(seg.gateways, a)
			}
		}
		seg.routers = append(seg.routers, r.Name)
		port.MAC = macOf(port.Addresses[0].Addr())
		node.Ports = append(node.Ports, port)
	}
	return node, nil
}

func newPort(device string, seg *segment) Port {
	return Port{Device: device, Subnet: seg.Name, MTU: seg.mtu()}
}

func (s *segment) mtu() int {
	if s.MTU == 0 {
		return defaultMTU
	}
	return s.MTU
}

func planSwitch(seg *segment) (SwitchPlan, error) {
	sw := SwitchPlan{Subnet: seg.Name, Prefixes: seg.prefixes, MTU: seg.mtu()}
	if len(seg.routers) > 0 {
		return sw, nil
	}
	for _, p := range seg.prefixes {
		a := lastAddr(p).Prev()
		if p.Addr().Is6() || p.Bits() < 24 {
			a, _ = offset(p, 254)
			if !p.Contains(a) {
				a = lastAddr(p).Prev()
			}
		}
		if owner, used := seg.taken[a]; used {
			return sw, fmt.Errorf("topology: subnet %s has no router, so %s is its gateway; %s must take another address", seg.Name, a, owner)
		}
		seg.taken[a] = "the gateway"
		seg.gateways = append(seg.gateways, a)
		sw.Gateways = append(sw.Gateways, netip.PrefixFrom(a, p.Bits()))
	}
	return sw, nil
}

func planHost(h Host, segments []*segment) (NodePlan, error) {
	seg := findSegment(segments, h.Subnet)
	port := newPort("eth0", seg)
	node := NodePlan{Name: h.Name}
	for i, p := range seg.prefixes {
		text := h.Address
		if p.Addr().Is6() {
			text = h.Address6
		}
		a, err := netip.ParseAddr(text)
		if text == "" {
			a, err = seg.take(p, firstHostOffset, h.Name)
		}
		if err != nil {
			return node, err
		}
		port.Addresses = append(port.Addresses, netip.PrefixFrom(a, p.Bits()))
		node.Routes = append(node.Routes, StaticRoute{Dst: defaultRoute(a), Via: seg.gateways[i]})
	}
	port.MAC = macOf(port.Addresses[0].Addr())
	node.Ports = []Port{port}
	return node, nil
}

func defaultRoute(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// macOf is a locally administered address that carries the IPv4 address, as
// Docker forms them.
func macOf(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
}

// addRouterRoutes gives every router a route to every subnet that it is not
// part of, along the fewest routers.
func addRouterRoutes(p *Plan) {
	for i := range p.Routers {
		hops := nextHops(p, i)
		for _, sw := range p.Switches {
			via, ok := hops[sw.Subnet]
			if !ok {
				continue
			}
			for j, dst := range sw.Prefixes {
				if j < len(via) {
					p.Routers[i].Routes = append(p.Routers[i].Routes, StaticRoute{Dst: dst, Via: via[j]})
				}
			}
		}
	}
}

// nextHops is a breadth-first search from router start: the addresses, one per
// family, of the first router on the way to each subnet not attached to it.
func nextHops(p *Plan, start int) map[string][]netip.Addr {
	hops := map[string][]netip.Addr{}
	seen := map[string]bool{}
	visited := map[int]bool{start: true}
	type step struct {
		subnet string
		via    []netip.Addr
	}
	var queue []step
	for _, port := range p.Routers[start].Ports {
		seen[port.Subnet] = true
		queue = append(queue, step{subnet: port.Subnet})
	}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		for i, r := range p.Routers {
			k := slices.IndexFunc(r.Ports, func(q Port) bool { return q.Subnet == at.subnet })
			if k < 0 || visited[i] {
				continue
			}
			visited[i] = true
			via := at.via
			if via == nil {
				for _, a := range r.Ports[k].Addresses {
					via = append(via, a.Addr())
				}
			}
			for _, port := range r.Ports {
				if !seen[port.Subnet] {
					seen[port.Subnet] = true
					hops[port.Subnet] = via
					queue = append(queue, step{port.Subnet, via})
				}
			}
		}
	}
	return hops
}
