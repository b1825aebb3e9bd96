package calc

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/desired"
)

// Priorities of the chains: just before those of kube-proxy and of the usual
// firewalls, which have the round numbers.
const (
	priorityRaw    = -300
	priorityFilter = -10
	prioritySrcNAT = 90
)

const (
	protocolIPIP = 4 // IP in IP (RFC 2003)
	protocolIPv6 = 41
)

// poolSets are the sets of one family: pools with NAT outgoing, all pools, all
// hosts, and the hosts that VXLAN packets are taken from.
type poolSets struct {
	v4                        bool
	masq, pools, hosts, vxlan desired.SetMatch
}

func poolSetsOf(v4 bool) poolSets {
	suffix := "6"
	if v4 {
		suffix = "4"
	}
	m := func(name string) desired.SetMatch { return desired.SetMatch{Set: name + suffix, V4: v4} }
	return poolSets{v4, m("masq_ipam_pools"), m("network_ip_pools"), m("all_hosts"), m("all_vxlan")}
}

// nft computes the packet filter: NAT outgoing, what workloads may not send, and
// whom tunnel packets are taken from (spec/calico.md §5.5).
func (c *Core) nft(t tunnelState, p *problems) desired.NFT {
	out := desired.NFT{}
	for _, v4 := range []bool{true, false} {
		s := poolSetsOf(v4)
		masq, pools, hosts := c.poolNets(v4)
		for m, nets := range map[desired.SetMatch][]netip.Prefix{s.masq: masq, s.pools: pools, s.hosts: hosts} {
			out[desired.NFTKey{Kind: desired.NFTSet, Name: m.Set}] = desired.NFTObject{V4: v4, Members: desired.NewNetSet(nets...)}
		}
		var vxlan []netip.Prefix
		for _, v := range t.vteps[v4] {
			vxlan = append(vxlan, netip.PrefixFrom(v.host, v.host.BitLen()))
		}
		vxlan = append(vxlan, c.externalNodes(v4, p)...)
		out[desired.NFTKey{Kind: desired.NFTSet, Name: s.vxlan.Set}] = desired.NFTObject{V4: v4, Members: desired.NewNetSet(vxlan...)}
	}
	chain := func(name, kind, hook string, priority int, rules []desired.Rule) {
		if len(rules) == 0 {
			return
		}
		out[desired.NFTKey{Kind: desired.NFTChain, Name: name}] = desired.NFTObject{Type: kind, Hook: hook, Priority: priority, Rules: desired.NewRules(rules...)}
	}
	chain("raw_prerouting", "filter", "prerouting", priorityRaw, append(c.fromWorkloads(p), untracked(t)...))
	chain("raw_output", "filter", "output", priorityRaw, untracked(t))
	chain("filter_input", "filter", "input", priorityFilter, tunnelGuards(t))
	chain("nat_postrouting", "nat", "postrouting", prioritySrcNAT, c.natRules(t, p))
	dropUnused(out)
	return out
}

// dropUnused removes the sets that no rule refers to.
func dropUnused(n desired.NFT) {
	used := map[string]bool{}
	for _, o := range n {
		for _, r := range o.Rules.List() {
			for _, m := range []desired.SetMatch{r.SrcIn, r.SrcNotIn, r.DstNotIn[0], r.DstNotIn[1]} {
				used[m.Set] = true
			}
		}
	}
	maps.DeleteFunc(n, func(k desired.NFTKey, _ desired.NFTObject) bool { return k.Kind == desired.NFTSet && !used[k.Name] })
}

// poolNets are the pools with NAT outgoing, all pools, disabled ones included,
// and the hosts of a family. A pool that is only for load balancers is none of
// the network's.
func (c *Core) poolNets(v4 bool) (masq, pools, hosts []netip.Prefix) {
	for _, pool := range c.pools {
		cidr, err := netip.ParsePrefix(pool.Spec.CIDR)
		uses := pool.Spec.AllowedUses
		if err != nil || cidr.Addr().Is4() != v4 || len(uses) == 1 && uses[0] == "LoadBalancer" {
			continue
		}
		pools = append(pools, cidr)
		if pool.Spec.NATOutgoing {
			masq = append(masq, cidr)
		}
	}
	for _, n := range c.nodes {
		if net, ok := c.nodeSubnet(n, v4); ok {
			hosts = append(hosts, netip.PrefixFrom(net.Addr(), net.Addr().BitLen()))
		}
	}
	return masq, pools, hosts
}

// fromWorkloads is what the packets of workloads must pass before anything else
// looks at them: the way back to the source must lead to the same interface, and
// nobody but this host makes tunnel packets.
func (c *Core) fromWorkloads(p *problems) []desired.Rule {
	var out []desired.Rule
	prefix := c.opts.InterfacePrefix + "*"
	if c.felixText(func(s *api.FelixConfigurationSpec) *string { return s.WorkloadSourceSpoofing }, "Disabled") == "Any" {
		out = c.allowedSources(p)
	}
	out = append(out, desired.Rule{In: prefix, Spoofed: true, Do: desired.Drop})
	if !c.felixBool(func(s *api.FelixConfigurationSpec) *bool { return s.AllowVXLANPacketsFromWorkloads }) {
		out = append(out, desired.Rule{In: prefix, UDPPort: c.vxlanPort(), Do: desired.Drop})
	}
	if !c.felixBool(func(s *api.FelixConfigurationSpec) *bool { return s.AllowIPIPPacketsFromWorkloads }) {
		out = append(out, desired.Rule{In: prefix, Protocol: protocolIPIP, Do: desired.Drop},
			desired.Rule{In: prefix, Protocol: protocolIPv6, Do: desired.Drop})
	}
	return out
}

