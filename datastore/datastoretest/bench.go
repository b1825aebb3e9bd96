package datastoretest

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/manekinet/maneki/datastore"
)

// listed is how many entries the list benchmark reads at once.
const listed = 1000

// Bench measures a store: one write and one read at a time and sixteen at once,
// a transaction of three keys, a list, and from a write to its event.
func Bench(b *testing.B, s datastore.Store) {
	ctx := context.Background()
	value := make([]byte, 500)
	check := func(b *testing.B, err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	put := func(b *testing.B, i int) {
		_, err := s.Put(ctx, handle(fmt.Sprintf("bench%d", i%listed)), value, datastore.Always())
		check(b, err)
	}
	for i := range listed {
		put(b, i)
	}
	b.Run("Put", func(b *testing.B) {
		for i := range b.N {
			put(b, i)
		}
	})
	b.Run("Put16", func(b *testing.B) {
		var n atomic.Int64
		b.SetParallelism(8)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				put(b, int(n.Add(1)))
			}
		})
	})
	b.Run("Get", func(b *testing.B) {
		for i := range b.N {
			_, err := s.Get(ctx, handle(fmt.Sprintf("bench%d", i%listed)))
			check(b, err)
		}
	})
	b.Run("Commit3", func(b *testing.B) {
		for i := range b.N {
			var ops []datastore.Op
			for j := range 3 {
				ops = append(ops, datastore.Op{Key: handle(fmt.Sprintf("bench%d", (i*3+j)%listed)), Value: value})
			}
			_, err := datastore.Commit(ctx, s, ops)
			check(b, err)
		}
	})
	b.Run("List1000", func(b *testing.B) {
		for range b.N {
			es, _, err := s.List(ctx, handles)
			check(b, err)
			if len(es) != listed {
				b.Fatalf("%d entries", len(es))
			}
		}
	})
	b.Run("PutToEvent", func(b *testing.B) {
		_, rev, err := s.List(ctx, handles)
		check(b, err)
		ctx, cancel := context.WithCancel(ctx)
		w := s.Watch(ctx, rev, handles)
		for i := range b.N {
			put(b, i)
			if _, open := <-w.Events(); !open {
				b.Fatal(w.Err())
			}
		}
		cancel()
		for range w.Events() {
		}
	})
}
