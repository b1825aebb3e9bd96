package memory_test

import (
	"errors"
	"testing"

	"go.uber.org/goleak"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
	"github.com/manekinet/maneki/datastore/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	var last *memory.Store
	datastoretest.Run(t, datastoretest.Backend{
		New: func(*testing.T) datastore.Store {
			last = memory.New()
			return last
		},
		Compact: func(*testing.T) { last.Compact() },
	})
}

// The conformance suite also holds on a store without transactions.
func TestConformanceNoTxn(t *testing.T) {
	var last *memory.Store
	datastoretest.Run(t, datastoretest.Backend{
		New: func(*testing.T) datastore.Store {
			last = memory.New()
			return datastoretest.NoTxn(last)
		},
		Compact: func(*testing.T) { last.Compact() },
	})
}

// A watch that falls behind more than the history kept is told to list again.
func TestHistoryIsBounded(t *testing.T) {
	s := memory.New()
	defer s.Close()
	key := datastore.Key{Kind: "Node", Name: "n"}
	w := s.Watch(t.Context(), "1", datastore.Query{Kind: "Node"})
	for range 1 << 17 {
		if _, err := s.Put(t.Context(), key, nil, datastore.Always()); err != nil {
			t.Fatal(err)
		}
	}
	for range w.Events() {
	}
	if !errors.Is(w.Err(), datastore.ErrCompacted) {
		t.Errorf("the watch ended with %v", w.Err())
	}
}

func Benchmark(b *testing.B) {
	s := memory.New()
	defer s.Close()
	datastoretest.Bench(b, s)
}
