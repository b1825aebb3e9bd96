package bgp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/manekinet/maneki/bgp/message"
	"github.com/manekinet/maneki/bgp/rib"
)

// View says which routes Routes returns.
type View string

// The views. Received and advertised ones are those of one peer; a received route is shown after the
// import rules, an advertised one as the peer has been sent it.
const (
	ViewBest       View = "best" // what is chosen, own announcements among them
	ViewReceived   View = "received"
	ViewAdvertised View = "advertised"
)

// Route is one route for an operator to read.
type Route struct {
	Prefix         netip.Prefix
	NextHop        netip.Addr
	Peer           netip.Addr // that it was learnt from; zero for an own announcement
	ASPath         string
	LocalPref, MED uint32
	Communities    string     // aa:nn and aa:nn:mm
	Originator     netip.Addr // ORIGINATOR_ID, zero when absent
	Clusters       []netip.Addr
	Best           bool // of all paths to its destination
	Multipath      bool // as good as the best one, and used beside it
	Stale          bool // kept from before a restart or a change of the configuration
	Refused        bool // by the checks of import or by a filter
	Unreachable    bool // no route of this host leads to the next hop: chosen only if there is no other
	Demoted        bool // the last choice: the path to the peer has failed, or its source is long gone (RFC 9494)
}

// Routes returns the routes of a view in the order of their prefixes. peer is ignored by ViewBest; the
// error is for a peer that is not configured and for an unknown view.
func (s *Speaker) Routes(view View, peer netip.Addr) ([]Route, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Route
	p := s.peers[peer]
	switch {
	case view == ViewBest:
		for prefix, path := range s.table.All() {
			out = append(out, route(prefix, path, true))
		}
	case view != ViewReceived && view != ViewAdvertised:
		return nil, fmt.Errorf("view %q: want %s, %s or %s", view, ViewBest, ViewReceived, ViewAdvertised)
	case p == nil:
		return nil, fmt.Errorf("%s is not a peer of this host", peer)
	case view == ViewReceived:
		for prefix, path := range s.table.Of(p.source) {
			best, ok := s.table.Best(prefix)
			r := route(prefix, path, ok && best.Source == p.source && best.ID == path.ID)
			r.Multipath = !r.Best && !r.Refused && slices.Contains(s.table.Hops(prefix), r.NextHop)
			out = append(out, r)
		}
	case p.feed != nil:
		for prefix, sent := range p.feed.member.Announced() {
			best, ok := s.table.Best(prefix)
			r := route(prefix, rib.Path{Source: sent.From, Attrs: sent.Attrs}, ok && best.Source == sent.From && (sent.ID == 0 || sent.ID == best.Index))
			r.Multipath = !r.Best && sent.ID != 0
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b Route) int { return cmp.Or(a.Prefix.Compare(b.Prefix), a.NextHop.Compare(b.NextHop)) })
	return out, nil
}

func route(prefix netip.Prefix, path rib.Path, best bool) Route {
	a := path.Attrs.Value()
	return Route{
		Prefix: prefix, NextHop: a.NextHop, Peer: path.Source.Addr, ASPath: a.PathString(), LocalPref: a.LocalPref,
		MED: a.MED, Communities: message.FormatCommunities(a.Communities, a.LargeCommunities), Originator: a.OriginatorID,
		Clusters: a.Clusters(), Best: best, Stale: path.Stale, Refused: path.Barred, Unreachable: path.Unreachable, Demoted: path.Demoted,
	}
}
