package config_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/datastore"
)

// closedPort is a URL at which nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

func TestReach(t *testing.T) {
	ctx := context.Background()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket := filepath.Join(t.TempDir(), "etcd.sock")
	u, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	a, b := closedPort(t), closedPort(t)
	open := "https://" + l.Addr().String()
	for _, endpoints := range [][]string{{open}, {a, open}, {strings.TrimPrefix(open, "https://")}, {"unix://" + socket}} {
		if err := config.Reach(ctx, config.Config{Type: config.EtcdV3, EtcdEndpoints: endpoints}); err != nil {
			t.Errorf("%v: %v", endpoints, err)
		}
	}
	start := time.Now()
	err = config.Reach(ctx, config.Config{Type: config.EtcdV3, EtcdEndpoints: []string{a, b, "unix://" + socket + ".none"}})
	if want := "datastore unavailable: etcd at " + a + ", " + b + ": connection refused; unix://" + socket + ".none: no such file or directory"; !errors.Is(err, datastore.ErrUnavailable) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("a refusal took %s", took)
	}
}

// TestReachGivesUp: 192.0.2.1 is nobody's address (RFC 5737).
func TestReachGivesUp(t *testing.T) {
	t.Parallel()
	start := time.Now()
	err := config.Reach(context.Background(), config.Config{Type: config.EtcdV3, EtcdEndpoints: []string{"http://192.0.2.1:2379"}})
	if !errors.Is(err, datastore.ErrUnavailable) || strings.Count(err.Error(), "192.0.2.1") != 1 {
		t.Error(err)
	}
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("it took %s", took)
	}
}
