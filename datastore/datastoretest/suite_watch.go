package datastoretest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/manekinet/maneki/datastore"
)

func isConflict(err error) bool { return errors.Is(err, datastore.ErrConflict) }

func sameOutcome(err, want error) bool {
	if want == nil {
		return err == nil
	}
	return errors.Is(err, want)
}

// view is what an observer holds who lists and then watches.
type view struct {
	values map[datastore.Key]string
	revs   map[datastore.Key]datastore.Revision
}

func newView() *view {
	return &view{values: map[datastore.Key]string{}, revs: map[datastore.Key]datastore.Revision{}}
}

// apply takes events in and reports those that cannot be: an event for a
// revision already seen, a deletion of nothing.
func (v *view) apply(events []datastore.Event) error {
	for _, e := range events {
		k := e.Entry.Key
		if e.Type == datastore.EventDelete {
			if _, there := v.values[k]; !there {
				return fmt.Errorf("deletion of %s, which is not there", k)
			}
			if e.Entry.Value != nil {
				return fmt.Errorf("deletion of %s has a value", k)
			}
			delete(v.values, k)
			delete(v.revs, k)
			continue
		}
		if v.revs[k] == e.Entry.Rev {
			return fmt.Errorf("%s at %s comes again", k, e.Entry.Rev)
		}
		v.values[k], v.revs[k] = string(e.Entry.Value), e.Entry.Rev
	}
	return nil
}

func (v *view) load(es []datastore.Entry) {
	for _, e := range es {
		v.values[e.Key], v.revs[e.Key] = string(e.Value), e.Rev
	}
}

