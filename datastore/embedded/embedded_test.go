package embedded_test

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
	"github.com/manekinet/maneki/datastore/embedded"
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

func TestConformance(t *testing.T) {
	var last *embedded.Server
	datastoretest.Run(t, datastoretest.Backend{
		New: func(t *testing.T) datastore.Store {
			last = start(t, embedded.Config{Dir: t.TempDir()})
			return last.Store()
		},
		Compact: func(t *testing.T) {
			c, err := clientv3.New(clientv3.Config{Endpoints: last.Endpoints(), Logger: zap.NewNop()})
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
		},
	})
}
