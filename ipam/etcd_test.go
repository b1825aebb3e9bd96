package ipam

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
	"github.com/manekinet/maneki/datastore/embedded"
	"github.com/manekinet/maneki/datastore/etcd"
)

// connect is one process's connection to etcd.
func connect(t testing.TB, endpoint string) datastore.Store {
	t.Helper()
	s, err := etcd.New(t.Context(), etcd.Config{Endpoints: []string{endpoint}, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestEtcd runs four hosts on Debian's etcd, which is killed and started again
// under load: what callers were told holds, and what they do not know is
// released by handle.
func TestEtcd(t *testing.T) {
	server := datastoretest.StartEtcd(t)
	store := connect(t, server.Endpoint())
	createPool(t, store, "p4 10.0.0.0/24 28", nil)
	createPool(t, store, "p6 fd00::/120 124", nil)
	w := &world{store: store, reg: registry{owner: map[netip.Addr]string{}}, unknown: map[string]bool{}}
	var wg sync.WaitGroup
	for i, name := range []string{"a", "b", "c", "d"} {
		h := NewHost(New(connect(t, server.Endpoint()), Options{Now: w.now}), name)
		for id := range 6 {
			wg.Go(func() { w.caller(name, id, uint64(i), 40, func() *Host { return h }) })
		}
	}
	time.Sleep(150 * time.Millisecond)
	server.Kill()
	server.Start()
	wg.Wait()
	for _, e := range w.reg.errs {
		t.Error(e)
	}
	clean := New(store, Options{Now: w.now})
	for h := range w.unknown {
		_, err := clean.ReleaseByHandle(t.Context(), h)
		must(t, err)
	}
	held := checkStore(t, store)
	for a, h := range w.reg.owner {
		if held[a] != h {
			t.Errorf("%s belongs to %s, but the store says %q", a, h, held[a])
		}
	}
	if len(held) != len(w.reg.owner) {
		t.Errorf("%d held, %d handed out", len(held), len(w.reg.owner))
	}
	// The keys are Calico's.
	var paths []string
	for _, q := range []datastore.Query{{Kind: datastore.KindIPAMBlock}, {Kind: datastore.KindBlockAffinity}} {
		entries, _, err := store.List(t.Context(), q)
		must(t, err)
		p, err := datastore.Path(entries[0].Key)
		must(t, err)
		paths = append(paths, p)
	}
	if !strings.HasPrefix(paths[0], "/calico/ipam/v2/assignment/ipv4/block/10.0.0.") || !strings.Contains(paths[1], "/ipv4/block/10.0.0.") {
		t.Errorf("stored at %v", paths)
	}
}

// BenchmarkAddresses is the number of addresses assigned per second, each with
// its own handle, by 1 and by 10 hosts with 64 callers each, on Debian's etcd
// and on the embedded one, both syncing every write to disk.
func BenchmarkAddresses(b *testing.B) {
	b.Run("etcd", func(b *testing.B) {
		server := datastoretest.StartEtcd(b)
		benchmarkHosts(b, func() datastore.Store { return connect(b, server.Endpoint()) })
	})
	b.Run("embedded", func(b *testing.B) {
		server, err := embedded.Start(b.Context(), embedded.Config{Dir: b.TempDir(), Name: "n", ClientURLs: []string{"http://127.0.0.1:0"}})
		must(b, err)
		b.Cleanup(func() { _ = server.Close() })
		benchmarkHosts(b, func() datastore.Store { return server.Store() })
	})
}

func benchmarkHosts(b *testing.B, open func() datastore.Store) {
	first := open()
	createPool(b, first, "p 10.0.0.0/8", nil)
	run := 0
	for _, hosts := range []int{1, 10} {
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprintf("hosts=%d/callers=%d", hosts, callers), func(b *testing.B) {
				run++
				benchmarkLoad(b, open, run, hosts, callers)
			})
		}
	}
}

func benchmarkLoad(b *testing.B, open func() datastore.Store, run, hosts, callers int) {
	ctx, stop := context.WithCancel(b.Context())
	var fronts []*Host
	var runs sync.WaitGroup
	for i := range hosts {
		h := NewHost(New(open(), Options{}), fmt.Sprintf("host%d-%d-%d", run, b.N, i))
		runs.Go(func() { _ = h.Run(ctx) })
		for h.live.Load() == nil {
			time.Sleep(time.Millisecond)
		}
		_, err := h.AutoAssign(ctx, Request{Handle: "first-" + h.name, Num4: 1})
		must(b, err)
		fronts = append(fronts, h)
	}
	b.ResetTimer()
	var next atomic.Int64
	var wg sync.WaitGroup
	for _, h := range fronts {
		for range callers {
			wg.Go(func() {
				for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
					r := Request{
						Handle: fmt.Sprintf("k8s-pod-network.%s-%d", h.name, n), Num4: 1, MaxBlocks: 1 << 20,
						Attrs: map[string]string{"pod": fmt.Sprint("pod", n), "namespace": "default", "timestamp": "2025-11-21 00:00:00 +0000 UTC"},
					}
					if _, err := h.AutoAssign(ctx, r); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "addresses/s")
	stop()
	runs.Wait()
}
