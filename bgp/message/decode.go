package message

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// maxASPath is the greatest AS_PATH accepted, in AS numbers. Longer ones do not occur outside attacks
// (spec/faults.md, CVE-2026-49943) and are treated as withdrawn.
const maxASPath = 512

// decoder collects the attributes of one UPDATE.
type decoder struct {
	session Session
	hasNLRI bool // the NLRI field is not empty

	attrs     Attrs
	seen      [256]bool
	count     int    // attributes met
	malformed string // the first reason for treat-as-withdraw
	as4       string // AS4_PATH of an old speaker (RFC 6793)

	reach, unreach []NLRI
	reachNextHop   netip.Addr
	unreachFamily  Family
}

func (d *decoder) withdraw(why string) {
	if d.malformed == "" {
		d.malformed = why
	}
}

// attributes walks the path attributes. Lengths are checked here; the codec sees whole attributes only.
func (d *decoder) attributes(b []byte) error {
	d.attrs.LocalPref = DefaultLocalPref
	for len(b) > 0 {
		head := 3
		if b[0]&byte(wire.BGP_ATTR_FLAG_EXTENDED_LENGTH) != 0 {
			head = 4
		}
		if len(b) < head {
			d.withdraw("attribute header is cut off")
			return nil
		}
		n := int(b[2])
		if head == 4 {
			n = int(binary.BigEndian.Uint16(b[2:4]))
		}
		if len(b) < head+n {
			// RFC 7606 §4: what follows cannot be told apart, the NLRI field still can.
			d.withdraw(fmt.Sprintf("attribute %d is longer than the attributes that hold it", b[1]))
			return nil
		}
		if err := d.attribute(b[:head+n], b[head:head+n]); err != nil {
			return err
		}
		b = b[head+n:]
	}
	return nil
}

// rule is the row of an attribute in the tables of RFC 4271 §5 and RFC 7606 §7.
type rule struct {
	flags    byte             // Optional and Transitive bits it must carry
	length   func(n int) bool // valid length of the value; nil means any
	discard  bool             // a fault drops the attribute, not the route
	internal bool             // dropped when it comes from an external peer
	decode   func(d *decoder, tlv, value []byte) error
}

const (
	optional   = byte(wire.BGP_ATTR_FLAG_OPTIONAL)
	transitive = byte(wire.BGP_ATTR_FLAG_TRANSITIVE)
)

func exactly(want int) func(int) bool { return func(n int) bool { return n == want } }
func multiple(of int) func(int) bool  { return func(n int) bool { return n > 0 && n%of == 0 } }

// ruleFor returns the row of an attribute type, or false for a type that is not interpreted here.
func ruleFor(t wire.BGPAttrType) (rule, bool) {
	switch t {
	case wire.BGP_ATTR_TYPE_ORIGIN:
		return rule{flags: transitive, length: exactly(1), decode: (*decoder).origin}, true
	case wire.BGP_ATTR_TYPE_AS_PATH:
		return rule{flags: transitive, decode: (*decoder).asPath}, true
	case wire.BGP_ATTR_TYPE_NEXT_HOP:
		return rule{flags: transitive, length: exactly(4), decode: (*decoder).nextHop}, true
	case wire.BGP_ATTR_TYPE_MULTI_EXIT_DISC:
		return rule{flags: optional, length: exactly(4), decode: (*decoder).med}, true
	case wire.BGP_ATTR_TYPE_LOCAL_PREF:
		return rule{flags: transitive, length: exactly(4), internal: true, decode: (*decoder).localPref}, true
	case wire.BGP_ATTR_TYPE_ATOMIC_AGGREGATE:
		return rule{flags: transitive, length: exactly(0), discard: true, decode: (*decoder).atomic}, true
	case wire.BGP_ATTR_TYPE_AGGREGATOR:
		return rule{flags: optional | transitive, length: func(n int) bool { return n == 6 || n == 8 }, discard: true, decode: (*decoder).aggregator}, true
	case wire.BGP_ATTR_TYPE_COMMUNITIES:
		return rule{flags: optional | transitive, length: multiple(4), decode: (*decoder).communities}, true
	case wire.BGP_ATTR_TYPE_ORIGINATOR_ID:
		return rule{flags: optional, length: exactly(4), internal: true, decode: (*decoder).originatorID}, true
	case wire.BGP_ATTR_TYPE_CLUSTER_LIST:
		return rule{flags: optional, length: multiple(4), internal: true, decode: (*decoder).clusterList}, true
	case wire.BGP_ATTR_TYPE_EXTENDED_COMMUNITIES:
		return rule{flags: optional | transitive, length: multiple(8), decode: (*decoder).other}, true
	case wire.BGP_ATTR_TYPE_IP6_EXTENDED_COMMUNITIES:
		return rule{flags: optional | transitive, length: multiple(20), decode: (*decoder).other}, true
	case wire.BGP_ATTR_TYPE_LARGE_COMMUNITY:
		return rule{flags: optional | transitive, length: multiple(12), decode: (*decoder).largeCommunities}, true
	case wire.BGP_ATTR_TYPE_AS4_PATH:
		return rule{flags: optional | transitive, discard: true, decode: (*decoder).as4Path}, true
	case wire.BGP_ATTR_TYPE_AS4_AGGREGATOR:
		return rule{flags: optional | transitive, discard: true, decode: (*decoder).ignore}, true
	}
	return rule{}, false
}

