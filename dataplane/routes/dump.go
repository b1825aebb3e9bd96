package routes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
)

// maxDumps bounds how often a listing is repeated that the kernel says was interrupted by a change.
const maxDumps = 5

// failingFor is how long a failed Put counts as unfinished business. A table tries again sooner than that unless the
// route is no longer wanted.
const failingFor = time.Minute

// Dump lists our routes. Two routes of ours under one key, which only somebody else can have made, are one Other.
func (a *Applier) Dump(ctx context.Context) (map[desired.RouteKey]desired.Route, error) {
	a.forget(ctx, a.leaving(nil)) // what vanished before the listing before this one
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.handle == nil {
		return nil, errClosed
	}
	s, err := a.list(ctx)
	if err != nil {
		return nil, err
	}
	a.vanished(s.held)
	a.held, a.occupied = s.held, s.occupied
	routes := make(map[desired.RouteKey]desired.Route, len(s.held))
	for k := range s.held {
		routes[k] = a.heldValue(k)
	}
	for k, at := range a.failing {
		if time.Since(at) > failingFor {
			delete(a.failing, k)
		}
	}
	return routes, nil
}

// list repeats the listing until it is consistent in itself and with the interfaces, within bounds.
func (a *Applier) list(ctx context.Context) (*scan, error) {
	var err error
	for attempt := range maxDumps {
		if err := a.links.fresh(a.handle); err != nil {
			return nil, err
		}
		s := newScan(a)
		err = s.families(ctx)
		switch {
		case err != nil && !interrupted(err):
			return nil, err
		case err == nil && a.links.missed && attempt == 0:
			// A route on an interface that is newer than the cache, or gone. Once more tells which.
		case err == nil:
			return s, nil
		}
	}
	return nil, fmt.Errorf("list routes: still changing after %d attempts: %w", maxDumps, err)
}

// interrupted reports whether a listing should be repeated: the tables changed while it was made.
func interrupted(err error) bool {
	return errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN)
}

// heldValue is the value of a key of ours.
func (a *Applier) heldValue(k desired.RouteKey) desired.Route {
	rs := a.held[k]
	if len(rs) != 1 {
		return desired.Route{Type: desired.Other, Proto: int(rs[0].Protocol)}
	}
	return valueOf(rs[0], a.links.hops(rs[0]))
}

// scan is one listing in progress.
type scan struct {
	a        *Applier
	held     map[desired.RouteKey][]netlink.Route
	occupied map[desired.RouteKey]struct{}

	// The kernel lists routes of one destination one after the other. Those of others are remembered only as long as
	// one of ours may follow: their number has no bound.
	dst     netip.Prefix
	foreign []desired.RouteKey
	own     []desired.RouteKey
}

func newScan(a *Applier) *scan {
	return &scan{a: a, held: map[desired.RouteKey][]netlink.Route{}, occupied: map[desired.RouteKey]struct{}{}}
}

func (s *scan) families(ctx context.Context) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if err := ctx.Err(); err != nil {
			return err
		}
		// The filter on "any table" makes the library list all tables rather than main alone.
		filter := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
		err := s.a.handle.RouteListFilteredIter(family, filter, netlink.RT_FILTER_TABLE, s.add)
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		s.close()
	}
	return nil
}

// add sorts one kernel route into ours and others'.
func (s *scan) add(r netlink.Route) bool {
	k, ok := keyOf(r)
	if !ok || !slices.Contains(s.a.opts.Tables, r.Table) {
		return true
	}
	if k.Dst != s.dst {
		s.close()
		s.dst = k.Dst
	}
	switch {
	case s.a.ours(r, s.a.links.hops(r)):
		s.held[k] = append(s.held[k], r)
		s.own = append(s.own, k)
	case r.Tos == 0: // another type of service is another route to the kernel: not in our way
		s.foreign = append(s.foreign, k)
	}
	return true
}

// close ends the routes of one destination.
func (s *scan) close() {
	for _, k := range s.foreign {
		_, failing := s.a.failing[k]
		if failing || slices.Contains(s.own, k) {
			s.occupied[k] = struct{}{}
		}
	}
	s.foreign, s.own = s.foreign[:0], s.own[:0]
}
