package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	"github.com/manekinet/maneki/datastore"
)

// heartbeat is how often a watch asks whether the cluster still answers: a
// stopped server or a cut cable is silent, just as a cluster in which nothing
// happens.
const heartbeat = 5 * time.Second

// maxMerge bounds how many waiting responses become one batch.
const maxMerge = 256

type watcher struct {
	events chan []datastore.Event
	err    error // set before events is closed
}

func (w *watcher) Events() <-chan []datastore.Event { return w.events }

func (w *watcher) Err() error { return w.err }

// Watch delivers every change of the queries after revision from; an empty
// revision means now.
//
// Every range of the queries is one etcd watch; all share one stream. The
// changes of one range come in revision order and a transaction's come
// together; between ranges the order is kept within a batch, but a batch of one
// range may come before an older change of another.
//
// The watch ends with ErrUnavailable as soon as the connection is lost or the
// cluster has no leader or stops answering, although the client could wait and
// go on: the cluster that comes back may be older than the one that went
// (restored from a backup), and only a new list shows that.
func (s *Store) Watch(ctx context.Context, from datastore.Revision, qs ...datastore.Query) datastore.Watcher {
	w := &watcher{events: make(chan []datastore.Event)}
	r := &watchRun{store: s, queries: slices.Clone(qs), out: w.events}
	err := r.prepare(from)
	s.mu.Lock()
	if err == nil && s.closed {
		err = errClosed
	}
	if err != nil {
		s.mu.Unlock()
		w.err = fmt.Errorf("watch: %w", err)
		close(w.events)
		return w
	}
	s.watches.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.watches.Done()
		defer close(w.events)
		w.err = fmt.Errorf("watch: %w", s.classify(ctx, r.run(ctx), ""))
	}()
	return w
}

// watchRun is one Watch at work.
type watchRun struct {
	store   *Store
	queries []datastore.Query
	spans   []datastore.Range
	start   int64 // first revision wanted, 0: now
	out     chan<- []datastore.Event

	mu   sync.Mutex
	seen int64 // newest revision seen
}

func (r *watchRun) prepare(from datastore.Revision) error {
	for _, q := range r.queries {
		spans, err := datastore.Ranges(q)
		if err != nil {
			return err
		}
		r.spans = append(r.spans, spans...)
	}
	if r.spans = disjoint(r.spans); len(r.spans) == 0 {
		return errors.New("no query given")
	}
	if from == "" {
		return nil
	}
	n, err := parseRevision(from)
	r.start, r.seen = n+1, n
	return err
}

// disjoint drops ranges that lie within others. Ranges of the layout nest or
// are apart, they never cross.
func disjoint(spans []datastore.Range) []datastore.Range {
	slices.SortFunc(spans, func(a, b datastore.Range) int {
		return cmp.Or(strings.Compare(a.Start, b.Start), strings.Compare(b.End, a.End))
	})
	var out []datastore.Range
	for _, s := range spans {
		if len(out) == 0 || s.End > out[len(out)-1].End {
			out = append(out, s)
		}
	}
	return out
}

