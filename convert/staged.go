package convert

import (
	"fmt"

	"github.com/manekinet/maneki/api"
)

// Staged converts the Kubernetes NetworkPolicy that a staged one stands for, as
// Manifest would convert it, but under its own name.
func Staged(in *api.StagedKubernetesNetworkPolicy) (*api.StagedNetworkPolicy, error) {
	var opts Options
	spec := networkPolicySpec{PodSelector: in.Spec.PodSelector, Ingress: in.Spec.Ingress, Egress: in.Spec.Egress, PolicyTypes: in.Spec.PolicyTypes}
	var e api.FieldErrors
	spec.validate(&e, in.Kind+".Spec")
	if err := e.Err(); err != nil {
		return nil, fmt.Errorf("convert %s %s/%s: %w", in.Kind, in.Namespace, in.Name, err)
	}
	order := float64(networkPolicyOrder)
	p := &api.StagedNetworkPolicy{Spec: api.StagedNetworkPolicySpec{
		StagedAction: in.Spec.StagedAction, Tier: api.TierDefault, Order: &order, Selector: opts.podSelector(&spec.PodSelector), Types: spec.types(),
	}}
	p.Kind, p.APIVersion, p.Name, p.Namespace = "StagedNetworkPolicy", api.GroupVersion, in.Name, in.Namespace
	for _, r := range spec.Ingress {
		p.Spec.Ingress = append(p.Spec.Ingress, opts.rules(r.Ports, r.From, true)...)
	}
	for _, r := range spec.Egress {
		p.Spec.Egress = append(p.Spec.Egress, opts.rules(r.Ports, r.To, false)...)
	}
	return p, nil
}
