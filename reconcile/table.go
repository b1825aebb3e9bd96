package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

// Options of a Table. The zero value of every field is usable.
type Options[K comparable] struct {
	Name   string       // what the table holds, for log and errors: "routes"
	Logger *slog.Logger // nil discards

	// Resync is how often the objects are listed although nothing was heard of, plus or minus a tenth; 0 is 90 s
	// (Felix's refresh interval), negative never.
	Resync time.Duration
	// RetryMin and RetryMax bound the doubling wait between attempts at what failed; 0 is 50 ms and 10 s.
	RetryMin, RetryMax time.Duration
	// DirtyInterval is the least time between two listings that Dirty causes; 0 is 20 ms. A listing that takes long
	// raises it to ten times its own duration, at most 1 s, so that a storm of events costs a tenth of a processor.
	DirtyInterval time.Duration

	// Compare orders the objects of one pass; nil leaves the order open.
	Compare func(a, b K) int
}

// Table keeps the objects of one Applier as wanted. All methods are safe for concurrent use; all calls of the Applier
// are made by Run. Nothing is written before the first Set and a complete Dump.
type Table[K comparable, V comparable] struct {
	applier Applier[K, V]
	opts    Options[K]
	wake    chan struct{} // capacity one: a wake-up is never lost and never waits

	mu       sync.Mutex
	running  bool
	want     map[K]V // nil until the first Set; replaced, never changed in place
	hold     func(K, V) bool
	dirty    bool
	listing  bool    // an event is being looked into
	have     map[K]V // what is there, as far as is known; nil until the first Dump
	failed   map[K]failure
	watchers map[chan struct{}]struct{} // closed and forgotten after every pass
	status   counters
}

// failure is one object that could not be put or deleted.
type failure struct {
	err      error
	attempts int
	retryAt  time.Time
	unkept   bool // every write succeeded, but the next listing showed something else
}

