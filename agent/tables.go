package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/autodetect"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/dataplane/links"
	"github.com/manekinet/maneki/dataplane/neigh"
	"github.com/manekinet/maneki/dataplane/nft"
	"github.com/manekinet/maneki/dataplane/routes"
	"github.com/manekinet/maneki/dataplane/sysctl"
	"github.com/manekinet/maneki/dataplane/tunnels"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/reconcile"
)

// tables are the kernel objects that the agent keeps as wanted.
type tables struct {
	opts    Options
	routes  *reconcile.Table[desired.RouteKey, desired.Route]
	sysctls *reconcile.Table[string, string]
	tunnels *reconcile.Table[string, desired.Tunnel]
	maker   *tunnels.Applier
	neighs  *reconcile.Table[desired.NeighbourKey, string]
	fdb     *reconcile.Table[desired.FDBKey, netip.Addr]
	nft     *reconcile.Table[desired.NFTKey, desired.NFTObject]
	filter  *nft.Applier
	applier *routes.Applier
	handle  *netlink.Handle // this namespace's
	devices []string        // names of the tunnel devices

	relist chan struct{} // the links are to be listed again

	mu      sync.Mutex
	pattern string                  // of the interfaces whose MTU counts
	local   map[netip.Addr]bool     // addresses of the host itself
	subnets []netip.Prefix          // that the host is connected to
	on      map[netip.Prefix]string // the interface of each, masked; of interfaces that are up and not a workload's
}

// sysctlResync is short because the kernel announces only some parameters'
// changes (RTNLGRP_*_NETCONF); the others are found by looking.
const sysctlResync = 5 * time.Second

func newTables(o Options) (*tables, error) {
	log := o.Log.With("part", "dataplane")
	applier, err := routes.New(routes.Options{
		Tables: []int{desired.TableMain, desired.TableLocal}, InterfacePrefixes: []string{o.InterfacePrefix}, Logger: log,
	})
	if err != nil {
		return nil, fmt.Errorf("open route table: %w", err)
	}
	values, err := sysctl.New("")
	if err != nil {
		return nil, fmt.Errorf("open kernel parameters: %w", err)
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	filter, err := nft.New()
	if err != nil {
		return nil, fmt.Errorf("open packet filter: %w", err)
	}
	devices := []string{desired.VXLANDevice, desired.VXLANDevice6, desired.IPIPDevice}
	maker := tunnels.New(handle, devices...)
	return &tables{
		opts:    o,
		handle:  handle,
		devices: devices,
		filter:  filter,
		nft: reconcile.NewTable(filter, reconcile.Options[desired.NFTKey]{
			Name: "nftables", Logger: log, Compare: desired.NFTKey.Compare,
		}),
		applier: applier,
		maker:   maker,
		tunnels: reconcile.NewTable(maker, reconcile.Options[string]{Name: "tunnels", Logger: log}),
		neighs: reconcile.NewTable(neigh.NewNeighbours(handle, devices...), reconcile.Options[desired.NeighbourKey]{
			Name: "neighbours", Logger: log, Compare: desired.NeighbourKey.Compare,
		}),
		fdb: reconcile.NewTable(neigh.NewFDB(handle, devices...), reconcile.Options[desired.FDBKey]{
			Name: "fdb", Logger: log, Compare: desired.FDBKey.Compare,
		}),
		routes:  reconcile.NewTable(applier, reconcile.Options[desired.RouteKey]{Name: "routes", Logger: log, Compare: longestFirst}),
		sysctls: reconcile.NewTable(values, reconcile.Options[string]{Name: "sysctls", Logger: log, Resync: sysctlResync}),
		local:   map[netip.Addr]bool{},
		relist:  make(chan struct{}, 1),
		pattern: desired.MTUPattern,
	}, nil
}

// longestFirst writes routes to gateways, which are single addresses, before the
// routes that need them.
func longestFirst(a, b desired.RouteKey) int {
	if d := b.Dst.Bits() - a.Dst.Bits(); d != 0 {
		return d
	}
	return a.Compare(b)
}

// restarted reports whether the kernel still has routes that an earlier agent
// learnt by BGP: then the peers may still hold ours, and the speaker says that
// it has restarted (RFC 4724 §3).
func (t *tables) restarted(ctx context.Context) (bool, error) {
	there, err := t.applier.Dump(ctx)
	if err != nil {
		return false, fmt.Errorf("list the kernel's routes: %w", err)
	}
	for _, r := range there {
		if r.Proto == desired.ProtoBGP {
			return true, nil
		}
	}
	return false, nil
}

func (t *tables) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return t.routes.Run(ctx) })
	g.Go(func() error { return t.sysctls.Run(ctx) })
	g.Go(func() error { return t.tunnels.Run(ctx) })
	g.Go(func() error { return t.neighs.Run(ctx) })
	g.Go(func() error { return t.fdb.Run(ctx) })
	g.Go(func() error { return t.nft.Run(ctx) })
	defer t.maker.Close()
	defer t.applier.Close()
	defer t.handle.Close()
	defer t.filter.Close()
	return g.Wait()
}

