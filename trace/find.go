package trace

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
)

// NotFoundError says that a name means nothing in the cluster, or too much.
type NotFoundError struct{ text string }

// Error names what was looked for.
func (e *NotFoundError) Error() string { return e.text }

// shortID is the fewest characters of a container's ID that are taken for one.
const shortID = 6

// Find resolves the two ends of a trace: each a host, a workload (its name, pod
// NAMESPACE/POD, endpoint, container ID or host interface), or an address. Both
// get an address of the same family: the one that an address among them has,
// else IPv4, else IPv6.
func (c *Cluster) Find(a, b string) (from, to Place, err error) {
	families := []bool{true, false}
	for _, text := range []string{a, b} {
		if addr, err := netip.ParseAddr(text); err == nil {
			families = []bool{addr.Unmap().Is4()}
		}
	}
	for _, v4 := range families {
		one, other, failed := c.pair(a, b, v4)
		if failed == nil {
			from, to, err = one, other, nil
			break
		}
		if err == nil {
			err = failed // the first says more
		}
	}
	if err == nil && from.Name == "" {
		err = &NotFoundError{fmt.Sprintf("%s is no host's and no workload's address: a trace starts at one of them", a)}
	}
	return from, to, err
}

func (c *Cluster) pair(a, b string, v4 bool) (from, to Place, err error) {
	if from, err = c.find(a, v4); err == nil {
		to, err = c.find(b, v4)
	}
	return from, to, err
}

func (c *Cluster) find(text string, v4 bool) (Place, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return c.FindAddr(addr.Unmap()), nil
	}
	if n := c.nodes[text]; n != nil {
		family := map[bool]int{true: 4, false: 6}[v4]
		p, ok := n.BGPAddr(family)
		if !ok {
			return Place{}, &NotFoundError{fmt.Sprintf("host %s has no IPv%d address", text, family)}
		}
		return Place{Name: text, Host: text, Kind: Host, Addr: p.Addr()}, nil
	}
	var found []*api.WorkloadEndpoint
	for _, w := range c.weps {
		if called(w, text) {
			found = append(found, w)
		}
	}
	switch len(found) {
	case 0:
		return Place{}, &NotFoundError{fmt.Sprintf("%q is neither a host, nor a workload, nor an address; hosts: %s", text, strings.Join(slices.Sorted(maps.Keys(c.nodes)), ", "))}
	case 1:
		return place(found[0], v4)
	}
	var names []string
	for _, w := range found {
		names = append(names, w.Namespace+"/"+w.Name)
	}
	return Place{}, &NotFoundError{fmt.Sprintf("%q means several workloads: %s", text, strings.Join(names, ", "))}
}

// called reports whether a workload answers to a name.
func called(w *api.WorkloadEndpoint, text string) bool {
	s := &w.Spec
	names := []string{w.Name, w.Namespace + "/" + w.Name, s.InterfaceName}
	for _, own := range []string{s.Pod, s.Workload} {
		if own != "" {
			names = append(names, own, w.Namespace+"/"+own)
		}
	}
	return slices.Contains(names, text) || len(text) >= shortID && strings.HasPrefix(s.ContainerID, text)
}

// display is the name under which a workload appears in a trace.
func display(w *api.WorkloadEndpoint) string {
	name := w.Name
	switch {
	case w.Spec.Pod != "":
		name = w.Spec.Pod
	case w.Spec.Workload != "":
		name = w.Spec.Workload
	}
	if w.Namespace != "" && w.Namespace != "default" {
		return w.Namespace + "/" + name
	}
	return name
}

func place(w *api.WorkloadEndpoint, v4 bool) (Place, error) {
	for _, text := range w.Spec.IPNetworks {
		if p, err := netip.ParsePrefix(text); err == nil && p.Addr().Is4() == v4 {
			return Place{Name: display(w), Host: w.Spec.Node, Kind: Container, Addr: p.Addr()}, nil
		}
	}
	return Place{}, &NotFoundError{fmt.Sprintf("workload %s has no IPv%d address", display(w), map[bool]int{true: 4, false: 6}[v4])}
}

// FindAddr says who has an address; a place without a name when nobody known
// has.
func (c *Cluster) FindAddr(a netip.Addr) Place {
	if w := c.workload(func(w *api.WorkloadEndpoint) bool { return hasAddr(w, a) }); w != nil {
		return Place{Name: display(w), Host: w.Spec.Node, Kind: Container, Addr: a}
	}
	for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
		if slices.Contains(nodeAddrs(c.nodes[name]), a) {
			return Place{Name: name, Host: name, Kind: Host, Addr: a}
		}
	}
	return Place{Addr: a}
}

func (c *Cluster) workload(is func(*api.WorkloadEndpoint) bool) *api.WorkloadEndpoint {
	if i := slices.IndexFunc(c.weps, is); i >= 0 {
		return c.weps[i]
	}
	return nil
}

func hasAddr(w *api.WorkloadEndpoint, a netip.Addr) bool {
	return slices.Contains(w.Spec.IPNetworks, netip.PrefixFrom(a, a.BitLen()).String())
}

// nodeAddrs are all addresses that a Node names for itself.
func nodeAddrs(n *api.Node) []netip.Addr {
	var out []netip.Addr
	for _, family := range []int{4, 6} {
		if p, ok := n.BGPAddr(family); ok {
			out = append(out, p.Addr())
		}
	}
	tunnels := []string{n.Spec.IPv4VXLANTunnelAddr, n.Spec.IPv6VXLANTunnelAddr}
	if n.Spec.BGP != nil {
		tunnels = append(tunnels, n.Spec.BGP.IPv4IPIPTunnelAddr)
	}
	for _, text := range tunnels {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	}
	return out
}
