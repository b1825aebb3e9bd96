package calc

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/selector"
)

// rank orders the reasons for a session to one address; the highest wins. What
// is written down for this node beats what follows from another node's
// peering, and of each the global one wins (spec/calico.md §6.1).
type rank int

const (
	rankMesh rank = iota
	rankNodeReverse
	rankGlobalReverse
	rankNode
	rankGlobal
)

// peering is what the sessions of this host are computed from.
type peering struct {
	core    *Core
	self    *api.Node
	own     []netip.Addr          // this host's addresses by family
	cluster netip.Addr            // of this host as a reflector
	names   []string              // of all nodes with an address, sorted
	addrs   map[string]nodeAddrs  // by node
	byAddr  map[netip.Addr]string // node that has an address
	wanted  map[netip.Addr]wanted
	tuning  api.BGPTuning // of sessions between hosts of the cluster
}

// wanted is one session with what surrounds it.
type wanted struct {
	bgp.Peer
	rank      rank
	anySource bool          // sourceAddress None: the kernel chooses
	password  Secret        // zero for none
	gateway   netip.Addr    // reachableBy, zero for none
	tuning    api.BGPTuning // the BGPPeer's own, completed by the cluster's between its hosts
}

// What the protocol's fields can hold (RFC 4271 §4.2, RFC 4724 §3).
const (
	maxHoldTime    = 65535 * time.Second
	maxRestartTime = 4095 * time.Second
)

// Secret names the password of a session: one key of a secret. Comparable.
type Secret struct {
	Name, Key string
	Of        string // the object that asks for it, for messages
}

func secret(p *api.BGPPassword, of string) Secret {
	if p == nil || p.SecretKeyRef == nil {
		return Secret{}
	}
	return Secret{Name: p.SecretKeyRef.Name, Key: p.SecretKeyRef.Key, Of: of}
}

type nodeAddrs []netip.Addr

// peers computes the sessions: the mesh, the BGPPeer resources that select
// this node, and those that lead from other nodes to this one.
func (c *Core) peers(self *api.Node, own []netip.Addr, p *problems) map[netip.Addr]wanted {
	g := &peering{
		core: c, self: self, own: own, cluster: c.clusterID(self, &problems{}),
		addrs: map[string]nodeAddrs{}, byAddr: map[netip.Addr]string{}, wanted: map[netip.Addr]wanted{},
	}
	g.tuning = c.clusterTuning(p)
	ignore := &problems{} // each node's own agent reports its addresses
	for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
		addrs := c.speakerAddrs(c.nodes[name], ignore)
		if len(addrs) == 0 {
			continue
		}
		g.names = append(g.names, name)
		g.addrs[name] = addrs
		for _, a := range addrs {
			if _, taken := g.byAddr[a]; !taken {
				g.byAddr[a] = name
			}
		}
	}
	connected := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(c.bgpPeers)) {
		r := g.resource(c.bgpPeers[name], p)
		if r == nil {
			continue
		}
		r.connect(connected)
		r.sessions(p)
	}
	g.mesh(connected)
	return g.wanted
}

// mesh adds every other node, unless the mesh is off. A reflector is not in it,
// with one exception that Calico does not make: while no BGPPeer leads to the
// reflector from any node, it stays. Who first writes the cluster ID and then
// the peers that use it loses no route in between.
func (g *peering) mesh(connected map[string]bool) {
	d := g.core.bgpConfig["default"]
	if d != nil && d.Spec.NodeToNodeMeshEnabled != nil && !*d.Spec.NodeToNodeMeshEnabled {
		return
	}
	member := func(name string) bool {
		return g.core.nodes[name].Spec.BGP.RouteReflectorClusterID == "" || !connected[name]
	}
	if !member(g.self.Name) {
		return
	}
	for _, name := range g.names {
		if name == g.self.Name || !member(name) {
			continue
		}
		w := wanted{rank: rankMesh, Peer: bgp.Peer{Name: name, Type: bgp.TypeMesh}}
		if d != nil {
			w.password = secret(d.Spec.NodeMeshPassword, "BGPConfiguration(default)")
		}
		if d != nil && d.Spec.NodeMeshMaxRestartTime != nil {
			w.RestartTime = min(d.Spec.NodeMeshMaxRestartTime.Std(), maxRestartTime)
		}
		g.node(w, name, true)
	}
}

// add files a session unless a better reason for one to the same address is
// known. Of equals the first stays: resources come in the order of their names.
func (g *peering) add(w wanted) {
	if old, taken := g.wanted[w.Addr]; taken && old.rank >= w.rank {
		return
	}
	if w.anySource {
		w.Local = netip.Addr{}
	}
	g.wanted[w.Addr] = w
}

