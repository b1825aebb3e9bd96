// Package embedded runs an etcd server inside this process: the datastore of
// the first host when none is named. Other hosts reach it as clients; its own
// process uses it without the network.
//
// The engine is etcd's, with its consensus, storage and fsync; this package
// decides its size, its sockets and its end.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"google.golang.org/grpc"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/etcd"
)

// DefaultClientURL is where the server listens when nothing else is said: on
// this host only.
const DefaultClientURL = "http://127.0.0.1:2379"

// DefaultName is the member's name.
const DefaultName = "maneki"

const (
	startTimeout  = 30 * time.Second
	waitNotice    = 3 * time.Second // of a member that starts without the others
	stopTimeout   = 10 * time.Second
	brokenTimeout = time.Second            // for a server that has lost parts of itself
	graceOfClient = 200 * time.Millisecond // for requests under way when the server stops
)

// How large the server may become. A cluster of a thousand hosts holds some
// tens of megabytes; what takes space is history, so that is kept short. A
// client that sleeps longer than the retention lists again.
const (
	quota           = 2 << 30 // bytes, etcd's own default; less on a small disk, see space
	historyKept     = "10m"
	walSegment      = 8 << 20 // bytes preallocated twice; etcd takes 64 MB; less on a small disk
	entriesInMemory = 2000    // raft entries between two snapshots
	entriesForPeers = 500     // kept after a snapshot, for members that lag
	maxFiles        = 3       // old WAL and snapshot files
	soloElection    = 500     // ms a member without others waits for them at start; etcd: 1000
)

// Config says where the server keeps its data and where it listens.
type Config struct {
	Dir  string // of the data; created with mode 0700
	Name string // the member's; empty: DefaultName

	// ClientURLs is where clients connect; empty: DefaultClientURL. Hosts are IP
	// addresses or "localhost"; port 0 takes a free one, see Endpoints.
	ClientURLs []string
	// CertFile, KeyFile and CAFile are this host's PEM files, needed by https URLs:
	// its certificate, for servers and clients, and who signs such certificates.
	// Whoever connects to an https URL must show one. Certificate and key are read
	// again for every connection, the CA at start.
	CertFile, KeyFile, CAFile string

	// PeerURLs is where other members connect; empty: nowhere, the cluster has
	// one member. They may differ from those of the last start.
	PeerURLs []string

	// Join holds client URLs of a cluster to become a member of; PeerURLs is
	// needed then. With data of an earlier start the host goes on as the member
	// that it is, whether the URLs answer or not.
	Join []string

	Log *slog.Logger // nil: none
}

// Server is a running etcd. Use Start.
type Server struct {
	etcd      *embed.Etcd
	log       *slog.Logger
	dir       string
	store     *etcd.Store
	lock      *os.File
	endpoints []string
	guard     *guard
	remote    *remote
	failed    chan error
	watcher   sync.WaitGroup
	closing   chan struct{}
	spaceKept chan struct{} // closed when keepSpace has returned
	closeOnce sync.Once
	closeErr  error

	// Of keepSpace:
	compacted   int64     // revision up to which it has forgotten history
	shrinkAfter time.Time // when it may do so again
}

// Start starts the server and returns when it serves. The errors of a data
// directory that another process uses or that is damaged, and of an address
// that is taken, say so.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ec, err := engineConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("start embedded etcd: %w", err)
	}
	members, err := cfg.clientTLS()
	if err != nil {
		return nil, fmt.Errorf("start embedded etcd: %w", err)
	}
	total, _, err := disk(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("start embedded etcd: %w", err)
	}
	sp := spaceOf(total)
	ec.QuotaBackendBytes = sp.quota
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("start embedded etcd: %w", err)
	}
	st, err := checkData(cfg.Dir)
	if st.members < 2 && len(cfg.Join) == 0 {
		ec.ElectionMs = soloElection
	}
	if err == nil && len(cfg.Join) > 0 {
		err = prepareJoin(ctx, cfg, ec)
	}
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("start embedded etcd: %w", err)
	}
	s := &Server{log: cfg.Log, dir: cfg.Dir, lock: lock, guard: newGuard(), remote: &remote{}, failed: make(chan error, 1), closing: make(chan struct{}), spaceKept: make(chan struct{})}
	ec.ServiceRegister = s.remote.add
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(s.guard.logger(cfg.Log))
	shortenWAL(sp.segment)
	if err := s.start(ctx, ec); err != nil {
		_ = s.stop()
		return nil, fmt.Errorf("start embedded etcd in %s: %w", cfg.Dir, err)
	}
	s.endpoints = listening(s.etcd, ec)
	client := v3client.New(s.etcd.Server)
	if err := s.settle(ctx, client, cfg); err != nil {
		_ = client.Close()
		_ = s.stop()
		return nil, fmt.Errorf("start embedded etcd in %s: %w", cfg.Dir, err)
	}
	s.store = etcd.FromClient(client, s.endpoints, func() bool { return s.etcd.Server.Leader() != 0 }, members, cfg.Log)
	s.watcher.Go(s.watch)
	go func() {
		defer close(s.spaceKept)
		s.keepSpace(client, sp)
	}()
	return s, nil
}

