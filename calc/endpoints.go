package calc

import (
	"net/netip"
	"slices"
	"sort"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/autodetect"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/desired"
)

// blockView is what the calculation keeps of an IPAM block: who owns it, and
// which addresses in it belong to this host's workloads, and which to hosts that
// have borrowed them from the owner.
type blockView struct {
	owner string                // "host:<node>", or empty
	mine  map[netip.Addr]string // this host's addresses with their handle
	lent  map[netip.Addr]string // addresses that a node holds which is neither the owner nor this host
}

func (c *Core) blockEvent(e datastore.Event) error {
	cidr, err := netip.ParsePrefix(e.Entry.Key.Name)
	if err != nil {
		return err
	}
	delete(c.blocks, cidr)
	if e.Type == datastore.EventDelete {
		return nil
	}
	b, err := datastore.DecodeJSON[api.IPAMBlock](e.Entry)
	if err != nil {
		return err
	}
	c.blocks[cidr] = c.view(cidr, &b)
	return nil
}

func (c *Core) view(cidr netip.Prefix, b *api.IPAMBlock) blockView {
	v := blockView{mine: map[netip.Addr]string{}, lent: map[netip.Addr]string{}}
	if b.Affinity != nil {
		v.owner = *b.Affinity
	}
	own := v.owner == "host:"+c.opts.Node
	addr := cidr.Masked().Addr()
	for _, index := range b.Allocations {
		if index != nil && *index >= 0 && *index < len(b.Attributes) {
			attr := b.Attributes[*index]
			node := attr.Secondary["node"]
			switch {
			case attr.HandleID == nil: // cooling down
			case node == c.opts.Node || node == "" && own:
				v.mine[addr] = *attr.HandleID
			case node != "" && v.owner != "host:"+node:
				v.lent[addr] = node
			}
		}
		addr = addr.Next()
	}
	return v
}

func (c *Core) affinityEvent(e datastore.Event) error {
	cidr, err := netip.ParsePrefix(e.Entry.Key.Name)
	if err != nil {
		return err
	}
	node, isHost := strings.CutPrefix(e.Entry.Key.Namespace, "host:")
	if !isHost {
		return nil // of a virtual owner, such as a load balancer's addresses
	}
	c.setAffinity(cidr, node, "", false)
	if e.Type == datastore.EventDelete {
		return nil
	}
	if len(e.Entry.Value) == 0 { // the form before states existed
		c.setAffinity(cidr, node, api.AffinityConfirmed, true)
		return nil
	}
	a, err := datastore.DecodeJSON[api.BlockAffinity](e.Entry)
	if err != nil {
		return err
	}
	c.setAffinity(cidr, node, a.State, !bool(a.Deleted))
	return nil
}

// setAffinity remembers this host's affinities in every state, and others' only
// when they are confirmed.
func (c *Core) setAffinity(cidr netip.Prefix, node string, state api.AffinityState, there bool) {
	confirmed := state == api.AffinityConfirmed || state == ""
	switch {
	case node == c.opts.Node && there:
		c.affine[cidr] = state
	case node == c.opts.Node:
		delete(c.affine, cidr)
	case there && confirmed:
		if c.remote[cidr] == nil {
			c.remote[cidr] = map[string]bool{}
		}
		c.remote[cidr][node] = true
	default:
		delete(c.remote[cidr], node)
		if len(c.remote[cidr]) == 0 {
			delete(c.remote, cidr)
		}
	}
}

