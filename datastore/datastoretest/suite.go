package datastoretest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/manekinet/maneki/datastore"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// startPatience is how long a server may take to start while other tests keep the
// machine's disk and cores busy.
const startPatience = 2 * time.Minute

// Backend is what the suite needs to know of one backend.
type Backend struct {
	// New returns an empty store. The suite closes it.
	New func(t *testing.T) datastore.Store
	// Compact forgets all history of the stores that New returned.
	Compact func(t *testing.T)
}

// Run checks that a backend is a datastore.Store as described there. All
// backends pass the same tests, so what is tested on one holds on the others.
func Run(t *testing.T, b Backend) {
	for _, c := range []struct {
		name string
		test func(*testing.T, *fixture)
	}{
		{"Verbs", testVerbs},
		{"Preconditions", testPreconditions},
		{"BadKeys", testBadKeys},
		{"Revisions", testRevisions},
		{"ListOrder", testListOrder},
		{"ListPages", testListPages},
		{"Snapshot", testSnapshot},
		{"WatchMissesNothing", testWatchMissesNothing},
		{"WatchKinds", testWatchKinds},
		{"WatchFromNow", testWatchFromNow},
		{"WatchSlowReader", testWatchSlowReader},
		{"Counter", testCounter},
		{"CommitOutcomes", testCommitOutcomes},
		{"CommitAtomic", testCommitAtomic},
		{"CommitLimits", testCommitLimits},
		{"Model", testModel},
		{"Compaction", testCompaction},
		{"Context", testContext},
		{"Close", testClose},
		{"Follow", testFollow},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := b.New(t)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			c.test(t, &fixture{t: t, Store: s, compact: b.Compact})
		})
	}
}

// fixture is a store and short ways to say what is expected of it.
type fixture struct {
	t *testing.T
	datastore.Store
	compact func(*testing.T)
}

func handle(name string) datastore.Key {
	return datastore.Key{Kind: datastore.KindIPAMHandle, Name: name}
}

var handles = datastore.Query{Kind: datastore.KindIPAMHandle}

func (f *fixture) ctx() context.Context { return f.t.Context() }

func (f *fixture) put(key datastore.Key, value string) datastore.Revision {
	f.t.Helper()
	rev, err := f.Put(f.ctx(), key, []byte(value), datastore.Always())
	if err != nil {
		f.t.Fatalf("put %s: %v", key, err)
	}
	return rev
}

func (f *fixture) remove(key datastore.Key) {
	f.t.Helper()
	if err := f.Delete(f.ctx(), key, datastore.Always()); err != nil {
		f.t.Fatalf("delete %s: %v", key, err)
	}
}

// is fails the test unless err is want; nil is nil.
func (f *fixture) is(what string, err, want error) {
	f.t.Helper()
	if !errors.Is(err, want) {
		f.t.Fatalf("%s: error is %v, want %v", what, err, want)
	}
	if want == nil {
		return
	}
	for _, other := range []error{
		datastore.ErrNotFound, datastore.ErrConflict, datastore.ErrExists,
		datastore.ErrUnavailable, datastore.ErrCompacted, datastore.ErrDenied,
	} {
		if other != want && errors.Is(err, other) {
			f.t.Fatalf("%s: error %v is both %v and %v", what, err, want, other)
		}
	}
}

// value is what is stored under key, or "-".
func (f *fixture) value(key datastore.Key) string {
	f.t.Helper()
	e, err := f.Get(f.ctx(), key)
	if errors.Is(err, datastore.ErrNotFound) {
		return "-"
	}
	if err != nil {
		f.t.Fatalf("get %s: %v", key, err)
	}
	return string(e.Value)
}

func (f *fixture) list(q datastore.Query) ([]datastore.Entry, datastore.Revision) {
	f.t.Helper()
	es, rev, err := f.List(f.ctx(), q)
	if err != nil {
		f.t.Fatalf("list %v: %v", q, err)
	}
	return es, rev
}

