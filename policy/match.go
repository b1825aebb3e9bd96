package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Criterion names one thing that a rule asks.
type Criterion uint8

// The criteria, in the order in which they are asked.
const (
	CriterionFamily Criterion = iota + 1
	CriterionProtocol
	CriterionICMP
	CriterionSource
	CriterionSourcePort
	CriterionDestination
	CriterionDestinationPort
)

// Mismatch is a criterion that a packet does not meet, in words.
type Mismatch struct {
	What Criterion
	Text string // "source 10.0.0.1 is not selected by app == 'fe'"
}

// Mismatches says everything that keeps a rule from matching a packet; none
// means that it matches. Sets that the state does not have are empty.
func (s *State) Mismatches(r *Rule, p Packet) []Mismatch {
	var out []Mismatch
	no := func(what Criterion, format string, args ...any) {
		out = append(out, Mismatch{what, fmt.Sprintf(format, args...)})
	}
	if r.Family != 0 && r.Family != p.family() {
		no(CriterionFamily, "the rule is for IPv%d", r.Family)
	}
	if r.Protocol != 0 && r.Protocol != p.Protocol {
		no(CriterionProtocol, "the protocol is %s, not %s", ProtocolName(p.Protocol), ProtocolName(r.Protocol))
	}
	if r.NotProtocol != 0 && r.NotProtocol == p.Protocol {
		no(CriterionProtocol, "the protocol is %s", ProtocolName(p.Protocol))
	}
	if r.ICMP != nil && !r.ICMP.is(p) {
		no(CriterionICMP, "the ICMP type is not %s", r.ICMP)
	}
	if r.NotICMP != nil && r.NotICMP.is(p) {
		no(CriterionICMP, "the ICMP type is %s", r.NotICMP)
	}
	src := end{s: s, addr: p.Src, port: p.SrcPort, proto: p.Protocol, name: "source"}
	dst := end{s: s, addr: p.Dst, port: p.DstPort, proto: p.Protocol, name: "destination", servicePorts: true}
	if why := src.address(&r.Src); why != "" {
		no(CriterionSource, "%s", why)
	}
	if why := src.ports(&r.Src); why != "" {
		no(CriterionSourcePort, "%s", why)
	}
	if why := dst.address(&r.Dst); why != "" {
		no(CriterionDestination, "%s", why)
	}
	if why := dst.ports(&r.Dst); why != "" {
		no(CriterionDestinationPort, "%s", why)
	}
	return out
}

// Matches reports whether a rule matches a packet.
func (s *State) Matches(r *Rule, p Packet) bool { return len(s.Mismatches(r, p)) == 0 }

func (i *ICMP) is(p Packet) bool {
	if p.Protocol != ProtoICMP && p.Protocol != ProtoICMPv6 {
		return false
	}
	return i.Type == p.Type && (i.Code == nil || *i.Code == p.Code)
}

// String is "8" or "3/1".
func (i *ICMP) String() string {
	if i.Code == nil {
		return strconv.Itoa(int(i.Type))
	}
	return fmt.Sprintf("%d/%d", i.Type, *i.Code)
}

// end is one end of a packet.
type end struct {
	s            *State
	addr         netip.Addr
	port         uint16
	proto        uint8
	name         string
	servicePorts bool // a service is matched with its ports
}

// address says why the address does not satisfy e; empty: it does.
func (x end) address(e *Entity) string {
	holds := func(p netip.Prefix) bool { return p.Contains(x.addr) }
	switch {
	case e.Nets != nil && !slices.ContainsFunc(e.Nets, holds):
		return fmt.Sprintf("%s %s is not in %s", x.name, x.addr, netsText(e.Nets))
	case slices.ContainsFunc(e.NotNets, holds):
		return fmt.Sprintf("%s %s is in %s, which the rule leaves out", x.name, x.addr, netsText(e.NotNets))
	case e.Set != "" && !x.in(e.Set):
		return fmt.Sprintf("%s %s is not selected by %s", x.name, x.addr, x.s.Describe(e.Set))
	case e.NotSet != "" && x.in(e.NotSet):
		return fmt.Sprintf("%s %s is selected by %s, which the rule leaves out", x.name, x.addr, x.s.Describe(e.NotSet))
	case e.Service != "" && !x.serves(e.Service):
		return fmt.Sprintf("%s %s is no endpoint of %s", x.name, x.addr, x.s.Describe(e.Service))
	}
	return ""
}

func (x end) in(id SetID) bool {
	set := x.s.Sets[id]
	return set != nil && set.Members.Contains(x.addr, 0, 0)
}

func (x end) serves(id SetID) bool {
	set := x.s.Sets[id]
	if set == nil {
		return false
	}
	if set.Kind == Addresses {
		return set.Members.Contains(x.addr, 0, 0)
	}
	return set.Members.Contains(x.addr, x.proto, x.port)
}

// ports says why the port does not satisfy e; empty: it does.
func (x end) ports(e *Entity) string {
	asks := !e.AnyPort || len(e.NotPorts)+len(e.NotNamed) > 0
	switch {
	case !asks:
		return ""
	case !HasPorts(x.proto):
		return fmt.Sprintf("%s has no ports", ProtocolName(x.proto))
	case !e.AnyPort && !x.within(e.Ports) && !x.named(e.Named):
		return fmt.Sprintf("%s port %d is not %s", x.name, x.port, x.s.portsText(e.Ports, e.Named))
	case x.within(e.NotPorts) || x.named(e.NotNamed):
		return fmt.Sprintf("%s port %d is %s, which the rule leaves out", x.name, x.port, x.s.portsText(e.NotPorts, e.NotNamed))
	}
	return ""
}

func (x end) within(ranges []PortRange) bool {
	return slices.ContainsFunc(ranges, func(r PortRange) bool { return r.From <= x.port && x.port <= r.To })
}

func (x end) named(sets []SetID) bool {
	return slices.ContainsFunc(sets, func(id SetID) bool {
		set := x.s.Sets[id]
		return set != nil && set.Members.Contains(x.addr, x.proto, x.port)
	})
}

// Describe is what a set selects, for people.
func (s *State) Describe(id SetID) string {
	set := s.Sets[id]
	if set == nil {
		return string(id)
	}
	return set.Selector
}

func netsText(nets []netip.Prefix) string {
	if len(nets) == 0 {
		return "an empty list"
	}
	const most = 4
	words := make([]string, 0, most+1)
	for i, n := range nets {
		if i == most {
			words = append(words, fmt.Sprintf("%d more", len(nets)-most))
			break
		}
		words = append(words, n.String())
	}
	return strings.Join(words, ", ")
}

func (s *State) portsText(ranges []PortRange, named []SetID) string {
	var words []string
	for _, r := range ranges {
		words = append(words, r.String())
	}
	for _, id := range named {
		words = append(words, s.Describe(id))
	}
	if len(words) == 0 {
		return "in an empty list"
	}
	return strings.Join(words, ", ")
}

// String is "80" or "8080:8090".
func (r PortRange) String() string {
	if r.From == r.To {
		return strconv.Itoa(int(r.From))
	}
	return fmt.Sprintf("%d:%d", r.From, r.To)
}
