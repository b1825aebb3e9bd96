package api

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// The directions that rules imply (spec/calico.md §5.1), for each kind.
func TestPolicyTypes(t *testing.T) {
	rule := []Rule{{Action: ActionAllow}}
	for _, tt := range []struct {
		ingress, egress []Rule
		typed, want     []PolicyType
	}{
		{nil, nil, nil, []PolicyType{PolicyIngress}},
		{rule, nil, nil, []PolicyType{PolicyIngress}},
		{nil, rule, nil, []PolicyType{PolicyEgress}},
		{rule, rule, nil, []PolicyType{PolicyIngress, PolicyEgress}},
		{rule, rule, []PolicyType{PolicyEgress}, []PolicyType{PolicyEgress}},
	} {
		np, gnp := &NetworkPolicy{}, &GlobalNetworkPolicy{}
		snp, sgnp := &StagedNetworkPolicy{}, &StagedGlobalNetworkPolicy{}
		np.Spec.Ingress, np.Spec.Egress, np.Spec.Types = tt.ingress, tt.egress, tt.typed
		gnp.Spec.Ingress, gnp.Spec.Egress, gnp.Spec.Types = tt.ingress, tt.egress, tt.typed
		snp.Spec.Ingress, snp.Spec.Egress, snp.Spec.Types = tt.ingress, tt.egress, tt.typed
		sgnp.Spec.Ingress, sgnp.Spec.Egress, sgnp.Spec.Types = tt.ingress, tt.egress, tt.typed
		for _, p := range []struct {
			object Object
			types  *[]PolicyType
		}{{np, &np.Spec.Types}, {gnp, &gnp.Spec.Types}, {snp, &snp.Spec.Types}, {sgnp, &sgnp.Spec.Types}} {
			p.object.Default()
			if !slices.Equal(*p.types, tt.want) {
				t.Errorf("%s of %+v has types %v", p.object.Type().Kind, tt, *p.types)
			}
			if tier, ok := TierOf(p.object); !ok || tier != "default" || p.object.Meta().Labels[LabelTier] != "default" {
				t.Errorf("%s is in tier %q, labels %v", p.object.Type().Kind, tier, p.object.Meta().Labels)
			}
		}
	}
	if tier, ok := TierOf(&Tier{}); ok {
		t.Errorf("a tier is in tier %q", tier)
	}
	for _, name := range TieredKinds() {
		k, err := LookupKind(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := TierOf(k.New()); !ok {
			t.Errorf("%s has no tier", name)
		}
	}
}

// Default writes nothing into what the caller's labels share.
func TestPolicyDefaultKeepsCallersLabels(t *testing.T) {
	mine := map[string]string{"a": "b"}
	p := &GlobalNetworkPolicy{}
	p.Labels = mine
	p.Default()
	if len(mine) != 1 || len(p.Labels) != 2 {
		t.Errorf("mine %v, the policy's %v", mine, p.Labels)
	}
}

func TestBuiltInTiers(t *testing.T) {
	want := []string{
		`{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"kube-admin"},"spec":{"order":1000,"defaultAction":"Pass"},"status":{}}`,
		`{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"order":1000000,"defaultAction":"Deny"},"status":{}}`,
		`{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"kube-baseline"},"spec":{"order":10000000,"defaultAction":"Pass"},"status":{}}`,
	}
	for i, tier := range BuiltInTiers() {
		got, err := Encode(tier)
		if err != nil || tier.Validate() != nil || string(got) != want[i] {
			t.Errorf("%s, %v, %v", got, err, tier.Validate())
		}
		if !IsBuiltInTier(tier.Name) {
			t.Errorf("%s is not built in", tier.Name)
		}
		bare := &Tier{}
		bare.Name = tier.Name
		if bare.Default(); !reflect.DeepEqual(bare, tier) {
			t.Errorf("%s without spec becomes %+v", tier.Name, bare.Spec)
		}
	}
	if IsBuiltInTier("security") {
		t.Error("security is built in")
	}
}

func TestJoinClipped(t *testing.T) {
	if got := joinClipped([]string{"a", "b"}); got != "a,b" {
		t.Error(got)
	}
	exact := strings.Repeat("x", 80)
	if got := joinClipped([]string{exact}); got != exact {
		t.Error(got)
	}
	if got := joinClipped([]string{exact, "y"}); len(got) != 80 || !strings.HasSuffix(got, "x...") {
		t.Error(got)
	}
}

func TestStoredBool(t *testing.T) {
	for in, want := range map[string]StoredBool{`true`: {On: true}, `"true"`: {On: true, AsText: true}, `false`: {}, `"false"`: {AsText: true}} {
		var b StoredBool
		if err := json.Unmarshal([]byte(in), &b); err != nil || b != want {
			t.Errorf("%s is %+v, %v", in, b, err)
		}
		if out, err := json.Marshal(b); err != nil || string(out) != in {
			t.Errorf("%s is written %s, %v", in, out, err)
		}
	}
}

func TestBlockAffinityName(t *testing.T) {
	for cidr, want := range map[string]string{
		"192.168.0.0/16":            "my.node-192-168-0-0-16",
		"fd80:24e2:f998:72d6::/122": "my.node-fd80-24e2-f998-72d6---122",
	} {
		if got := BlockAffinityName("my.node", netip.MustParsePrefix(cidr)); got != want {
			t.Errorf("%s is named %s, want %s", cidr, got, want)
		}
	}
	cidr := netip.MustParsePrefix("10.0.0.0/26")
	long := strings.Repeat("n", 250)
	a, b := BlockAffinityName(long+"a", cidr), BlockAffinityName(long+"b", cidr)
	if len(a) != 252 || len(b) != 252 || a == b || !strings.Contains(a, "-10-0-0-0-26-") || !ValidName(a) {
		t.Errorf("long names %d %s, %d %s", len(a), a, len(b), b)
	}
}
