package api

import "reflect"

// StagedGlobalNetworkPolicy is a GlobalNetworkPolicy that is only reported on
// and never touches traffic.
type StagedGlobalNetworkPolicy struct {
	Resource
	Spec StagedGlobalNetworkPolicySpec `json:"spec"`
}

// StagedGlobalNetworkPolicySpec is the specification (spec/calico.md §1.4, §5.1, §5.2).
type StagedGlobalNetworkPolicySpec struct {
	StagedAction           StagedAction `json:"stagedAction,omitempty"` // empty: Set
	Tier                   string       `json:"tier,omitempty"`         // empty: "default"
	Order                  *float64     `json:"order,omitempty"`        // ascending; nil: after all others
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

func (p *StagedGlobalNetworkPolicy) fields() policyFields {
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

// Default fills the tier, its label and, unless the policy is staged for
// deletion, the directions.
func (p *StagedGlobalNetworkPolicy) Default() {
	p.setType("StagedGlobalNetworkPolicy")
	typed := len(p.Spec.Types) > 0
	p.defaultPolicy(p.fields())
	if p.Spec.StagedAction == StagedDelete && !typed {
		p.Spec.Types = nil
	}
}

// Validate checks the rules, the selectors and the combinations of fields.
func (p *StagedGlobalNetworkPolicy) Validate() error {
	c := newChecker(&p.Resource, "StagedGlobalNetworkPolicy", false)
	c.stagedAction(p.Spec.StagedAction, reflect.DeepEqual(p.Spec, StagedGlobalNetworkPolicySpec{StagedAction: StagedDelete, Tier: p.Spec.Tier}))
	c.policy(p.fields())
	c.hostHooks(p.Spec.DoNotTrack, p.Spec.PreDNAT, p.Spec.ApplyOnForward, p.fields())
	return c.Err()
}

func stagedGlobalNetworkPolicyKind() Kind {
	return Kind{
		Name: "StagedGlobalNetworkPolicy", Plural: "stagedglobalnetworkpolicies", Aliases: []string{"sgnp", "sgnps"},
		New: func() Object { return &StagedGlobalNetworkPolicy{} },
		Columns: policyColumns(func(o Object) policyRow {
			s := &o.(*StagedGlobalNetworkPolicy).Spec
			return policyRow{tier: s.Tier, order: s.Order, selector: s.Selector}
		}),
	}
}