// Store is the server as a datastore, without a network between. Close of the
// server closes it.
func (s *Server) Store() datastore.Store { return s.store }

// Endpoints are the URLs at which clients reach the server.
func (s *Server) Endpoints() []string { return slices.Clone(s.endpoints) }

// Failed delivers an error if the server ends by itself (disk full or broken).
// It has to be closed all the same.
func (s *Server) Failed() <-chan error { return s.failed }

// Close stops the server: first our own watches, then the connections of
// others, then the engine. Everything acknowledged is on disk.
func (s *Server) Close() error {
	s.closeOnce.Do(func() {
		close(s.closing)
		s.watcher.Wait()
		select {
		case <-s.spaceKept:
		case <-time.After(brokenTimeout): // a broken engine may never answer it
		}
		s.closeErr = errors.Join(s.store.Close(), s.stop())
	})
	return s.closeErr
}

// start runs the engine until it serves. The engine ends its goroutine on
// damage it cannot handle, so it gets one of its own.
func (s *Server) start(ctx context.Context, ec *embed.Config) error {
	type result struct {
		etcd *embed.Etcd
		err  error
	}
	done := make(chan result, 1)
	go func() {
		e, err := embed.StartEtcd(ec)
		done <- result{e, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return explain(r.err)
		}
		s.etcd = r.etcd
	case err := <-s.guard.fatal:
		return err
	}
	return s.waitReady(ctx, len(ec.ListenPeerUrls) > 0)
}

// waitReady waits for the engine. A member of several waits for a majority as
// long as it takes: it is one of those that the others are waiting for.
func (s *Server) waitReady(ctx context.Context, reachable bool) error {
	patience := time.NewTicker(startTimeout)
	defer patience.Stop()
	notice := time.NewTimer(waitNotice)
	defer notice.Stop()
	for {
		var others []string
		for _, m := range s.etcd.Server.Cluster().Members() {
			if m.ID != s.etcd.Server.MemberID() {
				others = append(others, m.Name+" "+strings.Join(m.PeerURLs, ","))
			}
		}
		if len(others) > 0 && !reachable {
			return refuse("this host keeps the datastore together with %s, who must reach it: start it with --etcd-listen or --etcd-peer, as before", strings.Join(others, ", "))
		}
		select {
		case <-s.etcd.Server.ReadyNotify():
			return nil
		case err := <-s.etcd.Err():
			return s.reason(err)
		case err := <-s.guard.fatal:
			return s.reason(err)
		case <-s.etcd.Server.StopNotify():
			return s.reason(errors.New("it stopped"))
		case <-notice.C:
			if len(others) > 0 {
				s.log.Warn("waiting for a majority of the datastore's members", "others", others)
			}
		case <-patience.C:
			if len(others) == 0 {
				return fmt.Errorf("not ready after %s", startTimeout)
			}
			s.log.Warn("still waiting for a majority of the datastore's members", "others", others)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reason is err, unless the engine ended because its membership did.
func (s *Server) reason(err error) error {
	if c, ok := s.etcd.Server.Cluster().(*membership.RaftCluster); ok && c.IsIDRemoved(s.etcd.Server.MemberID()) || strings.Contains(err.Error(), "permanently removed") {
		return removedError(s.dir)
	}
	return explain(err)
}

// settle does what a started member owes its cluster.
func (s *Server) settle(ctx context.Context, client *clientv3.Client, cfg Config) error {
	if err := s.promote(ctx, cfg); err != nil {
		return err
	}
	return s.announcePeers(ctx, client, cfg.PeerURLs)
}

// explain adds the remedy to errors of the operating system.
func explain(err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("address already in use, is another etcd running on this host? Stop it, use it as the datastore, or choose other client URLs: %w", err)
	}
	if errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
		return noSpace(err)
	}
	return err
}

func noSpace(err error) error {
	return fmt.Errorf("the disk is full; nothing that was acknowledged is lost: free space and start again: %w", err)
}

// watch reports the engine's end to Failed.
func (s *Server) watch() {
	var err error
	select {
	case <-s.closing:
		return
	case err = <-s.guard.fatal:
	case err = <-s.etcd.Err():
	case <-s.etcd.Server.StopNotify():
		err = errors.New("it stopped")
	}
	s.failed <- fmt.Errorf("embedded etcd: %w", s.reason(err))
}

// stop ends the engine and unlocks the directory.
func (s *Server) stop() error {
	var err error
	if s.etcd != nil {
		s.guard.stopping.Store(true)
		wait := stopTimeout
		if s.guard.broken.Load() {
			wait = brokenTimeout
		}
		s.remote.stop()
		done := make(chan struct{})
		go func() {
			s.etcd.Close()
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(wait):
			err = fmt.Errorf("embedded etcd has not stopped in %s", wait)
		}
	}
	return errors.Join(err, s.lock.Close())
}

// announcePeers tells the cluster where this member listens now, if that is
// elsewhere than at the last start.
func (s *Server) announcePeers(ctx context.Context, client *clientv3.Client, urls []string) error {
	if len(urls) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	id := s.etcd.Server.MemberID()
	for _, m := range s.etcd.Server.Cluster().Members() {
		if m.ID != id || slices.Equal(slices.Sorted(slices.Values(m.PeerURLs)), slices.Sorted(slices.Values(urls))) {
			continue
		}
		if _, err := client.MemberUpdate(ctx, uint64(id), urls); err != nil {
			return fmt.Errorf("announce peer URLs %s: %w", strings.Join(urls, ", "), err)
		}
	}
	return nil
}

func engineConfig(cfg Config) (*embed.Config, error) {
	if cfg.Dir == "" {
		return nil, errors.New("no data directory given")
	}
	if cfg.Name == "" {
		cfg.Name = DefaultName
	}
	if len(cfg.ClientURLs) == 0 {
		cfg.ClientURLs = []string{DefaultClientURL}
	}
	clients, err := parseURLs("client URL", cfg.ClientURLs)
	if err != nil {
		return nil, err
	}
	peers, err := parseURLs("peer URL", cfg.PeerURLs)
	if err != nil {
		return nil, err
	}
	ec := embed.NewConfig()
	ec.Dir, ec.Name = cfg.Dir, cfg.Name
	ec.ListenClientUrls, ec.AdvertiseClientUrls = clients, advertised(clients)
	ec.ListenPeerUrls = peers
	if len(peers) > 0 {
		ec.AdvertisePeerUrls = peers
	} else { // a member must have one; nobody connects to it
		ec.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "localhost:2380"}}
	}
	ec.InitialCluster = ec.InitialClusterFromName(cfg.Name)
	// Of the token and the peer URLs etcd makes the cluster's identity; without
	// one every cluster begun by us would have the same.
	ec.InitialClusterToken = uuid.NewString()
	if len(cfg.Join) > 0 && len(peers) == 0 {
		return nil, errors.New("no peer URL given, at which the other members reach this one")
	}
	if _, err := parseURLs("URL to join", cfg.Join); err != nil {
		return nil, err
	}
	if err := cfg.secure(ec); err != nil {
		return nil, err
	}
	ec.AutoCompactionMode, ec.AutoCompactionRetention = embed.CompactorModePeriodic, historyKept
	ec.SnapshotCount, ec.SnapshotCatchUpEntries = entriesInMemory, entriesForPeers
	ec.MaxSnapFiles, ec.MaxWalFiles = maxFiles, maxFiles
	ec.EnableGRPCGateway = false
	return ec, nil
}

