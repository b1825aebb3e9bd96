package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/manekinet/maneki/trace"
)

// Trace follows a packet between two members (containers, hosts, routers) or
// addresses by looking into every namespace on the way. What a host should have
// is taken from the datastore, when a host of the lab can ask it.
func (l *Lab) Trace(ctx context.Context, a, b string, o trace.Options) (trace.Report, error) {
	if os.Geteuid() != 0 {
		return trace.Report{}, fmt.Errorf("%w: run it with sudo", ErrNotRoot)
	}
	w := &traceWorld{lab: l, containers: l.Containers(), views: map[string]*trace.View{}}
	defer w.close()
	from, to, err := w.ends(a, b)
	if err != nil {
		return trace.Report{}, err
	}
	w.cluster = l.cluster(ctx)
	return trace.Run(w, from, to, o), nil
}

// cluster asks hosts for the datastore's state, one after the other; nil when
// none reaches it.
func (l *Lab) cluster(ctx context.Context) *trace.Cluster {
	for _, h := range l.plan.Hosts {
		out, err := l.Output(ctx, h.Name, nil, "maneki", "trace", "--entries")
		if err != nil {
			continue
		}
		c := &trace.Cluster{}
		if json.NewDecoder(bytes.NewReader([]byte(out))).Decode(c) == nil {
			c.Index()
			return c
		}
	}
	return nil
}

// traceWorld is the lab as a world to walk through.
type traceWorld struct {
	lab        *Lab
	cluster    *trace.Cluster
	containers []ContainerStatus
	views      map[string]*trace.View
}

func (w *traceWorld) close() {
	for _, v := range w.views {
		v.Close()
	}
}

// Agent implements trace.World.
func (w *traceWorld) Agent(host string) string {
	if readPID(w.lab.path(host, "agent.pid")).Alive() {
		return trace.AgentRuns
	}
	return trace.AgentGone
}

// View implements trace.World.
func (w *traceWorld) View(name string) (*trace.View, error) {
	if v := w.views[name]; v != nil {
		return v, nil
	}
	s, err := w.lab.enter(name)
	if err != nil {
		return nil, err
	}
	var v *trace.View
	err = s.do(func() (err error) {
		v, err = trace.Look(name, w.kind(name))
		return err
	})
	if err != nil {
		return nil, err
	}
	w.views[name] = v
	return v, nil
}

func (w *traceWorld) kind(name string) trace.Kind {
	switch {
	case slices.ContainsFunc(w.containers, func(c ContainerStatus) bool { return c.Name == name }):
		return trace.Container
	case slices.ContainsFunc(w.lab.plan.Routers, func(n NodePlan) bool { return n.Name == name }):
		return trace.Router
	case slices.ContainsFunc(w.lab.plan.Switches, func(s SwitchPlan) bool { return s.Subnet == name }):
		return trace.Switch
	}
	return trace.Host
}

// Wanted implements trace.World.
func (w *traceWorld) Wanted(at *trace.View, dst netip.Addr) *trace.View {
	if w.cluster == nil {
		return nil
	}
	v, err := w.cluster.View(at.Name, at.Links, dst)
	if err != nil {
		return nil
	}
	return v
}

// Across implements trace.World.
func (w *traceWorld) Across(from *trace.View, out trace.Link, next, _ netip.Addr) (trace.Crossing, error) {
	switch from.Kind {
	case trace.Container:
		return w.toHost(from, out)
	case trace.Switch:
		return w.onSubnet(from.Name, next)
	case trace.Host:
		if c, ok := w.toContainer(from, out); ok {
			return c, nil
		}
	}
	subnet := w.subnetOf(from.Name, out.Name)
	if subnet == "" {
		return trace.Crossing{}, fmt.Errorf("interface %s of %s leads to no member of the lab", out.Name, from.Name)
	}
	c, err := w.onSubnet(subnet, next)
	if err != nil {
		return c, err
	}
	c.Bridge, err = w.bridge(subnet, from.Name, c.To)
	return c, err
}

// bridge is the switch with the ports of two members; a packet for the switch
// itself leaves by its bridge.
func (w *traceWorld) bridge(subnet, in, out string) (*trace.Bridge, error) {
	v, err := w.View(subnet)
	if err != nil {
		return nil, err
	}
	if out == subnet {
		out = bridgeName
	}
	b := &trace.Bridge{Name: subnet}
	var ok1, ok2 bool
	b.In, ok1 = v.Link(in)
	b.Out, ok2 = v.Link(out)
	if !ok1 || !ok2 {
		return nil, fmt.Errorf("the switch of %s lacks the port %s or %s", subnet, in, out)
	}
	return b, nil
}

