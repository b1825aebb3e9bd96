package api

// GlobalNetworkPolicy decides about the traffic of the endpoints of all namespaces, and of hosts,
// that it selects.
type GlobalNetworkPolicy struct {
	Resource
	Spec GlobalNetworkPolicySpec `json:"spec"`
}

// GlobalNetworkPolicySpec is the specification (spec/calico.md §1.4, §5.1, §5.2).
type GlobalNetworkPolicySpec struct {
	Tier                   string       `json:"tier,omitempty"`  // empty: "default"
	Order                  *float64     `json:"order,omitempty"` // ascending; nil: after all others
	Ingress                []Rule       `json:"ingress,omitempty"`
	Egress                 []Rule       `json:"egress,omitempty"`
	Selector               string       `json:"selector,omitempty"`
	Types                  []PolicyType `json:"types,omitempty"`
	DoNotTrack             bool         `json:"doNotTrack,omitempty"`
	PreDNAT                bool         `json:"preDNAT,omitempty"`
	ApplyOnForward         bool         `json:"applyOnForward,omitempty"`
	ServiceAccountSelector string       `json:"serviceAccountSelector,omitempty"`
	NamespaceSelector      string       `json:"namespaceSelector,omitempty"`
	PerformanceHints       []string     `json:"performanceHints,omitempty"`
}

func (p *GlobalNetworkPolicy) fields() policyFields {
	s := &p.Spec
	return policyFields{
		tier: &s.Tier, types: &s.Types, ingress: s.Ingress, egress: s.Egress, hints: s.PerformanceHints,
		selectors: []policySelector{
			{"Spec.Selector", s.Selector},
			{"Spec.ServiceAccountSelector", s.ServiceAccountSelector},
			{"Spec.NamespaceSelector", s.NamespaceSelector},
		},
	}
}

// Default fills the tier, its label and the directions.
func (p *GlobalNetworkPolicy) Default() {
	p.setType("GlobalNetworkPolicy")
	p.defaultPolicy(p.fields())
}

// Validate checks the rules, the selectors and the combinations of fields.
func (p *GlobalNetworkPolicy) Validate() error {
	c := newChecker(&p.Resource, "GlobalNetworkPolicy", false)
	c.policy(p.fields())
	c.hostHooks(p.Spec.DoNotTrack, p.Spec.PreDNAT, p.Spec.ApplyOnForward, p.fields())
	return c.Err()
}

func globalNetworkPolicyKind() Kind {
	return Kind{
		Name: "GlobalNetworkPolicy", Plural: "globalnetworkpolicies", Aliases: []string{"gnp", "gnps"},
		New: func() Object { return &GlobalNetworkPolicy{} },
		Columns: policyColumns(func(o Object) policyRow {
			s := &o.(*GlobalNetworkPolicy).Spec
			return policyRow{tier: s.Tier, order: s.Order, selector: s.Selector}
		}),
	}
}