// attribute handles one whole attribute: tlv is header and value.
func (d *decoder) attribute(tlv, value []byte) error {
	flags, t := tlv[0], wire.BGPAttrType(tlv[1])
	d.count++
	first := !d.seen[t]
	d.seen[t] = true
	if t == wire.BGP_ATTR_TYPE_MP_REACH_NLRI || t == wire.BGP_ATTR_TYPE_MP_UNREACH_NLRI {
		return d.multiprotocol(t, tlv, value, first)
	}
	if !first {
		return nil // RFC 7606 §3 (g): the first counts
	}
	r, known := ruleFor(t)
	switch {
	case !known && flags&optional == 0:
		return &Error{Code: codeUpdate, Subcode: subUnrecognized, Data: clone(tlv), Text: fmt.Sprintf("well-known attribute %d is unknown", t)}
	case !known && flags&transitive == 0:
		return nil
	case !known:
		return d.other(tlv, value)
	case r.internal && !d.session.Internal:
		return nil // RFC 7606 §7.5, §7.9, §7.10
	case flags&(optional|transitive) != r.flags && !r.discard:
		d.withdraw(fmt.Sprintf("attribute %d has flags %#x", t, flags))
		return nil
	case r.length != nil && !r.length(len(value)):
		if !r.discard {
			d.withdraw(fmt.Sprintf("attribute %d has length %d", t, len(value)))
		}
		return nil
	}
	if err := r.decode(d, tlv, value); err != nil && !r.discard {
		d.withdraw(fmt.Sprintf("attribute %d: %v", t, err))
	}
	return nil
}

func clone(b []byte) []byte { return append([]byte(nil), b...) }

func (d *decoder) origin(tlv, _ []byte) error {
	var a wire.PathAttributeOrigin
	if err := a.DecodeFromBytes(tlv); err != nil {
		return err
	}
	if a.Value > 2 {
		return fmt.Errorf("origin %d", a.Value)
	}
	d.attrs.Origin = a.Value
	return nil
}

func (d *decoder) asPath(tlv, value []byte) error {
	var a wire.PathAttributeAsPath
	if err := a.DecodeFromBytes(tlv, &wire.MarshallingOption{Use2ByteAS: !d.session.FourOctetAS}); err != nil {
		return err
	}
	path, err := segmentBytes(a.Value)
	d.attrs.ASPath = path
	return err
}

// segmentBytes writes segments with four-octet AS numbers, refusing the confederation kinds (RFC 5065:
// they must not leave a confederation, and we are in none) and paths beyond maxASPath.
func segmentBytes(segments []wire.AsPathParamInterface) (string, error) {
	var b []byte
	total := 0
	for _, s := range segments {
		if k := s.GetType(); k != wire.BGP_ASPATH_ATTR_TYPE_SEQ && k != wire.BGP_ASPATH_ATTR_TYPE_SET {
			return "", fmt.Errorf("AS_PATH segment type %d", k)
		}
		asns := s.GetAS()
		if total += len(asns); total > maxASPath {
			return "", fmt.Errorf("AS_PATH of more than %d AS numbers", maxASPath)
		}
		if slices.Contains(asns, 0) {
			return "", fmt.Errorf("AS 0 in the path") // RFC 7607 §2
		}
		one, err := wire.NewAs4PathParam(s.GetType(), asns).Serialize()
		if err != nil {
			return "", err
		}
		b = append(b, one...)
	}
	return string(b), nil
}

