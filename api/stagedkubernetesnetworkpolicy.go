package api

import (
	"maps"
	"slices"
	"strings"
)

// StagedKubernetesNetworkPolicy is a Kubernetes NetworkPolicy that is only
// reported on and never touches traffic.
type StagedKubernetesNetworkPolicy struct {
	Resource
	Spec StagedKubernetesNetworkPolicySpec `json:"spec"`
}

// StagedKubernetesNetworkPolicySpec is Kubernetes' NetworkPolicySpec with a
// staged action (spec/calico.md §1.1).
type StagedKubernetesNetworkPolicySpec struct {
	StagedAction StagedAction            `json:"stagedAction,omitempty"` // empty: Set
	PodSelector  LabelSelector           `json:"podSelector"`            // always written, if only as {}
	Ingress      []KubernetesIngressRule `json:"ingress,omitempty"`
	Egress       []KubernetesEgressRule  `json:"egress,omitempty"`
	PolicyTypes  []PolicyType            `json:"policyTypes,omitempty"` // empty: as the rules say
}

// Default fills the head and, unless the policy is staged for deletion, the
// directions, as Kubernetes does: Ingress, and Egress if there are such rules.
func (p *StagedKubernetesNetworkPolicy) Default() {
	p.setType("StagedKubernetesNetworkPolicy")
	if len(p.Spec.PolicyTypes) > 0 || p.Spec.StagedAction == StagedDelete {
		return
	}
	p.Spec.PolicyTypes = []PolicyType{PolicyIngress}
	if len(p.Spec.Egress) > 0 {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, PolicyEgress)
	}
}

// Validate checks the selectors, the ports and the peers.
func (p *StagedKubernetesNetworkPolicy) Validate() error {
	c := newChecker(&p.Resource, "StagedKubernetesNetworkPolicy", true)
	s := &p.Spec
	c.stagedAction(s.StagedAction, len(s.PodSelector.MatchLabels)+len(s.PodSelector.MatchExpressions)+len(s.Ingress)+len(s.Egress)+len(s.PolicyTypes) == 0)
	c.policyTypes("Spec.PolicyTypes", s.PolicyTypes)
	prefix := c.kind + ".Spec"
	s.PodSelector.Validate(&c.FieldErrors, prefix+".PodSelector")
	for i := range s.Ingress {
		path := index(prefix+".Ingress", i)
		ValidateKubernetesRule(&c.FieldErrors, path, s.Ingress[i].Ports, path+".From", s.Ingress[i].From)
	}
	for i := range s.Egress {
		path := index(prefix+".Egress", i)
		ValidateKubernetesRule(&c.FieldErrors, path, s.Egress[i].Ports, path+".To", s.Egress[i].To)
	}
	return c.Err()
}

// ValidateKubernetesRule reports what is wrong with the ports and peers of one
// rule, by fields below path and peersPath, into e.
func ValidateKubernetesRule(e *FieldErrors, path string, ports []KubernetesPort, peersPath string, peers []KubernetesPeer) {
	for i := range ports {
		ports[i].Validate(e, index(path+".Ports", i))
	}
	for i := range peers {
		peers[i].Validate(e, index(peersPath, i))
	}
}

// String is the selector as kubectl prints it: "app=web,tier in (a,b),!x", or
// empty if it selects everything.
func (s *LabelSelector) String() string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		parts = append(parts, k+"="+s.MatchLabels[k])
	}
	for _, r := range s.MatchExpressions {
		switch r.Operator {
		case "In":
			parts = append(parts, r.Key+" in ("+strings.Join(r.Values, ",")+")")
		case "NotIn":
			parts = append(parts, r.Key+" notin ("+strings.Join(r.Values, ",")+")")
		case "Exists":
			parts = append(parts, r.Key)
		case "DoesNotExist":
			parts = append(parts, "!"+r.Key)
		}
	}
	return strings.Join(parts, ",")
}

func stagedKubernetesNetworkPolicyKind() Kind {
	return Kind{
		Name: "StagedKubernetesNetworkPolicy", Plural: "stagedkubernetesnetworkpolicies", Aliases: []string{"sknp", "sknps"}, Namespaced: true,
		New: func() Object { return &StagedKubernetesNetworkPolicy{} },
		Columns: []Column{
			nameColumn(),
			{Header: "PODSELECTOR", Wide: true, Value: func(o Object, _ PrintContext) string {
				return o.(*StagedKubernetesNetworkPolicy).Spec.PodSelector.String()
			}},
		},
	}
}
