package etcd_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
	"github.com/manekinet/maneki/datastore/etcd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open is a store on the server.
func open(t testing.TB, cfg etcd.Config) *etcd.Store {
	t.Helper()
	s, err := etcd.New(context.Background(), cfg)
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

// admin is a client to do to a server what no store does.
func admin(t testing.TB, s *datastoretest.EtcdServer) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func wipe(t testing.TB, c *clientv3.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := c.Delete(ctx, "/calico/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
}

func compact(t testing.TB, c *clientv3.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	resp, err := c.Get(ctx, "/")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Compact(ctx, resp.Header.Revision); err != nil {
		t.Fatal(err)
	}
}

// everyVersion runs a test on every release of etcd at the same time.
func everyVersion(t *testing.T, test func(t *testing.T, v datastoretest.Version)) {
	t.Parallel()
	for _, v := range datastoretest.Versions() {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			test(t, v)
		})
	}
}

func TestConformance(t *testing.T) {
	everyVersion(t, func(t *testing.T, v datastoretest.Version) {
		server := v.Start(t)
		c := admin(t, server)
		datastoretest.Run(t, datastoretest.Backend{
			New: func(t *testing.T) datastore.Store {
				wipe(t, c)
				return open(t, etcd.Config{Endpoints: []string{server.Endpoint()}})
			},
			Compact: func(t *testing.T) { compact(t, c) },
		})
	})
}

// What etcd refuses for its size is an error of the value, not of the cluster.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	server := datastoretest.StartEtcd(t)
	s := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}})
	for _, size := range []int{1700 << 10, 3 << 20} { // refused by the server, by the client
		_, err := s.Put(t.Context(), poolKey, make([]byte, size), datastore.Always())
		if err == nil || errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), "of this size") {
			t.Errorf("%d bytes: error is %v", size, err)
		}
	}
	if err := use(t, s); err != nil {
		t.Error(err)
	}
}

// A full etcd can still be read, and the error says what to do.
func TestFull(t *testing.T) {
	t.Parallel()
	server := datastoretest.StartEtcd(t, "--quota-backend-bytes", "4000000")
	s := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}})
	var err error
	for i := range 100 {
		if _, err = s.Put(t.Context(), handle(i), make([]byte, 200<<10), datastore.Always()); err != nil {
			break
		}
	}
	if !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), "has no space left") {
		t.Errorf("error is %v", err)
	}
	if _, err := s.Get(t.Context(), handle(0)); err != nil {
		t.Errorf("read: %v", err)
	}
}

// Keys that no Maneki and no Calico writes are reported once and left out.
func TestForeignKeys(t *testing.T) {
	t.Parallel()
	server := datastoretest.StartEtcd(t)
	c := admin(t, server)
	var log bytes.Buffer
	s := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	put(t, s, 0, 1)
	foreign := "/calico/ipam/v2/handle/a/b"
	if _, err := c.Put(t.Context(), foreign, "x"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if es, _, err := s.List(t.Context(), handles); err != nil || len(es) != 1 {
			t.Errorf("list: %v, %v", es, err)
		}
	}
	w := s.Watch(t.Context(), "1", handles)
	if batch := <-w.Events(); len(batch) != 1 || batch[0].Entry.Key != handle(0) {
		t.Errorf("watch: %+v", batch)
	}
	if n := strings.Count(log.String(), foreign); n != 2 { // in the record's key and in its error
		t.Errorf("%s is named %d times: %s", foreign, n, log.String())
	}
}

func Benchmark(b *testing.B) {
	server := datastoretest.StartEtcd(b)
	datastoretest.Bench(b, open(b, etcd.Config{Endpoints: []string{server.Endpoint()}}))
}

// The alarm of a full etcd is named with its member by every release, and ended.
func TestAlarms(t *testing.T) {
	everyVersion(t, func(t *testing.T, v datastoretest.Version) {
		server := v.Start(t, "--quota-backend-bytes", "4000000")
		s := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}})
		if alarms, err := s.Alarms(t.Context()); err != nil || len(alarms) != 0 {
			t.Fatalf("%v, %v", alarms, err)
		}
		written := 0
		for ; written < 100; written++ {
			if _, err := s.Put(t.Context(), handle(written), make([]byte, 200<<10), datastore.Always()); err != nil {
				break
			}
		}
		if alarms, err := s.Alarms(t.Context()); err != nil || len(alarms) != 1 || alarms[0] != "NOSPACE on test" {
			t.Fatalf("%v, %v", alarms, err)
		}
		for i := range written {
			if err := s.Delete(t.Context(), handle(i), datastore.Always()); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		members, err := s.Members(t.Context())
		if err != nil || len(members) != 1 || len(members[0].Alarms) != 1 {
			t.Fatalf("%+v, %v", members, err)
		}
		if err := s.Defragment(t.Context(), members[0]); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Disarm(t.Context()); err != nil || n != 1 {
			t.Fatalf("%d, %v", n, err)
		}
		if err := use(t, s); err != nil {
			t.Error(err)
		}
		if after, err := s.Members(t.Context()); err != nil || after[0].Size >= members[0].Size {
			t.Errorf("%d bytes before, %d after, %v", members[0].Size, after[0].Size, err)
		}
	})
}

// After Reconnect requests work, and a watch ends as in an outage.
func TestReconnect(t *testing.T) {
	t.Parallel()
	server := datastoretest.StartEtcd(t)
	s := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}})
	put(t, s, 0, 1)
	w := s.Watch(t.Context(), "", datastore.Query{Kind: datastore.KindIPAMHandle})
	for range 3 {
		s.Reconnect()
		if err := use(t, s); err != nil {
			t.Error(err)
		}
	}
	for range w.Events() {
	}
	if !errors.Is(w.Err(), datastore.ErrUnavailable) {
		t.Errorf("the watch ended with %v", w.Err())
	}
}
