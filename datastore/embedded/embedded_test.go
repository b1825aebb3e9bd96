package embedded_test

import (
	"bytes"
	"context"
	"log/slog"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
	"github.com/manekinet/maneki/datastore/embedded"
	"github.com/manekinet/maneki/datastore/etcd"
)

const anyPort = "http://127.0.0.1:0"

func start(t testing.TB, cfg embedded.Config) *embedded.Server {
	t.Helper()
	if cfg.ClientURLs == nil {
		cfg.ClientURLs = []string{anyPort}
	}
	s, err := embedded.Start(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Inside the process, and over the network as other hosts use it.
func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name string
		open func(*testing.T, *embedded.Server) datastore.Store
	}{
		{"InProcess", func(_ *testing.T, s *embedded.Server) datastore.Store { return s.Store() }},
		{"Remote", func(t *testing.T, s *embedded.Server) datastore.Store { return dial(t, s) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var last *embedded.Server
			datastoretest.Run(t, datastoretest.Backend{
				New: func(t *testing.T) datastore.Store {
					last = start(t, embedded.Config{Dir: t.TempDir()})
					return c.open(t, last)
				},
				Compact: func(t *testing.T) { compact(t, last) },
			})
		})
	}
}

func dial(t *testing.T, s *embedded.Server) *etcd.Store {
	t.Helper()
	remote, err := etcd.New(t.Context(), etcd.Config{Endpoints: s.Endpoints()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = remote.Close() }) // again, for a test that has not
	return remote
}

func compact(t *testing.T, s *embedded.Server) {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: s.Endpoints(), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	resp, err := c.Get(ctx, "/")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Compact(ctx, resp.Header.Revision); err != nil {
		t.Fatal(err)
	}
}

// A client through the server's socket sees what the process itself writes.
func TestRemoteClient(t *testing.T) {
	s := start(t, embedded.Config{Dir: t.TempDir()})
	remote := dial(t, s)
	key := datastore.Key{Kind: "Node", Name: "n"}
	w := remote.Watch(t.Context(), "1", datastore.Query{Kind: "Node"})
	rev, err := s.Store().Put(t.Context(), key, []byte("{}"), datastore.Absent())
	if err != nil {
		t.Fatal(err)
	}
	if batch := <-w.Events(); len(batch) != 1 || batch[0].Entry.Rev != rev {
		t.Errorf("remote watch: %+v %v", batch, w.Err())
	}
	if _, err := remote.Put(t.Context(), key, []byte("[]"), datastore.At(rev)); err != nil {
		t.Error(err)
	}
	if e, err := s.Store().Get(t.Context(), key); err != nil || string(e.Value) != "[]" {
		t.Errorf("%s, %v", e.Value, err)
	}
}

// Nothing is written to the log of a start, some work and a stop.
func TestQuiet(t *testing.T) {
	var log bytes.Buffer
	s, err := embedded.Start(t.Context(), embedded.Config{Dir: t.TempDir(), ClientURLs: []string{anyPort}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Store().Put(t.Context(), datastore.Key{Kind: "Node", Name: "n"}, nil, datastore.Always()); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if log.Len() > 0 {
		t.Errorf("log: %s", log.String())
	}
}

func Benchmark(b *testing.B) {
	datastoretest.Bench(b, start(b, embedded.Config{Dir: b.TempDir()}).Store())
}
