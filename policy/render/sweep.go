package render

import (
	"net/netip"
	"slices"

	"go4.org/netipx"
)

// span is a range, both ends included, and what it belongs to.
type span[T any, W any] struct {
	from, to T
	what     W
}

func lastOf(p netip.Prefix) netip.Addr { return netipx.PrefixLastIP(p) }

// sweep cuts overlapping spans into disjoint pieces and tells, in their order, what belongs to each: in the order of the
// spans. next is the value behind another, prev the one before; what next returns for the last value does not count, but it is not
// greater.
func sweep[T any, W any](spans []span[T, W], compare func(a, b T) int, next, prev func(T) T, each func(from, to T, what []W)) {
	type edge struct {
		at    T
		over  bool // behind the last value
		index int
		open  bool
	}
	var edges []edge
	for i, s := range spans {
		behind := next(s.to)
		edges = append(edges, edge{at: s.from, index: i, open: true}, edge{at: behind, over: compare(behind, s.to) <= 0, index: i})
	}
	order := func(a, b edge) int {
		switch {
		case a.over && b.over:
			return 0
		case a.over:
			return 1
		case b.over:
			return -1
		}
		return compare(a.at, b.at)
	}
	slices.SortFunc(edges, order)
	var open []int // indexes of spans, sorted
	for i := 0; i < len(edges); {
		begin := edges[i]
		for ; i < len(edges) && order(edges[i], begin) == 0; i++ {
			at, found := slices.BinarySearch(open, edges[i].index)
			switch {
			case edges[i].open && !found:
				open = slices.Insert(open, at, edges[i].index)
			case !edges[i].open && found:
				open = slices.Delete(open, at, at+1)
			}
		}
		if len(open) == 0 || i == len(edges) {
			continue
		}
		what := make([]W, len(open))
		for j, index := range open {
			what[j] = spans[index].what
		}
		to := spans[open[0]].to // they all reach the last value
		if !edges[i].over {
			to = prev(edges[i].at)
		}
		each(begin.at, to, what)
	}
}
