package desired

import (
	"fmt"
	"net/netip"
	"strings"

	"go4.org/netipx"
)

// NetSet is an immutable set of addresses, kept as the fewest prefixes, that can be compared with ==. The zero value is
// the empty set.
type NetSet struct{ text string }

// NewNetSet is the union of the prefixes: overlapping and adjacent ones are merged. Invalid ones do not count.
func NewNetSet(nets ...netip.Prefix) NetSet {
	var b netipx.IPSetBuilder
	for _, n := range nets {
		if n.IsValid() {
			b.AddPrefix(n.Masked())
		}
	}
	set, err := b.IPSet()
	if err != nil {
		return NetSet{} // cannot be: every prefix is valid
	}
	words := make([]string, 0, len(nets))
	for _, p := range set.Prefixes() {
		words = append(words, p.String())
	}
	return NetSet{strings.Join(words, ",")}
}

// Prefixes is the set as the fewest prefixes in ascending order.
func (s NetSet) Prefixes() []netip.Prefix {
	if s.text == "" {
		return nil
	}
	words := strings.Split(s.text, ",")
	out := make([]netip.Prefix, len(words))
	for i, w := range words {
		out[i] = netip.MustParsePrefix(w) // written by NewNetSet
	}
	return out
}

// String is the prefixes separated by commas.
func (s NetSet) String() string { return s.text }

// Format makes %v and %+v print the prefixes, also inside other structs, where a Stringer is not called.
func (s NetSet) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.text) }
