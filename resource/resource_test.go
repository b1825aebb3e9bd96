package resource

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
	"github.com/manekinet/maneki/ipam"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newClient is a Client of a new memory store that does not wait for hosts.
func newClient(t *testing.T) (*Client, *memory.Store) {
	t.Helper()
	s := memory.New()
	t.Cleanup(func() { s.Close() })
	c := New(s, nil)
	c.settle = func(context.Context) error { return nil }
	return c, s
}

func kind(t *testing.T, name string) api.Kind {
	t.Helper()
	k, err := api.LookupKind(name)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newPool(name, cidr string) *api.IPPool {
	p := &api.IPPool{}
	p.Name, p.Spec.CIDR = name, cidr
	return p
}

func newNode(name string) *api.Node {
	n := &api.Node{}
	n.Name = name
	return n
}

func newEndpoint(node, container, addr string) *api.WorkloadEndpoint {
	w := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{
		Orchestrator: "cni", Node: node, ContainerID: container, Endpoint: "eth0",
		IPNetworks: []string{addr + "/32"}, InterfaceName: "cali" + container,
	}}
	w.Namespace = "default"
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantText(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || err.Error() != want {
		t.Errorf("error\n got %v\nwant %s", err, want)
	}
}

// names lists what is stored of a kind.
func names(t *testing.T, s datastore.Store, kind string) []string {
	t.Helper()
	entries, _, err := s.List(t.Context(), datastore.Query{Kind: kind})
	must(t, err)
	var out []string
	for _, e := range entries {
		out = append(out, strings.TrimPrefix(e.Key.Namespace+"/"+e.Key.Name, "/"))
	}
	return out
}

func TestErrorTexts(t *testing.T) {
	c, _ := newClient(t)
	ctx := t.Context()
	_, err := c.Get(ctx, kind(t, "IPPool"), "", "nosuch")
	wantText(t, err, "resource does not exist: IPPool(nosuch) with error: <nil>")
	_, err = c.Get(ctx, kind(t, "WorkloadEndpoint"), "ns", "w")
	wantText(t, err, "resource does not exist: WorkloadEndpoint(ns/w) with error: <nil>")
	must(t, c.Create(ctx, newPool("p1", "10.65.0.0/16")))
	err = c.Create(ctx, newPool("p1", "10.65.0.0/16"))
	wantText(t, err, "resource already exists: IPPool(p1) with error: <nil>")
	if !errors.Is(err, ErrExists) || !errors.Is(err, datastore.ErrExists) {
		t.Error("not ErrExists")
	}
	err = c.Create(ctx, newPool("p2", "10.65.1.0/24"))
	wantText(t, err, "error with field IPPool.Spec.CIDR = '10.65.1.0/24' (IPPool(p2) CIDR overlaps with IPPool(p1) CIDR 10.65.0.0/16)")
	err = c.Create(ctx, newPool("p3", "10.66.0.1/16"))
	wantText(t, err, "error with field IPPool.Spec.CIDR = '10.66.0.1/16' (CIDR host bits are set; write 10.66.0.0/16)")
	err = c.Replace(ctx, newPool("p4", "10.70.0.0/16"))
	wantText(t, err, "resource does not exist: IPPool(p4) with error: <nil>")
	err = c.Delete(ctx, newPool("p4", ""))
	wantText(t, err, "resource does not exist: IPPool(p4) with error: <nil>")
	given := newNode("n")
	given.ResourceVersion = "7"
	wantText(t, c.Create(ctx, given), "error with field Node.Metadata.ResourceVersion = '7' (field must not be set for a Create request)")
}

func TestUpdateKeepsIdentityAndHonoursVersion(t *testing.T) {
	c, _ := newClient(t)
	ctx := t.Context()
	first := newNode("n1")
	must(t, c.Create(ctx, first))
	if first.UID == "" || first.CreationTimestamp == nil || first.ResourceVersion == "" {
		t.Fatalf("created %+v", first.ObjectMeta)
	}

	// Without a version: whatever is stored is replaced, the identity stays.
	second := newNode("n1")
	second.Labels = map[string]string{"a": "b"}
	must(t, c.Replace(ctx, second))
	got, err := c.Get(ctx, kind(t, "Node"), "", "n1")
	must(t, err)
	m := got.Meta()
	if m.UID != first.UID || !m.CreationTimestamp.Equal(*first.CreationTimestamp) || m.Labels["a"] != "b" {
		t.Errorf("replaced by %+v", m)
	}
	if m.ResourceVersion == first.ResourceVersion || m.ResourceVersion != second.ResourceVersion {
		t.Errorf("resourceVersion %s after %s, told %s", m.ResourceVersion, first.ResourceVersion, second.ResourceVersion)
	}

	// With an old version: refused, and the argument is as it was.
	old := newNode("n1")
	old.ResourceVersion = first.ResourceVersion
	for verb, write := range map[string]func(context.Context, api.Object) error{"replace": c.Replace, "apply": c.Apply} {
		err := write(ctx, old)
		wantText(t, err, fmt.Sprintf("update conflict: Node(n1) (resourceVersion %s is out of date, the latest is %s)", first.ResourceVersion, m.ResourceVersion))
		if !errors.Is(err, ErrConflict) {
			t.Errorf("%s: not ErrConflict", verb)
		}
		if old.ResourceVersion != first.ResourceVersion || old.UID != "" {
			t.Errorf("%s changed its argument: %+v", verb, old.ObjectMeta)
		}
	}
	if err := c.Delete(ctx, old); !errors.Is(err, ErrConflict) {
		t.Errorf("delete of an old version: %v", err)
	}
	gone := newNode("n9")
	gone.ResourceVersion = "1"
	if err := c.Apply(ctx, gone); !errors.Is(err, ErrNotExist) {
		t.Errorf("apply of a version of what is gone: %v", err)
	}
	must(t, c.Delete(ctx, second))
}

func TestApplyConcurrently(t *testing.T) {
	c, _ := newClient(t)
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() {
			n := newNode("n1")
			n.Labels = map[string]string{"writer": fmt.Sprint(i)}
			errs[i] = c.Apply(t.Context(), n)
		})
	}
	wg.Wait()
	must(t, errors.Join(errs...))
	list, problems, err := c.List(t.Context(), kind(t, "Node"), "")
	must(t, errors.Join(append(problems, err)...))
	if len(list) != 1 {
		t.Errorf("%d nodes", len(list))
	}
}

