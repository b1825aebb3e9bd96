package export

import (
	"net/netip"
	"unique"

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
	FourOctetAS bool             // the peer reads four-octet AS numbers (RFC 6793)
	Client      bool             // the peer is a client of this route reflector (RFC 4456 §6)
	ClusterID   netip.Addr       // goes into the CLUSTER_LIST of what is reflected, IPv4 form
}

// Apply returns the attributes with which path is sent to the group's peers, or false if it is not.
func (p Policy) Apply(prefix netip.Prefix, path rib.Path) (rib.Attrs, bool) {
	none := rib.Attrs{}
	f := message.FamilyOf(prefix.Addr())
	if !p.Families.Has(f) {
		return none, false
	}
	a := path.Attrs.Value()
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
// unchanged for internal ones. It is false when there is no next hop of the route's family to send.
func (p Policy) nextHop(f message.Family, a *message.Attrs, local bool) bool {
	if !a.NextHop.IsValid() || (!p.Internal && !local) {
		a.NextHop = p.NextHop
	}
	return a.NextHop.IsValid() && message.FamilyOf(a.NextHop) == f
}
