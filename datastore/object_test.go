package datastore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
)

func newPool(name, cidr string) *api.IPPool {
	p := &api.IPPool{}
	p.Meta().Name = name
	p.Spec.CIDR = cidr
	return p
}

func TestCreateObjectStoredForm(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	defer s.Close()
	pool := newPool("default-ipv4-ippool", "192.168.0.0/16")
	pool.Spec.IPIPMode, pool.Spec.BlockSize = api.EncapAlways, 26
	pool.Meta().SelfLink = "/x"
	created := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	pool.Meta().CreationTimestamp, pool.Meta().UID = &created, "6f1c"
	if err := datastore.For[api.IPPool](s).Create(ctx, pool); err != nil {
		t.Fatal(err)
	}
	e, err := s.Get(ctx, datastore.ObjectKey(pool))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"default-ipv4-ippool",` +
		`"uid":"6f1c","creationTimestamp":"2026-11-21T00:00:00Z"},` +
		`"spec":{"cidr":"192.168.0.0/16","ipipMode":"Always","blockSize":26}}`
	if diff := cmp.Diff(want, string(e.Value)); diff != "" {
		t.Errorf("stored: %s", diff)
	}
	if pool.Meta().ResourceVersion != string(e.Rev) {
		t.Errorf("resourceVersion is %q, want %q", pool.Meta().ResourceVersion, e.Rev)
	}
}

func TestWorkloadEndpointLabels(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	defer s.Close()
	wep := &api.WorkloadEndpoint{}
	wep.Meta().Namespace, wep.Meta().Name = "default", "node1-cni-c1-eth0"
	wep.Meta().Labels = map[string]string{"app": "nginx"}
	wep.Spec.Orchestrator, wep.Spec.Node = "cni", "node1"
	if err := datastore.For[api.WorkloadEndpoint](s).Create(ctx, wep); err != nil {
		t.Fatal(err)
	}
	got, err := datastore.For[api.WorkloadEndpoint](s).Get(ctx, "default", "node1-cni-c1-eth0")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"app": "nginx", "projectcalico.org/namespace": "default", "projectcalico.org/orchestrator": "cni"}
	if diff := cmp.Diff(want, got.Meta().Labels); diff != "" {
		t.Errorf("labels: %s", diff)
	}
	if got.Meta().UID == "" || got.Meta().CreationTimestamp == nil {
		t.Errorf("no uid or creationTimestamp: %+v", got.Meta())
	}
}

func TestTypedVerbs(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	defer s.Close()
	pools := datastore.For[api.IPPool](s)
	is := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Fatalf("%s: %v, want %v", what, err, want)
		}
	}

	p := newPool("a", "10.0.0.0/16")
	is("update of nothing", pools.Update(ctx, withRevision(newPool("a", "10.0.0.0/16"), "7")), datastore.ErrNotFound)
	is("create", pools.Create(ctx, p), nil)
	is("create again", pools.Create(ctx, newPool("a", "10.1.0.0/16")), datastore.ErrExists)
	stale := *p
	uid := p.Meta().UID
	p.Spec.NATOutgoing = true
	is("update", pools.Update(ctx, p), nil)
	is("stale update", pools.Update(ctx, &stale), datastore.ErrConflict)
	is("stale apply", pools.Apply(ctx, &stale), datastore.ErrConflict)
	applied := newPool("a", "10.0.0.0/16")
	is("apply", pools.Apply(ctx, applied), nil)
	if applied.Meta().UID != uid {
		t.Errorf("apply changed the uid from %s to %s", uid, applied.Meta().UID)
	}
	is("apply of a new one", pools.Apply(ctx, newPool("b", "10.2.0.0/16")), nil)
	list, rev, problems, err := pools.List(ctx, "")
	is("list", err, nil)
	if len(list) != 2 || list[0].Meta().Name != "a" || list[1].Meta().Name != "b" || rev == "" || problems != nil {
		t.Errorf("list: %v %v %v", list, rev, problems)
	}
	_, err = pools.Delete(ctx, "", "a", datastore.Revision(stale.Meta().ResourceVersion))
	is("delete of an old version", err, datastore.ErrConflict)
	prev, err := pools.Delete(ctx, "", "a", "")
	is("delete", err, nil)
	if prev.Spec.CIDR != "10.0.0.0/16" {
		t.Errorf("delete returned %+v", prev)
	}
	_, err = pools.Get(ctx, "", "a")
	is("get", err, datastore.ErrNotFound)
}

func withRevision(p *api.IPPool, rev string) *api.IPPool {
	p.Meta().ResourceVersion = rev
	return p
}

func TestBadHeads(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	defer s.Close()
	generated := newPool("", "10.0.0.0/16")
	generated.Meta().GenerateName = "pool-"
	other := newPool("a", "10.0.0.0/16")
	other.Type().Kind = "Node"
	spaced := newPool("a", "10.0.0.0/16")
	spaced.Meta().Namespace = "default"
	for _, c := range []struct {
		err  error
		says string
	}{
		{datastore.CreateObject(ctx, s, generated), "generateName is not supported"},
		{datastore.CreateObject(ctx, s, newPool("", "10.0.0.0/16")), "name is empty"},
		{datastore.CreateObject(ctx, s, withRevision(newPool("a", ""), "3")), "resourceVersion is set"},
		{datastore.UpdateObject(ctx, s, newPool("a", "")), "resourceVersion is empty"},
		{datastore.ApplyObject(ctx, s, other), `says kind "Node"`},
		{datastore.ApplyObject(ctx, s, spaced), "the kind has none"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.says) {
			t.Errorf("got %v, want an error with %q", c.err, c.says)
		}
	}
	if _, _, problems, err := datastore.For[api.IPPool](s).List(ctx, ""); problems != nil || err != nil {
		t.Errorf("list: %v %v", problems, err)
	}
}

// What cannot be read is reported with its key, does not hide the rest, and can
// be deleted or replaced.
func TestCorruptObjects(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	defer s.Close()
	pools := datastore.For[api.IPPool](s)
	bad := map[string]string{
		"a-broken":     `{"kind":"IPPool","spec":{"cidr":`,
		"b-number":     `{"kind":"IPPool","spec":{"blockSize":"x"}}`,
		"c-other-kind": `{"kind":"Node"}`,
		"d-other-name": `{"kind":"IPPool","metadata":{"name":"e"}}`,
		"e-empty":      ``,
	}
	for name, value := range bad {
		if _, err := s.Put(ctx, datastore.Key{Kind: "IPPool", Name: name}, []byte(value), datastore.Absent()); err != nil {
			t.Fatal(err)
		}
	}
	if err := pools.Create(ctx, newPool("good", "10.0.0.0/16")); err != nil {
		t.Fatal(err)
	}
	list, _, problems, err := pools.List(ctx, "")
	if err != nil || len(list) != 1 || len(problems) != len(bad) {
		t.Fatalf("list: %v, %v, %v", list, problems, err)
	}
	for i, name := range []string{"a-broken", "b-number", "c-other-kind", "d-other-name", "e-empty"} {
		if !strings.Contains(problems[i].Error(), "IPPool("+name+")") {
			t.Errorf("problem %d does not name %s: %v", i, name, problems[i])
		}
	}
	if p, err := pools.Delete(ctx, "", "a-broken", ""); err != nil || p.Meta().Name != "a-broken" {
		t.Errorf("delete: %v %v", p, err)
	}
	fixed := newPool("b-number", "10.1.0.0/16")
	if err := pools.Apply(ctx, fixed); err != nil || fixed.Meta().UID == "" {
		t.Errorf("apply over a corrupt object: %v, uid %q", err, fixed.Meta().UID)
	}
}

func TestUnknownFieldsSurvive(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	defer s.Close()
	pools := datastore.For[api.IPPool](s)
	stored := `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"a","uid":"u","managedFields":[1]},` +
		`"spec":{"cidr":"10.0.0.0/16","fromTheFuture":{"x":1}},"future":{"list":[]}}`
	key := datastore.Key{Kind: "IPPool", Name: "a"}
	if _, err := s.Put(ctx, key, []byte(stored), datastore.Absent()); err != nil {
		t.Fatal(err)
	}
	check := func(verb string) {
		t.Helper()
		e, err := s.Get(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{`"managedFields":[1]`, `"fromTheFuture":{"x":1}`, `"future":{"list":[]}`} {
			if !strings.Contains(string(e.Value), part) {
				t.Errorf("%s lost %s: %s", verb, part, e.Value)
			}
		}
	}
	p, err := pools.Modify(ctx, "", "a", func(p *api.IPPool) error { p.Spec.Disabled = true; return nil })
	if err != nil || !p.Spec.Disabled {
		t.Fatalf("modify: %+v %v", p, err)
	}
	check("modify")
	p.Spec.NATOutgoing = true
	if err := pools.Update(ctx, p); err != nil {
		t.Fatal(err)
	}
	check("update")
	if err := pools.Apply(ctx, newPool("a", "10.0.0.0/16")); err != nil {
		t.Fatal(err)
	}
	check("apply")
}

func TestNothingChangedNothingWritten(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	defer s.Close()
	pools := datastore.For[api.IPPool](s)
	p := newPool("a", "10.0.0.0/16")
	if err := pools.Create(ctx, p); err != nil {
		t.Fatal(err)
	}
	before := p.Meta().ResourceVersion
	again, err := pools.Modify(ctx, "", "a", func(*api.IPPool) error { return nil })
	if err != nil || again.Meta().ResourceVersion != before {
		t.Errorf("modify without a change: revision %s -> %s, %v", before, again.Meta().ResourceVersion, err)
	}
}

func TestModifyIsAtomic(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	defer s.Close()
	pools := datastore.For[api.IPPool](s)
	if err := pools.Create(ctx, newPool("a", "10.0.0.0/16")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	const writers, each = 8, 10
	for range writers {
		wg.Go(func() {
			for range each {
				if _, err := pools.Modify(ctx, "", "a", func(p *api.IPPool) error { p.Spec.BlockSize++; return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	p, err := pools.Get(ctx, "", "a")
	if err != nil || p.Spec.BlockSize != writers*each {
		t.Errorf("counter is %d, want %d (%v)", p.Spec.BlockSize, writers*each, err)
	}
	stop := errors.New("stop")
	if _, err := pools.Modify(ctx, "", "a", func(*api.IPPool) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("modify returned %v, want the function's error", err)
	}
}

func TestUpdateJSON(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	defer s.Close()
	key := datastore.Key{Kind: datastore.KindIPAMHandle, Name: "h"}
	add := func(n int) func(*api.IPAMHandle) (*api.IPAMHandle, error) {
		return func(h *api.IPAMHandle) (*api.IPAMHandle, error) {
			if h == nil {
				h = &api.IPAMHandle{Block: map[string]int{}}
			}
			h.Block["10.0.0.0/26"] += n
			if h.Block["10.0.0.0/26"] == 0 {
				return nil, nil
			}
			return h, nil
		}
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				if err := datastore.Update(ctx, s, key, add(+1)); err != nil {
					t.Error(err)
				}
				if err := datastore.Update(ctx, s, key, add(-1)); err != nil {
					t.Error(err)
				}
			}
			if err := datastore.Update(ctx, s, key, add(+2)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	h, rev, err := datastore.GetJSON[api.IPAMHandle](ctx, s, key)
	if err != nil || h.Block["10.0.0.0/26"] != 16 {
		t.Errorf("handle is %+v, %v", h, err)
	}
	if err := datastore.Update(ctx, s, key, add(0)); err != nil {
		t.Error(err)
	}
	if _, again, _ := datastore.GetJSON[api.IPAMHandle](ctx, s, key); again != rev {
		t.Errorf("an update without a change wrote revision %s over %s", again, rev)
	}
	if err := datastore.Update(ctx, s, key, add(-16)); err != nil {
		t.Error(err)
	}
	if _, _, err := datastore.GetJSON[api.IPAMHandle](ctx, s, key); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("the empty handle is still there: %v", err)
	}
}

// An error of the caller's function is never mistaken for a lost race.
func TestUpdateReturnsTheFunctionsError(t *testing.T) {
	s := memory.New()
	defer s.Close()
	calls := 0
	mine := fmt.Errorf("mine: %w", datastore.ErrConflict)
	err := datastore.Update(context.Background(), s, datastore.Key{Kind: datastore.KindIPAMHost, Name: "n"},
		func(*struct{}) (*struct{}, error) { calls++; return nil, mine })
	if err != mine || calls != 1 {
		t.Errorf("%d calls, error %v", calls, err)
	}
}

func TestListJSON(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	defer s.Close()
	for name, value := range map[string]string{"10.0.0.0/26": ``, "10.0.0.64/26": `{"state":"pending","deleted":false}`, "10.0.0.128/26": `{`} {
		key := datastore.Key{Kind: datastore.KindBlockAffinity, Namespace: "host:n", Name: name}
		if _, err := s.Put(ctx, key, []byte(value), datastore.Absent()); err != nil {
			t.Fatal(err)
		}
	}
	items, _, problems, err := datastore.ListJSON[api.BlockAffinity](ctx, s, datastore.Query{Kind: datastore.KindBlockAffinity})
	if err != nil || len(items) != 2 || len(problems) != 1 {
		t.Fatalf("list: %+v, %v, %v", items, problems, err)
	}
	if items[0].Value.State != "" || items[1].Value.State != api.AffinityPending {
		t.Errorf("values: %+v", items)
	}
	if !strings.Contains(problems[0].Error(), "IPAMBlockAffinity(host:n/10.0.0.128/26)") {
		t.Errorf("problem does not name the key: %v", problems[0])
	}
}

// Whatever is stored, decoding ends in an object or an error, and what was
// decoded is stored the same way every time.
func FuzzDecodeObject(f *testing.F) {
	for _, value := range []string{
		`{"kind":"IPPool","metadata":{"name":"a","uid":"u"},"spec":{"cidr":"10.0.0.0/16"}}`,
		`{"kind":"Node","spec":{"bgp":{"asNumber":64513}},"status":{}}`,
		`{"spec":{"ports":[{"protocol":6,"port":80},{"protocol":"TCP"}]}}`,
		`{"metadata":{"creationTimestamp":"2026-11-21T00:00:00Z","labels":{"a":"b"}}}`,
		``, `null`, `[]`, `{"metadata":null}`, `{"spec":{"cidr":1}}`,
	} {
		f.Add([]byte(value))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		for _, k := range api.Kinds() {
			key := datastore.Key{Kind: k.Name, Name: "a"}
			if k.Namespaced {
				key.Namespace = "n"
			}
			o, err := datastore.DecodeObject(k, datastore.Entry{Key: key, Value: value, Rev: "1"})
			if err != nil {
				continue
			}
			if datastore.ObjectKey(o) != key {
				t.Fatalf("%s came out as %s", key, datastore.ObjectKey(o))
			}
			first, err := datastore.EncodeObject(o)
			if err != nil {
				t.Fatalf("encode %s: %v", key, err)
			}
			again, err := datastore.DecodeObject(k, datastore.Entry{Key: key, Value: first, Rev: "2"})
			if err != nil {
				t.Fatalf("decode what was encoded: %v\n%s", err, first)
			}
			second, err := datastore.EncodeObject(again)
			if err != nil || string(first) != string(second) {
				t.Fatalf("encoded as %s, then as %s (%v)", first, second, err)
			}
		}
	})
}
