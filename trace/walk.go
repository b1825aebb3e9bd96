package trace

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
)

// World is the network that a trace walks through.
type World interface {
	// View returns a member by name; the error says why nothing is known of it.
	View(name string) (*View, error)
	// Wanted is what the datastore says that a host should have, for packets to
	// dst; nil when that is not known.
	Wanted(at *View, dst netip.Addr) *View
	// Across says where a packet gets that leaves a member by an interface for a
	// next hop, its destination being dst.
	Across(from *View, out Link, next, dst netip.Addr) (Crossing, error)
	// Agent says whether the agent of a host runs: AgentRuns, AgentGone, or empty
	// when that is not known.
	Agent(host string) string
}

// What Agent answers.
const (
	AgentRuns = "running"
	AgentGone = "not running"
)

// Crossing is a link to another member.
type Crossing struct {
	Bridge *Bridge    // in between; nil for none, or for one that nothing is known of
	Router netip.Addr // in between, and nothing is known of it; invalid for none
	To     string     // member; empty when nothing known has the next hop
	Dev    string     // its interface
}

// Bridge is a switch between two members.
type Bridge struct {
	Name    string
	In, Out Link // its ports
}

// Options of a trace.
type Options struct {
	Size   int  // of the packet in bytes; 0: as large as the source's interface takes
	OneWay bool // do not trace the answer
}

// maxSteps bounds how often a packet is routed, like a TTL.
const maxSteps = 40

var errNoRoute = errors.New("network is unreachable")

// Run follows a packet from one place to another, and its answer back.
func Run(w World, from, to Place, o Options) Report {
	r := Report{There: walk(w, from, to, o.Size)}
	if !o.OneWay && to.Name != "" {
		back := walk(w, to, from, o.Size)
		r.Back = &back
	}
	return r
}

// packet is what a routing decision is made on.
type packet struct {
	src, dst netip.Addr
	size     int
}

// shell is the outer packet of a tunnel.
type shell struct {
	packet
	name      string // "VXLAN 4096" or "IPIP"
	overhead  int    // bytes around the inner packet
	vni, port int    // of VXLAN; 0 for IPIP
}

// walker is a packet under way.
type walker struct {
	world World
	path  *Path
	at    *View
	in    string // the interface it came by; empty where it starts
	inner packet
	outer *shell
	seen  map[decision]bool
	done  bool
}

// decision is what a step depends on: the same one twice is a loop.
type decision struct {
	at, in  string
	wrapped bool
	dst     netip.Addr
}

func walk(w World, from, to Place, size int) Path {
	p := Path{From: from, To: to, Size: size}
	t := &walker{world: w, path: &p, inner: packet{from.Addr, to.Addr, size}, seen: map[decision]bool{}}
	var err error
	if t.at, err = w.View(from.Name); err != nil {
		t.at = &View{Name: from.Name, Kind: from.Kind, Seen: Assumed}
		t.hop(Hop{Object: "namespace", What: "cannot be looked at", Lost: err.Error()})
		return p
	}
	for range maxSteps {
		d := decision{t.at.Name, t.in, t.outer != nil, t.outermost().dst}
		if t.seen[d] {
			t.hop(Hop{Object: "route", What: "the packet has been here before", Lost: "the routes form a loop: it goes round until its TTL is 0"})
			return p
		}
		t.seen[d] = true
		if t.step(); t.done {
			return p
		}
	}
	t.hop(Hop{Object: "route", What: "the packet has come far", Lost: fmt.Sprintf("%d routers were passed without arriving", maxSteps)})
	return p
}

// outermost is the packet that is routed at the moment.
func (t *walker) outermost() *packet {
	if t.outer != nil {
		return &t.outer.packet
	}
	return &t.inner
}

// hop adds a step; one with Lost ends the walk.
func (t *walker) hop(h Hop) {
	h.Where, h.Seen, h.Size = t.at.Name, t.at.Seen, t.outermost().size
	if t.outer != nil && h.Encap == "" {
		h.Encap = t.outer.name
	}
	t.path.Hops = append(t.path.Hops, h)
	t.done = t.done || h.Lost != ""
}

// note adds words to the last step.
func (t *walker) note(format string, args ...any) {
	h := &t.path.Hops[len(t.path.Hops)-1]
	h.Notes = append(h.Notes, fmt.Sprintf(format, args...))
}

// lost ends the walk at the last step.
func (t *walker) lost(format string, args ...any) {
	h := &t.path.Hops[len(t.path.Hops)-1]
	h.Lost, t.done = fmt.Sprintf(format, args...), true
}