func TestPoolOverlap(t *testing.T) {
	for _, tt := range []struct {
		cidr string
		ok   bool
	}{
		{"10.65.0.0/16", false},
		{"10.0.0.0/8", false},
		{"10.65.255.192/26", false},
		{"10.66.0.0/16", true},
		{"fd00::/64", false},
		{"fd00:0:0:0:0:1::/80", false},
		{"fd00:0:0:1::/64", true},
	} {
		c, s := newClient(t)
		off := newPool("p1", "10.65.0.0/16")
		off.Spec.Disabled = true // a disabled pool still holds its range
		must(t, c.Create(t.Context(), off))
		must(t, c.Create(t.Context(), newPool("p6", "fd00::/64")))
		for verb, write := range map[string]func(context.Context, api.Object) error{"create": c.Create, "apply": c.Apply} {
			p := newPool(verb, tt.cidr)
			err := write(t.Context(), p)
			var wrong *api.FieldErrors
			if tt.ok && err != nil || !tt.ok && !errors.As(err, &wrong) {
				t.Errorf("%s %s: %v", verb, tt.cidr, err)
			}
			if got := slices.Contains(names(t, s, "IPPool"), verb); got != tt.ok {
				t.Errorf("%s %s: stored %v", verb, tt.cidr, got)
			}
			if tt.ok {
				must(t, c.Delete(t.Context(), p)) // make room for the other verb
			}
		}
	}
}

// hookStore calls before ahead of every write of a key of the kind.
type hookStore struct {
	*memory.Store
	kind   string
	before func()
}

