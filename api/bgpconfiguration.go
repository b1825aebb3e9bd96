package api

import (
	"strconv"
	"strings"
)

// BGPConfiguration holds the cluster's BGP settings (name "default") or those
// of one node (name "node.<node>").
type BGPConfiguration struct {
	Resource
	Spec BGPConfigurationSpec `json:"spec"`
}

// BGPConfigurationSpec is the specification (spec/calico.md §1.4, §6).
type BGPConfigurationSpec struct {
	LogSeverityScreen              string                `json:"logSeverityScreen,omitempty"`              // "None", "Debug", "Info", ...
	NodeToNodeMeshEnabled          *bool                 `json:"nodeToNodeMeshEnabled,omitempty"`          // every node has a session with every other; default true; only on default
	ASNumber                       *ASNumber             `json:"asNumber,omitempty"`                       // of nodes that have none of their own; default 64512; only on default
	ServiceLoadBalancerIPs         []CIDRBlock           `json:"serviceLoadBalancerIPs,omitempty"`         // addresses of services that are announced; only on default
	ServiceExternalIPs             []CIDRBlock           `json:"serviceExternalIPs,omitempty"`             // the same; only on default
	ServiceClusterIPs              []CIDRBlock           `json:"serviceClusterIPs,omitempty"`              // the same; only on default
	ServiceLoadBalancerAggregation string                `json:"serviceLoadBalancerAggregation,omitempty"` // "Enabled" or "Disabled"
	Communities                    []Community           `json:"communities,omitempty"`                    // names for community values
	PrefixAdvertisements           []PrefixAdvertisement `json:"prefixAdvertisements,omitempty"`           // communities that are attached to routes inside prefixes
	ListenPort                     int                   `json:"listenPort,omitempty"`                     // TCP port of sessions; default 179
	NodeMeshPassword               *BGPPassword          `json:"nodeMeshPassword,omitempty"`               // TCP MD5 of the mesh; only on default
	NodeMeshMaxRestartTime         *Duration             `json:"nodeMeshMaxRestartTime,omitempty"`         // how long stale routes are kept for a node that restarts; only on default
	BindMode                       string                `json:"bindMode,omitempty"`                       // "None" or "NodeIP"
	IgnoredInterfaces              []string              `json:"ignoredInterfaces,omitempty"`              // names, with wildcards
	LocalWorkloadPeeringIPV4       string                `json:"localWorkloadPeeringIPV4,omitempty"`       // our address towards local workloads
	LocalWorkloadPeeringIPV6       string                `json:"localWorkloadPeeringIPV6,omitempty"`       // our address towards local workloads
	ProgramClusterRoutes           string                `json:"programClusterRoutes,omitempty"`           // which routes the node agent and not the BGP daemon programs
}

// CIDRBlock is a CIDR in an object of its own, as services' ranges are written.
type CIDRBlock struct {
	CIDR string `json:"cidr"` // "10.96.0.0/12"
}

// Community names a BGP community value: "aa:nn" (RFC 1997) or "aa:nn:mm" (RFC 8092).
type Community struct {
	Name  string `json:"name,omitempty"`  // to be used in prefixAdvertisements
	Value string `json:"value,omitempty"` // "64512:100", or "64512:1:2" of RFC 8092
}

// PrefixAdvertisement attaches communities, by name or value, to routes inside a CIDR.
type PrefixAdvertisement struct {
	CIDR        string   `json:"cidr,omitempty"`        // routes inside it
	Communities []string `json:"communities,omitempty"` // names or values
}

// BGPPassword points at the secret that holds a TCP-MD5 password (RFC 2385).
type BGPPassword struct {
	SecretKeyRef *SecretKeySelector `json:"secretKeyRef,omitempty"` // where the text is
}

// SecretKeySelector is Kubernetes' reference to one key of a secret.
type SecretKeySelector struct {
	Name     string `json:"name,omitempty"`     // of the secret
	Key      string `json:"key"`                // of the entry in it
	Optional *bool  `json:"optional,omitempty"` // no error when it is not there
}

// NodeConfigName is the name of the per-node BGPConfiguration or
// FelixConfiguration of a node.
func NodeConfigName(node string) string { return "node." + node }

// Default fills what Calico's CRD fills (spec/calico.md §1.4).
func (b *BGPConfiguration) Default() {
	b.setType("BGPConfiguration")
	if b.Spec.LogSeverityScreen == "" {
		b.Spec.LogSeverityScreen = "Info"
	}
	if b.Spec.ServiceLoadBalancerAggregation == "" {
		b.Spec.ServiceLoadBalancerAggregation = "Enabled"
	}
	for _, list := range [][]CIDRBlock{b.Spec.ServiceClusterIPs, b.Spec.ServiceExternalIPs, b.Spec.ServiceLoadBalancerIPs} {
		for i := range list {
			list[i].CIDR = canonicalCIDR(list[i].CIDR)
		}
	}
	for i := range b.Spec.PrefixAdvertisements {
		b.Spec.PrefixAdvertisements[i].CIDR = canonicalCIDR(b.Spec.PrefixAdvertisements[i].CIDR)
	}
}