// watch marks tables dirty as the kernel reports changes, and hands the links
// on whenever one of the underlay's or an address of it changes. A burst of
// changes is listed once.
func (t *tables) watch(ctx context.Context, changed func(links []autodetect.Interface, mtu int), underlay func([]desired.Underlay)) error {
	list, listUnderlay := t.relist, make(chan struct{}, 1)
	kick(list)
	kick(listUnderlay)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return t.applier.Watch(ctx, func(e routes.Event) {
			switch e.Kind {
			case routes.Route:
				t.routes.Dirty()
				return
			case routes.Conf:
				t.sysctls.Dirty()
				return
			case routes.Underlay:
				kick(listUnderlay)
				return
			}
			t.sysctls.Dirty()
			if !strings.HasPrefix(e.Interface, t.opts.InterfacePrefix) {
				t.tunnels.Dirty() // the device itself, or the interface below it
				t.behindDirty()
				kick(list)
				kick(listUnderlay) // IPv4 routes go silently with their interface
			}
		})
	})
	g.Go(func() error { return t.filter.Watch(ctx, t.nft.Dirty) })
	g.Go(func() error { return t.maker.Watch(ctx, t.tunnels.Dirty) })
	g.Go(func() error {
		ours := func(dev string) bool { return slices.Contains(t.devices, dev) }
		return neigh.Watch(ctx, t.handle, ours, t.behindDirty)
	})
	g.Go(func() error { return t.followUnderlay(ctx, listUnderlay, underlay) })
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-list:
			}
			found, mtu, err := t.links()
			if err != nil {
				t.opts.Log.Error("the host's interfaces cannot be listed", "err", err)
				continue
			}
			changed(found, mtu)
		}
	})
	return g.Wait()
}

