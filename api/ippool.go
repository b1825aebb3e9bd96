package api

import "strings"

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
	Spec IPPoolSpec `json:"spec"`
}

// IPPoolSpec is the specification of an IPPool (spec/calico.md §1.4, §3, §5.2a).
type IPPoolSpec struct {
	CIDR              string      `json:"cidr"`
	VXLANMode         EncapMode   `json:"vxlanMode,omitempty"`
	IPIPMode          EncapMode   `json:"ipipMode,omitempty"`
	NATOutgoing       bool        `json:"natOutgoing,omitempty"`
	Disabled          bool        `json:"disabled,omitempty"`
	DisableBGPExport  bool        `json:"disableBGPExport,omitempty"`
	BlockSize         int         `json:"blockSize,omitempty"`
	NodeSelector      string      `json:"nodeSelector,omitempty"`
	NamespaceSelector string      `json:"namespaceSelector,omitempty"`
	AllowedUses       []IPPoolUse `json:"allowedUses,omitempty"`
	AssignmentMode    string      `json:"assignmentMode,omitempty"`
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
