package calc

import (
	"net/netip"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/selector"
)

// bgpPort is where BGP listens unless a BGPConfiguration says otherwise.
const bgpPort = 179

// speaker computes what this host says by BGP and to whom (spec/calico.md §6.1).
// A host without a Node object, or without an address on it, takes no part.
func (c *Core) speaker(eps desired.Endpoints, blocks []netip.Prefix, p *problems) bgp.Config {
	self := c.nodes[c.opts.Node]
	if self == nil || self.Spec.BGP == nil {
		return bgp.Config{}
	}
	own := c.speakerAddrs(self, p)
	if len(own) == 0 {
		return bgp.Config{}
	}
	cfg := bgp.Config{
		RouterID: routerID(own),
		ASN:      c.asn(self),
		Listen:   c.listen(own),
		Peers:    map[netip.Addr]bgp.Peer{},
		Announce: c.announcements(eps, blocks),
	}
	c.meshPeers(cfg.Peers, self, own)
	c.configuredPeers(cfg.Peers, self, own, p)
	return cfg
}

// speakerAddrs are the node's BGP addresses by family, at most one of each.
func (c *Core) speakerAddrs(n *api.Node, p *problems) []netip.Addr {
	var out []netip.Addr
	if n.Spec.BGP == nil {
		return nil
	}
	for _, text := range []string{n.Spec.BGP.IPv4Address, n.Spec.BGP.IPv6Address} {
		if text == "" {
			continue
		}
		addr, err := parseNodeAddr(text)
		if err != nil {
			p.add("Node(%s): BGP address %q is not an address; no BGP session uses it", n.Name, text)
			continue
		}
		out = append(out, addr)
	}
	return out
}

// parseNodeAddr reads "10.0.0.1/24" and the older "10.0.0.1".
func parseNodeAddr(text string) (netip.Addr, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Addr(), nil
	}
	return netip.ParseAddr(text)
}

// routerID is the IPv4 address, or for a host without one four octets of the
// IPv6 address: it must only be unique and not zero (RFC 6286).
func routerID(own []netip.Addr) netip.Addr {
	for _, a := range own {
		if a.Is4() {
			return a
		}
	}
	b := own[0].As16()
	return netip.AddrFrom4([4]byte{b[12] | 1, b[13], b[14], b[15]})
}

func (c *Core) asn(n *api.Node) uint32 {
	if n.Spec.BGP != nil && n.Spec.BGP.ASNumber != nil {
		return uint32(*n.Spec.BGP.ASNumber)
	}
	if d := c.bgpConfig["default"]; d != nil && d.Spec.ASNumber != nil {
		return uint32(*d.Spec.ASNumber)
	}
	return api.DefaultASNumber
}

// port is where a node listens: its own BGPConfiguration, else the global one.
func (c *Core) port(node string) uint16 {
	for _, name := range []string{"node." + node, "default"} {
		if cfg := c.bgpConfig[name]; cfg != nil && cfg.Spec.ListenPort > 0 {
			return uint16(cfg.Spec.ListenPort)
		}
	}
	return bgpPort
}

