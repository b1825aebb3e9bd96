package calc

import (
	"net/netip"
	"slices"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/desired"
)

// bgpPort is where BGP listens unless a BGPConfiguration says otherwise.
const bgpPort = 179

// bgpHoldTime is offered unless keepaliveTime asks for more.
const bgpHoldTime = 90 * time.Second

// ordinaryPref is the LOCAL_PREF of ordinary routes: 2147483647 less the
// metric, which is 1024 (spec/calico.md §6.2, step 0).
const ordinaryPref = 1<<31 - 1 - 1024

// speaker computes what this host says by BGP and to whom (spec/calico.md §6.1).
// A host without a Node object, or without an address on it, takes no part.
// Peers that need a password are without it; secrets names them. The routes
// returned are those to peers by their reachableBy.
func (c *Core) speaker(s *State, blocks []netip.Prefix, v services, p *problems) desired.Routes {
	statics := desired.Routes{}
	self := c.nodes[c.opts.Node]
	if self == nil || self.Spec.BGP == nil {
		return statics
	}
	own := c.speakerAddrs(self, p)
	if len(own) == 0 {
		return statics
	}
	s.BGP = bgp.Config{
		RouterID: routerID(own),
		ASN:      c.asn(self),
		Listen:   c.listen(own),
		Peers:    map[netip.Addr]bgp.Peer{},
		Announce: c.announcements(s.Endpoints, blocks, v),
		PassOn:   c.passOn(v.passOn(c.clusterID(self, &problems{}).IsValid())),

		ClusterID: c.clusterID(self, p),
		LocalPref: ordinaryPref,
	}
	s.Secrets = map[netip.Addr]Secret{}
	sessions := c.peers(self, own, p)
	if names := filterNames(sessions); len(names) > 0 {
		s.BGP.Filters, s.BGP.Links = c.filters(names, p), c.connected()
	}
	for addr, w := range sessions {
		w.OnLink = c.onLink(w.Addr) != "" || c.up(w.Addr.Zone())
		w.tune()
		if err := s.BGP.Check(w.Peer); err != nil { // one bad object must not end all sessions
			p.add("BGP peer %s of %s: %v; no session is made", addr, w.Name, err)
			continue
		}
		s.BGP.Peers[addr] = w.Peer
		c.listenLinkLocal(&s.BGP, addr)
		if w.password != (Secret{}) {
			s.Secrets[addr] = w.password
		}
		if w.gateway.IsValid() {
			c.reachable(statics, w, p)
		}
	}
	s.BGP.Reach = c.reach(statics)
	return statics
}

// ignoredInterfaces are those of this node's configuration, else of the
// cluster's: names, with * for any characters.
func (c *Core) ignoredInterfaces() []string {
	for _, name := range []string{api.NodeConfigName(c.opts.Node), "default"} {
		if cfg := c.bgpConfig[name]; cfg != nil && len(cfg.Spec.IgnoredInterfaces) > 0 {
			return cfg.Spec.IgnoredInterfaces
		}
	}
	return nil
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

// bindMode is that of this node's configuration, else of the cluster's.
func (c *Core) bindMode() string {
	for _, name := range []string{api.NodeConfigName(c.opts.Node), "default"} {
		if cfg := c.bgpConfig[name]; cfg != nil && cfg.Spec.BindMode != "" {
			return cfg.Spec.BindMode
		}
	}
	return ""
}

func (c *Core) listen(own []netip.Addr) []netip.AddrPort {
	bind := c.bindMode()
	var out []netip.AddrPort
	for _, a := range own {
		if bind != "NodeIP" {
			a = unspecified(a)
		}
		out = append(out, netip.AddrPortFrom(a, c.port(c.opts.Node)))
	}
	return out
}

// listenLinkLocal adds the socket that a peer with a link-local address can
// connect to, if there is none.
func (c *Core) listenLinkLocal(cfg *bgp.Config, peer netip.Addr) {
	if peer.Zone() == "" {
		return
	}
	local := netip.IPv6Unspecified()
	if c.bindMode() == "NodeIP" {
		if local = c.linkLocal(peer.Zone()); !local.IsValid() {
			return // not up yet; we dial when it is
		}
	}
	at := netip.AddrPortFrom(local, c.port(c.opts.Node))
	if !slices.Contains(cfg.Listen, at) {
		cfg.Listen = append(cfg.Listen, at)
		slices.SortFunc(cfg.Listen, netip.AddrPort.Compare)
	}
}

// linkLocal is the link-local address of an interface, with its zone.
func (c *Core) linkLocal(link string) netip.Addr {
	for _, l := range c.links {
		for _, a := range l.Addrs {
			if l.Name == link && a.Addr().Is6() && a.Addr().IsLinkLocalUnicast() {
				return a.Addr().WithZone(link)
			}
		}
	}
	return netip.Addr{}
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// clusterID is the node's role as a route reflector: the cluster it reflects
// for (RFC 4456 §7), zero for a node that is none.
func (c *Core) clusterID(n *api.Node, p *problems) netip.Addr {
	if n == nil || n.Spec.BGP == nil || n.Spec.BGP.RouteReflectorClusterID == "" {
		return netip.Addr{}
	}
	id, err := netip.ParseAddr(n.Spec.BGP.RouteReflectorClusterID)
	if err != nil || !id.Is4() || id.IsUnspecified() {
		p.add("Node(%s): routeReflectorClusterID %q must be in the form of an IPv4 address other than 0.0.0.0; the node reflects nothing", n.Name, n.Spec.BGP.RouteReflectorClusterID)
		return netip.Addr{}
	}
	return id
}
