package render

import "github.com/manekinet/maneki/desired"

// Hit is what a rule has matched, in packets and bytes.
type Hit struct{ Packets, Bytes uint64 }

// CountedTypes are the sets whose elements count, for nft.ReadCounters.
func (r Result) CountedTypes() map[string]desired.SetType {
	out := make(map[string]desired.SetType, len(r.Sets))
	for name, s := range r.Sets {
		out[name] = s.Type
	}
	return out
}

// Hits adds up the counters of the kernel's rules and elements for each rule of a
// policy: one of those may be rendered to many of these. rules returns a chain's
// counters in the order of its rules.
func (r Result) Hits(rules func(chain string) []Hit, element func(set string, e desired.Element) Hit) map[RuleRef]Hit {
	out := map[RuleRef]Hit{}
	add := func(ref RuleRef, h Hit) {
		if ref.Rule >= 0 {
			sum := out[ref]
			out[ref] = Hit{sum.Packets + h.Packets, sum.Bytes + h.Bytes}
		}
	}
	for chain, refs := range r.Chains {
		counters := rules(chain)
		if len(counters) != len(refs) {
			continue // it has just been changed
		}
		for i, ref := range refs {
			add(ref, counters[i])
		}
	}
	for set, s := range r.Sets {
		for e, ref := range s.Elements {
			add(ref, element(set, e))
		}
	}
	return out
}
