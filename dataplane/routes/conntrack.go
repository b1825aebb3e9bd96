package routes

import (
	"context"
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
)

// workloadAddr reports whether our route under a key leads to a local workload, and to which address.
func (a *Applier) workloadAddr(k desired.RouteKey) (netip.Addr, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return k.Dst.Addr(), len(a.held[k]) > 0 && a.toWorkload(k, a.held[k][0])
}

// toWorkload: an interface that is gone already was a workload's, for routes to single addresses elsewhere have an
// interface that stays.
func (a *Applier) toWorkload(k desired.RouteKey, r netlink.Route) bool {
	if !k.Dst.IsSingleIP() || r.LinkIndex == 0 {
		return false
	}
	dev := a.links.name(r.LinkIndex)
	return dev == "" || a.workloadInterface(dev)
}

// leaving is the addresses of workloads that lose their interface: by one of the puts, or because their route had
// vanished before the last listing and was not wanted back since. The kernel removes routes with their interface, and
// an interface usually goes before the agent hears that its workload does.
func (a *Applier) leaving(puts []Entry) []netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	var addrs []netip.Addr
	for _, e := range puts {
		old, orphan := a.orphans[e.Key]
		if rs := a.held[e.Key]; len(rs) > 0 && a.toWorkload(e.Key, rs[0]) {
			old, orphan = rs[0].LinkIndex, true
		}
		delete(a.orphans, e.Key)
		if orphan && a.links.name(old) != e.Value.Dev {
			addrs = append(addrs, e.Key.Dst.Addr())
		}
	}
	for k := range a.orphans {
		addrs = append(addrs, k.Dst.Addr())
	}
	clear(a.orphans)
	return addrs
}

// vanished takes note of the workloads' routes that are held but were not found. Applier.mu is held.
func (a *Applier) vanished(found map[desired.RouteKey][]netlink.Route) {
	for k, rs := range a.held {
		if _, still := found[k]; !still && a.toWorkload(k, rs[0]) {
			a.orphans[k] = rs[0].LinkIndex
		}
	}
}

// connectionsOf matches the connections that one of the addresses is an end of, before or after translation.
type connectionsOf map[netip.Addr]struct{}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (c connectionsOf) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, tuple := range []netlink.IPTuple{flow.Forward, flow.Reverse} {
		for _, ip := range [][]byte{tuple.SrcIP, tuple.DstIP} {
			if _, ok := c[fromIP(ip)]; ok {
				return true
			}
		}
	}
	return false
}

// forget deletes the connections of addresses. It is a courtesy to whoever gets the address next: a failure is
// logged and never stands in the way of routes.
func (a *Applier) forget(ctx context.Context, addrs []netip.Addr) {
	filters := map[netlink.InetFamily]connectionsOf{}
	for _, addr := range addrs {
		family := netlink.InetFamily(unix.AF_INET)
		if addr.Is6() {
			family = unix.AF_INET6
		}
		if filters[family] == nil {
			filters[family] = connectionsOf{}
		}
		filters[family][addr] = struct{}{}
	}
	for family, filter := range filters {
		if err := a.do(ctx, func() error { return a.deleteConnections(family, filter) }); err != nil {
			a.opts.Logger.Warn("could not clear connections of removed workloads", "addresses", len(filter), "error", err)
		}
	}
}

func (a *Applier) deleteConnections(family netlink.InetFamily, filter connectionsOf) error {
	if a.conntrack == nil {
		return nil
	}
	var err error
	for range maxDumps {
		_, err = a.conntrack.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	// netfilter without its connection tracking part answers that it does not know the subsystem.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil
	}
	return err
}
