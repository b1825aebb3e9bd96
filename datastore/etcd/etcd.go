// Package etcd is the datastore backend for etcd v3 in Calico's layout: an
// external cluster, or the embedded server through its in-process client.
//
// It needs nothing newer than etcd 3.4.
package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/manekinet/maneki/datastore"
)

// Defaults of Config.
const (
	DefaultDialTimeout    = 5 * time.Second
	DefaultRequestTimeout = 5 * time.Second
)

// gRPC's keepalive finds a server that stopped answering; etcd refuses clients
// which ask more often than every 5 s.
const (
	keepAliveTime    = 10 * time.Second
	keepAliveTimeout = 5 * time.Second
)

// pageSize is the number of keys asked for at once by a list.
const pageSize = 1000

// listAttempts bounds how often a list starts again because a compaction
// overtook it between two pages.
const listAttempts = 3

// Config says where the cluster is and who we are.
type Config struct {
	Endpoints []string // "http://host:2379", "https://...", "unix:///path"; without scheme TLS is used if a CA or certificate is given

	Username, Password string

	CertFile, KeyFile, CACertFile string // PEM; read again for every connection
	Cert, Key, CACert             string // the same inline, PEM text

	// MembersOnly says that certificate and CA are for the https URLs of the
	// cluster's members alone, since Endpoints are this host's own member, which
	// is reached without TLS.
	MembersOnly bool

	DialTimeout    time.Duration // for the log-in; 0: DefaultDialTimeout
	RequestTimeout time.Duration // for every request; 0: DefaultRequestTimeout

	Log *slog.Logger // nil: none
}

// Store is a datastore.Store, datastore.Transactor and datastore.Snapshotter.
type Store struct {
	tls     *tlsSource  // nil without TLS
	far     *tls.Config // to ask single members at https URLs, where tls is nil; nil: none
	timeout time.Duration
	log     *slog.Logger
	led     func() bool   // of the in-process client, else nil
	cluster atomic.Uint64 // identity of the cluster that Refresh has found; 0: none yet

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	watches sync.WaitGroup

	config  clientv3.Config // to make client with
	dialing chan struct{}   // held while client is made

	mu        sync.Mutex
	endpoints []string
	client    *clientv3.Client
	closed    bool

	warned sync.Map // paths reported as not ours, so that each is reported once
}

// New checks the configuration and returns a store. It does not wait for the
// cluster: a request that finds none fails with ErrUnavailable, and a later one
// tries again. The context is not kept.
func New(_ context.Context, cfg Config) (*Store, error) {
	endpoints, secure, err := checkEndpoints(cfg)
	if err != nil {
		return nil, err
	}
	var source *tlsSource
	var far *tls.Config
	if secure {
		if source, err = newTLSSource(cfg); err != nil {
			return nil, err
		}
	} else if cfg.MembersOnly {
		if far, err = ClientTLS(cfg); err != nil {
			return nil, err
		}
	}
	if (cfg.Username == "") != (cfg.Password == "") {
		return nil, errors.New("etcd user name and password: one is given without the other")
	}
	s := newStore(endpoints, cfg.RequestTimeout, cfg.Log)
	s.tls, s.far = source, far
	s.config, err = clientConfig(cfg, endpoints, source, s.log)
	return s, err
}

// FromClient is a store on an existing client, which Close will close: the
// embedded server's in-process client. endpoints are for messages; led says
// whether the server knows a leader; members is for connections to the https
// URLs of other members, nil without TLS.
func FromClient(client *clientv3.Client, endpoints []string, led func() bool, members *tls.Config, log *slog.Logger) *Store {
	s := newStore(endpoints, 0, log)
	s.client, s.led, s.far = client, led, members
	return s
}