// step routes the packet once and takes it to the next decision.
func (t *walker) step() {
	p := t.outermost()
	q := Query{Src: p.src, Dst: p.dst, In: t.in}
	r, err := t.at.Lookup(q)
	if err != nil {
		t.unroutable(q, err)
		return
	}
	if r.Type == Local {
		t.arrive(r)
		return
	}
	t.routed(q, r)
	if r.Type != Unicast {
		t.lost("the route discards it")
	}
	if t.in != "" && !t.forwards(p.dst.Is4()) {
		t.lost("%s does not forward IPv%d packets (sysctl)", t.at.Name, version(p.dst))
	}
	link, there := t.at.Link(r.Dev)
	switch {
	case t.done:
		return
	case !there:
		t.lost("interface %s does not exist", r.Dev)
	case !link.Up:
		t.lost("interface %s is down", r.Dev)
	case !link.Carrier:
		t.lost("interface %s has no carrier: its other end is down", r.Dev)
	default:
		t.leave(r, link)
	}
}

func version(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}

func (t *walker) forwards(v4 bool) bool {
	if v4 {
		return !t.at.NoForward4
	}
	return !t.at.NoForward6
}

// leave sends the packet out of an interface that is up.
func (t *walker) leave(r Route, link Link) {
	p := t.outermost()
	if !p.src.IsValid() {
		p.src = sourceOf(t.at, link, p.dst.Is4())
	}
	if !t.fits(r, link) {
		return
	}
	next := r.Gateway
	if !next.IsValid() {
		next = p.dst
	}
	switch {
	case link.Type == "vxlan":
		t.intoVXLAN(link, next)
	case isIPIP(link):
		t.intoIPIP(link, next)
	default:
		t.cross(link, next)
	}
}

// isIPIP: where the kernel has no ipip, a veth of the same name stands for it.
func isIPIP(l Link) bool { return l.Type == "ipip" || l.Name == "tunl0" }

// sourceOf is the address that packets from this host get on an interface.
func sourceOf(v *View, l Link, v4 bool) netip.Addr {
	if a := (&View{Links: []Link{l}}).addr(v4); a.IsValid() {
		return a
	}
	return v.addr(v4)
}

// routed adds the steps for the rule and the route.
func (t *walker) routed(q Query, r Route) {
	if rule, ok := t.at.rule(r.Table, q); ok && t.at.Kind != Container && t.at.Kind != Switch {
		t.hop(Hop{Object: "rule", What: rule.String()})
	}
	link, _ := t.at.Link(r.Dev)
	h := Hop{Object: "route", What: r.Line, MTU: limitOf(r, link)}
	if w := words(t.at, r, link); w != "" {
		h.What += ": " + w
	}
	t.hop(h)
	if r.Ways != "" {
		for w := range strings.Lines(r.Ways) {
			t.note("%s", strings.TrimSpace(w))
		}
		next := r.Dev
		if r.Gateway.IsValid() {
			next = r.Gateway.String() + " on " + r.Dev
		}
		t.note("this packet goes to %s; a connection with other addresses or ports may go another way", next)
	}
	t.filters(q)
	t.compare(q, r)
}

// filters notes others' packet filters that the packet has to pass here and that may drop it.
func (t *walker) filters(q Query) {
	hooks := []string{"prerouting", "forward", "postrouting", ""}
	if q.In == "" {
		hooks = []string{"output", "postrouting", ""}
	}
	if owner, ok := t.at.Owner(q.Dst); ok && owner.Name != "" {
		hooks = []string{"prerouting", "input", ""}
	}
	for _, f := range t.at.Filters {
		if slices.Contains(hooks, f.Hook) && (q.Dst.Is4() && f.V4 || q.Dst.Is6() && f.V6) {
			t.note("packet filter of others: %s %s", f.Name, f.What)
		}
	}
}

// words says what a route is.
func words(v *View, r Route, link Link) string {
	proto := ""
	if _, rest, ok := strings.Cut(r.Line, " proto "); ok {
		proto, _, _ = strings.Cut(rest, " ")
	}
	switch {
	case r.Type != Unicast:
		return "packets for free addresses of the block end here"
	case v.Kind == Container:
		return "the container's way out"
	case proto == "80" && r.Gateway.IsValid():
		return "another host's, computed from the datastore"
	case proto == "81":
		return "another host's, learnt by BGP"
	case proto == "12" || proto == "bird":
		return "BIRD's, which is not ours"
	case proto == "kernel":
		return "on the subnet itself"
	case r.Dst.Bits() == 0:
		return "the default route"
	case v.Kind == Host && r.Dst.IsSingleIP() && !r.Gateway.IsValid() && link.Type == "veth":
		return "a workload of this host"
	}
	return ""
}

