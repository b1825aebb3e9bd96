package convert

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/manekinet/maneki/api"
)

// A staged Kubernetes policy becomes what the policy that it stands for would.
func TestStaged(t *testing.T) {
	port := api.FromInt(80)
	in := &api.StagedKubernetesNetworkPolicy{Spec: api.StagedKubernetesNetworkPolicySpec{
		PodSelector: api.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
		Ingress: []api.KubernetesIngressRule{{
			Ports: []api.KubernetesPort{{Port: &port}},
			From:  []api.KubernetesPeer{{PodSelector: &api.LabelSelector{MatchLabels: map[string]string{"app": "fe"}}}},
		}},
	}}
	in.Name, in.Namespace = "web", "shop"
	in.Default()
	got, err := Staged(in)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := Manifest([]byte(`{kind: NetworkPolicy, apiVersion: networking.k8s.io/v1, metadata: {name: web, namespace: shop},
		spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}], from: [{podSelector: {matchLabels: {app: fe}}}]}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := plain[0].(*api.NetworkPolicy).Spec
	s := got.Spec
	if diff := cmp.Diff(want, api.NetworkPolicySpec{Tier: s.Tier, Order: s.Order, Selector: s.Selector, Types: s.Types, Ingress: s.Ingress, Egress: s.Egress}); diff != "" {
		t.Errorf("(-policy +staged):\n%s", diff)
	}
	in.Spec.PodSelector.MatchLabels["app"] = "not a value"
	if _, err := Staged(in); err == nil {
		t.Error("a selector that Kubernetes would refuse is accepted")
	}
}
