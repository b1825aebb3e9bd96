package datastoretest

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/manekinet/maneki/datastore"
)

// ErrCrashed is what every call on a crashed Faulty store returns: the process
// that made it is to be thought of as gone. It is none of the datastore's errors.
var ErrCrashed = errors.New("crashed")

// Verb is a method of a store.
type Verb string

// The verbs; Event is a batch that a watch is about to deliver.
const (
	Get    Verb = "get"
	List   Verb = "list"
	Put    Verb = "put"
	Delete Verb = "delete"
	Commit Verb = "commit"
	Watch  Verb = "watch"
	Event  Verb = "event"
)

// Call is one call about to be made.
type Call struct {
	Verb    Verb
	Key     datastore.Key     // of Get, Put, Delete; of the first operation of Commit; of the first event
	Ops     []datastore.Op    // of Commit
	Queries []datastore.Query // of List and Watch
}

// Fault is what happens to a call; the zero Fault is nothing.
type Fault struct {
	Delay time.Duration // first of all, less if the context ends
	Err   error         // the call fails with this error: datastore.ErrUnavailable, ErrConflict, ...
	Crash bool          // this call and all later ones fail with ErrCrashed
	After bool          // the failure comes after the call took effect, else instead of it
}

// Faulty returns a view of a store through which calls fail as hook says. hook
// is called before every call, from several goroutines at once. A watch that is
// given an error ends with it. The view is a Transactor exactly if the store is
// one; closing it does not close the store.
func Faulty(s datastore.Store, hook func(Call) Fault) datastore.Store {
	f := &faulty{Store: s, hook: hook, crashed: new(atomic.Bool)}
	_, txn := s.(datastore.Transactor)
	_, snap := s.(datastore.Snapshotter)
	switch {
	case txn && snap:
		return struct {
			*faulty
			committer
			snapshotter
		}{f, committer{f}, snapshotter{f}}
	case txn:
		return struct {
			*faulty
			committer
		}{f, committer{f}}
	case snap:
		return struct {
			*faulty
			snapshotter
		}{f, snapshotter{f}}
	}
	return f
}

// NoTxn returns a view of a store that is neither a Transactor nor a
// Snapshotter, as the Kubernetes API is not.
func NoTxn(s datastore.Store) datastore.Store { return struct{ datastore.Store }{s} }

type faulty struct {
	datastore.Store
	hook    func(Call) Fault
	crashed *atomic.Bool
}

// do lets one call happen, or not, as the hook says.
func (f *faulty) do(ctx context.Context, c Call, call func() error) error {
	if f.crashed.Load() {
		return ErrCrashed
	}
	fault := f.hook(c)
	if fault.Delay > 0 {
		t := time.NewTimer(fault.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := fault.Err
	if fault.Crash {
		err = ErrCrashed
	}
	if err == nil {
		return call()
	}
	if fault.After {
		if own := call(); own != nil && !fault.Crash {
			return own // it had no effect, so its own error is the honest one
		}
	}
	if fault.Crash {
		f.crashed.Store(true)
		return ErrCrashed
	}
	return fmt.Errorf("%s %s: injected: %w", c.Verb, c.Key, err)
}

func (f *faulty) Get(ctx context.Context, key datastore.Key) (e datastore.Entry, err error) {
	err = f.do(ctx, Call{Verb: Get, Key: key}, func() error {
		e, err = f.Store.Get(ctx, key)
		return err
	})
	return e, err
}

func (f *faulty) List(ctx context.Context, q datastore.Query) (es []datastore.Entry, rev datastore.Revision, err error) {
	err = f.do(ctx, Call{Verb: List, Queries: []datastore.Query{q}}, func() error {
		es, rev, err = f.Store.List(ctx, q)
		return err
	})
	return es, rev, err
}

func (f *faulty) Put(ctx context.Context, key datastore.Key, value []byte, pre datastore.Precondition) (rev datastore.Revision, err error) {
	err = f.do(ctx, Call{Verb: Put, Key: key}, func() error {
		rev, err = f.Store.Put(ctx, key, value, pre)
		return err
	})
	return rev, err
}

func (f *faulty) Delete(ctx context.Context, key datastore.Key, pre datastore.Precondition) error {
	return f.do(ctx, Call{Verb: Delete, Key: key}, func() error { return f.Store.Delete(ctx, key, pre) })
}

func (f *faulty) Watch(ctx context.Context, from datastore.Revision, qs ...datastore.Query) datastore.Watcher {
	ctx, cancel := context.WithCancel(ctx)
	w := &faultyWatcher{events: make(chan []datastore.Event)}
	go func() {
		defer close(w.events)
		defer cancel()
		w.err = f.do(ctx, Call{Verb: Watch, Queries: qs}, func() error { return f.relay(ctx, w.events, from, qs) })
	}()
	return w
}

// relay passes the batches of a watch on and returns why it ended.
func (f *faulty) relay(ctx context.Context, out chan<- []datastore.Event, from datastore.Revision, qs []datastore.Query) error {
	ctx, cancel := context.WithCancel(ctx)
	inner := f.Store.Watch(ctx, from, qs...)
	defer func() {
		cancel()
		for range inner.Events() { // until it has ended
		}
	}()
	for batch := range inner.Events() {
		err := f.do(ctx, Call{Verb: Event, Key: batch[0].Entry.Key}, func() error {
			select {
			case out <- batch:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if err != nil {
			return err
		}
	}
	return inner.Err()
}

func (f *faulty) Close() error { return nil }

type faultyWatcher struct {
	events chan []datastore.Event
	err    error // set before events is closed
}

func (w *faultyWatcher) Events() <-chan []datastore.Event { return w.events }

func (w *faultyWatcher) Err() error { return w.err }

type committer struct{ f *faulty }

// Commit is datastore.Transactor's.
func (c committer) Commit(ctx context.Context, ops []datastore.Op) (rev datastore.Revision, err error) {
	call := Call{Verb: Commit, Ops: ops}
	if len(ops) > 0 {
		call.Key = ops[0].Key
	}
	err = c.f.do(ctx, call, func() error {
		rev, err = c.f.Store.(datastore.Transactor).Commit(ctx, ops)
		return err
	})
	return rev, err
}

type snapshotter struct{ f *faulty }

// Snapshot is datastore.Snapshotter's.
func (s snapshotter) Snapshot(ctx context.Context, qs ...datastore.Query) (es []datastore.Entry, rev datastore.Revision, err error) {
	err = s.f.do(ctx, Call{Verb: List, Queries: qs}, func() error {
		es, rev, err = s.f.Store.(datastore.Snapshotter).Snapshot(ctx, qs...)
		return err
	})
	return es, rev, err
}
