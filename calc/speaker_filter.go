package calc

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp/filter"
)

// filters are the BGPFilters that sessions name. One that does not exist, or
// cannot be read, refuses everything: nobody knows what it was to keep away.
func (c *Core) filters(names []string, p *problems) map[string]filter.Filter {
	out := map[string]filter.Filter{}
	for _, name := range names {
		if _, done := out[name]; done {
			continue
		}
		res := c.bgpFilters[name]
		if res == nil {
			p.add("BGPFilter(%s) does not exist: its peers exchange no routes", name)
			continue
		}
		f, err := Filter(res)
		if err != nil {
			p.add("%v: its peers exchange no routes", err)
			continue
		}
		out[name] = f
	}
	return out
}

// Filter is what a BGPFilter means to the speaker. The error names the rule.
func Filter(res *api.BGPFilter) (filter.Filter, error) {
	out := filter.Filter{Name: res.Name}
	s := &res.Spec
	for _, list := range []struct {
		name  string
		rules []api.BGPFilterRule
		into  *[]filter.Rule
	}{
		{"exportV4", s.ExportV4, &out.Export4},
		{"importV4", s.ImportV4, &out.Import4},
		{"exportV6", s.ExportV6, &out.Export6},
		{"importV6", s.ImportV6, &out.Import6},
	} {
		for i := range list.rules {
			r, err := filterRule(&list.rules[i])
			if err != nil {
				return filter.Filter{}, fmt.Errorf("BGPFilter(%s): %s[%d]: %w", res.Name, list.name, i, err)
			}
			*list.into = append(*list.into, r)
		}
	}
	return out, nil
}

func filterRule(r *api.BGPFilterRule) (filter.Rule, error) {
	out := filter.Rule{
		RemotePeers: r.Source == "RemotePeers", Interface: r.Interface, ASPathPrefix: numbers(r.ASPathPrefix), Accept: r.Action == "Accept",
	}
	if r.CIDR != "" {
		cidr, err := netip.ParsePrefix(r.CIDR)
		if err != nil {
			return out, fmt.Errorf("cidr %q: want a prefix such as 10.0.0.0/8", r.CIDR)
		}
		out.CIDR = cidr.Masked()
	}
	var ok bool
	if out.Match, ok = map[string]filter.Match{
		"": filter.MatchAny, "Equal": filter.Equal, "NotEqual": filter.NotEqual,
		"In": filter.In, "NotIn": filter.NotIn,
	}[r.MatchOperator]; !ok {
		return out, fmt.Errorf("matchOperator %q: want Equal, NotEqual, In or NotIn", r.MatchOperator)
	}
	if out.PeerType, ok = map[string]filter.PeerType{"": filter.AnyPeer, "eBGP": filter.ExternalPeer, "iBGP": filter.InternalPeer}[r.PeerType]; !ok {
		return out, fmt.Errorf("peerType %q: want eBGP or iBGP", r.PeerType)
	}
	if l := r.PrefixLength; l != nil {
		out.Min, out.Max = number(l.Min), number(l.Max)
		if l.Max != nil && *l.Max == 0 { // to the filter, 0 is no limit; no other length than 0 is not above it
			out.Max = max(1, out.CIDR.Bits())
			switch {
			case out.CIDR.Bits() > 0:
				out.Min = out.Max + 1
			case out.Match == filter.In:
				out.Match = filter.Equal
			case out.Match == filter.NotIn:
				out.Match = filter.NotEqual
			}
		}
	}
	if m := r.Communities; m != nil && len(m.Values) == 1 {
		out.Community = m.Values[0]
	} else if m != nil {
		return out, fmt.Errorf("communities: has %d values, want one", len(m.Values))
	}
	out.Priority = uint32(number(r.Priority))
	for _, op := range r.Operations {
		var o filter.Operation
		switch {
		case op.AddCommunity != nil:
			o.AddCommunity = op.AddCommunity.Value
		case op.PrependASPath != nil:
			o.PrependASPath = numbers(op.PrependASPath.Prefix)
		case op.SetPriority != nil:
			o.SetPriority = uint32(op.SetPriority.Value)
		}
		out.Operations = append(out.Operations, o)
	}
	return out, nil
}

func number(n *int) int {
	if n == nil {
		return 0
	}
	return *n
}

func numbers(in []api.ASNumber) []uint32 {
	var out []uint32
	for _, n := range in {
		out = append(out, uint32(n))
	}
	return out
}

// connected are the subnets of this host's interfaces, for filters.
func (c *Core) connected() map[netip.Prefix]string {
	out := map[netip.Prefix]string{}
	for _, l := range c.links {
		if !l.Up || !c.underlayLink(l.Name) {
			continue
		}
		for _, a := range l.Addrs {
			if old, taken := out[a.Masked()]; !a.IsSingleIP() && (!taken || l.Name < old) {
				out[a.Masked()] = l.Name
			}
		}
	}
	return out
}

// filterNames are the names in use, sorted.
func filterNames(sessions map[netip.Addr]wanted) []string {
	names := map[string]bool{}
	for _, w := range sessions {
		for _, n := range strings.Fields(w.Filters) {
			names[n] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}