func (w *traceWorld) toHost(from *trace.View, out trace.Link) (trace.Crossing, error) {
	i := slices.IndexFunc(w.containers, func(c ContainerStatus) bool { return c.Name == from.Name })
	host, err := w.View(w.containers[i].Host)
	if err != nil {
		return trace.Crossing{}, err
	}
	for _, l := range host.Links {
		if l.Index == out.Peer && l.Peer == out.Index {
			return trace.Crossing{To: host.Name, Dev: l.Name}, nil
		}
	}
	return trace.Crossing{}, fmt.Errorf("the other end of %s is not on host %s", out.Name, host.Name)
}

func (w *traceWorld) toContainer(from *trace.View, out trace.Link) (trace.Crossing, bool) {
	for _, c := range w.containers {
		if c.Host != from.Name || out.Peer == 0 {
			continue
		}
		v, err := w.View(c.Name)
		if err != nil {
			continue
		}
		for _, l := range v.Links {
			if l.Index == out.Peer && l.Peer == out.Index {
				return trace.Crossing{To: c.Name, Dev: l.Name}, true
			}
		}
	}
	return trace.Crossing{}, false
}

func (w *traceWorld) subnetOf(member, dev string) string {
	for _, n := range slices.Concat(w.lab.plan.Routers, w.lab.plan.Hosts) {
		for _, p := range n.Ports {
			if n.Name == member && p.Device == dev {
				return p.Subnet
			}
		}
	}
	return ""
}

// onSubnet finds the member that has an address on a subnet, as its kernel says.
func (w *traceWorld) onSubnet(subnet string, next netip.Addr) (trace.Crossing, error) {
	for _, n := range slices.Concat(w.lab.plan.Routers, w.lab.plan.Hosts) {
		for _, p := range n.Ports {
			if p.Subnet != subnet {
				continue
			}
			if v, err := w.View(n.Name); err == nil && hasAddr(v, p.Device, next) {
				return trace.Crossing{To: n.Name, Dev: p.Device}, nil
			}
		}
	}
	if v, err := w.View(subnet); err == nil && hasAddr(v, bridgeName, next) {
		return trace.Crossing{To: subnet, Dev: bridgeName}, nil
	}
	return trace.Crossing{}, fmt.Errorf("nobody on subnet %s has %s: nobody answers for it", subnet, next)
}

func hasAddr(v *trace.View, dev string, a netip.Addr) bool {
	l, _ := v.Link(dev)
	return slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
}

// ends resolves both names to addresses of one family.
func (w *traceWorld) ends(a, b string) (from, to trace.Place, err error) {
	families := []bool{true, false}
	for _, text := range []string{a, b} {
		if addr, err := netip.ParseAddr(text); err == nil {
			families = []bool{addr.Unmap().Is4()}
		}
	}
	for _, v4 := range families {
		one, other, failed := w.pair(a, b, v4)
		if failed == nil {
			from, to, err = one, other, nil
			break
		}
		if err == nil {
			err = failed // the first says more
		}
	}
	if err == nil && from.Name == "" {
		err = classified{ErrNotFound, fmt.Sprintf("%s is no member's address: a trace starts at one of them", a)}
	}
	return from, to, err
}

func (w *traceWorld) pair(a, b string, v4 bool) (from, to trace.Place, err error) {
	if from, err = w.end(a, v4); err == nil {
		to, err = w.end(b, v4)
	}
	return from, to, err
}

func (w *traceWorld) end(text string, v4 bool) (trace.Place, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return w.holder(addr.Unmap()), nil
	}
	for _, c := range w.containers {
		for _, a := range c.Addresses {
			if c.Name == text && a.Is4() == v4 {
				return trace.Place{Name: c.Name, Host: c.Host, Kind: trace.Container, Addr: a}, nil
			}
		}
	}
	for _, n := range slices.Concat(w.lab.plan.Hosts, w.lab.plan.Routers) {
		a := n.Address4()
		if !v4 {
			a = n.Address6()
		}
		if n.Name == text && a.IsValid() {
			return trace.Place{Name: n.Name, Host: n.Name, Kind: w.kind(n.Name), Addr: a}, nil
		}
	}
	if err := w.lab.checkMember(text); err != nil {
		return trace.Place{}, err
	}
	return trace.Place{}, classified{ErrNotFound, fmt.Sprintf("%s has no address of the family", text)}
}

// holder says which member has an address; a place without a name for none.
func (w *traceWorld) holder(addr netip.Addr) trace.Place {
	for _, c := range w.containers {
		if slices.Contains(c.Addresses, addr) {
			return trace.Place{Name: c.Name, Host: c.Host, Kind: trace.Container, Addr: addr}
		}
	}
	for _, n := range slices.Concat(w.lab.plan.Hosts, w.lab.plan.Routers) {
		if v, err := w.View(n.Name); err == nil {
			if _, ok := v.Owner(addr); ok {
				return trace.Place{Name: n.Name, Host: n.Name, Kind: w.kind(n.Name), Addr: addr}
			}
		}
	}
	return trace.Place{Addr: addr}
}
