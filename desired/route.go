package desired

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// TableMain is the kernel's main routing table (RT_TABLE_MAIN of rtnetlink(7)).
const TableMain = 254

// TableLocal is the kernel's table of what is delivered to this host (RT_TABLE_LOCAL).
const TableLocal = 255

// DefaultPriority6 is the metric that the kernel gives to an IPv6 route that is written without one
// (IP6_RT_PRIO_USER of net/ipv6.h). IPv4 has no such rule: 0 stays 0.
const DefaultPriority6 = 1024

// Route protocol numbers: the only ones that we write (rtm_protocol of rtnetlink(7)). They say who owns a route.
const (
	// ProtoEndpoint marks routes to local workloads. It is "boot", the default of Calico's deviceRouteProtocol;
	// such a route is ours only on an interface with our prefix.
	ProtoEndpoint = 3
	// ProtoComputed marks routes calculated from the datastore: own blocks, tunnels. Felix uses the same number.
	ProtoComputed = 80
	// ProtoBGP marks routes learnt by our BGP speaker.
	ProtoBGP = 81
)

// RouteType says what the kernel does with a packet that a route matches. Names are those of ip-route(8).
type RouteType uint8

const (
	// Unicast forwards to Gateway, or to the neighbour itself on Dev when there is no gateway.
	Unicast RouteType = iota
	// Blackhole discards silently. It keeps packets for free addresses of an own block from leaving by the
	// default route.
	Blackhole
	// Local delivers to this host, whatever addresses its interfaces have. Its device is lo.
	Local
	// Other is never wanted. It stands for a kernel route of ours in a shape that we do not write (unreachable,
	// weighted next hops, two routes under one key), which therefore differs from everything that is wanted.
	Other
)

// String is the name that ip-route(8) uses.
func (t RouteType) String() string {
	switch t {
	case Unicast:
		return "unicast"
	case Blackhole:
		return "blackhole"
	case Local:
		return "local"
	case Other:
		return "other"
	}
	return "type " + strconv.Itoa(int(t))
}

// RouteKey identifies a route the way the kernel does: one per table, destination and priority. Use NewRouteKey, or
// Normal on a literal, so that equal routes have equal keys.
type RouteKey struct {
	Table    int          // 254 is the main table
	Dst      netip.Prefix // masked
	Priority uint32       // the metric; never 0 for IPv6
}

// NewRouteKey is the key of a route in the main table with the kernel's default priority.
func NewRouteKey(dst netip.Prefix) RouteKey { return RouteKey{Dst: dst}.Normal() }

// Normal is the key as the kernel shows it: host bits cleared, IPv4-mapped destinations as IPv4, table 0 as main, IPv6
// priority 0 as 1024.
func (k RouteKey) Normal() RouteKey {
	if a := k.Dst.Addr(); a.Is4In6() && k.Dst.Bits() >= 96 {
		k.Dst = netip.PrefixFrom(a.Unmap(), k.Dst.Bits()-96)
	}
	k.Dst = k.Dst.Masked()
	if k.Table == 0 {
		k.Table = TableMain
	}
	if k.Priority == 0 && k.Dst.Addr().Is6() {
		k.Priority = DefaultPriority6
	}
	return k
}

// Compare orders keys by table, family, destination address, prefix length (shorter first) and priority.
func (k RouteKey) Compare(o RouteKey) int {
	if k.Table != o.Table {
		return k.Table - o.Table
	}
	if c := k.Dst.Addr().Compare(o.Dst.Addr()); c != 0 {
		return c
	}
	if c := k.Dst.Bits() - o.Dst.Bits(); c != 0 {
		return c
	}
	switch {
	case k.Priority < o.Priority:
		return -1
	case k.Priority > o.Priority:
		return 1
	}
	return 0
}

// String is the key in the words of ip-route(8): "192.168.57.64/26", "fd00::/122 metric 1024", "10.0.0.1 table 100".
func (k RouteKey) String() string {
	var b strings.Builder
	b.WriteString(destination(k.Dst))
	if k.Table != TableMain && k.Table != 0 {
		fmt.Fprintf(&b, " table %d", k.Table)
	}
	if k.Priority != 0 {
		fmt.Fprintf(&b, " metric %d", k.Priority)
	}
	return b.String()
}

// Route is what the kernel does for the destination of a RouteKey. The zero value of a field means "not set".
type Route struct {
	Type      RouteType
	Gateway   netip.Addr // next hop; invalid when the destination is on the link itself. IPv6 for an IPv4 destination is RFC 8950's
	Dev       string     // interface name; empty for Blackhole and Local
	Onlink    bool       // the gateway is on Dev although no connected route says so
	LinkScope bool       // scope link: an IPv4 route without a gateway. IPv6 has no scopes
	Proto     int        // ProtoEndpoint, ProtoComputed or ProtoBGP
	MTU       int        // bytes; 0 is that of Dev
	Src       netip.Addr // preferred source address of packets from this host
	NextHops  NextHops   // two or more of equal weight (multipath); Gateway, Dev and Onlink are then not set
}

// Normal is the route as the kernel shows it for a destination: no device on what is not unicast, no scope in IPv6, and scope
// link on every IPv4 unicast route without a gateway.
func (r Route) Normal(dst netip.Prefix) Route {
	r.Gateway, r.Src = r.Gateway.Unmap(), r.Src.Unmap()
	if r.Type != Unicast {
		return Route{Type: r.Type, Proto: r.Proto}
	}
	if r.NextHops != (NextHops{}) {
		r = r.Via(r.NextHops)
	}
	r.Gateway = r.Gateway.WithZone("")
	r.LinkScope = dst.Addr().Unmap().Is4() && !r.Gateway.IsValid() && r.NextHops == NextHops{}
	return r
}

