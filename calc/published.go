package calc

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/desired"
)

// priorityDstNAT is just before the chains in which Docker and kube-proxy translate destinations.
const priorityDstNAT = -110

// The objects of published ports.
const (
	mapPublished   = "published"
	setHairpin     = "published_hairpin"
	chainPublished = "published_" // and protocol and port
)

// published is a port of a workload that this host serves at addresses of its own, as docker run -p asks for.
type published struct {
	proto uint8
	at    netip.Addr // of this host; unspecified: any of its family
	port  uint16
	to    netip.AddrPort
	dev   string // of the workload
}

// overlaps reports that a packet could be meant for both.
func (x published) overlaps(y published) bool {
	all := x.at.IsUnspecified() || y.at.IsUnspecified()
	return x.proto == y.proto && x.port == y.port && x.at.Is4() == y.at.Is4() && (all || x.at == y.at)
}

// publishedPorts are the host ports in the endpoints of this host's Docker containers. Those of pods are the business of
// the plugin portmap.
func (c *Core) publishedPorts(eps desired.Endpoints, p *problems) []published {
	var out []published
	for _, k := range slices.SortedFunc(maps.Keys(eps), desired.EndpointKey.Compare) {
		w := c.endpoints[k]
		if w == nil || w.Spec.Orchestrator != "libnetwork" {
			continue
		}
		for i := range w.Spec.Ports {
			for _, a := range eps[k].Addrs.Addrs() {
				x, ok, err := publishedAt(&w.Spec.Ports[i], a)
				if err != nil {
					p.add("WorkloadEndpoint(%s): port %d is not published: %v", k, w.Spec.Ports[i].Port, err)
				}
				if !ok {
					continue
				}
				x.dev = eps[k].Interface
				if slices.ContainsFunc(out, x.overlaps) {
					p.add("WorkloadEndpoint(%s): port %d of this host is published by another endpoint", k, x.port)
					continue
				}
				out = append(out, x)
			}
		}
	}
	return out
}

// publishedAt is a port of the workload with the address; ok is false for a port that is not published, or at addresses
// of the other family only.
func publishedAt(port *api.EndpointPort, a netip.Addr) (x published, ok bool, err error) {
	if port.HostPort == 0 {
		return x, false, nil
	}
	x = published{port: port.HostPort, to: netip.AddrPortFrom(a, port.Port), at: netip.IPv6Unspecified()}
	if a.Is4() {
		x.at = netip.IPv4Unspecified()
	}
	if x.proto, err = protocolNumber(&port.Protocol); err != nil {
		return x, false, err
	}
	if port.HostIP == "" {
		return x, true, nil
	}
	at, err := netip.ParseAddr(port.HostIP)
	if err != nil {
		return x, false, fmt.Errorf("hostIP %q is not an address", port.HostIP)
	}
	x.at = at
	return x, at.Is4() == a.Is4(), nil
}

// publish adds what leads to published ports, and returns what is needed on the way out.
func (c *Core) publish(out *desired.NFT, ports []published) []desired.Rule {
	if len(ports) == 0 {
		return nil
	}
	rules := map[string][]desired.Rule{}
	var elements []desired.Element
	byPort := desired.NewSetType(false, desired.TypeProto, desired.TypePort)
	byPort.Verdicts = true
	// The address that says most comes first.
	slices.SortStableFunc(ports, func(x, y published) int { return generality(x) - generality(y) })
	for _, x := range ports {
		chain := fmt.Sprintf("%s%d_%d", chainPublished, x.proto, x.port)
		if rules[chain] == nil {
			to := desired.Verdict{Do: desired.Goto, Chain: chain}
			elements = append(elements, byPort.Element(to, desired.ProtoPart(x.proto), desired.PortPart(x.port, x.port)))
		}
		rules[chain] = append(rules[chain], x.rule())
	}
	for chain, list := range rules {
		out.AddChain(chain, desired.Hook{}, list...)
	}
	out.AddElements(mapPublished, byPort, desired.NewElements(elements...))
	ask := desired.Rule{Match: []desired.Match{desired.LocalDst()}, Do: desired.VMap, Map: mapPublished, Key: []desired.Field{desired.FieldProto, desired.FieldDstPort}}
	var way []desired.Rule
	if a := c.opts.LocalAddr; a.IsValid() { // the workloads' own
		way = append(way, desired.Rule{Match: []desired.Match{desired.DstNet(netip.PrefixFrom(a, a.BitLen()))}, Do: desired.Return})
	}
	way = append(way, ask)
	out.AddChain("nat_prerouting", desired.Hook{Type: "nat", Name: "prerouting", Priority: priorityDstNAT}, way...)
	out.AddChain("nat_output", desired.Hook{Type: "nat", Name: "output", Priority: priorityDstNAT}, way...)
	return c.hairpins(out, ports)
}

func generality(x published) int {
	if x.at.IsUnspecified() {
		return 1
	}
	return 0
}

func (x published) rule() desired.Rule {
	r := desired.Rule{Do: desired.DNAT, Counter: true, NAT: desired.NAT{Addr: x.to.Addr(), From: x.to.Port()}}
	if x.at.IsUnspecified() {
		r.Match = []desired.Match{desired.Family(map[bool]uint8{true: 4, false: 6}[x.at.Is4()])}
	} else {
		r.Match = []desired.Match{desired.DstNet(netip.PrefixFrom(x.at, x.at.BitLen()))}
	}
	return r
}

// hairpins gives two kinds of packets this host's address, so that the answer comes back here: those of a workload to
// its own published port, which it would take for its own; and this host's from 127.0.0.1.
func (c *Core) hairpins(out *desired.NFT, ports []published) []desired.Rule {
	rules := []desired.Rule{masqueraded(desired.OutInterface(c.opts.InterfacePrefix+"*"), desired.SrcNet(netip.MustParsePrefix("127.0.0.0/8")))}
	for _, v4 := range []bool{true, false} {
		t := desired.NewSetType(false, desired.TypeInterface, desired.SrcField(v4).Type())
		var list []desired.Element
		for _, x := range ports {
			if a := x.to.Addr(); a.Is4() == v4 {
				list = append(list, t.Element(desired.Verdict{}, desired.InterfacePart(x.dev), desired.AddrPart(netip.PrefixFrom(a, a.BitLen()))))
			}
		}
		slices.SortFunc(list, func(x, y desired.Element) int { return slices.Compare([]byte(x.Key), []byte(y.Key)) })
		if list = slices.Compact(list); len(list) > 0 {
			out.AddElements(setName(setHairpin, v4), t, desired.NewElements(list...))
			rules = append(rules, masqueraded(desired.InSet(setName(setHairpin, v4), desired.FieldOut, desired.SrcField(v4))))
		}
	}
	return rules
}