func (d *decoder) as4Path(tlv, _ []byte) error {
	if d.session.FourOctetAS {
		return nil // RFC 6793 §6: from a new speaker it is discarded
	}
	var a wire.PathAttributeAs4Path
	if err := a.DecodeFromBytes(tlv); err != nil {
		return err
	}
	segments := make([]wire.AsPathParamInterface, len(a.Value))
	for i, s := range a.Value {
		segments[i] = s
	}
	path, err := segmentBytes(segments)
	if err == nil {
		d.as4 = path
	}
	return err
}

// mergeAS4 puts the tail of AS4_PATH in place of the AS_TRANS numbers of an old speaker's AS_PATH
// (RFC 6793 §4.2.3).
func (d *decoder) mergeAS4() {
	if d.as4 == "" {
		return
	}
	var kept Attrs
	surplus := d.attrs.PathLen() - Attrs{ASPath: d.as4}.PathLen()
	if surplus < 0 {
		return
	}
	var front []uint32
	d.attrs.segments(func(_ byte, asns string) bool {
		for i := 0; i < len(asns)/4 && len(front) < surplus; i++ {
			front = append(front, asAt(asns, i))
		}
		return len(front) < surplus
	})
	kept.ASPath = d.as4
	for i := len(front) - 1; i >= 0; i-- {
		kept = kept.Prepend(front[i])
	}
	d.attrs.ASPath = kept.ASPath
}

func (d *decoder) nextHop(tlv, _ []byte) error {
	var a wire.PathAttributeNextHop
	if err := a.DecodeFromBytes(tlv); err != nil {
		return err
	}
	d.attrs.NextHop = a.Value
	return nil
}

func (d *decoder) med(tlv, _ []byte) error {
	var a wire.PathAttributeMultiExitDisc
	if err := a.DecodeFromBytes(tlv); err != nil {
		return err
	}
	d.attrs.MED, d.attrs.HasMED = a.Value, true
	return nil
}

func (d *decoder) localPref(tlv, _ []byte) error {
	var a wire.PathAttributeLocalPref
	if err := a.DecodeFromBytes(tlv); err != nil {
		return err
	}
	d.attrs.LocalPref, d.attrs.HasLocalPref = a.Value, true
	return nil
}

func (d *decoder) atomic(_, _ []byte) error { d.attrs.Atomic = true; return nil }

func (d *decoder) ignore(_, _ []byte) error { return nil }

// aggregator is passed on unchanged; its form depends on the width of AS numbers, so that of an old
// speaker is dropped rather than re-encoded.
func (d *decoder) aggregator(tlv, value []byte) error {
	if d.session.FourOctetAS && len(value) == 8 {
		return d.other(tlv, value)
	}
	return nil
}

func (d *decoder) communities(_, value []byte) error {
	d.attrs.Communities = string(value)
	return nil
}

func (d *decoder) largeCommunities(_, value []byte) error {
	d.attrs.LargeCommunities = string(value)
	return nil
}

func (d *decoder) originatorID(tlv, _ []byte) error {
	var a wire.PathAttributeOriginatorId
	if err := a.DecodeFromBytes(tlv); err != nil {
		return err
	}
	d.attrs.OriginatorID = a.Value
	return nil
}

func (d *decoder) clusterList(_, value []byte) error {
	d.attrs.ClusterList = string(value)
	return nil
}

// other keeps an optional transitive attribute for passing on. A type that is not interpreted gets the
// Partial bit (RFC 4271 §5); the value is not touched.
func (d *decoder) other(tlv, value []byte) error {
	flags := tlv[0] &^ byte(wire.BGP_ATTR_FLAG_EXTENDED_LENGTH)
	if _, known := ruleFor(wire.BGPAttrType(tlv[1])); !known {
		flags |= byte(wire.BGP_ATTR_FLAG_PARTIAL)
	}
	b, err := wire.NewPathAttributeUnknown(wire.BGPAttrFlag(flags), wire.BGPAttrType(tlv[1]), clone(value)).Serialize()
	d.attrs.Other += string(b)
	return err
}

