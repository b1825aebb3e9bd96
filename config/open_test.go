package config

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"testing"

	"github.com/manekinet/maneki/datastore"
)

func TestDiscover(t *testing.T) {
	lookup := func(_ context.Context, service, proto, name string) (string, []*net.SRV, error) {
		if service == "etcd-client" && proto == "tcp" && name == "example.org" {
			return "", []*net.SRV{{Target: "e1.example.org.", Port: 2379}, {Target: "e2.example.org.", Port: 2380}}, nil
		}
		return "", nil, errors.New("no such host")
	}
	got, err := discover(context.Background(), "example.org", lookup)
	want := []string{"http://e1.example.org:2379", "http://e2.example.org:2380"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if _, err := discover(context.Background(), "example.net", lookup); !errors.Is(err, datastore.ErrUnavailable) {
		t.Errorf("no records: %v", err)
	}
}

func TestEndpoints(t *testing.T) {
	got, err := Config{}.endpoints(context.Background())
	if err != nil || !slices.Equal(got, []string{DefaultEndpoint}) {
		t.Errorf("nothing named: %v, %v", got, err)
	}
}

func TestOpenBadCertificate(t *testing.T) {
	c := Config{Type: EtcdV3, Source: "f", EtcdEndpoints: []string{"https://127.0.0.1:1"}, EtcdCACert: "not PEM"}
	s, err := Open(context.Background(), c, slog.New(slog.DiscardHandler))
	if err == nil {
		s.Close()
		t.Fatal("a CA that is not PEM was accepted")
	}
}
