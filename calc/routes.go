package calc

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/desired"
)

// routes computes the host's route table. Where two classes want the same
// destination the later one of this list wins; this is the whole table of
// precedence (spec/calico.md §5.6):
//
//	class                              leads by                                 protocol
//	blackholes of own blocks and of    nothing                                  80
//	services' ranges
//	routes learnt by BGP               the underlay; in IPIP pools tunl0, on    81
//	                                   the same subnet only with Always
//	other hosts' blocks and borrowed   the pool's tunnel, or the underlay to a  80
//	addresses, by the datastore        host on the same subnet with CrossSubnet
//	static routes to BGP peers         reachableBy                              80
//	local workloads                    their interface                          3
//
// BGP has no say about destinations in VXLAN pools, but for a while after a
// change of the pool (change.go). Whether the third class has
// the IPIP pools too, and those without encapsulation, is programClusterRoutes
// of FelixConfiguration: EnabledIPIPOnly (the default), Enabled or Disabled
// (spec/calico.md §6.3).
func (c *Core) routes(eps desired.Endpoints, blocks []netip.Prefix, t tunnelState, v services, statics desired.Routes, p *problems) desired.Routes {
	out := desired.Routes{}
	for _, class := range []func(desired.Routes){
		func(rs desired.Routes) { blackholes(rs, blocks); v.blackholes(rs) },
		func(rs desired.Routes) { c.learntRoutes(rs, blocks, t, v, c.resolver(statics), p) },
		func(rs desired.Routes) { c.remoteRoutes(rs, t, p) },
		func(rs desired.Routes) { maps.Copy(rs, statics) },
		func(rs desired.Routes) { workloads(rs, eps) },
		func(rs desired.Routes) { localAddr(rs, c.opts.LocalAddr) },
	} {
		class(out)
	}
	c.narrow(out)
	return out
}

// blackholes keep a packet for an unused address of an own block from leaving
// by the default route and coming back. A block of one address needs none.
func blackholes(rs desired.Routes, blocks []netip.Prefix) {
	for _, b := range blocks {
		if !b.IsSingleIP() {
			rs.Add(desired.NewRouteKey(b), desired.Route{Type: desired.Blackhole, Proto: desired.ProtoComputed})
		}
	}
}

// localAddr delivers an address to this host. An address of an interface would do as well, but would be taken for the
// source of packets to workloads, whose interfaces have none (inet_select_addr of net/ipv4/devinet.c).
func localAddr(rs desired.Routes, a netip.Addr) {
	if a.IsValid() {
		key := desired.RouteKey{Table: desired.TableLocal, Dst: netip.PrefixFrom(a, a.BitLen())}
		rs.Add(key.Normal(), desired.Route{Type: desired.Local, Proto: desired.ProtoComputed})
	}
}

func workloads(rs desired.Routes, eps desired.Endpoints) {
	for _, ep := range eps {
		for _, a := range ep.Addrs.Addrs() {
			key := desired.NewRouteKey(netip.PrefixFrom(a, a.BitLen()))
			rs.Add(key, WorkloadRoute(ep.Interface))
		}
	}
}

func (c *Core) learntRoutes(rs desired.Routes, blocks []netip.Prefix, t tunnelState, v services, r *resolver, p *problems) {
	refused := refusals{}
	defer refused.report(p)
	for prefix, path := range c.learnt {
		pool := c.encapsulation(prefix)
		if c.withoutBGP(pool) || !v.kernel(prefix) {
			continue
		}
		if why := c.hijack(prefix, blocks); why != "" {
			refused.add(prefix, path.Peer, why)
			continue
		}
		hops := c.ways(pool, t, r, path)
		if hops.Len() == 0 {
			refused.add(prefix, path.Peer, "next hop "+path.NextHop.String()+" is on no connected subnet and no route leads to it")
			continue
		}
		key := desired.NewRouteKey(prefix)
		if c.pool(prefix.Addr()) == nil {
			key.Priority = outsidePriority
		}
		rs.Add(key, desired.Route{Proto: desired.ProtoBGP}.Via(hops))
	}
}

// maxRefusals is how many routes of one peer are named among the problems: a
// peer may send a hundred thousand.
const maxRefusals = 20

// refusals are the reasons for routes that are not used, by peer and route.
type refusals map[netip.Addr]map[netip.Prefix]string

