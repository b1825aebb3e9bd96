// Package filter decides by rules which routes are exchanged with a peer, and changes those that are: the
// meaning of BGPFilter (spec/calico.md §6.2, step 1). It is pure.
package filter

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/manekinet/maneki/bgp/message"
)

// Filter is one named set of rules, by direction and family.
type Filter struct {
	Name                               string
	Export4, Import4, Export6, Import6 []Rule
	// Missing filters are named by a peer and do not exist: they refuse everything, because nobody knows
	// what they were to keep away.
	Missing bool
}

// Rule is one rule; all its conditions must hold. The zero values of conditions match everything.
type Rule struct {
	CIDR         netip.Prefix
	Match        Match // how CIDR is compared
	Min, Max     int   // lengths that In and NotIn look at, in bits; Max 0 means the family's greatest
	RemotePeers  bool  // only routes learnt by BGP
	Interface    string
	PeerType     PeerType
	Community    string // aa:nn or aa:nn:mm
	ASPathPrefix []uint32
	Priority     uint32 // metric, see Priority; 0 matches all

	Accept     bool // else Reject
	Operations []Operation
}

// Match says how a destination is compared with a rule's CIDR.
type Match uint8

// In is: inside the CIDR, with a length between Min and Max.
const (
	MatchAny Match = iota
	Equal
	NotEqual
	In
	NotIn
)

// PeerType restricts a rule to sessions of one type.
type PeerType uint8

// The types.
const (
	AnyPeer PeerType = iota
	ExternalPeer
	InternalPeer
)

// Operation is one change of an accepted route; exactly one field is set.
type Operation struct {
	AddCommunity  string
	PrependASPath []uint32 // the first becomes the first of the path
	SetPriority   uint32   // 1 to 2147483646
}

// Verdict is what a chain says of a route.
type Verdict uint8

// NoMatch leaves the decision to what comes after the filters.
const (
	NoMatch Verdict = iota
	Accept
	Reject
)

// String is the verdict in a word.
func (v Verdict) String() string {
	return [...]string{"no match", "accept", "reject"}[v]
}

// Route is what rules look at.
type Route struct {
	Prefix       netip.Prefix
	Attrs        message.Attrs
	Learnt       bool   // by BGP from a peer
	Interface    string // of an own route; that of a learnt one follows from its next hop
	InternalPeer bool   // the session it is exchanged on
}

// Chain is the filters of a peer in their order, with the connected subnets by which the interface of a
// learnt route is found. Compare chains with Same; it never changes.
type Chain struct {
	filters []Filter
	links   map[netip.Prefix]string
}

// NewChain returns a chain, nil for no filters.
func NewChain(filters []Filter, links map[netip.Prefix]string) *Chain {
	if len(filters) == 0 {
		return nil
	}
	return &Chain{filters: filters, links: links}
}

// Same reports whether both chains decide alike.
func (c *Chain) Same(o *Chain) bool {
	if c == nil || o == nil {
		return c == o
	}
	return reflect.DeepEqual(c, o)
}

// Import runs the import rules; the first rule that matches decides. It returns the attributes after the
// rule's operations, and the name of the filter that decided.
func (c *Chain) Import(r Route) (Verdict, message.Attrs, string) {
	return c.run(r, func(f *Filter) []Rule {
		if r.Prefix.Addr().Is4() {
			return f.Import4
		}
		return f.Import6
	})
}

// Export runs the export rules, like Import.
func (c *Chain) Export(r Route) (Verdict, message.Attrs, string) {
	return c.run(r, func(f *Filter) []Rule {
		if r.Prefix.Addr().Is4() {
			return f.Export4
		}
		return f.Export6
	})
}

