package calc

import (
	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp"
)

// bfd is the annotation of an object, false if it has none. One that cannot be
// read is reported; the sessions are made without BFD.
func bfd(kind string, r *api.Resource, p *problems) (api.BFD, bool) {
	text, ok := r.Annotations[api.AnnotationBFD]
	if !ok {
		return api.BFD{}, false
	}
	b, err := api.ParseBFD(text)
	if err != nil {
		p.add("%s(%s): annotation %s: %v; its sessions are without BFD", kind, r.Name, api.AnnotationBFD, err)
	}
	return b, true
}

// clusterBFD is what the sessions between hosts of the cluster have unless
// their BGPPeer says otherwise: this node's configuration, else the cluster's.
func (c *Core) clusterBFD(p *problems) api.BFD {
	var out api.BFD
	for _, name := range []string{"default", api.NodeConfigName(c.opts.Node)} {
		if cfg := c.bgpConfig[name]; cfg != nil {
			if b, ok := bfd("BGPConfiguration", &cfg.Resource, p); ok {
				out = b
			}
		}
	}
	return out
}

// watch is the BFD of one session. A peer on a connected subnet is one hop away
// (RFC 5881), another one is not (RFC 5883).
func (c *Core) watch(w wanted) bgp.BFD {
	b := w.bfd
	if !b.On {
		return bgp.BFD{}
	}
	multihop := b.Multihop == "yes"
	if b.Multihop == "auto" {
		multihop = !w.OnLink
	}
	return bgp.BFD{Interval: b.Interval, Multiplier: b.Multiplier, Multihop: multihop}
}
