package calc_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/manekinet/maneki/autodetect"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

// history is a store that random changes are made to.
type history map[datastore.Key]string

func drawPolicySpec(t *rapid.T) string {
	pick := func(label string, of ...string) string { return rapid.SampledFrom(of).Draw(t, label) }
	rules := func(label string) string {
		var out []string
		for range rapid.IntRange(0, 2).Draw(t, label) {
			out = append(out, pick("rule",
				`{"action":"Allow"}`, `{"action":"Deny","source":{"selector":"app == 'a'"}}`, `{"action":"Pass","protocol":"TCP","destination":{"ports":["web",80]}}`,
				`{"action":"Allow","source":{"selector":"has(app)","notSelector":"team == 'x'"}}`, `{"action":"Allow","destination":{"nets":[]}}`, `{"action":"Nonsense"}`,
				`{"action":"Allow","source":{"namespaceSelector":"team == 'x'"}}`, `{"action":"Allow","source":{"services":{"name":"s","namespace":"n"}}}`))
		}
		return "[" + strings.Join(out, ",") + "]"
	}
	return fmt.Sprintf(`{"spec":{"tier":%s,"order":%s,"selector":%s,"types":%s,"ingress":%s,"egress":%s}}`,
		pick("tier", `"default"`, `"t1"`, `"t2"`), pick("order", "null", "1", "2", `"x"`),
		pick("selector", `""`, `"app == 'a'"`, `"app == 'b'"`, `"team == 'x'"`, `"((("`),
		pick("types", `null`, `["Ingress"]`, `["Ingress","Egress"]`), rules("ingress"), rules("egress"))
}

// drawObject is a key with a value that may be stored under it.
func drawObject(t *rapid.T) (datastore.Key, string) {
	pick := func(label string, of ...string) string { return rapid.SampledFrom(of).Draw(t, label) }
	labels := pick("labels", `{}`, `{"app":"a"}`, `{"app":"b"}`, `{"app":"a","team":"y"}`)
	ns := pick("namespace", "n1", "n2")
	switch rapid.IntRange(0, 9).Draw(t, "kind") {
	case 0, 1, 2:
		return datastore.Key{Kind: "NetworkPolicy", Namespace: ns, Name: pick("name", "p1", "p2", "default.p1")}, drawPolicySpec(t)
	case 3, 4:
		return datastore.Key{Kind: pick("kind of policy", "GlobalNetworkPolicy", "StagedGlobalNetworkPolicy"), Name: pick("name", "p1", "p2")}, drawPolicySpec(t)
	case 5:
		return datastore.Key{Kind: "Tier", Name: pick("name", "t1", "default")}, pick("tier", `{"spec":{"order":5}}`, `{"spec":{"order":7,"defaultAction":"Pass"}}`, `[]`)
	case 6:
		return datastore.Key{Kind: "Profile", Name: pick("name", "kns.n1", "net")}, pick("profile",
			`{"spec":{"ingress":[{"action":"Allow"}],"labelsToApply":{"team":"x","pcns.team":"x"}}}`, `{"spec":{"labelsToApply":{"app":"b"}}}`)
	case 7:
		nets := pick("nets", `["10.0.0.0/8"]`, `["10.1.0.0/24","10.1.0.1/32"]`, `[]`, `["x"]`)
		return datastore.Key{Kind: "GlobalNetworkSet", Name: pick("name", "s1", "s2")}, fmt.Sprintf(`{"metadata":{"labels":%s},"spec":{"nets":%s}}`, labels, nets)
	case 8:
		node := pick("node", "n1", "n2")
		return datastore.Key{Kind: "HostEndpoint", Name: pick("name", "h1", "h2")}, fmt.Sprintf(`{"metadata":{"labels":%s},"spec":{"node":%q,"interfaceName":"eth0","profiles":["net"]}}`, labels, node)
	}
	node, i := pick("node", "n1", "n2"), rapid.IntRange(1, 3).Draw(t, "endpoint")
	name := fmt.Sprintf("w%d", i)
	return datastore.Key{Kind: "WorkloadEndpoint", Namespace: ns, Name: name}, fmt.Sprintf(
		`{"metadata":{"labels":%s},"spec":{"node":%q,"orchestrator":"cni","interfaceName":"cali%d","ipNetworks":["10.1.0.%d/32"],"profiles":["kns.%s","net"],"ports":[{"name":"web","protocol":"TCP","port":%d}]}}`,
		labels, node, i, i, ns, 80+i)
}

func newPolicyCore() *calc.Core {
	core := calc.New(calc.Options{Node: "n1", InterfacePrefix: "cali"})
	core.Apply(calc.Batch{Links: []autodetect.Interface{{Name: "eth0", Up: true}, {Name: "cali1", Up: true}, {Name: "cali2", Up: true}, {Name: "cali3", Up: true}}})
	return core
}