func (h *hookStore) Put(ctx context.Context, key datastore.Key, value []byte, pre datastore.Precondition) (datastore.Revision, error) {
	if key.Kind == h.kind && h.before != nil {
		before := h.before
		h.before = nil
		before()
	}
	return h.Store.Put(ctx, key, value, pre)
}

// Two overlapping pools that pass the check at the same moment do not both stay.
func TestPoolOverlapRace(t *testing.T) {
	s := memory.New()
	defer s.Close()
	hook := &hookStore{Store: s, kind: "IPPool"}
	hook.before = func() { must(t, New(s, nil).Create(t.Context(), newPool("other", "10.65.0.0/16"))) }
	p := newPool("mine", "10.65.1.0/24")
	err := New(hook, nil).Create(t.Context(), p)
	wantText(t, err, "error with field IPPool.Spec.CIDR = '10.65.1.0/24' (IPPool(mine) CIDR overlaps with IPPool(other) CIDR 10.65.0.0/16)")
	if got := names(t, s, "IPPool"); !slices.Equal(got, []string{"other"}) {
		t.Errorf("stored %v", got)
	}
	if p.ResourceVersion != "" || p.UID != "" {
		t.Errorf("the argument has the identity of what was taken back: %+v", p.ObjectMeta)
	}
}

func TestPoolOverBlocksOfAnotherSize(t *testing.T) {
	c, s := newClient(t)
	ctx := t.Context()
	p := newPool("p1", "10.65.0.0/16")
	must(t, c.Create(ctx, p))
	must(t, c.Create(ctx, newNode("n1")))
	a, err := c.ipam.AssignIP(ctx, ipam.AssignRequest{Addr: netip.MustParseAddr("10.65.0.5"), Host: "n1", Handle: "h"})
	must(t, err)
	must(t, s.Delete(ctx, datastore.ObjectKey(p), datastore.Always())) // blocks stay behind
	small := newPool("p2", "10.65.0.0/24")
	small.Spec.BlockSize = 28
	wantText(t, c.Create(ctx, small), fmt.Sprintf("error with field IPPool.Spec.BlockSize = '28' (IPPool block size conflicts with the existing block %s; use block size 26 or release its addresses)", a.Block))
	beside := newPool("p3", "10.65.128.0/24")
	beside.Spec.BlockSize = 28
	must(t, c.Create(ctx, beside))
	must(t, c.Create(ctx, newPool("p4", "10.65.0.0/24")))
}

func TestPoolIdentity(t *testing.T) {
	c, _ := newClient(t)
	ctx := t.Context()
	must(t, c.Create(ctx, newPool("p1", "10.65.0.0/16")))
	other := newPool("p1", "10.66.0.0/16")
	other.Spec.BlockSize = 28
	for verb, write := range map[string]func(context.Context, api.Object) error{"replace": c.Replace, "apply": c.Apply} {
		err := write(ctx, other)
		want := "error with the following fields:\n" +
			"-  IPPool.Spec.CIDR = '10.66.0.0/16' (IPPool CIDR cannot be modified, it is 10.65.0.0/16)\n" +
			"-  IPPool.Spec.BlockSize = '28' (IPPool BlockSize cannot be modified, it is 26)"
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v", verb, err)
		}
	}
	edit := newPool("p1", "10.65.0.0/16")
	edit.Spec.NATOutgoing, edit.Spec.NodeSelector, edit.Spec.IPIPMode = true, "has(rack)", api.EncapCrossSubnet
	must(t, c.Apply(ctx, edit))
	got, err := c.Get(ctx, kind(t, "IPPool"), "", "p1")
	must(t, err)
	if s := got.(*api.IPPool).Spec; !s.NATOutgoing || s.NodeSelector != "has(rack)" || s.IPIPMode != api.EncapCrossSubnet {
		t.Errorf("stored %+v", s)
	}
}

