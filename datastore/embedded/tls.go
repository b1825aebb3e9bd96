package embedded

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/server/v3/embed"

	"github.com/manekinet/maneki/datastore/etcd"
)

// secure gives the engine this host's certificate. Clients and members are
// treated alike: both must show a certificate of the same authority.
func (cfg Config) secure(ec *embed.Config) error {
	if !cfg.hasTLS() {
		for _, u := range slices.Concat(cfg.ClientURLs, cfg.PeerURLs, cfg.Join) {
			if strings.HasPrefix(u, "https:") {
				return fmt.Errorf("URL %s: https needs a certificate, its key and a CA", u)
			}
		}
		return nil
	}
	if cfg.CertFile == "" || cfg.KeyFile == "" || cfg.CAFile == "" {
		return errors.New("certificate, key and CA belong together, one is missing")
	}
	info := &ec.ClientTLSInfo
	info.CertFile, info.KeyFile, info.TrustedCAFile, info.ClientCertAuth = cfg.CertFile, cfg.KeyFile, cfg.CAFile, true
	ec.PeerTLSInfo = *info
	return nil
}

func (cfg Config) hasTLS() bool { return cfg.CertFile+cfg.KeyFile+cfg.CAFile != "" }

// clientTLS is for connections to other members; nil without TLS.
func (cfg Config) clientTLS() (*tls.Config, error) {
	if !cfg.hasTLS() {
		return nil, nil
	}
	return etcd.ClientTLS(etcd.Config{CertFile: cfg.CertFile, KeyFile: cfg.KeyFile, CACertFile: cfg.CAFile})
}

// forURLs is tc for clients whose URLs are of one scheme: nil unless it is https.
func forURLs(tc *tls.Config, urls []string) *tls.Config {
	if tc == nil || len(urls) == 0 || !strings.HasPrefix(urls[0], "https:") {
		return nil
	}
	return tc.Clone()
}
