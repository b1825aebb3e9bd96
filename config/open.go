package config

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/etcd"
)

// ErrKubernetes says that this build does not serve the Kubernetes datastore.
var ErrKubernetes = errors.New("the kubernetes datastore is not served by this build yet; name an etcd with datastoreType etcdv3 and etcdEndpoints")

// Open returns the datastore that c names; with none named, the embedded etcd of
// this host's agent. Configuration and certificates are checked here. Whether
// the cluster answers shows at the first request (datastore.ErrUnavailable,
// datastore.ErrDenied).
func Open(ctx context.Context, c Config, log *slog.Logger) (datastore.Store, error) {
	if c.Type == Kubernetes {
		return nil, fmt.Errorf("%s: %w", c.Source, ErrKubernetes)
	}
	endpoints, err := c.endpoints(ctx)
	if err != nil {
		return nil, err
	}
	store, err := etcd.New(ctx, etcd.Config{
		Endpoints:  endpoints,
		Username:   c.EtcdUsername,
		Password:   string(c.EtcdPassword),
		CertFile:   c.EtcdCertFile,
		KeyFile:    c.EtcdKeyFile,
		CACertFile: c.EtcdCACertFile,
		Cert:       c.EtcdCert,
		Key:        string(c.EtcdKey),
		CACert:     c.EtcdCACert,
		// The embedded etcd answers this host without TLS, the members need not.
		MembersOnly: c.Type == Unnamed && (c.EtcdCertFile != "" || c.EtcdCACertFile != "" || c.EtcdCert != "" || c.EtcdCACert != ""),
		Log:         log,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Source, err)
	}
	return store, nil
}

// endpoints are the URLs to connect to.
func (c Config) endpoints(ctx context.Context) ([]string, error) {
	switch {
	case c.Type == Unnamed:
		return []string{DefaultEndpoint}, nil
	case c.EtcdDiscoverySRV == "":
		return c.EtcdEndpoints, nil
	}
	return discover(ctx, c.EtcdDiscoverySRV, net.DefaultResolver.LookupSRV)
}

type lookupSRV func(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)

// discover finds endpoints by etcd's DNS records: _etcd-client-ssl._tcp.DOMAIN
// for https, _etcd-client._tcp.DOMAIN for http.
func discover(ctx context.Context, domain string, lookup lookupSRV) ([]string, error) {
	var endpoints []string
	var errs []error
	for _, service := range []struct{ name, scheme string }{{"etcd-client-ssl", "https"}, {"etcd-client", "http"}} {
		_, records, err := lookup(ctx, service.name, "tcp", domain)
		if err != nil {
			errs = append(errs, err)
		}
		for _, r := range records {
			host := strings.TrimSuffix(r.Target, ".")
			endpoints = append(endpoints, service.scheme+"://"+net.JoinHostPort(host, strconv.Itoa(int(r.Port))))
		}
	}
	if len(endpoints) == 0 {
		return nil, fmt.Errorf("%w: no SRV records _etcd-client-ssl._tcp.%s or _etcd-client._tcp.%s: %w", datastore.ErrUnavailable, domain, domain, errors.Join(errs...))
	}
	return endpoints, nil
}
