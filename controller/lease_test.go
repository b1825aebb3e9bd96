package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
)

// flaky is a store that one host cannot reach for a while.
type flaky struct {
	datastore.Store
	gone atomic.Bool
}

func (f *flaky) check() error {
	if f.gone.Load() {
		return fmt.Errorf("test: %w", datastore.ErrUnavailable)
	}
	return nil
}

func (f *flaky) Get(ctx context.Context, k datastore.Key) (datastore.Entry, error) {
	if err := f.check(); err != nil {
		return datastore.Entry{}, err
	}
	return f.Store.Get(ctx, k)
}

func (f *flaky) Put(ctx context.Context, k datastore.Key, v []byte, p datastore.Precondition) (datastore.Revision, error) {
	if err := f.check(); err != nil {
		return "", err
	}
	return f.Store.Put(ctx, k, v, p)
}

// election is a set of contenders that note who works.
type election struct {
	t    *testing.T
	base datastore.Store

	mu      sync.Mutex
	working map[string]bool
	most    int
	terms   []string
}

const testLease = 400 * time.Millisecond

// join starts a contender; the function returned stops it.
func (e *election) join(name string) (store *flaky, stop func()) {
	store = &flaky{Store: e.base}
	l := &Lease{Store: store, Name: "test", Holder: name, Duration: testLease, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := l.Run(ctx, func(ctx context.Context) error {
			e.mu.Lock()
			e.working[name] = true
			e.most = max(e.most, len(e.working))
			e.terms = append(e.terms, name)
			e.mu.Unlock()
			<-ctx.Done()
			e.mu.Lock()
			delete(e.working, name)
			e.mu.Unlock()
			return ctx.Err()
		}, func() map[string]string { return map[string]string{"loop": name} }); !errors.Is(err, context.Canceled) {
			e.t.Errorf("%s: %v", name, err)
		}
	}()
	return store, sync.OnceFunc(func() { cancel(); <-done })
}

// leader is who works, empty for nobody.
func (e *election) leader() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	for name := range e.working {
		return name
	}
	return ""
}

func (e *election) wait(what string, holds func() bool) {
	e.t.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			e.t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// Exactly one works; when it stops, loses the datastore or dies another takes
// over, and at no time do two work.
func TestLease(t *testing.T) {
	defer goleak.VerifyNone(t)
	e := &election{t: t, base: memory.New(), working: map[string]bool{}}
	stores, stops := map[string]*flaky{}, map[string]func(){}
	for _, name := range []string{"a", "b", "c"} {
		stores[name], stops[name] = e.join(name)
		defer stops[name]()
	}
	e.wait("a leader", func() bool { return e.leader() != "" })
	first := e.leader()
	time.Sleep(2 * testLease)
	if e.leader() != first || len(e.terms) != 1 {
		t.Errorf("the lease changed hands without need: %v", e.terms)
	}

	// One that stops releases the lease: nobody waits until it runs out.
	stops[first]()
	began := time.Now()
	e.wait("the next leader", func() bool { return e.leader() != "" })
	if took := time.Since(began); took > testLease {
		t.Errorf("taking over from a leader that stopped took %s", took)
	}

	// One without the datastore stops working before anybody else may begin.
	second := e.leader()
	stores[second].gone.Store(true)
	e.wait("another leader", func() bool { l := e.leader(); return l != "" && l != second })
	stores[second].gone.Store(false)
	third := e.leader()
	time.Sleep(2 * testLease)
	if e.leader() != third {
		t.Errorf("who came back took the lease from %s", third)
	}
	if e.most != 1 {
		t.Errorf("%d worked at the same time", e.most)
	}
}

// A holder that starts again takes its own lease back at once, and a value that
// is no record does not block the election.
func TestLeaseOfBefore(t *testing.T) {
	for _, stored := range []string{`{"holder":"a","durationSeconds":3600}`, `nonsense`, `{"holder":""}`} {
		store := memory.New()
		if _, err := store.Put(t.Context(), datastore.Key{Kind: datastore.KindLease, Name: "test"}, []byte(stored), datastore.Absent()); err != nil {
			t.Fatal(err)
		}
		e := &election{t: t, base: store, working: map[string]bool{}}
		_, stop := e.join("a")
		e.wait("the lease after "+stored, func() bool { return e.leader() == "a" })
		stop()
	}
}

// Another one's lease is respected for as long as its record says.
func TestLeaseIsRespected(t *testing.T) {
	store := memory.New()
	key := datastore.Key{Kind: datastore.KindLease, Name: "test"}
	if _, err := store.Put(t.Context(), key, []byte(`{"holder":"other","durationSeconds":1.5}`), datastore.Absent()); err != nil {
		t.Fatal(err)
	}
	e := &election{t: t, base: store, working: map[string]bool{}}
	began := time.Now()
	_, stop := e.join("a")
	defer stop()
	e.wait("the lease", func() bool { return e.leader() == "a" })
	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("taken after %s", took)
	}
}

// A host is dead when three of its own beats are missing, by the watcher's
// clock; what is missed while nobody looked does not count.
func TestCensus(t *testing.T) {
	at := time.Unix(1000, 0)
	rev := 0
	beat := func(every float64) datastore.Entry {
		rev++
		return datastore.Entry{Key: heartbeatKey("h1"), Rev: datastore.Revision(fmt.Sprint(rev)), Value: fmt.Appendf(nil, `{"count":%d,"everySeconds":%g}`, rev, every)}
	}
	var c census
	last := beat(2)
	look := func(after time.Duration, e datastore.Entry) bool {
		at = at.Add(after)
		c.look([]datastore.Entry{e}, at)
		_, alive := c.alive("h1", at)
		return alive
	}
	for i, s := range []struct {
		after time.Duration
		fresh bool
		alive bool
	}{
		{0, false, true},
		{2 * time.Second, true, true},
		{2 * time.Second, false, true},
		{2 * time.Second, false, true},
		{2 * time.Second, false, true},
		{time.Second, false, false},
		{time.Second, true, true},
		{time.Minute, false, true}, // nobody looked for a minute
		{2 * time.Second, false, true},
		{2 * time.Second, false, true},
		{2 * time.Second, false, true},
		{time.Second, false, false},
	} {
		if s.fresh {
			last = beat(2)
		}
		if got := look(s.after, last); got != s.alive {
			t.Fatalf("step %d: alive %t, want %t", i, got, s.alive)
		}
	}
	if _, alive := c.alive("h2", at); alive {
		t.Error("a host without a heartbeat is alive")
	}
}
