package api

// NetworkSet names networks and addresses by labels, for the selectors of the rules of its
// namespace.
type NetworkSet struct {
	Resource
	Spec NetworkSetSpec `json:"spec"`
}

// NetworkSetSpec is the specification (spec/calico.md §1.4).
type NetworkSetSpec struct {
	Nets []string `json:"nets,omitempty"` // networks that the set's labels stand for
}

// Default fills the head and respells the CIDRs as networks.
func (s *NetworkSet) Default() {
	s.setType("NetworkSet")
	maskCIDRs(s.Spec.Nets)
}

// Validate checks every CIDR or address.
func (s *NetworkSet) Validate() error {
	c := newChecker(&s.Resource, "NetworkSet", true)
	for i, n := range s.Spec.Nets {
		c.net(index("Spec.Nets", i), n)
	}
	return c.Err()
}

func networkSetKind() Kind {
	return Kind{
		Name: "NetworkSet", Plural: "networksets", Aliases: []string{"netsets"}, Namespaced: true,
		New: func() Object { return &NetworkSet{} },
		Columns: []Column{
			nameColumn(),
			{Header: "NETS", Wide: true, Value: func(o Object, _ PrintContext) string {
				return joinClipped(o.(*NetworkSet).Spec.Nets)
			}},
		},
	}
}
