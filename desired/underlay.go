package desired

import (
	"cmp"
	"net/netip"
	"slices"
)

// Underlay is a route of somebody else that this host's packets take: what a next hop on no connected subnet is reached
// by. Comparable.
type Underlay struct {
	Dst      netip.Prefix
	Priority uint32 // the metric; of two routes to one destination the lower counts
	NextHops NextHops
}

// Compare orders by destination and metric.
func (u Underlay) Compare(o Underlay) int {
	return cmp.Or(u.Dst.Compare(o.Dst), cmp.Compare(u.Priority, o.Priority), cmp.Compare(u.NextHops.text, o.NextHops.text))
}

// SortUnderlay puts routes in order and takes repetitions away.
func SortUnderlay(routes []Underlay) []Underlay {
	slices.SortFunc(routes, Underlay.Compare)
	return slices.Compact(routes)
}
