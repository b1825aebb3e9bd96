package embedded_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
	"github.com/manekinet/maneki/datastore/embedded"
	"github.com/manekinet/maneki/datastore/etcd"
)

var loopback = net.IPv4(127, 0, 0, 1)

func newSecureHost(t *testing.T, ca *datastoretest.Authority, name string, join ...string) *host {
	h := newHost(t, name, join...)
	for _, urls := range [][]string{h.ClientURLs, h.PeerURLs} {
		for i := range urls {
			urls[i] = strings.Replace(urls[i], "http:", "https:", 1)
		}
	}
	h.CertFile, h.KeyFile = ca.Issue(name, loopback, time.Now().Add(time.Hour))
	h.CAFile = ca.File()
	return h
}

// Three members with TLS between them and towards clients; a loopback URL without,
// as the host's own command line uses it.
func TestTLS(t *testing.T) {
	t.Parallel()
	ca := datastoretest.NewAuthority(t, t.TempDir(), "ca")
	h1 := newSecureHost(t, ca, "h1")
	secure, local := h1.ClientURLs[0], "http://"+freeAddress(t)
	h1.ClientURLs = append(h1.ClientURLs, local)
	h1.start(t)
	h2, h3 := newSecureHost(t, ca, "h2", secure), newSecureHost(t, ca, "h3", secure)
	h2.start(t)
	h3.start(t)
	put(t, h2.Store(), "a", "{}")

	cert, key := ca.Issue("client", loopback, time.Now().Add(time.Hour))
	far := etcd.Config{Endpoints: []string{secure}, CertFile: cert, KeyFile: key, CACertFile: ca.File()}
	near := far
	near.Endpoints, near.MembersOnly = []string{local}, true
	for name, cfg := range map[string]etcd.Config{"another host": far, "this host": near} {
		s, err := etcd.New(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		put(t, s, "b", "{}")
		answering(t, name, s)
	}
	answering(t, "the agent", h3.Store().(*etcd.Store))

	_ = h2.Close()
	h2.start(t) // a member that comes back
	put(t, h2.Store(), "c", "{}")
}

// answering checks that every member answers and can be defragmented.
func answering(t *testing.T, who string, s *etcd.Store) {
	t.Helper()
	members, err := s.Members(t.Context())
	if err != nil || len(members) != 3 {
		t.Fatalf("%s: %d members, %v", who, len(members), err)
	}
	for _, m := range members {
		if m.Err != nil {
			t.Errorf("%s: %s: %v", who, m.Name, m.Err)
		}
		if err := s.Defragment(t.Context(), m); err != nil {
			t.Errorf("%s: defragment %s: %v", who, m.Name, err)
		}
	}
}

// Whoever has no certificate of this authority reads, writes and joins nothing.
func TestTLSRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, other := datastoretest.NewAuthority(t, dir, "ca"), datastoretest.NewAuthority(t, dir, "other")
	h1 := newSecureHost(t, ca, "h1")
	h1.start(t)
	foreignCert, foreignKey := other.Issue("foreign", loopback, time.Now().Add(time.Hour))
	for name, cfg := range map[string]etcd.Config{
		"no certificate":      {CACertFile: ca.File()},
		"foreign certificate": {CACertFile: ca.File(), CertFile: foreignCert, KeyFile: foreignKey},
	} {
		cfg.Endpoints, cfg.RequestTimeout = h1.ClientURLs, 2*time.Second
		s, err := etcd.New(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Put(t.Context(), datastore.Key{Kind: "Node", Name: "n"}, []byte("{}"), datastore.Always()); !errors.Is(err, datastore.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	stranger := newSecureHost(t, other, "h2", h1.ClientURLs...)
	stranger.CAFile = ca.File() // knows whom it speaks to, and is not known
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if s, err := embedded.Start(ctx, stranger.Config); err == nil {
		_ = s.Close()
		t.Error("a stranger joined")
	}
	members, err := h1.Store().(*etcd.Store).Members(t.Context())
	if err != nil || len(members) != 1 {
		t.Errorf("members %+v, %v", members, err)
	}
}

// A renewed certificate is used for the next connection.
func TestTLSRotation(t *testing.T) {
	t.Parallel()
	ca := datastoretest.NewAuthority(t, t.TempDir(), "ca")
	h1 := newSecureHost(t, ca, "h1")
	ca.Issue("h1", loopback, time.Now().Add(-time.Minute)) // expired, in the same files
	h1.start(t)
	cert, key := ca.Issue("client", loopback, time.Now().Add(time.Hour))
	open := func() error {
		s, err := etcd.New(t.Context(), etcd.Config{Endpoints: h1.ClientURLs, CertFile: cert, KeyFile: key, CACertFile: ca.File(), RequestTimeout: 2 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, err = s.Put(t.Context(), datastore.Key{Kind: "Node", Name: "n"}, []byte("{}"), datastore.Always())
		return err
	}
	if err := open(); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("with an expired certificate: %v", err)
	}
	ca.Issue("h1", loopback, time.Now().Add(time.Hour))
	if err := open(); err != nil {
		t.Errorf("with a renewed one: %v", err)
	}
}

func TestTLSConfig(t *testing.T) {
	ca := datastoretest.NewAuthority(t, t.TempDir(), "ca")
	cert, key := ca.Issue("h1", loopback, time.Now().Add(time.Hour))
	for says, cfg := range map[string]embedded.Config{
		"https needs a certificate, its key and a CA":             {ClientURLs: []string{"https://127.0.0.1:0"}},
		"certificate, key and CA belong together, one is missing": {CertFile: cert, KeyFile: key},
		"no certificate in PEM form":                              {CertFile: cert, KeyFile: key, CAFile: key},
	} {
		cfg.Dir = filepath.Join(t.TempDir(), "etcd")
		s, err := embedded.Start(t.Context(), cfg)
		if err == nil {
			_ = s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error is %v, want %q", err, says)
		}
	}
}
