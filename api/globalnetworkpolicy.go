package api

// GlobalNetworkPolicy decides about the traffic of the endpoints of all namespaces, and of hosts,
// that it selects.
type GlobalNetworkPolicy struct {
	Resource
	Spec GlobalNetworkPolicySpec `json:"spec"`
}

// GlobalNetworkPolicySpec is the specification (spec/calico.md §1.4, §5.1, §5.2).
type GlobalNetworkPolicySpec struct {
	Tier                   string       `json:"tier,omitempty"`                   // empty: "default"
	Order                  *float64     `json:"order,omitempty"`                  // ascending; nil: after all others
	Ingress                []Rule       `json:"ingress,omitempty"`                // rules for packets to the endpoints, in order
	Egress                 []Rule       `json:"egress,omitempty"`                 // rules for packets from the endpoints, in order
	Selector               string       `json:"selector,omitempty"`               // endpoints that the policy applies to; empty: all
	Types                  []PolicyType `json:"types,omitempty"`                  // "Ingress", "Egress"; empty: as the rules say
	DoNotTrack             bool         `json:"doNotTrack,omitempty"`             // before connection tracking; needs applyOnForward
	PreDNAT                bool         `json:"preDNAT,omitempty"`                // before the host's NAT; needs applyOnForward; no egress
	ApplyOnForward         bool         `json:"applyOnForward,omitempty"`         // for forwarded packets, too
	ServiceAccountSelector string       `json:"serviceAccountSelector,omitempty"` // of the endpoints' accounts
	NamespaceSelector      string       `json:"namespaceSelector,omitempty"`      // of the endpoints' namespaces
	PerformanceHints       []string     `json:"performanceHints,omitempty"`       // "AssumeNeededOnEveryNode"
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
