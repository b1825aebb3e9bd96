package routes

import (
	"context"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
)

// maxUnderlay bounds the foreign routes that are looked at: a host with a whole table of the internet has a default
// route among them as well, and what is left out is reached by that.
const maxUnderlay = 4096

// Underlay lists the routes of others in the main table that lead to a gateway or through an interface: what a next hop
// is reached by that is on no connected subnet. Workloads' interfaces are left out. The list is in order, at most
// maxUnderlay long, shorter prefixes first.
func (a *Applier) Underlay(ctx context.Context) ([]desired.Underlay, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.handle == nil {
		return nil, errClosed
	}
	var err error
	for range maxDumps {
		if err = a.links.fresh(a.handle); err != nil {
			return nil, err
		}
		var out []desired.Underlay
		if out, err = a.underlay(ctx); err == nil {
			return out, nil
		}
		if !interrupted(err) {
			break
		}
	}
	return nil, fmt.Errorf("list routes of others: %w", err)
}

func (a *Applier) underlay(ctx context.Context) ([]desired.Underlay, error) {
	out := []desired.Underlay{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		filter := &netlink.Route{Table: unix.RT_TABLE_MAIN}
		err := a.handle.RouteListFilteredIter(family, filter, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
			if u, ok := a.leadsOn(r); ok {
				out = append(out, u)
			}
			return len(out) < 16*maxUnderlay
		})
		if err != nil {
			return nil, err
		}
	}
	// The wide ones matter most: they are what a host's own administrator writes.
	slices.SortStableFunc(out, func(x, y desired.Underlay) int { return x.Dst.Bits() - y.Dst.Bits() })
	return desired.SortUnderlay(out[:min(len(out), maxUnderlay)]), nil
}

// leadsOn reports whether a kernel route is one that Underlay lists.
func (a *Applier) leadsOn(r netlink.Route) (desired.Underlay, bool) {
	k, ok := keyOf(r)
	names := a.links.hops(r)
	switch {
	case !ok || r.Table != unix.RT_TABLE_MAIN || r.Type != unix.RTN_UNICAST || r.Flags&unix.RTM_F_CLONED != 0 || r.Tos != 0:
		return desired.Underlay{}, false
	case len(names) == 0 || slices.Contains(names, "") || slices.ContainsFunc(names, a.workloadInterface):
		return desired.Underlay{}, false
	case slices.Contains(a.opts.Protocols, int(r.Protocol)) || k.Dst.Addr().IsLinkLocalUnicast() || k.Dst.Addr().IsMulticast():
		return desired.Underlay{}, false
	}
	return desired.Underlay{Dst: k.Dst, Priority: k.Priority, NextHops: hopsOf(r, names)}, true
}

// hopsOf is every next hop of a route, whoever wrote it.
func hopsOf(r netlink.Route, names []string) desired.NextHops {
	if len(r.MultiPath) == 0 {
		gateway, _ := gatewayOf(r.Gw, r.Via)
		return desired.NewNextHops(desired.NextHop{Gateway: gateway, Dev: names[0], Onlink: r.Flags&unix.RTNH_F_ONLINK != 0})
	}
	hops := make([]desired.NextHop, len(names))
	for i, nh := range r.MultiPath {
		hops[i] = desired.NextHop{Dev: names[i], Onlink: nh.Flags&unix.RTNH_F_ONLINK != 0}
		hops[i].Gateway, _ = gatewayOf(nh.Gw, nh.Via)
	}
	return desired.NewNextHops(hops...)
}

// underlayMatters reports whether a route message may change what Underlay lists.
func (a *Applier) underlayMatters(data []byte) bool {
	r, err := parseRoute(data)
	if err != nil {
		return true
	}
	_, ok := keyOf(r)
	return ok && r.Table == unix.RT_TABLE_MAIN && r.Flags&unix.RTM_F_CLONED == 0 && r.Type == unix.RTN_UNICAST &&
		!slices.Contains(a.opts.Protocols, int(r.Protocol)) && !slices.ContainsFunc(a.links.hops(r), a.workloadInterface)
}
