package calc

import (
	"net/netip"
	"slices"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/selector"
)

// labelNoServices on a node keeps services' addresses from being announced by it
// (spec/calico.md §2.4, §6.4). Its value does not matter.
const labelNoServices = "node.kubernetes.io/exclude-from-external-load-balancers"

// services is what this host says by BGP of services' addresses.
type services struct {
	ranges []netip.Prefix      // of all three kinds
	listed map[netip.Addr]bool // in the annotation maneki.net/services
	served map[netip.Addr]bool // of these, by this host
	spread []netip.Prefix      // of the ranges, those that a reflector passes on
	shown  []netip.Prefix      // of the ranges, those that are announced as a whole
}

// services reads the ranges and the annotation of BGPConfiguration default. A
// host that is excluded serves nothing.
func (c *Core) services(p *problems) services {
	d := c.bgpConfig["default"]
	s := services{listed: map[netip.Addr]bool{}, served: map[netip.Addr]bool{}}
	if d == nil {
		return s
	}
	s.ranges = d.Spec.ServiceCIDRs()
	external := api.BGPConfigurationSpec{ServiceExternalIPs: d.Spec.ServiceExternalIPs, ServiceLoadBalancerIPs: d.Spec.ServiceLoadBalancerIPs}
	s.spread = external.ServiceCIDRs()
	list, err := d.Services()
	if err != nil {
		p.add("BGPConfiguration(default): %s; no service of it is announced", oneLine(err))
	}
	for _, service := range list {
		here := c.serves(service, p)
		for _, text := range service.Addresses {
			if a, err := netip.ParseAddr(text); err == nil {
				s.listed[a] = true
				s.served[a] = s.served[a] || here
			}
		}
	}
	if self := c.nodes[c.opts.Node]; self != nil {
		if _, excluded := self.Labels[labelNoServices]; excluded {
			clear(s.served)
			return s
		}
	}
	whole := d.Spec
	if whole.ServiceLoadBalancerAggregation == "Disabled" {
		whole.ServiceLoadBalancerIPs = nil
	}
	s.shown = whole.ServiceCIDRs()
	return s
}

// serves reports whether a service names this host.
func (c *Core) serves(s api.Service, p *problems) bool {
	if s.HostSelector == "" {
		for _, h := range s.Hosts {
			if c.nodes[h] == nil {
				p.add("BGPConfiguration(default): service %s: host %q does not exist", title(s), h)
			}
		}
		return slices.Contains(s.Hosts, c.opts.Node)
	}
	sel, err := selector.Parse(s.HostSelector)
	if err != nil {
		return false // refused by the API
	}
	found := false
	for _, n := range c.nodes {
		found = found || sel.Match(n.Labels)
	}
	if !found {
		p.add("BGPConfiguration(default): service %s: hostSelector %s matches no node", title(s), s.HostSelector)
	}
	self := c.nodes[c.opts.Node]
	return self != nil && sel.Match(self.Labels)
}

// title names a service in messages.
func title(s api.Service) string {
	if s.Name != "" {
		return s.Name
	}
	return s.Addresses[0]
}

// announce adds the routes of services to those that this host announces
// (spec/calico.md §6.4): the ranges as a whole, by every host, and the addresses
// that this host serves. A range of one address which the annotation lists is
// announced by its hosts only.
func (s services) announce(out map[netip.Prefix]bgp.Announcement, make func(netip.Prefix) bgp.Announcement) {
	for _, r := range s.shown {
		if !(r.IsSingleIP() && s.listed[r.Addr()]) {
			out[r] = make(r)
		}
	}
	for a, here := range s.served {
		if here {
			host := netip.PrefixFrom(a, a.BitLen())
			out[host] = make(host)
		}
	}
}

// passOn are the destinations that a reflector passes on: services outside the
// cluster's own range (spec/calico.md §6.2, rule 6), and the addresses of the
// annotation, which the hosts behind it need as well.
func (s services) passOn(reflector bool) []netip.Prefix {
	if !reflector {
		return nil
	}
	out := slices.Clone(s.spread)
	for a := range s.listed {
		if host := netip.PrefixFrom(a, a.BitLen()); !slices.ContainsFunc(out, func(r netip.Prefix) bool { return r.Contains(a) }) {
			out = append(out, host)
		}
	}
	return out
}

// kernel reports whether a learnt route may be put into the kernel. Ranges of
// services and what lies in them are none of the kernel's: every host hands
// these addresses to the services itself (spec/calico.md §6.3). Where no
// Kubernetes does that the addresses of the annotation are ordinary
// destinations for the hosts that do not serve them.
func (s services) kernel(dst netip.Prefix) bool {
	if dst.IsSingleIP() && s.listed[dst.Addr()] {
		return !s.served[dst.Addr()]
	}
	return !slices.ContainsFunc(s.ranges, func(r netip.Prefix) bool { return r.Bits() <= dst.Bits() && r.Contains(dst.Addr()) })
}

// blackholes discard what comes for an address of a range that nobody serves.
// Without them it would go back to the router that sent it here, and in circles.
// With Kubernetes, which is when no annotation lists addresses, such a route
// would take the packets before the service's own rules see them.
func (s services) blackholes(rs desired.Routes) {
	if len(s.listed) == 0 {
		return
	}
	for _, r := range s.ranges {
		if !r.IsSingleIP() {
			rs.Add(desired.NewRouteKey(r), desired.Route{Type: desired.Blackhole, Proto: desired.ProtoComputed})
		}
	}
}
