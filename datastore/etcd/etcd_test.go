package etcd_test

import (
	"context"
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

func TestConformance(t *testing.T) {
	server := datastoretest.StartEtcd(t)
	c := admin(t, server)
	datastoretest.Run(t, datastoretest.Backend{
		New: func(t *testing.T) datastore.Store {
			wipe(t, c)
			return open(t, etcd.Config{Endpoints: []string{server.Endpoint()}})
		},
		Compact: func(t *testing.T) { compact(t, c) },
	})
}
