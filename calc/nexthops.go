package calc

import (
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/manekinet/maneki/desired"
)

// resolver finds out how next hops are reached (RFC 4271 §9.1.2, BIRD's
// "gateway recursive"): on a connected subnet, else by the longest prefix of
// the static routes to peers and of the routes of others on this host. As with
// BIRD a route that BGP brought leads to no other route's next hop: a peer
// could otherwise draw everything to itself with a default route.
type resolver struct {
	core  *Core
	via   map[netip.Prefix][]desired.NextHop
	known map[netip.Addr][]desired.NextHop
}

func (c *Core) resolver(statics desired.Routes) *resolver {
	r := &resolver{core: c, via: map[netip.Prefix][]desired.NextHop{}, known: map[netip.Addr][]desired.NextHop{}}
	for key, route := range statics {
		r.via[key.Dst] = route.Hops()
	}
	for _, u := range c.underlay { // of two metrics the lower comes first
		if _, taken := r.via[u.Dst]; !taken && c.usable(u) {
			r.via[u.Dst] = u.NextHops.List()
		}
	}
	return r
}

// hops are the gateways on interfaces through which a next hop is reached; none
// when it cannot be.
func (r *resolver) hops(hop netip.Addr) []desired.NextHop {
	if found, ok := r.known[hop]; ok {
		return found
	}
	out := r.direct(hop)
	if out == nil {
		for _, next := range r.longest(hop) {
			if !next.Gateway.IsValid() { // the next hop is a neighbour on that interface
				next.Gateway = hop
			}
			out = append(out, next)
		}
	}
	r.known[hop] = out
	return out
}

// direct is a next hop that is a neighbour.
func (r *resolver) direct(hop netip.Addr) []desired.NextHop {
	if zone := hop.Zone(); zone != "" {
		if !r.core.up(zone) {
			return []desired.NextHop{}
		}
		return []desired.NextHop{{Gateway: hop.WithZone(""), Dev: zone}}
	}
	if dev := r.core.onLink(hop); dev != "" {
		return []desired.NextHop{{Gateway: hop, Dev: dev}}
	}
	return nil
}

func (r *resolver) longest(hop netip.Addr) []desired.NextHop {
	best := -1
	var out []desired.NextHop
	for dst, hops := range r.via {
		if dst.Bits() > best && dst.Contains(hop) {
			best, out = dst.Bits(), hops
		}
	}
	return out
}

// reach are the prefixes that some route of this host leads to, but for what
// BGP itself brings.
func (c *Core) reach(statics desired.Routes) []netip.Prefix {
	out := []netip.Prefix{}
	for subnet := range c.connected() {
		out = append(out, subnet)
	}
	for key := range statics {
		out = append(out, key.Dst)
	}
	for _, u := range c.underlay {
		if c.usable(u) {
			out = append(out, u.Dst)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// subnets are those of the interfaces that BGP looks at.
func (c *Core) subnets() []netip.Prefix {
	var out []netip.Prefix
	for _, l := range c.links {
		if !l.Up || !c.underlayLink(l.Name) {
			continue
		}
		for _, a := range l.Addrs {
			if !a.IsSingleIP() {
				out = append(out, a.Masked())
			}
		}
	}
	return out
}

// onLink names the interface whose subnet holds an address of somebody else.
func (c *Core) onLink(hop netip.Addr) string {
	for _, l := range c.links {
		if !l.Up || !c.underlayLink(l.Name) {
			continue
		}
		for _, a := range l.Addrs {
			if a.Bits() < a.Addr().BitLen() && a.Contains(hop) && a.Addr() != hop {
				return l.Name
			}
		}
	}
	return ""
}

// usable reports whether a route of somebody else leads through interfaces that
// BGP looks at.
func (c *Core) usable(u desired.Underlay) bool {
	return !slices.ContainsFunc(u.NextHops.List(), func(h desired.NextHop) bool { return !c.underlayLink(h.Dev) })
}

func (c *Core) up(link string) bool {
	for _, l := range c.links {
		if l.Name == link {
			return l.Up
		}
	}
	return false
}

// underlayLink reports whether BGP looks at an interface: workloads' and those
// in ignoredInterfaces it does not (spec/calico.md §6.3).
func (c *Core) underlayLink(name string) bool {
	if strings.HasPrefix(name, c.opts.InterfacePrefix) {
		return false
	}
	for _, pattern := range c.ignoredInterfaces() {
		if ok, err := path.Match(pattern, name); ok && err == nil {
			return false
		}
	}
	return true
}
