package calc

import (
	"cmp"
	"crypto/sha1"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/desired"
)

// What VXLAN uses unless a FelixConfiguration says otherwise.
const (
	vxlanVNI  = 4096
	vxlanPort = 4789
)

// TunnelUse says by family which tunnels the pools ask for. The agent assigns
// and releases the addresses of the devices by it.
type TunnelUse struct {
	VXLAN, VXLAN6 bool // some pool, disabled ones included, sends packets through such a tunnel
	// Assign and Assign6 are the CIDRs of those pools that are enabled, so that an address can be assigned.
	Assign, Assign6 string
	// VXLANAddr and VXLANAddr6 are what this host's Node says that the devices have; invalid for none.
	VXLANAddr, VXLANAddr6 netip.Addr
}

// vtep is another host's end of a VXLAN tunnel.
type vtep struct {
	addr netip.Addr // of its device; invalid while it has none
	mac  string
	host netip.Addr // its node address
}

// tunnelState is what the tunnels of this host are and who is behind them.
type tunnelState struct {
	devices    desired.Tunnels
	neighbours desired.Neighbours
	fdb        desired.FDB
	use        TunnelUse
	podMTU     int
	vteps      map[bool]map[string]vtep // by family (true is IPv4) and node
}

// family is what differs between the two VXLAN devices.
type family struct {
	v4       bool
	device   string
	suffix   string // of the node's name in the hash that is its MAC
	overhead desired.Overhead
	address  func(*api.NodeSpec) string // of the device
	mac      func(*api.NodeSpec) string
	mtu      func(*api.FelixConfigurationSpec) *int
}

func families() []family {
	return []family{
		{
			true, desired.VXLANDevice, "", desired.OverheadVXLAN,
			func(n *api.NodeSpec) string { return n.IPv4VXLANTunnelAddr },
			func(n *api.NodeSpec) string { return n.VXLANTunnelMACAddr },
			func(f *api.FelixConfigurationSpec) *int { return f.VXLANMTU },
		},
		{
			false, desired.VXLANDevice6, "-v6", desired.OverheadVXLAN6,
			func(n *api.NodeSpec) string { return n.IPv6VXLANTunnelAddr },
			func(n *api.NodeSpec) string { return n.VXLANTunnelMACAddrV6 },
			func(f *api.FelixConfigurationSpec) *int { return f.VXLANMTUV6 },
		},
	}
}

// tunnels computes the VXLAN devices, who is behind them, and the MTU that is
// left for workloads. A device stays as long as this host's Node names its
// address, whatever the pools say: other hosts may still be sending through it.
func (c *Core) tunnels(p *problems) tunnelState {
	t := tunnelState{
		devices: desired.Tunnels{}, neighbours: desired.Neighbours{}, fdb: desired.FDB{},
		vteps: map[bool]map[string]vtep{},
	}
	t.use = c.tunnelUse(p)
	t.podMTU = c.mtu
	for _, f := range families() {
		used, own := t.use.VXLAN, t.use.VXLANAddr
		if !f.v4 {
			used, own = t.use.VXLAN6, t.use.VXLANAddr6
		}
		if !used && !own.IsValid() {
			continue
		}
		if used && c.mtu > 0 {
			t.podMTU = min(t.podMTU, c.tunnelMTU(f))
		}
		if c.vxlanDevice(&t, f, own, p) {
			c.behind(&t, f, p)
		}
	}
	return t
}

func (c *Core) tunnelUse(p *problems) TunnelUse {
	var u TunnelUse
	for _, name := range slices.Sorted(maps.Keys(c.pools)) {
		pool := c.pools[name]
		cidr, err := netip.ParsePrefix(pool.Spec.CIDR)
		if err != nil {
			continue
		}
		if m := pool.Spec.IPIPMode; m != "" && m != api.EncapNever {
			p.add("IPPool(%s): ipipMode %s is not served by this build: routed without encapsulation", name, m)
		}
		if !vxlan(pool) {
			continue
		}
		assign := ""
		if !pool.Spec.Disabled {
			assign = cidr.String() + " "
		}
		if cidr.Addr().Is4() {
			u.VXLAN, u.Assign = true, u.Assign+assign
		} else {
			u.VXLAN6, u.Assign6 = true, u.Assign6+assign
		}
	}
	if self := c.nodes[c.opts.Node]; self != nil {
		u.VXLANAddr, _ = parseNodeAddr(self.Spec.IPv4VXLANTunnelAddr)
		u.VXLANAddr6, _ = parseNodeAddr(self.Spec.IPv6VXLANTunnelAddr)
	}
	return u
}

