package ipam

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// Errors that a caller may want to tell apart; they come wrapped.
var (
	// ErrBlockLimit is returned when a host owns as many blocks as it may.
	ErrBlockLimit = errors.New("cannot allocate new block due to per host block limit")
	// ErrExhausted is returned when the pools hold no address for the request.
	ErrExhausted = errors.New("no free address")
	// ErrNotAssigned is Lookup's answer for an address that nobody holds.
	ErrNotAssigned = errors.New("not assigned")
	// ErrAssigned is AssignIP's refusal of an address that somebody holds.
	ErrAssigned = errAssigned
	// ErrStale is the refusal to release an address that has changed hands: its
	// handle or sequence number is not the one given.
	ErrStale = errors.New("address belongs to another allocation")
)

// Limits of the loops over the datastore.
const (
	casAttempts   = 100              // spec/calico.md §3
	commitTimeout = 30 * time.Second // bound of everything done for one batch
	minClaimAge   = time.Minute      // an empty block of another host is reclaimed only when its claim is older
	maxInUseSkips = 256              // addresses that the kernel uses, passed over for one request
)

// Options are a Client's means. The zero value works.
type Options struct {
	Log *slog.Logger // nil: discard
	// Now is the clock for claim times, sequence numbers and cool-down; nil: time.Now.
	Now func() time.Time
	// InUse reports that this machine's kernel already uses an address, which
	// is then passed over; nil: none is.
	InUse func(netip.Addr) bool
	// Subnets are those that this machine is connected to. A block that overlaps
	// one is not claimed: its blackhole route would be more specific than the
	// subnet's own and cut the machine off from its neighbours. Where a subnet
	// holds a whole pool somebody has meant that, and it does not count; nil:
	// there are none.
	Subnets func() []netip.Prefix
}

// Client assigns and releases addresses in one datastore. Its methods are safe
// for concurrent use; each reads what it needs. For the requests of one host
// use a Host, which reads nothing in the common case.
type Client struct {
	store   datastore.Store
	txn     bool // the store is a Transactor
	log     *slog.Logger
	now     func() time.Time
	inUse   func(netip.Addr) bool
	subnets func() []netip.Prefix
}

// New returns a Client of the store.
func New(s datastore.Store, o Options) *Client {
	_, txn := s.(datastore.Transactor)
	c := &Client{store: s, txn: txn, log: o.Log, now: o.Now, inUse: o.InUse, subnets: o.Subnets}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.inUse == nil {
		c.inUse = func(netip.Addr) bool { return false }
	}
	return c
}

// Request asks for addresses by number.
type Request struct {
	Host   string            // the node that will use them; required unless Use is LoadBalancer
	Handle string            // what releases them together, unique to their owner; required
	Attrs  map[string]string // stored with each address; "node" is added when it is missing

	Num4, Num6      int      // how many of each family, 0 or more
	Pools4, Pools6  []string // names or CIDRs of pools; empty: by the pools' selectors
	Use             api.IPPoolUse
	NodeLabels      map[string]string // of Host: which pools select it, and which empty blocks it gives up
	NamespaceLabels map[string]string
	MaxBlocks       int // limit of blocks of one family that Host may own; 0: the cluster's
	With            []datastore.Op
}

// AssignRequest asks for one named address.
type AssignRequest struct {
	Addr         netip.Addr
	Host, Handle string
	Attrs        map[string]string
	Use          api.IPPoolUse // empty: any pool will do
	With         []datastore.Op
}

// Assignment is one address with the block and the pool it comes from.
type Assignment struct {
	Addr  netip.Addr
	Block netip.Prefix
	Pool  string
}

// AutoAssign assigns the addresses asked for, IPv4 first. It is all or nothing:
// when it fails nothing stays assigned, with one exception. ErrUnavailable
// means that the datastore went away around the write, so that nobody knows;
// then release the handle once the datastore is back.
//
// Request.With holds further writes that happen in the same transaction. A
// store without transactions does them afterwards, one by one; if one fails the
// addresses are given back, but the writes before it stay. The failure of a
// precondition in With is returned as it is (ErrConflict, ErrExists,
// ErrNotFound).
func (c *Client) AutoAssign(ctx context.Context, r Request) ([]Assignment, error) {
	j, err := newAssignJob(ctx, r)
	if err != nil {
		return nil, err
	}
	c.runAlone(ctx, ownerOf(r.Host, r.Use), j)
	return j.assigned, j.err
}

// AssignIP assigns one named address, whatever the selectors of its pool say
// and whether or not it is reserved. The block is claimed for the host if it is
// not there. See AutoAssign for ErrUnavailable and With.
func (c *Client) AssignIP(ctx context.Context, r AssignRequest) (Assignment, error) {
	j, err := newAddrJob(ctx, r)
	if err != nil {
		return Assignment{}, err
	}
	c.runAlone(ctx, ownerOf(r.Host, r.Use), j)
	return j.first(), j.err
}

// ReleaseByHandle releases whatever the handle holds and returns it. A handle
// that holds nothing is no error.
func (c *Client) ReleaseByHandle(ctx context.Context, handle string) ([]netip.Addr, error) {
	j, err := newHandleJob(ctx, handle)
	if err != nil {
		return nil, err
	}
	c.runAlone(ctx, "", j)
	return j.released, j.err
}

// ReleaseOptions names an address to release and, unless they are zero, the
// allocation it must still belong to.
type ReleaseOptions struct {
	Addr     netip.Addr
	Handle   string // empty: any
	Sequence uint64 // Allocation.Sequence; 0: any
}

