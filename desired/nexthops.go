package desired

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// NextHop is one way on: a gateway on an interface.
type NextHop struct {
	Gateway netip.Addr // without a zone: Dev says where it is
	Dev     string
	Onlink  bool // the gateway is on Dev although no connected route says so
}

// String is the next hop in the words of ip-route(8), for a destination of the gateway's family.
func (h NextHop) String() string { return strings.Join(h.words(false), " ") }

// words are those of ip-route(8); for an IPv4 destination an IPv6 gateway is named with its family.
func (h NextHop) words(v4 bool) []string {
	var out []string
	if h.Gateway.IsValid() {
		out = append(out, "via")
		if v4 && h.Gateway.Is6() {
			out = append(out, "inet6")
		}
		out = append(out, h.Gateway.String())
	}
	if h.Dev != "" {
		out = append(out, "dev", h.Dev)
	}
	return out
}

// Compare orders next hops by gateway, then interface.
func (h NextHop) Compare(o NextHop) int {
	return cmp.Or(h.Gateway.Compare(o.Gateway), strings.Compare(h.Dev, o.Dev))
}

// NextHops is an immutable set of next hops of equal weight that can be compared with ==. The zero value is the empty
// set.
type NextHops struct{ text string }

// The text is three words for each hop, which neither an address nor an interface name can hold a blank of.
const (
	hopWords  = 3
	onlinkYes = "onlink"
	onlinkNo  = "-"
	noGateway = "-"
)

// NewNextHops is the set of the hops given; order and repetition do not matter. Zones are dropped, and IPv4-mapped
// addresses count as IPv4.
func NewNextHops(hops ...NextHop) NextHops {
	sorted := make([]NextHop, 0, len(hops))
	for _, h := range hops {
		h.Gateway = h.Gateway.Unmap().WithZone("")
		sorted = append(sorted, h)
	}
	slices.SortFunc(sorted, NextHop.Compare)
	sorted = slices.CompactFunc(sorted, func(a, b NextHop) bool { return a.Compare(b) == 0 })
	words := make([]string, 0, hopWords*len(sorted))
	for _, h := range sorted {
		onlink := onlinkNo
		if h.Onlink {
			onlink = onlinkYes
		}
		gateway := noGateway
		if h.Gateway.IsValid() {
			gateway = h.Gateway.String()
		}
		words = append(words, gateway, h.Dev, onlink)
	}
	return NextHops{strings.Join(words, " ")}
}

// List is the hops in order.
func (s NextHops) List() []NextHop {
	if s.text == "" {
		return nil
	}
	words := strings.Split(s.text, " ")
	hops := make([]NextHop, len(words)/hopWords)
	for i := range hops {
		w := words[hopWords*i:]
		hops[i] = NextHop{Dev: w[1], Onlink: w[2] == onlinkYes}
		if w[0] != noGateway {
			hops[i].Gateway = netip.MustParseAddr(w[0]) // written by NewNextHops
		}
	}
	return hops
}

// Len is the number of hops.
func (s NextHops) Len() int { return len(s.List()) }

// String is the hops as ip-route(8) takes them: "nexthop via 10.0.0.1 dev eth0 weight 1 nexthop via ...".
func (s NextHops) String() string { return strings.Join(s.words(false), " ") }

func (s NextHops) words(v4 bool) []string {
	var out []string
	for _, h := range s.List() {
		out = append(append(append(out, "nexthop"), h.words(v4)...), "weight", "1")
		if h.Onlink {
			out = append(out, "onlink")
		}
	}
	return out
}

// Format makes %v and %+v print the hops, also inside other structs, where a Stringer is not called.
func (s NextHops) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// Via makes the set the way on of a route: a single hop goes into the route's own fields.
func (r Route) Via(s NextHops) Route {
	hops := s.List()
	r.Gateway, r.Dev, r.Onlink, r.NextHops = netip.Addr{}, "", false, NextHops{}
	switch len(hops) {
	case 0:
	case 1:
		r.Gateway, r.Dev, r.Onlink = hops[0].Gateway, hops[0].Dev, hops[0].Onlink
	default:
		r.NextHops = s
	}
	return r
}

// Hops are the next hops of a route in order; none of a blackhole.
func (r Route) Hops() []NextHop {
	switch {
	case r.Type != Unicast:
		return nil
	case r.NextHops != NextHops{}:
		return r.NextHops.List()
	}
	return []NextHop{{Gateway: r.Gateway, Dev: r.Dev, Onlink: r.Onlink}}
}

// validateHops checks the hops of a multipath route.
func (r Route) validateHops(k RouteKey) error {
	hops := r.NextHops.List()
	if len(hops) < 2 {
		return fmt.Errorf("route %s: %d next hops: must be two or more, or none beside gateway and interface", k, len(hops))
	}
	if r.Gateway.IsValid() || r.Dev != "" || r.Onlink {
		return fmt.Errorf("route %s: gateway or interface beside next hops", k)
	}
	for _, h := range hops {
		if err := h.validate(k); err != nil {
			return err
		}
		if !h.Gateway.IsValid() {
			return fmt.Errorf("route %s: next hop on %s without a gateway", k, h.Dev)
		}
	}
	return nil
}

func (h NextHop) validate(k RouteKey) error {
	switch {
	case h.Dev == "":
		return fmt.Errorf("route %s: interface is missing", k)
	case h.Gateway.IsValid() && h.Gateway.Unmap().Is4() && k.Dst.Addr().Is6():
		return fmt.Errorf("route %s: gateway %s is of the other family", k, h.Gateway)
	case h.Gateway.Zone() != "":
		return fmt.Errorf("route %s: gateway %s has a zone: the interface is named beside it", k, h.Gateway)
	case h.Onlink && !h.Gateway.IsValid():
		return fmt.Errorf("route %s: onlink without a gateway", k)
	}
	return nil
}
