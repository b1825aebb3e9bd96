package resource

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/ipam"
)

func newTier(name string) *api.Tier {
	tier := &api.Tier{}
	tier.Name = name
	return tier
}

func TestBuiltInTiersAreCreated(t *testing.T) {
	c, s := newClient(t)
	ctx := t.Context()
	for range 2 {
		_, err := c.EnsureInitialized(ctx, "v1", "")
		must(t, err)
		if got, want := names(t, s, "Tier"), []string{"default", "kube-admin", "kube-baseline"}; !slices.Equal(got, want) {
			t.Fatalf("tiers %v", got)
		}
	}
	e, err := s.Get(ctx, datastore.Key{Kind: "Tier", Name: "kube-baseline"})
	must(t, err)
	if want := `"spec":{"order":10000000,"defaultAction":"Pass"},"status":{}}`; !strings.HasSuffix(string(e.Value), want) {
		t.Errorf("stored %s", e.Value)
	}
	for _, name := range []string{"default", "kube-admin", "kube-baseline"} {
		err := c.Delete(ctx, newTier(name))
		wantText(t, err, "operation Delete is not supported on "+name+": Cannot delete "+name+" tier")
		if !errors.Is(err, ErrUnsupported) {
			t.Error("not ErrUnsupported")
		}
	}
	if got := names(t, s, "Tier"); len(got) != 3 {
		t.Errorf("left %v", got)
	}
	other := newTier("default")
	order := 5.0
	other.Spec.Order = &order
	wantText(t, c.Apply(ctx, other), "error with field Tier.Spec.Order = '5' (the order of the tier default is fixed: 1000000)")
}

func TestTierWithPolicies(t *testing.T) {
	for _, kindName := range api.TieredKinds() {
		t.Run(kindName, func(t *testing.T) {
			c, s := newClient(t)
			ctx := t.Context()
			policy := func() api.Object {
				o, err := api.DecodeStrict([]byte(`{"kind":"` + kindName + `","apiVersion":"projectcalico.org/v3","metadata":{"name":"security.p"},"spec":{"tier":"security"}}`))
				must(t, err)
				if kind(t, kindName).Namespaced {
					o.Meta().Namespace = "ns"
				}
				return o
			}
			wantText(t, c.Create(ctx, policy()), "error with field "+kindName+".Spec.Tier = 'security' (the tier does not exist; create it first)")
			wantText(t, c.Apply(ctx, policy()), "error with field "+kindName+".Spec.Tier = 'security' (the tier does not exist; create it first)")
			if got := names(t, s, kindName); len(got) != 0 {
				t.Errorf("stored %v", got)
			}
			must(t, c.Create(ctx, newTier("security")))
			must(t, c.Apply(ctx, policy()))
			wantText(t, c.Delete(ctx, newTier("security")), "operation Delete is not supported on security: Cannot delete a non-empty tier")
			must(t, c.Delete(ctx, policy()))
			must(t, c.Delete(ctx, newTier("security")))
			wantText(t, c.Delete(ctx, newTier("security")), "resource does not exist: Tier(security) with error: <nil>")
		})
	}
}

// A policy moves only to a tier that is there.
func TestPolicyMovesToTier(t *testing.T) {
	c, _ := newClient(t)
	ctx := t.Context()
	p := &api.GlobalNetworkPolicy{}
	p.Name = "p"
	must(t, c.Create(ctx, p))
	p.Spec.Tier = "nowhere"
	wantText(t, c.Replace(ctx, p), "error with field GlobalNetworkPolicy.Spec.Tier = 'nowhere' (the tier does not exist; create it first)")
	p.Spec.Tier = "kube-admin"
	must(t, c.Replace(ctx, p))
	if p.Labels[api.LabelTier] != "kube-admin" {
		t.Errorf("labels %v", p.Labels)
	}
}

