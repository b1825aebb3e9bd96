package trace

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/autodetect"
	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/desired"
)

// Cluster is what the datastore says about all hosts.
type Cluster struct {
	Entries []datastore.Entry `json:"entries"` // everything that the calculation follows
	nodes   map[string]*api.Node
	weps    []*api.WorkloadEndpoint
}

// Read takes the state of the datastore.
func Read(ctx context.Context, store datastore.Store) (*Cluster, error) {
	c := &Cluster{}
	for _, q := range calc.Queries() {
		entries, _, err := store.List(ctx, q)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", q.Kind, err)
		}
		c.Entries = append(c.Entries, entries...)
	}
	c.Index()
	return c, nil
}

// Index prepares a cluster whose entries were filled in. Entries that cannot be
// read are left out, as the agent leaves them out.
func (c *Cluster) Index() {
	c.nodes, c.weps = map[string]*api.Node{}, nil
	for _, e := range c.Entries {
		switch e.Key.Kind {
		case "Node":
			if n, err := datastore.For[api.Node](nil).Decode(e); err == nil {
				c.nodes[n.Name] = n
			}
		case "WorkloadEndpoint":
			if w, err := datastore.For[api.WorkloadEndpoint](nil).Decode(e); err == nil {
				c.weps = append(c.weps, w)
			}
		}
	}
}

// state is what the agent of a host computes, with these interfaces and these
// learnt routes.
func (c *Cluster) state(node string, links []autodetect.Interface, mtu int, learnt map[netip.Prefix]bgp.Path) calc.State {
	events := make([]datastore.Event, len(c.Entries))
	for i, e := range c.Entries {
		events[i] = datastore.Event{Type: datastore.EventPut, Entry: e}
	}
	return calc.New(calc.Options{Node: node, InterfacePrefix: "cali"}).Apply(calc.Batch{Events: events, Links: links, MTU: mtu, Learnt: learnt})
}

// View is a host as it should be, for packets to dst. real are the host's
// interfaces where they are known; elsewhere one interface stands for them that
// has the Node's addresses. Routes that BGP brings are taken from what the owner
// of dst announces.
func (c *Cluster) View(node string, real []Link, dst netip.Addr) (*View, error) {
	n := c.nodes[node]
	if n == nil {
		return nil, fmt.Errorf("the datastore has no Node %s", node)
	}
	links := c.links(n, real)
	s := c.state(node, detectable(links), mtuOf(real), c.learnt(node, dst))
	v := &View{Name: node, Kind: Host, Seen: Datastore, Links: links}
	for name, t := range s.Tunnels {
		link := Link{
			Name: name, Type: "vxlan", Up: true, Carrier: true, MTU: t.MTU, MAC: t.MAC, VNI: t.VNI, Port: t.Port, Local: t.Local,
		}
		if t.Encap == desired.EncapIPIP {
			link.Type = "ipip"
		}
		for _, a := range t.Addrs.Addrs() {
			link.Addrs = append(link.Addrs, netip.PrefixFrom(a, a.BitLen()))
		}
		v.Links = slices.DeleteFunc(v.Links, func(l Link) bool { return l.Name == name })
		v.Links = append(v.Links, link)
	}
	for k, mac := range s.Neighbours {
		v.Neighbours = append(v.Neighbours, Neighbour{Dev: k.Dev, Addr: k.Addr, MAC: mac, State: "PERMANENT"})
	}
	for k, host := range s.FDB {
		v.FDB = append(v.FDB, FDBEntry{Dev: k.Dev, MAC: k.MAC, Dst: host})
	}
	for _, k := range s.Routes.Keys() {
		r := s.Routes[k]
		v.Routes = append(v.Routes, wantedRoute(k, r))
	}
	v.Routes = append(v.Routes, connected(links)...)
	return v, nil
}

func wantedRoute(k desired.RouteKey, r desired.Route) Route {
	out := Route{
		Dst: k.Dst, Type: Unicast, Gateway: r.Gateway, Dev: r.Dev, Onlink: r.Onlink, Table: k.Table, Priority: int(k.Priority), MTU: r.MTU,
		Line: r.Line(k),
	}
	if hops := r.Hops(); len(hops) > 1 {
		out.Gateway, out.Dev = hops[0].Gateway, hops[0].Dev
		for _, h := range hops {
			out.Ways += way(h.Gateway, h.Dev, 1, 0) + "\n"
		}
	}
	switch r.Type {
	case desired.Blackhole:
		out.Type = Blackhole
	case desired.Local:
		out.Type = Local
	}
	return out
}