// vxlan reports whether a pool's packets may travel in VXLAN.
func vxlan(pool *api.IPPool) bool {
	return pool.Spec.VXLANMode != "" && pool.Spec.VXLANMode != api.EncapNever
}

// vxlanDevice adds this host's device of a family.
func (c *Core) vxlanDevice(t *tunnelState, f family, own netip.Addr, p *problems) bool {
	self := c.nodes[c.opts.Node]
	if self == nil {
		return false
	}
	local, ok := c.nodeSubnet(self, f.v4)
	if !ok {
		p.add("%s: this host has no %s address on its Node; no device is made", f.device, familyName(f.v4))
		return false
	}
	under := c.linkOf(local.Addr())
	if under == "" {
		p.add("%s: no interface of this host has its Node's address %s; no device is made", f.device, local.Addr())
		return false
	}
	d := desired.Tunnel{
		VNI:      c.felixInt(func(s *api.FelixConfigurationSpec) *int { return s.VXLANVNI }, vxlanVNI),
		Port:     c.felixInt(func(s *api.FelixConfigurationSpec) *int { return s.VXLANPort }, vxlanPort),
		Underlay: under, Local: local.Addr(), MAC: tunnelMAC(self, f), Addrs: desired.NewAddrSet(own),
	}
	d.MTU = c.tunnelMTU(f)
	t.devices[f.device] = d
	return true
}

// tunnelMTU is the configured MTU, else what the underlay leaves; 0 while that
// is not known.
func (c *Core) tunnelMTU(f family) int {
	if c.mtu == 0 {
		return c.felixInt(f.mtu, 0)
	}
	return c.felixInt(f.mtu, desired.WorkloadMTU(c.mtu, f.overhead))
}

// behind adds every other host that has an address on its device.
func (c *Core) behind(t *tunnelState, f family, p *problems) {
	t.vteps[f.v4] = map[string]vtep{}
	names := slices.Sorted(maps.Keys(c.nodes))
	for _, name := range names {
		n := c.nodes[name]
		net, ok := c.nodeSubnet(n, f.v4)
		if name == c.opts.Node || !ok {
			continue
		}
		v := vtep{mac: tunnelMAC(n, f), host: net.Addr()}
		v.addr, _ = parseNodeAddr(f.address(&n.Spec))
		if v.addr.IsValid() && v.addr.Is4() != f.v4 {
			v.addr = netip.Addr{}
		}
		neighbour, fdb := desired.NeighbourKey{Dev: f.device, Addr: v.addr}, desired.FDBKey{Dev: f.device, MAC: v.mac}
		_, addrTaken := t.neighbours[neighbour]
		_, macTaken := t.fdb[fdb]
		switch {
		case !v.addr.IsValid():
		case addrTaken || macTaken:
			p.add("Node(%s): tunnel address %s or MAC %s is another node's too; it is not used", name, v.addr, v.mac)
			v.addr = netip.Addr{}
		default:
			t.neighbours[neighbour], t.fdb[fdb] = v.mac, v.host
		}
		t.vteps[f.v4][name] = v
	}
}

