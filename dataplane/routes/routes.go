// Package routes puts desired.Route into the kernel's routing tables and finds out when somebody else changes them.
//
// An Applier is meant for a reconcile.Table. It sees and touches only routes that are ours:
//
//   - routes with one of our protocol numbers, in the tables that we own, on any interface;
//   - on interfaces with our prefix, every route that the kernel did not make itself, whatever wrote it: nobody else
//     has business there (Calico's removeExternalRoutes).
//
// Routes of others are left alone even when they stand in the way: see ErrOccupied.
package routes

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/reconcile"
)

// ErrOccupied means that the destination has a route of somebody else with the same priority, which is not ours to
// replace. It goes away when that route does.
var ErrOccupied = errors.New("destination is held by a route of somebody else")

// Options of an Applier. The zero value is that of a host's agent.
type Options struct {
	// Namespace is the path of the network namespace to work in; empty is that of the thread that calls New.
	Namespace string
	// Tables are the routing tables that we own routes in; empty is the main table.
	Tables []int
	// Protocols are the protocol numbers that make a route ours; empty is ProtoComputed and ProtoBGP. Adding 12 (bird)
	// takes the routes of a Calico node over.
	Protocols []int
	// InterfacePrefixes mark the interfaces of workloads; empty is "cali".
	InterfacePrefixes []string
	// KeepExternal leaves routes alone that others wrote on interfaces with our prefix: then only ProtoEndpoint and
	// Protocols are ours there.
	KeepExternal bool
	// ReceiveBuffer is the size in bytes of the buffer for notifications; 0 is 4 MiB, some thousand messages.
	ReceiveBuffer int
	Logger        *slog.Logger // nil discards
}

// Applier is the routes of one network namespace. Its methods are safe for concurrent use.
type Applier struct {
	opts Options
	ns   *os.File // kept open: Watch opens sockets later

	// mu is held over every exchange with the kernel, so that an event is compared with what has been done, not with
	// what is being done.
	mu        sync.Mutex
	handle    *netlink.Handle // nil after Close
	conntrack *netlink.Handle // nil when the kernel has no connection tracking
	links     linkCache
	held      map[desired.RouteKey][]netlink.Route // ours, in the kernel's order
	occupied  map[desired.RouteKey]struct{}        // keys under which there is a route of somebody else
	failing   map[desired.RouteKey]time.Time       // keys whose last Put failed, and when
	orphans   map[desired.RouteKey]int             // workloads' routes that vanished, with the index of their interface
}

var _ reconcile.BatchApplier[desired.RouteKey, desired.Route] = (*Applier)(nil)

// New opens netlink in the namespace.
func New(opts Options) (*Applier, error) {
	if len(opts.Tables) == 0 {
		opts.Tables = []int{desired.TableMain}
	}
	if len(opts.Protocols) == 0 {
		opts.Protocols = []int{desired.ProtoComputed, desired.ProtoBGP}
	}
	if len(opts.InterfacePrefixes) == 0 {
		opts.InterfacePrefixes = []string{"cali"}
	}
	if slices.Contains(opts.InterfacePrefixes, "") {
		return nil, errors.New("routes: interface prefix is empty: every interface of the host would be ours")
	}
	if opts.ReceiveBuffer == 0 {
		opts.ReceiveBuffer = 4 << 20
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	path := opts.Namespace
	if path == "" {
		path = "/proc/thread-self/ns/net"
	}
	ns, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	handle, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return nil, fmt.Errorf("open netlink in %s: %w", path, err)
	}
	a := &Applier{
		opts: opts, ns: ns, handle: handle, links: newLinkCache(),
		held:     map[desired.RouteKey][]netlink.Route{},
		occupied: map[desired.RouteKey]struct{}{},
		failing:  map[desired.RouteKey]time.Time{},
		orphans:  map[desired.RouteKey]int{},
	}
	a.conntrack, err = netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_NETFILTER)
	if err != nil {
		a.conntrack = nil
		opts.Logger.Info("this kernel has no netfilter: connections of removed workloads are not cleared", "error", err)
	}
	return a, nil
}

// Close releases the sockets. Routes stay.
func (a *Applier) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.handle == nil {
		return
	}
	a.handle.Close()
	a.handle = nil
	if a.conntrack != nil {
		a.conntrack.Close()
		a.conntrack = nil
	}
	_ = a.ns.Close()
}

var errClosed = errors.New("routes: closed")

// workloadInterface reports whether an interface is a workload's by its name.
func (a *Applier) workloadInterface(name string) bool {
	return slices.ContainsFunc(a.opts.InterfacePrefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

// ours reports whether a kernel route is ours to change and delete. names gives the interface names of its next hops.
func (a *Applier) ours(r netlink.Route, names []string) bool {
	if !slices.Contains(a.opts.Tables, r.Table) || r.Protocol == unix.RTPROT_KERNEL {
		return false
	}
	if slices.Contains(a.opts.Protocols, int(r.Protocol)) {
		return true
	}
	if len(names) == 0 || !allOf(names, a.workloadInterface) {
		return false
	}
	return !a.opts.KeepExternal || int(r.Protocol) == desired.ProtoEndpoint
}

func allOf(names []string, is func(string) bool) bool {
	return !slices.ContainsFunc(names, func(n string) bool { return !is(n) })
}