// connected are the routes that the kernel makes for the subnets, and a default
// route by the same interface: hosts of other subnets are reached somehow.
func connected(links []Link) []Route {
	var out []Route
	for _, l := range links {
		for _, p := range l.Addrs {
			if p.IsSingleIP() || p.Addr().IsLoopback() {
				continue
			}
			out = append(out,
				Route{Dst: p.Masked(), Type: Unicast, Dev: l.Name, Table: tableMain, Line: fmt.Sprintf("%s dev %s proto kernel", p.Masked(), l.Name)},
				Route{
					Dst: netip.PrefixFrom(p.Addr(), 0).Masked(), Type: Unicast, Dev: l.Name, Table: tableMain, Priority: 1 << 20,
					Line: "default dev " + l.Name,
				})
		}
	}
	return out
}

// links are the interfaces of a host: the real ones, or what the datastore lets
// one think of, and in both cases those of its workloads.
func (c *Cluster) links(n *api.Node, real []Link) []Link {
	out := slices.Clone(real)
	if len(real) == 0 {
		under := Link{Name: "its-interface", Type: "device", Up: true, Carrier: true}
		for _, family := range []int{4, 6} {
			if p, ok := n.BGPAddr(family); ok {
				under.Addrs = append(under.Addrs, p)
			}
		}
		out = append(out, Link{Name: "lo", Type: "loopback", Up: true, Carrier: true}, under)
	}
	for _, w := range c.weps {
		if w.Spec.Node == n.Name && !slices.ContainsFunc(out, func(l Link) bool { return l.Name == w.Spec.InterfaceName }) {
			out = append(out, Link{Name: w.Spec.InterfaceName, Type: "veth", Up: true, Carrier: true, ProxyARP: true})
		}
	}
	return out
}

func detectable(links []Link) []autodetect.Interface {
	out := make([]autodetect.Interface, 0, len(links))
	for _, l := range links {
		out = append(out, autodetect.Interface{Name: l.Name, Up: l.Up, Addrs: l.Addrs})
	}
	return out
}

// mtuOf is the MTU of a host's underlay as far as its interfaces are known.
func mtuOf(links []Link) int {
	mtu := 0
	for _, l := range links {
		if strings.HasPrefix(l.Name, "e") && l.Up && (mtu == 0 || l.MTU < mtu) {
			mtu = l.MTU
		}
	}
	return mtu
}

// learnt is what BGP brings a host about a destination: the routes that the
// host announces which has it, if every session is up.
func (c *Cluster) learnt(node string, dst netip.Addr) map[netip.Prefix]bgp.Path {
	out := map[netip.Prefix]bgp.Path{}
	for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
		n := c.nodes[name]
		if name == node || !c.has(name, dst) {
			continue
		}
		family := 4
		if dst.Is6() {
			family = 6
		}
		hop, ok := n.BGPAddr(family)
		if !ok {
			continue
		}
		for prefix := range c.state(name, detectable(c.links(n, nil)), 0, nil).BGP.Announce {
			out[prefix] = bgp.Path{Prefix: prefix, NextHop: hop.Addr(), Peer: hop.Addr()}
		}
	}
	return out
}

// has reports whether a host has a block or a workload with the address.
func (c *Cluster) has(node string, dst netip.Addr) bool {
	for _, e := range c.Entries {
		if e.Key.Kind != datastore.KindBlockAffinity || e.Key.Namespace != "host:"+node {
			continue
		}
		if cidr, err := netip.ParsePrefix(e.Key.Name); err == nil && cidr.Contains(dst) {
			return true
		}
	}
	return slices.ContainsFunc(c.weps, func(w *api.WorkloadEndpoint) bool {
		return w.Spec.Node == node && slices.ContainsFunc(w.Spec.IPNetworks, func(s string) bool { return strings.HasPrefix(s, dst.String()+"/") })
	})
}