// ownBlocks are the blocks whose affinity is confirmed: only those are routed
// and announced (spec/calico.md §3).
func (c *Core) ownBlocks() []netip.Prefix {
	var out []netip.Prefix
	for cidr, state := range c.affine {
		if state == api.AffinityConfirmed || state == "" {
			out = append(out, cidr)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return out
}

func (c *Core) endpointEvent(e datastore.Event) error {
	key := desired.EndpointKey{Namespace: e.Entry.Key.Namespace, Name: e.Entry.Key.Name}
	if floor, ok := c.floors[key]; ok {
		if rev := revision(e.Entry.Rev); rev != 0 && rev <= floor {
			return nil
		}
		delete(c.floors, key)
	}
	if e.Type == datastore.EventDelete {
		c.drop(key)
		return nil
	}
	wep, err := datastore.For[api.WorkloadEndpoint](nil).Decode(e.Entry)
	if err != nil {
		c.drop(key)
		return err
	}
	c.policies.workload(e.Entry.Key, wep)
	if wep.Spec.Node != c.opts.Node {
		delete(c.endpoints, key)
		delete(c.trusted, key)
		return nil
	}
	if old := c.endpoints[key]; old == nil || !slices.Equal(old.Spec.IPNetworks, wep.Spec.IPNetworks) {
		delete(c.trusted, key) // somebody else changed its addresses
	}
	c.endpoints[key] = wep
	return nil
}

func (c *Core) local(l LocalChange) {
	if l.Endpoint == nil {
		if old := c.endpoints[l.Key]; old != nil {
			c.floors[l.Key] = max(c.floors[l.Key], revision(datastore.Revision(old.ResourceVersion)))
		}
		c.drop(l.Key)
		return
	}
	c.endpoints[l.Key] = l.Endpoint
	c.policies.workload(workloadKey(l.Key), l.Endpoint)
	c.trusted[l.Key] = true
	if rev := revision(datastore.Revision(l.Endpoint.ResourceVersion)); rev != 0 {
		c.floors[l.Key] = rev
	}
}

func (c *Core) drop(key desired.EndpointKey) {
	delete(c.endpoints, key)
	delete(c.trusted, key)
	c.policies.workload(workloadKey(key), nil)
}

func workloadKey(k desired.EndpointKey) datastore.Key {
	return datastore.Key{Kind: "WorkloadEndpoint", Namespace: k.Namespace, Name: k.Name}
}

// localEndpoints decides which endpoints of this host are served. An address
// is believed only if IPAM says that this host holds it, or if this agent has
// just assigned it: whoever can write a WorkloadEndpoint must not be able to
// draw another's traffic here (spec/faults.md, CVE-2022-28224).
func (c *Core) localEndpoints(p *problems) desired.Endpoints {
	keys := make([]desired.EndpointKey, 0, len(c.endpoints))
	for k := range c.endpoints {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool { return keys[i].Compare(keys[j]) < 0 })
	out := desired.Endpoints{}
	holders := map[netip.Addr]desired.EndpointKey{}
	owners := map[string]desired.EndpointKey{} // of interfaces
	for _, k := range keys {
		spec := &c.endpoints[k].Spec
		if !strings.HasPrefix(spec.InterfaceName, c.opts.InterfacePrefix) || len(spec.InterfaceName) > 15 || strings.ContainsAny(spec.InterfaceName, "/ ") {
			p.add("WorkloadEndpoint(%s): interface %q is not one of ours (prefix %q, at most 15 characters); it is not routed", k, spec.InterfaceName, c.opts.InterfacePrefix)
			continue
		}
		if !c.trusted[k] && !c.opts.Remote && !c.linked(spec.InterfaceName) {
			// After a reboot the datastore still has the endpoints of containers that are no more, until their runtime
			// deletes them.
			p.add("WorkloadEndpoint(%s): its interface %s does not exist; it is not routed", k, spec.InterfaceName)
			continue
		}
		if other, taken := owners[spec.InterfaceName]; taken {
			p.add("WorkloadEndpoint(%s): interface %s belongs to %s; it is not routed", k, spec.InterfaceName, other)
			continue
		}
		owners[spec.InterfaceName] = k
		out[k] = desired.Endpoint{Interface: spec.InterfaceName, MAC: spec.MAC, Addrs: desired.NewAddrSet(c.addresses(k, holders, p)...)}
	}
	return out
}

// linked reports whether the kernel has the interface.
func (c *Core) linked(name string) bool {
	return slices.ContainsFunc(c.links, func(l autodetect.Interface) bool { return l.Name == name })
}

func (c *Core) addresses(k desired.EndpointKey, holders map[netip.Addr]desired.EndpointKey, p *problems) []netip.Addr {
	spec := &c.endpoints[k].Spec
	var out []netip.Addr
	for _, text := range spec.IPNetworks {
		net, err := netip.ParsePrefix(text)
		if err != nil || !net.IsSingleIP() {
			p.add("WorkloadEndpoint(%s): ipNetworks %q must be one address as /32 or /128; it is not routed", k, text)
			continue
		}
		addr := net.Addr()
		if other, taken := holders[addr]; taken {
			p.add("WorkloadEndpoint(%s): address %s belongs to %s; it is not routed", k, addr, other)
			continue
		}
		if !c.trusted[k] && !c.holds(addr, spec.ContainerID) {
			p.add("WorkloadEndpoint(%s): IPAM has not assigned %s to this endpoint of host %s; it is not routed", k, addr, c.opts.Node)
			continue
		}
		holders[addr] = k
		out = append(out, addr)
	}
	return out
}

// holds reports whether IPAM gives addr to this host under a handle of the
// container. Handles end in the container's ID; endpoints of other
// orchestrators have none to compare.
func (c *Core) holds(addr netip.Addr, containerID string) bool {
	for cidr, v := range c.blocks {
		if !cidr.Contains(addr) {
			continue
		}
		handle, ok := v.mine[addr]
		return ok && (containerID == "" || strings.HasSuffix(handle, containerID) || !strings.Contains(handle, "."))
	}
	return false
}

func sysctls(eps desired.Endpoints, node *api.Node) desired.Sysctls {
	v4, v6 := true, false
	if node != nil && node.Spec.BGP != nil {
		v6 = node.Spec.BGP.IPv6Address != ""
	}
	for _, ep := range eps {
		v6 = v6 || ep.Addrs.Has6()
	}
	s := desired.HostSysctls(v4, v6)
	for _, ep := range eps {
		s.Merge(desired.EndpointSysctls(ep.Interface, ep.Addrs.Has4(), ep.Addrs.Has6()))
	}
	return s
}
