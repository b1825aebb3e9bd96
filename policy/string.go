package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/manekinet/maneki/desired"
)

// String is the whole state as text, the same for equal states.
func (s *State) String() string {
	var b strings.Builder
	for _, k := range slices.SortedFunc(maps.Keys(s.Endpoints), desired.EndpointKey.Compare) {
		s.Endpoints[k].write(&b)
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.Policies), ID.Compare) {
		s.Policies[id].write(&b)
	}
	for _, id := range slices.Sorted(maps.Keys(s.Sets)) {
		set := s.Sets[id]
		fmt.Fprintf(&b, "set %s (%s)\n", id, set.Selector)
		for _, m := range slices.SortedFunc(set.Members.All(), desired.Member.Compare) {
			fmt.Fprintf(&b, "  %s\n", m)
		}
	}
	return b.String()
}

func (e *Endpoint) write(b *strings.Builder) {
	what := "workload"
	name := e.Key.String()
	if e.Host {
		what, name = "host", e.Key.Name
	}
	fmt.Fprintf(b, "%s %s on %s [%s]\n", what, name, e.Interface, e.Addrs)
	for _, p := range []Place{PlaceUntracked, PlacePreDNAT, PlaceForward, PlaceNormal} {
		for _, d := range []Direction{Ingress, Egress} {
			for _, t := range e.At(p).In(d) {
				place := p.String() + " "
				if p == PlaceNormal {
					place = ""
				}
				fmt.Fprintf(b, "  %s%s tier %s: %s%s\n", place, d, t.Name, join(t.Policies), t.end())
			}
		}
	}
	if len(e.Profiles) > 0 {
		fmt.Fprintf(b, "  profiles %s\n", join(e.Profiles))
	}
}

func (t *Tier) end() string {
	switch {
	case t.EndDeny:
		return ", then deny"
	case t.EndDenyStaged:
		return ", then deny if staged policies were in force"
	}
	return ""
}

func join(ids []ID) string {
	words := make([]string, len(ids))
	for i, id := range ids {
		words[i] = id.String()
	}
	return strings.Join(words, ", ")
}

func (p *Policy) write(b *strings.Builder) {
	fmt.Fprintf(b, "policy %s", p.ID)
	if p.Tier != "" {
		fmt.Fprintf(b, " of tier %s", p.Tier)
	}
	if p.Staged {
		b.WriteString(", staged")
	}
	b.WriteByte('\n')
	if p.Broken != "" {
		fmt.Fprintf(b, "  broken: %s\n", p.Broken)
	}
	for _, d := range []Direction{Ingress, Egress} {
		for _, r := range p.Rules(d) {
			fmt.Fprintf(b, "  %s %d: %s\n    = %s\n", d, r.Index, r.Text, r.String())
		}
	}
}

// String is a rule with everything resolved.
func (r *Rule) String() string {
	words := []string{strings.ToLower(r.Do.String())}
	add := func(there bool, format string, args ...any) {
		if there {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	add(r.Family != 0, "ipv%d", r.Family)
	add(r.Protocol != 0, "protocol %d", r.Protocol)
	add(r.NotProtocol != 0, "not protocol %d", r.NotProtocol)
	add(r.ICMP != nil, "type %s", r.ICMP)
	add(r.NotICMP != nil, "not type %s", r.NotICMP)
	words = append(words, r.Src.words("src")...)
	words = append(words, r.Dst.words("dst")...)
	return strings.Join(words, " ")
}

func (e *Entity) words(end string) []string {
	var words []string
	add := func(there bool, format string, args ...any) {
		if there {
			words = append(words, end+" "+fmt.Sprintf(format, args...))
		}
	}
	add(e.Nets != nil, "in %v", e.Nets)
	add(len(e.NotNets) > 0, "not in %v", e.NotNets)
	add(e.Set != "", "@%s", e.Set)
	add(e.NotSet != "", "not @%s", e.NotSet)
	add(e.Service != "", "@%s", e.Service)
	add(!e.AnyPort, "port %v %v", e.Ports, e.Named)
	add(len(e.NotPorts)+len(e.NotNamed) > 0, "not port %v %v", e.NotPorts, e.NotNamed)
	return words
}
