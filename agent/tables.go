package agent

import (
	"context"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sync/errgroup"

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

	mu    sync.Mutex
	local map[netip.Addr]bool // addresses of the host itself
}

func newTables(o Options) (*tables, error) {
	log := o.Log.With("part", "dataplane")
	applier, err := routes.New(routes.Options{InterfacePrefix: o.InterfacePrefix, Log: log})
	if err != nil {
		return nil, fmt.Errorf("open route table: %w", err)
	}
	return &tables{
		opts:    o,
		applier: applier,
		routes:  reconcile.NewTable(applier, reconcile.Options[desired.RouteKey]{Name: "routes", Logger: log, Compare: desired.RouteKey.Compare}),
		sysctls: reconcile.NewTable(sysctl.New(log), reconcile.Options[string]{Name: "sysctls", Logger: log}),
		local:   map[netip.Addr]bool{},
	}, nil
}

func (t *tables) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return t.routes.Run(ctx) })
	g.Go(func() error { return t.sysctls.Run(ctx) })
	defer t.applier.Close()
	return g.Wait()
}

// watch marks tables dirty as the kernel reports changes and hands the links on
// whenever one of them or an address changes.
func (t *tables) watch(ctx context.Context, changed func([]autodetect.Interface)) error {
	notify := func() {
		found, err := t.links()
		if err != nil {
			t.opts.Log.Error("the host's interfaces cannot be listed", "err", err)
			return
		}
		changed(found)
	}
	w, err := routes.Watch(routes.WatchOptions{Log: t.opts.Log}, func(kind routes.Kind) {
		t.routes.Dirty()
		if kind != routes.KindRoute {
			t.sysctls.Dirty()
			notify()
		}
	})
	if err != nil {
		return fmt.Errorf("watch the kernel's routes: %w", err)
	}
	notify()
	return w.Run(ctx)
}

func (t *tables) links() ([]autodetect.Interface, error) {
	found, err := listLinks()
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
func listLinks() ([]autodetect.Interface, error) {
	all, err := links.List()
	if err != nil {
		return nil, err
	}
	out := make([]autodetect.Interface, 0, len(all))
	for _, l := range all {
		out = append(out, autodetect.Interface{Name: l.Name, Up: l.Up, Addrs: l.Addrs})
	}
	return out, nil
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
