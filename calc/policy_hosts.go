package calc

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/desired"
)

// ends are the endpoints that policy is enforced on: the workloads that are
// served, and this host's own interfaces.
func (c *Core) ends(eps desired.Endpoints, p *problems) []end {
	out := make([]end, 0, len(eps))
	for k, e := range eps {
		out = append(out, end{key: k, wep: c.endpoints[k], iface: e.Interface, addrs: e.Addrs})
	}
	return append(out, c.hostEnds(p)...)
}

// hostEnds finds the interface of each host endpoint: the one it names, all of
// them for "*", or those that have one of the expected addresses. An interface
// that several claim is the first one's by name, as with Calico. One that several
// interfaces answer to appears once for each, under its name, then "name@interface".
func (c *Core) hostEnds(p *problems) []end {
	var out []end
	taken := map[string]string{} // interface -> host endpoint
	for _, name := range slices.Sorted(maps.Keys(c.policies.hosts)) {
		h := c.policies.hosts[name]
		if strings.HasPrefix(h.Spec.InterfaceName, c.opts.InterfacePrefix) {
			p.add("HostEndpoint(%s): interface %s is a workload's; it is not enforced", name, h.Spec.InterfaceName)
			continue
		}
		ifaces := c.interfacesOf(h)
		if len(ifaces) == 0 {
			p.add("HostEndpoint(%s): no interface of this host has one of the addresses %s; it is not enforced", name, strings.Join(h.Spec.ExpectedIPs, ", "))
		}
		first := true
		for _, iface := range ifaces {
			if other, is := taken[iface]; is {
				p.add("HostEndpoint(%s): interface %s is that of HostEndpoint(%s); it is not enforced there", name, iface, other)
				continue
			}
			taken[iface] = name
			key := desired.EndpointKey{Name: name}
			if !first {
				key.Name += "@" + iface
			}
			first = false
			out = append(out, end{key: key, hep: h, iface: iface, addrs: expected(h)})
		}
	}
	return out
}

// expected are the addresses that a host endpoint says it has.
func expected(h *api.HostEndpoint) desired.AddrSet {
	var addrs []netip.Addr
	for _, text := range h.Spec.ExpectedIPs {
		if n, err := parseNet(text); err == nil && n.IsSingleIP() {
			addrs = append(addrs, n.Addr())
		}
	}
	return desired.NewAddrSet(addrs...)
}

func (c *Core) interfacesOf(h *api.HostEndpoint) []string {
	switch name := h.Spec.InterfaceName; {
	case name != "":
		return []string{name} // "*" too; the interface may come later than the policy about it
	case c.opts.Remote:
		return []string{""} // whichever it is
	}
	want := expected(h).Addrs()
	var out []string
	for _, l := range c.links {
		has := slices.ContainsFunc(l.Addrs, func(a netip.Prefix) bool { return slices.Contains(want, a.Addr()) })
		if has && !strings.HasPrefix(l.Name, c.opts.InterfacePrefix) {
			out = append(out, l.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
