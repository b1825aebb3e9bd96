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
	StagedAction           StagedAction `json:"stagedAction,omitempty"`           // empty: Set
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
