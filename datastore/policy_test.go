package datastore_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
)

func putRaw(t *testing.T, s datastore.Store, kind, name, value string) {
	t.Helper()
	if _, err := s.Put(t.Context(), datastore.Key{Kind: kind, Name: name}, []byte(value), datastore.Always()); err != nil {
		t.Fatal(err)
	}
}

func rawOf(t *testing.T, s datastore.Store, kind, name string) string {
	t.Helper()
	e, err := s.Get(t.Context(), datastore.Key{Kind: kind, Name: name})
	if errors.Is(err, datastore.ErrNotFound) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(e.Value)
}

// A policy is stored with its name in the annotation and the label of its tier,
// and read without the annotation (spec/calico.md §1.2).
func TestPolicyStoredForm(t *testing.T) {
	s := memory.New()
	defer s.Close()
	p := &api.GlobalNetworkPolicy{}
	p.Name, p.Annotations = "deny", map[string]string{"mine": "1"}
	p.Default()
	if err := datastore.CreateObject(t.Context(), s, p); err != nil {
		t.Fatal(err)
	}
	stored := rawOf(t, s, "GlobalNetworkPolicy", "deny")
	want := fmt.Sprintf(`{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"deny","uid":"%s","creationTimestamp":"%s","labels":{"projectcalico.org/tier":"default"},"annotations":{"mine":"1","projectcalico.org/metadata":"{\"name\":\"deny\"}"}},"spec":{"tier":"default","types":["Ingress"]}}`,
		p.UID, p.CreationTimestamp.Format("2006-01-02T15:04:05Z"))
	if stored != want {
		t.Errorf("stored\n %s, want\n %s", stored, want)
	}
	got, err := datastore.For[api.GlobalNetworkPolicy](s).Get(t.Context(), "", "deny")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*api.GlobalNetworkPolicy{p, got} {
		if p.Name != "deny" || len(p.Annotations) != 1 || p.Labels[api.LabelTier] != "default" {
			t.Errorf("read %+v", p.ObjectMeta)
		}
	}
}

const legacyPolicy = `{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"%s","uid":"u"},"spec":{"tier":"%s","xNew":1}}`