func (r refusals) add(prefix netip.Prefix, peer netip.Addr, why string) {
	if r[peer] == nil {
		r[peer] = map[netip.Prefix]string{}
	}
	r[peer][prefix] = why
}

func (r refusals) report(p *problems) {
	for peer, list := range r {
		prefixes := slices.SortedFunc(maps.Keys(list), netip.Prefix.Compare)
		for _, prefix := range prefixes[:min(len(prefixes), maxRefusals)] {
			p.add("BGP route %s from %s is not used: %s", prefix, peer, list[prefix])
		}
		if more := len(prefixes) - maxRefusals; more > 0 {
			p.add("BGP routes from %s: %d more are not used, for such reasons", peer, more)
		}
	}
}

// withoutBGP reports whether BGP has no say about a pool's destinations: those
// with VXLAN, once every host has had the time to publish its end of it.
func (c *Core) withoutBGP(pool *api.IPPool) bool {
	if pool == nil || c.settling[pool.Name] {
		return false
	}
	d, mode := c.deviceOf(pool)
	return mode != api.EncapNever && d.encap == desired.EncapVXLAN
}

// ways are all gateways of a path and of those that are as good: hosts of the
// cluster through the pool's tunnel where it has one, others by the underlay.
func (c *Core) ways(pool *api.IPPool, t tunnelState, r *resolver, path bgp.Path) desired.NextHops {
	var out []desired.NextHop
	for _, hop := range pathHops(path) {
		// A next hop that is no host of the cluster, such as a router, has no tunnel's end.
		if pool != nil {
			d, _ := c.deviceOf(pool)
			if other, ok := t.hosts[d.name][hop]; ok {
				if w := c.way(t, pool, other.host); w.through != "" {
					out = append(out, desired.NextHop{Gateway: w.gateway, Dev: w.through, Onlink: true})
					continue
				}
			}
		}
		out = append(out, r.hops(hop)...)
	}
	return desired.NewNextHops(out...)
}

func pathHops(p bgp.Path) []netip.Addr {
	if hops := p.NextHops.Addrs(); len(hops) > 0 {
		return hops
	}
	return []netip.Addr{p.NextHop}
}

// encapsulation is the pool that a destination lies in as a whole; nil for none.
func (c *Core) encapsulation(prefix netip.Prefix) *api.IPPool {
	pool := c.pool(prefix.Addr())
	if pool == nil {
		return nil
	}
	if cidr, err := netip.ParsePrefix(pool.Spec.CIDR); err != nil || prefix.Bits() < cidr.Bits() {
		return nil
	}
	return pool
}

// outsidePriority is the metric of learnt routes that lie in no pool, such as
// a fabric's default route. The kernel would let a route of metric 0 replace
// the host's own one to the same destination, whoever made that; with Calico's
// metric for ordinary routes both stand, and the host's own is preferred.
const outsidePriority = 1024

// hijack says why a learnt route would take traffic of this host's own blocks
// away, or that to a neighbouring host. Single addresses of ours that IPAM has
// lent to another host are the one exception.
func (c *Core) hijack(prefix netip.Prefix, blocks []netip.Prefix) string {
	if node := c.neighbourIn(prefix); node != "" {
		return "host " + node + ", on a subnet of this host's, lies inside it"
	}
	for _, b := range blocks {
		if !b.Overlaps(prefix) || prefix.Bits() < b.Bits() {
			continue // elsewhere, or wider: ours are more specific and win
		}
		if prefix.IsSingleIP() && c.blocks[b].lent[prefix.Addr()] != "" {
			return ""
		}
		return "it lies inside this host's block " + b.String() + " and IPAM has not lent it to another host"
	}
	return ""
}

// neighbourIn names a host of the cluster that this one has a subnet in common
// with and that would be reached by the route instead: such a route is more
// specific than the subnet's own.
func (c *Core) neighbourIn(prefix netip.Prefix) string {
	for _, subnet := range c.subnets() {
		if subnet.Bits() >= prefix.Bits() || !subnet.Contains(prefix.Addr()) {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
			for _, addr := range c.speakerAddrs(c.nodes[name], &problems{}) {
				if prefix.Contains(addr) {
					return name
				}
			}
		}
	}
	return ""
}

// WorkloadRoute is the route of a local workload's address.
func WorkloadRoute(iface string) desired.Route {
	return desired.Route{Dev: iface, LinkScope: true, Proto: desired.ProtoEndpoint}
}