func newStore(endpoints []string, timeout time.Duration, log *slog.Logger) *Store {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if timeout == 0 {
		timeout = DefaultRequestTimeout
	}
	s := &Store{endpoints: endpoints, timeout: timeout, log: log, dialing: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

func clientConfig(cfg Config, endpoints []string, source *tlsSource, log *slog.Logger) (clientv3.Config, error) {
	cc := clientv3.Config{
		Endpoints:            endpoints,
		DialTimeout:          cfg.DialTimeout,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		Username:             cfg.Username,
		Password:             cfg.Password,
		Logger:               ZapLogger(log, slog.LevelError),
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
				MinConnectTimeout: 3 * time.Second,
			}),
			grpc.WithChainUnaryInterceptor(recordCause),
		},
	}
	if cc.DialTimeout == 0 {
		cc.DialTimeout = DefaultDialTimeout
	}
	if source == nil {
		return cc, nil
	}
	var err error
	if cc.TLS, err = source.config(); err != nil {
		return cc, err
	}
	creds, err := newCredentials(source)
	cc.DialOptions = append(cc.DialOptions, grpc.WithTransportCredentials(creds))
	return cc, err
}

// Endpoints are the addresses of the cluster: those configured, and those that
// Refresh has found.
func (s *Store) Endpoints() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.endpoints)
}

// connect returns the client, which it makes at first use. With a user name
// that means logging in, which may fail or take its time.
func (s *Store) connect(ctx context.Context) (*clientv3.Client, error) {
	if c, err := s.current(); c != nil || err != nil {
		return c, err
	}
	select {
	case s.dialing <- struct{}{}:
		defer func() { <-s.dialing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if c, err := s.current(); c != nil || err != nil {
		return c, err
	}
	cc := s.config
	clientCtx, cancel := context.WithCancel(s.ctx)
	stop := context.AfterFunc(ctx, cancel)
	cc.Context = clientCtx
	c, err := clientv3.New(cc)
	if !stop() { // the caller gave up, and with it goes the client
		err = errors.Join(ctx.Err(), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		err = errClosed
	}
	if err != nil {
		cancel()
		if c != nil {
			_ = c.Close() // it was never used
		}
		return nil, err
	}
	s.client = c
	return c, nil
}

func (s *Store) current() (*clientv3.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	return s.client, nil
}

var errClosed = fmt.Errorf("%w: the store is closed", datastore.ErrUnavailable)

// Reconnect drops the connections. The kernel keeps one for minutes whose local
// address this host no longer has; whoever has just lost an address need not wait
// for that. Requests under way fail as in an outage, watches end, and the next
// request connects anew. The in-process client has nothing to drop.
func (s *Store) Reconnect() {
	s.mu.Lock()
	client := s.client
	if s.led != nil || s.closed {
		client = nil
	} else {
		s.client = nil
	}
	s.mu.Unlock()
	if client != nil {
		_ = client.Close() // its connections may be dead: there is nobody to tell
	}
}

// Close ends the watches, waits for them, and closes the connections.
func (s *Store) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	client := s.client
	s.mu.Unlock()
	s.cancel()
	s.watches.Wait()
	if !first || client == nil {
		return nil
	}
	if err := client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close etcd client: %w", err)
	}
	return nil
}

// request runs one exchange with the cluster under the request timeout and
// turns its error into the datastore's.
func (s *Store) request(ctx context.Context, what string, do func(context.Context, *clientv3.Client) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	reqCtx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	reqCtx, cause := withCause(reqCtx)
	c, err := s.connect(reqCtx)
	if err == nil {
		err = do(reqCtx, c)
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, s.classify(ctx, err, cause.String()))
}

// Get returns one entry or ErrNotFound.
func (s *Store) Get(ctx context.Context, key datastore.Key) (datastore.Entry, error) {
	path, err := datastore.Path(key)
	if err != nil {
		return datastore.Entry{}, err
	}
	var resp *clientv3.GetResponse
	err = s.request(ctx, "get "+key.String(), func(ctx context.Context, c *clientv3.Client) (err error) {
		resp, err = c.Get(ctx, path)
		return err
	})
	if err != nil {
		return datastore.Entry{}, err
	}
	if len(resp.Kvs) == 0 {
		return datastore.Entry{}, fmt.Errorf("get %s: %w", key, datastore.ErrNotFound)
	}
	kv := resp.Kvs[0]
	return datastore.Entry{Key: key, Value: notNil(kv.Value), Rev: revision(kv.ModRevision)}, nil
}

// Put writes one value.
func (s *Store) Put(ctx context.Context, key datastore.Key, value []byte, pre datastore.Precondition) (datastore.Revision, error) {
	return s.commit(ctx, "put "+key.String(), []datastore.Op{{Key: key, Value: value, If: pre}})
}

// Delete removes one key.
func (s *Store) Delete(ctx context.Context, key datastore.Key, pre datastore.Precondition) error {
	_, err := s.commit(ctx, "delete "+key.String(), []datastore.Op{{Key: key, Delete: true, If: pre}})
	return err
}

// Commit applies ops in one transaction.
func (s *Store) Commit(ctx context.Context, ops []datastore.Op) (datastore.Revision, error) {
	return s.commit(ctx, "commit", ops)
}

func (s *Store) commit(ctx context.Context, what string, ops []datastore.Op) (datastore.Revision, error) {
	if err := datastore.CheckOps(ops); err != nil {
		return "", err
	}
	var compares []clientv3.Cmp
	var writes, reads []clientv3.Op
	for _, op := range ops {
		path, err := datastore.Path(op.Key)
		if err != nil {
			return "", err
		}
		cmp, err := compare(op, path)
		if err != nil {
			return "", fmt.Errorf("%s: %w", what, err)
		}
		compares = append(compares, cmp...)
		reads = append(reads, clientv3.OpGet(path, clientv3.WithKeysOnly()))
		switch {
		case op.Delete:
			writes = append(writes, clientv3.OpDelete(path))
		case !op.Check:
			writes = append(writes, clientv3.OpPut(path, string(op.Value)))
		}
	}
	var resp *clientv3.TxnResponse
	err := s.request(ctx, what, func(ctx context.Context, c *clientv3.Client) (err error) {
		resp, err = c.Txn(ctx).If(compares...).Then(writes...).Else(reads...).Commit()
		return err
	})
	if err != nil {
		return "", err
	}
	if !resp.Succeeded {
		return "", fmt.Errorf("%s: %w", what, failure(ops, resp))
	}
	return revision(resp.Header.Revision), nil
}

// compare is the operation's condition in etcd's terms.
func compare(op datastore.Op, path string) ([]clientv3.Cmp, error) {
	rev, at := op.If.Revision()
	switch {
	case op.If.IsAbsent():
		return []clientv3.Cmp{clientv3.Compare(clientv3.Version(path), "=", 0)}, nil
	case at:
		n, err := parseRevision(rev)
		if err != nil {
			return nil, err
		}
		// A key that is not there has revision 0, which is no revision to hold.
		return []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(path), "=", n), clientv3.Compare(clientv3.Version(path), ">", 0)}, nil
	case op.Delete:
		return []clientv3.Cmp{clientv3.Compare(clientv3.Version(path), ">", 0)}, nil
	}
	return nil, nil
}

