package api

import (
	"fmt"
	"strconv"
)

// BGPFilter decides which routes are exchanged with the peers that name it.
type BGPFilter struct {
	Resource
	Spec BGPFilterSpec `json:"spec"`
}

// BGPFilterSpec is the specification (spec/calico.md §1.4, §6.2). Of each list
// the first rule that matches a route decides.
type BGPFilterSpec struct {
	ExportV4 []BGPFilterRule `json:"exportV4,omitempty"` // IPv4 routes that we announce; the first rule that matches decides
	ImportV4 []BGPFilterRule `json:"importV4,omitempty"` // IPv4 routes that we are told
	ExportV6 []BGPFilterRule `json:"exportV6,omitempty"` // IPv6 routes that we announce
	ImportV6 []BGPFilterRule `json:"importV6,omitempty"` // IPv6 routes that we are told
}

// BGPFilterRule is one rule; all criteria present must hold.
type BGPFilterRule struct {
	CIDR          string                   `json:"cidr,omitempty"`          // what matchOperator compares with
	PrefixLength  *BGPFilterPrefixLength   `json:"prefixLength,omitempty"`  // needs cidr
	Source        string                   `json:"source,omitempty"`        // "RemotePeers"
	Interface     string                   `json:"interface,omitempty"`     // of the route; '*' is a wildcard
	MatchOperator string                   `json:"matchOperator,omitempty"` // "Equal", "NotEqual", "In", "NotIn"
	PeerType      string                   `json:"peerType,omitempty"`      // "eBGP", "iBGP"
	Communities   *BGPFilterCommunityMatch `json:"communities,omitempty"`   // the route has all of these
	ASPathPrefix  []ASNumber               `json:"asPathPrefix,omitempty"`  // the path begins with these
	Priority      *int                     `json:"priority,omitempty"`      // metric of the route
	Action        string                   `json:"action"`                  // "Accept" or "Reject"
	Operations    []BGPFilterOperation     `json:"operations,omitempty"`    // changes to an accepted route
}

// BGPFilterPrefixLength is a range of prefix lengths, both ends included; nil is
// the CIDR's own length and the family's greatest.
type BGPFilterPrefixLength struct {
	Min *int `json:"min,omitempty"` // 0-32, or 128
	Max *int `json:"max,omitempty"` // 0-32, or 128
}

// BGPFilterCommunityMatch is the community, exactly one for now, that a route carries.
type BGPFilterCommunityMatch struct {
	Values []string `json:"values"` // "64512:100"
}

// BGPFilterOperation changes an accepted route; exactly one field is set.
type BGPFilterOperation struct {
	AddCommunity  *BGPFilterAddCommunity  `json:"addCommunity,omitempty"`  // one of the three
	PrependASPath *BGPFilterPrependASPath `json:"prependASPath,omitempty"` // one of the three
	SetPriority   *BGPFilterSetPriority   `json:"setPriority,omitempty"`   // one of the three
}

// BGPFilterAddCommunity adds a community, "aa:nn" or "aa:nn:mm".
type BGPFilterAddCommunity struct {
	Value string `json:"value"` // "64512:100"
}

// BGPFilterPrependASPath puts AS numbers, in this order, before the AS path.
type BGPFilterPrependASPath struct {
	Prefix []ASNumber `json:"prefix"` // in the order of the path
}

// BGPFilterSetPriority sets the route's metric.
type BGPFilterSetPriority struct {
	Value int `json:"value"` // the metric
}

// Limits of a filter rule.
const (
	maxRoutePriority = 1<<31 - 2
	maxOperations    = 10
	maxPrepend       = 10
)

// Default fills the head and respells CIDRs.
func (f *BGPFilter) Default() {
	f.setType("BGPFilter")
	for _, l := range f.Spec.lists() {
		for i := range l.rules {
			l.rules[i].CIDR = canonicalCIDR(l.rules[i].CIDR)
		}
	}
}

type filterList struct {
	path   string
	family int
	rules  []BGPFilterRule
}

func (s *BGPFilterSpec) lists() []filterList {
	return []filterList{
		{"Spec.ExportV4", 4, s.ExportV4},
		{"Spec.ImportV4", 4, s.ImportV4},
		{"Spec.ExportV6", 6, s.ExportV6},
		{"Spec.ImportV6", 6, s.ImportV6},
	}
}

// Validate checks every rule.
func (f *BGPFilter) Validate() error {
	c := newChecker(&f.Resource, "BGPFilter", false)
	for _, l := range f.Spec.lists() {
		for i := range l.rules {
			c.filterRule(index(l.path, i), &l.rules[i], l.family)
		}
	}
	return c.Err()
}