// TestPolicyForgetsThePast: after any changes the state is that of a core that
// has only ever seen what is stored now; states handed out earlier are untouched,
// and what is equal in two states is the same object.
func TestPolicyForgetsThePast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		stored, core := history{}, newPolicyCore()
		var last *policy.State
		lastText := ""
		for range rapid.IntRange(1, 12).Draw(t, "rounds") {
			var events []datastore.Event
			for range rapid.IntRange(0, 5).Draw(t, "changes") {
				k, value := drawObject(t)
				if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
					delete(stored, k)
					events = append(events, datastore.Event{Type: datastore.EventDelete, Entry: datastore.Entry{Key: k}})
				} else {
					stored[k] = value
					events = append(events, put(k, []byte(value)))
				}
			}
			got := core.Apply(calc.Batch{Events: events})
			var all []datastore.Event
			for k, v := range stored {
				all = append(all, put(k, []byte(v)))
			}
			want := newPolicyCore().Apply(calc.Batch{Events: all})
			if diff := cmp.Diff(want.Policy.String(), got.Policy.String()); diff != "" {
				t.Fatalf("the state depends on what was (-fresh +got):\n%s", diff)
			}
			if !slices.Equal(want.Problems, got.Problems) {
				t.Fatalf("problems %q, fresh %q", got.Problems, want.Problems)
			}
			if last != nil {
				if last.String() != lastText {
					t.Fatal("a state was changed after it had been handed out")
				}
				checkSharing(t, last, got.Policy)
			}
			checkReferences(t, got.Policy)
			last, lastText = got.Policy, got.Policy.String()
		}
	})
}

func checkSharing(t *rapid.T, a, b *policy.State) {
	same := a.String() == b.String()
	if same != (a == b) {
		t.Fatalf("two states are equal: %v, the same: %v", same, a == b)
	}
	for id, p := range a.Policies {
		if q := b.Policies[id]; q != nil && (p == q) != cmp.Equal(p, q) {
			t.Fatalf("%s: same pointer %v, same content %v", id, p == q, cmp.Equal(p, q))
		}
	}
	for k, e := range a.Endpoints {
		if f := b.Endpoints[k]; f != nil && e != f && cmp.Equal(e, f, cmp.Comparer(func(x, y policy.Endpoint) bool { return fmt.Sprint(x) == fmt.Sprint(y) })) {
			t.Fatalf("endpoint %s was made anew although nothing changed", k)
		}
	}
	for id, s := range a.Sets {
		if o := b.Sets[id]; o != nil && s != o && s.Members.Digest() == o.Members.Digest() {
			t.Fatalf("set %s was made anew although nothing changed", id)
		}
	}
}

// checkReferences: everything named is there, and nothing else.
func checkReferences(t *rapid.T, s *policy.State) {
	policies := map[policy.ID]bool{}
	sets := map[policy.SetID]bool{}
	for _, e := range s.Endpoints {
		for _, h := range []policy.Hook{e.Normal, e.Forward, e.PreDNAT, e.Untracked} {
			for _, tier := range append(slices.Clone(h.Ingress), h.Egress...) {
				for _, id := range tier.Policies {
					policies[id] = true
					if s.Policies[id] == nil {
						t.Fatalf("policy %s is named and not there", id)
					}
				}
			}
		}
		for _, id := range e.Profiles {
			policies[id] = true
		}
	}
	for id, p := range s.Policies {
		if !policies[id] {
			t.Fatalf("policy %s is there and nobody names it", id)
		}
		for _, r := range append(slices.Clone(p.Ingress), p.Egress...) {
			for _, e := range []policy.Entity{r.Src, r.Dst} {
				for _, set := range append([]policy.SetID{e.Set, e.NotSet, e.Service}, append(e.Named, e.NotNamed...)...) {
					if set != "" && s.Sets[set] == nil {
						t.Fatalf("set %s is named and not there", set)
					}
					sets[set] = true
				}
			}
		}
	}
	for id := range maps.Keys(s.Sets) {
		if !sets[id] {
			t.Fatalf("set %s is there and no rule names it", id)
		}
	}
}

// TestRefusedPolicies: a policy that the kernel refuses denies until it changes, or until it is tried again; the others
// stay as they are.
func TestRefusedPolicies(t *testing.T) {
	core, batch := loaded(3, 0)
	core.Apply(batch)
	id := policy.ID{Kind: "NetworkPolicy", Namespace: "default", Name: "p1"}
	refusal := calc.Batch{Refused: []calc.Refusal{{Key: desired.NFTKey{Kind: desired.NFTChain, Name: "pi-np/default/p1"}, Why: "no such luck"}}}
	is := func(s calc.State, broken bool) {
		t.Helper()
		if got := s.Policy.Policies[id].Broken != ""; got != broken {
			t.Fatalf("broken %v, expected %v", got, broken)
		}
		told := slices.ContainsFunc(s.Problems, func(text string) bool {
			return strings.Contains(text, "default/p1") && strings.Contains(text, "no such luck")
		})
		if told != broken {
			t.Fatalf("problems %q", s.Problems)
		}
		for other, p := range s.Policy.Policies {
			if other != id && p.Broken != "" {
				t.Errorf("%s is broken: %s", other, p.Broken)
			}
		}
	}
	is(core.Apply(refusal), true)
	is(core.Apply(calc.Batch{Events: []datastore.Event{policyOf(2, 81)}}), true)
	is(core.Apply(calc.Batch{Events: []datastore.Event{policyOf(1, 81)}}), false)
	is(core.Apply(refusal), true)
	is(core.Apply(calc.Batch{TryAgain: true}), false)
	is(core.Apply(calc.Batch{Refused: []calc.Refusal{{Key: desired.NFTKey{Kind: desired.NFTSet, Name: "of nobody"}, Why: "no such luck"}}}), false)
}
