package calc

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/desired"
)

// What marks the host endpoints that are made automatically, as Calico's
// controllers mark theirs.
const (
	labelCreatedBy = "projectcalico.org/created-by"
	autoCreator    = "calico-kube-controllers"
)

// AutoHost is the host endpoint that KubeControllersConfiguration default asks
// to be made for this host (controllers.node.hostEndpoint.autoCreate): of all
// its interfaces, with its Node's labels and a profile that allows everything,
// so that policies can be about hosts without anybody making an object for each.
type AutoHost struct {
	Name  string
	Want  *api.HostEndpoint // nil: there is to be none
	Stale bool              // what is stored under the name is not that
}

func (c *Core) autoHost(p *problems) AutoHost {
	out := AutoHost{Name: c.opts.Node + "-auto-hep"}
	have := c.policies.hosts[out.Name]
	ours := have != nil && have.Labels[labelCreatedBy] == autoCreator
	cfg := c.autoHostConfig()
	if cfg != nil && len(cfg.Templates) > 0 {
		p.add("KubeControllersConfiguration(default): templates of host endpoints are not served; make the objects, or use the default host endpoint")
	}
	self := c.nodes[c.opts.Node]
	if cfg == nil || cfg.CreateDefaultHostEndpoint == "Disabled" || self == nil {
		out.Stale = ours && self != nil
		return out
	}
	if have != nil && !ours {
		p.add("HostEndpoint(%s): somebody else made it; the automatic one of that name is not", out.Name)
		return out
	}
	h := &api.HostEndpoint{Spec: api.HostEndpointSpec{
		Node: c.opts.Node, InterfaceName: api.AllInterfaces, ExpectedIPs: expectedIPs(self), Profiles: []string{api.DefaultAllowProfile},
	}}
	h.Name, h.Labels = out.Name, maps.Clone(self.Labels)
	if h.Labels == nil {
		h.Labels = map[string]string{}
	}
	h.Labels[labelCreatedBy] = autoCreator
	h.Default()
	out.Want = h
	out.Stale = have == nil || !maps.Equal(have.Labels, h.Labels) || !reflect.DeepEqual(have.Spec, h.Spec)
	return out
}

func (c *Core) autoHostConfig() *api.AutoHostEndpointConfig {
	k := c.control["default"]
	if k == nil || k.Spec.Controllers.Node == nil {
		return nil
	}
	if h := k.Spec.Controllers.Node.HostEndpoint; h != nil && h.AutoCreate == "Enabled" {
		return h
	}
	return nil
}

// expectedIPs are all addresses that a Node says it has: its own, those of its
// tunnels, and those that others have noted.
func expectedIPs(n *api.Node) []string {
	texts := []string{n.Spec.IPv4VXLANTunnelAddr, n.Spec.IPv6VXLANTunnelAddr}
	if b := n.Spec.BGP; b != nil {
		texts = append(texts, b.IPv4Address, b.IPv6Address, b.IPv4IPIPTunnelAddr)
	}
	for _, a := range n.Spec.Addresses {
		texts = append(texts, a.Address)
	}
	var addrs []netip.Addr
	for _, text := range texts {
		if a, err := parseNodeAddr(text); err == nil {
			addrs = append(addrs, a)
		}
	}
	var out []string
	for _, a := range desired.NewAddrSet(addrs...).Addrs() {
		out = append(out, a.String())
	}
	return slices.Clip(out)
}
