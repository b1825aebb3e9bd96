package agent

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/autodetect"
	"github.com/manekinet/maneki/dataplane/links"
	"github.com/manekinet/maneki/dataplane/routes"
	"github.com/manekinet/maneki/dataplane/sysctl"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/reconcile"
)

// tables are the kernel objects that the agent keeps as wanted.
type tables struct {
	opts    Options
	routes  *reconcile.Table[desired.RouteKey, desired.Route]
	sysctls *reconcile.Table[string, string]
	applier *routes.Applier
	handle  *netlink.Handle // this namespace's

	mu    sync.Mutex
	local map[netip.Addr]bool // addresses of the host itself
}

// sysctlResync is short because the kernel announces only some parameters'
// changes (RTNLGRP_*_NETCONF); the others are found by looking.
const sysctlResync = 5 * time.Second

func newTables(o Options) (*tables, error) {
	log := o.Log.With("part", "dataplane")
	applier, err := routes.New(routes.Options{InterfacePrefixes: []string{o.InterfacePrefix}, Logger: log})
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
	return &tables{
		opts:    o,
		handle:  handle,
		applier: applier,
		routes:  reconcile.NewTable(applier, reconcile.Options[desired.RouteKey]{Name: "routes", Logger: log, Compare: desired.RouteKey.Compare}),
		sysctls: reconcile.NewTable(values, reconcile.Options[string]{Name: "sysctls", Logger: log, Resync: sysctlResync}),
		local:   map[netip.Addr]bool{},
	}, nil
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
	defer t.applier.Close()
	defer t.handle.Close()
	return g.Wait()
}

// watch marks tables dirty as the kernel reports changes, and hands the links
// on whenever one of the underlay's or an address of it changes. A burst of
// changes is listed once.
func (t *tables) watch(ctx context.Context, changed func([]autodetect.Interface)) error {
	list := make(chan struct{}, 1)
	kick(list)
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
			}
			t.sysctls.Dirty()
			if !strings.HasPrefix(e.Interface, t.opts.InterfacePrefix) {
				kick(list)
			}
		})
	})
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-list:
			}
			found, err := t.links()
			if err != nil {
				t.opts.Log.Error("the host's interfaces cannot be listed", "err", err)
				continue
			}
			changed(found)
		}
	})
	return g.Wait()
}

func (t *tables) links() ([]autodetect.Interface, error) {
	found, err := listLinks(t.handle)
	if err != nil {
		return nil, err
	}
	local := map[netip.Addr]bool{}
	for _, l := range found {
		for _, p := range l.Addrs {
			local[p.Addr()] = true
		}
	}
	t.mu.Lock()
	t.local = local
	t.mu.Unlock()
	return found, nil
}

// listLinks never returns nil without an error, which a batch would read as
// unchanged.
func listLinks(h *netlink.Handle) ([]autodetect.Interface, error) {
	all, err := links.List(h)
	if err != nil {
		return nil, err
	}
	return detectable(all), nil
}

// detectable is the part of the links that address detection looks at.
func detectable(all []links.Interface) []autodetect.Interface {
	out := make([]autodetect.Interface, 0, len(all))
	for _, l := range all {
		out = append(out, autodetect.Interface{Name: l.Name, Up: l.Up, Addrs: l.Addrs})
	}
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
	return []agentapi.Table{tableReport("routes", t.routes.Status()), tableReport("sysctls", t.sysctls.Status())}
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
