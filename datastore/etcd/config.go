package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// checkEndpoints returns the endpoints in the spelling the client wants and
// whether they use TLS.
func checkEndpoints(cfg Config) (endpoints []string, secure bool, err error) {
	if len(cfg.Endpoints) == 0 {
		return nil, false, errors.New("etcd endpoints: none given, write for example http://127.0.0.1:2379")
	}
	identity := cfg.CertFile+cfg.KeyFile+cfg.CACertFile+cfg.Cert+cfg.Key+cfg.CACert != ""
	plain := 0
	for _, given := range cfg.Endpoints {
		e := strings.TrimRight(strings.TrimSpace(given), "/")
		if !strings.Contains(e, "://") {
			if identity && !cfg.MembersOnly {
				e = "https://" + e
			} else {
				e = "http://" + e
			}
		}
		u, err := url.Parse(e)
		if err != nil {
			return nil, false, fmt.Errorf("etcd endpoint %q: %w", given, err)
		}
		if err := checkURL(u); err != nil {
			return nil, false, fmt.Errorf("etcd endpoint %q: %w", given, err)
		}
		if u.Scheme == "http" || u.Scheme == "unix" {
			plain++
		}
		endpoints = append(endpoints, e)
	}
	secure = plain == 0
	if !secure && plain < len(endpoints) {
		return nil, false, fmt.Errorf("etcd endpoints %s: http and https cannot be mixed", strings.Join(endpoints, ", "))
	}
	if identity && !secure && !cfg.MembersOnly {
		return nil, false, fmt.Errorf("etcd endpoint %s is without TLS, but a certificate or CA is configured: write https://", endpoints[0])
	}
	return endpoints, secure, nil
}

func checkURL(u *url.URL) error {
	switch u.Scheme {
	case "unix", "unixs":
		return nil
	case "http", "https":
	default:
		return fmt.Errorf("scheme is %q, allowed are http, https, unix", u.Scheme)
	}
	if u.Path != "" || u.RawQuery != "" {
		return errors.New("nothing may follow the port")
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil || port == "" {
		return errors.New("port is missing, etcd's is 2379")
	}
	if host == "" {
		return errors.New("host is missing")
	}
	return nil
}

// tlsSource is where our certificate and the server's CA come from.
type tlsSource struct {
	caPEM, caFile     string // neither: the system's
	certPEM, keyPEM   string
	certFile, keyFile string
	ca                string // for messages: file name or "inline CA"
	alerts            alerts
}

// newTLSSource reads everything once, so that a wrong file is found at start.
func newTLSSource(cfg Config) (*tlsSource, error) {
	switch {
	case cfg.CACertFile != "" && cfg.CACert != "":
		return nil, errors.New("etcd CA: both a file and an inline certificate are given")
	case (cfg.CertFile != "" || cfg.KeyFile != "") && (cfg.Cert != "" || cfg.Key != ""):
		return nil, errors.New("etcd client certificate: both files and inline text are given")
	case (cfg.CertFile == "") != (cfg.KeyFile == ""), (cfg.Cert == "") != (cfg.Key == ""):
		return nil, errors.New("etcd client certificate: certificate and key belong together, one is missing")
	}
	src := &tlsSource{certFile: cfg.CertFile, keyFile: cfg.KeyFile, certPEM: cfg.Cert, keyPEM: cfg.Key, ca: "the system's roots"}
	src.caPEM, src.caFile = cfg.CACert, cfg.CACertFile
	if src.caFile != "" {
		src.ca = src.caFile
	} else if src.caPEM != "" {
		src.ca = "the inline CA"
	}
	if _, err := src.roots(); err != nil {
		return nil, err
	}
	if _, err := src.certificate(); err != nil {
		return nil, err
	}
	return src, nil
}

// roots are the authorities as they are now; nil means the system's.
func (src *tlsSource) roots() (*x509.CertPool, error) {
	text := []byte(src.caPEM)
	if src.caFile != "" {
		var err error
		if text, err = os.ReadFile(src.caFile); err != nil {
			return nil, fmt.Errorf("read etcd CA: %w", err)
		}
	}
	if len(text) == 0 && src.caFile == "" {
		return nil, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("etcd CA: no certificate in PEM form in %s", src.ca)
	}
	return pool, nil
}

// ClientTLS is the configuration of connections to https URLs: cfg's certificate,
// if it has one, and its authorities.
func ClientTLS(cfg Config) (*tls.Config, error) {
	src, err := newTLSSource(cfg)
	if err != nil {
		return nil, err
	}
	return src.config()
}

// config is that of one connection; certificate and authorities are read for
// each, so that renewed files are used without a restart.
func (src *tlsSource) config() (*tls.Config, error) {
	roots, err := src.roots()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:           tls.VersionTLS12,
		RootCAs:              roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return src.certificate() },
	}, nil
}

