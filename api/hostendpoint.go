package api

import (
	"slices"
	"strings"
)

// HostEndpoint is one interface of a host, or all of them, that policies apply to.
type HostEndpoint struct {
	Resource
	Spec HostEndpointSpec `json:"spec"`
}

// HostEndpointSpec is the specification (spec/calico.md §1.4, §5.2a).
type HostEndpointSpec struct {
	Node          string             `json:"node,omitempty"`          // whose interface it is
	InterfaceName string             `json:"interfaceName,omitempty"` // "*": all interfaces
	ExpectedIPs   []string           `json:"expectedIPs,omitempty"`   // addresses instead of an interface's name
	Profiles      []string           `json:"profiles,omitempty"`      // in order
	Ports         []HostEndpointPort `json:"ports,omitempty"`         // names for policy
}

// HostEndpointPort is a named port that rules may refer to.
type HostEndpointPort struct {
	Name     string      `json:"name"`     // for policy
	Protocol IntOrString `json:"protocol"` // "TCP", "UDP" or "SCTP"
	Port     uint16      `json:"port"`     // 1-65535
}

// AllInterfaces is the interfaceName that stands for every interface of the host.
const AllInterfaces = "*"

// Default fills the head and respells addresses.
func (h *HostEndpoint) Default() {
	h.setType("HostEndpoint")
	canonicalCIDRs(h.Spec.ExpectedIPs)
}

// Validate checks that the endpoint says which interface it is, and every field.
func (h *HostEndpoint) Validate() error {
	c := newChecker(&h.Resource, "HostEndpoint", false)
	s := &h.Spec
	if s.Node == "" {
		c.add("Spec.Node", "", "name the node")
	} else {
		c.name("Spec.Node", s.Node)
	}
	switch {
	case s.InterfaceName == "" && len(s.ExpectedIPs) == 0:
		c.add("Spec.InterfaceName", "", "give interfaceName, expectedIPs or both")
	case s.InterfaceName != "" && s.InterfaceName != AllInterfaces && !ValidInterfaceName(s.InterfaceName):
		c.add("Spec.InterfaceName", clip(s.InterfaceName), interfaceReason+", or *")
	}
	for i, a := range s.ExpectedIPs {
		c.addr(index("Spec.ExpectedIPs", i), a, 0)
	}
	for i, p := range s.Profiles {
		c.name(index("Spec.Profiles", i), p)
	}
	for i, p := range s.Ports {
		path := index("Spec.Ports", i)
		c.endpointPort(path, EndpointPort{Name: p.Name, Protocol: p.Protocol, Port: p.Port})
		same := func(q HostEndpointPort) bool { return q.Name == p.Name && q.Protocol == p.Protocol }
		if p.Name != "" && slices.ContainsFunc(s.Ports[:i], same) {
			c.add(path+".Name", clip(p.Name), "given twice for "+p.Protocol.String())
		}
	}
	return c.Err()
}

func hostEndpointKind() Kind {
	spec := func(f func(s *HostEndpointSpec) string) func(Object, PrintContext) string {
		return func(o Object, _ PrintContext) string { return f(&o.(*HostEndpoint).Spec) }
	}
	return Kind{
		Name: "HostEndpoint", Plural: "hostendpoints", Aliases: []string{"hep", "heps"},
		New: func() Object { return &HostEndpoint{} },
		Columns: []Column{
			nameColumn(),
			{Header: "NODE", Narrow: true, Wide: true, Value: spec(func(s *HostEndpointSpec) string { return s.Node })},
			{Header: "INTERFACE", Wide: true, Value: spec(func(s *HostEndpointSpec) string { return s.InterfaceName })},
			{Header: "IPS", Wide: true, Value: spec(func(s *HostEndpointSpec) string { return strings.Join(s.ExpectedIPs, ",") })},
			{Header: "PROFILES", Wide: true, Value: spec(func(s *HostEndpointSpec) string { return strings.Join(s.Profiles, ",") })},
		},
	}
}