// Validate checks the fields, and that only "default" holds what concerns the
// whole cluster (spec/calico.md §6.5).
func (b *BGPConfiguration) Validate() error {
	c := newChecker(&b.Resource, "BGPConfiguration", false)
	s := &b.Spec
	c.bgpAnnotations(&b.Resource)
	c.oneOf("Spec.LogSeverityScreen", s.LogSeverityScreen, "Trace", "Debug", "Info", "Warning", "Error", "Fatal", "Panic", "None", "none", "debug", "info")
	c.oneOf("Spec.BindMode", s.BindMode, "None", "NodeIP")
	c.oneOf("Spec.ServiceLoadBalancerAggregation", s.ServiceLoadBalancerAggregation, "Enabled", "Disabled")
	c.oneOf("Spec.ProgramClusterRoutes", s.ProgramClusterRoutes, "Enabled", "Disabled", "EnabledNoEncapOnly")
	c.within("Spec.ListenPort", s.ListenPort, 0, 65535)
	c.notNegative("Spec.NodeMeshMaxRestartTime", s.NodeMeshMaxRestartTime)
	c.password("Spec.NodeMeshPassword", s.NodeMeshPassword)
	c.optAddr("Spec.LocalWorkloadPeeringIPV4", s.LocalWorkloadPeeringIPV4, 4)
	c.optAddr("Spec.LocalWorkloadPeeringIPV6", s.LocalWorkloadPeeringIPV6, 6)
	if s.ASNumber != nil && *s.ASNumber == 0 {
		c.add("Spec.ASNumber", "0", "must be 1-4294967295")
	}
	c.cidrBlocks("Spec.ServiceClusterIPs", s.ServiceClusterIPs)
	c.cidrBlocks("Spec.ServiceExternalIPs", s.ServiceExternalIPs)
	c.cidrBlocks("Spec.ServiceLoadBalancerIPs", s.ServiceLoadBalancerIPs)
	c.communities(s)
	c.reflection(b)
	c.services(b)
	if b.Name != "default" {
		c.onlyOnDefault(s)
	}
	return c.Err()
}

func (c *checker) cidrBlocks(path string, list []CIDRBlock) {
	for i, b := range list {
		c.cidr(index(path, i)+".CIDR", b.CIDR)
	}
}

func (c *checker) onlyOnDefault(s *BGPConfigurationSpec) {
	for _, f := range []struct {
		set         bool
		field, json string
	}{
		{s.NodeToNodeMeshEnabled != nil, "NodeToNodeMeshEnabled", "nodeToNodeMeshEnabled"},
		{s.ASNumber != nil, "ASNumber", "asNumber"},
		{len(s.ServiceClusterIPs) > 0, "ServiceClusterIPs", "serviceClusterIPs"},
		{len(s.ServiceExternalIPs) > 0, "ServiceExternalIPs", "serviceExternalIPs"},
		{len(s.ServiceLoadBalancerIPs) > 0, "ServiceLoadBalancerIPs", "serviceLoadBalancerIPs"},
		{s.NodeMeshPassword != nil, "NodeMeshPassword", "nodeMeshPassword"},
		{s.NodeMeshMaxRestartTime != nil, "NodeMeshMaxRestartTime", "nodeMeshMaxRestartTime"},
	} {
		if f.set {
			c.add("Spec."+f.field, "", "Cannot set "+f.json+" on a non default BGP Configuration.")
		}
	}
}

func (c *checker) communities(s *BGPConfigurationSpec) {
	known := map[string]bool{}
	for i, m := range s.Communities {
		path := index("Spec.Communities", i)
		if m.Name == "" || ValidCommunity(m.Name) || !isWord(m.Name, isAlnum, "-_.") {
			c.add(path+".Name", clip(m.Name), "a community's name is letters, digits, '-', '_' and '.'")
		}
		if !ValidCommunity(m.Value) {
			c.add(path+".Value", clip(m.Value), communityReason)
		}
		known[m.Name] = true
	}
	for i, a := range s.PrefixAdvertisements {
		path := index("Spec.PrefixAdvertisements", i)
		c.cidr(path+".CIDR", a.CIDR)
		for j, name := range a.Communities {
			if !known[name] && !ValidCommunity(name) {
				c.add(index(path+".Communities", j), clip(name), "neither a community of this configuration nor a value: "+communityReason)
			}
		}
	}
}

const communityReason = "must be aa:nn (16 bits each) or aa:nn:mm (32 bits each)"

// ValidCommunity reports whether s is a standard (RFC 1997) or large (RFC 8092) community.
func ValidCommunity(s string) bool {
	parts := strings.Split(s, ":")
	bits := 16
	if len(parts) == 3 {
		bits = 32
	}
	if len(parts) != 2 && len(parts) != 3 {
		return false
	}
	for _, p := range parts {
		if _, err := strconv.ParseUint(p, 10, bits); err != nil {
			return false
		}
	}
	return true
}

func bgpConfigurationKind() Kind {
	spec := func(f func(s *BGPConfigurationSpec) string) func(Object, PrintContext) string {
		return func(o Object, _ PrintContext) string { return f(&o.(*BGPConfiguration).Spec) }
	}
	return Kind{
		Name: "BGPConfiguration", Plural: "bgpconfigurations", Aliases: []string{"bgpconfig", "bgpconfigs"},
		New: func() Object { return &BGPConfiguration{} },
		Columns: []Column{
			nameColumn(),
			{Header: "LOGSEVERITY", Narrow: true, Wide: true, Value: spec(func(s *BGPConfigurationSpec) string { return s.LogSeverityScreen })},
			{Header: "MESHENABLED", Narrow: true, Wide: true, Value: spec(func(s *BGPConfigurationSpec) string {
				if s.NodeToNodeMeshEnabled == nil {
					return "-"
				}
				return boolText(*s.NodeToNodeMeshEnabled)
			})},
			{Header: "ASNUMBER", Narrow: true, Wide: true, Value: spec(func(s *BGPConfigurationSpec) string {
				if s.ASNumber == nil {
					return "-"
				}
				return s.ASNumber.String()
			})},
		},
	}
}