// followUnderlay lists the routes of others whenever they may have changed, not more often than every 20 ms:
// another routing daemon on this host may write thousands.
func (t *tables) followUnderlay(ctx context.Context, changes <-chan struct{}, tell func([]desired.Underlay)) error {
	var last []desired.Underlay
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changes:
		}
		found, err := t.applier.Underlay(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			t.opts.Log.Error("the routes of others cannot be listed", "err", err)
		case err == nil && (last == nil || !slices.Equal(found, last)):
			last = found
			tell(found)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// behindDirty has the tables of who is behind the tunnels looked at.
func (t *tables) behindDirty() {
	t.neighs.Dirty()
	t.fdb.Dirty()
}

// setTunnels hands on the devices and who is behind them, and waits, for a
// limited time, until the kernel has what is new: routes through a tunnel that
// is not there yet would lose packets.
func (t *tables) setTunnels(ctx context.Context, state calc.State) {
	ctx, cancel := context.WithTimeout(ctx, tunnelPatience)
	defer cancel()
	changed := !maps.Equal(t.tunnels.Want(), state.Tunnels) || !maps.Equal(t.neighs.Want(), state.Neighbours) || !maps.Equal(t.fdb.Want(), state.FDB)
	t.tunnels.Set(state.Tunnels)
	var err error
	if changed {
		err = t.tunnels.Wait(ctx, state.Tunnels)
	}
	t.neighs.Set(state.Neighbours)
	t.fdb.Set(state.FDB)
	if changed {
		err = errors.Join(err, t.neighs.Wait(ctx, state.Neighbours), t.fdb.Wait(ctx, state.FDB))
	}
	if err != nil {
		t.opts.Log.Warn("the tunnels are not complete yet; routes through them are written nevertheless", "err", err)
	}
}

// tunnelPatience is small beside the time in which a remote host may notice,
// and long beside the milliseconds that a thousand entries take.
const tunnelPatience = 500 * time.Millisecond

// links are the host's interfaces and the MTU of the underlay.
func (t *tables) links() ([]autodetect.Interface, int, error) {
	all, err := links.List(t.handle)
	if err != nil {
		return nil, 0, err
	}
	local := map[netip.Addr]bool{}
	var subnets []netip.Prefix
	on := map[netip.Prefix]string{}
	for _, l := range all {
		for _, p := range l.Addrs {
			local[p.Addr()] = true
			if p.IsSingleIP() {
				continue
			}
			subnets = append(subnets, p)
			if l.Up && !strings.HasPrefix(l.Name, t.opts.InterfacePrefix) {
				on[p.Masked()] = l.Name
			}
		}
	}
	t.mu.Lock()
	t.local, t.subnets, t.on = local, subnets, on
	t.mu.Unlock()
	return detectable(all), links.HostMTU(all, t.mtuPattern()), nil
}

// setMTUPattern says which interfaces count for the MTU; empty means the usual
// ones. One that cannot be compiled was refused when it was written.
func (t *tables) setMTUPattern(pattern string) {
	if pattern == "" {
		pattern = desired.MTUPattern
	}
	t.mu.Lock()
	changed := t.pattern != pattern
	t.pattern = pattern
	t.mu.Unlock()
	if changed {
		kick(t.relist)
	}
}

func (t *tables) mtuPattern() *regexp.Regexp {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, err := regexp.Compile(t.pattern); err == nil {
		return p
	}
	return regexp.MustCompile(desired.MTUPattern)
}

// detectable is the part of the links that address detection looks at. It is
// never nil, which a batch would read as unchanged.
func detectable(all []links.Interface) []autodetect.Interface {
	out := make([]autodetect.Interface, 0, len(all))
	for _, l := range all {
		out = append(out, autodetect.Interface{Name: l.Name, Up: l.Up, Addrs: l.Addrs})
	}
	return out
}

// connected are the subnets of the host's own addresses.
func (t *tables) connected() []netip.Prefix {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.subnets
}

// direct are the subnets that the host is connected to with their interfaces,
// without those of loopback, link-local addresses and workloads.
func (t *tables) direct() map[netip.Prefix]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := maps.Clone(t.on)
	maps.DeleteFunc(out, func(p netip.Prefix, _ string) bool { return p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() })
	return out
}

// inUse reports whether the kernel already has the address: the host's own, or
// routed to a workload. IPAM does not hand such an address out.
func (t *tables) inUse(a netip.Addr) bool {
	t.mu.Lock()
	local := t.local[a]
	t.mu.Unlock()
	return local || t.routes.Has(desired.NewRouteKey(netip.PrefixFrom(a, a.BitLen())))
}

func (t *tables) report() []agentapi.Table {
	return []agentapi.Table{
		tableReport("routes", t.routes.Status()), tableReport("sysctls", t.sysctls.Status()),
		tableReport("tunnels", t.tunnels.Status()), tableReport("neighbours", t.neighs.Status()), tableReport("fdb", t.fdb.Status()),
		tableReport("nftables", t.nft.Status()),
	}
}

func tableReport[K comparable](name string, s reconcile.Status[K]) agentapi.Table {
	r := agentapi.Table{
		Name: name, Wanted: s.Wanted, Present: s.Present, Failed: len(s.Failed),
		Healed: s.Healed, LastSync: s.LastSync,
	}
	if s.LastError != nil && !s.InSync() {
		r.LastError = s.LastError.Error()
	}
	return r
}

// interfaceName is the name of the interface with an index, empty for none.
func (t *tables) interfaceName(index int) string {
	link, err := t.handle.LinkByIndex(index)
	if err != nil {
		return ""
	}
	return link.Attrs().Name
}
