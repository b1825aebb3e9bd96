package api

// GlobalNetworkSet names networks and addresses by labels, for the selectors of
// rules.
type GlobalNetworkSet struct {
	Resource
	Spec GlobalNetworkSetSpec `json:"spec"`
}

// GlobalNetworkSetSpec is the specification (spec/calico.md §1.4).
type GlobalNetworkSetSpec struct {
	Nets []string `json:"nets,omitempty"` // networks that the set's labels stand for
}

// Default fills the head and respells the CIDRs as networks.
func (s *GlobalNetworkSet) Default() {
	s.setType("GlobalNetworkSet")
	maskCIDRs(s.Spec.Nets)
}

// Validate checks every CIDR or address.
func (s *GlobalNetworkSet) Validate() error {
	c := newChecker(&s.Resource, "GlobalNetworkSet", false)
	for i, n := range s.Spec.Nets {
		c.net(index("Spec.Nets", i), n)
	}
	return c.Err()
}

func globalNetworkSetKind() Kind {
	return Kind{
		Name: "GlobalNetworkSet", Plural: "globalnetworksets", Aliases: []string{"gnetsets"},
		New: func() Object { return &GlobalNetworkSet{} },
		Columns: []Column{
			nameColumn(),
			{Header: "NETS", Wide: true, Value: func(o Object, _ PrintContext) string {
				return joinClipped(o.(*GlobalNetworkSet).Spec.Nets)
			}},
		},
	}
}
