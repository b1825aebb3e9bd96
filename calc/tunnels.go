package calc

import (
	"cmp"
	"crypto/sha1"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/desired"
)

// What VXLAN uses unless a FelixConfiguration says otherwise.
const (
	vxlanVNI  = 4096
	vxlanPort = 4789
)

// TunnelUse says which tunnels the pools ask for. The agent assigns and releases
// the addresses of the devices by it.
type TunnelUse struct{ VXLAN, VXLAN6, IPIP DeviceUse }

// DeviceUse is what the pools ask of one device.
type DeviceUse struct {
	Used   bool       // some pool, disabled ones included, sends packets through it, or does so until another tunnel is ready
	Assign string     // CIDRs of those pools that are enabled, so that an address can be assigned
	Addr   netip.Addr // what this host's Node says that the device has; invalid for none
}

// peer is another host's end of a tunnel.
type peer struct {
	addr netip.Addr // of its device; invalid while it has none
	mac  string     // of a VXLAN device
	host netip.Addr // its node address
}

// tunnelState is what the tunnels of this host are and who is behind them.
type tunnelState struct {
	devices    desired.Tunnels
	neighbours desired.Neighbours
	fdb        desired.FDB
	use        TunnelUse
	podMTU     int
	peers      map[string]map[string]peer     // by device and node
	hosts      map[string]map[netip.Addr]peer // by device and node address
	lent       map[string]bool                // devices that carry what another tunnel cannot yet
}

// reach counts the hosts behind each device.
func (t tunnelState) reach() map[string]int {
	out := map[string]int{}
	for name, others := range t.peers {
		for _, other := range others {
			if other.addr.IsValid() || other.mac == "" {
				out[name]++
			}
		}
	}
	return out
}

// device is what differs between the tunnel devices.
type device struct {
	name     string
	encap    desired.Encap
	v4       bool   // of the packets outside and inside
	suffix   string // of the node's name in the hash that is a VXLAN device's MAC
	overhead desired.Overhead
	use      func(*TunnelUse) *DeviceUse
	address  func(*api.NodeSpec) string // of the device
	mac      func(*api.NodeSpec) string
	mtu      func(*api.FelixConfigurationSpec) *int
}

func devices() []device {
	return []device{
		{
			desired.VXLANDevice, desired.EncapVXLAN, true, "", desired.OverheadVXLAN,
			func(u *TunnelUse) *DeviceUse { return &u.VXLAN },
			func(n *api.NodeSpec) string { return n.IPv4VXLANTunnelAddr },
			func(n *api.NodeSpec) string { return n.VXLANTunnelMACAddr },
			func(f *api.FelixConfigurationSpec) *int { return f.VXLANMTU },
		},
		{
			desired.VXLANDevice6, desired.EncapVXLAN, false, "-v6", desired.OverheadVXLAN6,
			func(u *TunnelUse) *DeviceUse { return &u.VXLAN6 },
			func(n *api.NodeSpec) string { return n.IPv6VXLANTunnelAddr },
			func(n *api.NodeSpec) string { return n.VXLANTunnelMACAddrV6 },
			func(f *api.FelixConfigurationSpec) *int { return f.VXLANMTUV6 },
		},
		{
			desired.IPIPDevice, desired.EncapIPIP, true, "", desired.OverheadIPIP,
			func(u *TunnelUse) *DeviceUse { return &u.IPIP },
			func(n *api.NodeSpec) string {
				if n.BGP == nil {
					return ""
				}
				return n.BGP.IPv4IPIPTunnelAddr
			},
			func(*api.NodeSpec) string { return "" },
			func(f *api.FelixConfigurationSpec) *int { return f.IPIPMTU },
		},
	}
}

// mode is how a pool uses a device.
func (d device) mode(pool *api.IPPool) api.EncapMode {
	cidr, err := netip.ParsePrefix(pool.Spec.CIDR)
	mode := pool.Spec.VXLANMode
	if d.encap == desired.EncapIPIP {
		mode = pool.Spec.IPIPMode
	}
	if err != nil || cidr.Addr().Is4() != d.v4 || mode == "" {
		return api.EncapNever
	}
	return mode
}

// deviceOf is the device that packets for a pool may leave by, and when.
func (c *Core) deviceOf(pool *api.IPPool) (device, api.EncapMode) {
	for _, d := range devices() {
		if m := c.mode(d, pool); m != api.EncapNever {
			return d, m
		}
	}
	return device{}, api.EncapNever
}

// mode is how this host uses a device for a pool: not at all where ipipEnabled or vxlanEnabled of FelixConfiguration is false.
// Then the pool is to this host as one without encapsulation.
func (c *Core) mode(d device, pool *api.IPPool) api.EncapMode {
	for _, s := range c.felixSpecs() {
		enabled := s.VXLANEnabled
		if d.encap == desired.EncapIPIP {
			enabled = s.IPIPEnabled
		}
		if enabled != nil && *enabled {
			break
		}
		if enabled != nil {
			return api.EncapNever
		}
	}
	return d.mode(pool)
}