func TestPolicyUnderOldKey(t *testing.T) {
	c, s := newClient(t)
	ctx := t.Context()
	k := kind(t, "GlobalNetworkPolicy")
	_, err := s.Put(ctx, datastore.Key{Kind: k.Name, Name: "default.old"},
		[]byte(`{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"default.old","uid":"u"},"spec":{"order":1}}`), datastore.Always())
	must(t, err)
	o, err := c.Get(ctx, k, "", "old")
	must(t, err)
	must(t, c.Replace(ctx, o))
	again := &api.GlobalNetworkPolicy{}
	again.Name = "old"
	wantText(t, c.Create(ctx, again), "resource already exists: GlobalNetworkPolicy(old) with error: <nil>")
	must(t, c.Delete(ctx, again))
	if left := names(t, s, k.Name); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestPeerNeedsItsFilters(t *testing.T) {
	c, s := newClient(t)
	ctx := t.Context()
	peer := func() *api.BGPPeer {
		p := &api.BGPPeer{Spec: api.BGPPeerSpec{PeerIP: "192.0.2.1", ASNumber: 64999, Filters: []string{"f1", "f2"}}}
		p.Name = "tor"
		return p
	}
	f := &api.BGPFilter{}
	f.Name = "f1"
	must(t, c.Create(ctx, f))
	wantText(t, c.Create(ctx, peer()), "error with field BGPPeer.Spec.Filters[1] = 'f2' (the BGPFilter does not exist; create it first)")
	if got := names(t, s, "BGPPeer"); len(got) != 0 {
		t.Errorf("stored %v", got)
	}
	f2 := &api.BGPFilter{}
	f2.Name = "f2"
	must(t, c.Create(ctx, f2))
	must(t, c.Create(ctx, peer()))
}

func TestNodeTakesHostEndpointsAlong(t *testing.T) {
	c, s := newClient(t)
	ctx := t.Context()
	for _, node := range []string{"n1", "n10"} {
		must(t, c.Create(ctx, newNode(node)))
		h := &api.HostEndpoint{Spec: api.HostEndpointSpec{Node: node, InterfaceName: "*"}}
		h.Name = node + "-all"
		must(t, c.Create(ctx, h))
	}
	must(t, c.Delete(ctx, newNode("n1")))
	if got := names(t, s, "HostEndpoint"); !slices.Equal(got, []string{"n10-all"}) {
		t.Errorf("left %v", got)
	}
}

// An IPAMConfiguration is what IPAM goes by, and shows what IPAM goes by.
func TestIPAMConfiguration(t *testing.T) {
	c, _ := newClient(t)
	ctx := t.Context()
	k := kind(t, "IPAMConfiguration")
	conf := func(strict, auto bool, blocks int) *api.IPAMConfiguration {
		i := &api.IPAMConfiguration{Spec: api.IPAMConfigurationSpec{StrictAffinity: strict, AutoAllocateBlocks: auto, MaxBlocksPerHost: blocks}}
		i.Name = "default"
		return i
	}
	_, err := c.Get(ctx, k, "", "default")
	wantText(t, err, "resource does not exist: IPAMConfiguration(default) with error: <nil>")
	must(t, c.Create(ctx, conf(true, true, 4)))
	got, err := c.ipam.Config(ctx)
	must(t, err)
	if !got.StrictAffinity || !got.AutoAllocateBlocks || got.MaxBlocksPerHost != 4 {
		t.Errorf("IPAM goes by %+v", got)
	}
	must(t, c.Apply(ctx, conf(true, false, 2)))
	must(t, c.ipam.SetConfig(ctx, api.IPAMConfig{AutoAllocateBlocks: true, IPCooldownSeconds: 9}))
	want := api.IPAMConfigurationSpec{AutoAllocateBlocks: true, IPCooldownSeconds: 9}
	o, err := c.Get(ctx, k, "", "default")
	must(t, err)
	list, _, err := c.List(ctx, k, "")
	must(t, err)
	for _, o := range append(list, o) {
		if spec := o.(*api.IPAMConfiguration).Spec; spec != want {
			t.Errorf("shown %+v", spec)
		}
	}
	must(t, c.Delete(ctx, conf(false, true, 0)))
	got, err = c.ipam.Config(ctx)
	must(t, err)
	if got.IPCooldownSeconds != 0 || !got.AutoAllocateBlocks {
		t.Errorf("IPAM goes by %+v after the deletion", got)
	}
}

// Claims are shown as BlockAffinity and cannot be changed there.
func TestBlockAffinityView(t *testing.T) {
	c, _ := newClient(t)
	ctx := t.Context()
	k := kind(t, "BlockAffinity")
	must(t, c.Create(ctx, newPool("p", "10.65.79.0/26")))
	must(t, c.Create(ctx, newNode("n1")))
	_, err := c.ipam.AutoAssign(ctx, ipam.Request{Host: "n1", Handle: "h", Num4: 1})
	must(t, err)
	list, problems, err := c.List(ctx, k, "")
	must(t, errors.Join(append(problems, err)...))
	if len(list) != 1 {
		t.Fatalf("%d claims", len(list))
	}
	o, err := c.Get(ctx, k, "", "n1-10-65-79-0-26")
	must(t, err)
	for _, o := range []api.Object{o, list[0]} {
		want := api.BlockAffinityViewSpec{State: api.AffinityConfirmed, Node: "n1", Type: "host", CIDR: "10.65.79.0/26"}
		if v := o.(*api.BlockAffinityView); v.Spec != want || v.Name != "n1-10-65-79-0-26" || v.ResourceVersion == "" || v.Validate() != nil {
			t.Errorf("shown %+v, %v", v, v.Validate())
		}
	}
	_, err = c.Get(ctx, k, "", "n2")
	wantText(t, err, "resource does not exist: BlockAffinity(n2) with error: <nil>")
	mine := o.(*api.BlockAffinityView)
	const reason = "claims on blocks belong to IPAM, which makes and deletes them itself"
	for verb, err := range map[string]error{"Update": c.Replace(ctx, mine), "Delete": c.Delete(ctx, mine)} {
		wantText(t, err, fmt.Sprintf("operation %s is not supported on n1-10-65-79-0-26: %s", verb, reason))
	}
	mine.ResourceVersion = ""
	wantText(t, c.Create(ctx, mine), "operation Create is not supported on n1-10-65-79-0-26: "+reason)
}

func TestWarnings(t *testing.T) {
	f := &api.FelixConfiguration{}
	f.Name = "default"
	f.Default()
	if got := Warnings(f); len(got) != 0 {
		t.Errorf("defaults warn: %v", got)
	}
	on, level := true, "Debug"
	f.Spec.BPFEnabled, f.Spec.BPFLogLevel = &on, &level
	want := []string{"FelixConfiguration(default): stored, but without effect in this release: bpfEnabled, bpfLogLevel"}
	if got := Warnings(f); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	p := &api.NetworkPolicy{}
	p.Name, p.Namespace = "p", "ns"
	if got := Warnings(p); len(got) != 0 {
		t.Errorf("%q", got)
	}
	service := api.EntityRule{Services: &api.ServiceMatch{Name: "s"}}
	p.Spec.Ingress = []api.Rule{{Action: api.ActionAllow, HTTP: &api.HTTPMatch{}}}
	p.Spec.Egress = []api.Rule{{Action: api.ActionAllow, Destination: service}, {Action: api.ActionDeny, Destination: service}}
	want = []string{
		"NetworkPolicy(ns/p): egress[0]: matches nobody: the endpoints of services are not known without Kubernetes",
		"NetworkPolicy(ns/p): egress[1]: denies whatever meets its other criteria: the endpoints of services are not known without Kubernetes",
		"NetworkPolicy(ns/p): ingress[0]: matches nothing: no proxy looks into connections for http criteria",
	}
	if got := Warnings(p); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := Warnings(newPool("p", "10.0.0.0/16")); len(got) != 0 {
		t.Errorf("%q", got)
	}
}