// compare notes where the kernel differs from what the datastore wants.
func (t *walker) compare(q Query, have Route) {
	wanted := t.wanted(q.Dst)
	if wanted == nil {
		return
	}
	want, err := wanted.best(q.Dst)
	if err == nil && want.Dst == have.Dst && want.Ways != "" && have.Ways != "" {
		return // the kernel may take another of them
	}
	if err != nil || !ours(want) || want.Dst == have.Dst && want.Gateway == have.Gateway && want.Dev == have.Dev && want.Type == have.Type {
		return
	}
	t.note("wanted, and not in the kernel: %s", want.Line)
	t.advise(fmt.Sprintf("The kernel of %s lacks what the datastore wants: %s.", t.at.Name, want.Line))
	t.remedy()
}

func ours(r Route) bool {
	return r.Type == Blackhole || strings.Contains(r.Line, " proto 8") || !r.Gateway.IsValid() && r.Dst.IsSingleIP()
}

func (t *walker) wanted(dst netip.Addr) *View {
	if t.at.Kind != Host || t.at.Seen != Kernel {
		return nil
	}
	return t.world.Wanted(t.at, dst)
}

// remedy says who would put a missing object back.
func (t *walker) remedy() {
	text := ""
	switch t.world.Agent(t.at.Name) {
	case AgentGone:
		text = fmt.Sprintf("The agent of %s is not running: nothing puts it back until it is started.", t.at.Name)
	case AgentRuns:
		text = fmt.Sprintf("The agent of %s runs and puts back what is its own; if it stays so, see `maneki node status` there.", t.at.Name)
	default:
		return
	}
	t.advise(text)
}

// advise adds a sentence that follows the verdict, once.
func (t *walker) advise(text string) {
	if !slices.Contains(t.path.Remedy, text) {
		t.path.Remedy = append(t.path.Remedy, text)
	}
}

// unroutable ends the walk where there is no route.
func (t *walker) unroutable(q Query, err error) {
	h := Hop{Object: "route", What: "no route to " + q.Dst.String(), Lost: "the network is unreachable"}
	r, none := t.at.best(q.Dst)
	if none == nil {
		h.What = r.Line
		switch {
		case errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) && r.Type == Unicast:
			h.Lost = fmt.Sprintf("the kernel refuses the source %s on %s: the way back leads elsewhere (rp_filter), or the address is its own", q.Src, q.In)
		case r.Type != Unicast:
			h.What += ": " + words(t.at, r, Link{})
			h.Lost = "the route discards it"
		case t.in != "" && !t.forwards(q.Dst.Is4()):
			h.Lost = fmt.Sprintf("%s does not forward IPv%d packets (sysctl)", t.at.Name, version(q.Dst))
		default:
			h.Lost = "the kernel says: " + err.Error()
		}
	} else if t.at.Kind == Router {
		h.Lost = "the router does not know the network of the containers: use an encapsulation for other subnets (CrossSubnet), or let it learn the routes by BGP"
	}
	t.hop(h)
	t.compare(q, r)
}

// limitOf is what a route lets through; 0 is unknown.
func limitOf(r Route, l Link) int {
	switch {
	case r.MTU > 0 && (l.MTU == 0 || r.MTU < l.MTU):
		return r.MTU
	default:
		return l.MTU
	}
}

// fits checks the size against a route and its interface. The first interface
// gives the size of a packet for which none was asked.
func (t *walker) fits(r Route, l Link) bool {
	limit := limitOf(r, l)
	if limit == 0 {
		return true
	}
	t.narrow(limit)
	p := t.outermost()
	switch {
	case p.size == 0:
		p.size, t.path.Size = limit, limit
		t.path.Hops[len(t.path.Hops)-1].Size = limit
		return true
	case p.size <= limit:
		return true
	case t.outer != nil && t.outer.vni > 0:
		// The kernel sets no DF on VXLAN packets (the device's df is unset).
		t.note("%d bytes do not fit into %d: the outer packet goes in fragments", p.size, limit)
		p.size = limit
		return true
	case t.outer != nil:
		t.lost("%d bytes with the outer header do not fit into %d of %s; the sender is told to send %d", p.size, limit, l.Name, limit-t.outer.overhead)
	case t.in == "":
		t.lost("%d bytes do not fit into %d of %s: the sender gets \"message too long\"", p.size, limit, l.Name)
	default:
		t.lost("%d bytes do not fit into %d of %s: %s answers that %d do (ICMP, fragmentation needed)", p.size, limit, l.Name, t.at.Name, limit)
	}
	return false
}