// writeRandomly puts and deletes n times among a few keys of two kinds.
func writeRandomly(ctx context.Context, s datastore.Store, n int, r *rand.Rand) error {
	for i := range n {
		k := handle(strconv.Itoa(r.IntN(8)))
		if r.IntN(3) == 0 {
			k = datastore.Key{Kind: "WorkloadEndpoint", Namespace: "n" + strconv.Itoa(r.IntN(2)), Name: strconv.Itoa(r.IntN(4))}
		}
		var err error
		if r.IntN(3) == 0 {
			err = s.Delete(ctx, k, datastore.Always())
			if errors.Is(err, datastore.ErrNotFound) {
				err = nil
			}
		} else {
			_, err = s.Put(ctx, k, fmt.Append(nil, i), datastore.Always())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Observers who list and watch from that revision, at any moment during many
// writes, all end with what is stored, and saw every key's history in order.
func testWatchMissesNothing(t *testing.T, f *fixture) {
	const observers, writes = 5, 150
	ctx, cancel := context.WithCancel(f.ctx())
	defer cancel()
	wanted := datastore.Query{Kind: "WorkloadEndpoint"}
	var group sync.WaitGroup
	views := make([]*view, observers)
	begin := make(chan struct{}, observers)
	end := make(chan datastore.Revision)
	for i := range observers {
		views[i] = newView()
		group.Go(func() {
			<-begin
			if err := observe(ctx, f.Store, wanted, views[i], end); err != nil {
				t.Errorf("observer %d: %v", i, err)
			}
		})
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range observers {
		begin <- struct{}{}
		if err := writeRandomly(ctx, f, writes/observers, r); err != nil {
			t.Fatal(err)
		}
	}
	last := f.put(datastore.Key{Kind: "WorkloadEndpoint", Namespace: "n", Name: "last"}, "")
	for range observers {
		end <- last
	}
	group.Wait()
	es, _ := f.list(wanted)
	want := newView()
	want.load(es)
	for i, v := range views {
		if diff := cmp.Diff(want.values, v.values); diff != "" {
			t.Errorf("observer %d: %s", i, diff)
		}
	}
}

// observe lists and watches into v until the revision that comes from end has
// been seen.
func observe(ctx context.Context, s datastore.Store, q datastore.Query, v *view, end <-chan datastore.Revision) error {
	es, rev, err := s.List(ctx, q)
	if err != nil {
		return err
	}
	v.load(es)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := s.Watch(ctx, rev, q)
	seen := map[datastore.Revision]bool{rev: true}
	var last datastore.Revision
	deadline := time.After(patience)
	for last == "" || !seen[last] {
		select {
		case last = <-end:
			end = nil
		case batch, open := <-w.Events():
			if !open {
				return w.Err()
			}
			for _, e := range batch {
				seen[e.Entry.Rev] = true
			}
			if err := v.apply(batch); err != nil {
				return err
			}
		case <-deadline:
			return fmt.Errorf("revision %q did not come in %s", last, patience)
		}
	}
	cancel()
	for range w.Events() {
	}
	return nil
}

// One watch on several queries delivers those and nothing else.
func testWatchKinds(t *testing.T, f *fixture) {
	_, rev := f.list(handles)
	w := f.Watch(f.ctx(), rev,
		datastore.Query{Kind: datastore.KindIPAMHost},
		datastore.Query{Kind: "WorkloadEndpoint", Namespace: "a"},
		datastore.Query{Kind: datastore.KindBlockAffinity, Namespace: "host:n"},
		datastore.Query{Kind: datastore.KindIPAMConfig})
	wanted := []datastore.Key{
		{Kind: datastore.KindIPAMHost, Name: "n"},
		{Kind: "WorkloadEndpoint", Namespace: "a", Name: "w"},
		{Kind: datastore.KindBlockAffinity, Namespace: "host:n", Name: "10.0.0.0/26"},
		{Kind: datastore.KindIPAMConfig, Name: "default"},
	}
	unwanted := []datastore.Key{
		handle("h"),
		{Kind: "WorkloadEndpoint", Namespace: "ab", Name: "w"},
		{Kind: datastore.KindBlockAffinity, Namespace: "host:m", Name: "10.0.0.0/26"},
		{Kind: "Node", Name: "n"},
	}
	for i, k := range wanted {
		f.put(unwanted[i], "{}")
		rev := f.put(k, "{}")
		want := datastore.Event{Type: datastore.EventPut, Entry: datastore.Entry{Key: k, Value: []byte("{}"), Rev: rev}}
		if diff := cmp.Diff([]datastore.Event{want}, f.expect(w, 1)); diff != "" {
			t.Fatal(diff)
		}
		f.remove(unwanted[i])
		f.remove(k)
		got := f.expect(w, 1)[0]
		if got.Type != datastore.EventDelete || got.Entry.Key != k || got.Entry.Value != nil || got.Entry.Rev == "" || got.Entry.Rev == rev {
			t.Fatalf("deletion of %s came as %+v", k, got)
		}
	}
}

func testWatchFromNow(t *testing.T, f *fixture) {
	f.put(handle("before"), "1")
	w := f.Watch(f.ctx(), "", handles)
	// When the watch has begun cannot be known: write until it answers.
	for i := range 1000 {
		f.put(handle("after"), strconv.Itoa(i))
		select {
		case batch, open := <-w.Events():
			if !open {
				t.Fatal(w.Err())
			}
			if batch[0].Entry.Key != handle("after") {
				t.Fatalf("watch from now delivers the past: %s", describe(batch))
			}
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
	t.Fatal("watch from now delivers nothing")
}

// A reader that sleeps holds up nobody and misses nothing.
func testWatchSlowReader(t *testing.T, f *fixture) {
	_, rev := f.list(handles)
	slow := f.Watch(f.ctx(), rev, handles)
	quick := f.Watch(f.ctx(), rev, handles)
	const n = 200
	for i := range n {
		f.put(handle("k"), strconv.Itoa(i))
		f.expect(quick, 1)
	}
	for i, e := range f.expect(slow, n) {
		if string(e.Entry.Value) != strconv.Itoa(i) {
			t.Fatalf("event %d is %s", i, e.Entry.Value)
		}
	}
}

func testCompaction(t *testing.T, f *fixture) {
	f.put(handle("a"), "1")
	_, old := f.list(handles)
	for i := range 5 {
		f.put(handle("a"), strconv.Itoa(i))
	}
	w := f.Watch(f.ctx(), old, handles)
	f.expect(w, 5) // the past is there
	f.compact(t)
	f.put(handle("a"), "last")
	if got := f.expect(w, 1)[0].Entry; string(got.Value) != "last" {
		t.Errorf("a watch that is up to date must not notice the compaction, got %s", got.Value)
	}
	f.is("watch from a revision compacted away", f.ended(f.Watch(f.ctx(), old, handles)), datastore.ErrCompacted)
	if got := f.value(handle("a")); got != "last" {
		t.Errorf("value is %q", got)
	}
	_, rev := f.list(handles)
	again := f.Watch(f.ctx(), rev, handles)
	f.put(handle("b"), "1")
	f.expect(again, 1)
}

// Follow on the store itself: the consumer's view becomes what is stored.
func testFollow(t *testing.T, f *fixture) {
	f.put(handle("early"), "1")
	ctx, cancel := context.WithCancel(f.ctx())
	c := &Consumer{}
	var group sync.WaitGroup
	group.Go(func() {
		_ = datastore.Follow(ctx, f.Store, c.Deliver, handles, datastore.Query{Kind: "WorkloadEndpoint"})
	})
	defer group.Wait()
	defer cancel()
	if err := writeRandomly(f.ctx(), f, 60, rand.New(rand.NewPCG(3, 4))); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitFor(f.ctx(), f.Store, handles, datastore.Query{Kind: "WorkloadEndpoint"}); err != nil {
		t.Fatal(err)
	}
}