// expect reads n events of a watch.
func (f *fixture) expect(w datastore.Watcher, n int) []datastore.Event {
	f.t.Helper()
	var events []datastore.Event
	deadline := time.After(patience)
	for len(events) < n {
		select {
		case batch, open := <-w.Events():
			if !open {
				f.t.Fatalf("watch ended after %d of %d events: %v", len(events), n, w.Err())
			}
			if len(batch) == 0 {
				f.t.Fatal("empty batch")
			}
			events = append(events, batch...)
		case <-deadline:
			f.t.Fatalf("watch delivered %d of %d events in %s: %s", len(events), n, patience, describe(events))
		}
	}
	if len(events) > n {
		f.t.Fatalf("watch delivered %d events, want %d: %s", len(events), n, describe(events))
	}
	return events
}

// ended waits for the end of a watch, ignores what it still delivers, and
// returns its error.
func (f *fixture) ended(w datastore.Watcher) error {
	f.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case _, open := <-w.Events():
			if !open {
				return w.Err()
			}
		case <-deadline:
			f.t.Fatalf("watch has not ended in %s", patience)
		}
	}
}

func describe(events []datastore.Event) string {
	var b strings.Builder
	for _, e := range events {
		verb := "put"
		if e.Type == datastore.EventDelete {
			verb = "delete"
		}
		fmt.Fprintf(&b, "%s %s=%s; ", verb, e.Entry.Key, e.Entry.Value)
	}
	return b.String()
}

func testVerbs(t *testing.T, f *fixture) {
	for _, key := range []datastore.Key{
		{Kind: "IPPool", Name: "pool"},
		{Kind: "WorkloadEndpoint", Namespace: "default", Name: "node1-cni-c-eth0"},
		{Kind: datastore.KindIPAMBlock, Name: "10.0.0.0/26"},
		{Kind: datastore.KindIPAMBlock, Name: "fd00:1::/122"},
		{Kind: datastore.KindBlockAffinity, Namespace: "host:node1", Name: "10.0.0.0/26"},
		{Kind: datastore.KindBlockAffinity, Namespace: "virtual:load-balancer", Name: "10.0.0.64/26"},
		{Kind: datastore.KindIPAMHandle, Name: "a/b%c"},
		{Kind: datastore.KindIPAMConfig, Name: "default"},
		{Kind: datastore.KindIPAMHost, Name: "node1"},
		{Kind: datastore.KindLease, Name: "controller"},
		{Kind: datastore.KindHeartbeat, Name: "node1"},
	} {
		_, err := f.Get(f.ctx(), key)
		f.is("get before", err, datastore.ErrNotFound)
		f.is("delete before", f.Delete(f.ctx(), key, datastore.Always()), datastore.ErrNotFound)
		for _, value := range []string{`{"a":1}`, `{"a":2}`, ``} {
			rev := f.put(key, value)
			e, err := f.Get(f.ctx(), key)
			f.is("get", err, nil)
			want := datastore.Entry{Key: key, Value: []byte(value), Rev: rev}
			if diff := cmp.Diff(want, e); diff != "" {
				t.Fatalf("get %s: %s", key, diff)
			}
			if es, _ := f.list(datastore.Query{Kind: key.Kind, Namespace: key.Namespace}); !slices.ContainsFunc(es, func(e datastore.Entry) bool { return cmp.Equal(e, want) }) {
				t.Fatalf("list does not hold %s: %v", key, es)
			}
		}
		f.remove(key)
		_, err = f.Get(f.ctx(), key)
		f.is("get after", err, datastore.ErrNotFound)
		if !strings.Contains(err.Error(), key.String()) {
			t.Errorf("the error does not name %s: %v", key, err)
		}
	}
	big := `{"a":"` + strings.Repeat("x", 1<<20) + `"}`
	f.put(handle("big"), big)
	if f.value(handle("big")) != big {
		t.Error("a value of 1 MiB does not come back")
	}
	// What a caller does with its bytes afterwards is its own business.
	mine := []byte("mine")
	if _, err := f.Put(f.ctx(), handle("mine"), mine, datastore.Always()); err != nil {
		t.Fatal(err)
	}
	copy(mine, "your")
	e, err := f.Get(f.ctx(), handle("mine"))
	f.is("get", err, nil)
	copy(e.Value, "your")
	if got := f.value(handle("mine")); got != "mine" {
		t.Errorf("stored value became %q", got)
	}
}

