package ipam

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
)

// The simulation: several hosts, each with several callers, assign and release
// on one small store while writes are refused, answers get lost and processes
// crash between any two calls. Whatever happens, no address has two owners; and
// once the handles of unknown fate are released, as the agent's journal does
// after a crash, exactly what was handed out is held and counted.

// registry is what callers were told: who owns which address.
type registry struct {
	mu    sync.Mutex
	owner map[netip.Addr]string
	errs  []string
}

func (r *registry) acquire(handle string, got []Assignment) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range got {
		if was, ok := r.owner[a.Addr]; ok {
			r.errs = append(r.errs, fmt.Sprintf("%s was given to %s while %s owns it", a.Addr, handle, was))
		}
		r.owner[a.Addr] = handle
	}
}

// yield is called before a release: from then on somebody else may get it.
func (r *registry) yield(handle string, only netip.Addr) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, h := range r.owner {
		if h == handle && (!only.IsValid() || only == a) {
			delete(r.owner, a)
			n++
		}
	}
	return n
}

func (r *registry) any(handle string) netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, h := range r.owner {
		if h == handle {
			return a
		}
	}
	return netip.Addr{}
}

// faults draws what happens to one process's calls.
type faults struct {
	mu      sync.Mutex
	r       *rand.Rand
	percent int // of calls that go wrong
	crashes bool
	crashed atomic.Bool
}

func (f *faults) hook(c datastoretest.Call) datastoretest.Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.r.IntN(100) >= f.percent {
		return datastoretest.Fault{}
	}
	write := c.Verb == datastoretest.Commit || c.Verb == datastoretest.Put || c.Verb == datastoretest.Delete
	switch k := f.r.IntN(10); {
	case k < 3 && write:
		return datastoretest.Fault{Err: datastore.ErrUnavailable, After: true}
	case k < 5 && write:
		return datastoretest.Fault{Err: datastore.ErrConflict}
	case k < 6:
		return datastoretest.Fault{Err: datastore.ErrUnavailable}
	case k < 8 && f.crashes:
		f.crashed.Store(true)
		return datastoretest.Fault{Crash: true, After: k == 6}
	}
	return datastoretest.Fault{}
}

// world is one run of the simulation.
type world struct {
	store   datastore.Store
	clock   atomic.Int64 // seconds; every look at the clock takes some
	reg     registry
	mu      sync.Mutex
	unknown map[string]bool // handles of unknown fate
}

func (w *world) now() time.Time { return at(int(w.clock.Add(7))) }

func (w *world) doubt(handle string) {
	w.reg.yield(handle, netip.Addr{})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unknown[handle] = true
}

// caller works for one host until its steps are done; a crash of the host's
// process ends it, and live gives it the next process.
func (w *world) caller(host string, id int, seed uint64, steps int, live func() *Host) {
	r := rand.New(rand.NewPCG(seed, uint64(id)))
	ctx := context.Background()
	for step := range steps {
		h := live()
		handle := fmt.Sprintf("%s-%d-%d", host, id, r.IntN(4))
		w.mu.Lock()
		skip := w.unknown[handle]
		w.mu.Unlock()
		if skip {
			continue
		}
		switch r.IntN(5) {
		case 0, 1, 2:
			req := Request{Handle: handle, Num4: r.IntN(3), Num6: r.IntN(2), MaxBlocks: 3, Attrs: map[string]string{"step": fmt.Sprint(step)}}
			if req.Num4+req.Num6 == 0 {
				req.Num4 = 1
			}
			got, err := h.AutoAssign(ctx, req)
			switch {
			case err == nil:
				w.reg.acquire(handle, got)
			case !harmless(err):
				w.doubt(handle)
			}
		case 3:
			n := w.reg.yield(handle, netip.Addr{})
			freed, err := h.ReleaseByHandle(ctx, handle)
			if err != nil {
				w.doubt(handle)
			} else if len(freed) != n {
				w.reg.mu.Lock()
				w.reg.errs = append(w.reg.errs, fmt.Sprintf("release of %s gave back %v, it held %d", handle, freed, n))
				w.reg.mu.Unlock()
			}
		case 4:
			if a := w.reg.any(handle); a.IsValid() {
				w.reg.yield(handle, a)
				if _, err := h.ReleaseExactly(ctx, ReleaseOptions{Addr: a, Handle: handle}); err != nil {
					w.doubt(handle)
				}
			}
		}
	}
}

// harmless reports an error after which nothing is assigned for certain.
func harmless(err error) bool {
	return errors.Is(err, ErrExhausted) || errors.Is(err, ErrBlockLimit)
}

// process is one host's current process: a crash replaces it.
type process struct {
	w       *world
	name    string
	percent int
	crashes bool
	seed    uint64

	mu   sync.Mutex
	f    *faults
	host *Host
}

func (p *process) live() *Host {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.f == nil || p.f.crashed.Load() {
		p.seed++
		p.f = &faults{r: rand.New(rand.NewPCG(p.seed, 1)), percent: p.percent, crashes: p.crashes}
		c := New(datastoretest.Faulty(p.w.store, p.f.hook), Options{Now: p.w.now})
		p.host = NewHost(c, p.name)
	}
	return p.host
}

