package export

import (
	"net/netip"
	"slices"
	"unique"

	"github.com/manekinet/maneki/bgp/filter"
	"github.com/manekinet/maneki/bgp/message"
	"github.com/manekinet/maneki/bgp/rib"
)

// Policy is everything that decides what a peer is sent; peers with equal policies share a group. A new
// rule of export is a field here and a line in Apply.
type Policy struct {
	LocalASN    uint32
	Internal    bool             // iBGP
	NextHop     netip.Addr       // this speaker's address on the session: "next hop self"
	Families    message.Families // negotiated
	Extended    bool             // the peer takes routes of IPv4 with an IPv6 next hop (RFC 8950)
	LongLived   bool             // the peer knows what long-lived stale routes are (RFC 9494)
	FourOctetAS bool             // the peer reads four-octet AS numbers (RFC 6793)
	PathIDs     message.Families // the peer takes several paths to one destination (RFC 7911)
	Self        bool             // next hop self to internal peers, too
	Keep        bool             // the next hop stays, also to external peers
	Filter      *filter.Chain    // asked first
	Passing     *Passing         // which learnt routes are passed on
	Client      bool             // the peer is a client of this route reflector (RFC 4456 §6)
	ClusterID   netip.Addr       // goes into the CLUSTER_LIST of what is reflected, IPv4 form
}

// Passing is a set of prefixes inside which learnt routes are passed on. Policies compare it by identity.
type Passing struct{ inside []netip.Prefix }

// NewPassing returns the set; nil prefixes allow everything.
func NewPassing(prefixes []netip.Prefix) *Passing {
	if prefixes == nil {
		return nil
	}
	return &Passing{inside: append([]netip.Prefix{}, prefixes...)}
}

// Equal reports whether the set was made from these prefixes.
func (s *Passing) Equal(prefixes []netip.Prefix) bool {
	if s == nil || prefixes == nil {
		return s == nil && prefixes == nil
	}
	return slices.Equal(s.inside, prefixes)
}

func (s *Passing) allows(p netip.Prefix) bool {
	if s == nil {
		return true
	}
	for _, in := range s.inside {
		if in.Bits() <= p.Bits() && in.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// Apply returns the attributes with which path is sent to the group's peers, or false if it is not.
func (p Policy) Apply(prefix netip.Prefix, path rib.Path) (rib.Attrs, bool) {
	none := rib.Attrs{}
	f := message.FamilyOf(prefix.Addr())
	if !p.Families.Has(f) {
		return none, false
	}
	a := path.Attrs.Value()
	verdict := filter.NoMatch
	if p.Filter != nil {
		verdict, a, _ = p.Filter.Export(filter.Route{
			Prefix: prefix, Attrs: a, Learnt: !path.Source.Local,
			Interface: path.Interface, InternalPeer: p.Internal,
		})
	}
	if verdict == filter.Reject || (verdict == filter.NoMatch && !path.Source.Local && !p.Passing.allows(prefix)) {
		return none, false
	}
	if p.Internal && path.Source.Internal && !path.Source.Local {
		if !p.Client && !path.Source.Client {
			return none, false // RFC 4271 §9.2: internal routes are not passed on to internal peers
		}
		a = a.Reflect(path.Source.ID, p.ClusterID)
	}
	if !path.Source.Local && a.HasCommunity(message.NoAdvertise) {
		return none, false
	}
	if !p.Internal && (a.HasCommunity(message.NoExport) || a.HasCommunity(message.NoExportSubconfed)) {
		return none, false
	}
	if a.HasCommunity(message.LLGRStale) && !p.LongLived {
		return none, false // RFC 9494 §4.3
	}
	if !p.nextHop(f, &a, path.Source.Local) {
		return none, false
	}
	if p.Internal {
		a.HasLocalPref = true // RFC 4271 §5.1.5
		return unique.Make(a), true
	}
	a = a.Prepend(p.LocalASN)
	a.HasLocalPref, a.LocalPref = false, message.DefaultLocalPref
	a.OriginatorID, a.ClusterList = netip.Addr{}, ""
	if !path.Source.Local {
		a.HasMED, a.MED = false, 0 // RFC 4271 §5.1.4: not passed on to other neighbouring AS
	}
	return unique.Make(a), true
}

// nextHop applies RFC 4271 §5.1.3: self for our own routes that name no next hop and for external peers;
// unchanged for internal ones; either may be configured otherwise. A next hop that the peer cannot use, for it
// is link-local or of a family that it does not take, becomes self as well. It is false when there is no next
// hop to send.
func (p Policy) nextHop(f message.Family, a *message.Attrs, local bool) bool {
	if !p.takes(f, a.NextHop) || a.NextHop.IsLinkLocalUnicast() || p.Self || (!p.Internal && !p.Keep && !local) {
		a.NextHop = p.NextHop
	}
	return p.takes(f, a.NextHop)
}

// takes reports whether routes of the family may have this next hop.
func (p Policy) takes(f message.Family, hop netip.Addr) bool {
	return hop.IsValid() && (message.FamilyOf(hop) == f || (f == message.IPv4 && p.Extended))
}
