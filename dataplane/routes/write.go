package routes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/reconcile"
)

// Entry is one route for Apply.
type Entry = reconcile.Entry[desired.RouteKey, desired.Route]

// Put creates a route or replaces ours of the same key, without a moment in which there is none. Key and route must be
// in normal form (desired.RouteKey.Normal, desired.Route.Normal).
func (a *Applier) Put(ctx context.Context, k desired.RouteKey, v desired.Route) error {
	return a.Apply(ctx, []Entry{{Key: k, Value: v}}, nil)[k]
}

// Delete removes our route of that key. One that is gone already is no error, and routes of others stay.
func (a *Applier) Delete(ctx context.Context, k desired.RouteKey) error {
	return a.Apply(ctx, nil, []desired.RouteKey{k})[k]
}

// Apply puts, then deletes. When a workload's address leaves its interface, the connections that the kernel remembers
// for the address are forgotten: they belong to a workload that is gone (spec/calico.md §5.5).
func (a *Applier) Apply(ctx context.Context, puts []Entry, dels []desired.RouteKey) map[desired.RouteKey]error {
	errs := map[desired.RouteKey]error{}
	var gone []netip.Addr
	a.forget(ctx, a.leaving(puts)) // before the new workload's first packet
	for _, e := range puts {
		if err := a.do(ctx, func() error { return a.put(e.Key, e.Value) }); err != nil {
			errs[e.Key] = err
		}
	}
	for _, k := range dels {
		if addr, ok := a.workloadAddr(k); ok {
			gone = append(gone, addr)
		}
		if err := a.do(ctx, func() error { return a.delete(k) }); err != nil {
			errs[k] = err
		}
	}
	a.forget(ctx, gone) // after the last packet
	return errs
}

// do runs one exchange with the kernel. The lock is released between exchanges, for Watch.
func (a *Applier) do(ctx context.Context, f func() error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.handle == nil {
		return errClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return f()
}

func (a *Applier) put(k desired.RouteKey, v desired.Route) error {
	err := a.write(k, v)
	if err != nil {
		a.failing[k] = time.Now()
		return err
	}
	delete(a.failing, k)
	delete(a.occupied, k)
	return nil
}

func (a *Applier) write(k desired.RouteKey, v desired.Route) error {
	if err := v.Validate(k); err != nil {
		return err
	}
	if n := v.Normal(k.Dst); n != v {
		return fmt.Errorf("route %q is not normal: must be %q", v.Line(k), n.Line(k))
	}
	stale, replace, err := a.inTheWay(k)
	if err != nil {
		return err
	}
	r, err := a.create(k, v, replace)
	if err != nil {
		return err
	}
	a.held[k] = []netlink.Route{*r}
	for _, old := range stale {
		if err := a.remove(old); err != nil {
			a.held[k] = append(a.held[k], old)
			return fmt.Errorf("delete second route: %w", err)
		}
	}
	return nil
}

// devices are the interfaces that a route names.
func devices(v desired.Route) []string {
	if v.Type == desired.Local {
		return []string{loopback}
	}
	var out []string
	for _, h := range v.Hops() {
		out = append(out, h.Dev)
	}
	return out
}

// create resolves the interfaces and writes the route.
func (a *Applier) create(k desired.RouteKey, v desired.Route, replace bool) (*netlink.Route, error) {
	var err error
	for _, ask := range [...]bool{false, true} {
		index := map[string]int{}
		for _, dev := range devices(v) {
			if index[dev], err = a.links.index(a.handle, dev, ask); err != nil {
				return nil, err
			}
		}
		r := kernelRoute(k, v, index)
		// The interface may have been made anew under the same name.
		if err = a.send(r, replace); !errors.Is(err, unix.ENODEV) {
			return r, err
		}
	}
	return nil, err
}

// send adds the route, or replaces the first of the same key. Adding must not replace: the kernel would overwrite
// whatever has the same destination and priority, whoever wrote it.
func (a *Applier) send(r *netlink.Route, replace bool) error {
	if replace {
		if err := a.handle.RouteReplace(r); err != nil {
			return fmt.Errorf("replace route: %w", err)
		}
		return nil
	}
	err := a.handle.RouteAdd(r)
	if errors.Is(err, unix.EEXIST) {
		return ErrOccupied
	}
	if err != nil {
		return fmt.Errorf("add route: %w", err)
	}
	return nil
}

// inTheWay looks at what is held under a key: whether a new route replaces one of them, and which others must go
// afterwards. Without a listing that says so, the key is taken to be free; create finds out.
func (a *Applier) inTheWay(k desired.RouteKey) (stale []netlink.Route, replace bool, err error) {
	if _, ok := a.occupied[k]; ok {
		return nil, false, ErrOccupied
	}
	for _, r := range a.held[k] {
		// The kernel replaces the first route of the same destination, priority and type of service; ours has none.
		if !replace && r.Tos == 0 {
			replace = true
			continue
		}
		stale = append(stale, r)
	}
	return stale, replace, nil
}

func (a *Applier) delete(k desired.RouteKey) error {
	for len(a.held[k]) > 0 {
		if err := a.remove(a.held[k][0]); err != nil {
			return fmt.Errorf("delete route: %w", err)
		}
		a.held[k] = a.held[k][1:]
	}
	delete(a.held, k)
	delete(a.failing, k)
	return nil
}

// remove deletes exactly this route. Protocol, next hop and scope are part of the request: destination and priority
// alone might hit a route of somebody else.
func (a *Applier) remove(r netlink.Route) error {
	err := a.handle.RouteDel(&r)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) {
		return nil // gone, perhaps together with its interface
	}
	return err
}
