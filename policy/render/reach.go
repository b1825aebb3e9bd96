package render

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/manekinet/maneki/policy"
)

// atomID names a group of addresses that rules ask about: a set, by its SetID, or one prefix, by its text behind a
// slash.
type atomID string

func prefixAtom(p netip.Prefix) atomID { return atomID("/" + p.Masked().String()) }

func (id atomID) prefix() (netip.Prefix, bool) {
	text, ok := strings.CutPrefix(string(id), "/")
	if !ok {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(text)
	return p, err == nil
}

// reach is which packets a rule can match, as far as an index tells packets apart. It may be wider than the rule, never
// narrower.
type reach struct {
	atoms  []atomID           // the peer is in one of them; nil: anybody
	protos []uint8            // nil: any protocol
	ports  []policy.PortRange // of the destination, disjoint and sorted; nil: any
}

const (
	// maxReachNets bounds the prefixes of one rule that an index tells apart.
	maxReachNets = 256
	// maxReaches bounds the rules of one policy that an index tells apart; one with more is asked by everybody, and has an
	// index of its own.
	maxReaches = 64
)

// reachOf is a rule's reach, the peer being the other end of the endpoint; false where no packet can match.
func reachOf(r *policy.Rule, d policy.Direction) (reach, bool) {
	peer := &r.Src
	if d == policy.Egress {
		peer = &r.Dst
	}
	var out reach
	switch {
	case peer.Nets != nil && len(peer.Nets) <= maxReachNets:
		if len(peer.Nets) == 0 {
			return out, false
		}
		for _, n := range peer.Nets {
			out.atoms = append(out.atoms, prefixAtom(n))
		}
	case peer.Set != "":
		out.atoms = []atomID{atomID(peer.Set)}
	case peer.Service != "":
		out.atoms = []atomID{atomID(peer.Service)}
	case !peer.AnyPort && len(peer.Ports) == 0:
		for _, id := range peer.Named {
			out.atoms = append(out.atoms, atomID(id))
		}
	}
	protos := protocols(r)
	if len(protos) == 0 {
		return out, false
	}
	if protos[0] != 0 {
		out.protos = protos
	}
	if !r.Dst.AnyPort && len(r.Dst.Named) == 0 {
		if out.ports = mergePorts(r.Dst.Ports); len(out.ports) == 0 {
			return out, false
		}
	}
	return out, true
}

// reachesOf are the reaches of rules, each once; everything where there are too many to tell apart.
func reachesOf(rules []policy.Rule, d policy.Direction) []reach {
	var out []reach
	for i := range rules {
		r, ok := reachOf(&rules[i], d)
		if !ok || slices.ContainsFunc(out, r.equal) {
			continue
		}
		if out = append(out, r); len(out) > maxReaches {
			return []reach{{}}
		}
	}
	return out
}

func (r reach) equal(o reach) bool {
	return slices.Equal(r.atoms, o.atoms) && slices.Equal(r.protos, o.protos) && slices.Equal(r.ports, o.ports)
}

// everybody reports whether the peer may have any address.
func (r reach) everybody() bool { return r.atoms == nil }
