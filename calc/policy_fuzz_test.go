package calc_test

import (
	"encoding/json"
	"testing"

	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/policy"
)

// FuzzPolicy stores anything under the kinds that policy is made of. Nothing
// panics; a policy that was stored is in force for the endpoint or selects
// something else, and one that cannot be read is in force and denies.
func FuzzPolicy(f *testing.F) {
	kinds := []string{"NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedKubernetesNetworkPolicy", "Tier", "Profile", "NetworkSet", "GlobalNetworkSet", "HostEndpoint"}
	for i, value := range []string{
		`{"spec":{"selector":"all()","ingress":[{"action":"Allow","protocol":"TCP","destination":{"ports":[80,"90:100","web"]}}]}}`,
		`{"spec":{"selector":"((","types":["Egress"],"order":1e400}}`, `null`, `[]`, `{"spec":[]}`, `{"spec":{"nets":["::/0","10.0.0.0/33"]}}`,
		`{"spec":{"ingress":[{"action":"Deny","icmp":{"type":300},"protocol":"ICMP"}],"labelsToApply":{"a":"b"}}}`, "\x00\xff",
	} {
		f.Add(uint8(i), []byte(value))
	}
	endpoint := []byte(`{"metadata":{"labels":{"app":"a"}},"spec":{"node":"n1","orchestrator":"cni","interfaceName":"cali1","ipNetworks":["10.1.0.1/32"],"profiles":["x"]}}`)
	f.Fuzz(func(t *testing.T, which uint8, value []byte) {
		core := newPolicyCore()
		core.Apply(calc.Batch{Events: []datastore.Event{put(datastore.Key{Kind: "WorkloadEndpoint", Namespace: "n1", Name: "w1"}, endpoint)}})
		key := datastore.Key{Kind: kinds[int(which)%len(kinds)], Name: "x"}
		switch key.Kind {
		case "NetworkPolicy", "StagedNetworkPolicy", "StagedKubernetesNetworkPolicy", "NetworkSet":
			key.Namespace = "n1"
		}
		s := core.Apply(calc.Batch{Events: []datastore.Event{put(key, value)}})
		for id, p := range s.Policy.Policies {
			if p.Broken != "" && len(p.Ingress)+len(p.Egress) > 0 {
				t.Fatalf("%s is broken and has rules", id)
			}
			if p.Broken != "" && len(s.Problems) == 0 {
				t.Fatalf("%s is broken and nobody is told", id)
			}
		}
		if id := (policy.ID{Kind: key.Kind, Namespace: key.Namespace, Name: "x"}); key.Kind == "NetworkPolicy" && !json.Valid(value) {
			if p := s.Policy.Policies[id]; p == nil || p.Broken == "" {
				t.Fatalf("%s is no JSON and denies nothing", id)
			}
		}
		core.Apply(calc.Batch{Events: []datastore.Event{{Type: datastore.EventDelete, Entry: datastore.Entry{Key: key}}}})
	})
}