func TestSimulation(t *testing.T) {
	t.Run("transactions", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) { simulate(t, true) })
	})
	t.Run("no transactions", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) { simulate(t, false) })
	})
}

func simulate(t *rapid.T, txn bool) {
	strict := rapid.Bool().Draw(t, "strict")
	mem := newStore(t, "p4 10.0.0.0/28 30", "p6 fd00::/124 126")
	w := &world{store: mem, reg: registry{owner: map[netip.Addr]string{}}, unknown: map[string]bool{}}
	if !txn {
		w.store = datastoretest.NoTxn(mem)
	}
	ctx := context.Background()
	clean := New(w.store, Options{Now: w.now})
	cooldown := rapid.SampledFrom([]int{0, 60}).Draw(t, "cooldown")
	must(t, clean.SetConfig(ctx, api.IPAMConfig{StrictAffinity: strict, AutoAllocateBlocks: true, IPCooldownSeconds: cooldown}))
	percent := rapid.SampledFrom([]int{0, 3, 10}).Draw(t, "percent")
	crashes := rapid.Bool().Draw(t, "crashes")
	seed := rapid.Uint64().Draw(t, "seed")
	callers := rapid.IntRange(1, 4).Draw(t, "callers")
	steps := rapid.IntRange(1, 15).Draw(t, "steps")
	var wg sync.WaitGroup
	for i, host := range []string{"a", "b", "c"} {
		p := &process{w: w, name: host, percent: percent, crashes: crashes, seed: seed + uint64(i)<<32}
		for id := range callers {
			wg.Go(func() { w.caller(host, id, seed+uint64(i), steps, p.live) })
		}
	}
	wg.Wait()

	for _, e := range w.reg.errs {
		t.Errorf("%s", e)
	}
	// Recovery: what the journal does not know the outcome of is released.
	for handle := range w.unknown {
		_, err := clean.ReleaseByHandle(ctx, handle)
		must(t, err)
	}
	_, err := clean.Collect(ctx)
	must(t, err)
	held := checkHeld(t, w, txn || !crashes && percent == 0)
	checkBorrowed(t, clean, held, strict)

	// Nothing is lost: with all handles released, one host gets every address.
	for _, handle := range w.reg.owner {
		_, err := clean.ReleaseByHandle(ctx, handle)
		must(t, err)
	}
	w.clock.Add(3600)
	_, err = clean.AutoAssign(ctx, Request{Host: "z", Handle: "all", Num4: 16, Num6: 16, MaxBlocks: 99})
	must(t, err)
}

// checkHeld compares the store with the registry.
func checkHeld(t *rapid.T, w *world, affinities bool) map[netip.Addr]string {
	var held map[netip.Addr]string
	if affinities {
		held = checkStore(t, w.store)
	} else {
		held = checkAllocations(t, w.store)
	}
	for a, h := range w.reg.owner {
		if held[a] != h {
			t.Errorf("%s belongs to %s, but the store says %q", a, h, held[a])
		}
	}
	for a, h := range held {
		if w.reg.owner[a] != h {
			t.Errorf("%s is leaked: the store says %s, the registry %q", a, h, w.reg.owner[a])
		}
	}
	return held
}

// checkBorrowed: with strict affinity nothing is borrowed, and otherwise the
// report is exactly what hosts hold of blocks that are not theirs.
func checkBorrowed(t *rapid.T, c *Client, held map[netip.Addr]string, strict bool) {
	ctx := context.Background()
	blocks, _, err := c.Blocks(ctx)
	must(t, err)
	want := map[netip.Addr]bool{}
	for _, b := range blocks {
		for a, h := range held {
			if b.CIDR.Contains(a) && b.Affinity != "host:"+h[:1] {
				want[a] = true
			}
		}
	}
	got, err := c.Borrowed(ctx)
	must(t, err)
	for _, a := range got {
		if !want[a.Addr] || strict {
			t.Errorf("%s of %s in %s of %s is reported as borrowed (strict affinity: %v)", a.Addr, a.Node, a.Block, a.Affinity, strict)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d borrowed, want %d", len(got), len(want))
	}
}

// TestManyHosts: eight hosts with eight callers each on a store without faults;
// for the race detector.
func TestManyHosts(t *testing.T) {
	mem := newStore(t, "p4 10.0.0.0/24 28", "p6 fd00::/120 124")
	w := &world{store: mem, reg: registry{owner: map[netip.Addr]string{}}, unknown: map[string]bool{}}
	var wg sync.WaitGroup
	for i := range 8 {
		name := string(rune('a' + i))
		p := &process{w: w, name: name, seed: uint64(i)}
		for id := range 8 {
			wg.Go(func() { w.caller(name, id, uint64(i), 30, p.live) })
		}
	}
	wg.Wait()
	for _, e := range w.reg.errs {
		t.Error(e)
	}
	for h := range w.unknown {
		t.Errorf("the outcome for %s was unknown on a healthy store", h)
	}
	held := checkStore(t, mem)
	for a, h := range w.reg.owner {
		if held[a] != h {
			t.Errorf("%s belongs to %s, but the store says %q", a, h, held[a])
		}
	}
	if len(held) != len(w.reg.owner) || len(held) == 0 {
		t.Errorf("%d held, %d handed out", len(held), len(w.reg.owner))
	}
}
