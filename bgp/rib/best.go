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

// best returns the index of the best usable path, or -1, and the next hops of all paths that are as good if
// these are more than one, in order. It eliminates candidates step by step, as RFC 4271 §9.1.2.2 does,
// because MED makes the pairwise comparison intransitive. Steps: own announcements; next hops that can be
// reached; what is neither of a retired source nor demoted; LOCAL_PREF; AS_PATH length; ORIGIN; MED within
// one neighbour AS; external over internal. What is left is equally good, as for BIRD's "merge paths"; one of
// them is passed on, by RFC 4456 §9 and RFC 4271 f-g: originator or router ID, CLUSTER_LIST length, address.
// There is no IGP metric here: every next hop of a flat layer-3 network is one route away.
func best(paths []Path) (int, []netip.Addr) {
	if len(paths) == 1 { // by far the most common
		if paths[0].Barred {
			return -1, nil
		}
		return 0, nil
	}
	left := make([]candidate, 0, len(paths))
	for i, p := range paths {
		if !p.Barred {
			left = append(left, candidate{index: i, unreachable: p.Unreachable, last: p.Demoted || p.Source.Retired, source: p.Source, attrs: p.Attrs.Value()})
		}
	}
	if len(left) == 0 {
		return -1, nil
	}
	left = least(left, func(c candidate) int { return yes(!c.source.Local) })
	left = least(left, func(c candidate) int { return yes(c.unreachable) })
	left = least(left, func(c candidate) int { return yes(c.last) })
	left = least(left, func(c candidate) int { return -int(c.attrs.LocalPref) })
	left = least(left, func(c candidate) int { return c.attrs.PathLen() })
	left = least(left, func(c candidate) int { return int(c.attrs.Origin) })
	left = lowestMED(left)
	left = least(left, func(c candidate) int { return yes(c.source.Internal) })
	win := left[0]
	for _, c := range left[1:] {
		if c.compare(win) < 0 {
			win = c
		}
	}
	return win.index, nextHops(left)
}

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

// compare breaks the remaining ties; it is a total order over distinct sources.
func (c candidate) compare(o candidate) int {
	return cmp.Or(c.id().Compare(o.id()),
		cmp.Compare(len(c.attrs.ClusterList), len(o.attrs.ClusterList)),
		c.source.Addr.Compare(o.source.Addr))
}

func (c candidate) id() netip.Addr {
	if c.attrs.OriginatorID.IsValid() {
		return c.attrs.OriginatorID
	}
	return c.source.ID
}
