package message

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// room is what an UPDATE has for attributes and routes after header and its two length fields.
const room = MaxLen - HeaderLen - 4

// Plain are prefixes as NLRI of a session without path identifiers.
func Plain(ps ...netip.Prefix) []NLRI {
	out := make([]NLRI, len(ps))
	for i, p := range ps {
		out[i].Prefix = p
	}
	return out
}

// AppendWithdraw appends UPDATE messages that withdraw ns, all of family f, as many to a message as fit. ids says
// whether they have their identifiers (RFC 7911).
func AppendWithdraw(dst [][]byte, f Family, ids bool, ns []NLRI) ([][]byte, error) {
	overhead := 0
	if f != IPv4 {
		overhead = 4 + 3 // MP_UNREACH_NLRI header with extended length, AFI and SAFI
	}
	return pack(dst, room-overhead, f, ids, ns, func(nlri []wire.PathNLRI) (*wire.BGPMessage, error) {
		if f == IPv4 {
			return wire.NewBGPUpdateMessage(nlri, nil, nil), nil
		}
		un, err := wire.NewPathAttributeMpUnreachNLRI(f.wire(), nlri)
		if err != nil {
			return nil, err
		}
		return wire.NewBGPUpdateMessage(nil, []wire.PathAttributeInterface{un}, nil), nil
	})
}

// Form is how routes are written for one receiver.
type Form struct {
	FourOctetAS bool // it speaks four-octet AS numbers (RFC 6793)
	PathIDs     bool // routes of the family have identifiers (RFC 7911)
}

// AppendReach appends UPDATE messages that announce ns, all of family f, with attributes a. Routes of IPv4 with
// an IPv6 next hop are for receivers that take them (RFC 8950).
func AppendReach(dst [][]byte, f Family, a Attrs, form Form, ns []NLRI) ([][]byte, error) {
	a.NextHop = a.NextHop.WithZone("")
	classic := f == IPv4 && !a.NextHop.Is6()
	attrs, err := a.wire(f, form.FourOctetAS)
	if err != nil {
		return dst, err
	}
	size := 0
	for _, at := range attrs {
		b, err := at.Serialize()
		if err != nil {
			return dst, fmt.Errorf("encode attribute %d: %w", at.GetType(), err)
		}
		size += len(b)
	}
	if !classic {
		size += 4 + 5 + 16 // MP_REACH_NLRI header with extended length, fixed fields, next hop
	}
	if size+4+1+f.bits()/8 > room {
		return dst, fmt.Errorf("encode update: attributes of %d octets leave no room for a route", size)
	}
	return pack(dst, room-size, f, form.PathIDs, ns, func(nlri []wire.PathNLRI) (*wire.BGPMessage, error) {
		if classic {
			return wire.NewBGPUpdateMessage(nil, attrs, nlri), nil
		}
		reach, err := wire.NewPathAttributeMpReachNLRI(f.wire(), nlri, a.NextHop)
		if err != nil {
			return nil, err
		}
		return wire.NewBGPUpdateMessage(nil, append(attrs[:len(attrs):len(attrs)], reach), nil), nil
	})
}

// pack cuts ns into runs of at most size octets and makes one message of each.
func pack(dst [][]byte, size int, f Family, ids bool, ns []NLRI, build func([]wire.PathNLRI) (*wire.BGPMessage, error)) ([][]byte, error) {
	var nlri []wire.PathNLRI
	form, extra := wire.MarshallingOption{}, 0
	if ids {
		form.AddPath, extra = map[wire.Family]wire.BGPAddPathMode{f.wire(): wire.BGP_ADD_PATH_SEND}, 4
	}
	used := 0
	flush := func() error {
		if len(nlri) == 0 {
			return nil
		}
		m, err := build(nlri)
		if err != nil {
			return fmt.Errorf("encode update: %w", err)
		}
		b, err := m.Serialize(&form)
		if err != nil {
			return fmt.Errorf("encode update: %w", err)
		}
		dst = append(dst, b)
		nlri, used = nil, 0
		return nil
	}
	for _, n := range ns {
		one, err := wire.NewIPAddrPrefix(n.Prefix)
		if err != nil {
			return dst, fmt.Errorf("encode prefix %s: %w", n.Prefix, err)
		}
		if used+one.Len()+extra > size {
			if err := flush(); err != nil {
				return dst, err
			}
		}
		nlri = append(nlri, wire.PathNLRI{NLRI: one, ID: n.ID})
		used += one.Len() + extra
	}
	return dst, flush()
}

