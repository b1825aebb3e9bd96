package api

import "reflect"

// StagedNetworkPolicy is a NetworkPolicy that is only reported on and never
// touches traffic.
type StagedNetworkPolicy struct {
	Resource
	Spec StagedNetworkPolicySpec `json:"spec"`
}

// StagedNetworkPolicySpec is the specification (spec/calico.md §1.4, §5.1, §5.2).
type StagedNetworkPolicySpec struct {
	StagedAction           StagedAction `json:"stagedAction,omitempty"`           // empty: Set
	Tier                   string       `json:"tier,omitempty"`                   // empty: "default"
	Order                  *float64     `json:"order,omitempty"`                  // ascending; nil: after all others
	Ingress                []Rule       `json:"ingress,omitempty"`                // rules for packets to the endpoints, in order
	Egress                 []Rule       `json:"egress,omitempty"`                 // rules for packets from the endpoints, in order
	Selector               string       `json:"selector,omitempty"`               // endpoints that the policy applies to; empty: all
	Types                  []PolicyType `json:"types,omitempty"`                  // "Ingress", "Egress"; empty: as the rules say
	ServiceAccountSelector string       `json:"serviceAccountSelector,omitempty"` // of the endpoints' accounts
	PerformanceHints       []string     `json:"performanceHints,omitempty"`       // "AssumeNeededOnEveryNode"
}

func (p *StagedNetworkPolicy) fields() policyFields {
	s := &p.Spec
	return policyFields{
		tier: &s.Tier, types: &s.Types, ingress: s.Ingress, egress: s.Egress, hints: s.PerformanceHints,
		selectors: []policySelector{
			{"Spec.Selector", s.Selector},
			{"Spec.ServiceAccountSelector", s.ServiceAccountSelector},
		},
	}
}

// Default fills the tier, its label and, unless the policy is staged for
// deletion, the directions.
func (p *StagedNetworkPolicy) Default() {
	p.setType("StagedNetworkPolicy")
	typed := len(p.Spec.Types) > 0
	p.defaultPolicy(p.fields())
	if p.Spec.StagedAction == StagedDelete && !typed {
		p.Spec.Types = nil
	}
}

// Validate checks the rules, the selectors and the combinations of fields.
func (p *StagedNetworkPolicy) Validate() error {
	c := newChecker(&p.Resource, "StagedNetworkPolicy", true)
	c.stagedAction(p.Spec.StagedAction, reflect.DeepEqual(p.Spec, StagedNetworkPolicySpec{StagedAction: StagedDelete, Tier: p.Spec.Tier}))
	c.policy(p.fields())
	return c.Err()
}

func stagedNetworkPolicyKind() Kind {
	return Kind{
		Name: "StagedNetworkPolicy", Plural: "stagednetworkpolicies", Aliases: []string{"snp", "snps"}, Namespaced: true,
		New: func() Object { return &StagedNetworkPolicy{} },
		Columns: policyColumns(func(o Object) policyRow {
			s := &o.(*StagedNetworkPolicy).Spec
			return policyRow{tier: s.Tier, order: s.Order, selector: s.Selector}
		}),
	}
}