// failure finds the first operation whose condition did not hold, in what the
// failed transaction read.
func failure(ops []datastore.Op, resp *clientv3.TxnResponse) error {
	for i, op := range ops {
		var stored datastore.Revision
		if kvs := resp.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			stored = revision(kvs[0].ModRevision)
		}
		if err := op.Failure(stored); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: the transaction failed, but every condition holds", datastore.ErrUnavailable)
}

// List returns the entries of one query in the order of their paths.
func (s *Store) List(ctx context.Context, q datastore.Query) ([]datastore.Entry, datastore.Revision, error) {
	return s.Snapshot(ctx, q)
}

// Snapshot returns the entries of all queries at one revision.
func (s *Store) Snapshot(ctx context.Context, qs ...datastore.Query) ([]datastore.Entry, datastore.Revision, error) {
	for attempt := 1; ; attempt++ {
		entries, rev, err := s.snapshot(ctx, qs)
		if attempt == listAttempts || !errors.Is(err, datastore.ErrCompacted) {
			return entries, rev, err
		}
	}
}

// part is one range of a query that is being read.
type part struct {
	query datastore.Query
	span  datastore.Range
}

func (s *Store) snapshot(ctx context.Context, qs []datastore.Query) ([]datastore.Entry, datastore.Revision, error) {
	var parts []part
	what := "list"
	for _, q := range qs {
		spans, err := datastore.Ranges(q)
		if err != nil {
			return nil, "", err
		}
		for _, span := range spans {
			parts = append(parts, part{q, span})
		}
		what += " " + q.Kind
	}
	pages, rev, err := s.firstPages(ctx, what, parts)
	if err != nil {
		return nil, "", err
	}
	var entries []datastore.Entry
	for i, page := range pages {
		p := parts[i]
		for {
			entries = s.appendPage(entries, p.query, page)
			if !page.More || len(page.Kvs) == 0 {
				break
			}
			next := string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
			err := s.request(ctx, what, func(ctx context.Context, c *clientv3.Client) (err error) {
				page, err = c.Get(ctx, next, clientv3.WithRange(p.span.End), clientv3.WithLimit(pageSize), clientv3.WithRev(rev))
				return err
			})
			if err != nil {
				return nil, "", err
			}
		}
	}
	return entries, revision(rev), nil
}

