package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/manekinet/maneki/bgp/filter"
	"github.com/manekinet/maneki/bgp/message"
	"github.com/manekinet/maneki/bgp/session"
	"github.com/manekinet/maneki/desired"
)

// Config is the whole wanted state of the speaker; see Speaker.Set.
type Config struct {
	RouterID netip.Addr // IPv4 form, unique in the network
	ASN      uint32     // local AS
	// ClusterID of this speaker as a route reflector (RFC 4456 §7), IPv4 form; zero means RouterID.
	ClusterID netip.Addr
	// LocalPref is given to routes of external peers; 0 means 100.
	LocalPref uint32
	// PassOn limits which learnt routes are passed on: to those that lie inside one of these prefixes. Nil
	// means all.
	PassOn []netip.Prefix
	// Reach are the prefixes that some route of this host leads to. A path whose next hop lies in none of them is
	// chosen only if there is no other (RFC 4271 §9.1.2). Nil means that every next hop can be reached.
	Reach []netip.Prefix
	// Filters are those that peers name. A name without a filter refuses everything.
	Filters map[string]filter.Filter
	// Links are the connected subnets with their interfaces, for filters that look at interfaces.
	Links    map[netip.Prefix]string
	Listen   []netip.AddrPort              // addresses to accept on, e.g. 192.168.1.2:179; empty means none
	Peers    map[netip.Addr]Peer           // keyed by remote address
	Announce map[netip.Prefix]Announcement // exactly this set is originated
}

// PeerType says what made a peering, in calicoctl's words (spec/calico.md §6.1).
type PeerType string

// The peer types.
const (
	TypeMesh   PeerType = "node-to-node mesh"
	TypeNode   PeerType = "node specific"
	TypeGlobal PeerType = "global"
)

// Peer is one wanted session. Comparable. A session over IPv4 carries IPv4 routes, one over IPv6 IPv6
// routes, and one between link-local addresses, which has the interface as the zone of Addr, both: those of
// IPv4 with an IPv6 next hop if the peer takes that (RFC 8950).
type Peer struct {
	Name  string // of the node or BGPPeer, for messages
	Type  PeerType
	Addr  netip.Addr // remote address
	Local netip.Addr // source address to bind, zero to let the kernel choose
	Port  uint16     // remote port, 0 means 179
	ASN   uint32     // remote AS; the session is internal if it equals Config.ASN
	// Passive peers are never dialled, only accepted.
	Passive bool
	// HoldTime is offered; 0 means 90 s, else at least 3 s. Keepalive 0 means a third of what is negotiated.
	HoldTime, Keepalive time.Duration
	// ConnectRetry is the wait between dials; 0 means 0.1 s after the first failure, doubling up to 5 s.
	ConnectRetry time.Duration
	// RestartTime is how long the peer is asked to keep our routes while we restart (RFC 4724); 0 means 120 s.
	RestartTime time.Duration
	// LongLived is how long routes are kept as the last choice after the restart time, ours by the peer and the
	// peer's here, if both say so (RFC 9494); the shorter time counts. 0 for off, at most 16777215 s.
	LongLived   time.Duration
	Password    string // TCP MD5 (RFC 2385), at most 80 octets; never logged
	TTLSecurity uint8  // greatest distance in hops (RFC 5082), 0 for off
	// LocalASN is this end's AS on the session; 0 means Config.ASN.
	LocalASN uint32
	// AllowLocalAS is how often our own AS may occur in a path of the peer's; 0 is the rule of RFC 4271.
	AllowLocalAS uint8
	NextHop      NextHop
	Filters      string // blank-separated names of Config.Filters, in the order in which they are asked
	// Client makes this speaker reflect internal routes to and from the peer (RFC 4456 §6).
	Client bool
	BFD    BFD
	// MaxPrefixes ends the session when the peer offers more (Cease, RFC 4486); 0 means Options.MaxPrefixesPerPeer.
	MaxPrefixes int
	// OnLink says that the peer is on a connected subnet. When that ends, because its interface went down for one,
	// so does the session, at once.
	OnLink bool
	// Cluster says that the peer follows the same datastore. It learns there that the session is to end or
	// to change, so that it is not told by a NOTIFICATION, which would make it drop our routes at once.
	Cluster bool
}

// BFD has the path to a peer watched (RFC 5880, RFC 5882): when it fails the session ends at once. The zero
// value is off. Comparable.
type BFD struct {
	Interval   time.Duration // of packets in both directions, 10 ms to 60 s; 0 for off
	Multiplier uint8         // packets in a row that may be missing before the path counts as failed
	Multihop   bool          // the peer is on no connected subnet (RFC 5883)
}

// NextHop says what the next hop of routes sent to a peer is.
type NextHop uint8

// Auto is RFC 4271 §5.1.3: this speaker for external peers, what it was for internal ones. Self is always
// this speaker, Keep always what it was. Own routes without a next hop go out with this speaker in any case.
const (
	NextHopAuto NextHop = iota
	NextHopSelf
	NextHopKeep
)

