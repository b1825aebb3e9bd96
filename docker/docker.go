// Package docker is the front door for plain Docker hosts: a network driver and an IPAM driver that dockerd calls over
// Unix sockets (the "remote" plugins of libnetwork; spec/docker-kubernetes.md §1, spec/calico.md §8). It translates
// them to package endpoint, as package cni does for container runtimes.
//
// Both drivers are served under two names: maneki and maneki-ipam, and calico and calico-ipam for old commands and
// compose files.
//
// Docker sends no network names and no container labels to drivers; they are asked of Docker's own API. What Docker
// tells once only (CreateNetwork) is kept in small files under StateDir/docker, because dockerd repeats nothing when it
// or the agent restarts.
//
// The sockets are files of mode 0600 and only root is served. Every request has a deadline, the number of connections
// is bounded, and a panic ends only its own request (net/http).
package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/endpoint"
	"github.com/manekinet/maneki/ipam"
	"github.com/manekinet/maneki/resource"
)

// DefaultPluginDir is where dockerd looks for the sockets of plugins.
const DefaultPluginDir = "/run/docker/plugins"

// DefaultEngine is the socket of Docker's own API.
const DefaultEngine = "/var/run/docker.sock"

// Scope says who keeps the networks of the drivers (spec/docker-kubernetes.md §1.4).
type Scope string

// The scopes. ScopeAuto is global for a dockerd that has a cluster store and local for every other one: without a
// store Docker refuses global networks.
const (
	ScopeAuto   Scope = "auto"
	ScopeLocal  Scope = "local"
	ScopeGlobal Scope = "global"
)

// Endpoints does the work; *endpoint.Manager is one.
type Endpoints interface {
	AttachPort(ctx context.Context, p endpoint.Port) error
	OpenPort(ctx context.Context, port string) (endpoint.PortInfo, error)
	SettlePort(ctx context.Context, port string, netns *os.File) error
	ClosePort(ctx context.Context, port string) error
	DetachPort(ctx context.Context, port string) error
	LabelPort(ctx context.Context, port string, labels, annotations map[string]string) error
	Ports(ctx context.Context) ([]*api.WorkloadEndpoint, error)
	PublishPort(ctx context.Context, port string, published []api.EndpointPort) error
	PortAddresses(ctx context.Context) (map[netip.Addr]string, error)
	IdlePorts(ctx context.Context, before time.Time) ([]string, error)
}

// Config is what a Server is made of. StateDir and Log must be set.
type Config struct {
	StateDir string
	Log      *slog.Logger

	PluginDir   string        // empty: DefaultPluginDir
	Engine      string        // socket of Docker's API; empty: DefaultEngine
	Scope       Scope         // empty: ScopeAuto
	Connections int           // served at once on one socket; 0: 64. More wait in the kernel's queue.
	LabelTime   time.Duration // for which a new container's labels are asked for often; 0: 5 s, as in Calico

	// Collect is the time between two looks for addresses that Docker asked for and nobody uses, and for labels that
	// are not what Docker says; 0: one minute.
	Collect time.Duration
}

// Backend is what a Server needs to answer calls: the rest of the agent. All but NodeLabels must be set.
type Backend struct {
	Endpoints  Endpoints
	IPAM       *ipam.Host // of Node
	Store      datastore.Store
	Node       string
	NodeLabels func() map[string]string // for the pools' nodeSelector; nil: none
}

// Deadlines.
const (
	startTime   = 15 * time.Second // for which a call waits for Open: as long as dockerd repeats one to a socket that is not there
	requestTime = 20 * time.Second // of one call; dockerd itself waits without end
	stopTime    = 5 * time.Second  // for calls in progress when the agent stops
)

// drivers are the names under which dockerd finds the sockets, and what each implements.
func drivers() map[string]string {
	return map[string]string{
		"maneki": networkDriver, "maneki-ipam": ipamDriver,
		"calico": networkDriver, "calico-ipam": ipamDriver,
	}
}

const (
	networkDriver = "NetworkDriver"
	ipamDriver    = "IpamDriver"
)

// Server serves the sockets of one host.
type Server struct {
	Config
	Backend                    // set by Open
	objects   *resource.Client // set by Open
	opened    chan struct{}
	served    chan struct{} // closed when Serve ends
	engine    *engine
	networks  *networks
	ports     ports
	publish   sync.Mutex // held while ports are chosen
	listeners []*listener

	unlabelled atomic.Bool // some endpoint may lack its container's labels
	newMu      sync.Mutex
	new        map[string]newcomer // endpoints that wait for their labels
	newKick    chan struct{}
	started    chan struct{}   // a container has started
	told       atomic.Bool     // Docker tells of containers that start
	background sync.WaitGroup  // containers being settled
	life       context.Context // of Serve and background work
	end        context.CancelFunc
}