// nodeSubnet is a node's address with the length of its subnet.
func (c *Core) nodeSubnet(n *api.Node, v4 bool) (netip.Prefix, bool) {
	if n.Spec.BGP == nil {
		return netip.Prefix{}, false
	}
	text := n.Spec.BGP.IPv4Address
	if !v4 {
		text = n.Spec.BGP.IPv6Address
	}
	if net, err := netip.ParsePrefix(text); err == nil {
		return net, net.Addr().Is4() == v4
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Is4() != v4 {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, addr.BitLen()), true
}

// linkOf names the interface that has an address.
func (c *Core) linkOf(a netip.Addr) string {
	for _, l := range c.links {
		for _, have := range l.Addrs {
			if have.Addr() == a {
				return l.Name
			}
		}
	}
	return ""
}

// tunnelMAC is the Node's own wish, or 0x66 and five octets of the hash of its
// name, which is what Calico uses (spec/calico.md §5.6).
func tunnelMAC(n *api.Node, f family) string {
	if mac, err := net.ParseMAC(f.mac(&n.Spec)); err == nil && len(mac) == 6 {
		return mac.String()
	}
	sum := sha1.Sum([]byte(n.Name + f.suffix))
	return net.HardwareAddr(append([]byte{0x66}, sum[:5]...)).String()
}

// felixInt is a number of this node's FelixConfiguration, else of the default
// one, else def. Zero means automatic.
func (c *Core) felixInt(get func(*api.FelixConfigurationSpec) *int, def int) int {
	for _, name := range []string{"node." + c.opts.Node, "default"} {
		if f := c.felix[name]; f != nil {
			if v := get(&f.Spec); v != nil && *v != 0 {
				return *v
			}
		}
	}
	return def
}

func familyName(v4 bool) string {
	if v4 {
		return "IPv4"
	}
	return "IPv6"
}

// remoteRoutes leads to the blocks of other hosts in VXLAN pools, and to single
// addresses that other hosts have borrowed there. Pools without VXLAN are BGP's.
func (c *Core) remoteRoutes(rs desired.Routes, t tunnelState, p *problems) {
	for cidr, nodes := range c.remote {
		if _, ours := c.affine[cidr]; !ours {
			c.remoteRoute(rs, t, cidr, c.owner(cidr, nodes), p)
		}
	}
	for cidr, block := range c.blocks {
		for addr, node := range block.lent {
			if c.remote[cidr][node] && node == c.owner(cidr, c.remote[cidr]) {
				continue
			}
			c.remoteRoute(rs, t, netip.PrefixFrom(addr, addr.BitLen()), node, p)
		}
	}
}

// owner is who a block is routed to: the host that the block itself names if its
// affinity is confirmed, else the first in the order of names.
func (c *Core) owner(cidr netip.Prefix, nodes map[string]bool) string {
	for name := range nodes {
		if c.blocks[cidr].owner == "host:"+name {
			return name
		}
	}
	return slices.MinFunc(slices.Collect(maps.Keys(nodes)), cmp.Compare[string])
}

// remoteRoute decides for one destination on another host. While that host has
// no tunnel address yet its packets go without encapsulation where that is
// possible, so that switching a pool over loses nothing.
func (c *Core) remoteRoute(rs desired.Routes, t tunnelState, dst netip.Prefix, node string, p *problems) {
	pool := c.pool(dst.Addr())
	if pool == nil || !vxlan(pool) {
		return
	}
	v4 := dst.Addr().Is4()
	v, known := t.vteps[v4][node]
	if !known {
		p.add("%s is not routed: Node(%s) has no %s address, or this host has no VXLAN device", dst, node, familyName(v4))
		return
	}
	near := c.sameSubnet(v.host)
	behind := v.addr.IsValid()
	switch {
	case near && (pool.Spec.VXLANMode == api.EncapCrossSubnet || !behind):
		rs.Add(desired.NewRouteKey(dst), desired.Route{Gateway: v.host, Dev: c.linkOf(c.ownAddr(v4)), Proto: desired.ProtoComputed})
	case behind:
		rs.Add(desired.NewRouteKey(dst), desired.Route{Gateway: v.addr, Dev: deviceOf(v4), Onlink: true, Proto: desired.ProtoComputed})
		if !v4 {
			// IPv6 refuses an onlink gateway that another route leads elsewhere, as the block's own does before it
			// is switched over: so the gateway gets a route of its own.
			gateway := desired.NewRouteKey(netip.PrefixFrom(v.addr, v.addr.BitLen()))
			rs.Add(gateway, desired.Route{Dev: deviceOf(v4), Proto: desired.ProtoComputed})
		}
	default:
		p.add("%s is not routed: Node(%s) has no VXLAN tunnel address yet and is on another subnet", dst, node)
	}
}

func deviceOf(v4 bool) string {
	if v4 {
		return desired.VXLANDevice
	}
	return desired.VXLANDevice6
}

// sameSubnet reports whether a host is reached without a router, judged by this
// host's subnet alone (spec/calico.md §5.6).
func (c *Core) sameSubnet(host netip.Addr) bool {
	self := c.nodes[c.opts.Node]
	if self == nil {
		return false
	}
	own, ok := c.nodeSubnet(self, host.Is4())
	return ok && own.Masked().Contains(host) && c.linkOf(own.Addr()) != ""
}

func (c *Core) ownAddr(v4 bool) netip.Addr {
	own, _ := c.nodeSubnet(c.nodes[c.opts.Node], v4)
	return own.Addr()
}