// String names the peer for messages, without its password.
func (p Peer) String() string { return fmt.Sprintf("%s (%s)", p.Name, p.Addr) }

// Announcement is the attributes of one originated prefix. Comparable.
type Announcement struct {
	NextHop     netip.Addr // zero means this end of each session
	LocalPref   uint32     // to internal peers; 0 means 100
	MED         uint32     // 0 means none is sent
	Communities string     // blank-separated aa:nn and aa:nn:mm values, sorted by the caller
	Interface   string     // of the route, for filters
}

// Path is a best path learnt from a peer. Comparable.
type Path struct {
	Prefix        netip.Prefix
	NextHop, Peer netip.Addr
	// NextHops are those of all paths that are as good, NextHop among them; empty when there is only one.
	NextHops       desired.AddrSet
	PeerASN        uint32
	LocalPref, MED uint32
	ASPath         string // "64513 64514 {64515,64516}"
	Stale          bool   // kept while the peer restarts (RFC 4724)
}

// PeerStatus is the state of one configured peer.
type PeerStatus struct {
	Peer                    Peer   // as configured, without the password
	State                   string // Idle, Connect, Active, OpenSent, OpenConfirm, Established
	Since                   time.Time
	LastError               string // why there is no session, in words
	Received                int    // prefixes the peer offers
	Accepted                int    // of these, those not refused by the import checks
	Advertised              int    // prefixes announced to it
	Families                []string
	RestartingPeer          bool // its routes are kept while it restarts, or its End-of-RIB is awaited
	EoR                     bool // it has sent End-of-RIB for all families of the session
	RemoteID                netip.Addr
	HoldTime                time.Duration // negotiated
	MessagesIn, MessagesOut uint64
	Flaps                   uint64 // how often an established session was lost since the peer was configured
	BFD                     BFDStatus
}

// BFDStatus is the state of the watch on the path to a peer. State is empty when it is off.
type BFDStatus struct {
	State     string // AdminDown, Down, Init, Up
	Since     time.Time
	Interval  time.Duration // between packets to the peer, as agreed
	Detection time.Duration // without packets until the path counts as failed; 0 until the peer was heard
	Multihop  bool
	Reason    string // why it is not up, in words
}

// The intervals that BFD takes.
const (
	minBFD = 10 * time.Millisecond
	maxBFD = time.Minute
)

// validate refuses a configuration with an error that names the field, the value and what is allowed.
func (c Config) validate() error {
	if len(c.Peers) > 0 || len(c.Announce) > 0 {
		if !c.RouterID.Is4() || c.RouterID.IsUnspecified() {
			return fmt.Errorf("bgp routerID %q: want an IPv4 address other than 0.0.0.0", c.RouterID)
		}
		if c.ASN == 0 {
			return fmt.Errorf("bgp asn 0: want 1 to 4294967295")
		}
	}
	seen := make(map[netip.AddrPort]bool)
	if c.ClusterID.IsValid() && (!c.ClusterID.Is4() || c.ClusterID.IsUnspecified()) {
		return fmt.Errorf("bgp clusterID %q: want an IPv4 address other than 0.0.0.0", c.ClusterID)
	}
	for _, l := range c.Listen {
		if !l.IsValid() || l.Port() == 0 {
			return fmt.Errorf("bgp listen %q: want an address and a port other than 0", l)
		}
		if seen[l] {
			return fmt.Errorf("bgp listen %s: duplicate", l)
		}
		seen[l] = true
	}
	for addr, p := range c.Peers {
		if err := c.validatePeer(addr, p); err != nil {
			return fmt.Errorf("bgp peer %s: %w", p, err)
		}
	}
	for prefix, a := range c.Announce {
		if err := validateAnnouncement(prefix, a); err != nil {
			return fmt.Errorf("bgp announce %s: %w", prefix, err)
		}
	}
	return nil
}

// Check reports why Set would refuse p; the error names the field, the value and what is allowed.
func (c Config) Check(p Peer) error { return c.validatePeer(p.Addr, p) }

