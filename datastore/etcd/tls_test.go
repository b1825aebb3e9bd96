package etcd_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
	"github.com/manekinet/maneki/datastore/etcd"
)

func text(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var poolKey = datastore.Key{Kind: "IPPool", Name: "p"}

// use writes and reads once.
func use(t *testing.T, s datastore.Store) error {
	t.Helper()
	if _, err := s.Put(t.Context(), poolKey, []byte("{}"), datastore.Always()); err != nil {
		return err
	}
	_, err := s.Get(t.Context(), poolKey)
	return err
}

// refused checks that the store is refused for good, quickly and with reasons.
func refused(t *testing.T, s datastore.Store, says ...string) {
	t.Helper()
	begun := time.Now()
	err := use(t, s)
	if !errors.Is(err, datastore.ErrDenied) || errors.Is(err, datastore.ErrUnavailable) {
		t.Fatalf("error is %v, want %v", err, datastore.ErrDenied)
	}
	for _, part := range says {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	if took := time.Since(begun); took > 8*time.Second {
		t.Errorf("it took %s", took)
	}
}

// shortly keeps the tests of failures short.
const shortly = 1500 * time.Millisecond

func TestTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, other := datastoretest.NewAuthority(t, dir, "ca"), datastoretest.NewAuthority(t, dir, "other-ca")
	loopback := net.IPv4(127, 0, 0, 1)
	valid := time.Now().Add(time.Hour)
	serverCert, serverKey := ca.Issue("server", loopback, valid)
	server := datastoretest.StartEtcd(t, "--cert-file", serverCert, "--key-file", serverKey, "--client-cert-auth", "--trusted-ca-file", ca.File())
	cert, key := ca.Issue("client", loopback, valid)
	foreignCert, foreignKey := other.Issue("foreign", loopback, valid)
	expiredCert, expiredKey := ca.Issue("expired", loopback, time.Now().Add(-time.Hour))
	endpoints := []string{server.Endpoint()}

	for _, c := range []struct {
		name string
		cfg  etcd.Config
		says []string // nil: it works
	}{
		{"files", etcd.Config{CertFile: cert, KeyFile: key, CACertFile: ca.File()}, nil},
		{"inline", etcd.Config{Cert: text(t, cert), Key: text(t, key), CACert: text(t, ca.File())}, nil},
		{"wrong CA", etcd.Config{CertFile: cert, KeyFile: key, CACertFile: other.File()}, []string{"not signed by " + other.File(), "unknown authority"}},
		{"system's CAs", etcd.Config{CertFile: cert, KeyFile: key}, []string{"not signed by the system's roots"}},
		{"no client certificate", etcd.Config{CACertFile: ca.File()}, []string{"no client certificate is configured"}},
		{"certificate of somebody else", etcd.Config{CertFile: foreignCert, KeyFile: foreignKey, CACertFile: ca.File()}, []string{foreignCert, "issued by CN=other-ca"}},
		{"expired certificate", etcd.Config{CertFile: expiredCert, KeyFile: expiredKey, CACertFile: ca.File()}, []string{expiredCert, "expired on"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.Endpoints, c.cfg.RequestTimeout = endpoints, shortly
			s := open(t, c.cfg)
			if c.says != nil {
				refused(t, s, append(c.says, server.Endpoint())...)
				return
			}
			if err := use(t, s); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// The server's certificate is for another address.
func TestTLSWrongHost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := datastoretest.NewAuthority(t, dir, "ca")
	cert, key := ca.Issue("server", net.IPv4(10, 0, 0, 1), time.Now().Add(time.Hour))
	server := datastoretest.StartEtcd(t, "--cert-file", cert, "--key-file", key)
	s := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}, CACertFile: ca.File(), RequestTimeout: shortly})
	refused(t, s, "certificate is not valid for us", "10.0.0.1")
}

// The wrong scheme is named, as far as it can be known.
func TestWrongScheme(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := datastoretest.NewAuthority(t, dir, "ca")
	cert, key := ca.Issue("server", net.IPv4(127, 0, 0, 1), time.Now().Add(time.Hour))
	plain := datastoretest.StartEtcd(t)
	secure := datastoretest.StartEtcd(t, "--cert-file", cert, "--key-file", key)
	for _, c := range []struct {
		cfg  etcd.Config
		says string
	}{
		{etcd.Config{Endpoints: []string{"https://" + plain.Address}, CACertFile: ca.File()}, "write http://"},
		{etcd.Config{Endpoints: []string{"http://" + secure.Address}}, "write https://"},
	} {
		c.cfg.RequestTimeout = shortly
		err := use(t, open(t, c.cfg))
		if !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error is %v, want %q", c.cfg.Endpoints[0], err, c.says)
		}
	}
}

// A renewed certificate is used for the next connection, without a restart.
func TestTLSRotation(t *testing.T) { everyVersion(t, testTLSRotation) }

func testTLSRotation(t *testing.T, v datastoretest.Version) {
	dir := t.TempDir()
	ca := datastoretest.NewAuthority(t, dir, "ca")
	loopback := net.IPv4(127, 0, 0, 1)
	serverCert, serverKey := ca.Issue("server", loopback, time.Now().Add(time.Hour))
	server := v.Start(t, "--cert-file", serverCert, "--key-file", serverKey, "--client-cert-auth", "--trusted-ca-file", ca.File())
	cert, key := ca.Issue("client", loopback, time.Now().Add(-time.Minute))
	s := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}, CertFile: cert, KeyFile: key, CACertFile: ca.File(), RequestTimeout: shortly})
	refused(t, s, "expired on")
	ca.Issue("client", loopback, time.Now().Add(time.Hour)) // over the same files
	for end := time.Now().Add(15 * time.Second); ; {
		err := use(t, s)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	rotateCA(t, server, ca, s)
}

