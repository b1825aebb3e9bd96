package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/embedded"
	"github.com/manekinet/maneki/datastore/etcd"
)

// connection is the datastore in use with what status has to say of it.
type connection struct {
	store      datastore.Store
	server     *embedded.Server // nil for an external datastore
	configured []string         // endpoints of an external one

	mu     sync.Mutex
	status agentapi.Datastore
}

// Close stops the embedded etcd too.
func (c *connection) Close() error {
	err := c.store.Close()
	if c.server != nil {
		err = errors.Join(err, c.server.Close())
	}
	return err
}

// watch returns when the embedded etcd has stopped by itself, with its reason.
func (c *connection) watch(ctx context.Context) error {
	var failed <-chan error
	if c.server != nil {
		failed = c.server.Failed()
	}
	select {
	case err := <-failed:
		return fmt.Errorf("the embedded etcd has stopped: %w", err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connected records whether the datastore answers.
func (c *connection) connected(err error) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	up := err == nil
	if changed = c.status.Connected != up; changed {
		c.status.Since = time.Now()
	}
	c.status.Connected, c.status.Error = up, ""
	if !up {
		c.status.Error = err.Error()
	}
	return changed
}

func (c *connection) setAlarms(alarms []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Alarms = alarms
}

func (c *connection) setEndpoints(endpoints []string) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed = !slices.Equal(c.status.Endpoints, endpoints)
	c.status.Endpoints = endpoints
	return changed
}

func (c *connection) report() agentapi.Datastore {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// openDatastore connects to the datastore named, or starts the embedded one.
// own is the host's address.
func openDatastore(ctx context.Context, o Options, own netip.Addr) (*connection, error) {
	open := openExternal
	if o.Datastore.Type == "" {
		open = func(ctx context.Context, o Options) (*connection, error) { return openEmbedded(ctx, o, own) }
	}
	deadline := time.Now().Add(o.Connect)
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		c, err := open(ctx, o)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, datastore.ErrUnavailable) || !o.Wait && time.Now().After(deadline) {
			return nil, err
		}
		o.Log.Warn("the datastore does not answer yet", "err", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// openExternal also knows the members that an earlier agent has met, so that the
// one configured may be down. Before anything is read it finds out which of them
// are still that cluster's: a host that lost its disk and began anew serves an
// empty datastore, by which this one's network would be taken down.
func openExternal(ctx context.Context, o Options) (*connection, error) {
	configured := o.Datastore.EtcdEndpoints
	others, cluster := config.Known(o.endpointsFile(), configured)
	o.Datastore.EtcdEndpoints = slices.Concat(configured, others)
	s, err := config.Open(ctx, o.Datastore, o.Log.With("part", "datastore"))
	if err != nil {
		return nil, err
	}
	if store, ok := s.(*etcd.Store); ok && cluster != 0 {
		store.SetCluster(cluster)
		if o.Datastore.EtcdEndpoints, err = store.Refresh(ctx); err != nil {
			s.Close()
			return nil, err
		}
	}
	_, err = s.Get(ctx, datastore.Key{Kind: "ClusterInformation", Name: "default"})
	if err != nil && !errors.Is(err, datastore.ErrNotFound) {
		s.Close()
		return nil, err
	}
	c := newConnection(s, agentapi.Datastore{Type: string(o.Datastore.Type), Endpoints: o.Datastore.EtcdEndpoints})
	c.configured = configured
	return c, nil
}

func openEmbedded(ctx context.Context, o Options, own netip.Addr) (*connection, error) {
	start := time.Now()
	clients, peers := o.etcdURLs(own)
	urls := append([]string{config.DefaultEndpoint}, clients...)
	server, err := embedded.Start(ctx, embedded.Config{
		Dir: o.EmbeddedDir, Name: o.Node, ClientURLs: urls, PeerURLs: peers, Join: o.Join,
		CertFile: o.Datastore.EtcdCertFile, KeyFile: o.Datastore.EtcdKeyFile, CAFile: o.Datastore.EtcdCACertFile,
		Log: o.Log.With("part", "etcd"),
	})
	if err != nil {
		return nil, err
	}
	dir, _ := filepath.Abs(o.EmbeddedDir)
	o.Log.Info("no datastore is named: this host keeps it in an embedded etcd", "dir", dir, "listen", urls, "peers", peers, "join", o.Join, "readyAfter", time.Since(start).Round(time.Millisecond))
	c := newConnection(server.Store(), agentapi.Datastore{Type: "embedded", Endpoints: urls})
	c.server = server
	return c, nil
}

func newConnection(s datastore.Store, status agentapi.Datastore) *connection {
	status.Connected, status.Since = true, time.Now()
	return &connection{store: s, status: status}
}

// invite tells the person who started the agent how another host joins, where
// this host keeps the datastore.
func (a *Agent) invite() {
	if a.conn.server == nil {
		return
	}
	own := a.node.primary()
	a.opts.Notice("This host keeps the datastore: etcd in %s.", a.opts.EmbeddedDir)
	clients, _ := a.opts.etcdURLs(own)
	if a.opts.etcdScheme() == "https" {
		a.opts.Notice("Each host needs a certificate of the same CA for that: ETCD_CA_CERT_FILE, ETCD_CERT_FILE, ETCD_KEY_FILE.")
	}
	if len(clients) > 0 {
		a.opts.Notice("Another host uses it with:\n  ETCD_ENDPOINTS=%s maneki node run", clients[0])
		a.opts.Notice("or keeps it too, as a member (best are three) with:\n  maneki node run --join=%s", clients[0])
		return
	}
	url := a.opts.etcdScheme() + "://" + netip.AddrPortFrom(own, etcdClientPort).String()
	a.opts.Notice("It serves this host alone. For others to join, start this agent with --etcd-listen=%s and them with:\n  ETCD_ENDPOINTS=%s maneki node run", url, url)
}

// refreshInterval is how often the members of a cluster that Maneki's hosts keep
// are asked for; membersTimeout bounds it.
const (
	refreshInterval = 15 * time.Second
	membersTimeout  = 10 * time.Second
)

// keepDatastore looks after what no request shows: which members there are, and
// their alarms.
func (a *Agent) keepDatastore(ctx context.Context) error {
	store, ok := a.store.(*etcd.Store)
	if !ok {
		<-ctx.Done()
		return ctx.Err()
	}
	return every(ctx, refreshInterval, nil, func() {
		ctx, cancel := context.WithTimeout(ctx, membersTimeout)
		defer cancel()
		if alarms, err := store.Alarms(ctx); err == nil {
			a.conn.setAlarms(alarms)
		}
		if err := a.learnMembers(ctx, store); err != nil {
			a.opts.Log.Debug("the datastore's members are not known", "err", err)
		}
	})
}

// learnMembers keeps the addresses of all members, where Maneki's hosts are
// those: then the one that was configured may be lost. An external cluster's
// addresses are what somebody has chosen.
func (a *Agent) learnMembers(ctx context.Context, store *etcd.Store) error {
	info, err := datastore.For[api.ClusterInformation](a.store).Get(ctx, "", "default")
	if err != nil {
		return err
	}
	if a.conn.server != nil || info.Annotations[keptByHosts] == "" || a.opts.Datastore.EtcdDiscoverySRV != "" {
		return nil
	}
	members, err := store.Refresh(ctx)
	if err != nil {
		return err
	}
	if a.conn.setEndpoints(members) {
		a.opts.Log.Info("the datastore's members", "endpoints", members)
	}
	return config.Remember(a.opts.endpointsFile(), a.conn.configured, members, store.Cluster())
}

// keptByHosts is the annotation of ClusterInformation that says that Maneki's
// hosts keep the datastore.
const keptByHosts = "maneki.net/embedded-datastore"

// claimDatastore sets it.
func (a *Agent) claimDatastore(ctx context.Context) error {
	if a.conn.server == nil {
		return nil
	}
	clusters := datastore.For[api.ClusterInformation](a.store)
	if c, err := clusters.Get(ctx, "", "default"); err == nil && c.Annotations[keptByHosts] != "" {
		return nil
	}
	_, err := clusters.Modify(ctx, "", "default", func(c *api.ClusterInformation) error {
		if c.Annotations == nil {
			c.Annotations = map[string]string{}
		}
		c.Annotations[keptByHosts] = "true"
		return nil
	})
	if err != nil {
		return fmt.Errorf("note that hosts keep the datastore: %w", err)
	}
	return nil
}
