package datastore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// Follow waits between two attempts to reach the store, growing from the first
// to the second.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// Snapshotter is a Store that can read several queries at one revision.
type Snapshotter interface {
	// Snapshot returns the entries of all queries, query after query, and the
	// one revision at which they were read.
	Snapshot(ctx context.Context, qs ...Query) ([]Entry, Revision, error)
}

// Batch is what Follow delivers: changes, or that the connection was lost.
type Batch struct {
	Events []Event
	InSync bool  // true from the first complete snapshot on
	Err    error // the connection is lost, for status; Events is empty
}

// Follow delivers the state of the queries to one consumer and then every
// change, until the context ends; it returns the context's error, or at once
// the error of a query that no store can answer.
//
// A key's events come in order and none twice. When the watch is lost Follow
// says so with Batch.Err, lists again (with exponential back-off, 5 s at most)
// and delivers only what differs from what it had delivered, deletions last:
// the consumer never sees a restart. Intermediate states of a key that nobody
// watched are not made up. After the first snapshot and after every recovery
// there is a batch without Err, even if it holds no event.
//
// If the store is not a Snapshotter every query is followed on its own, and each
// reports its own losses and recoveries. deliver is never called twice at the
// same time.
func Follow(ctx context.Context, s Store, deliver func(Batch), qs ...Query) error {
	if len(qs) == 0 {
		return errors.New("follow: no query given")
	}
	for _, q := range qs {
		if _, err := Ranges(q); err != nil {
			return fmt.Errorf("follow: %w", err)
		}
	}
	qs = withoutOverlap(qs)
	groups := [][]Query{qs}
	if _, ok := s.(Snapshotter); !ok {
		groups = nil
		for _, q := range qs {
			groups = append(groups, []Query{q})
		}
	}
	out := &outlet{deliver: deliver, missing: len(groups)}
	var wg sync.WaitGroup
	for _, g := range groups {
		f := &follower{store: s, queries: g, out: out, known: map[Key]Revision{}}
		wg.Go(func() { f.run(ctx) })
	}
	wg.Wait()
	return ctx.Err()
}

// withoutOverlap drops queries whose keys another one selects as well.
func withoutOverlap(qs []Query) []Query {
	var out []Query
	for i, q := range qs {
		all := Query{Kind: q.Kind}
		if !slices.Contains(qs[:i], q) && (q == all || !slices.Contains(qs, all)) {
			out = append(out, q)
		}
	}
	return out
}

// outlet is where the followers of one Follow meet.
type outlet struct {
	mu      sync.Mutex
	deliver func(Batch)
	missing int // followers without a complete snapshot
}

func (o *outlet) send(events []Event, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.deliver(Batch{Events: events, InSync: o.missing == 0, Err: err})
}

// sendSnapshot is send for the outcome of a list.
func (o *outlet) sendSnapshot(events []Event, first bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if first {
		o.missing--
	}
	o.deliver(Batch{Events: events, InSync: o.missing == 0})
}

type follower struct {
	store   Store
	queries []Query
	out     *outlet
	known   map[Key]Revision // what was delivered
	synced  bool
}

func (f *follower) run(ctx context.Context) {
	for attempt := 0; ; attempt++ {
		start := time.Now()
		err := f.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, ErrCompacted) {
			f.out.send(nil, err)
		}
		if time.Since(start) > 2*maxBackoff { // it had worked for a while
			attempt = 0
		}
		if !backOff(ctx, attempt) {
			return
		}
	}
}

// once lists, watches until the watch ends, and returns why it did.
func (f *follower) once(ctx context.Context) error {
	entries, rev, err := f.list(ctx)
	if err != nil {
		return err
	}
	f.out.sendSnapshot(f.diff(entries, rev), !f.synced)
	f.synced = true

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := f.store.Watch(ctx, rev, f.queries...)
	for batch := range w.Events() {
		if events := f.fresh(batch); len(events) > 0 {
			f.out.send(events, nil)
		}
	}
	if err := w.Err(); err != nil {
		return err
	}
	return fmt.Errorf("%w: the watch ended", ErrUnavailable)
}

func (f *follower) list(ctx context.Context) ([]Entry, Revision, error) {
	if s, ok := f.store.(Snapshotter); ok {
		return s.Snapshot(ctx, f.queries...)
	}
	return f.store.List(ctx, f.queries[0])
}

// diff returns what leads from the known state to entries.
func (f *follower) diff(entries []Entry, rev Revision) []Event {
	var events []Event
	present := make(map[Key]bool, len(entries))
	for _, e := range entries {
		present[e.Key] = true
		if f.known[e.Key] != e.Rev {
			f.known[e.Key] = e.Rev
			events = append(events, Event{Type: EventPut, Entry: e})
		}
	}
	var gone []Key
	for k := range f.known {
		if !present[k] {
			gone = append(gone, k)
			delete(f.known, k)
		}
	}
	slices.SortFunc(gone, func(a, b Key) int { return strings.Compare(a.String(), b.String()) })
	for _, k := range gone {
		events = append(events, Event{Type: EventDelete, Entry: Entry{Key: k, Rev: rev}})
	}
	return events
}

// fresh notes a watch's batch and drops what the consumer knows already, should a
// store repeat itself.
func (f *follower) fresh(batch []Event) []Event {
	events := make([]Event, 0, len(batch))
	for _, e := range batch {
		k := e.Entry.Key
		rev, known := f.known[k]
		switch {
		case e.Type == EventDelete && known:
			delete(f.known, k)
		case e.Type == EventPut && rev != e.Entry.Rev:
			f.known[k] = e.Entry.Rev
		default:
			continue
		}
		events = append(events, e)
	}
	return events
}

// backOff waits before the next attempt, half of the time at random so that a
// thousand hosts do not return at the same moment. It is false when ctx ended.
func backOff(ctx context.Context, attempt int) bool {
	d := min(minBackoff<<min(attempt, 10), maxBackoff)
	t := time.NewTimer(d/2 + rand.N(d/2))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
