package trace

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Kind says what a member of the network is.
type Kind string

// The kinds.
const (
	Host      Kind = "host"
	Container Kind = "container"
	Router    Kind = "router"
	Switch    Kind = "switch"
)

// Seen says where the knowledge about a member comes from.
type Seen string

// The sources.
const (
	Kernel    Seen = "kernel"    // looked at while tracing
	Datastore Seen = "datastore" // computed: what the member should be
	Assumed   Seen = "assumed"   // nothing is known of it
)

// View is what one network namespace has, as far as forwarding goes.
type View struct {
	Name  string
	Kind  Kind
	Seen  Seen
	Links []Link
	// Routes are the whole tables where they decide, and an explanation where the kernel is asked.
	Routes     []Route
	Rules      []Rule
	Neighbours []Neighbour
	FDB        []FDBEntry
	// Filters are those of others through which a packet may not pass.
	Filters []Filter
	// NoForward4 and NoForward6: packets that are not for it are dropped.
	NoForward4, NoForward6 bool

	// ask puts the question to the kernel; nil: Routes decide.
	ask   func(Query) (Route, error)
	close func()
}

// Close gives back what a live view holds; a computed one holds nothing.
func (v *View) Close() {
	if v != nil && v.close != nil {
		v.close()
	}
}

// Link is one interface.
type Link struct {
	Name     string
	Index    int    // 0 is unknown
	Peer     int    // index of the other end of a veth, in its namespace; else 0
	Type     string // as ip-link(8) calls it: veth, vxlan, ipip, bridge, ...; empty when only its address is known
	Up       bool
	Carrier  bool
	MTU      int // bytes; 0 is unknown
	MAC      string
	Addrs    []netip.Prefix
	VNI      int        // of a VXLAN device
	Port     int        // UDP, of a VXLAN device
	Local    netip.Addr // source of the packets that a tunnel device makes; invalid: by the route
	ProxyARP bool       // answers for every address that the host has a route to
}

// Rule is one line of ip-rule(8).
type Rule struct {
	Priority int
	Table    int
	From     netip.Prefix // invalid: from all
	IIF      string
	Mark     uint32
	V6       bool
}

// String is the rule as ip-rule(8) prints it.
func (r Rule) String() string {
	var b strings.Builder
	b.WriteString(strconv.Itoa(r.Priority) + ": from ")
	if r.From.IsValid() {
		b.WriteString(r.From.String())
	} else {
		b.WriteString("all")
	}
	if r.Mark != 0 {
		b.WriteString(" fwmark 0x" + strconv.FormatUint(uint64(r.Mark), 16))
	}
	if r.IIF != "" {
		b.WriteString(" iif " + r.IIF)
	}
	return b.String() + " lookup " + tableName(r.Table)
}

// Tables of rtnetlink(7) that have names.
const (
	tableDefault = 253
	tableMain    = 254
	tableLocal   = 255
)

func tableName(n int) string {
	switch n {
	case tableDefault:
		return "default"
	case tableMain, 0:
		return "main"
	case tableLocal:
		return "local"
	}
	return strconv.Itoa(n)
}

// RouteType is how a route treats packets, in the words of ip-route(8).
type RouteType string

// The types that matter here; others are taken as they are named.
const (
	Unicast   RouteType = "unicast"
	Local     RouteType = "local"
	Blackhole RouteType = "blackhole"
)

// Route is one route.
type Route struct {
	Dst      netip.Prefix
	Type     RouteType
	Gateway  netip.Addr
	Dev      string
	Onlink   bool
	Table    int
	Priority int
	MTU      int
	Line     string // as ip-route(8) prints it
	// Ways are all next hops where there are several, a line each as ip-route(8) prints them; Gateway and Dev are those of the
	// one that is followed.
	Ways string
}

// Filter is a packet filter that is not ours.
type Filter struct {
	Name   string // "ip filter FORWARD"
	Hook   string // empty: not known, as with the older iptables
	V4, V6 bool
	What   string // what it may do to a packet
}