// rotateCA replaces the authority on both sides while the store is in use.
func rotateCA(t *testing.T, server *datastoretest.EtcdServer, ca *datastoretest.Authority, s *etcd.Store) {
	next := datastoretest.NewAuthority(t, t.TempDir(), "ca")
	loopback := net.IPv4(127, 0, 0, 1)
	for _, name := range []string{"server", "client"} {
		cert, key := next.Issue(name, loopback, time.Now().Add(time.Hour))
		for from, to := range map[string]string{cert: filepath.Join(ca.Dir, name+".pem"), key: filepath.Join(ca.Dir, name+"-key.pem"), next.File(): ca.File()} {
			text, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(to, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	server.Kill()
	server.Start()
	var err error
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); {
		if err = use(t, s); err == nil {
			return
		}
	}
	t.Errorf("after the authority was replaced: %v", err)
}

func TestPassword(t *testing.T) { everyVersion(t, testPassword) }

func testPassword(t *testing.T, v datastoretest.Version) {
	server := v.Start(t)
	c := admin(t, server)
	ctx := t.Context()
	step := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	_, err := c.UserAdd(ctx, "root", "top")
	step("add root", err)
	_, err = c.UserGrantRole(ctx, "root", "root")
	step("grant root", err)
	_, err = c.UserAdd(ctx, "maneki", "secret")
	step("add user", err)
	_, err = c.UserAdd(ctx, "guest", "secret")
	step("add guest", err)
	_, err = c.RoleAdd(ctx, "network")
	step("add role", err)
	_, err = c.RoleGrantPermission(ctx, "network", "/calico/", "/calico0", 2) // read and write
	step("grant permission", err)
	_, err = c.UserGrantRole(ctx, "maneki", "network")
	step("grant role", err)
	_, err = c.AuthEnable(ctx)
	step("enable", err)

	with := func(user, password string) *etcd.Store {
		return open(t, etcd.Config{Endpoints: []string{server.Endpoint()}, Username: user, Password: password, RequestTimeout: shortly})
	}
	good := with("maneki", "secret")
	step("use", use(t, good))
	w := good.Watch(ctx, "", datastore.Query{Kind: "IPPool"})
	refused(t, with("maneki", "wrong"), "user name or password is wrong")
	refused(t, with("nobody", "secret"), "user name or password is wrong")
	refused(t, with("guest", "secret"), "may not read and write below /calico/")
	refused(t, with("", ""), "wants a user name and password")
	for _, s := range []*etcd.Store{with("guest", "secret"), with("maneki", "wrong")} {
		for range s.Watch(ctx, "", datastore.Query{Kind: "IPPool"}).Events() {
		}
		w := s.Watch(ctx, "", datastore.Query{Kind: "IPPool"})
		for range w.Events() {
		}
		if !errors.Is(w.Err(), datastore.ErrDenied) {
			t.Errorf("a watch without permission ended with %v", w.Err())
		}
	}
	server.Kill() // the token is forgotten with it
	server.Start()
	for end := time.Now().Add(10 * time.Second); ; {
		if err = use(t, good); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("after a restart: %v", err)
		}
	}
	for range w.Events() {
	}
}

func TestConfigErrors(t *testing.T) {
	dir := t.TempDir()
	ca := datastoretest.NewAuthority(t, dir, "ca")
	cert, key := ca.Issue("client", net.IPv4(127, 0, 0, 1), time.Now().Add(time.Hour))
	_, otherKey := ca.Issue("other", net.IPv4(127, 0, 0, 1), time.Now().Add(time.Hour))
	https := []string{"https://127.0.0.1:2379"}
	for _, c := range []struct {
		cfg  etcd.Config
		says string
	}{
		{etcd.Config{}, "none given"},
		{etcd.Config{Endpoints: []string{"ftp://a:1"}}, `endpoint "ftp://a:1": scheme is "ftp"`},
		{etcd.Config{Endpoints: []string{"http://a"}}, "port is missing"},
		{etcd.Config{Endpoints: []string{"http://:2379"}}, "host is missing"},
		{etcd.Config{Endpoints: []string{"http://a:1/v3"}}, "nothing may follow the port"},
		{etcd.Config{Endpoints: []string{"http://a:1", "https://b:1"}}, "cannot be mixed"},
		{etcd.Config{Endpoints: []string{"http://a:1"}, CACertFile: ca.File()}, "write https://"},
		{etcd.Config{Endpoints: https, CACertFile: dir + "/none"}, dir + "/none"},
		{etcd.Config{Endpoints: https, CACertFile: key}, "no certificate in PEM form in " + key},
		{etcd.Config{Endpoints: https, CACertFile: ca.File(), CACert: "x"}, "both a file and an inline"},
		{etcd.Config{Endpoints: https, CertFile: cert}, "one is missing"},
		{etcd.Config{Endpoints: https, CertFile: cert, KeyFile: otherKey}, "files " + cert + " and " + otherKey},
		{etcd.Config{Endpoints: https, CertFile: cert, KeyFile: key, Cert: "x", Key: "y"}, "both files and inline"},
		{etcd.Config{Endpoints: https, Cert: "x", Key: "y"}, "inline"},
		{etcd.Config{Endpoints: https, Username: "u"}, "one is given without the other"},
	} {
		s, err := etcd.New(t.Context(), c.cfg)
		if err == nil {
			_ = s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: error is %v, want %q", c.cfg, err, c.says)
		}
	}
}