// Listen creates the sockets. Files left by a dead agent are replaced. A name at which another program answers is left
// to it, with a warning; when that is so for all of them it is an error.
//
// An agent listens before anything else: a dockerd that starts at the same time asks for the drivers of its networks and
// waits 15 s for each that is not there (spec/docker-kubernetes.md §1.3). Serve answers from the start what needs no
// datastore; other calls wait for Open.
func Listen(c Config) (*Server, error) {
	c.PluginDir, c.Engine = cmp.Or(c.PluginDir, DefaultPluginDir), cmp.Or(c.Engine, DefaultEngine)
	c.Scope, c.Connections = cmp.Or(c.Scope, ScopeAuto), cmp.Or(c.Connections, 64)
	c.LabelTime, c.Collect = cmp.Or(c.LabelTime, 5*time.Second), cmp.Or(c.Collect, time.Minute)
	if c.Scope != ScopeAuto && c.Scope != ScopeLocal && c.Scope != ScopeGlobal {
		return nil, fmt.Errorf("docker scope %q: use %s, %s or %s", c.Scope, ScopeAuto, ScopeLocal, ScopeGlobal)
	}
	s := &Server{Config: c, engine: newEngine(c.Engine), opened: make(chan struct{}), served: make(chan struct{}), new: map[string]newcomer{}, newKick: make(chan struct{}, 1), started: make(chan struct{}, 1)}
	s.life, s.end = context.WithCancel(context.Background())
	var err error
	if s.networks, err = openNetworks(filepath.Join(c.StateDir, "docker")); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.PluginDir, 0o755); err != nil {
		return nil, fmt.Errorf("create plugin directory: %w", err)
	}
	var errs []error
	for name, kind := range drivers() {
		l, err := listen(filepath.Join(c.PluginDir, name+".sock"), c.Connections)
		if errors.Is(err, errAnswers) {
			c.Log.Warn("Docker plugin name is served by another program", "name", name, "err", err)
			errs = append(errs, err)
			continue
		}
		if err != nil {
			s.Close()
			return nil, err
		}
		l.kind = kind
		s.listeners = append(s.listeners, l)
	}
	if len(s.listeners) == 0 {
		return nil, errors.Join(errs...)
	}
	return s, nil
}

// Open lets the calls in that need the rest of the agent. Call it once.
func (s *Server) Open(b Backend) {
	s.unlabelled.Store(true) // of an agent that was killed
	s.Backend, s.objects = b, resource.New(b.Store, s.Log)
	close(s.opened)
}

// Stop ends Serve and waits until no call is in progress any more. Serve must have been called, or be about to.
func (s *Server) Stop() {
	s.end()
	<-s.served
}

// Close gives up a Server that was never served.
func (s *Server) Close() {
	s.end()
	for _, l := range s.listeners {
		_ = l.Close()
		_ = os.Remove(l.path)
	}
}

// Serve answers until ctx ends; then it takes no new call, lets those in progress end, removes the sockets and returns
// the context's error. Call it once.
func (s *Server) Serve(ctx context.Context) error {
	defer close(s.served)
	defer s.background.Wait()
	defer s.Close()
	defer context.AfterFunc(ctx, s.end)()
	g, ctx := errgroup.WithContext(s.life)
	for _, l := range s.listeners {
		g.Go(func() error { return s.serve(ctx, l) })
	}
	g.Go(func() error { return s.collect(ctx) })
	g.Go(func() error { return s.labels(ctx) })
	g.Go(func() error { return s.followStarts(ctx) })
	s.Log.Info("Docker drivers are served", "directory", s.PluginDir, "scope", s.Scope)
	return g.Wait()
}

func (s *Server) serve(ctx context.Context, l *listener) error {
	server := &http.Server{
		Handler: s.handler(l.kind), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: requestTime + 10*time.Second, IdleTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn), ConnContext: withPeer,
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		// The name goes first: dockerd is told at once that nobody is there, instead of waiting in a queue.
		_ = os.Remove(l.path)
		grace, cancel := context.WithTimeout(context.Background(), stopTime)
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close()
		}
	})
	err := server.Serve(l)
	if !stop() {
		<-stopped
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve Docker plugin %s: %w", l.path, err)
	}
	return ctx.Err()
}
