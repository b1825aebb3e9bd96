package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// EncapMode says when packets of a pool are encapsulated.
type EncapMode string

// The three modes of ipipMode and vxlanMode.
const (
	EncapNever       EncapMode = "Never"
	EncapAlways      EncapMode = "Always"
	EncapCrossSubnet EncapMode = "CrossSubnet"
)

// IPPoolUse is one of a pool's allowedUses.
type IPPoolUse string

// What a pool's addresses may be used for.
const (
	UseWorkload     IPPoolUse = "Workload"
	UseTunnel       IPPoolUse = "Tunnel"
	UseLoadBalancer IPPoolUse = "LoadBalancer"
)

// IPPool is a range of addresses that workloads or tunnels are given.
type IPPool struct {
	Resource
	Spec   IPPoolSpec    `json:"spec"`
	Status *IPPoolStatus `json:"status,omitempty"`
}

// IPPoolStatus is what a controller reports about a pool.
type IPPoolStatus struct {
	Conditions []Condition `json:"conditions,omitempty"` // such as Allocatable
}

// Condition is Kubernetes' condition: one aspect of a status.
type Condition struct {
	Type               string     `json:"type"`
	Status             string     `json:"status"` // "True", "False" or "Unknown"
	ObservedGeneration int64      `json:"observedGeneration,omitempty"`
	LastTransitionTime *time.Time `json:"lastTransitionTime"`
	Reason             string     `json:"reason"`
	Message            string     `json:"message"`
}

// IPPoolSpec is the specification of an IPPool (spec/calico.md §1.4, §3, §5.2a).
type IPPoolSpec struct {
	CIDR              string      `json:"cidr"`                        // addresses of the pool; cannot be changed
	VXLANMode         EncapMode   `json:"vxlanMode,omitempty"`         // when packets to other hosts are put into VXLAN
	IPIPMode          EncapMode   `json:"ipipMode,omitempty"`          // the same for IP in IP; not together with VXLAN, not for IPv6
	NATOutgoing       bool        `json:"natOutgoing,omitempty"`       // packets that leave the pools get the host's address
	Disabled          bool        `json:"disabled,omitempty"`          // no new addresses from it
	DisableBGPExport  bool        `json:"disableBGPExport,omitempty"`  // its routes are not told to peers
	BlockSize         int         `json:"blockSize,omitempty"`         // prefix length of a block, 20-32 or 116-128; cannot be changed
	NodeSelector      string      `json:"nodeSelector,omitempty"`      // nodes whose workloads use it
	NamespaceSelector string      `json:"namespaceSelector,omitempty"` // namespaces whose workloads use it
	AllowedUses       []IPPoolUse `json:"allowedUses,omitempty"`       // what its addresses may be given to
	AssignmentMode    string      `json:"assignmentMode,omitempty"`    // "Automatic", or "Manual": only for those who name it
}

func ipPoolKind() Kind {
	spec := func(f func(s *IPPoolSpec) string) func(Object, PrintContext) string {
		return func(o Object, _ PrintContext) string { return f(&o.(*IPPool).Spec) }
	}
	return Kind{
		Name: "IPPool", Plural: "ippools", Aliases: []string{"ipp", "ipps", "pool", "pools"},
		New: func() Object { return &IPPool{} },
		Columns: []Column{
			nameColumn(),
			{Header: "CIDR", Narrow: true, Wide: true, Value: spec(func(s *IPPoolSpec) string { return s.CIDR })},
			{Header: "NAT", Wide: true, Value: spec(func(s *IPPoolSpec) string { return boolText(s.NATOutgoing) })},
			{Header: "IPIPMODE", Wide: true, Value: spec(func(s *IPPoolSpec) string { return string(s.IPIPMode) })},
			{Header: "VXLANMODE", Wide: true, Value: spec(func(s *IPPoolSpec) string { return string(s.VXLANMode) })},
			{Header: "DISABLED", Wide: true, Value: spec(func(s *IPPoolSpec) string { return boolText(s.Disabled) })},
			{Header: "DISABLEBGPEXPORT", Wide: true, Value: spec(func(s *IPPoolSpec) string { return boolText(s.DisableBGPExport) })},
			{Header: "SELECTOR", Narrow: true, Wide: true, Value: spec(func(s *IPPoolSpec) string { return s.NodeSelector })},
			{Header: "ASSIGNMENTMODE", Wide: true, Value: spec(func(s *IPPoolSpec) string { return s.AssignmentMode })},
		},
	}
}

func nameColumn() Column {
	return Column{Header: "NAME", Narrow: true, Wide: true, Value: func(o Object, _ PrintContext) string { return o.Meta().Name }}
}

func boolText(b bool) string {
	if b {
		return "true"
	}
	return "false"
}

// Family is 4 or 6, read off the CIDR's spelling; the CIDR is checked by Validate.
func (p *IPPool) Family() int {
	if strings.Contains(p.Spec.CIDR, ":") {
		return 6
	}
	return 4
}

// Block sizes (prefix lengths) allowed and used when none is named
// (spec/calico.md §3).
const (
	MinBlockSize4, MaxBlockSize4, DefaultBlockSize4 = 20, 32, 26
	MinBlockSize6, MaxBlockSize6, DefaultBlockSize6 = 116, 128, 122
)

// Prefix is the pool's CIDR; ok is false when it is malformed or has host bits.
func (p *IPPool) Prefix() (cidr netip.Prefix, ok bool) {
	cidr, err := parsePrefix(p.Spec.CIDR)
	return cidr, err == nil && cidr == cidr.Masked()
}

