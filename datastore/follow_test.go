package datastore_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
	"github.com/manekinet/maneki/datastore/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var followed = []datastore.Query{
	{Kind: datastore.KindIPAMHandle},
	{Kind: "WorkloadEndpoint", Namespace: "a"},
	{Kind: "WorkloadEndpoint"}, // selects some keys twice
}

func drawWrite(t *rapid.T) (datastore.Key, bool) {
	keys := []datastore.Key{
		{Kind: datastore.KindIPAMHandle, Name: "1"},
		{Kind: datastore.KindIPAMHandle, Name: "2"},
		{Kind: "WorkloadEndpoint", Namespace: "a", Name: "1"},
		{Kind: "WorkloadEndpoint", Namespace: "b", Name: "1"},
		{Kind: "Node", Name: "not followed"},
	}
	return rapid.SampledFrom(keys).Draw(t, "key"), rapid.IntRange(0, 2).Draw(t, "delete") == 0
}

// However lists fail, watches are cut and history is compacted between random
// writes, the consumer ends with what is stored and was told nothing twice.
// Time is virtual, so the waits of the back-off cost nothing.
func TestFollowProperty(t *testing.T) {
	for _, view := range []struct {
		name string
		of   func(datastore.Store) datastore.Store
	}{
		{"one snapshot", func(s datastore.Store) datastore.Store { return s }},
		{"query by query", datastoretest.NoTxn},
	} {
		t.Run(view.name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				writes := rapid.IntRange(1, 30).Draw(rt, "writes")
				seed := rapid.Uint64().Draw(rt, "faults")
				type step struct {
					key     datastore.Key
					remove  bool
					compact bool
					wait    time.Duration
				}
				var steps []step
				for range writes {
					var st step
					st.key, st.remove = drawWrite(rt)
					st.compact = rapid.IntRange(0, 5).Draw(rt, "compact") == 0
					st.wait = time.Duration(rapid.SampledFrom([]int{0, 0, 1, 50, 500}).Draw(rt, "wait")) * time.Millisecond
					steps = append(steps, st)
				}
				synctest.Test(t, func(t *testing.T) {
					s := memory.New()
					defer s.Close()
					var quiet atomic.Bool
					c := &datastoretest.Consumer{}
					ctx, cancel := context.WithCancel(t.Context())
					var group sync.WaitGroup
					faulty := datastoretest.Faulty(view.of(s), randomFaults(seed, &quiet))
					group.Go(func() {
						if err := datastore.Follow(ctx, faulty, c.Deliver, followed...); !errors.Is(err, context.Canceled) {
							t.Errorf("Follow returned %v", err)
						}
					})
					for i, st := range steps {
						if err := writeOne(s, st.key, st.remove, i); err != nil {
							t.Error(err)
						}
						if st.compact {
							s.Compact()
						}
						time.Sleep(st.wait)
					}
					quiet.Store(true)
					if err := c.WaitFor(ctx, s, followed...); err != nil {
						t.Errorf("seed %d, %+v: %v", seed, steps, err)
					}
					cancel()
					group.Wait()
				})
				if t.Failed() {
					rt.FailNow()
				}
			})
		})
	}
}

func writeOne(s datastore.Store, k datastore.Key, remove bool, i int) error {
	if remove {
		if err := s.Delete(context.Background(), k, datastore.Always()); err != nil && !errors.Is(err, datastore.ErrNotFound) {
			return err
		}
		return nil
	}
	_, err := s.Put(context.Background(), k, []byte(strconv.Itoa(i)), datastore.Always())
	return err
}

// randomFaults makes one call in four fail, before or after its effect, until
// quiet is set.
func randomFaults(seed uint64, quiet *atomic.Bool) func(datastoretest.Call) datastoretest.Fault {
	var state atomic.Uint64
	state.Store(seed)
	return func(datastoretest.Call) datastoretest.Fault {
		n := state.Add(0x9e3779b97f4a7c15) // splitmix64
		n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
		n = (n ^ n>>27) * 0x94d049bb133111eb
		n ^= n >> 31
		if quiet.Load() {
			return datastoretest.Fault{}
		}
		f := datastoretest.Fault{Delay: time.Duration(n>>8%3) * time.Millisecond, After: n>>16&1 == 0}
		if n%4 == 0 {
			f.Err = datastore.ErrUnavailable
			if n>>20%3 == 0 {
				f.Err = datastore.ErrCompacted
			}
		}
		return f
	}
}

