package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// Host assigns addresses for one node. It remembers the node's blocks with the
// revisions they were read at, so that a request costs one transaction and no
// read; and while a transaction is under way the requests that arrive are
// queued and share the next one. Its methods are safe for concurrent use. All
// assigning and releasing of one node should go through one Host: others are
// noticed, but each costs a refused transaction.
//
// A Host needs no goroutine of its own: a caller that finds nobody at work does
// the work for all who wait, one transaction long, and then hands over. Run
// adds a watch of pools, reservations and configuration; without it these are
// read once per transaction.
type Host struct {
	client *Client
	name   string
	cache  *cache // of whoever leads
	live   atomic.Pointer[settings]

	mu      sync.Mutex
	queue   []*job
	leading bool // somebody is at work
}

// NewHost returns the front of one node.
func NewHost(c *Client, host string) *Host {
	h := &Host{client: c, name: host, cache: newCache(ownerOf(host, ""))}
	h.cache.current = h.live.Load
	return h
}

// Client is what the Host works with.
func (h *Host) Client() *Client { return h.client }

// Run keeps the settings up to date until the context ends, and returns its
// error. Call it once.
func (h *Host) Run(ctx context.Context) error {
	defer h.live.Store(nil)
	entries := map[datastore.Key]datastore.Entry{}
	return datastore.Follow(ctx, h.client.store, func(b datastore.Batch) {
		if b.Err != nil {
			h.live.Store(nil) // what is not watched is read
			return
		}
		for _, e := range b.Events {
			if e.Type == datastore.EventDelete {
				delete(entries, e.Entry.Key)
			} else {
				entries[e.Entry.Key] = e.Entry
			}
		}
		if !b.InSync {
			return
		}
		all := make([]datastore.Entry, 0, len(entries))
		for _, e := range entries {
			all = append(all, e)
		}
		st, err := h.client.buildSettings(all)
		if err != nil {
			h.client.log.Error("IPAM settings cannot be used", "err", err)
			st = nil
		}
		h.live.Store(st)
	}, settingsQueries()...)
}

// AutoAssign is Client.AutoAssign for this node; Request.Host may be left empty.
func (h *Host) AutoAssign(ctx context.Context, r Request) ([]Assignment, error) {
	if r.Use == api.UseLoadBalancer { // not this node's blocks
		return h.client.AutoAssign(ctx, r)
	}
	var err error
	if r.Host, err = h.own(r.Host); err != nil {
		return nil, err
	}
	j, err := newAssignJob(ctx, r)
	if err != nil {
		return nil, err
	}
	h.do(j)
	return j.assigned, j.err
}

// AssignIP is Client.AssignIP for this node; AssignRequest.Host may be left empty.
func (h *Host) AssignIP(ctx context.Context, r AssignRequest) (Assignment, error) {
	if r.Use == api.UseLoadBalancer {
		return h.client.AssignIP(ctx, r)
	}
	var err error
	if r.Host, err = h.own(r.Host); err != nil {
		return Assignment{}, err
	}
	j, err := newAddrJob(ctx, r)
	if err != nil {
		return Assignment{}, err
	}
	h.do(j)
	return j.first(), j.err
}

// ReleaseByHandle is Client.ReleaseByHandle.
func (h *Host) ReleaseByHandle(ctx context.Context, handle string) ([]netip.Addr, error) {
	j, err := newHandleJob(ctx, handle)
	if err != nil {
		return nil, err
	}
	h.do(j)
	return j.released, j.err
}

// Release is Client.Release.
func (h *Host) Release(ctx context.Context, addrs ...netip.Addr) (notAssigned []netip.Addr, err error) {
	return h.ReleaseExactly(ctx, optionsFor(addrs)...)
}

// ReleaseExactly is Client.ReleaseExactly.
func (h *Host) ReleaseExactly(ctx context.Context, opts ...ReleaseOptions) (notAssigned []netip.Addr, err error) {
	if len(opts) == 0 {
		return nil, nil
	}
	j := newReleaseJob(ctx, opts)
	h.do(j)
	return j.missing, j.err
}

func (h *Host) own(host string) (string, error) {
	if host != "" && host != h.name {
		return "", fmt.Errorf("assign addresses: host is %q, but this is the front of %q", host, h.name)
	}
	return h.name, nil
}

// do queues a job and returns when it is done.
func (h *Host) do(j *job) {
	j.turn = make(chan bool, 1)
	h.mu.Lock()
	h.queue = append(h.queue, j)
	lead := !h.leading
	h.leading = true
	h.mu.Unlock()
	if !lead {
		select {
		case done := <-j.turn:
			if done {
				return
			}
		case <-j.ctx.Done():
			if h.withdraw(j) {
				j.fail(j.ctx.Err())
				return
			}
			if <-j.turn { // on its way: the outcome decides
				return
			}
		}
	}
	h.lead(j)
}

// withdraw takes a job out of the queue unless it is under way or has been told
// to lead.
func (h *Host) withdraw(j *job) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := slices.Index(h.queue, j)
	if at < 0 || len(j.turn) > 0 {
		return false
	}
	h.queue = slices.Delete(h.queue, at, at+1)
	return true
}

// lead does one batch, of which the leader's own job is the first, and hands
// over to the first job that has come meanwhile.
func (h *Host) lead(own *job) {
	h.mu.Lock()
	batch := h.takeBatch()
	h.mu.Unlock()

	// No single caller's end may end the others' transaction.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(own.ctx), commitTimeout)
	h.client.run(ctx, h.cache, batch)
	cancel()

	for _, j := range batch {
		if j != own {
			j.turn <- true
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.queue) == 0 {
		h.leading = false
		return
	}
	h.queue[0].turn <- false
}

// batchOps is how many operations the jobs of one batch may need, which leaves
// room below datastore.MaxOps for blocks and conditions.
const batchOps = 100

// takeBatch takes jobs off the head of the queue as long as they fit into one
// transaction, at least one.
func (h *Host) takeBatch() []*job {
	cost, n := 0, 0
	keys := map[datastore.Key]bool{}
	for _, j := range h.queue {
		cost += j.cost()
		if n > 0 && (cost > batchOps || !j.fits(keys)) {
			break
		}
		for _, op := range j.with() {
			keys[op.Key] = true
		}
		n++
	}
	batch := slices.Clone(h.queue[:n])
	h.queue = slices.Delete(h.queue, 0, n)
	return batch
}

// fits reports that none of the job's own writes touches a key that is taken:
// a transaction may hold one operation per key.
func (j *job) fits(taken map[datastore.Key]bool) bool {
	return !slices.ContainsFunc(j.with(), func(op datastore.Op) bool { return taken[op.Key] })
}

// cost is about how many operations a job needs.
func (j *job) cost() int {
	switch {
	case j.auto != nil:
		return 1 + (j.auto.Num4+j.auto.Num6)/16 + len(j.auto.With)
	case j.addr != nil:
		return 2 + len(j.addr.With)
	case j.byHandle != "":
		return 1
	}
	return 2 * len(j.byAddr)
}
