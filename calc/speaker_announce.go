package calc

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/desired"
)

// announcements are the own blocks, aggregated, and the addresses that local
// workloads borrow from other hosts' blocks. A pool with disableBGPExport keeps
// both at home; a borrowed address leaves only if an enabled pool holds it
// (spec/calico.md §6.2, rules 2, 5 and 7). Services' routes come with them (rule 6).
func (c *Core) announcements(eps desired.Endpoints, blocks []netip.Prefix, v services) map[netip.Prefix]bgp.Announcement {
	out := map[netip.Prefix]bgp.Announcement{}
	tags := c.prefixCommunities()
	for _, b := range blocks {
		if pool := c.pool(b.Addr()); pool == nil || !pool.Spec.DisableBGPExport {
			out[b] = c.announcement(b, tags)
		}
	}
	for _, ep := range eps {
		for _, a := range ep.Addrs.Addrs() {
			pool := c.pool(a)
			if !covered(blocks, a) && pool != nil && !pool.Spec.Disabled && !pool.Spec.DisableBGPExport {
				borrowed := netip.PrefixFrom(a, a.BitLen())
				a := c.announcement(borrowed, tags)
				a.Interface = ep.Interface
				out[borrowed] = a
			}
		}
	}
	v.announce(out, func(p netip.Prefix) bgp.Announcement { return c.announcement(p, tags) })
	return out
}

func (c *Core) announcement(prefix netip.Prefix, tags []tag) bgp.Announcement {
	values := map[string]bool{}
	for _, t := range tags {
		if t.inside.Bits() <= prefix.Bits() && t.inside.Contains(prefix.Addr()) {
			for _, v := range t.communities {
				values[v] = true
			}
		}
	}
	return bgp.Announcement{LocalPref: ordinaryPref, Communities: strings.Join(slices.Sorted(maps.Keys(values)), " ")}
}

// tag is one entry of prefixAdvertisements with its communities as values.
type tag struct {
	inside      netip.Prefix
	communities []string
}

// prefixCommunities reads prefixAdvertisements of this node's configuration,
// else of the cluster's (spec/calico.md §6.5). Names of communities may be
// those of either.
func (c *Core) prefixCommunities() []tag {
	names := map[string]string{}
	var list []api.PrefixAdvertisement
	for _, name := range []string{"default", api.NodeConfigName(c.opts.Node)} {
		cfg := c.bgpConfig[name]
		if cfg == nil {
			continue
		}
		for _, known := range cfg.Spec.Communities {
			names[known.Name] = known.Value
		}
		if len(cfg.Spec.PrefixAdvertisements) > 0 {
			list = cfg.Spec.PrefixAdvertisements
		}
	}
	var out []tag
	for _, a := range list {
		inside, err := netip.ParsePrefix(a.CIDR)
		if err != nil {
			continue // refused by the API
		}
		t := tag{inside: inside}
		for _, v := range a.Communities {
			if value, ok := names[v]; ok {
				v = value
			}
			if api.ValidCommunity(v) {
				t.communities = append(t.communities, v)
			}
		}
		out = append(out, t)
	}
	return out
}

// passOn are the destinations that are passed on when learnt: those in enabled
// pools that are exported. A fabric's default route, for one, is not
// (spec/calico.md §6.2, rules 2, 7 and 8). So are those of others.
func (c *Core) passOn(others []netip.Prefix) []netip.Prefix {
	out := append([]netip.Prefix{}, others...)
	for _, pool := range c.pools {
		if cidr, err := netip.ParsePrefix(pool.Spec.CIDR); err == nil && !pool.Spec.Disabled && !pool.Spec.DisableBGPExport {
			out = append(out, cidr)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out
}

// reachable adds the static route to a peer's address that reachableBy asks
// for. The host's own connected routes are preferred to it.
func (c *Core) reachable(rs desired.Routes, w wanted, p *problems) {
	dev := c.onLink(w.gateway)
	if dev == "" {
		p.add("BGPPeer(%s): reachableBy %s is on no connected subnet; no route to %s is made", w.Name, w.gateway, w.Addr)
		return
	}
	key := desired.NewRouteKey(netip.PrefixFrom(w.Addr, w.Addr.BitLen()))
	rs.Add(key, desired.Route{Gateway: w.gateway, Dev: dev, Proto: desired.ProtoComputed})
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