// certificate is our certificate as it is now, or an empty one if none is
// configured.
func (src *tlsSource) certificate() (*tls.Certificate, error) {
	switch {
	case src.certPEM != "":
		c, err := tls.X509KeyPair([]byte(src.certPEM), []byte(src.keyPEM))
		if err != nil {
			return nil, fmt.Errorf("etcd client certificate, inline: %w", err)
		}
		return &c, nil
	case src.certFile != "":
		c, err := tls.LoadX509KeyPair(src.certFile, src.keyFile)
		if err != nil {
			return nil, fmt.Errorf("etcd client certificate, files %s and %s: %w", src.certFile, src.keyFile, err)
		}
		return &c, nil
	}
	return &tls.Certificate{}, nil
}

// identity describes our certificate for an error message.
func (src *tlsSource) identity() string {
	name := src.certFile
	if src.certPEM != "" {
		name = "the inline certificate"
	}
	if name == "" {
		return "no client certificate is configured"
	}
	c, err := src.certificate()
	if err != nil {
		return err.Error()
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return fmt.Sprintf("our certificate is %s: %v", name, err)
	}
	if now := time.Now(); now.After(leaf.NotAfter) {
		return fmt.Sprintf("our certificate %s expired on %s", name, leaf.NotAfter.UTC().Format(time.DateTime))
	}
	return fmt.Sprintf("our certificate is %s, subject %s, issued by %s", name, leaf.Subject, leaf.Issuer)
}

// alerts keeps the last TLS error of any connection. A server that does not like
// our certificate says so after the handshake and closes; what gRPC reports of
// that is often only the closing.
type alerts struct {
	mu   sync.Mutex
	text string
	at   time.Time
}

func (a *alerts) note(err error) {
	text := err.Error()
	if (strings.Contains(text, "tls:") || strings.Contains(text, "x509:")) && !strings.Contains(text, "closed") {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.text, a.at = text, time.Now()
	}
}

// within is the last error, if it is not older than d.
func (a *alerts) within(d time.Duration) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.at) > d {
		return ""
	}
	return a.text
}

// notingCredentials are TLS credentials made anew for every connection, whose
// connections note their errors.
type notingCredentials struct {
	credentials.TransportCredentials
	source *tlsSource
}

func newCredentials(source *tlsSource) (notingCredentials, error) {
	cfg, err := source.config()
	if err != nil {
		return notingCredentials{}, err
	}
	return notingCredentials{credentials.NewTLS(cfg), source}, nil
}

// ClientHandshake is called by gRPC for every connection.
func (c notingCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	fresh, err := newCredentials(c.source)
	if err != nil {
		return nil, nil, err
	}
	conn, info, err := fresh.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		c.source.alerts.note(err)
		return conn, info, err
	}
	return notingConn{conn, &c.source.alerts}, info, nil
}

// Clone is part of gRPC's interface.
func (c notingCredentials) Clone() credentials.TransportCredentials {
	return notingCredentials{c.TransportCredentials.Clone(), c.source}
}

type notingConn struct {
	net.Conn
	alerts *alerts
}

func (c notingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.alerts.note(err)
	}
	return n, err
}

// alertTime is how long a failed write waits for the reason.
const alertTime = 100 * time.Millisecond

// Write looks, when it fails, for what the server said before it closed: in TLS
// 1.3 it refuses our certificate after the handshake, when we may be writing
// already, and gRPC closes a connection that cannot be written without reading.
func (c notingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil {
		_ = c.SetReadDeadline(time.Now().Add(alertTime))
		_, _ = c.Read(make([]byte, 1))
	}
	return n, err
}