// wire returns the codec's attributes in ascending order of type (RFC 4271 §5), without MP_REACH_NLRI.
func (a Attrs) wire(f Family, fourOctetAS bool) ([]wire.PathAttributeInterface, error) {
	out := []wire.PathAttributeInterface{wire.NewPathAttributeOrigin(a.Origin), a.pathAttr(fourOctetAS)}
	switch {
	case !a.NextHop.IsValid(), f == IPv6 && !a.NextHop.Is6():
		return nil, fmt.Errorf("encode update: next hop %s of an %s route", a.NextHop, f)
	case a.NextHop.Is4():
		hop, err := wire.NewPathAttributeNextHop(a.NextHop)
		if err != nil {
			return nil, err
		}
		out = append(out, hop)
	}
	if a.HasMED {
		out = append(out, wire.NewPathAttributeMultiExitDisc(a.MED))
	}
	if a.HasLocalPref {
		out = append(out, wire.NewPathAttributeLocalPref(a.LocalPref))
	}
	if a.Atomic {
		out = append(out, wire.NewPathAttributeAtomicAggregate())
	}
	for _, list := range []struct {
		t     wire.BGPAttrType
		value string
	}{
		{wire.BGP_ATTR_TYPE_COMMUNITIES, a.Communities},
		{wire.BGP_ATTR_TYPE_ORIGINATOR_ID, octets(a.OriginatorID)},
		{wire.BGP_ATTR_TYPE_CLUSTER_LIST, a.ClusterList},
		{wire.BGP_ATTR_TYPE_LARGE_COMMUNITY, a.LargeCommunities},
	} {
		if list.value != "" {
			out = append(out, wire.NewPathAttributeUnknown(wire.PathAttrFlags[list.t], list.t, []byte(list.value)))
		}
	}
	if as4 := a.as4Attr(); as4 != nil && !fourOctetAS {
		out = append(out, as4)
	}
	return append(out, a.otherAttrs(fourOctetAS)...), nil
}

func octets(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return string(a.AsSlice())
}

// otherAttrs splits Other into its attributes again. AGGREGATOR has the width of four-octet speakers and
// is kept from others.
func (a Attrs) otherAttrs(fourOctetAS bool) []wire.PathAttributeInterface {
	var out []wire.PathAttributeInterface
	for b := []byte(a.Other); len(b) >= 3; {
		head, n := 3, int(b[2])
		if b[0]&byte(wire.BGP_ATTR_FLAG_EXTENDED_LENGTH) != 0 {
			head, n = 4, int(binary.BigEndian.Uint16(b[2:4]))
		}
		flags, t := wire.BGPAttrFlag(b[0]), wire.BGPAttrType(b[1])
		if t != wire.BGP_ATTR_TYPE_AGGREGATOR || fourOctetAS {
			out = append(out, wire.NewPathAttributeUnknown(flags, t, b[head:head+n]))
		}
		b = b[head+n:]
	}
	return out
}

func (a Attrs) pathAttr(fourOctetAS bool) wire.PathAttributeInterface {
	var segments []wire.AsPathParamInterface
	a.segments(func(kind byte, asns string) bool {
		wide := make([]uint32, len(asns)/4)
		narrow := make([]uint16, len(wide))
		for i := range wide {
			wide[i] = asAt(asns, i)
			narrow[i] = asTrans
			if wide[i] <= 0xffff {
				narrow[i] = uint16(wide[i])
			}
		}
		if fourOctetAS {
			segments = append(segments, wire.NewAs4PathParam(kind, wide))
		} else {
			segments = append(segments, wire.NewAsPathParam(kind, narrow))
		}
		return true
	})
	return wire.NewPathAttributeAsPath(segments)
}

// as4Attr returns AS4_PATH when the path has an AS number that two octets cannot carry.
func (a Attrs) as4Attr() wire.PathAttributeInterface {
	var segments []*wire.As4PathParam
	wide := false
	a.segments(func(kind byte, asns string) bool {
		list := make([]uint32, len(asns)/4)
		for i := range list {
			list[i] = asAt(asns, i)
			wide = wide || list[i] > 0xffff
		}
		segments = append(segments, wire.NewAs4PathParam(kind, list))
		return true
	})
	if !wide {
		return nil
	}
	return wire.NewPathAttributeAs4Path(segments)
}