// advertised are the URLs told to others: not those of this host alone, if there
// are any others.
func advertised(clients []url.URL) []url.URL {
	var far []url.URL
	for _, u := range clients {
		if a, err := netip.ParseAddr(u.Hostname()); err == nil && !a.IsLoopback() && !a.IsUnspecified() {
			far = append(far, u)
		}
	}
	if len(far) == 0 {
		return clients
	}
	return far
}

func parseURLs(what string, texts []string) ([]url.URL, error) {
	var urls []url.URL
	for _, text := range texts {
		u, err := url.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", what, text, err)
		}
		if u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("%s %q: scheme is %q, allowed are http and https", what, text, u.Scheme)
		}
		host, port, err := net.SplitHostPort(u.Host)
		if err != nil || port == "" {
			return nil, fmt.Errorf("%s %q: port is missing", what, text)
		}
		if host != "localhost" && net.ParseIP(host) == nil {
			return nil, fmt.Errorf("%s %q: host is %q, allowed are IP addresses and localhost", what, text, host)
		}
		urls = append(urls, *u)
	}
	return urls, nil
}

// listening are the client URLs with the ports that were taken.
func listening(e *embed.Etcd, ec *embed.Config) []string {
	var urls []string
	for i, u := range ec.ListenClientUrls {
		if i < len(e.Clients) && strings.HasSuffix(u.Host, ":0") {
			u.Host = e.Clients[i].Addr().String()
		}
		urls = append(urls, u.String())
	}
	return urls
}

// shortenWAL sets the size of WAL segments, which etcd offers for the whole
// process only: the smallest that any of its servers needs.
func shortenWAL(size int64) {
	walMu.Lock()
	defer walMu.Unlock()
	if size < wal.SegmentSizeBytes { // it is read without a lock
		wal.SegmentSizeBytes = size
	}
}

var walMu sync.Mutex // guards etcd's variable against two of our servers

// remote holds the servers that serve other processes.
type remote struct {
	mu      sync.Mutex
	servers []*grpc.Server
}

func (r *remote) add(s *grpc.Server) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.servers = append(r.servers, s)
}

// stop ends the connections of clients. The engine by itself would wait seconds
// for each watch that somebody has open.
func (r *remote) stop() {
	r.mu.Lock()
	servers := r.servers
	r.mu.Unlock()
	var group sync.WaitGroup
	for _, s := range servers {
		group.Go(func() {
			hard := time.AfterFunc(graceOfClient, s.Stop)
			defer hard.Stop()
			s.GracefulStop()
		})
	}
	group.Wait()
}