func (c Config) validatePeer(key netip.Addr, p Peer) error {
	switch {
	case p.Addr != key:
		return fmt.Errorf("addr %q: want the key %s it is filed under", p.Addr, key)
	case !p.Addr.IsValid() || p.Addr.IsUnspecified() || p.Addr.IsMulticast() || p.Addr.Is4In6():
		return fmt.Errorf("addr %q: want a unicast address", p.Addr)
	case p.Addr.IsLinkLocalUnicast() && p.Addr.Is6() && p.Addr.Zone() == "":
		return fmt.Errorf("addr %s: want a link-local address with its interface, such as %s%%eth0", p.Addr, p.Addr)
	case p.Addr == p.Local || slices.ContainsFunc(c.Listen, func(l netip.AddrPort) bool { return l.Addr() == p.Addr }):
		return fmt.Errorf("addr %s: is this speaker's own address", p.Addr)
	case p.Local.IsValid() && p.Local.Is4() != p.Addr.Is4():
		return fmt.Errorf("local %s: want an address of the same family as the peer", p.Local)
	case p.ASN == 0:
		return fmt.Errorf("asn 0: want 1 to 4294967295")
	case p.Type != TypeMesh && p.Type != TypeNode && p.Type != TypeGlobal:
		return fmt.Errorf("type %q: want %q, %q or %q", p.Type, TypeMesh, TypeNode, TypeGlobal)
	case p.HoldTime != 0 && (p.HoldTime < 3*time.Second || p.HoldTime > 65535*time.Second):
		return fmt.Errorf("holdTime %s: want 3s to 65535s", p.HoldTime)
	case p.Keepalive < 0 || p.Keepalive > p.holdTime()/2:
		return fmt.Errorf("keepalive %s: want at most half of the hold time %s", p.Keepalive, p.holdTime())
	case p.Client && p.ASN != c.local(p):
		return fmt.Errorf("client: AS %d is not this speaker's %d; only internal peers can be reflected to", p.ASN, c.local(p))
	case p.NextHop > NextHopKeep:
		return fmt.Errorf("nextHop %d: want NextHopAuto, NextHopSelf or NextHopKeep", p.NextHop)
	case p.ConnectRetry < 0:
		return fmt.Errorf("connectRetry %s: want 0 or more", p.ConnectRetry)
	case p.RestartTime < 0 || p.RestartTime > 4095*time.Second:
		return fmt.Errorf("restartTime %s: want at most 4095s", p.RestartTime)
	case p.BFD.Interval != 0 && (p.BFD.Interval < minBFD || p.BFD.Interval > maxBFD):
		return fmt.Errorf("bfd interval %s: want %s to %s", p.BFD.Interval, minBFD, maxBFD)
	case p.BFD.Interval != 0 && p.BFD.Multiplier == 0:
		return fmt.Errorf("bfd multiplier 0: want 1 to 255")
	case p.MaxPrefixes < 0:
		return fmt.Errorf("maxPrefixes %d: want 0 or more", p.MaxPrefixes)
	case p.LongLived < 0 || p.LongLived > message.MaxLongLived:
		return fmt.Errorf("longLived %s: want at most %s", p.LongLived, message.MaxLongLived)
	case len(p.Password) > 80:
		return fmt.Errorf("password: has %d octets, want at most 80", len(p.Password))
	}
	return nil
}

func validateAnnouncement(prefix netip.Prefix, a Announcement) error {
	if !prefix.IsValid() || prefix != prefix.Masked() || prefix.Addr().Is4In6() {
		return fmt.Errorf("want a prefix without host bits, such as %s", prefix.Masked())
	}
	if a.NextHop.IsValid() && a.NextHop.Is4() != prefix.Addr().Is4() {
		return fmt.Errorf("nextHop %s: want an address of the prefix's family", a.NextHop)
	}
	_, _, err := message.ParseCommunities(a.Communities)
	return err
}

// local is this speaker's AS on a session.
func (c Config) local(p Peer) uint32 {
	if p.LocalASN != 0 {
		return p.LocalASN
	}
	return c.ASN
}

// cluster is the CLUSTER_ID in force (RFC 4456 §7).
func (c Config) cluster() netip.Addr {
	if c.ClusterID.IsValid() {
		return c.ClusterID
	}
	return c.RouterID
}

func (p Peer) holdTime() time.Duration {
	if p.HoldTime == 0 {
		return session.DefaultHoldTime
	}
	return p.HoldTime
}

// session returns what the session package needs of a peer.
func (c Config) session(p Peer) session.Config {
	port, restart := p.Port, p.RestartTime
	if port == 0 {
		port = session.DefaultPort
	}
	if restart == 0 {
		restart = session.DefaultRestartTime
	}
	families, extended := message.FamilyOf(p.Addr).Set(), false
	if p.Addr.Zone() != "" {
		families, extended = message.IPv4.Set()|message.IPv6.Set(), true
	}
	return session.Config{
		Remote: netip.AddrPortFrom(p.Addr, port), Local: p.Local,
		LocalASN: c.local(p), RemoteASN: p.ASN, RouterID: c.RouterID,
		Families: families, ExtendedNextHop: extended, Passive: p.Passive,
		HoldTime: p.holdTime(), Keepalive: p.Keepalive, ConnectRetry: p.ConnectRetry, RestartTime: restart, LongLived: p.LongLived,
		Password: p.Password, TTLSecurity: p.TTLSecurity,
	}
}

// attrs returns the path attributes of an announcement; a zero next hop is filled in on export.
func (a Announcement) attrs() message.Attrs {
	communities, large, _ := message.ParseCommunities(a.Communities) // validated by Set
	out := message.Attrs{
		NextHop: a.NextHop, LocalPref: a.LocalPref, HasLocalPref: true,
		MED: a.MED, HasMED: a.MED != 0, Communities: communities, LargeCommunities: large,
	}
	if out.LocalPref == 0 {
		out.LocalPref = message.DefaultLocalPref
	}
	return out
}