func testPreconditions(t *testing.T, f *fixture) {
	k := handle("k")
	put := func(value string, pre datastore.Precondition) error {
		_, err := f.Put(f.ctx(), k, []byte(value), pre)
		return err
	}
	del := func(pre datastore.Precondition) error { return f.Delete(f.ctx(), k, pre) }

	old := f.put(k, "0")
	f.remove(k)
	f.is("put at a revision, nothing stored", put("x", datastore.At(old)), datastore.ErrNotFound)
	f.is("delete at a revision, nothing stored", del(datastore.At(old)), datastore.ErrNotFound)
	f.is("put at revision 0, nothing stored", put("x", datastore.At("0")), datastore.ErrNotFound)
	f.is("create", put("1", datastore.Absent()), nil)
	f.is("create again", put("x", datastore.Absent()), datastore.ErrExists)
	f.is("put at the revision of a former life", put("x", datastore.At(old)), datastore.ErrConflict)
	f.is("delete at it", del(datastore.At(old)), datastore.ErrConflict)
	if got := f.value(k); got != "1" {
		t.Fatalf("value is %q after refused writes", got)
	}
	e, err := f.Get(f.ctx(), k)
	f.is("get", err, nil)
	f.is("put at the revision", put("2", datastore.At(e.Rev)), nil)
	f.is("put at it again", put("x", datastore.At(e.Rev)), datastore.ErrConflict)
	f.is("put always", put("3", datastore.Always()), nil)
	e, err = f.Get(f.ctx(), k)
	f.is("get", err, nil)
	f.put(handle("other"), "x") // moves the store's revision, not the key's
	f.is("delete at the revision", del(datastore.At(e.Rev)), nil)
	f.is("delete again", del(datastore.Always()), datastore.ErrNotFound)
	if err := put("x", datastore.At("nonsense")); err == nil {
		t.Error("put at a revision that is none succeeded")
	}
}

func testBadKeys(t *testing.T, f *fixture) {
	bad := datastore.Key{Kind: "Nonsense", Name: "a"}
	_, err := f.Get(f.ctx(), bad)
	_, _, listErr := f.List(f.ctx(), datastore.Query{Kind: "Nonsense"})
	_, putErr := f.Put(f.ctx(), bad, nil, datastore.Always())
	watchErr := f.ended(f.Watch(f.ctx(), "", datastore.Query{Kind: "Nonsense"}))
	for what, err := range map[string]error{
		"get": err, "list": listErr, "put": putErr, "watch": watchErr,
		"delete": f.Delete(f.ctx(), bad, datastore.Always()),
	} {
		if err == nil || errors.Is(err, datastore.ErrNotFound) || !strings.Contains(err.Error(), "Nonsense") {
			t.Errorf("%s of an unknown kind: %v", what, err)
		}
	}
}

func testRevisions(t *testing.T, f *fixture) {
	seen := map[datastore.Revision]bool{}
	fresh := func(rev datastore.Revision) {
		t.Helper()
		if rev == "" || seen[rev] {
			t.Fatalf("revision %q is empty or was used before", rev)
		}
		seen[rev] = true
	}
	_, rev := f.list(handles)
	if rev == "" {
		t.Fatal("an empty store has no revision")
	}
	a := f.put(handle("a"), "1")
	fresh(a)
	fresh(f.put(handle("b"), "1"))
	fresh(f.put(handle("a"), "1")) // the same value is still a write
	f.remove(handle("a"))
	fresh(f.put(handle("a"), "2"))
	es, _ := f.list(handles)
	for _, e := range es {
		got, err := f.Get(f.ctx(), e.Key)
		f.is("get", err, nil)
		if diff := cmp.Diff(e, got); diff != "" {
			t.Errorf("list and get differ: %s", diff)
		}
	}
}

