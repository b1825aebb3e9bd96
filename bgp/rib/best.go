package rib

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/manekinet/maneki/bgp/message"
)

// MaxHops is how many next hops one destination can have: more are left out, those with the highest
// addresses. BIRD's limit is the same.
const MaxHops = 16

// choice is what is chosen of the paths to one destination.
type choice struct {
	best int          // index of the best path, -1 if none is usable
	hops []netip.Addr // of all paths that are as good, in order, if they are several
	// offers are the indices of the paths for peers that take several, one for each next hop, if they are several.
	offers []int
}

// best chooses. It eliminates candidates step by step, as RFC 4271 §9.1.2.2 does,
// because MED makes the pairwise comparison intransitive. Steps: own announcements; next hops that can be
// reached; what is neither of a retired source nor demoted; LOCAL_PREF; AS_PATH length; ORIGIN; MED within
// one neighbour AS; external over internal. What is left is equally good, as for BIRD's "merge paths"; one of
// them is passed on, by RFC 4456 §9 and RFC 4271 f-g: originator or router ID, CLUSTER_LIST length, address.
// There is no IGP metric here: every next hop of a flat layer-3 network is one route away.
func best(paths []Path) choice {
	if len(paths) == 1 { // by far the most common
		if paths[0].Barred {
			return choice{best: -1}
		}
		return choice{}
	}
	left := make([]candidate, 0, len(paths))
	for i, p := range paths {
		if !p.Barred {
			left = append(left, candidate{index: i, unreachable: p.Unreachable, last: p.Demoted || p.Source.Retired, source: p.Source, attrs: p.Attrs.Value(), pathID: p.ID})
		}
	}
	if len(left) == 0 {
		return choice{best: -1}
	}
	var all []candidate // with an own announcement among them, which ends the selection
	if slices.ContainsFunc(left, func(c candidate) bool { return c.source.Local }) {
		all = slices.Clone(left)
		left = least(left, func(c candidate) int { return yes(!c.source.Local) })
	}
	left = equals(left)
	win := slices.MinFunc(left, candidate.compare)
	out := choice{best: win.index, hops: nextHops(left)}
	if all != nil {
		left = equals(all)
	}
	out.offers = offers(win, left)
	return out
}

// equals keeps the candidates that no step prefers another one to.
func equals(left []candidate) []candidate {
	left = least(left, func(c candidate) int { return yes(c.unreachable) })
	left = least(left, func(c candidate) int { return yes(c.last) })
	left = least(left, func(c candidate) int { return -int(c.attrs.LocalPref) })
	left = least(left, func(c candidate) int { return c.attrs.PathLen() })
	left = least(left, func(c candidate) int { return int(c.attrs.Origin) })
	left = lowestMED(left)
	return least(left, func(c candidate) int { return yes(c.source.Internal) })
}

// offers chooses one path for each next hop, the first by compare, in that order. To others an own announcement is a
// path like any other, so that equal has been chosen without regard to it. If that leaves the best path out, or
// there is only one next hop, nothing is offered beside the best path: several reflectors that tell each other of
// the same route do not multiply it.
func offers(win candidate, equal []candidate) []int {
	if len(equal) < 2 || !slices.ContainsFunc(equal, func(c candidate) bool { return c.index == win.index }) {
		return nil
	}
	slices.SortFunc(equal, candidate.compare)
	hops, out := []netip.Addr{win.hop()}, []int{win.index}
	for _, c := range equal {
		if len(out) < MaxHops && !slices.Contains(hops, c.hop()) {
			hops, out = append(hops, c.hop()), append(out, c.index)
		}
	}
	if len(out) < 2 {
		return nil
	}
	return out
}

// hop is the next hop; zero, this host, for an own announcement that names none.
func (c candidate) hop() netip.Addr { return c.attrs.NextHop }

// nextHops are the different next hops of the candidates in order; nil unless there are at least two. Own
// announcements have none.
func nextHops(equal []candidate) []netip.Addr {
	if len(equal) < 2 {
		return nil
	}
	hops := make([]netip.Addr, 0, len(equal))
	for _, c := range equal {
		if !c.source.Local {
			hops = append(hops, c.attrs.NextHop)
		}
	}
	slices.SortFunc(hops, netip.Addr.Compare)
	hops = slices.Compact(hops)
	if len(hops) < 2 {
		return nil
	}
	return hops[:min(len(hops), MaxHops)]
}

type candidate struct {
	index       int
	unreachable bool
	last        bool // only if there is nothing else
	source      *Source
	attrs       message.Attrs
	pathID      uint32
}

func yes(b bool) int {
	if b {
		return 1
	}
	return 0
}

// least keeps the candidates with the lowest value of f.
func least(in []candidate, f func(candidate) int) []candidate {
	low := f(in[0])
	for _, c := range in[1:] {
		low = min(low, f(c))
	}
	out := in[:0]
	for _, c := range in {
		if f(c) == low {
			out = append(out, c)
		}
	}
	return out
}

// lowestMED drops each candidate for which one with a lower MED came from the same neighbour AS
// (RFC 4271 §9.1.2.2 c). A missing MED counts as 0.
func lowestMED(in []candidate) []candidate {
	var out []candidate
	for _, c := range in {
		beaten := false
		for _, o := range in {
			beaten = beaten || (o.attrs.MED < c.attrs.MED && o.attrs.NeighborAS() == c.attrs.NeighborAS())
		}
		if !beaten {
			out = append(out, c)
		}
	}
	return out
}

// compare breaks the remaining ties; it is a total order over paths.
func (c candidate) compare(o candidate) int {
	return cmp.Or(c.id().Compare(o.id()),
		cmp.Compare(len(c.attrs.ClusterList), len(o.attrs.ClusterList)),
		c.source.Addr.Compare(o.source.Addr), cmp.Compare(c.pathID, o.pathID))
}

func (c candidate) id() netip.Addr {
	if c.attrs.OriginatorID.IsValid() {
		return c.attrs.OriginatorID
	}
	return c.source.ID
}