// tunnels computes the devices, who is behind them, and the MTU that is left for
// workloads. A device stays as long as this host's Node names its address,
// whatever the pools say: other hosts may still be sending through it.
func (c *Core) tunnels(p *problems) tunnelState {
	t := tunnelState{
		devices: desired.Tunnels{}, neighbours: desired.Neighbours{}, fdb: desired.FDB{},
		peers: map[string]map[string]peer{}, hosts: map[string]map[netip.Addr]peer{}, lent: map[string]bool{},
	}
	t.use = c.tunnelUse()
	t.podMTU = c.pathMTU()
	for _, d := range devices() {
		use := d.use(&t.use)
		if !use.Used && !use.Addr.IsValid() {
			continue
		}
		if use.Used && c.mtu > 0 {
			t.podMTU = min(t.podMTU, c.tunnelMTU(d))
		}
		if made, ok := c.tunnelDevice(d, p); ok {
			made.Addrs = desired.NewAddrSet(c.ownEnd(d, use.Addr))
			c.behind(&t, d, p)
			if d.encap == desired.EncapIPIP {
				made.Hosts = desired.NewNetSet(c.tunnelHosts(&t, d)...)
			}
			t.devices[d.name] = made
		}
	}
	return t
}

func (c *Core) tunnelUse() TunnelUse {
	var u TunnelUse
	for _, name := range slices.Sorted(maps.Keys(c.pools)) {
		pool := c.pools[name]
		for _, d := range devices() {
			if c.mode(d, pool) == api.EncapNever {
				continue
			}
			use := d.use(&u)
			use.Used = true
			if !pool.Spec.Disabled {
				use.Assign += pool.Spec.CIDR + " "
			}
		}
	}
	if self := c.nodes[c.opts.Node]; self != nil {
		for _, d := range devices() {
			d.use(&u).Addr, _ = parseNodeAddr(d.address(&self.Spec))
		}
	}
	return u
}

// tunnelDevice is this host's device, without its addresses.
func (c *Core) tunnelDevice(d device, p *problems) (desired.Tunnel, bool) {
	self := c.nodes[c.opts.Node]
	if self == nil {
		return desired.Tunnel{}, false
	}
	local, ok := c.nodeSubnet(self, d.v4)
	if !ok {
		p.add("%s: this host has no %s address on its Node; no device is made", d.name, familyName(d.v4))
		return desired.Tunnel{}, false
	}
	under := c.linkOf(local.Addr())
	if under == "" {
		p.add("%s: no interface of this host has its Node's address %s; no device is made", d.name, local.Addr())
		return desired.Tunnel{}, false
	}
	made := desired.Tunnel{Encap: d.encap, Local: local.Addr(), MTU: c.tunnelMTU(d), NoOffload: c.noOffload(d.name)}
	if d.encap == desired.EncapIPIP {
		made.Uplinks = c.uplinks(under)
		return made, true
	}
	made.VNI = c.felixInt(func(s *api.FelixConfigurationSpec) *int { return s.VXLANVNI }, vxlanVNI)
	made.Port = c.felixInt(func(s *api.FelixConfigurationSpec) *int { return s.VXLANPort }, vxlanPort)
	made.Underlay, made.MAC = under, tunnelMAC(self, d)
	return made, true
}

// ownEnd is the address of this host's device: that on its Node, else that which it has been assigned and will have there
// once the device has it.
func (c *Core) ownEnd(d device, named netip.Addr) netip.Addr {
	if named.IsValid() {
		return named
	}
	return c.assigned[d.name]
}

