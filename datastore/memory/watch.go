package memory

import (
	"context"
	"fmt"
	"slices"
	"sort"

	"github.com/manekinet/maneki/datastore"
)

type watcher struct {
	events chan []datastore.Event
	err    error // set before events is closed
}

func (w *watcher) Events() <-chan []datastore.Event { return w.events }

func (w *watcher) Err() error { return w.err }

// Watch delivers every change of the queries after revision from, in order; an
// empty revision means now. The changes of one transaction come in one batch.
func (s *Store) Watch(ctx context.Context, from datastore.Revision, qs ...datastore.Query) datastore.Watcher {
	w := &watcher{events: make(chan []datastore.Event)}
	fail := func(err error) datastore.Watcher {
		w.err = fmt.Errorf("watch: %w", err)
		close(w.events)
		return w
	}
	for _, q := range qs {
		if _, err := datastore.Ranges(q); err != nil {
			return fail(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return fail(err)
	}
	after := s.rev
	if from != "" {
		n, err := parseRevision(from)
		if err != nil {
			return fail(err)
		}
		after = n
	}
	s.watches.Add(1)
	go func() {
		defer s.watches.Done()
		defer close(w.events)
		if err := s.follow(ctx, w.events, after, slices.Clone(qs)); err != nil {
			w.err = fmt.Errorf("watch: %w", err)
		}
	}()
	return w
}

// follow sends changes until there is a reason to stop, which it returns.
func (s *Store) follow(ctx context.Context, out chan<- []datastore.Event, after int64, qs []datastore.Query) error {
	for {
		batch, upTo, changed, err := s.since(after, qs)
		if err != nil {
			return err
		}
		after = upTo
		if len(batch) > 0 {
			changed = nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.closed:
			return fmt.Errorf("%w: the store is closed", datastore.ErrUnavailable)
		case sendTo(out, batch) <- batch:
		case <-changed:
		}
	}
}

// sendTo is out when there is something to send, else the channel that blocks.
func sendTo(out chan<- []datastore.Event, batch []datastore.Event) chan<- []datastore.Event {
	if len(batch) == 0 {
		return nil
	}
	return out
}

// since returns the matching changes after a revision, at most about maxBatch
// and never part of a transaction, the revision they reach, and what is closed
// at the next change.
func (s *Store) since(after int64, qs []datastore.Query) ([]datastore.Event, int64, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if after < s.compacted {
		return nil, 0, nil, fmt.Errorf("%w: %d, the oldest kept is %d", datastore.ErrCompacted, after, s.compacted)
	}
	var batch []datastore.Event
	first := sort.Search(len(s.history), func(i int) bool { return s.history[i].item.rev > after })
	for _, c := range s.history[first:] {
		if c.item.rev != after && len(batch) >= maxBatch {
			return batch, after, s.changed, nil
		}
		after = c.item.rev
		if slices.ContainsFunc(qs, func(q datastore.Query) bool { return q.Matches(c.item.key) }) {
			batch = append(batch, datastore.Event{Type: c.typ, Entry: c.item.entry()})
		}
	}
	return batch, after, s.changed, nil
}
