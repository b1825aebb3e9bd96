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

// The sets, of each family: pools with NAT outgoing, all pools, all hosts, and
// the hosts that VXLAN packets are taken from.
const (
	setMasq  = "masq_ipam_pools"
	setPools = "network_ip_pools"
	setHosts = "all_hosts"
	setVXLAN = "all_vxlan"
	// setServices are the networks of services, of BGPConfiguration.
	setServices = "network_services"
)

// fromWorkloads is the chain that packets of workloads pass first.
const fromWorkloads = "raw_from_workloads"

func setName(set string, v4 bool) string {
	if v4 {
		return set + "4"
	}
	return set + "6"
}

// nft computes the packet filter: NAT outgoing, what workloads may not send, and
// whom tunnel packets are taken from (spec/calico.md §5.5).
func (c *Core) nft(eps desired.Endpoints, t tunnelState, p *problems) desired.NFT {
	var out desired.NFT
	for _, v4 := range []bool{true, false} {
		masq, pools, hosts := c.poolNets(v4)
		var vxlan []netip.Prefix
		for _, d := range devices() {
			for _, other := range t.peers[d.name] {
				if d.v4 == v4 && d.encap == desired.EncapVXLAN {
					vxlan = append(vxlan, netip.PrefixFrom(other.host, other.host.BitLen()))
				}
			}
		}
		vxlan = append(vxlan, c.externalNodes(v4, p)...)
		for set, nets := range map[string][]netip.Prefix{setMasq: masq, setPools: pools, setHosts: hosts, setVXLAN: vxlan, setServices: c.serviceNets(v4)} {
			out.AddSet(setName(set, v4), desired.AddrSetType(v4), desired.NetMembers(nets...))
		}
	}
	chain := func(name, kind, hook string, priority int, rules []desired.Rule) {
		if len(rules) > 0 {
			out.AddChain(name, desired.Hook{Type: kind, Name: hook, Priority: priority}, rules...)
		}
	}
	// The packets of all others need not pass the rules for workloads' one by one.
	out.AddChain(fromWorkloads, desired.Hook{}, c.fromWorkloads(p)...)
	workloads := desired.Rule{Match: []desired.Match{desired.InInterface(c.opts.InterfacePrefix + "*")}, Do: desired.Jump, Chain: fromWorkloads}
	chain("raw_prerouting", "filter", "prerouting", priorityRaw, append([]desired.Rule{workloads}, untracked(t)...))
	chain("raw_output", "filter", "output", priorityRaw, untracked(t))
	chain("filter_input", "filter", "input", priorityFilter, tunnelGuards(t))
	chain("filter_services", "filter", "forward", priorityFilter, c.serviceLoops())
	chain("nat_postrouting", "nat", "postrouting", prioritySrcNAT, append(c.publish(&out, c.publishedPorts(eps, p)), c.natRules(t, p)...))
	out.DropUnused()
	return out
}

// dropped is a rule that drops and counts.
func dropped(match ...desired.Match) desired.Rule {
	return desired.Rule{Match: match, Counter: true, Do: desired.Drop}
}

// masqueraded is a rule that gives a packet this host's address.
func masqueraded(match ...desired.Match) desired.Rule {
	return desired.Rule{Match: match, Do: desired.Masquerade, NAT: desired.NAT{Random: true}}
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
	return masq, pools, append(hosts, c.externalNodes(v4, &problems{})...) // bad ones are named once, by the caller
}

// fromWorkloads is what the packets of workloads must pass before anything else
// looks at them: nobody but this host makes tunnel packets, and the way back to
// the source must lead to the same interface.
func (c *Core) fromWorkloads(p *problems) []desired.Rule {
	var out []desired.Rule
	if !c.felixBool(func(s *api.FelixConfigurationSpec) *bool { return s.AllowVXLANPacketsFromWorkloads }) {
		out = append(out, dropped(desired.UDPPort(c.vxlanPort())))
	}
	if !c.felixBool(func(s *api.FelixConfigurationSpec) *bool { return s.AllowIPIPPacketsFromWorkloads }) {
		out = append(out, dropped(desired.Proto(protocolIPIP)), dropped(desired.Proto(protocolIPv6)))
	}
	if c.felixText(func(s *api.FelixConfigurationSpec) *string { return s.WorkloadSourceSpoofing }, "Disabled") == "Any" {
		out = append(out, c.allowedSources(p)...)
	}
	return append(out, dropped(desired.Spoofed()))
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
			out = append(out, desired.Rule{Match: []desired.Match{desired.InInterface(spec.InterfaceName), desired.SrcNet(net)}, Do: desired.Return})
		}
	}
	return out
}

// untracked keeps tunnel packets out of connection tracking: their source port
// follows from the packet inside, so that every flow would cost an entry.
func untracked(t tunnelState) []desired.Rule {
	port := devicePort(t)
	if port == 0 {
		return nil
	}
	return []desired.Rule{{Match: []desired.Match{desired.UDPPort(port)}, Do: desired.Notrack}}
}

// devicePort is that of the VXLAN devices, 0 if there are none.
func devicePort(t tunnelState) uint16 {
	for _, d := range t.devices {
		if d.Encap == desired.EncapVXLAN {
			return uint16(d.Port) // all have the same
		}
	}
	return 0
}

// tunnelGuards take tunnel packets from known hosts only: whoever else could
// send one would be inside the network.
func tunnelGuards(t tunnelState) []desired.Rule {
	var out []desired.Rule
	for _, d := range devices() {
		made, ok := t.devices[d.name]
		switch {
		case ok && d.encap == desired.EncapIPIP:
			out = append(out, dropped(desired.Proto(protocolIPIP), desired.SrcIn(setName(setHosts, d.v4), d.v4).Negate()))
		case ok:
			out = append(out, dropped(desired.UDPPort(uint16(made.Port)), desired.SrcIn(setName(setVXLAN, d.v4), d.v4).Negate()))
		}
	}
	return out
}

// natRules give packets of this host that leave by a tunnel the tunnel's address,
// so that the answer comes back through it, and packets of pools with NAT
// outgoing this host's address, unless they stay within the pools.
func (c *Core) natRules(t tunnelState, p *problems) []desired.Rule {
	var out []desired.Rule
	for _, d := range devices() {
		if made, ok := t.devices[d.name]; ok && made.Addrs != (desired.AddrSet{}) {
			out = append(out, masqueraded(desired.OutInterface(d.name), desired.ForeignSrc()))
		}
	}
	exclude := c.felixText(func(s *api.FelixConfigurationSpec) *string { return s.NATOutgoingExclusions }, "IPPoolsOnly")
	for _, v4 := range []bool{true, false} {
		if masq, _, _ := c.poolNets(v4); len(masq) == 0 {
			continue // without a NAT chain the kernel need not track connections
		}
		match := []desired.Match{desired.SrcIn(setName(setMasq, v4), v4), desired.DstIn(setName(setPools, v4), v4).Negate()}
		if exclude == "IPPoolsAndHostIPs" {
			match = append(match, desired.DstIn(setName(setHosts, v4), v4).Negate())
		}
		out = append(out, c.outgoing(match, v4, p)...)
	}
	return out
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
