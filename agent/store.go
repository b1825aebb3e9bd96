package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/embedded"
)

// connection is the datastore in use with what status has to say of it.
type connection struct {
	store  datastore.Store
	server *embedded.Server // nil for an external datastore

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

func (c *connection) report() agentapi.Datastore {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// openDatastore connects to the datastore named, or starts the embedded one.
func openDatastore(ctx context.Context, o Options) (*connection, error) {
	if o.Datastore.Type == "" {
		return openEmbedded(ctx, o)
	}
	deadline := time.Now().Add(o.Connect)
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		s, err := config.Open(ctx, o.Datastore, o.Log.With("part", "datastore"))
		if err == nil {
			_, err = s.Get(ctx, datastore.Key{Kind: "ClusterInformation", Name: "default"})
			if err == nil || errors.Is(err, datastore.ErrNotFound) {
				return newConnection(s, agentapi.Datastore{Type: string(o.Datastore.Type), Endpoints: o.Datastore.EtcdEndpoints}), nil
			}
			s.Close()
		}
		if !errors.Is(err, datastore.ErrUnavailable) || !o.Wait && time.Now().After(deadline) {
			return nil, err
		}
		o.Log.Warn("the datastore does not answer yet", "endpoints", o.Datastore.EtcdEndpoints, "err", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

func openEmbedded(ctx context.Context, o Options) (*connection, error) {
	start := time.Now()
	urls := append([]string{"http://127.0.0.1:2379"}, o.EtcdListen...)
	server, err := embedded.Start(ctx, embedded.Config{Dir: o.EmbeddedDir, Name: o.Node, ClientURLs: urls, Log: o.Log.With("part", "etcd")})
	if err != nil {
		return nil, err
	}
	dir, _ := filepath.Abs(o.EmbeddedDir)
	o.Log.Info("no datastore is named: this host keeps it in an embedded etcd", "dir", dir, "listen", urls, "readyAfter", time.Since(start).Round(time.Millisecond))
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
	a.opts.Notice("This host keeps the datastore: etcd in %s.", a.opts.EmbeddedDir)
	for _, u := range a.opts.EtcdListen {
		a.opts.Notice("Another host joins with:\n  ETCD_ENDPOINTS=%s maneki node run", u)
		return
	}
	own := a.node.addresses()[0].Prefix.Addr()
	if !own.IsValid() {
		own = a.node.addresses()[1].Prefix.Addr()
	}
	url := "http://" + net.JoinHostPort(own.String(), "2379")
	a.opts.Notice("It serves this host alone. For others to join, start this agent with --etcd-listen=%s and them with:\n  ETCD_ENDPOINTS=%s maneki node run", url, url)
}