// What old releases stored under "default.<name>" is found under both names,
// listed under the short one, and stays where it is when it is changed.
func TestPolicyUnderOldKey(t *testing.T) {
	s := memory.New()
	defer s.Close()
	ctx := t.Context()
	const kind = "GlobalNetworkPolicy"
	putRaw(t, s, kind, "default.legacy", fmt.Sprintf(legacyPolicy, "default.legacy", "default"))
	putRaw(t, s, kind, "security.a", fmt.Sprintf(legacyPolicy, "security.a", "security"))
	putRaw(t, s, kind, "default.b", fmt.Sprintf(legacyPolicy, "default.b", "security"))
	policies := datastore.For[api.GlobalNetworkPolicy](s)
	for _, name := range []string{"legacy", "default.legacy"} {
		p, err := policies.Get(ctx, "", name)
		if err != nil || p.Name != "legacy" || p.Labels[api.LabelTier] != "default" {
			t.Fatalf("get %s: %+v, %v", name, p, err)
		}
	}
	if _, err := policies.Get(ctx, "", "b"); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("default.b of another tier is found as b: %v", err)
	}
	list, _, problems, err := policies.List(ctx, "")
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	var names []string
	for _, p := range list {
		names = append(names, p.Name)
	}
	if want := []string{"default.b", "legacy", "security.a"}; !slices.Equal(names, want) {
		t.Errorf("listed %v, want %v", names, want)
	}
	again := &api.GlobalNetworkPolicy{}
	again.Name = "legacy"
	again.Default()
	if err := policies.Create(ctx, again); !errors.Is(err, datastore.ErrExists) {
		t.Errorf("created a second one: %v", err)
	}
	for i, name := range []string{"legacy", "default.legacy"} {
		change := &api.GlobalNetworkPolicy{}
		change.Name, change.Spec.Selector = name, fmt.Sprintf("i == '%d'", i)
		change.Default()
		if err := policies.Apply(ctx, change); err != nil || change.Name != "legacy" {
			t.Fatalf("apply %s: %s, %v", name, change.Name, err)
		}
		stored := rawOf(t, s, kind, "default.legacy")
		for _, part := range []string{`"name":"default.legacy"`, `{\"name\":\"legacy\"}`, `"xNew":1`, change.Spec.Selector, `"uid":"u"`} {
			if !strings.Contains(stored, part) {
				t.Errorf("stored %s lacks %s", stored, part)
			}
		}
		if rawOf(t, s, kind, "legacy") != "" {
			t.Error("a second one is stored")
		}
	}
	if _, err := policies.Modify(ctx, "", "legacy", func(p *api.GlobalNetworkPolicy) error { p.Spec.Selector = "all()"; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := policies.Delete(ctx, "", "legacy", ""); err != nil || rawOf(t, s, kind, "default.legacy") != "" {
		t.Errorf("not deleted: %v", err)
	}
}

// If a policy is stored under both keys the new one counts and the old one is a
// problem; a policy that is really called default.x is itself.
func TestPolicyUnderBothKeys(t *testing.T) {
	s := memory.New()
	defer s.Close()
	ctx := t.Context()
	const kind = "GlobalNetworkPolicy"
	putRaw(t, s, kind, "default.p", fmt.Sprintf(legacyPolicy, "default.p", "default"))
	putRaw(t, s, kind, "p", fmt.Sprintf(legacyPolicy, "p", ""))
	policies := datastore.For[api.GlobalNetworkPolicy](s)
	list, _, problems, err := policies.List(ctx, "")
	if err != nil || len(list) != 1 || list[0].Name != "p" || len(problems) != 1 {
		t.Fatalf("list %v, problems %v, %v", list, problems, err)
	}
	if want := "decode GlobalNetworkPolicy(default.p): left out, GlobalNetworkPolicy(p) is stored too"; problems[0].Error() != want {
		t.Errorf("%v, want %s", problems[0], want)
	}
	real := &api.GlobalNetworkPolicy{}
	real.Name = "default.x"
	real.Default()
	if err := policies.Create(ctx, real); err != nil {
		t.Fatal(err)
	}
	if p, err := policies.Get(ctx, "", "default.x"); err != nil || p.Name != "default.x" {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := policies.Get(ctx, "", "x"); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("default.x is found as x: %v", err)
	}
}

// The v3 view of a claim is stored with a text for deleted.
func TestBlockAffinityStoredForm(t *testing.T) {
	b := &api.BlockAffinityView{Spec: api.BlockAffinityViewSpec{State: api.AffinityConfirmed, Node: "n", CIDR: "10.0.0.0/26"}}
	b.Name = "n-10-0-0-0-26"
	b.Default()
	got, err := datastore.EncodeObject(b)
	want := `{"kind":"BlockAffinity","apiVersion":"projectcalico.org/v3","metadata":{"name":"n-10-0-0-0-26"},"spec":{"state":"confirmed","node":"n","cidr":"10.0.0.0/26","deleted":"false"}}`
	if err != nil || string(got) != want {
		t.Errorf("stored %s, %v", got, err)
	}
	k, err := api.LookupKind("BlockAffinity")
	if err != nil {
		t.Fatal(err)
	}
	back, err := datastore.DecodeObject(k, datastore.Entry{Key: datastore.ObjectKey(b), Value: got})
	if err != nil || back.(*api.BlockAffinityView).Spec.Deleted != (api.StoredBool{}) {
		t.Errorf("read %+v, %v", back, err)
	}
	if path, err := datastore.Path(datastore.ObjectKey(b)); err != nil || path != "/calico/resources/v3/projectcalico.org/blockaffinities/n-10-0-0-0-26" {
		t.Errorf("path %s, %v", path, err)
	}
}