func (c *Core) listen(own []netip.Addr) []netip.AddrPort {
	bind := ""
	for _, name := range []string{"default", "node." + c.opts.Node} {
		if cfg := c.bgpConfig[name]; cfg != nil && cfg.Spec.BindMode != "" {
			bind = cfg.Spec.BindMode
		}
	}
	var out []netip.AddrPort
	for _, a := range own {
		if bind != "NodeIP" {
			a = unspecified(a)
		}
		out = append(out, netip.AddrPortFrom(a, c.port(c.opts.Node)))
	}
	return out
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// meshPeers adds every other node, unless the mesh is off or one side is a
// route reflector, which is never in the mesh.
func (c *Core) meshPeers(peers map[netip.Addr]bgp.Peer, self *api.Node, own []netip.Addr) {
	d := c.bgpConfig["default"]
	if d != nil && d.Spec.NodeToNodeMeshEnabled != nil && !*d.Spec.NodeToNodeMeshEnabled {
		return
	}
	if self.Spec.BGP.RouteReflectorClusterID != "" {
		return
	}
	for name, n := range c.nodes {
		if name == c.opts.Node || n.Spec.BGP == nil || n.Spec.BGP.RouteReflectorClusterID != "" {
			continue
		}
		peer := bgp.Peer{Name: name, Type: bgp.TypeMesh, ASN: c.asn(n), Port: c.port(name)}
		if d != nil && d.Spec.NodeMeshMaxRestartTime != nil {
			peer.RestartTime = d.Spec.NodeMeshMaxRestartTime.Std()
		}
		c.nodeSessions(peers, peer, n, own)
	}
}

// nodeSessions adds one session per family that both ends have an address of.
// Of the two ends only one dials: the one whose address, as text, is larger.
func (c *Core) nodeSessions(peers map[netip.Addr]bgp.Peer, peer bgp.Peer, n *api.Node, own []netip.Addr) {
	ignore := &problems{} // the remote node's own agent reports its addresses
	for _, remote := range c.speakerAddrs(n, ignore) {
		for _, local := range own {
			if local.Is4() != remote.Is4() || local == remote {
				continue
			}
			peer.Addr, peer.Local = remote, local
			peer.Passive = remote.String() > local.String()
			peers[remote] = peer
		}
	}
}

// configuredPeers adds the BGPPeer resources that select this node. Explicit
// peerings replace mesh ones, and a global one replaces a node's own.
func (c *Core) configuredPeers(peers map[netip.Addr]bgp.Peer, self *api.Node, own []netip.Addr, p *problems) {
	explicit := map[netip.Addr]bgp.Peer{}
	for _, global := range []bool{false, true} {
		for name, res := range c.bgpPeers {
			s := &res.Spec
			if isGlobal := s.Node == "" && s.NodeSelector == ""; isGlobal != global {
				continue
			}
			if !c.selects(name, s, self, p) {
				continue
			}
			peer := bgp.Peer{Name: name, Type: bgp.TypeNode}
			if global {
				peer.Type = bgp.TypeGlobal
			}
			if s.MaxRestartTime != nil {
				peer.RestartTime = s.MaxRestartTime.Std()
			}
			if s.KeepaliveTime != nil {
				peer.Keepalive = s.KeepaliveTime.Std()
			}
			if s.TTLSecurity != nil {
				peer.TTLSecurity = uint8(*s.TTLSecurity)
			}
			c.peerTargets(explicit, peer, s, own, p)
		}
	}
	for addr, peer := range explicit {
		peers[addr] = peer
	}
}

func (c *Core) selects(name string, s *api.BGPPeerSpec, self *api.Node, p *problems) bool {
	if s.Node != "" {
		return s.Node == self.Name
	}
	if s.NodeSelector == "" {
		return true
	}
	return matches(s.NodeSelector, self.Labels, func(err error) { p.add("BGPPeer(%s): nodeSelector: %v", name, err) })
}

func (c *Core) peerTargets(out map[netip.Addr]bgp.Peer, peer bgp.Peer, s *api.BGPPeerSpec, own []netip.Addr, p *problems) {
	if s.PeerSelector != "" {
		for name, n := range c.nodes {
			if name == c.opts.Node || !matches(s.PeerSelector, n.Labels, func(err error) { p.add("BGPPeer(%s): peerSelector: %v", peer.Name, err) }) {
				continue
			}
			peer.ASN, peer.Port = c.asn(n), c.port(name)
			c.nodeSessions(out, peer, n, own)
		}
		return
	}
	remote, err := parsePeerIP(s.PeerIP)
	if err != nil {
		p.add("BGPPeer(%s): peerIP %q must be an address, or address:port; no session is made", peer.Name, s.PeerIP)
		return
	}
	for _, local := range own {
		if local.Is4() != remote.Addr().Is4() || local == remote.Addr() {
			continue
		}
		peer.Addr, peer.Port, peer.Local, peer.ASN = remote.Addr(), remote.Port(), local, uint32(s.ASNumber)
		out[peer.Addr] = peer
	}
}

// parsePeerIP reads an address with an optional port, IPv6 in brackets.
func parsePeerIP(text string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return netip.AddrPortFrom(a, bgpPort), nil
	}
	return netip.ParseAddrPort(text)
}

func matches(expr string, labels map[string]string, report func(error)) bool {
	sel, err := selector.Parse(expr)
	if err != nil {
		report(err)
		return false
	}
	return sel.Match(labels)
}

// announcements are the own blocks, aggregated, and the addresses that local
// workloads borrow from other hosts' blocks. A pool with disableBGPExport keeps
// both at home; a borrowed address leaves only if an enabled pool holds it
// (spec/calico.md §6.2, rules 2, 5 and 7).
func (c *Core) announcements(eps desired.Endpoints, blocks []netip.Prefix) map[netip.Prefix]bgp.Announcement {
	out := map[netip.Prefix]bgp.Announcement{}
	for _, b := range blocks {
		if pool := c.pool(b.Addr()); pool == nil || !pool.Spec.DisableBGPExport {
			out[b] = bgp.Announcement{}
		}
	}
	for _, ep := range eps {
		for _, a := range ep.Addrs.Addrs() {
			pool := c.pool(a)
			if !covered(blocks, a) && pool != nil && !pool.Spec.Disabled && !pool.Spec.DisableBGPExport {
				out[netip.PrefixFrom(a, a.BitLen())] = bgp.Announcement{}
			}
		}
	}
	return out
}

func covered(blocks []netip.Prefix, a netip.Addr) bool {
	for _, b := range blocks {
		if b.Contains(a) {
			return true
		}
	}
	return false
}

// pool returns the pool that holds a, or nil. Pools do not overlap.
func (c *Core) pool(a netip.Addr) *api.IPPool {
	for _, pool := range c.pools {
		if cidr, err := netip.ParsePrefix(pool.Spec.CIDR); err == nil && cidr.Contains(a) {
			return pool
		}
	}
	return nil
}
