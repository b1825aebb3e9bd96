package calc

import (
	"net/netip"
	"slices"

	"github.com/manekinet/maneki/api"
)

// Reflection is this host's part in the route reflection of the cluster.
type Reflection struct {
	Auto       bool                  // the controller chooses the reflectors
	Controlled bool                  // it has, or may have, something to do
	Garbage    bool                  // the controller looks for leaked addresses
	Hosts      int                   // nodes with a BGP address
	NodeOf     map[netip.Addr]string // by BGP address
	Reflectors []string              // nodes that reflect routes to this one, sorted
}

// reflection reads the settings, and what the controller has left of its work.
func (c *Core) reflection(p *problems) Reflection {
	d := c.bgpConfig["default"]
	settings, err := d.RouteReflection()
	if err != nil {
		p.add("BGPConfiguration(default): %s; the reflectors are not chosen automatically", oneLine(err))
	}
	out := Reflection{Auto: settings.Auto, Controlled: settings.Auto, NodeOf: map[netip.Addr]string{}}
	if k := c.control["default"]; k != nil {
		out.Garbage = k.Spec.Controllers.Node != nil
	}
	if d != nil {
		_, note := d.Annotations[api.AnnotationReflectionMesh]
		out.Controlled = out.Controlled || note
	}
	for _, peer := range c.bgpPeers {
		out.Controlled = out.Controlled || peer.Annotations[api.AnnotationOwner] == api.OwnerReflection
	}
	quiet := &problems{} // each node's own agent reports its addresses
	for name, n := range c.nodes {
		out.Controlled = out.Controlled || n.Labels[api.LabelRouteReflector] == api.ReflectorAuto
		addrs := c.speakerAddrs(n, quiet)
		if len(addrs) > 0 {
			out.Hosts++
		}
		for _, a := range addrs {
			if old, taken := out.NodeOf[a]; !taken || name < old {
				out.NodeOf[a] = name
			}
		}
	}
	return out
}

// reflectors adds to s the nodes whose sessions make this host their client: they
// reflect, and this host is internal to them and of another cluster.
func (c *Core) reflectors(s *State) {
	quiet := &problems{}
	for addr, peer := range s.BGP.Peers {
		name := s.Reflection.NodeOf[addr]
		if n := c.nodes[name]; peer.Cluster && n != nil && peer.ASN == s.BGP.ASN {
			if id := c.clusterID(n, quiet); id.IsValid() && id != s.BGP.ClusterID && !slices.Contains(s.Reflection.Reflectors, name) {
				s.Reflection.Reflectors = append(s.Reflection.Reflectors, name)
			}
		}
	}
	slices.Sort(s.Reflection.Reflectors)
}
