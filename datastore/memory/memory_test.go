package memory_test

import (
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
