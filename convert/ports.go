package convert

import (
	"cmp"
	"maps"
	"slices"
	"strconv"

	"github.com/manekinet/maneki/api"
)

// portSet is the ports of one protocol that a rule matches; all says that it
// does not look at the port.
type portSet struct {
	all    bool
	ranges []portRange
	names  []string
}

// portRange is a range of ports, both ends included.
type portRange struct{ low, high int }

// protocols is the ports of a rule by protocol; any says that it does not look
// at the protocol.
type protocols struct {
	any  bool
	sets map[string]*portSet
}

func newProtocols() *protocols { return &protocols{sets: map[string]*portSet{}} }

func (p *protocols) of(protocol string) *portSet {
	if p.sets[protocol] == nil {
		p.sets[protocol] = &portSet{}
	}
	return p.sets[protocol]
}

// matches lists protocol and ports of the rules needed, in the order of the
// protocols' names.
func (p *protocols) matches() []protocolMatch {
	if p.any || len(p.sets) == 0 {
		return []protocolMatch{{}}
	}
	var list []protocolMatch
	for _, name := range slices.Sorted(maps.Keys(p.sets)) {
		protocol := api.FromText(name)
		list = append(list, protocolMatch{protocol: &protocol, ports: p.sets[name].ports()})
	}
	return list
}

// protocolMatch is the protocol (nil: any) and the destination ports (nil: any)
// of one rule.
type protocolMatch struct {
	protocol *api.IntOrString
	ports    []api.IntOrString
}

// ports is the set in its shortest form: ranges that touch are one, in
// ascending order, then the names.
func (s *portSet) ports() []api.IntOrString {
	if s.all {
		return nil
	}
	ranges := slices.Clone(s.ranges)
	slices.SortFunc(ranges, func(a, b portRange) int { return cmp.Or(cmp.Compare(a.low, b.low), cmp.Compare(a.high, b.high)) })
	merged := ranges[:0]
	for _, r := range ranges {
		if n := len(merged); n > 0 && r.low <= merged[n-1].high+1 {
			merged[n-1].high = max(merged[n-1].high, r.high)
			continue
		}
		merged = append(merged, r)
	}
	var ports []api.IntOrString
	for _, r := range merged {
		if r.low == r.high {
			ports = append(ports, api.FromInt(r.low))
		} else {
			ports = append(ports, api.FromText(strconv.Itoa(r.low)+":"+strconv.Itoa(r.high)))
		}
	}
	names := slices.Clone(s.names)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		ports = append(ports, api.FromText(name))
	}
	return ports
}