// Release releases addresses, whoever holds them, and returns those that nobody
// held.
func (c *Client) Release(ctx context.Context, addrs ...netip.Addr) (notAssigned []netip.Addr, err error) {
	return c.ReleaseExactly(ctx, optionsFor(addrs)...)
}

// ReleaseExactly releases the allocations named; if one has changed hands it
// releases none and returns ErrStale. It returns the addresses nobody held.
func (c *Client) ReleaseExactly(ctx context.Context, opts ...ReleaseOptions) (notAssigned []netip.Addr, err error) {
	if len(opts) == 0 {
		return nil, nil
	}
	j := newReleaseJob(ctx, opts)
	c.runAlone(ctx, "", j)
	return j.missing, j.err
}

func optionsFor(addrs []netip.Addr) []ReleaseOptions {
	opts := make([]ReleaseOptions, len(addrs))
	for i, a := range addrs {
		opts[i].Addr = a
	}
	return opts
}

// runAlone does one job with nothing remembered from before.
func (c *Client) runAlone(ctx context.Context, owner string, j *job) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	c.run(ctx, newCache(owner), []*job{j})
}

// ownerOf is the affinity under which a request claims blocks.
func ownerOf(host string, use api.IPPoolUse) string {
	if use == api.UseLoadBalancer {
		return "virtual:load-balancer"
	}
	return "host:" + host
}

// job is one request on its way through the engine.
type job struct {
	ctx context.Context // the caller's

	// What is asked for: exactly one is set.
	auto     *Request
	addr     *AssignRequest
	byHandle string
	byAddr   []ReleaseOptions

	// readHandle turns off the guess that the handle of an assignment does not
	// exist yet, which saves a read.
	readHandle bool
	begun      time.Time
	// pins remembers the allocations found at the first attempt to release, so
	// that a later attempt never takes an address from its next owner.
	pins map[netip.Addr]pin

	// The outcome.
	assigned []Assignment
	released []netip.Addr
	missing  []netip.Addr
	err      error
	done     bool

	turn chan bool // Host: true means done, false means lead the next batch
}

// pin identifies one allocation of an address.
type pin struct {
	handle string
	seq    uint64
}

func newAssignJob(ctx context.Context, r Request) (*job, error) {
	switch {
	case r.Handle == "":
		return nil, errors.New("assign addresses: handle is empty: every allocation needs one")
	case r.Host == "" && r.Use != api.UseLoadBalancer:
		return nil, errors.New("assign addresses: host is empty")
	case r.Num4 < 0 || r.Num6 < 0 || r.Num4+r.Num6 == 0:
		return nil, fmt.Errorf("assign addresses: %d IPv4 and %d IPv6 addresses asked for: want at least one in all", r.Num4, r.Num6)
	case r.MaxBlocks < 0:
		return nil, fmt.Errorf("assign addresses: block limit %d is negative", r.MaxBlocks)
	}
	if r.Use == "" {
		r.Use = api.UseWorkload
	}
	r.Handle = cleanHandle(r.Handle)
	r.Attrs = withNode(r.Attrs, r.Host)
	return &job{ctx: ctx, auto: &r, begun: time.Now()}, nil
}

func newAddrJob(ctx context.Context, r AssignRequest) (*job, error) {
	switch {
	case r.Handle == "":
		return nil, fmt.Errorf("assign %s: handle is empty: every allocation needs one", r.Addr)
	case r.Host == "" && r.Use != api.UseLoadBalancer:
		return nil, fmt.Errorf("assign %s: host is empty", r.Addr)
	case !r.Addr.IsValid() || r.Addr.Is4In6():
		return nil, fmt.Errorf("assign address: %q is not an IPv4 or IPv6 address", r.Addr)
	}
	r.Handle = cleanHandle(r.Handle)
	r.Attrs = withNode(r.Attrs, r.Host)
	return &job{ctx: ctx, addr: &r, begun: time.Now()}, nil
}

func newHandleJob(ctx context.Context, handle string) (*job, error) {
	if handle = cleanHandle(handle); handle == "" {
		return nil, errors.New("release by handle: handle is empty")
	}
	return &job{ctx: ctx, byHandle: handle, begun: time.Now()}, nil
}

func newReleaseJob(ctx context.Context, opts []ReleaseOptions) *job {
	return &job{ctx: ctx, byAddr: opts, begun: time.Now()}
}

// withNode is a copy of attrs that names the node.
func withNode(attrs map[string]string, host string) map[string]string {
	out := maps.Clone(attrs)
	if out == nil {
		out = map[string]string{}
	}
	if _, ok := out["node"]; !ok && host != "" {
		out["node"] = host
	}
	return out
}

// with is the job's further writes.
func (j *job) with() []datastore.Op {
	switch {
	case j.auto != nil:
		return j.auto.With
	case j.addr != nil:
		return j.addr.With
	}
	return nil
}

// handle is the handle of an assignment, empty for a release.
func (j *job) handle() string {
	switch {
	case j.auto != nil:
		return j.auto.Handle
	case j.addr != nil:
		return j.addr.Handle
	}
	return ""
}

func (j *job) first() Assignment {
	if len(j.assigned) == 0 {
		return Assignment{}
	}
	return j.assigned[0]
}

func (j *job) succeed() { j.done = true }

// fail ends the job without result.
func (j *job) fail(err error) {
	j.assigned, j.released, j.missing = nil, nil, nil
	j.err, j.done = err, true
}
