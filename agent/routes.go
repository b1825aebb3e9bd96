package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/bgp"
)

// serveRoutes answers /v1/bgp/routes?view=V&peer=A. The reason for a refusal is
// the body, one line.
func (a *Agent) serveRoutes(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	view := bgp.View(q.Get("view"))
	var peer netip.Addr
	if view != bgp.ViewBest {
		var err error
		if peer, err = netip.ParseAddr(q.Get("peer")); err != nil {
			http.Error(w, fmt.Sprintf("peer %q: want an address", q.Get("peer")), http.StatusBadRequest)
			return
		}
	}
	routes, err := a.speaker.Routes(view, peer)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	out := make([]agentapi.BGPRoute, 0, len(routes))
	for _, r := range routes {
		out = append(out, agentapi.BGPRoute(r))
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(out); err != nil {
		a.opts.Log.Debug("routes were not read to their end", "err", err)
	}
}