// multiprotocol handles MP_REACH_NLRI and MP_UNREACH_NLRI. What cannot be parsed here ends the session,
// because the routes meant are not known (RFC 7606 §3 (g), §5.3, §7.11). Families that were not
// negotiated are ignored.
func (d *decoder) multiprotocol(t wire.BGPAttrType, tlv, value []byte, first bool) error {
	fatal := func(text string) error {
		return &Error{Code: codeUpdate, Subcode: subOptionalAttr, Data: clone(tlv), Text: text}
	}
	if !first {
		return &Error{Code: codeUpdate, Subcode: subAttributeList, Text: fmt.Sprintf("attribute %d occurs twice", t)}
	}
	if len(value) < 3 {
		return fatal("multiprotocol attribute is short")
	}
	f, known := familyOf(binary.BigEndian.Uint16(value), value[2])
	if !known || !d.session.Families.Has(f) {
		return nil
	}
	if tlv[0]&(optional|transitive) != optional {
		d.withdraw(fmt.Sprintf("attribute %d has flags %#x", t, tlv[0]))
	}
	var err error
	if t == wire.BGP_ATTR_TYPE_MP_UNREACH_NLRI {
		d.unreachFamily = f
		d.unreach, err = routesOf(value[3:], f, d.session.PathsIn)
		return err
	}
	if len(value) < 5 || len(value) < 5+int(value[3]) {
		return fatal("MP_REACH_NLRI is short")
	}
	hop, nlri := value[4:4+int(value[3])], value[5+int(value[3]):]
	switch six := f == IPv6 || d.session.ExtendedNextHop; {
	case f == IPv4 && len(hop) == 4:
		d.reachNextHop, _ = netip.AddrFromSlice(hop)
	case six && len(hop) == 16:
		d.reachNextHop = d.nextHop6(hop, hop)
	case six && len(hop) == 32: // global and link-local (RFC 2545 §3)
		d.reachNextHop = d.nextHop6(hop[:16], hop[16:])
	default:
		return fatal(fmt.Sprintf("MP_REACH_NLRI next hop of %d octets", len(hop)))
	}
	d.reach, err = routesOf(nlri, f, d.session.PathsIn)
	return err
}

// nextHop6 chooses between the two addresses of an IPv6 next hop. On a session between link-local addresses it
// is the link-local one, because the interface is known, and may be the only one the peer has; elsewhere the
// global one.
func (d *decoder) nextHop6(global, local []byte) netip.Addr {
	g, _ := netip.AddrFromSlice(global)
	l, _ := netip.AddrFromSlice(local)
	switch zone := d.session.Zone; {
	case zone != "" && l.IsLinkLocalUnicast():
		return l.WithZone(zone)
	case zone != "" && g.IsLinkLocalUnicast():
		return g.WithZone(zone)
	}
	return g
}

// checkMandatory applies RFC 7606 §3 (d) and §5.2: attributes that routes must have, and the rule that
// a faulty message which names no routes ends the session.
func (d *decoder) checkMandatory() error {
	announces := d.hasNLRI || len(d.reach) > 0
	if announces {
		for _, t := range []wire.BGPAttrType{wire.BGP_ATTR_TYPE_ORIGIN, wire.BGP_ATTR_TYPE_AS_PATH} {
			if !d.seen[t] {
				d.withdraw(fmt.Sprintf("attribute %d is missing", t))
			}
		}
		if d.hasNLRI && !d.seen[wire.BGP_ATTR_TYPE_NEXT_HOP] {
			d.withdraw(fmt.Sprintf("attribute %d is missing", wire.BGP_ATTR_TYPE_NEXT_HOP))
		}
	}
	if d.malformed != "" && !announces {
		return &Error{Code: codeUpdate, Subcode: subAttributeList, Text: d.malformed + ", and no routes to withdraw for it"}
	}
	return nil
}

// onlyEmptyUnreach recognises the End-of-RIB marker of families other than IPv4 (RFC 4724 §2).
func (d *decoder) onlyEmptyUnreach(withdrawn int) bool {
	return d.count == 1 && d.unreachFamily != 0 && len(d.unreach) == 0 && withdrawn == 0 && !d.hasNLRI && d.malformed == ""
}