// Validate says why the kernel could not hold the route, naming the field.
func (r Route) Validate(k RouteKey) error {
	switch {
	case !k.Dst.IsValid():
		return fmt.Errorf("route: destination is missing: must be a prefix")
	case k != k.Normal():
		return fmt.Errorf("route %s: key is not normal: must be %s in table %d", k, k.Normal(), k.Normal().Table)
	case r.Type != Unicast && r.Type != Blackhole && r.Type != Local:
		return fmt.Errorf("route %s: type %s: must be unicast, blackhole or local", k, r.Type)
	case r.Proto <= 0 || r.Proto > 255:
		return fmt.Errorf("route %s: protocol %d: must be 1 to 255", k, r.Proto)
	case r.Type != Unicast:
		return nil
	case r.MTU < 0:
		return fmt.Errorf("route %s: mtu %d: must not be negative", k, r.MTU)
	case r.Src.IsValid() && r.Src.Unmap().Is4() != k.Dst.Addr().Is4():
		return fmt.Errorf("route %s: source %s is of the other family", k, r.Src)
	case r.NextHops != NextHops{}:
		return r.validateHops(k)
	}
	return NextHop{Gateway: r.Gateway, Dev: r.Dev, Onlink: r.Onlink}.validate(k)
}

// String is the route without its destination, "via 172.18.0.3 dev eth0 proto 81".
func (r Route) String() string {
	words := make([]string, 0, 12)
	if r.Type != Unicast {
		words = append(words, r.Type.String())
	}
	words = append(words, r.hop(false)...)
	words = append(words, r.owner()...)
	words = append(words, r.metrics()...)
	words = append(words, r.NextHops.words(false)...)
	return strings.Join(words, " ")
}

// Line is the route as ip-route(8) prints it, for instance
//
//	192.168.57.64/26 via 172.18.0.3 dev eth0 proto 81
//	blackhole 192.168.36.192/26 proto 80
//	192.168.36.192 dev cali123 scope link
//	fd00:10::40/122 via fd01::3 dev eth0 proto 81 metric 1024 pref medium
//	10.0.0.0/26 via inet6 fe80::1 dev eth0 proto 81
//	10.0.0.0/26 proto 81 nexthop via 10.1.0.1 dev eth0 weight 1 nexthop via 10.2.0.1 dev eth1 weight 1
//
// The last words are the kernel's own for every IPv6 route, as is the "dev lo" of an IPv6 blackhole.
func (r Route) Line(k RouteKey) string {
	words := make([]string, 0, 16)
	if r.Type != Unicast {
		words = append(words, r.Type.String())
	}
	words = append(words, destination(k.Dst))
	six := k.Dst.Addr().Is6()
	if r.Type == Blackhole && six {
		words = append(words, "dev lo")
	}
	words = append(words, r.hop(!six)...)
	if k.Table != TableMain {
		words = append(words, "table", strconv.Itoa(k.Table))
	}
	words = append(words, r.owner()...)
	if k.Priority != 0 {
		words = append(words, "metric", strconv.FormatUint(uint64(k.Priority), 10))
	}
	words = append(words, r.metrics()...)
	if six {
		words = append(words, "pref medium")
	}
	words = append(words, r.NextHops.words(!six)...)
	return strings.Join(words, " ")
}

func (r Route) hop(v4 bool) []string { return NextHop{Gateway: r.Gateway, Dev: r.Dev}.words(v4) }

func (r Route) owner() []string {
	var words []string
	// ip-route(8) leaves "boot" out: it is what a route typed by hand gets.
	if r.Proto != 0 && r.Proto != ProtoEndpoint {
		words = append(words, "proto", strconv.Itoa(r.Proto))
	}
	if r.LinkScope {
		words = append(words, "scope link")
	}
	if r.Src.IsValid() {
		words = append(words, "src", r.Src.String())
	}
	return words
}

func (r Route) metrics() []string {
	var words []string
	if r.Onlink {
		words = append(words, "onlink")
	}
	if r.MTU != 0 {
		words = append(words, "mtu", strconv.Itoa(r.MTU))
	}
	return words
}

// destination prints a prefix as ip-route(8) does: "default", and single addresses without their length.
func destination(p netip.Prefix) string {
	switch {
	case !p.IsValid():
		return "invalid"
	case p.Bits() == 0:
		return "default"
	case p.IsSingleIP():
		return p.Addr().String()
	}
	return p.String()
}

// Routes is every route that this host should have.
type Routes map[RouteKey]Route

// Add puts a route into the map in normal form.
func (rs Routes) Add(k RouteKey, r Route) {
	k = k.Normal()
	rs[k] = r.Normal(k.Dst)
}

// Keys is all keys in order.
func (rs Routes) Keys() []RouteKey {
	return slices.SortedFunc(maps.Keys(rs), RouteKey.Compare)
}

// String is one line of ip-route(8) per route, in the order of Keys.
func (rs Routes) String() string {
	var b strings.Builder
	for _, k := range rs.Keys() {
		b.WriteString(rs[k].Line(k))
		b.WriteByte('\n')
	}
	return b.String()
}