// narrow remembers what fits so far.
func (t *walker) narrow(limit int) {
	if t.outer != nil {
		limit -= t.outer.overhead
	}
	if t.path.MTU == 0 || limit < t.path.MTU {
		t.path.MTU = limit
	}
}

func (t *walker) intoVXLAN(l Link, next netip.Addr) {
	n, ok := t.at.neighbour(l.Name, next)
	if !ok || n.MAC == "" {
		t.hop(Hop{Object: "neighbour", What: next.String() + " is not in the table of " + l.Name, Lost: "the device learns nothing: without the entry nobody is asked"})
		t.remedy()
		return
	}
	t.hop(Hop{Object: "neighbour", What: fmt.Sprintf("%s lladdr %s %s", next, n.MAC, n.State)})
	dst, ok := t.at.behind(l.Name, n.MAC)
	if !ok {
		t.hop(Hop{Object: "fdb", What: n.MAC + " is not in the forwarding table of " + l.Name, Lost: "the device does not know which host has it"})
		t.remedy()
		return
	}
	t.hop(Hop{Object: "fdb", What: fmt.Sprintf("%s is on host %s", n.MAC, dst)})
	over := int(desired.OverheadVXLAN)
	if dst.Is6() {
		over = int(desired.OverheadVXLAN6)
	}
	t.wrap(l, &shell{
		packet: packet{l.Local, dst, 0}, name: fmt.Sprintf("VXLAN %d", l.VNI), overhead: over, vni: l.VNI, port: l.Port,
	}, fmt.Sprintf("UDP %d", l.Port))
}

func (t *walker) intoIPIP(l Link, next netip.Addr) {
	t.wrap(l, &shell{packet: packet{l.Local, next, 0}, name: "IPIP", overhead: int(desired.OverheadIPIP)}, "IP protocol 4")
}

// wrap puts the packet into another one, which the same host routes next.
func (t *walker) wrap(l Link, s *shell, as string) {
	if t.outer != nil {
		t.hop(Hop{Object: "tunnel", What: l.Name, Lost: "the tunnel's own packets would go into a tunnel: a loop"})
		return
	}
	if !s.src.IsValid() || s.src.IsUnspecified() {
		s.src = t.underlay(s.dst)
	}
	s.size = t.inner.size + s.overhead
	t.outer, t.in = s, ""
	t.hop(Hop{Object: "tunnel", MTU: l.MTU, What: fmt.Sprintf("%s puts it into %s from %s to %s, %d bytes more", l.Name, as, s.src, s.dst, s.overhead)})
}

// underlay is the source that the host would use towards another one.
func (t *walker) underlay(dst netip.Addr) netip.Addr {
	r, err := t.at.Lookup(Query{Dst: dst})
	if err != nil {
		return netip.Addr{}
	}
	l, _ := t.at.Link(r.Dev)
	return sourceOf(t.at, l, dst.Is4())
}

// arrive is the end of a packet, or of its shell.
func (t *walker) arrive(r Route) {
	if t.outer == nil {
		l, _ := t.at.Owner(t.inner.dst)
		if l.Name == "" {
			l.Name = r.Dev
		}
		t.hop(Hop{Object: "address", What: fmt.Sprintf("%s is an address of %s", t.inner.dst, l.Name)})
		t.filters(Query{Dst: t.inner.dst, In: t.in})
		t.path.Delivered, t.done = true, true
		return
	}
	s := t.outer
	l, ok := t.takesOff(s)
	h := Hop{Object: "tunnel", Encap: "-", What: fmt.Sprintf("%s takes it out of %s", l.Name, s.name)}
	switch {
	case !ok && s.vni > 0:
		h.What, h.Lost = fmt.Sprintf("no VXLAN device with VNI %d on port %d", s.vni, s.port), "nothing takes the packet out (ICMP port unreachable)"
	case !ok:
		h.What, h.Lost = "no ipip device", "nothing takes the packet out (ICMP protocol unreachable)"
	case !l.Up:
		h.Lost = l.Name + " is down"
	}
	in, dst := t.in, s.dst
	t.outer, t.in = nil, l.Name
	t.hop(h)
	t.filters(Query{Dst: dst, In: in})
	if h.Lost != "" {
		t.remedy()
	}
}