// run delivers until there is a reason to stop, which it returns. All its
// goroutines have ended when it returns.
func (r *watchRun) run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(r.store.ctx, func() { stop(errClosed) })()

	client, err := r.connect(ctx)
	if err != nil {
		return err
	}
	in := make(chan clientv3.WatchResponse)
	for _, span := range r.spans {
		group.Go(func() { stop(r.receive(ctx, client, span, in)) })
	}
	group.Go(func() { stop(r.monitor(ctx, client)) })
	group.Go(func() { stop(r.beat(ctx)) })
	for {
		batch, err := r.next(ctx, in)
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			continue
		}
		select {
		case r.out <- batch:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// connect waits for a connection and checks what a watch would not tell: that
// the cluster answers, lets us read, and is not older than what we have seen.
func (r *watchRun) connect(ctx context.Context) (client *clientv3.Client, err error) {
	err = r.store.request(ctx, "connect", func(ctx context.Context, c *clientv3.Client) error {
		client = c
		if err := r.ask(ctx, c); err != nil {
			return err
		}
		return ready(ctx, c)
	})
	return client, err
}

// ask reads next to nothing.
func (r *watchRun) ask(ctx context.Context, c *clientv3.Client) error {
	seen := r.newest(0)
	resp, err := c.Get(ctx, r.spans[0].Start, clientv3.WithCountOnly())
	if err == nil && resp.Header.Revision < seen {
		err = fmt.Errorf("%w: etcd went back from revision %d to %d", datastore.ErrCompacted, seen, resp.Header.Revision)
	}
	return err
}

// ready waits until the client has a connection. The in-process client needs
// none.
func ready(ctx context.Context, c *clientv3.Client) error {
	conn := c.ActiveConnection()
	if conn == nil {
		return nil
	}
	for {
		state := conn.GetState()
		if state == connectivity.Ready {
			return nil
		}
		conn.Connect()
		if !conn.WaitForStateChange(ctx, state) {
			return ctx.Err()
		}
	}
}

// receive passes one etcd watch's responses on and returns why it ended.
func (r *watchRun) receive(ctx context.Context, c *clientv3.Client, span datastore.Range, in chan<- clientv3.WatchResponse) error {
	opts := []clientv3.OpOption{clientv3.WithRange(span.End)}
	if r.start != 0 {
		opts = append(opts, clientv3.WithRev(r.start))
	}
	answers := c.Watch(clientv3.WithRequireLeader(ctx), span.Start, opts...)
	for {
		var resp clientv3.WatchResponse
		var ok bool
		select {
		case resp, ok = <-answers:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if !ok {
			break
		}
		if resp.CompactRevision != 0 {
			return fmt.Errorf("%w: the oldest kept is %d", datastore.ErrCompacted, resp.CompactRevision)
		}
		if err := resp.Err(); err != nil {
			return err
		}
		select {
		case in <- resp:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return fmt.Errorf("%w: etcd ended the watch", datastore.ErrUnavailable)
}

// monitor returns when the connection is lost.
func (r *watchRun) monitor(ctx context.Context, c *clientv3.Client) error {
	conn := c.ActiveConnection()
	if conn == nil || !conn.WaitForStateChange(ctx, connectivity.Ready) {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: connection to etcd at %s lost", datastore.ErrUnavailable, r.store.where())
}

// beat returns when the cluster does not answer, or has gone back in time.
func (r *watchRun) beat(ctx context.Context) error {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		err := r.store.request(ctx, "heartbeat", r.ask)
		if err != nil {
			return err
		}
	}
}

// newest notes that revision rev was seen and returns the newest so far.
func (r *watchRun) newest(rev int64) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = max(r.seen, rev)
	return r.seen
}

// next waits for a response and merges with it what else has arrived, in
// revision order.
func (r *watchRun) next(ctx context.Context, in <-chan clientv3.WatchResponse) ([]datastore.Event, error) {
	var events []*clientv3.Event
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case resp := <-in:
		events = resp.Events
	}
	for range maxMerge {
		select {
		case resp := <-in:
			events = append(events, resp.Events...)
			continue
		default:
		}
		break
	}
	slices.SortStableFunc(events, func(a, b *clientv3.Event) int { return cmp.Compare(a.Kv.ModRevision, b.Kv.ModRevision) })
	batch := make([]datastore.Event, 0, len(events))
	for _, e := range events {
		r.newest(e.Kv.ModRevision)
		if ev, wanted := r.convert(e); wanted {
			batch = append(batch, ev)
		}
	}
	return batch, nil
}

func (r *watchRun) convert(e *clientv3.Event) (datastore.Event, bool) {
	key, ok := r.store.parseKey(string(e.Kv.Key))
	if !ok || !slices.ContainsFunc(r.queries, func(q datastore.Query) bool { return q.Matches(key) }) {
		return datastore.Event{}, false
	}
	ev := datastore.Event{Entry: datastore.Entry{Key: key, Rev: revision(e.Kv.ModRevision)}}
	if e.Type == mvccpb.Event_DELETE {
		ev.Type = datastore.EventDelete
		return ev, true
	}
	ev.Entry.Value = notNil(e.Kv.Value)
	return ev, true
}