func (c *Chain) run(r Route, rules func(*Filter) []Rule) (Verdict, message.Attrs, string) {
	if c == nil {
		return NoMatch, r.Attrs, ""
	}
	if r.Learnt && r.Interface == "" {
		r.Interface = c.device(r.Attrs.NextHop)
	}
	for i := range c.filters {
		f := &c.filters[i]
		if f.Missing {
			return Reject, r.Attrs, f.Name
		}
		for _, rule := range rules(f) {
			if !rule.matches(r) {
				continue
			}
			if !rule.Accept {
				return Reject, r.Attrs, f.Name
			}
			return Accept, rule.apply(r.Attrs), f.Name
		}
	}
	return NoMatch, r.Attrs, ""
}

// device is the interface of the most specific connected subnet that holds hop.
func (c *Chain) device(hop netip.Addr) string {
	best, name := -1, ""
	for subnet, dev := range c.links {
		if subnet.Contains(hop) && (subnet.Bits() > best || (subnet.Bits() == best && dev < name)) {
			best, name = subnet.Bits(), dev
		}
	}
	return name
}

func (rule *Rule) matches(r Route) bool {
	switch {
	case !rule.matchesPrefix(r.Prefix):
	case rule.RemotePeers && !r.Learnt:
	case rule.Interface != "" && !glob(rule.Interface, r.Interface):
	case rule.PeerType == ExternalPeer && r.InternalPeer:
	case rule.PeerType == InternalPeer && !r.InternalPeer:
	case rule.Community != "" && !carries(r.Attrs, rule.Community):
	case !slices.Equal(rule.ASPathPrefix, r.Attrs.PathHead(len(rule.ASPathPrefix))):
	case rule.Priority != 0 && rule.Priority != Priority(r.Attrs):
	default:
		return true
	}
	return false
}

func (rule *Rule) matchesPrefix(p netip.Prefix) bool {
	switch rule.Match {
	case Equal:
		return p == rule.CIDR
	case NotEqual:
		return p != rule.CIDR
	case In:
		return rule.within(p)
	case NotIn:
		return !rule.within(p)
	}
	return true
}

func (rule *Rule) within(p netip.Prefix) bool {
	greatest := rule.Max
	if greatest == 0 {
		greatest = p.Addr().BitLen()
	}
	return p.Bits() >= max(rule.CIDR.Bits(), rule.Min) && p.Bits() <= greatest && rule.CIDR.Contains(p.Addr())
}

// glob matches an interface name; '*' stands for any run of characters.
func glob(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == name
	}
	last := parts[len(parts)-1]
	if !strings.HasPrefix(name, parts[0]) {
		return false
	}
	name = name[len(parts[0]):]
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(name, part)
		if i < 0 {
			return false
		}
		name = name[i+len(part):]
	}
	return strings.HasSuffix(name, last)
}

func carries(a message.Attrs, community string) bool {
	standard, large, err := message.ParseCommunities(community)
	return err == nil && (contains(a.Communities, standard, 4) || contains(a.LargeCommunities, large, 12))
}

// contains looks for one value of size octets in a list of such.
func contains(list, value string, size int) bool {
	if len(value) != size {
		return false
	}
	for i := 0; i+size <= len(list); i += size {
		if list[i:i+size] == value {
			return true
		}
	}
	return false
}

// highest is the LOCAL_PREF of metric 0: LOCAL_PREF = 2147483647 - metric (spec/calico.md §6.2, step 0).
const highest = 1<<31 - 1

// Priority is a route's metric, as its LOCAL_PREF carries it; 0 when that is out of range.
func Priority(a message.Attrs) uint32 {
	if a.LocalPref > highest {
		return 0
	}
	return highest - a.LocalPref
}

func (rule *Rule) apply(a message.Attrs) message.Attrs {
	for _, op := range rule.Operations {
		if op.AddCommunity != "" && !carries(a, op.AddCommunity) {
			if standard, large, err := message.ParseCommunities(op.AddCommunity); err == nil {
				a.Communities += standard
				a.LargeCommunities += large
			}
		}
		for _, as := range slices.Backward(op.PrependASPath) {
			a = a.Prepend(as)
		}
		if op.SetPriority != 0 && op.SetPriority <= highest {
			a.LocalPref, a.HasLocalPref = highest-op.SetPriority, true
		}
	}
	return a
}