// allowedSources are the sources besides their own that workloads have been
// allowed to use. The configuration must allow that as well.
func (c *Core) allowedSources(p *problems) []desired.Rule {
	keys := slices.SortedFunc(maps.Keys(c.endpoints), desired.EndpointKey.Compare)
	var out []desired.Rule
	for _, k := range keys {
		spec := &c.endpoints[k].Spec
		if !strings.HasPrefix(spec.InterfaceName, c.opts.InterfacePrefix) || len(spec.InterfaceName) > 15 {
			continue
		}
		for _, text := range spec.AllowSpoofedSourcePrefixes {
			net, err := netip.ParsePrefix(text)
			if err != nil {
				p.add("WorkloadEndpoint(%s): allowSpoofedSourcePrefixes %q is not a prefix; it is not allowed", k, text)
				continue
			}
			out = append(out, desired.Rule{In: spec.InterfaceName, Src: net.Masked(), Do: desired.Accept})
		}
	}
	return out
}

// untracked keeps tunnel packets out of connection tracking: their source port
// follows from the packet inside, so that every flow would cost an entry.
func untracked(t tunnelState) []desired.Rule {
	if len(t.devices) == 0 {
		return nil
	}
	return []desired.Rule{{UDPPort: devicePort(t), Do: desired.Notrack}}
}

func devicePort(t tunnelState) uint16 {
	for _, d := range t.devices {
		return uint16(d.Port) // all have the same
	}
	return vxlanPort
}

// tunnelGuards take tunnel packets from known hosts only: whoever else could
// send one would be inside the network.
func tunnelGuards(t tunnelState) []desired.Rule {
	var out []desired.Rule
	for _, f := range families() {
		if d, ok := t.devices[f.device]; ok {
			out = append(out, desired.Rule{UDPPort: uint16(d.Port), SrcNotIn: poolSetsOf(f.v4).vxlan, Do: desired.Drop})
		}
	}
	return out
}

// natRules give packets of this host that leave by a tunnel the tunnel's address,
// so that the answer comes back through it, and packets of pools with NAT
// outgoing this host's address, unless they stay within the pools.
func (c *Core) natRules(t tunnelState, p *problems) []desired.Rule {
	var out []desired.Rule
	for _, f := range families() {
		if d, ok := t.devices[f.device]; ok && d.Addrs != (desired.AddrSet{}) {
			out = append(out, desired.Rule{Out: f.device, SrcForeignTo: true, Do: desired.Masquerade})
		}
	}
	c.unserved(p)
	exclude := c.felixText(func(s *api.FelixConfigurationSpec) *string { return s.NATOutgoingExclusions }, "IPPoolsOnly")
	for _, v4 := range []bool{true, false} {
		s := poolSetsOf(v4)
		if masq, _, _ := c.poolNets(v4); len(masq) == 0 {
			continue // without a NAT chain the kernel need not track connections
		}
		r := desired.Rule{SrcIn: s.masq, DstNotIn: [2]desired.SetMatch{s.pools}, Do: desired.Masquerade}
		if exclude == "IPPoolsAndHostIPs" {
			r.DstNotIn[1] = s.hosts
		}
		out = append(out, r)
	}
	return out
}

// unserved names the settings of NAT that have no effect here.
func (c *Core) unserved(p *problems) {
	for name, f := range c.felix {
		if name != "default" && name != "node."+c.opts.Node {
			continue
		}
		s := &f.Spec
		for _, field := range []struct {
			name string
			set  bool
		}{
			{"natPortRange", s.NATPortRange != nil},
			{"natOutgoingAddress", s.NATOutgoingAddress != nil && *s.NATOutgoingAddress != ""},
			{"iptablesNATOutgoingInterfaceFilter", s.IptablesNATOutgoingInterfaceFilter != nil && *s.IptablesNATOutgoingInterfaceFilter != ""},
		} {
			if field.set {
				p.add("FelixConfiguration(%s): %s is not served by this build: NAT outgoing uses any port and the address of the interface", name, field.name)
			}
		}
	}
}

// externalNodes are hosts outside the cluster that may send tunnel packets.
func (c *Core) externalNodes(v4 bool, p *problems) []netip.Prefix {
	var out []netip.Prefix
	for _, name := range []string{"default", "node." + c.opts.Node} {
		f := c.felix[name]
		if f == nil {
			continue
		}
		for _, text := range f.Spec.ExternalNodesList {
			net, err := netip.ParsePrefix(text)
			if addr, aerr := netip.ParseAddr(text); aerr == nil {
				net, err = netip.PrefixFrom(addr, addr.BitLen()), nil
			}
			if err != nil {
				p.add("FelixConfiguration(%s): externalNodesList %q is neither an address nor a prefix", name, text)
				continue
			}
			if net.Addr().Is4() == v4 {
				out = append(out, net)
			}
		}
	}
	return out
}

func (c *Core) vxlanPort() uint16 {
	return uint16(c.felixInt(func(s *api.FelixConfigurationSpec) *int { return s.VXLANPort }, vxlanPort))
}

// felixBool is a switch of this node's FelixConfiguration, else of the default
// one, else off.
func (c *Core) felixBool(get func(*api.FelixConfigurationSpec) *bool) bool {
	for _, name := range []string{"node." + c.opts.Node, "default"} {
		if f := c.felix[name]; f != nil {
			if v := get(&f.Spec); v != nil {
				return *v
			}
		}
	}
	return false
}

// felixText is felixBool for words.
func (c *Core) felixText(get func(*api.FelixConfigurationSpec) *string, def string) string {
	for _, name := range []string{"node." + c.opts.Node, "default"} {
		if f := c.felix[name]; f != nil {
			if v := get(&f.Spec); v != nil && *v != "" {
				return *v
			}
		}
	}
	return def
}
