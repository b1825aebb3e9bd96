package message

import (
	"net/netip"

	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// Family is one address family with unicast SAFI (RFC 4760).
type Family uint8

// The families spoken here.
const (
	IPv4 Family = 1 << iota
	IPv6
)

// Families is a set of families.
type Families uint8

// AllFamilies lists the families in the order in which they are announced.
func AllFamilies() []Family { return []Family{IPv4, IPv6} }

// FamilyOf returns the family of an address; an IPv4-mapped one counts as IPv4.
func FamilyOf(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

// Set returns the set holding just f.
func (f Family) Set() Families { return Families(f) }

// String names the family as operators do.
func (f Family) String() string {
	if f == IPv4 {
		return "ipv4-unicast"
	}
	return "ipv6-unicast"
}

func (f Family) wire() wire.Family {
	if f == IPv4 {
		return wire.RF_IPv4_UC
	}
	return wire.RF_IPv6_UC
}

func (f Family) bits() int {
	if f == IPv4 {
		return 32
	}
	return 128
}

func familyOf(afi uint16, safi uint8) (Family, bool) {
	switch wire.NewFamily(afi, safi) {
	case wire.RF_IPv4_UC:
		return IPv4, true
	case wire.RF_IPv6_UC:
		return IPv6, true
	}
	return 0, false
}

// Has reports whether f is in the set.
func (s Families) Has(f Family) bool { return s&Families(f) != 0 }

// Names returns the names of the set's families.
func (s Families) Names() []string {
	var out []string
	for _, f := range AllFamilies() {
		if s.Has(f) {
			out = append(out, f.String())
		}
	}
	return out
}