// uplinks are the interfaces that tunnel packets may come in by: the one with
// the Node's address, and those that are taken for the underlay elsewhere too,
// since the way of a packet through the fabric is not ours to choose.
func (c *Core) uplinks(under string) string {
	physical := regexp.MustCompile(desired.MTUPattern)
	names := []string{under}
	for _, l := range c.links {
		if l.Up && l.Name != under && physical.MatchString(l.Name) {
			names = append(names, l.Name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

// tunnelHosts are whom IPIP packets are taken from.
func (c *Core) tunnelHosts(t *tunnelState, d device) []netip.Prefix {
	hosts := c.externalNodes(d.v4, &problems{}) // which the packet filter lists
	for _, other := range t.peers[d.name] {
		hosts = append(hosts, netip.PrefixFrom(other.host, other.host.BitLen()))
	}
	return hosts
}

// tunnelMTU is the configured MTU, else what the underlay leaves; 0 while that
// is not known.
func (c *Core) tunnelMTU(d device) int {
	if c.mtu == 0 {
		return c.felixInt(d.mtu, 0)
	}
	return c.felixInt(d.mtu, desired.WorkloadMTU(c.pathMTU(), d.overhead))
}

// behind adds every other host: for VXLAN those that have an address on their
// device, since only their MAC leads to them.
func (c *Core) behind(t *tunnelState, d device, p *problems) {
	t.peers[d.name], t.hosts[d.name] = map[string]peer{}, map[netip.Addr]peer{}
	for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
		n := c.nodes[name]
		net, ok := c.nodeSubnet(n, d.v4)
		if name == c.opts.Node || !ok {
			continue
		}
		other := peer{host: net.Addr()}
		other.addr, _ = parseNodeAddr(d.address(&n.Spec))
		if other.addr.IsValid() && other.addr.Is4() != d.v4 {
			other.addr = netip.Addr{}
		}
		if d.encap == desired.EncapVXLAN {
			other.mac = tunnelMAC(n, d)
			t.meet(d, name, &other, p)
		}
		t.peers[d.name][name], t.hosts[d.name][other.host] = other, other
	}
}

// meet writes down where another host's VXLAN device is.
func (t *tunnelState) meet(d device, node string, other *peer, p *problems) {
	neighbour, fdb := desired.NeighbourKey{Dev: d.name, Addr: other.addr}, desired.FDBKey{Dev: d.name, MAC: other.mac}
	_, addrTaken := t.neighbours[neighbour]
	_, macTaken := t.fdb[fdb]
	switch {
	case !other.addr.IsValid():
	case addrTaken || macTaken:
		p.add("Node(%s): tunnel address %s or MAC %s is another node's too; it is not used", node, other.addr, other.mac)
		other.addr = netip.Addr{}
	default:
		t.neighbours[neighbour], t.fdb[fdb] = other.mac, other.host
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
func tunnelMAC(n *api.Node, d device) string {
	if mac, err := net.ParseMAC(d.mac(&n.Spec)); err == nil && len(mac) == 6 {
		return mac.String()
	}
	sum := sha1.Sum([]byte(n.Name + d.suffix))
	return net.HardwareAddr(append([]byte{0x66}, sum[:5]...)).String()
}

func (c *Core) mtuPattern() string {
	return c.felixText(func(s *api.FelixConfigurationSpec) *string { return s.MTUIfacePattern }, "")
}

func familyName(v4 bool) string {
	if v4 {
		return "IPv4"
	}
	return "IPv6"
}

// remoteRoutes leads to the blocks of other hosts in pools whose routes are
// computed, and to single addresses that other hosts have borrowed there. The
// rest is BGP's.
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

// remoteRoute decides for one destination on another host.
func (c *Core) remoteRoute(rs desired.Routes, t tunnelState, dst netip.Prefix, node string, p *problems) {
	pool := c.pool(dst.Addr())
	if pool == nil || !c.computes(pool) {
		return
	}
	d, mode := c.deviceOf(pool)
	if mode == api.EncapNever {
		c.plainRoute(rs, dst, node)
		return
	}
	other, known := t.peers[d.name][node]
	if !known {
		p.add("%s is not routed: Node(%s) has no %s address, or this host has no device %s", dst, node, familyName(d.v4), d.name)
		return
	}
	w := c.way(t, pool, other.host)
	switch {
	case w.direct:
		rs.Add(desired.NewRouteKey(dst), c.direct(other.host, desired.ProtoComputed))
	case w.through != "":
		rs.Add(desired.NewRouteKey(dst), desired.Route{Gateway: w.gateway, Dev: w.through, Onlink: true, Proto: desired.ProtoComputed})
		if !d.v4 {
			// IPv6 refuses an onlink gateway that another route leads elsewhere, as the block's own does before it
			// is switched over: so the gateway gets a route of its own.
			gateway := desired.NewRouteKey(netip.PrefixFrom(w.gateway, w.gateway.BitLen()))
			rs.Add(gateway, desired.Route{Dev: w.through, Proto: desired.ProtoComputed})
		}
	case !c.settling[pool.Name]:
		p.add("%s is not routed: Node(%s) has no VXLAN tunnel address yet and is on another subnet", dst, node)
	}
}

// direct leads to a host on this host's own subnet.
func (c *Core) direct(host netip.Addr, proto int) desired.Route {
	return desired.Route{Gateway: host, Dev: c.linkOf(c.ownAddr(host.Is4())), Proto: proto}
}

// plainRoute leads to a host on the same subnet without encapsulation. Hosts
// elsewhere are BGP's, with which routers can take part.
func (c *Core) plainRoute(rs desired.Routes, dst netip.Prefix, node string) {
	n := c.nodes[node]
	if n == nil {
		return
	}
	if net, ok := c.nodeSubnet(n, dst.Addr().Is4()); ok && c.sameSubnet(net.Addr()) {
		rs.Add(desired.NewRouteKey(dst), c.direct(net.Addr(), desired.ProtoComputed))
	}
}

// computes reports whether the routes of a pool are computed from the datastore:
// always with VXLAN; otherwise as programClusterRoutes of FelixConfiguration says,
// by default with IPIP (spec/calico.md §6.3).
func (c *Core) computes(pool *api.IPPool) bool {
	d, mode := c.deviceOf(pool)
	if mode != api.EncapNever && d.encap == desired.EncapVXLAN {
		return true
	}
	switch c.felixText(func(s *api.FelixConfigurationSpec) *string { return s.ProgramClusterRoutes }, "EnabledIPIPOnly") {
	case "Enabled":
		return true
	case "EnabledIPIPOnly":
		return mode != api.EncapNever
	}
	return false
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
