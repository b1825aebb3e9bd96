package explain

import (
	"fmt"
	"strings"

	"github.com/manekinet/maneki/policy"
)

// HitKey names a rule, or with Rule -1 the end of a tier or of the profiles, of
// one direction of an endpoint. Endpoints to which the same policies apply
// share their counters.
type HitKey struct {
	Direction policy.Direction
	Tier      string
	Policy    string // policy.ID as text; empty where no policy decided
	Rule      int
}

// Hits counts connections' first packets.
type Hits struct{ Packets, Bytes uint64 }

// Show prints what applies to an endpoint, in the order in which it is asked,
// with the hits where they are known; hits may be nil. name is what people call
// the endpoint.
func Show(s *policy.State, ep *policy.Endpoint, name string, hits map[HitKey]Hits) string {
	var b strings.Builder
	kind := "workload"
	if ep.Host {
		kind = "host endpoint"
	}
	fmt.Fprintf(&b, "%s %s, interface %s, %s\n", kind, name, ep.Interface, ep.Addrs)
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		for _, place := range []policy.Place{policy.PlaceUntracked, policy.PlacePreDNAT, policy.PlaceForward, policy.PlaceNormal} {
			tiers := ep.At(place).In(d)
			if place != policy.PlaceNormal && len(tiers) == 0 {
				continue
			}
			w := showing{s: s, b: &b, d: d, hits: hits}
			fmt.Fprintf(&b, "\n%s%s\n", d, map[bool]string{true: ", " + place.String()}[place != policy.PlaceNormal])
			for _, t := range tiers {
				w.tier(t)
			}
			if place == policy.PlaceNormal {
				w.profiles(ep)
			}
		}
	}
	return b.String()
}

// showing is the printing of one direction.
type showing struct {
	s    *policy.State
	b    *strings.Builder
	d    policy.Direction
	hits map[HitKey]Hits
}

func (w showing) line(indent, text string, key HitKey) {
	count := ""
	if h, known := w.hits[key]; known {
		count = fmt.Sprintf("  [%d packets, %d bytes]", h.Packets, h.Bytes)
	}
	fmt.Fprintf(w.b, "%s%s%s\n", indent, text, count)
}

func (w showing) tier(t policy.Tier) {
	fmt.Fprintf(w.b, "  tier %s\n", t.Name)
	for _, id := range t.Policies {
		if p := w.s.Policies[id]; p != nil {
			w.policy("    ", t.Name, p)
		}
	}
	end := "what no policy of the tier matched goes on"
	if t.EndDeny {
		end = "what no policy of the tier matched is denied"
	}
	w.line("    ", "end: "+end, HitKey{w.d, t.Name, "", -1})
}

func (w showing) policy(indent, tier string, p *policy.Policy) {
	note := ""
	if p.Staged {
		note = " (staged: decides nothing)"
	}
	fmt.Fprintf(w.b, "%s%s%s\n", indent, p.ID, note)
	if p.Broken != "" {
		w.line(indent+"  ", "denies everything, because it cannot be enforced as it is written: "+p.Broken, HitKey{w.d, tier, p.ID.String(), -1})
	}
	last := -1
	for i, r := range p.Rules(w.d) {
		if r.Index == last {
			continue // one rule of the author that was taken apart
		}
		last = r.Index
		w.line(indent+"  ", fmt.Sprintf("%d. %s", r.Index+1, p.Rules(w.d)[i].Text), HitKey{w.d, tier, p.ID.String(), r.Index})
	}
}

func (w showing) profiles(ep *policy.Endpoint) {
	fmt.Fprint(w.b, "  profiles, where no tier decided\n")
	for _, id := range ep.Profiles {
		if p := w.s.Policies[id]; p != nil {
			w.policy("    ", "", p)
			continue
		}
		fmt.Fprintf(w.b, "    %s does not exist and says nothing\n", id)
	}
	w.line("    ", "end: what no profile matched is denied", HitKey{w.d, "", "", -1})
}