// node adds one session to a node per family that both ends have an address
// of. If both ends have the session, only one of them dials: the one whose
// address, as text, is larger.
func (g *peering) node(w wanted, name string, both bool) {
	n := g.core.nodes[name]
	w.ASN, w.Port, w.Cluster = g.core.asn(n), g.core.port(name), true
	w.tuning = w.tuning.Or(g.tuning)
	for _, remote := range g.addrs[name] {
		for _, local := range g.own {
			if local.Is4() != remote.Is4() || local == remote {
				continue
			}
			w.Addr, w.Local = remote, local
			w.Passive = both && remote.String() > local.String()
			w.Client = g.reflects(w.Peer, n)
			g.add(w)
		}
	}
}

// reflects reports whether this host is the peer's reflector: the peer is
// internal and of no cluster, or of another one.
func (g *peering) reflects(peer bgp.Peer, n *api.Node) bool {
	own := peer.LocalASN
	if own == 0 {
		own = g.core.asn(g.self)
	}
	if !g.cluster.IsValid() || peer.ASN != own {
		return false
	}
	return g.core.clusterID(n, &problems{}) != g.cluster
}

// resource is one BGPPeer with the nodes it selects.
type resource struct {
	*peering
	head    *api.Resource
	name    string
	spec    *api.BGPPeerSpec
	global  bool
	locals  map[string]bool // nodes that the peering is for
	remotes map[string]bool // nodes that it leads to
	remote  netip.AddrPort  // peerIP; the port is 0 when none is given
}

// resource reads a BGPPeer. It is nil, with the reason among the problems, if
// the resource makes no session anywhere.
func (g *peering) resource(res *api.BGPPeer, p *problems) *resource {
	s := &res.Spec
	r := &resource{peering: g, head: &res.Resource, name: res.Name, spec: s, global: s.Node == "" && s.NodeSelector == "", remotes: map[string]bool{}}
	if s.LocalWorkloadSelector != "" {
		p.add("BGPPeer(%s): localWorkloadSelector is not supported; no session is made", res.Name)
		return nil
	}
	if err := res.Validate(); err != nil { // other programs write to the datastore, too
		p.add("BGPPeer(%s): %s; no session is made", res.Name, oneLine(err))
		return nil
	}
	var ok bool
	switch {
	case s.Node != "":
		r.locals, ok = map[string]bool{s.Node: true}, true
		if g.addrs[s.Node] == nil {
			p.add("BGPPeer(%s): node %q does not exist or has no BGP address; no session is made", res.Name, s.Node)
			return nil
		}
	default:
		r.locals, ok = g.choose(res.Name, "nodeSelector", s.NodeSelector, p)
	}
	if !ok {
		return nil
	}
	if s.PeerSelector != "" {
		if r.remotes, ok = g.choose(res.Name, "peerSelector", s.PeerSelector, p); !ok {
			return nil
		}
		if name, alone := r.alone(); alone {
			p.add("BGPPeer(%s): peerSelector %s matches node %s itself and no other; no session is made", res.Name, s.PeerSelector, name)
			return nil
		}
		return r
	}
	remote, err := api.ParsePeerIP(s.PeerIP)
	if err != nil {
		p.add("BGPPeer(%s): peerIP %q must be an address, or address:port; no session is made", res.Name, s.PeerIP)
		return nil
	}
	r.remote = remote
	if name, known := g.byAddr[remote.Addr()]; known && r.isNode(name) {
		r.remotes[name] = true
	}
	if name, alone := r.alone(); alone {
		p.add("BGPPeer(%s): peerIP %s is node %s itself; no session is made", res.Name, s.PeerIP, name)
		return nil
	}
	return r
}

// alone reports that the peering leads from one node to itself, which it names.
func (r *resource) alone() (string, bool) {
	if len(r.locals) != 1 || len(r.remotes) != 1 {
		return "", false
	}
	for name := range r.locals {
		return name, r.remotes[name]
	}
	return "", false
}

// oneLine is an error's text without line ends.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// choose returns the nodes that a selector matches; an empty one matches all.
func (g *peering) choose(name, field, expr string, p *problems) (map[string]bool, bool) {
	out := map[string]bool{}
	if expr == "" {
		expr = "all()"
	}
	sel, err := selector.Parse(expr)
	if err != nil {
		p.add("BGPPeer(%s): %s: %v; no session is made", name, field, err)
		return nil, false
	}
	for _, n := range g.names {
		if sel.Match(g.core.nodes[n].Labels) {
			out[n] = true
		}
	}
	if len(out) == 0 {
		p.add("BGPPeer(%s): %s %s matches no node; no session is made", name, field, expr)
	}
	return out, len(out) > 0
}

// isNode reports whether peerIP means the node: it has the node's AS, and its
// port if one is given.
func (r *resource) isNode(name string) bool {
	if uint32(r.spec.ASNumber) != r.core.asn(r.core.nodes[name]) {
		return false
	}
	return r.remote.Port() == 0 || r.remote.Port() == r.core.port(name)
}

