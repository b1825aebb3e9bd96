package controller

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
	"github.com/manekinet/maneki/ipam"
)

// addresses is a datastore with a pool and the loop on it.
type addresses struct {
	*testing.T
	store datastore.Store
	ipam  *ipam.Client
	loop  *Garbage
	now   time.Time
}

func newAddresses(t *testing.T, nodes ...string) *addresses {
	a := &addresses{T: t, store: memory.New(), now: time.Unix(1e9, 0)}
	a.ipam = ipam.New(a.store, ipam.Options{})
	a.loop = &Garbage{Store: a.store, IPAM: a.ipam, Log: slog.New(slog.DiscardHandler), leaks: map[leak]time.Time{}, gone: map[string]time.Time{}}
	pool := &api.IPPool{Spec: api.IPPoolSpec{CIDR: "10.65.0.0/24"}}
	pool.Name = "p"
	pool.Default()
	a.must(datastore.For[api.IPPool](a.store).Create(t.Context(), pool))
	for _, name := range nodes {
		n := &api.Node{}
		n.Name = name
		n.Default()
		a.must(datastore.For[api.Node](a.store).Create(t.Context(), n))
	}
	return a
}

func (a *addresses) must(err error) {
	a.Helper()
	if err != nil {
		a.Fatal(err)
	}
}

// assign gives a host an address under a handle.
func (a *addresses) assign(host, handle string) netip.Addr {
	a.Helper()
	got, err := a.ipam.AutoAssign(a.Context(), ipam.Request{Host: host, Handle: handle, Num4: 1, Use: api.UseWorkload})
	a.must(err)
	return got[0].Addr
}

func (a *addresses) endpoint(node, container string, addr netip.Addr) {
	a.Helper()
	w := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{
		Orchestrator: "cni", Node: node, ContainerID: container, Endpoint: "eth0", InterfaceName: "cali" + container,
		IPNetworks: []string{netip.PrefixFrom(addr, 32).String()},
	}}
	w.Namespace, w.Name = "default", node+"-cni-"+container+"-eth0"
	w.Default()
	a.must(datastore.For[api.WorkloadEndpoint](a.store).Create(a.Context(), w))
}

// scan lets time pass and scans.
func (a *addresses) scan(after time.Duration) {
	a.Helper()
	a.now = a.now.Add(after)
	if _, err := a.loop.scan(a.Context(), 15*time.Minute, a.now); err != nil {
		a.Fatal(err)
	}
}

func (a *addresses) assigned(addr netip.Addr) bool {
	_, err := a.ipam.Lookup(a.Context(), addr)
	return err == nil
}

// Only what is of a node that is gone and of no endpoint goes, and only when it
// has looked so twice, the grace apart.
func TestGarbage(t *testing.T) {
	a := newAddresses(t, "here")
	kept := map[string]netip.Addr{
		"of a living node":     a.assign("here", "h.living"),
		"held by an endpoint":  a.assign("gone", "h.held"),
		"shares a handle":      a.assign("gone", "h.shared"),
		"shares a handle, too": a.assign("here", "h.shared"),
	}
	a.endpoint("gone", "held", kept["held by an endpoint"])
	leaked := a.assign("gone", "h.leaked")
	a.scan(0)
	a.scan(14 * time.Minute)
	if !a.assigned(leaked) {
		t.Fatal("given back before the grace period was over")
	}
	a.scan(time.Minute)
	if a.assigned(leaked) {
		t.Error("a leaked address is kept")
	}
	for what, addr := range kept {
		if !a.assigned(addr) {
			t.Errorf("given back: %s", what)
		}
	}
}

// An address that is taken again between two scans begins anew.
func TestGarbageOfAnotherOwner(t *testing.T) {
	a := newAddresses(t, "here")
	addr := a.assign("gone", "h.first")
	a.scan(0)
	_, err := a.ipam.ReleaseByHandle(t.Context(), "h.first")
	a.must(err)
	_, err = a.ipam.AssignIP(t.Context(), ipam.AssignRequest{Addr: addr, Host: "gone", Handle: "h.second"})
	a.must(err)
	a.scan(20 * time.Minute)
	if !a.assigned(addr) {
		t.Fatal("the second owner was judged by the first one's time")
	}
	a.scan(15 * time.Minute)
	if a.assigned(addr) {
		t.Error("a leaked address is kept")
	}
}

// Blocks of a node that is gone are given back once they are empty; those of a
// node that has come back are not.
func TestGarbageOfBlocks(t *testing.T) {
	a := newAddresses(t)
	addr := a.assign("gone", "h.leaked")
	claims := func() int {
		entries, _, err := a.store.List(t.Context(), datastore.Query{Kind: datastore.KindBlockAffinity, Namespace: "host:gone"})
		a.must(err)
		return len(entries)
	}
	a.scan(0)
	a.scan(15 * time.Minute)
	if a.assigned(addr) || claims() != 1 {
		t.Fatalf("assigned %t, %d claims", a.assigned(addr), claims())
	}
	a.scan(0)
	a.scan(15 * time.Minute)
	if claims() != 0 {
		t.Errorf("%d claims of a node that is gone", claims())
	}
}

func TestTimesOfGarbage(t *testing.T) {
	duration := func(d time.Duration) *api.Duration { a := api.Duration(d); return &a }
	for _, c := range []struct {
		node *api.NodeControllerConfig
		want GarbageTimes
	}{
		{nil, GarbageTimes{0, 5 * time.Minute}},
		{&api.NodeControllerConfig{}, GarbageTimes{15 * time.Minute, 15 * time.Minute / 2}},
		{&api.NodeControllerConfig{LeakGracePeriod: duration(time.Hour)}, GarbageTimes{time.Hour, 30 * time.Minute}},
		{&api.NodeControllerConfig{LeakGracePeriod: duration(time.Minute)}, GarbageTimes{time.Minute, 5 * time.Minute}},
		{&api.NodeControllerConfig{LeakGracePeriod: duration(0)}, GarbageTimes{0, 5 * time.Minute}},
		{&api.NodeControllerConfig{LeakGracePeriod: duration(4 * time.Second), ReconcilerPeriod: duration(2 * time.Second)}, GarbageTimes{4 * time.Second, 2 * time.Second}},
		{&api.NodeControllerConfig{ReconcilerPeriod: duration(0)}, GarbageTimes{15 * time.Minute, time.Second}},
	} {
		k := &api.KubeControllersConfiguration{}
		k.Spec.Controllers.Node = c.node
		if got := TimesOfGarbage(k); got != c.want {
			t.Errorf("%+v: %+v, want %+v", c.node, got, c.want)
		}
	}
}