func (c *checker) filterRule(path string, r *BGPFilterRule, family int) {
	c.filterCIDR(path, r, family)
	c.oneOf(path+".MatchOperator", r.MatchOperator, "Equal", "NotEqual", "In", "NotIn")
	c.oneOf(path+".Source", r.Source, "RemotePeers")
	c.oneOf(path+".PeerType", r.PeerType, "eBGP", "iBGP")
	if r.Interface != "" && !ValidInterfaceName(wildcardless(r.Interface)) {
		c.add(path+".Interface", clip(r.Interface), interfaceReason+"; * stands for any of them")
	}
	if m := r.Communities; m != nil {
		if len(m.Values) != 1 {
			c.add(path+".Communities.Values", strconv.Itoa(len(m.Values))+" values", "give exactly one community")
		}
		for i, v := range m.Values {
			c.community(index(path+".Communities.Values", i), v)
		}
	}
	c.withinPtr(path+".Priority", r.Priority, 1, maxRoutePriority)
	if r.Action == "" {
		c.add(path+".Action", "", "must be one of Accept, Reject")
	}
	c.oneOf(path+".Action", r.Action, "Accept", "Reject")
	if len(r.Operations) > 0 && r.Action == "Reject" {
		c.add(path+".Operations", r.Action, "operations need action Accept")
	}
	if len(r.Operations) > maxOperations {
		c.add(path+".Operations", strconv.Itoa(len(r.Operations))+" operations", fmt.Sprintf("at most %d operations", maxOperations))
	}
	for i := range r.Operations {
		c.filterOperation(index(path+".Operations", i), &r.Operations[i])
	}
}

// wildcardless stands letters in for wildcards.
func wildcardless(s string) string {
	b := []byte(s)
	for i := range b {
		if b[i] == '*' {
			b[i] = 'x'
		}
	}
	return string(b)
}

func (c *checker) filterCIDR(path string, r *BGPFilterRule, family int) {
	longest := 32
	if family == 6 {
		longest = 128
	}
	if r.CIDR != "" {
		if p, ok := c.cidr(path+".CIDR", r.CIDR); ok && (family == 4) != p.Addr().Is4() {
			c.add(path+".CIDR", r.CIDR, fmt.Sprintf("not an IPv%d CIDR", family))
		}
	}
	if (r.CIDR == "") != (r.MatchOperator == "") {
		c.add(path+".MatchOperator", clip(r.MatchOperator), "cidr and matchOperator must both be set or both be empty")
	}
	l := r.PrefixLength
	if l == nil {
		return
	}
	if r.CIDR == "" {
		c.add(path+".PrefixLength", "", "prefixLength needs cidr")
	}
	c.withinPtr(path+".PrefixLength.Min", l.Min, 0, longest)
	c.withinPtr(path+".PrefixLength.Max", l.Max, 0, longest)
	if l.Min != nil && l.Max != nil && *l.Min > *l.Max {
		c.add(path+".PrefixLength.Min", strconv.Itoa(*l.Min), fmt.Sprintf("must not be above max, which is %d", *l.Max))
	}
}

func (c *checker) community(path, value string) {
	if !ValidCommunity(value) {
		c.add(path, clip(value), communityReason)
	}
}

func (c *checker) filterOperation(path string, o *BGPFilterOperation) {
	set := 0
	if o.AddCommunity != nil {
		set++
		c.community(path+".AddCommunity.Value", o.AddCommunity.Value)
	}
	if p := o.PrependASPath; p != nil {
		set++
		if n := len(p.Prefix); n < 1 || n > maxPrepend {
			c.add(path+".PrependASPath.Prefix", strconv.Itoa(n)+" AS numbers", fmt.Sprintf("give 1-%d AS numbers", maxPrepend))
		}
	}
	if o.SetPriority != nil {
		set++
		c.within(path+".SetPriority.Value", o.SetPriority.Value, 1, maxRoutePriority)
	}
	if set != 1 {
		c.add(path, strconv.Itoa(set)+" operations", "give exactly one of addCommunity, prependASPath, setPriority")
	}
}

func bgpFilterKind() Kind {
	count := func(header string, f func(s *BGPFilterSpec) []BGPFilterRule) Column {
		return Column{Header: header, Narrow: true, Wide: true, Value: func(o Object, _ PrintContext) string {
			return strconv.Itoa(len(f(&o.(*BGPFilter).Spec)))
		}}
	}
	return Kind{
		Name: "BGPFilter", Plural: "bgpfilters", Aliases: []string{"bgpf", "bgpfs", "bf", "bfs"},
		New: func() Object { return &BGPFilter{} },
		Columns: []Column{
			nameColumn(),
			count("NUMEXPORTV4", func(s *BGPFilterSpec) []BGPFilterRule { return s.ExportV4 }),
			count("NUMIMPORTV4", func(s *BGPFilterSpec) []BGPFilterRule { return s.ImportV4 }),
			count("NUMEXPORTV6", func(s *BGPFilterSpec) []BGPFilterRule { return s.ExportV6 }),
			count("NUMIMPORTV6", func(s *BGPFilterSpec) []BGPFilterRule { return s.ImportV6 }),
		},
	}
}