func keysOf(es []datastore.Entry) []string {
	names := []string{}
	for _, e := range es {
		names = append(names, strings.TrimPrefix(e.Key.Namespace+" "+e.Key.Name, " "))
	}
	return names
}

func testListOrder(t *testing.T, f *fixture) {
	wep := func(ns, name string) datastore.Key {
		return datastore.Key{Kind: "WorkloadEndpoint", Namespace: ns, Name: name}
	}
	aff := func(owner, cidr string) datastore.Key {
		return datastore.Key{Kind: datastore.KindBlockAffinity, Namespace: owner, Name: cidr}
	}
	host := func(name string) datastore.Key { return datastore.Key{Kind: datastore.KindIPAMHost, Name: name} }
	for _, k := range []datastore.Key{
		wep("b", "1"), wep("a", "2"), wep("a-b", "1"), wep("a", "1"), wep("a", "1x"),
		aff("virtual:load-balancer", "10.0.0.0/26"), aff("host:n2", "10.0.0.0/26"), aff("host:n1", "fd00::/122"), aff("host:n1", "10.0.0.64/26"),
		host("n2"), host("n1"), host("n1x"),
		{Kind: datastore.KindIPAMConfig, Name: "default"},
		{Kind: "IPPool", Name: "b"},
		{Kind: "IPPool", Name: "a"},
		{Kind: "IPReservation", Name: "a"},
	} {
		f.put(k, "{}")
	}
	for _, c := range []struct {
		q    datastore.Query
		want []string
	}{
		{datastore.Query{Kind: "WorkloadEndpoint"}, []string{"a-b 1", "a 1", "a 1x", "a 2", "b 1"}},
		{datastore.Query{Kind: "WorkloadEndpoint", Namespace: "a"}, []string{"a 1", "a 1x", "a 2"}},
		{datastore.Query{Kind: "WorkloadEndpoint", Namespace: "none"}, []string{}},
		{datastore.Query{Kind: datastore.KindBlockAffinity}, []string{"host:n1 10.0.0.64/26", "host:n1 fd00::/122", "host:n2 10.0.0.0/26", "virtual:load-balancer 10.0.0.0/26"}},
		{datastore.Query{Kind: datastore.KindBlockAffinity, Namespace: "host:n1"}, []string{"host:n1 10.0.0.64/26", "host:n1 fd00::/122"}},
		{datastore.Query{Kind: datastore.KindBlockAffinity, Namespace: "virtual:load-balancer"}, []string{"virtual:load-balancer 10.0.0.0/26"}},
		{datastore.Query{Kind: datastore.KindIPAMHost}, []string{"n1", "n1x", "n2"}},
		{datastore.Query{Kind: datastore.KindIPAMConfig}, []string{"default"}},
		{datastore.Query{Kind: "IPPool"}, []string{"a", "b"}},
		{datastore.Query{Kind: "Node"}, []string{}},
	} {
		es, _ := f.list(c.q)
		if diff := cmp.Diff(c.want, keysOf(es)); diff != "" {
			t.Errorf("list %v: %s", c.q, diff)
		}
	}
}

// A list of many keys is one state, however many messages it takes.
func testListPages(t *testing.T, f *fixture) {
	const n, chunk = 2500, 100
	txn := f.transactor() // without transactions there is nothing that pages could tear
	name := func(i int) datastore.Key { return handle(fmt.Sprintf("h%05d", i)) }
	for i := 0; i < n; i += chunk {
		var ops []datastore.Op
		for j := i; j < i+chunk; j++ {
			ops = append(ops, datastore.Op{Key: name(j), Value: []byte("0")})
		}
		if _, err := datastore.Commit(f.ctx(), f.Store, ops); err != nil {
			t.Fatal(err)
		}
	}
	// The writer counts up first and last key in one transaction.
	ctx, cancel := context.WithCancel(f.ctx())
	var writer sync.WaitGroup
	defer writer.Wait()
	defer cancel()
	writer.Go(func() {
		for i := 1; ctx.Err() == nil; i++ {
			v := fmt.Append(nil, i)
			_, err := txn.Commit(ctx, []datastore.Op{{Key: name(0), Value: v}, {Key: name(n - 1), Value: v}})
			if err != nil && ctx.Err() == nil {
				t.Errorf("commit: %v", err)
				return
			}
		}
	})
	for range 5 {
		es, _ := f.list(handles)
		if len(es) != n {
			t.Fatalf("list has %d entries, want %d", len(es), n)
		}
		if first, last := es[0].Value, es[n-1].Value; !bytes.Equal(first, last) {
			t.Fatalf("the list is torn: first key %s, last key %s", first, last)
		}
	}
}

