package bgp

import (
	"net/netip"
	"slices"
	"strings"
	"unique"

	"github.com/manekinet/maneki/bgp/filter"
	"github.com/manekinet/maneki/bgp/message"
	"github.com/manekinet/maneki/bgp/rib"
)

// barred reports whether a route must not be used: it is remembered, counted as received, and never
// chosen. These are the checks that hold for every peer; what a site wants beyond them is for the caller
// of Best.
func (s *Speaker) barred(p *peer, prefix netip.Prefix, a message.Attrs) bool {
	switch {
	case martian(prefix), s.badNextHop(prefix, a.NextHop, p.local):
		return true
	case a.CountAS(s.cfg.local(p.cfg)) > int(p.cfg.AllowLocalAS): // RFC 4271 §9.1.2: our own AS in the path is a loop
		return true
	case a.OriginatorID == s.cfg.RouterID, a.InClusterList(s.cfg.cluster()): // RFC 4456 §8
		return true
	}
	return !p.source.Internal && a.NeighborAS() != p.cfg.ASN // RFC 4271 §6.3: the peer must have put itself first
}

// reaches reports whether some route of this host leads to a next hop. A link-local one is where the session
// is.
func (s *Speaker) reaches(hop netip.Addr) bool {
	if s.cfg.Reach == nil || hop.IsLinkLocalUnicast() {
		return true
	}
	return slices.ContainsFunc(s.cfg.Reach, func(p netip.Prefix) bool { return p.Contains(hop) })
}

func sameReach(a, b []netip.Prefix) bool { return (a == nil) == (b == nil) && slices.Equal(a, b) }

func (s *Speaker) badNextHop(prefix netip.Prefix, hop, local netip.Addr) bool {
	switch {
	case !hop.IsValid() || hop.Is4In6() || (hop.Is4() && prefix.Addr().Is6()):
		return true
	case s.own[hop] || hop == local:
		return true
	case hop.Zone() != "": // on the interface of a session between link-local addresses
		return false
	}
	return martian(netip.PrefixFrom(hop, hop.BitLen())) || zeroNet(hop)
}

// martians are the blocks that are never routed between hosts (RFC 6890): "this network", loopback,
// link-local, multicast and reserved. The default route is not among them.
func martians() [9]netip.Prefix {
	return [9]netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254}), 16),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{240}), 4),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{15: 1}), 128),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80}), 10),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xff}), 8),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff}), 96),
		netip.PrefixFrom(netip.IPv6Unspecified(), 128),
	}
}

// martian reports whether prefix lies inside a block that is never routed.
func martian(prefix netip.Prefix) bool {
	if prefix.Bits() > 0 && zeroNet(prefix.Addr()) {
		return true
	}
	for _, m := range martians() {
		if m.Bits() <= prefix.Bits() && m.Contains(prefix.Addr()) {
			return true
		}
	}
	return false
}

// zeroNet is 0.0.0.0/8, "this network".
func zeroNet(a netip.Addr) bool { return a.Is4() && a.As4()[0] == 0 }

// admit makes the path of what a peer announces: the checks that hold for every peer, then the import
// rules of its filters.
func (p *peer) admit(prefix netip.Prefix, raw rib.Attrs) rib.Path {
	s := p.speaker
	path := rib.Path{Source: p.source, Attrs: raw, Raw: raw, Barred: s.barred(p, prefix, raw.Value())}
	path.Demoted = raw.Value().HasCommunity(message.LLGRStale) // RFC 9494 §4.3
	path.Unreachable = !s.reaches(raw.Value().NextHop)
	chain := s.chains[p.cfg.Filters]
	external := !p.source.Internal && s.cfg.LocalPref != 0
	if path.Barred || (chain == nil && !external) {
		return path
	}
	a := raw.Value()
	if external {
		a.LocalPref = s.cfg.LocalPref
	}
	verdict, a, _ := chain.Import(filter.Route{Prefix: prefix, Attrs: a, Learnt: true, InternalPeer: p.source.Internal})
	path.Barred, path.Attrs = verdict == filter.Reject, unique.Make(a)
	return path
}

// setChains builds the filter chains that peers name. Chains that decide as before stay the same value, so
// that nothing is computed or sent anew for them.
func (s *Speaker) setChains() {
	chains := make(map[string]*filter.Chain)
	for _, p := range s.cfg.Peers {
		names := strings.Fields(p.Filters)
		if len(names) == 0 || chains[p.Filters] != nil {
			continue
		}
		var list []filter.Filter
		for _, name := range names {
			f, ok := s.cfg.Filters[name]
			f.Name, f.Missing = name, f.Missing || !ok
			list = append(list, f)
		}
		chain := filter.NewChain(list, s.cfg.Links)
		if was := s.chains[p.Filters]; was.Same(chain) {
			chain = was
		}
		chains[p.Filters] = chain
	}
	var again []*peer
	for _, p := range s.peers {
		if chains[p.cfg.Filters] != s.chains[p.cfg.Filters] {
			again = append(again, p)
		}
	}
	s.chains = chains
	s.recheck(again...)
}
