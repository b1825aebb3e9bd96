package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
)

// runHost runs h until the test ends and waits until it is in sync.
func runHost(t *testing.T, h *Host) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	waitFor(t, "the settings", func() bool { return h.live.Load() != nil })
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for range 500 {
		if cond() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s did not come", what)
}

// TestOneTransaction: with the host's block known, an address costs one write
// and no read, and so does its release.
func TestOneTransaction(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	var n calls
	s := datastoretest.Faulty(newStore(t, "p4 10.0.0.0/24", "p6 fd00::/112"), n.hook)
	h, ctx := NewHost(New(s, Options{}), "a"), t.Context()
	runHost(t, h)
	_, err := h.AutoAssign(ctx, Request{Handle: "warm", Num4: 1, Num6: 1})
	must(t, err)
	for i := range 20 {
		id := fmt.Sprint("h", i)
		n.take()
		r := Request{Handle: id, Num4: 1, Num6: i % 2, With: []datastore.Op{
			{Key: datastore.Key{Kind: "IPReservation", Name: id}, Value: []byte(`{"spec":{}}`), If: datastore.Absent()},
		}}
		_, err := h.AutoAssign(ctx, r)
		must(t, err)
		if w, r := n.take(); w != 1 || r != 0 {
			t.Fatalf("assignment %d: %d writes and %d reads", i, w, r)
		}
		if i%2 == 0 {
			continue
		}
		_, err = h.ReleaseByHandle(ctx, id)
		must(t, err)
		if w, r := n.take(); w != 1 || r != 0 {
			t.Fatalf("release %d: %d writes and %d reads", i, w, r)
		}
	}
	checkStore(t, s)
}

// TestConcurrentRequestsShareTransactions: while one transaction is under way,
// the requests that arrive go into the next.
func TestConcurrentRequestsShareTransactions(t *testing.T) {
	var n calls
	s := datastoretest.Faulty(newStore(t, "p 10.0.0.0/24"), func(c datastoretest.Call) datastoretest.Fault {
		n.hook(c)
		if c.Verb == datastoretest.Commit {
			return datastoretest.Fault{Delay: 20 * time.Millisecond}
		}
		return datastoretest.Fault{}
	})
	h, ctx := NewHost(New(s, Options{}), "a"), t.Context()
	_, err := h.AutoAssign(ctx, Request{Handle: "warm", Num4: 1})
	must(t, err)
	n.take()
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			if _, err := h.AutoAssign(ctx, Request{Handle: fmt.Sprint("h", i), Num4: 1}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if w, _ := n.take(); w > 4 {
		t.Errorf("60 requests took %d transactions", w)
	}
	if held := checkStore(t, s); len(held) != 61 {
		t.Errorf("%d held", len(held))
	}
}

// TestOneBadRequestFailsAlone: in one batch, requests whose own writes are
// refused fail, and the others do not.
func TestOneBadRequestFailsAlone(t *testing.T) {
	gate := make(chan struct{})
	var first atomic.Bool
	mem := newStore(t, "p 10.0.0.0/24")
	s := datastoretest.Faulty(mem, func(c datastoretest.Call) datastoretest.Fault {
		if c.Verb == datastoretest.Commit && first.CompareAndSwap(false, true) {
			<-gate
		}
		return datastoretest.Fault{}
	})
	h, ctx := NewHost(New(s, Options{}), "a"), t.Context()
	var wg sync.WaitGroup
	var failed, fine atomic.Int32
	for i := range 20 {
		wg.Go(func() {
			r := Request{Handle: fmt.Sprint("h", i), Num4: 1}
			if i%5 == 4 {
				r.With = []datastore.Op{{Key: datastore.Key{Kind: "IPReservation", Name: fmt.Sprint("w", i)}, Value: []byte(`{}`), If: datastore.At("1")}}
			}
			_, err := h.AutoAssign(ctx, r)
			switch {
			case r.With == nil && err != nil:
				t.Errorf("request %d: %v", i, err)
			case r.With != nil && errors.Is(err, datastore.ErrNotFound):
				failed.Add(1)
			case r.With != nil:
				t.Errorf("request %d: %v, want its precondition's error", i, err)
			default:
				fine.Add(1)
			}
		})
	}
	waitFor(t, "the queue", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.queue) == 19 })
	close(gate)
	wg.Wait()
	if held := checkStore(t, mem); len(held) != 16 || failed.Load() != 4 || fine.Load() != 16 {
		t.Errorf("%d held, %d failed, %d fine", len(held), failed.Load(), fine.Load())
	}
}

// TestSettingsChange: a pool that was disabled gives no more addresses, even if
// the watch has not told yet.
func TestSettingsChange(t *testing.T) {
	mem := newStore(t, "a 10.0.0.0/24", "b 10.1.0.0/24")
	var hold atomic.Bool
	release := make(chan struct{})
	s := datastoretest.Faulty(mem, func(c datastoretest.Call) datastoretest.Fault {
		if c.Verb == datastoretest.Event && hold.Load() {
			<-release
		}
		return datastoretest.Fault{}
	})
	h, ctx := NewHost(New(s, Options{}), "n"), t.Context()
	runHost(t, h)
	defer close(release)
	got, err := h.AutoAssign(ctx, Request{Handle: "h1", Num4: 1})
	must(t, err)
	if got[0].Pool != "a" {
		t.Fatalf("from %s", got[0].Pool)
	}
	hold.Store(true)
	modifyPool(t, mem, "a", func(p *api.IPPoolSpec) { p.Disabled = true })
	got, err = h.AutoAssign(ctx, Request{Handle: "h2", Num4: 1})
	must(t, err)
	if got[0].Pool != "b" {
		t.Errorf("from the disabled pool %s", got[0].Pool)
	}
	must(t, h.client.SetConfig(ctx, api.IPAMConfig{StrictAffinity: true}))
	if _, err := h.AutoAssign(ctx, Request{Handle: "h3", Num4: 1000}); !errors.Is(err, ErrExhausted) {
		t.Errorf("a changed configuration: %v", err)
	}
}