// takesOff finds the device that removes a shell.
func (t *walker) takesOff(s *shell) (Link, bool) {
	for _, l := range t.at.Links {
		vxlan := l.Type == "vxlan" && l.VNI == s.vni && l.Port == s.port && (!l.Local.IsValid() || l.Local.Is4() == s.dst.Is4())
		if s.vni > 0 && vxlan || s.vni == 0 && isIPIP(l) {
			return l, true
		}
	}
	return Link{}, false
}

// cross takes the packet to the next member.
func (t *walker) cross(l Link, next netip.Addr) {
	t.resolve(l, next)
	c, err := t.world.Across(t.at, l, next, t.outermost().dst)
	if err != nil {
		t.lost("%v", err)
		return
	}
	if c.Bridge != nil && !t.bridge(*c.Bridge) {
		return
	}
	if c.Router.IsValid() {
		from := t.at
		t.at = &View{Name: c.Router.String(), Kind: Router, Seen: Assumed}
		t.hop(Hop{Object: "router", What: "nothing is known of it; it is taken to know the way to " + t.outermost().dst.String()})
		t.at = from
	}
	if c.To == "" {
		t.path.Beyond, t.done = true, true
		return
	}
	to, err := t.world.View(c.To)
	if err != nil {
		t.lost("%s cannot be looked at: %v", c.To, err)
		return
	}
	t.enter(l, to, c.Dev)
}

// resolve adds the step for the neighbour's link-layer address.
func (t *walker) resolve(l Link, next netip.Addr) {
	if t.at.Seen != Kernel {
		return
	}
	n, ok := t.at.neighbour(l.Name, next)
	switch {
	case !ok || n.MAC == "" && n.State != "FAILED":
		t.hop(Hop{Object: "neighbour", What: fmt.Sprintf("%s is asked for on %s when the packet comes", next, l.Name)})
	case n.State == "FAILED":
		t.hop(Hop{Object: "neighbour", What: fmt.Sprintf("%s did not answer on %s the last time (FAILED)", next, l.Name)})
	default:
		t.hop(Hop{Object: "neighbour", What: fmt.Sprintf("%s dev %s lladdr %s %s", next, l.Name, n.MAC, n.State)})
	}
}

// bridge passes a switch, which drops what does not fit without a word.
func (t *walker) bridge(b Bridge) bool {
	from := t.at
	t.at = &View{Name: b.Name, Kind: Switch, Seen: Kernel}
	defer func() { t.at = from }()
	limit := b.Out.MTU
	if b.In.MTU > 0 && b.In.MTU < limit {
		limit = b.In.MTU
	}
	t.hop(Hop{Object: "switch", MTU: limit, What: fmt.Sprintf("from port %s to port %s", b.In.Name, b.Out.Name)})
	for _, port := range []Link{b.In, b.Out} {
		if !port.Up {
			t.lost("port %s is down", port.Name)
			return false
		}
	}
	t.narrow(limit)
	if size := t.outermost().size; limit > 0 && size > limit {
		t.lost("%d bytes do not fit into %d: a switch drops that without a word", size, limit)
		return false
	}
	return true
}

// enter is the arrival on another member's interface.
func (t *walker) enter(out Link, to *View, dev string) {
	l, ok := to.Link(dev)
	object, what := "link", fmt.Sprintf("%s of %s to %s of %s", out.Name, t.at.Name, dev, to.Name)
	if out.Type == "veth" && (t.at.Kind == Container || to.Kind == Container) {
		object = "veth"
	}
	proxied := t.at.Kind == Container && to.Kind == Host && ok && l.Type == "veth" && !l.ProxyARP && to.Seen == Kernel && t.inner.dst.Is4()
	t.at = to
	t.hop(Hop{Object: object, MTU: l.MTU, What: what})
	t.in = dev
	size := t.outermost().size
	switch {
	case !ok && to.Seen == Kernel:
		t.lost("%s has no interface %s", to.Name, dev)
	case ok && !l.Up:
		t.lost("%s of %s is down", dev, to.Name)
	case proxied:
		t.lost("%s does not answer for 169.254.1.1 on %s (proxy_arp is 0): the container finds no gateway", to.Name, dev)
	case l.MTU > 0 && size > l.MTU:
		t.narrow(l.MTU)
		t.lost("%d bytes do not fit into %d of %s: it drops them without a word", size, l.MTU, dev)
	case l.MTU > 0:
		t.narrow(l.MTU)
	}
}