// NewTable makes a table; nothing happens until Run.
func NewTable[K comparable, V comparable](applier Applier[K, V], opts Options[K]) *Table[K, V] {
	if opts.Name == "" {
		opts.Name = "table"
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	opts.Resync = orDefault(opts.Resync, 90*time.Second)
	opts.RetryMin = orDefault(opts.RetryMin, 50*time.Millisecond)
	opts.RetryMax = max(opts.RetryMin, orDefault(opts.RetryMax, 10*time.Second))
	opts.DirtyInterval = orDefault(opts.DirtyInterval, 20*time.Millisecond)
	return &Table[K, V]{
		applier:  applier,
		opts:     opts,
		wake:     make(chan struct{}, 1),
		failed:   map[K]failure{},
		watchers: map[chan struct{}]struct{}{},
	}
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// Set says everything that is wanted from now on. It replaces what was wanted before, never blocks, and may be called
// as often as one likes: only the newest matters. The map is copied.
func (t *Table[K, V]) Set(want map[K]V) {
	next := maps.Clone(want)
	if next == nil {
		next = map[K]V{}
	}
	t.mu.Lock()
	for k, f := range t.failed {
		// Back-off is for repeating the same attempt. A new value deserves a new one.
		before, was := t.want[k]
		if after, is := next[k]; was != is || before != after {
			f.retryAt = time.Time{}
			t.failed[k] = f
		}
	}
	t.want = next
	t.mu.Unlock()
	t.kick()
}

// Dirty says that the objects may have changed behind the table's back: they are listed soon, compared and repaired,
// and what failed is tried again at once.
func (t *Table[K, V]) Dirty() {
	t.mu.Lock()
	t.dirty = true
	t.mu.Unlock()
	t.kick()
}

// HoldDeletes postpones the deletion of every unwanted object that hold reports true for, until it is called again
// with another function, or nil to hold nothing. Additions and changes go on. This is how routes survive the
// time between the start of the agent and the convergence of BGP (RFC 4724 §4.1).
func (t *Table[K, V]) HoldDeletes(hold func(K, V) bool) {
	t.mu.Lock()
	t.hold = hold
	t.mu.Unlock()
	t.kick()
}

func (t *Table[K, V]) kick() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Wait blocks until every entry given is wanted and there, with exactly that value. When ctx ends first, the error
// says which entry is missing and why its last attempt failed.
func (t *Table[K, V]) Wait(ctx context.Context, entries map[K]V) error {
	return t.wait(ctx, func(want, have map[K]V) (K, bool) {
		for k, v := range entries {
			w, wanted := want[k]
			h, there := have[k]
			if !wanted || !there || w != v || h != v {
				return k, false
			}
		}
		return *new(K), true
	})
}

// WaitKeys is Wait for callers who do not know the values: it blocks until every key is wanted and there as wanted.
func (t *Table[K, V]) WaitKeys(ctx context.Context, keys ...K) error {
	return t.wait(ctx, func(want, have map[K]V) (K, bool) {
		for _, k := range keys {
			w, wanted := want[k]
			if h, there := have[k]; !wanted || !there || w != h {
				return k, false
			}
		}
		return *new(K), true
	})
}

// WaitGone blocks until none of the keys is wanted or there.
func (t *Table[K, V]) WaitGone(ctx context.Context, keys ...K) error {
	return t.wait(ctx, func(want, have map[K]V) (K, bool) {
		for _, k := range keys {
			_, wanted := want[k]
			if _, there := have[k]; wanted || there {
				return k, false
			}
		}
		return *new(K), true
	})
}

// WaitSynced blocks until everything wanted is there and nothing unwanted is, deletions on hold excepted, and no event
// is left to look into.
func (t *Table[K, V]) WaitSynced(ctx context.Context) error {
	return t.wait(ctx, func(_, _ map[K]V) (K, bool) {
		key, ok := t.missing()
		return key, ok && !t.dirty && !t.listing
	})
}

// missing names an object that is not as wanted, if there is one. Table.mu is held.
func (t *Table[K, V]) missing() (key K, ok bool) {
	for k, w := range t.want {
		if h, there := t.have[k]; !there || h != w {
			return k, false
		}
	}
	for k, h := range t.have {
		if _, wanted := t.want[k]; !wanted && !t.held(k, h) {
			return k, false
		}
	}
	return key, true
}

// wait blocks until done is true of the wanted and the present objects. done runs with the lock held; before the
// first Set and the first Dump it is not asked. It names one key that is not as it should be.
func (t *Table[K, V]) wait(ctx context.Context, done func(want, have map[K]V) (K, bool)) error {
	for {
		t.mu.Lock()
		started := t.want != nil && t.have != nil
		var missing K
		if started {
			var ok bool
			if missing, ok = done(t.want, t.have); ok {
				t.mu.Unlock()
				return nil
			}
		}
		next := make(chan struct{})
		t.watchers[next] = struct{}{}
		t.mu.Unlock()

		select {
		case <-next:
		case <-ctx.Done():
			return t.waitError(ctx, next, missing, started)
		}
	}
}

// waitError forgets the waiter and says what it was waiting for.
func (t *Table[K, V]) waitError(ctx context.Context, waiter chan struct{}, missing K, started bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.watchers, waiter)
	switch f, failed := t.failed[missing]; {
	case t.want == nil:
		return fmt.Errorf("wait for %s: nothing is wanted yet: %w", t.opts.Name, ctx.Err())
	case failed:
		return fmt.Errorf("wait for %s %v: %w: %w", t.opts.Name, missing, ctx.Err(), f.err)
	case t.status.dumpErr != nil:
		return fmt.Errorf("wait for %s: %w: %w", t.opts.Name, ctx.Err(), t.status.dumpErr)
	case !started:
		return fmt.Errorf("wait for %s: not listed yet: %w", t.opts.Name, ctx.Err())
	}
	return fmt.Errorf("wait for %s %v: %w", t.opts.Name, missing, ctx.Err())
}

// errRunning is what a second Run gets.
var errRunning = errors.New("already running")

// Run is the table's one goroutine. It returns nil when ctx is done, and leaves every object as it is.
func (t *Table[K, V]) Run(ctx context.Context) error {
	t.mu.Lock()
	if t.running {
		t.mu.Unlock()
		return fmt.Errorf("run %s: %w", t.opts.Name, errRunning)
	}
	t.running = true
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		t.running = false
		t.mu.Unlock()
	}()

	loop := newLoop(t)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake:
		case <-timer.C:
		}
		if ctx.Err() != nil {
			return nil
		}
		timer.Reset(loop.pass(ctx))
	}
}

// sorted puts keys into the table's order.
func (t *Table[K, V]) sorted(keys []K) []K {
	if t.opts.Compare != nil {
		slices.SortFunc(keys, t.opts.Compare)
	}
	return keys
}