// collect returns the batches that Follow delivers until stop says so.
func collect(t *testing.T, s datastore.Store, stop func([]datastore.Batch) bool, qs ...datastore.Query) []datastore.Batch {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var got []datastore.Batch
	err := datastore.Follow(ctx, s, func(b datastore.Batch) {
		got = append(got, b)
		if stop(got) {
			cancel()
		}
	}, qs...)
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("Follow returned %v after %d batches: %+v", err, len(got), got)
	}
	return got
}

// An empty store is in sync as well, and a consumer is told.
func TestFollowEmpty(t *testing.T) {
	s := memory.New()
	defer s.Close()
	for _, store := range []datastore.Store{s, datastoretest.NoTxn(s)} {
		inSync := func(bs []datastore.Batch) bool { return bs[len(bs)-1].InSync }
		got := collect(t, store, inSync, followed...)
		for i, b := range got {
			if len(b.Events) > 0 || b.Err != nil || b.InSync != (i == len(got)-1) {
				t.Errorf("batch %d: %+v", i, b)
			}
		}
	}
}

// The story of one outage: snapshot, loss, loss again, recovery with only the
// differences, deletions last.
func TestFollowOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New()
		defer s.Close()
		key := func(name string) datastore.Key { return datastore.Key{Kind: "Node", Name: name} }
		put := func(name, value string) {
			t.Helper()
			if _, err := s.Put(t.Context(), key(name), []byte(value), datastore.Always()); err != nil {
				t.Error(err)
			}
		}
		for _, name := range []string{"a", "b", "c", "d"} {
			put(name, "1")
		}
		var down atomic.Bool
		cut := datastoretest.Faulty(s, func(datastoretest.Call) (f datastoretest.Fault) {
			if down.Load() {
				f.Err = datastore.ErrUnavailable
			}
			return f
		})
		var story []string
		done := func(bs []datastore.Batch) bool {
			b := bs[len(bs)-1]
			story = append(story, tell(b))
			switch len(bs) {
			case 1:
				down.Store(true)
				put("a", "2") // the event that meets the cut
			case 2:
				put("c", "2")
				put("e", "1")
				for _, name := range []string{"b", "d"} {
					if err := s.Delete(t.Context(), key(name), datastore.Always()); err != nil {
						t.Error(err)
					}
				}
			case 3:
				down.Store(false)
			}
			return len(bs) == 4
		}
		collect(t, cut, done, datastore.Query{Kind: "Node"})
		want := []string{"sync +a=1 +b=1 +c=1 +d=1", "sync lost", "sync lost", "sync +a=2 +c=2 +e=1 -b -d"}
		if diff := cmp.Diff(want, story); diff != "" {
			t.Error(diff)
		}
	})
}

func tell(b datastore.Batch) string {
	var parts []string
	if b.InSync {
		parts = append(parts, "sync")
	}
	if errors.Is(b.Err, datastore.ErrUnavailable) {
		parts = append(parts, "lost")
	}
	for _, e := range b.Events {
		if e.Type == datastore.EventDelete {
			parts = append(parts, "-"+e.Entry.Key.Name)
			continue
		}
		parts = append(parts, fmt.Sprintf("+%s=%s", e.Entry.Key.Name, e.Entry.Value))
	}
	return strings.Join(parts, " ")
}

// Attempts on a store that stays away come at growing distances, 5 s at most.
func TestFollowBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		gone := datastoretest.Faulty(memory.New(), func(datastoretest.Call) datastoretest.Fault {
			at = append(at, time.Now())
			return datastoretest.Fault{Err: datastore.ErrUnavailable}
		})
		collect(t, gone, func(bs []datastore.Batch) bool {
			if b := bs[len(bs)-1]; b.InSync || !errors.Is(b.Err, datastore.ErrUnavailable) {
				t.Errorf("batch %+v", b)
			}
			return len(bs) == 9
		}, datastore.Query{Kind: "Node"})
		for i := 1; i < len(at); i++ {
			most := min(100*time.Millisecond<<(i-1), 5*time.Second)
			if d := at[i].Sub(at[i-1]); d < most/2 || d > most {
				t.Errorf("pause %d is %s, want %s to %s", i, d, most/2, most)
			}
		}
	})
}

func TestFollowBadQuery(t *testing.T) {
	s := memory.New()
	defer s.Close()
	for _, qs := range [][]datastore.Query{nil, {{Kind: "Node"}, {Kind: "Nonsense"}}, {{Kind: "Node", Namespace: "n"}}} {
		if err := datastore.Follow(t.Context(), s, func(datastore.Batch) { t.Error("delivered") }, qs...); err == nil {
			t.Errorf("queries %v were accepted", qs)
		}
	}
}
