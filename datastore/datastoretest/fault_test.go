package datastoretest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
	"github.com/manekinet/maneki/datastore/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	key   = datastore.Key{Kind: "Node", Name: "n"}
	nodes = datastore.Query{Kind: "Node"}
)

// once makes the first call of a verb fail.
func once(v datastoretest.Verb, f datastoretest.Fault) func(datastoretest.Call) datastoretest.Fault {
	return func(c datastoretest.Call) datastoretest.Fault {
		if c.Verb != v {
			return datastoretest.Fault{}
		}
		v = ""
		return f
	}
}

func TestFaultBeforeAndAfter(t *testing.T) {
	ctx := t.Context()
	write := map[datastoretest.Verb]func(datastore.Store) error{
		datastoretest.Put: func(s datastore.Store) error {
			_, err := s.Put(ctx, key, []byte("x"), datastore.Absent())
			return err
		},
		datastoretest.Commit: func(s datastore.Store) error {
			_, err := s.(datastore.Transactor).Commit(ctx, []datastore.Op{{Key: key, Value: []byte("x"), If: datastore.Absent()}})
			return err
		},
	}
	for verb, do := range write {
		for _, after := range []bool{false, true} {
			inner := memory.New()
			s := datastoretest.Faulty(inner, once(verb, datastoretest.Fault{Err: datastore.ErrUnavailable, After: after}))
			if err := do(s); !errors.Is(err, datastore.ErrUnavailable) {
				t.Errorf("%s: error is %v", verb, err)
			}
			if _, err := inner.Get(ctx, key); (err == nil) != after {
				t.Errorf("%s, fault after it %v: get says %v", verb, after, err)
			}
			want := error(nil)
			if after {
				want = datastore.ErrExists
			}
			if err := do(s); !errors.Is(err, want) {
				t.Errorf("%s again: error is %v, want %v", verb, err, want)
			}
			if err := inner.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestCrash(t *testing.T) {
	ctx := t.Context()
	inner := memory.New()
	defer inner.Close()
	s := datastoretest.Faulty(inner, once(datastoretest.Delete, datastoretest.Fault{Crash: true, After: true}))
	w := s.Watch(ctx, "1", nodes)
	if _, err := s.Put(ctx, key, nil, datastore.Always()); err != nil {
		t.Fatal(err)
	}
	<-w.Events()
	if err := s.Delete(ctx, key, datastore.Always()); !errors.Is(err, datastoretest.ErrCrashed) {
		t.Errorf("delete: %v", err)
	}
	if _, err := inner.Get(ctx, key); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("the delete before the crash did not happen: %v", err)
	}
	for range w.Events() {
		t.Error("a crashed process sees an event")
	}
	_, getErr := s.Get(ctx, key)
	_, _, listErr := s.List(ctx, nodes)
	_, putErr := s.Put(ctx, key, nil, datastore.Always())
	for what, err := range map[string]error{"watch": w.Err(), "get": getErr, "list": listErr, "put": putErr} {
		if !errors.Is(err, datastoretest.ErrCrashed) {
			t.Errorf("%s after the crash: %v", what, err)
		}
	}
	if _, err := inner.Get(ctx, key); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("a crashed process wrote: %v", err)
	}
}

func TestDelayEndsWithContext(t *testing.T) {
	inner := memory.New()
	defer inner.Close()
	s := datastoretest.Faulty(inner, once(datastoretest.Put, datastoretest.Fault{Delay: time.Hour}))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := s.Put(ctx, key, nil, datastore.Always()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("put: %v", err)
	}
	if _, err := inner.Get(t.Context(), key); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("it was written: %v", err)
	}
}

// The views are what they say, and a faulty view that has no faults conforms.
func TestViews(t *testing.T) {
	inner := memory.New()
	defer inner.Close()
	none := func(datastoretest.Call) datastoretest.Fault { return datastoretest.Fault{} }
	if _, ok := datastoretest.Faulty(inner, none).(datastore.Transactor); !ok {
		t.Error("the faulty view of a Transactor is none")
	}
	if _, ok := datastoretest.NoTxn(inner).(datastore.Transactor); ok {
		t.Error("NoTxn is a Transactor")
	}
	if _, ok := datastoretest.Faulty(datastoretest.NoTxn(inner), none).(datastore.Transactor); ok {
		t.Error("the faulty view of NoTxn is a Transactor")
	}
}

func TestConformance(t *testing.T) {
	var last *memory.Store
	datastoretest.Run(t, datastoretest.Backend{
		New: func(t *testing.T) datastore.Store {
			last = memory.New()
			return closing{datastoretest.Faulty(last, func(datastoretest.Call) datastoretest.Fault { return datastoretest.Fault{} }), last}
		},
		Compact: func(*testing.T) { last.Compact() },
	})
}

// closing closes the store below, which Faulty leaves to its owner.
type closing struct {
	datastore.Store
	inner datastore.Store
}

func (c closing) Close() error { return c.inner.Close() }
