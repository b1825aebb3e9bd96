package message

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// Session is what decoding an UPDATE depends on: the result of the OPEN exchange.
type Session struct {
	Internal    bool     // iBGP
	FourOctetAS bool     // both sides speak four-octet AS numbers
	Families    Families // negotiated on both sides
	// ExtendedNextHop says that both sides take routes of IPv4 with an IPv6 next hop (RFC 8950).
	ExtendedNextHop bool
	Zone            string // the interface of a session between link-local addresses
	// PathsIn and PathsOut are the families whose routes come, or are sent, with path identifiers (RFC 7911).
	PathsIn, PathsOut Families
}

// NLRI is one path to a prefix. The identifier tells it from other paths to the same prefix on the same session
// (RFC 7911 §3); it is 0 where there are no identifiers.
type NLRI struct {
	Prefix netip.Prefix
	ID     uint32
}

// Update is a decoded UPDATE (RFC 4271 §4.3, RFC 4760).
type Update struct {
	Withdrawn []NLRI
	Reach     []Reach  // at most one for the NLRI field and one for MP_REACH_NLRI
	EndOfRIB  Families // the family this message ends, if it is an End-of-RIB marker (RFC 4724)
	// Malformed says in words what was wrong with an attribute when the message was demoted to a withdrawal
	// of its routes (treat-as-withdraw, RFC 7606 §2); its routes are then in Withdrawn. "" if nothing was.
	Malformed string
}

// Reach is the routes of one UPDATE that share attributes.
type Reach struct {
	Attrs  Attrs
	Routes []NLRI
}

// DecodeUpdate reads the body of an UPDATE. Attribute faults that RFC 7606 does not count as fatal are
// handled here; the error, an *Error, is for those that end the session.
func DecodeUpdate(body []byte, s Session) (Update, error) {
	withdrawn, attrs, nlri, err := sections(body)
	if err != nil {
		return Update{}, err
	}
	var u Update
	if u.Withdrawn, err = routesOf(withdrawn, IPv4, s.PathsIn); err != nil {
		return Update{}, err
	}
	routes, err := routesOf(nlri, IPv4, s.PathsIn)
	if err != nil {
		return Update{}, err
	}
	d := decoder{session: s, hasNLRI: len(routes) > 0}
	if err := d.attributes(attrs); err != nil {
		return Update{}, err
	}
	if err := d.checkMandatory(); err != nil {
		return Update{}, err
	}
	if len(body) == 4 {
		u.EndOfRIB = IPv4.Set() & s.Families
		return u, nil
	}
	if d.onlyEmptyUnreach(len(u.Withdrawn)) {
		u.EndOfRIB = d.unreachFamily.Set() & s.Families
		return u, nil
	}
	return d.finish(u, routes), nil
}

// sections splits the body by its two length fields.
func sections(body []byte) (withdrawn, attrs, nlri []byte, err error) {
	short := &Error{Code: codeUpdate, Subcode: subAttributeList, Text: "UPDATE length fields exceed the message"}
	if len(body) < 4 {
		return nil, nil, nil, short
	}
	w := int(binary.BigEndian.Uint16(body))
	if len(body) < 4+w {
		return nil, nil, nil, short
	}
	withdrawn, body = body[2:2+w], body[2+w:]
	a := int(binary.BigEndian.Uint16(body))
	if len(body) < 2+a {
		return nil, nil, nil, short
	}
	return withdrawn, body[2 : 2+a], body[2+a:], nil
}

// routesOf reads the NLRI in b, all of family f (RFC 4271 §4.3, RFC 7606 §5.3); those of the families in ids have
// identifiers in front (RFC 7911 §3).
func routesOf(b []byte, f Family, ids Families) ([]NLRI, error) {
	var out []NLRI
	for len(b) > 0 {
		var id uint32
		if ids.Has(f) {
			if len(b) < 5 {
				return nil, &Error{Code: codeUpdate, Subcode: subNetworkField, Text: "path identifier without a prefix"}
			}
			id, b = binary.BigEndian.Uint32(b), b[4:]
		}
		n := 1 + (int(b[0])+7)/8
		if int(b[0]) > f.bits() || len(b) < n {
			return nil, &Error{Code: codeUpdate, Subcode: subNetworkField, Text: fmt.Sprintf("prefix length %d is not valid for %s", b[0], f)}
		}
		nlri, err := wire.NLRIFromSlice(f.wire(), b[:n])
		if err != nil {
			return nil, fault(err, codeUpdate, subNetworkField)
		}
		p, ok := nlri.(*wire.IPAddrPrefix)
		if !ok {
			return nil, &Error{Code: codeUpdate, Subcode: subNetworkField, Text: "NLRI is not a prefix"}
		}
		out = append(out, NLRI{Prefix: p.Prefix, ID: id})
		b = b[n:]
	}
	return out, nil
}

// finish turns what was decoded into the Update.
func (d *decoder) finish(u Update, routes []NLRI) Update {
	u.Withdrawn = append(u.Withdrawn, d.unreach...)
	if !d.session.Families.Has(IPv4) {
		u.Withdrawn, routes = keep(u.Withdrawn, IPv6), nil
	}
	if d.malformed != "" {
		u.Malformed = d.malformed
		u.Withdrawn = append(append(u.Withdrawn, routes...), d.reach...)
		return u
	}
	d.mergeAS4()
	if len(routes) > 0 {
		u.Reach = append(u.Reach, Reach{Attrs: d.attrs, Routes: routes})
	}
	if len(d.reach) > 0 {
		a := d.attrs
		a.NextHop = d.reachNextHop
		u.Reach = append(u.Reach, Reach{Attrs: a, Routes: d.reach})
	}
	return u
}

func keep(ns []NLRI, f Family) []NLRI {
	var out []NLRI
	for _, n := range ns {
		if FamilyOf(n.Prefix.Addr()) == f {
			out = append(out, n)
		}
	}
	return out
}