// A pool that an old release stored without a block size can still be edited.
func TestPoolIdentityOfOldPool(t *testing.T) {
	c, s := newClient(t)
	ctx := t.Context()
	_, err := s.Put(ctx, datastore.Key{Kind: "IPPool", Name: "p1"},
		[]byte(`{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"p1"},"spec":{"cidr":"10.65.0.0/16","future":1}}`), datastore.Absent())
	must(t, err)
	must(t, c.Apply(ctx, newPool("p1", "10.65.0.0/16")))
	e, err := s.Get(ctx, datastore.Key{Kind: "IPPool", Name: "p1"})
	must(t, err)
	if !strings.Contains(string(e.Value), `"future":1`) || !strings.Contains(string(e.Value), `"blockSize":26`) {
		t.Errorf("stored %s", e.Value)
	}
}

func TestPoolDelete(t *testing.T) {
	c, s := newClient(t)
	ctx := t.Context()
	p := newPool("p1", "10.65.0.0/16")
	must(t, c.Create(ctx, p))
	must(t, c.Create(ctx, newNode("n1")))
	held, err := c.ipam.AutoAssign(ctx, ipam.Request{Host: "n1", Handle: "h", Num4: 1})
	must(t, err)

	stalePool := newPool("p1", "")
	stalePool.ResourceVersion = "1"
	if err := c.Delete(ctx, stalePool); !errors.Is(err, ErrConflict) {
		t.Errorf("delete of an old version: %v", err)
	}

	// Interrupted while it waits for the hosts: nothing is lost, the pool is off.
	broken := errors.New("interrupted")
	c.settle = func(context.Context) error {
		got, err := datastore.For[api.IPPool](s).Get(ctx, "", "p1")
		must(t, err)
		if !got.Spec.Disabled || len(names(t, s, datastore.KindBlockAffinity)) != 1 {
			t.Errorf("while waiting: disabled %v, claims %v", got.Spec.Disabled, names(t, s, datastore.KindBlockAffinity))
		}
		return broken
	}
	if err := c.Delete(ctx, newPool("p1", "")); !errors.Is(err, broken) {
		t.Fatalf("interrupted delete: %v", err)
	}
	if got := names(t, s, "IPPool"); len(got) != 1 {
		t.Fatalf("pools after the interrupted delete: %v", got)
	}

	c.settle = func(context.Context) error { return nil }
	must(t, c.Delete(ctx, newPool("p1", "")))
	if pools, claims := names(t, s, "IPPool"), names(t, s, datastore.KindBlockAffinity); len(pools)+len(claims) != 0 {
		t.Errorf("after delete: pools %v, claims %v", pools, claims)
	}
	if a, err := c.ipam.Lookup(ctx, held[0].Addr); err != nil || a.Handle != "h" {
		t.Errorf("an address in use was lost: %+v, %v", a, err)
	}
}

// Somebody who enables the pool again while it is being deleted wins.
func TestPoolDeleteConflict(t *testing.T) {
	c, _ := newClient(t)
	ctx := t.Context()
	must(t, c.Create(ctx, newPool("p1", "10.65.0.0/16")))
	c.settle = func(context.Context) error { return c.Apply(ctx, newPool("p1", "10.65.0.0/16")) }
	wantText(t, c.Delete(ctx, newPool("p1", "")), "update conflict: IPPool(p1)")
	got, err := c.Get(ctx, kind(t, "IPPool"), "", "p1")
	must(t, err)
	if got.(*api.IPPool).Spec.Disabled {
		t.Error("the pool is disabled")
	}
}

func TestDeleteUnreadable(t *testing.T) {
	c, s := newClient(t)
	ctx := t.Context()
	for _, o := range []api.Object{newPool("torn", ""), newNode("torn")} {
		k := o.Type().Kind
		key := datastore.ObjectKey(o)
		_, err := s.Put(ctx, key, []byte(`{"kind":`), datastore.Absent())
		must(t, err)
		_, problems, err := c.List(ctx, kind(t, key.Kind), "")
		must(t, err)
		if len(problems) != 1 || !strings.Contains(problems[0].Error(), key.String()) {
			t.Errorf("%s: problems %v", k, problems)
		}
		if err := c.Delete(ctx, o); err != nil {
			t.Errorf("delete unreadable %s: %v", key, err)
		}
	}
	if left := append(names(t, s, "IPPool"), names(t, s, "Node")...); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestSettleEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := settle(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("settle: %v", err)
	}
}