// Allocatable reports whether the pool may give out new addresses: it is not
// disabled, not being deleted, and no controller says otherwise.
func (p *IPPool) Allocatable() bool {
	if p.Spec.Disabled || p.DeletionTimestamp != nil {
		return false
	}
	if p.Status == nil {
		return true
	}
	return !slices.ContainsFunc(p.Status.Conditions, func(c Condition) bool {
		return c.Type == "Allocatable" && c.Status == "False"
	})
}

// Uses reports whether the pool's addresses may be used for u.
func (p *IPPool) Uses(u IPPoolUse) bool { return slices.Contains(p.Spec.AllowedUses, u) }

// Default fills what Calico's CRD fills (spec/calico.md §1.4).
func (p *IPPool) Default() {
	p.setType("IPPool")
	s := &p.Spec
	s.CIDR = canonicalCIDR(s.CIDR)
	if s.IPIPMode == "" {
		s.IPIPMode = EncapNever
	}
	if s.VXLANMode == "" {
		s.VXLANMode = EncapNever
	}
	if s.BlockSize == 0 {
		s.BlockSize = DefaultBlockSize4
		if p.Family() == 6 {
			s.BlockSize = DefaultBlockSize6
		}
	}
	if s.NodeSelector == "" {
		s.NodeSelector = "all()"
	}
	if len(s.AllowedUses) == 0 {
		s.AllowedUses = []IPPoolUse{UseWorkload, UseTunnel}
	}
	if s.AssignmentMode == "" {
		s.AssignmentMode = "Automatic"
	}
}

// Validate checks the pool by itself (spec/calico.md §3, §5.2a); overlaps with
// other pools are the business of package resource.
func (p *IPPool) Validate() error {
	c := newChecker(&p.Resource, "IPPool", false)
	s := &p.Spec
	encap := []string{string(EncapNever), string(EncapAlways), string(EncapCrossSubnet)}
	c.oneOf("Spec.IPIPMode", string(s.IPIPMode), encap...)
	c.oneOf("Spec.VXLANMode", string(s.VXLANMode), encap...)
	c.oneOf("Spec.AssignmentMode", s.AssignmentMode, "Automatic", "Manual")
	if encapsulates(s.IPIPMode) && encapsulates(s.VXLANMode) {
		c.add("Spec.VXLANMode", string(s.VXLANMode), "ipipMode and vxlanMode exclude each other")
	}
	if cidr, ok := c.cidr("Spec.CIDR", s.CIDR); ok {
		c.poolCIDR(cidr, s)
	}
	c.selector("Spec.NodeSelector", s.NodeSelector, false)
	c.selector("Spec.NamespaceSelector", s.NamespaceSelector, false)
	c.poolUses(s)
	return c.Err()
}

func encapsulates(m EncapMode) bool { return m == EncapAlways || m == EncapCrossSubnet }

func (c *checker) poolCIDR(cidr netip.Prefix, s *IPPoolSpec) {
	low, high := MinBlockSize4, MaxBlockSize4
	if cidr.Addr().Is6() {
		low, high = MinBlockSize6, MaxBlockSize6
		if encapsulates(s.IPIPMode) {
			c.add("Spec.IPIPMode", string(s.IPIPMode), "IPIP is not supported on an IPv6 pool")
		}
	}
	for _, reserved := range []string{"169.254.0.0/16", "fe80::/10"} {
		if cidr.Overlaps(netip.MustParsePrefix(reserved)) {
			c.add("Spec.CIDR", s.CIDR, "overlaps with the link-local range "+reserved)
		}
	}
	switch {
	case s.BlockSize == 0: // Default fills it
	case s.BlockSize < low || s.BlockSize > high:
		c.add("Spec.BlockSize", strconv.Itoa(s.BlockSize), fmt.Sprintf("block size must be %d-%d", low, high))
	case s.BlockSize < cidr.Bits():
		c.add("Spec.CIDR", s.CIDR, fmt.Sprintf("IP pool size is too small for block size %d; at least one block must fit", s.BlockSize))
	}
}

func (c *checker) poolUses(s *IPPoolSpec) {
	uses := map[IPPoolUse]bool{}
	for i, u := range s.AllowedUses {
		c.oneOf(index("Spec.AllowedUses", i), string(u), string(UseWorkload), string(UseTunnel), string(UseLoadBalancer))
		if u == "" {
			c.add(index("Spec.AllowedUses", i), "", "must be one of Workload, Tunnel, LoadBalancer")
		}
		uses[u] = true
	}
	if uses[UseTunnel] && len(uses) == 1 && s.NamespaceSelector != "" {
		c.add("Spec.NamespaceSelector", clip(s.NamespaceSelector), "a pool for tunnels only has no namespaceSelector")
	}
	if !uses[UseLoadBalancer] {
		return
	}
	for _, rule := range []struct {
		wrong               bool
		path, value, reason string
	}{
		{uses[UseWorkload] || uses[UseTunnel], "Spec.AllowedUses", "LoadBalancer", "LoadBalancer cannot be combined with Workload or Tunnel"},
		{encapsulates(s.IPIPMode), "Spec.IPIPMode", string(s.IPIPMode), "a LoadBalancer pool has no encapsulation"},
		{encapsulates(s.VXLANMode), "Spec.VXLANMode", string(s.VXLANMode), "a LoadBalancer pool has no encapsulation"},
		{s.NodeSelector != "" && s.NodeSelector != "all()", "Spec.NodeSelector", s.NodeSelector, "a LoadBalancer pool's nodeSelector must be all()"},
		{s.DisableBGPExport, "Spec.DisableBGPExport", "true", "a LoadBalancer pool cannot disable BGP export"},
	} {
		if rule.wrong {
			c.add(rule.path, clip(rule.value), rule.reason)
		}
	}
}