// reverses reports whether the nodes that the peering leads to peer back.
func (r *resource) reverses() bool { return r.spec.ReversePeering != "Manual" }

// connect notes the nodes that get a session with another node by r.
func (r *resource) connect(connected map[string]bool) {
	pairs := func(here, there map[string]bool) {
		for name := range here {
			if len(there) > 1 || (len(there) == 1 && !there[name]) {
				connected[name] = true
			}
		}
	}
	pairs(r.locals, r.remotes)
	pairs(r.remotes, r.locals)
}

// sessions adds what r means for this host: the sessions it is for, and those
// back to the nodes for which it leads here.
func (r *resource) sessions(p *problems) {
	w, reverse := r.options(), rankNodeReverse
	w.tuning = tuning("BGPPeer", r.head, p)
	if r.global {
		reverse = rankGlobalReverse
	}
	if r.locals[r.self.Name] {
		r.forward(w, p)
	}
	if r.remotes[r.self.Name] && r.reverses() {
		w.rank = reverse
		for _, name := range r.names {
			if name != r.self.Name && r.locals[name] {
				r.node(w, name, true)
			}
		}
	}
}

func (r *resource) forward(w wanted, p *problems) {
	if r.spec.PeerSelector != "" {
		for _, name := range r.names {
			if name != r.self.Name && r.remotes[name] {
				r.node(w, name, r.reverses())
			}
		}
		return
	}
	r.single(&w, p)
	var n *api.Node
	if name, ok := r.byAddr[w.Addr]; ok {
		if name == r.self.Name {
			return
		}
		n = r.core.nodes[name]
		w.Cluster = r.remotes[name]
		if w.Cluster {
			w.tuning = w.tuning.Or(r.peering.tuning)
		}
		if w.Port == 0 && w.Cluster {
			w.Port = r.core.port(name)
		}
	}
	if w.Port == 0 {
		w.Port = bgpPort
	}
	if w.Addr.Zone() != "" { // of this end the kernel takes the interface's own link-local address
		w.Client = r.reflects(w.Peer, n)
		r.add(w)
		return
	}
	for _, local := range r.own {
		if local.Is4() != w.Addr.Is4() {
			continue
		}
		w.Local = local
		w.Passive = w.Cluster && r.reverses() && w.Addr.String() > local.String()
		w.Client = r.reflects(w.Peer, n)
		r.add(w)
		return
	}
	p.add("BGPPeer(%s): this host has no address of the family of peerIP %s; no session is made", r.name, r.spec.PeerIP)
}

// single sets what only a peering by peerIP has. Like Calico's, the AS number
// of its own that one end uses is not known to a session in return.
func (r *resource) single(w *wanted, p *problems) {
	s := r.spec
	w.Addr, w.Port, w.ASN = r.remote.Addr(), r.remote.Port(), uint32(s.ASNumber)
	if s.LocalASNumber != nil {
		w.LocalASN = uint32(*s.LocalASNumber)
	}
	if s.NumAllowedLocalASNumbers != nil {
		w.AllowLocalAS = uint8(*s.NumAllowedLocalASNumbers)
	}
	if s.ReachableBy == "" {
		return
	}
	gateway, err := netip.ParseAddr(s.ReachableBy)
	if err != nil || gateway.Is4() != w.Addr.Is4() {
		p.add("BGPPeer(%s): reachableBy %q must be an address of the family of peerIP; no route is made", r.name, s.ReachableBy)
		return
	}
	w.gateway = gateway
}

// options are the settings of r that hold for all its sessions.
func (r *resource) options() wanted {
	s := r.spec
	w := wanted{rank: rankNode, Peer: bgp.Peer{Name: r.name, Type: bgp.TypeNode}}
	if r.global {
		w.rank, w.Type = rankGlobal, bgp.TypeGlobal
	}
	if s.MaxRestartTime != nil {
		w.RestartTime = min(s.MaxRestartTime.Std(), maxRestartTime)
	}
	if s.KeepaliveTime != nil {
		w.Keepalive = min(s.KeepaliveTime.Std(), maxHoldTime/3)
		w.HoldTime = max(bgpHoldTime, 3*w.Keepalive)
	}
	if s.TTLSecurity != nil {
		w.TTLSecurity = uint8(*s.TTLSecurity)
	}
	switch {
	case s.NextHopMode == "Self":
		w.NextHop = bgp.NextHopSelf
	case s.NextHopMode == "Keep", s.NextHopMode == "" && s.KeepOriginalNextHop:
		w.NextHop = bgp.NextHopKeep
	}
	w.Filters = strings.Join(s.Filters, " ")
	w.anySource = s.SourceAddress == "None"
	w.password = secret(s.Password, "BGPPeer("+r.name+")")
	return w
}