func testSnapshot(t *testing.T, f *fixture) {
	s, ok := f.Store.(datastore.Snapshotter)
	if !ok {
		t.Skip("this store is no Snapshotter") // allowed by the interface
	}
	f.put(handle("a"), "1")
	f.put(datastore.Key{Kind: "IPPool", Name: "p"}, "2")
	rev := f.put(datastore.Key{Kind: "Node", Name: "n"}, "3")
	es, at, err := s.Snapshot(f.ctx(), datastore.Query{Kind: "Node"}, handles, datastore.Query{Kind: datastore.KindBlockAffinity}, datastore.Query{Kind: "IPPool"})
	f.is("snapshot", err, nil)
	if diff := cmp.Diff([]string{"n", "a", "p"}, keysOf(es)); diff != "" {
		t.Error(diff)
	}
	if at != rev {
		t.Errorf("snapshot is at revision %s, the store at %s", at, rev)
	}
}

func testCounter(t *testing.T, f *fixture) {
	const writers, each = 6, 15
	k := handle("counter")
	var group sync.WaitGroup
	for range writers {
		group.Go(func() {
			for range each {
				err := datastore.Update(f.ctx(), f, k, func(n *int) (*int, error) {
					if n == nil {
						n = new(int)
					}
					*n++
					return n, nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	n, _, err := datastore.GetJSON[int](f.ctx(), f, k)
	if err != nil || n != writers*each {
		t.Errorf("counter is %d (%v), want %d", n, err, writers*each)
	}
}

func testContext(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(f.ctx())
	f.put(handle("a"), "1")
	_, rev := f.list(handles)
	w := f.Watch(ctx, rev, handles)
	f.put(handle("a"), "2")
	f.expect(w, 1)
	cancel()
	if err := f.ended(w); !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended with %v, want the context's error", err)
	}
	if err := f.ended(f.Watch(ctx, rev, handles)); !errors.Is(err, context.Canceled) {
		t.Errorf("a watch begun late ended with %v, want the context's error", err)
	}
	_, err := f.Get(ctx, handle("a"))
	f.is("get", err, context.Canceled)
	_, err = f.Put(ctx, handle("a"), nil, datastore.Always())
	f.is("put", err, context.Canceled)
	f.is("delete", f.Delete(ctx, handle("a"), datastore.Always()), context.Canceled)
	_, _, err = f.List(ctx, handles)
	f.is("list", err, context.Canceled)
	if got := f.value(handle("a")); got != "2" {
		t.Errorf("a write after the end of its context happened: %q", got)
	}
}

func testClose(t *testing.T, f *fixture) {
	f.put(handle("a"), "1")
	idle := f.Watch(f.ctx(), "", handles)
	_, rev := f.list(handles)
	full := f.Watch(f.ctx(), rev, handles) // has something to deliver, and nobody reads
	f.put(handle("a"), "2")
	start := time.Now()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("close took %s", took)
	}
	f.is("idle watch", f.ended(idle), datastore.ErrUnavailable)
	f.is("full watch", f.ended(full), datastore.ErrUnavailable)
	_, err := f.Get(f.ctx(), handle("a"))
	f.is("get after close", err, datastore.ErrUnavailable)
	_, err = f.Put(f.ctx(), handle("a"), nil, datastore.Always())
	f.is("put after close", err, datastore.ErrUnavailable)
	f.is("watch after close", f.ended(f.Watch(f.ctx(), rev, handles)), datastore.ErrUnavailable)
	f.is("close again", f.Close(), nil)
}