// firstPages reads the beginning of every part in one transaction, so that all
// have one revision.
func (s *Store) firstPages(ctx context.Context, what string, parts []part) ([]*clientv3.GetResponse, int64, error) {
	if len(parts) > datastore.MaxOps {
		return nil, 0, fmt.Errorf("list of %d ranges: %d are allowed", len(parts), datastore.MaxOps)
	}
	var gets []clientv3.Op
	for _, p := range parts {
		gets = append(gets, clientv3.OpGet(p.span.Start, clientv3.WithRange(p.span.End), clientv3.WithLimit(pageSize)))
	}
	var pages []*clientv3.GetResponse
	var rev int64
	err := s.request(ctx, what, func(ctx context.Context, c *clientv3.Client) error {
		if len(gets) == 1 { // a plain read, which the client may repeat on another member
			page, err := c.Do(ctx, gets[0])
			if err != nil {
				return err
			}
			pages, rev = []*clientv3.GetResponse{page.Get()}, page.Get().Header.Revision
			return nil
		}
		resp, err := c.Txn(ctx).Then(gets...).Commit()
		if err != nil {
			return err
		}
		rev = resp.Header.Revision
		for _, r := range resp.Responses {
			pages = append(pages, (*clientv3.GetResponse)(r.GetResponseRange()))
		}
		return nil
	})
	return pages, rev, err
}

func (s *Store) appendPage(entries []datastore.Entry, q datastore.Query, page *clientv3.GetResponse) []datastore.Entry {
	for _, kv := range page.Kvs {
		key, ok := s.parseKey(string(kv.Key))
		if ok && q.Matches(key) {
			entries = append(entries, datastore.Entry{Key: key, Value: notNil(kv.Value), Rev: revision(kv.ModRevision)})
		}
	}
	return entries
}

// parseKey reads a path of the store. One that nobody of us could have written
// is reported, once, and left alone.
func (s *Store) parseKey(path string) (datastore.Key, bool) {
	key, err := datastore.ParsePath(path)
	if err == nil {
		return key, true
	}
	if _, seen := s.warned.LoadOrStore(path, true); !seen {
		s.log.Warn("datastore holds a key that cannot be read", "key", path, "error", err)
	}
	return key, false
}

// notNil tells an empty value from none, which gRPC does not.
func notNil(value []byte) []byte {
	if value == nil {
		return []byte{}
	}
	return bytes.Clone(value)
}

// revision is the text of a mod revision; a key that is not there has none.
func revision(rev int64) datastore.Revision {
	if rev == 0 {
		return ""
	}
	return datastore.Revision(strconv.FormatInt(rev, 10))
}

func parseRevision(r datastore.Revision) (int64, error) {
	n, err := strconv.ParseInt(string(r), 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("revision %q is not a number of etcd's", r)
	}
	return n, nil
}
