package calc

import (
	"net/netip"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/desired"
)

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
