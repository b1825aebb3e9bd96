package ctl

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/endpoint"
	"github.com/manekinet/maneki/explain"
	"github.com/manekinet/maneki/policy"
)

// view is the whole datastore as the agents calculate from it, read once. It
// runs their calculation for any host.
type view struct {
	events    []datastore.Event
	workloads []*api.WorkloadEndpoint
	nodes     []*api.Node
	pools     []*api.IPPool
}

// loadView reads everything that the agents follow.
func loadView(ctx context.Context, store datastore.Store) (*view, error) {
	v := &view{}
	for _, q := range calc.Queries() {
		entries, _, err := store.List(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			v.add(e)
		}
	}
	return v, nil
}

// add keeps an entry, and what the view itself looks at. What cannot be decoded
// is the calculation's to report.
func (v *view) add(e datastore.Entry) {
	v.events = append(v.events, datastore.Event{Type: datastore.EventPut, Entry: e})
	switch e.Key.Kind {
	case "WorkloadEndpoint":
		v.workloads = appendDecoded(v.workloads, e)
	case "Node":
		v.nodes = appendDecoded(v.nodes, e)
	case "IPPool":
		v.pools = appendDecoded(v.pools, e)
	}
}

func appendDecoded[T any, P datastore.Ptr[T]](list []P, e datastore.Entry) []P {
	o, err := datastore.For[T, P](nil).Decode(e)
	if err != nil {
		return list
	}
	return append(list, o)
}

// network is what an explanation between these hosts needs.
func (v *view) network(nodes ...string) explain.Network {
	n := explain.Network{Hosts: map[string]*policy.State{}, Addresses: map[string][]netip.Addr{}}
	for _, name := range nodes {
		if name != "" && n.Hosts[name] == nil {
			n.Hosts[name] = v.state(name).Policy
		}
	}
	for _, node := range v.nodes {
		n.Addresses[node.Name] = nodeAddrs(node)
	}
	for _, p := range v.pools {
		if cidr, err := netip.ParsePrefix(p.Spec.CIDR); err == nil {
			n.Pools = append(n.Pools, cidr)
			if p.Spec.NATOutgoing {
				n.NATOutgoing = append(n.NATOutgoing, cidr)
			}
		}
	}
	return n
}

// state runs a host's calculation.
func (v *view) state(node string) calc.State {
	core := calc.New(calc.Options{Node: node, InterfacePrefix: "cali", Remote: true})
	return core.Apply(calc.Batch{Events: v.events})
}

// nodeAddrs are the addresses of a host's BGP configuration.
func nodeAddrs(n *api.Node) []netip.Addr {
	if n.Spec.BGP == nil {
		return nil
	}
	var out []netip.Addr
	for _, text := range []string{n.Spec.BGP.IPv4Address, n.Spec.BGP.IPv6Address} {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p.Addr())
		} else if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// find returns what a word means, once for each of its addresses.
func (v *view) find(word, namespace string) ([]explain.Party, error) {
	if a, err := netip.ParseAddr(word); err == nil {
		return []explain.Party{v.owner(a)}, nil
	}
	var found []*api.WorkloadEndpoint
	for _, w := range v.workloads {
		if names(w, word, namespace) {
			found = append(found, w)
		}
	}
	for _, n := range v.nodes {
		if n.Name == word {
			if len(found) > 0 {
				return nil, fmt.Errorf("%q is a host and the workload %s: write %s", word, workloadName(found[0]), workloadName(found[0]))
			}
			return hostParties(n), nil
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%q is no workload, host or address that the datastore knows", word)
	case 1:
		return workloadParties(found[0]), nil
	}
	var all []string
	for _, w := range found {
		all = append(all, w.Namespace+"/"+w.Name)
	}
	slices.Sort(all)
	return nil, fmt.Errorf("%q may be %s: write one of these", word, strings.Join(all, " or "))
}

// minIDPrefix is how much of a container's ID must be given: as much as docker ps
// prints.
const minIDPrefix = 12

// names reports whether a word is what somebody calls a workload.
func names(w *api.WorkloadEndpoint, word, namespace string) bool {
	if ns, name, qualified := strings.Cut(word, "/"); qualified {
		return ns == w.Namespace && names(w, name, "")
	}
	if namespace != "" && namespace != w.Namespace {
		return false
	}
	s := &w.Spec
	return word == w.Name || word == s.Pod || word == s.ContainerID || word == s.Workload && word != libnetwork ||
		slices.Contains(dockerNames(w), word) || len(word) >= minIDPrefix && strings.HasPrefix(s.ContainerID, word)
}

// libnetwork is the workload of every Docker container (spec/calico.md §1.5).
const libnetwork = "libnetwork"

func dockerNames(w *api.WorkloadEndpoint) []string {
	return strings.Split(w.Annotations[endpoint.AnnotationDockerNames], ",")
}

// workloadName is the shortest name that people use.
func workloadName(w *api.WorkloadEndpoint) string {
	s := &w.Spec
	name := w.Name
	switch {
	case dockerNames(w)[0] != "":
		name = dockerNames(w)[0]
	case s.Pod != "":
		name = s.Pod
	case s.Workload != "" && s.Workload != libnetwork:
		name = s.Workload
	case s.ContainerID != "":
		name = s.ContainerID[:min(minIDPrefix, len(s.ContainerID))]
	}
	return w.Namespace + "/" + name
}

// nameOf is what people call an endpoint.
func (v *view) nameOf(key desired.EndpointKey) string {
	for _, w := range v.workloads {
		if w.Namespace == key.Namespace && w.Name == key.Name {
			return workloadName(w)
		}
	}
	return strings.TrimPrefix(key.String(), "/")
}

func workloadParties(w *api.WorkloadEndpoint) []explain.Party {
	var out []explain.Party
	for _, text := range w.Spec.IPNetworks {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, explain.Party{
				Kind: explain.Workload, Name: workloadName(w), Node: w.Spec.Node, Addr: p.Addr(),
				Key: desired.EndpointKey{Namespace: w.Namespace, Name: w.Name},
			})
		}
	}
	return out
}

func hostParties(n *api.Node) []explain.Party {
	var out []explain.Party
	for _, a := range nodeAddrs(n) {
		out = append(out, explain.Party{Kind: explain.Host, Name: n.Name, Node: n.Name, Addr: a})
	}
	return out
}

// owner is whose address it is.
func (v *view) owner(a netip.Addr) explain.Party {
	for _, w := range v.workloads {
		for _, p := range workloadParties(w) {
			if p.Addr == a {
				return p
			}
		}
	}
	for _, n := range v.nodes {
		for _, p := range hostParties(n) {
			if p.Addr == a {
				return p
			}
		}
	}
	return explain.Party{Kind: explain.Outside, Name: a.String(), Addr: a}
}