// Neighbour is an entry of ip-neighbour(8).
type Neighbour struct {
	Dev   string
	Addr  netip.Addr
	MAC   string
	State string // PERMANENT, REACHABLE, STALE, FAILED, ...
}

// FDBEntry is an entry of a VXLAN device's forwarding table.
type FDBEntry struct {
	Dev, MAC string
	Dst      netip.Addr
}

// Query is what a packet looks like to the routing.
type Query struct {
	Src, Dst netip.Addr // Src may be invalid: not chosen yet
	In       string     // interface it came by; empty: it starts here
}

// Link returns an interface.
func (v *View) Link(name string) (Link, bool) {
	i := slices.IndexFunc(v.Links, func(l Link) bool { return l.Name == name })
	if i < 0 {
		return Link{Name: name}, false
	}
	return v.Links[i], true
}

// Owner returns the interface that has an address.
func (v *View) Owner(a netip.Addr) (Link, bool) {
	for _, l := range v.Links {
		for _, p := range l.Addrs {
			if p.Addr() == a {
				return l, true
			}
		}
	}
	return Link{}, false
}

// addr is an address of the family that the view has, link-local ones last.
func (v *View) addr(v4 bool) netip.Addr {
	var found netip.Addr
	for _, l := range v.Links {
		for _, p := range l.Addrs {
			a := p.Addr()
			switch {
			case a.Is4() != v4 || a.IsLoopback():
			case !found.IsValid(), found.IsLinkLocalUnicast():
				found = a
			}
		}
	}
	return found
}

func (v *View) neighbour(dev string, a netip.Addr) (Neighbour, bool) {
	i := slices.IndexFunc(v.Neighbours, func(n Neighbour) bool { return n.Dev == dev && n.Addr == a })
	if i < 0 {
		return Neighbour{}, false
	}
	return v.Neighbours[i], true
}

func (v *View) behind(dev, mac string) (netip.Addr, bool) {
	i := slices.IndexFunc(v.FDB, func(f FDBEntry) bool { return f.Dev == dev && f.MAC == mac })
	if i < 0 {
		return netip.Addr{}, false
	}
	return v.FDB[i].Dst, true
}

// rule finds the rule that led to a table.
func (v *View) rule(table int, q Query) (Rule, bool) {
	i := slices.IndexFunc(v.Rules, func(r Rule) bool {
		return r.Table == table && r.V6 == q.Dst.Is6() && (r.IIF == "" || r.IIF == q.In) &&
			(!r.From.IsValid() || r.From.Contains(q.Src))
	})
	if i < 0 {
		return Rule{}, false
	}
	return v.Rules[i], true
}

// Lookup finds the route of a packet. The error is one of the kernel's, or
// errNoRoute.
func (v *View) Lookup(q Query) (Route, error) {
	if v.ask != nil {
		return v.ask(q)
	}
	if l, ok := v.Owner(q.Dst); ok {
		return Route{
			Dst: netip.PrefixFrom(q.Dst, q.Dst.BitLen()), Type: Local, Dev: l.Name, Table: tableLocal,
			Line: "local " + q.Dst.String() + " dev " + l.Name,
		}, nil
	}
	return v.best(q.Dst)
}

// best is the most specific route of the main table, the one with the smallest
// metric where there are several.
func (v *View) best(dst netip.Addr) (Route, error) {
	var found *Route
	for i := range v.Routes {
		r := &v.Routes[i]
		if r.Table != tableMain && r.Table != 0 || r.Dst.Addr().Is4() != dst.Is4() || !r.Dst.Contains(dst) {
			continue
		}
		if found == nil || r.Dst.Bits() > found.Dst.Bits() || r.Dst.Bits() == found.Dst.Bits() && r.Priority < found.Priority {
			found = r
		}
	}
	if found == nil {
		return Route{}, errNoRoute
	}
	return *found, nil
}