func TestHostNoticesOthers(t *testing.T) {
	s := newStore(t, "p 10.0.0.0/30 31")
	c, ctx := New(s, Options{}), t.Context()
	h := NewHost(c, "a")
	got, err := h.AutoAssign(ctx, Request{Handle: "h1", Num4: 2})
	must(t, err)
	// Somebody else releases one; the host believes its block to be full.
	_, err = c.Release(ctx, got[0].Addr)
	must(t, err)
	_, err = h.AutoAssign(ctx, Request{Handle: "h2", Num4: 2})
	must(t, err)
	// Somebody else deletes the host, all addresses and blocks.
	must(t, c.ReleaseHost(ctx, "a"))
	wantDump(t, s, "")
	again, err := h.AutoAssign(ctx, Request{Handle: "h1", Num4: 1})
	must(t, err)
	if held := checkStore(t, s); len(held) != 1 || held[again[0].Addr] != "h1" {
		t.Errorf("held %v", held)
	}
	if _, err := h.AutoAssign(ctx, Request{Host: "b", Handle: "x", Num4: 1}); err == nil {
		t.Error("a request of another host is served")
	}
}

// TestStrictAffinityFindsReleased: the last chance before refusing is to read
// the own blocks again.
func TestStrictAffinityFindsReleased(t *testing.T) {
	s := newStore(t, "p 10.0.0.0/31 31")
	c, ctx := New(s, Options{}), t.Context()
	must(t, c.SetConfig(ctx, api.IPAMConfig{StrictAffinity: true, AutoAllocateBlocks: true}))
	h := NewHost(c, "a")
	got, err := h.AutoAssign(ctx, Request{Handle: "h1", Num4: 2})
	must(t, err)
	_, err = c.Release(ctx, got[1].Addr)
	must(t, err)
	_, err = h.AutoAssign(ctx, Request{Handle: "h2", Num4: 1})
	must(t, err)
}

// TestCancelWhileQueued: a caller that gives up gets its answer at once and
// leaves nothing; the others are not disturbed.
func TestCancelWhileQueued(t *testing.T) {
	gate := make(chan struct{})
	var first atomic.Bool
	mem := newStore(t, "p 10.0.0.0/24")
	s := datastoretest.Faulty(mem, func(c datastoretest.Call) datastoretest.Fault {
		if c.Verb == datastoretest.Commit && first.CompareAndSwap(false, true) {
			<-gate
		}
		return datastoretest.Fault{}
	})
	h := NewHost(New(s, Options{}), "a")
	leader, endLeader := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		// Its request is under way when its caller gives up: it is finished.
		if _, err := h.AutoAssign(leader, Request{Handle: "leader", Num4: 1}); err != nil {
			t.Error(err)
		}
	})
	waitFor(t, "the commit", first.Load)
	wg.Go(func() {
		if _, err := h.AutoAssign(t.Context(), Request{Handle: "stays", Num4: 1}); err != nil {
			t.Error(err)
		}
	})
	waitFor(t, "the queue", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.queue) == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	quit := make(chan error)
	go func() {
		_, err := h.AutoAssign(ctx, Request{Handle: "quits", Num4: 1})
		quit <- err
	}()
	waitFor(t, "the queue", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.queue) == 2 })
	cancel()
	if err := <-quit; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	endLeader()
	close(gate)
	wg.Wait()
	if held := checkStore(t, mem); len(held) != 2 || len(handles(t, mem)["stays"]) != 1 {
		t.Errorf("held %v", held)
	}
}

// TestLostAnswers: every write is carried out and its answer lost, on stores
// with and without transactions; requests succeed all the same, once.
func TestLostAnswers(t *testing.T) {
	for _, txn := range []bool{true, false} {
		var mem datastore.Store = newStore(t, "p4 10.0.0.0/28 30", "p6 fd00::/120")
		if !txn {
			mem = datastoretest.NoTxn(mem)
		}
		var turn atomic.Int64
		s := datastoretest.Faulty(mem, func(c datastoretest.Call) datastoretest.Fault {
			switch c.Verb {
			case datastoretest.Commit, datastoretest.Put, datastoretest.Delete:
				if turn.Add(1)%2 == 0 {
					return datastoretest.Fault{Err: datastore.ErrUnavailable, After: true}
				}
			case datastoretest.Get, datastoretest.List, datastoretest.Watch, datastoretest.Event:
			}
			return datastoretest.Fault{}
		})
		h, ctx := NewHost(New(s, Options{}), "a"), t.Context()
		want := map[netip.Addr]string{}
		for i := range 12 {
			id := fmt.Sprint("h", i)
			got, err := h.AutoAssign(ctx, Request{Handle: id, Num4: 1, Num6: 1})
			must(t, err)
			for _, a := range got {
				want[a.Addr] = id
			}
			if i%3 == 0 {
				freed, err := h.ReleaseByHandle(ctx, id)
				must(t, err)
				if len(freed) != 2 {
					t.Errorf("released %v", freed)
				}
				for _, a := range freed {
					delete(want, a)
				}
			}
		}
		if held := checkStore(t, mem); fmt.Sprint(held) != fmt.Sprint(want) {
			t.Errorf("transactions=%v: held %v\nwant %v", txn, held, want)
		}
	}
}
