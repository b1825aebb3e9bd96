package api

// NetworkPolicy decides about the traffic of the endpoints of its namespace that it selects.
type NetworkPolicy struct {
	Resource
	Spec NetworkPolicySpec `json:"spec"`
}

// NetworkPolicySpec is the specification (spec/calico.md §1.4, §5.1, §5.2).
type NetworkPolicySpec struct {
	Tier                   string       `json:"tier,omitempty"`                   // empty: "default"
	Order                  *float64     `json:"order,omitempty"`                  // ascending; nil: after all others
	Ingress                []Rule       `json:"ingress,omitempty"`                // rules for packets to the endpoints, in order
	Egress                 []Rule       `json:"egress,omitempty"`                 // rules for packets from the endpoints, in order
	Selector               string       `json:"selector,omitempty"`               // endpoints that the policy applies to; empty: all
	Types                  []PolicyType `json:"types,omitempty"`                  // "Ingress", "Egress"; empty: as the rules say
	ServiceAccountSelector string       `json:"serviceAccountSelector,omitempty"` // of the endpoints' accounts
	PerformanceHints       []string     `json:"performanceHints,omitempty"`       // "AssumeNeededOnEveryNode"
}

func (p *NetworkPolicy) fields() policyFields {
	s := &p.Spec
	return policyFields{
		tier: &s.Tier, types: &s.Types, ingress: s.Ingress, egress: s.Egress, hints: s.PerformanceHints,
		selectors: []policySelector{
			{"Spec.Selector", s.Selector},
			{"Spec.ServiceAccountSelector", s.ServiceAccountSelector},
		},
	}
}

// Default fills the tier, its label and the directions.
func (p *NetworkPolicy) Default() {
	p.setType("NetworkPolicy")
	p.defaultPolicy(p.fields())
}

// Validate checks the rules, the selectors and the combinations of fields.
func (p *NetworkPolicy) Validate() error {
	c := newChecker(&p.Resource, "NetworkPolicy", true)
	c.policy(p.fields())
	return c.Err()
}

func networkPolicyKind() Kind {
	return Kind{
		Name: "NetworkPolicy", Plural: "networkpolicies", Aliases: []string{"np", "nps", "policy", "policies", "pol", "pols"}, Namespaced: true,
		New: func() Object { return &NetworkPolicy{} },
		Columns: policyColumns(func(o Object) policyRow {
			s := &o.(*NetworkPolicy).Spec
			return policyRow{tier: s.Tier, order: s.Order, selector: s.Selector}
		}),
	}
}
