package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/ipam"
)

// GarbageName is the loop's name in reports.
const GarbageName = "ipam-gc"

// The rule of two observations (spec/calico.md §3, "GC").
const (
	defaultGrace = 15 * time.Minute // how long an address must look leaked
	usualScan    = 5 * time.Minute  // between two scans; half the grace when that is more
	leastScan    = time.Second
	settingsSeen = 10 * time.Second // how late a change of the settings counts
)

// Garbage gives back addresses that nobody will: those of a node that does not
// exist, which no workload endpoint holds. It runs where
// KubeControllersConfiguration default has a node controller, whose
// leakGracePeriod and reconcilerPeriod it obeys. An address must look leaked
// twice, the grace apart; all addresses of a handle go together or not at all.
type Garbage struct {
	Store datastore.Store
	IPAM  *ipam.Client
	Log   *slog.Logger

	leaks map[leak]time.Time   // when first seen
	gone  map[string]time.Time // nodes without a Node that still claim blocks, when first seen
}

// leak is one allocation: the same address given out again is another one.
type leak struct {
	addr     netip.Addr
	handle   string
	sequence uint64
}

var _ Loop = (*Garbage)(nil)

// Name implements Loop.
func (g *Garbage) Name() string { return GarbageName }

// Run implements Loop.
func (g *Garbage) Run(ctx context.Context, report func(string)) error {
	g.leaks, g.gone = map[leak]time.Time{}, map[string]time.Time{}
	for last := (time.Time{}); ; {
		times, err := g.times(ctx)
		switch {
		case err != nil:
			report("the settings cannot be read: " + err.Error())
		case times.Grace == 0:
			report("off: leakGracePeriod is 0")
		case time.Since(last) >= times.Scan:
			last = time.Now()
			text, err := g.scan(ctx, times.Grace, last)
			if err != nil {
				text = "the scan failed: " + err.Error()
			}
			report(text)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		sleep(ctx, min(times.Scan, settingsSeen))
	}
}

// times are the configured ones; no grace when the controller is off.
func (g *Garbage) times(ctx context.Context) (GarbageTimes, error) {
	c, err := datastore.For[api.KubeControllersConfiguration](g.Store).Get(ctx, "", "default")
	if errors.Is(err, datastore.ErrNotFound) {
		return GarbageTimes{Scan: usualScan}, nil
	}
	if err != nil {
		return GarbageTimes{Scan: usualScan}, err
	}
	return TimesOfGarbage(c), nil
}

// GarbageTimes say when leaked addresses are given back.
type GarbageTimes struct {
	Grace time.Duration // how long an address must look leaked; 0 keeps leaked addresses
	Scan  time.Duration // between two looks
}

// TimesOfGarbage are leakGracePeriod, 15 minutes when it is absent, and
// reconcilerPeriod, but at least a second; where that is absent a look is made
// every half of the grace period, and every 5 minutes if that is longer
// (spec/calico.md §3).
func TimesOfGarbage(c *api.KubeControllersConfiguration) GarbageTimes {
	out := GarbageTimes{Scan: usualScan}
	node := c.Spec.Controllers.Node
	if node == nil {
		return out
	}
	out.Grace = defaultGrace
	if node.LeakGracePeriod != nil {
		out.Grace = node.LeakGracePeriod.Std()
	}
	out.Scan = max(out.Grace/2, usualScan)
	if node.ReconcilerPeriod != nil {
		out.Scan = max(node.ReconcilerPeriod.Std(), leastScan)
	}
	return out
}

// picture is what a scan sees.
type picture struct {
	nodes  map[string]bool
	held   map[netip.Addr]bool // by workload endpoints
	blocks []ipam.Block
}

// look reads the endpoints before the blocks: an address that is given out
// meanwhile is then of a node, and nodes are read last.
func (g *Garbage) look(ctx context.Context) (picture, error) {
	p := picture{nodes: map[string]bool{}, held: map[netip.Addr]bool{}}
	endpoints, _, bad, err := datastore.For[api.WorkloadEndpoint](g.Store).List(ctx, "")
	if err == nil && len(bad) > 0 {
		err = fmt.Errorf("%d workload endpoints cannot be read: %w", len(bad), bad[0])
	}
	if err != nil {
		return p, err
	}
	for _, w := range endpoints {
		for _, text := range w.Spec.IPNetworks {
			if net, err := netip.ParsePrefix(text); err == nil {
				p.held[net.Addr()] = true
			}
		}
	}
	if p.blocks, _, err = g.IPAM.Blocks(ctx); err != nil {
		return p, err
	}
	entries, _, err := g.Store.List(ctx, datastore.Query{Kind: "Node"})
	for _, e := range entries { // a Node that cannot be read is a node nevertheless
		p.nodes[e.Key.Name] = true
	}
	return p, err
}

// leaked returns the allocations of nodes that do not exist and that no endpoint
// holds. A handle with one address that is not leaked keeps all.
func (p picture) leaked() map[string][]ipam.Allocation {
	out, kept := map[string][]ipam.Allocation{}, map[string]bool{}
	for _, b := range p.blocks {
		for _, a := range b.Allocations {
			if a.Handle == "" || a.Node == "" || p.nodes[a.Node] || p.held[a.Addr] {
				kept[a.Handle] = true
				continue
			}
			out[a.Handle] = append(out[a.Handle], a)
		}
	}
	maps.DeleteFunc(out, func(handle string, _ []ipam.Allocation) bool { return kept[handle] })
	return out
}

// abandoned returns the nodes that do not exist, claim blocks, and have no
// address in any.
func (p picture) abandoned() []string {
	claims, uses := map[string]bool{}, map[string]bool{}
	for _, b := range p.blocks {
		if node, ok := strings.CutPrefix(b.Affinity, "host:"); ok && !p.nodes[node] {
			claims[node] = true
		}
		for _, a := range b.Allocations {
			uses[a.Node] = true
		}
	}
	maps.DeleteFunc(claims, func(node string, _ bool) bool { return uses[node] })
	return slices.Sorted(maps.Keys(claims))
}

// scan looks once, and gives back what has looked leaked for the grace period.
func (g *Garbage) scan(ctx context.Context, grace time.Duration, now time.Time) (string, error) {
	p, err := g.look(ctx)
	if err != nil {
		return "", err
	}
	leaked := p.leaked()
	seen := map[leak]time.Time{}
	candidates, released := 0, 0
	var errs []error
	for _, handle := range slices.Sorted(maps.Keys(leaked)) {
		ripe := true
		for _, a := range leaked[handle] {
			k := leak{a.Addr, a.Handle, a.Sequence}
			first, known := g.leaks[k]
			if !known {
				first = now
			}
			seen[k] = first
			ripe = ripe && known && now.Sub(first) >= grace
		}
		if !ripe {
			candidates += len(leaked[handle])
			continue
		}
		n, err := g.release(ctx, leaked[handle])
		released += n
		errs = append(errs, err)
	}
	g.leaks = seen
	claims, err := g.disclaim(ctx, p, grace, now)
	text := fmt.Sprintf("%d addresses look leaked, %d given back; blocks of %d nodes that are gone given back", candidates, released, claims)
	return text, errors.Join(append(errs, err)...)
}

// release gives back one handle's addresses, if they are still leaked: whoever
// came meanwhile keeps what he has.
func (g *Garbage) release(ctx context.Context, list []ipam.Allocation) (int, error) {
	p, err := g.look(ctx)
	if err != nil {
		return 0, err
	}
	if len(p.leaked()[list[0].Handle]) != len(list) {
		return 0, nil
	}
	var opts []ipam.ReleaseOptions
	for _, a := range list {
		opts = append(opts, ipam.ReleaseOptions{Addr: a.Addr, Handle: a.Handle, Sequence: a.Sequence})
	}
	_, err = g.IPAM.ReleaseExactly(ctx, opts...)
	if errors.Is(err, ipam.ErrStale) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("release %s: %w", list[0].Handle, err)
	}
	for _, a := range list {
		g.Log.Info("gave back a leaked address", "addr", a.Addr, "handle", a.Handle, "node", a.Node)
	}
	return len(list), nil
}

// disclaim gives back the blocks of nodes that are gone and use no address.
func (g *Garbage) disclaim(ctx context.Context, p picture, grace time.Duration, now time.Time) (int, error) {
	seen, n := map[string]time.Time{}, 0
	var errs []error
	for _, node := range p.abandoned() {
		first, known := g.gone[node]
		if !known || now.Sub(first) < grace {
			seen[node] = now
			if known {
				seen[node] = first
			}
			continue
		}
		_, err := g.Store.Get(ctx, datastore.Key{Kind: "Node", Name: node})
		if errors.Is(err, datastore.ErrNotFound) {
			err = g.IPAM.ReleaseHost(ctx, node)
			n++
		}
		errs = append(errs, err)
	}
	g.gone = seen
	return n, errors.Join(errs...)
}
