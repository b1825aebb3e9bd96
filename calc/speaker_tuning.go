package calc

import (
	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp"
)

// tuning is what the annotations of an object say. What cannot be read is
// reported, and the sessions are made without it.
func tuning(kind string, r *api.Resource, p *problems) api.BGPTuning {
	t, errs := api.ParseBGPTuning(r.Annotations)
	for _, e := range errs {
		p.add("%s(%s): annotation %s: %v; its sessions are made without it", kind, r.Name, e.Name, e.Err)
	}
	return t
}

// clusterTuning is what the sessions between hosts of the cluster have unless
// their BGPPeer says otherwise: this node's configuration, else the cluster's.
func (c *Core) clusterTuning(p *problems) api.BGPTuning {
	var out api.BGPTuning
	for _, name := range []string{api.NodeConfigName(c.opts.Node), "default"} {
		if cfg := c.bgpConfig[name]; cfg != nil {
			out = out.Or(tuning("BGPConfiguration", &cfg.Resource, p))
		}
	}
	return out
}

// tune puts the annotations' settings into a session. Its OnLink is known: a
// peer on a connected subnet is one hop away (RFC 5881), another one is not
// (RFC 5883).
func (w *wanted) tune() {
	if b := w.tuning.BFD; b != nil && b.On {
		multihop := b.Multihop == "yes" || (b.Multihop == "auto" && !w.OnLink)
		w.BFD = bgp.BFD{Interval: b.Interval, Multiplier: b.Multiplier, Multihop: multihop}
	}
	if d := w.tuning.LongLived; d != nil {
		w.LongLived = *d
	}
	if n := w.tuning.MaxPrefixes; n != nil {
		w.MaxPrefixes = *n
	}
}
