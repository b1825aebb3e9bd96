package calc

import (
	"net/netip"
	"strconv"
	"strings"

	"go4.org/netipx"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/desired"
)

// outgoing are the rules of NAT outgoing for packets that match: by the address
// of the interface they leave by, or natOutgoingAddress; out of
// iptablesNATOutgoingInterfaceFilter only; TCP and UDP from natPortRange
// (spec/calico.md §5.5).
func (c *Core) outgoing(match []desired.Match, v4 bool, p *problems) []desired.Rule {
	if out := c.felixText(func(s *api.FelixConfigurationSpec) *string { return s.IptablesNATOutgoingInterfaceFilter }, ""); out != "" {
		// iptables ends the beginning of a name with "+", nftables with "*".
		if begin, ok := strings.CutSuffix(out, "+"); ok {
			out = begin + "*"
		}
		match = append(match, desired.OutInterface(out))
	}
	do, nat := desired.Masquerade, desired.NAT{Random: true}
	if text := c.felixText(func(s *api.FelixConfigurationSpec) *string { return s.NATOutgoingAddress }, ""); text != "" {
		addr, err := netip.ParseAddr(text)
		switch {
		case err != nil:
			p.add("FelixConfiguration: natOutgoingAddress %q is not an address; NAT outgoing uses that of the interface", text)
		case addr.Unmap().Is4() == v4:
			do, nat.Addr = desired.SNAT, addr.Unmap()
		}
	}
	rule := func(nat desired.NAT, more ...desired.Match) desired.Rule {
		return desired.Rule{Match: append(append([]desired.Match{}, match...), more...), Do: do, NAT: nat}
	}
	from, to, limited := c.natPorts(p)
	if !limited {
		return []desired.Rule{rule(nat)}
	}
	ports := nat
	ports.From, ports.To = from, to
	return []desired.Rule{rule(ports, desired.Proto(protocolTCP)), rule(ports, desired.Proto(protocolUDP)), rule(nat)}
}

// natPorts is natPortRange: a port, or "min:max".
func (c *Core) natPorts(p *problems) (from, to uint16, ok bool) {
	var set *api.IntOrString
	for _, name := range []string{"default", "node." + c.opts.Node} {
		if f := c.felix[name]; f != nil && f.Spec.NATPortRange != nil {
			set = f.Spec.NATPortRange
		}
	}
	if set == nil || set.String() == "" {
		return 0, 0, false
	}
	low, high, isRange := strings.Cut(set.String(), ":")
	if !isRange {
		high = low
	}
	a, err1 := strconv.ParseUint(low, 10, 16)
	b, err2 := strconv.ParseUint(high, 10, 16)
	if err1 != nil || err2 != nil || a == 0 || a > b {
		p.add("FelixConfiguration: natPortRange %q is neither a port nor min:max; NAT outgoing uses any port", set)
		return 0, 0, false
	}
	return uint16(a), uint16(b), true
}

// serviceNets are the networks that BGPConfiguration announces for services,
// without the addresses of the annotation maneki.net/services: those are
// forwarded to the hosts that serve them.
func (c *Core) serviceNets(v4 bool) []netip.Prefix {
	config := c.bgpConfig["default"]
	if config == nil {
		return nil
	}
	var b netipx.IPSetBuilder
	for _, net := range config.Spec.ServiceCIDRs() {
		if net.Addr().Is4() == v4 {
			b.AddPrefix(net)
		}
	}
	for a := range c.services(&problems{}).listed {
		b.Remove(a)
	}
	set, err := b.IPSet()
	if err != nil {
		return nil // cannot be: every prefix is valid
	}
	return set.Prefixes()
}

// serviceLoops keep packets for a service that nobody here answers for from
// going round: this host announces the whole network, so that whoever it sent
// them on to would send them back.
func (c *Core) serviceLoops() []desired.Rule {
	do := desired.Drop
	switch c.felixText(func(s *api.FelixConfigurationSpec) *string { return s.ServiceLoopPrevention }, "Drop") {
	case "Reject":
		do = desired.Reject
	case "Disabled":
		return nil
	}
	var out []desired.Rule
	for _, v4 := range []bool{true, false} {
		if len(c.serviceNets(v4)) > 0 {
			out = append(out, desired.Rule{Match: []desired.Match{desired.DstIn(setName(setServices, v4), v4)}, Counter: true, Do: do})
		}
	}
	return out
}
