package message

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// DefaultLocalPref is used for paths that came without LOCAL_PREF (RFC 4271 §9.1.1 leaves it to policy).
const DefaultLocalPref = 100

// Well-known communities (RFC 1997, RFC 9494).
const (
	NoExport          = 0xffffff01
	NoAdvertise       = 0xffffff02
	NoExportSubconfed = 0xffffff03
	LLGRStale         = 0xffff0006 // RFC 9494 §3.2: kept long after its source was lost
	NoLLGR            = 0xffff0007 // RFC 9494 §3.3: not to be kept so
)

// Attrs is the path attributes of a route. It is comparable, so that equal attributes of thousands of
// routes can be held once (unique.Handle). List attributes are kept as their wire octets in a string.
type Attrs struct {
	NextHop          netip.Addr
	OriginatorID     netip.Addr // zero when absent (RFC 4456)
	ASPath           string     // segments with four-octet AS numbers; "" is an empty path
	Communities      string     // four octets each (RFC 1997)
	LargeCommunities string     // twelve octets each (RFC 8092)
	ClusterList      string     // four octets each (RFC 4456)
	Other            string     // further optional transitive attributes, whole, byte for byte
	LocalPref, MED   uint32     // LocalPref is DefaultLocalPref when HasLocalPref is false
	Origin           uint8      // 0 IGP, 1 EGP, 2 incomplete
	HasLocalPref     bool
	HasMED           bool
	Atomic           bool // ATOMIC_AGGREGATE
}

// segments calls f for each AS_PATH segment until f returns false.
func (a Attrs) segments(f func(kind byte, asns string) bool) {
	p := a.ASPath
	for len(p) >= 2 && len(p) >= 2+4*int(p[1]) {
		n := 2 + 4*int(p[1])
		if !f(p[0], p[2:n]) {
			return
		}
		p = p[n:]
	}
}

func asAt(asns string, i int) uint32 { return binary.BigEndian.Uint32([]byte(asns[4*i : 4*i+4])) }

// PathLen is the length of the AS_PATH as route selection counts it: a set counts as one
// (RFC 4271 §9.1.2.2 a).
func (a Attrs) PathLen() int {
	n := 0
	a.segments(func(kind byte, asns string) bool {
		switch kind {
		case wire.BGP_ASPATH_ATTR_TYPE_SEQ:
			n += len(asns) / 4
		case wire.BGP_ASPATH_ATTR_TYPE_SET:
			n++
		}
		return true
	})
	return n
}

// NeighborAS is the AS that the path was received from: the first of a leading sequence, else 0.
func (a Attrs) NeighborAS() uint32 {
	var as uint32
	a.segments(func(kind byte, asns string) bool {
		if kind == wire.BGP_ASPATH_ATTR_TYPE_SEQ && len(asns) >= 4 {
			as = asAt(asns, 0)
		}
		return false
	})
	return as
}

// PathHead returns the first n AS numbers of the leading sequence, or fewer if it is shorter.
func (a Attrs) PathHead(n int) []uint32 {
	var out []uint32
	a.segments(func(kind byte, asns string) bool {
		for i := 0; kind == wire.BGP_ASPATH_ATTR_TYPE_SEQ && i < len(asns)/4 && len(out) < n; i++ {
			out = append(out, asAt(asns, i))
		}
		return kind == wire.BGP_ASPATH_ATTR_TYPE_SEQ && len(out) < n
	})
	return out
}

// CountAS is how often as occurs in the AS_PATH: the loop check of RFC 4271 §9.1.2.
func (a Attrs) CountAS(as uint32) int {
	n := 0
	a.segments(func(_ byte, asns string) bool {
		for i := range len(asns) / 4 {
			if asAt(asns, i) == as {
				n++
			}
		}
		return true
	})
	return n
}

// InClusterList reports whether id occurs in the CLUSTER_LIST: the loop check of RFC 4456 §8.
func (a Attrs) InClusterList(id netip.Addr) bool {
	want := string(id.AsSlice())
	for i := 0; i+4 <= len(a.ClusterList); i += 4 {
		if a.ClusterList[i:i+4] == want {
			return true
		}
	}
	return false
}

// Reflect returns a as a route reflector passes it on (RFC 4456 §8): originator is the router ID of the
// peer it came from, unless a reflector before has named it, and cluster goes in front of CLUSTER_LIST.
// Everything else, the next hop with it, stays (RFC 4456 §10).
func (a Attrs) Reflect(originator, cluster netip.Addr) Attrs {
	if !a.OriginatorID.IsValid() {
		a.OriginatorID = originator
	}
	a.ClusterList = string(cluster.AsSlice()) + a.ClusterList
	return a
}

// HasCommunity reports whether the RFC 1997 community c is present.
func (a Attrs) HasCommunity(c uint32) bool {
	for i := 0; i+4 <= len(a.Communities); i += 4 {
		if binary.BigEndian.Uint32([]byte(a.Communities[i:i+4])) == c {
			return true
		}
	}
	return false
}

// WithCommunity returns a with the RFC 1997 community c.
func (a Attrs) WithCommunity(c uint32) Attrs {
	if !a.HasCommunity(c) {
		a.Communities += string(binary.BigEndian.AppendUint32(nil, c))
	}
	return a
}

// Prepend returns a with as put in front of the AS_PATH (RFC 4271 §5.1.2 b).
func (a Attrs) Prepend(as uint32) Attrs {
	one := string(binary.BigEndian.AppendUint32(nil, as))
	if p := a.ASPath; len(p) >= 2 && p[0] == wire.BGP_ASPATH_ATTR_TYPE_SEQ && p[1] < 255 {
		a.ASPath = string([]byte{p[0], p[1] + 1}) + one + p[2:]
		return a
	}
	a.ASPath = string([]byte{wire.BGP_ASPATH_ATTR_TYPE_SEQ, 1}) + one + a.ASPath
	return a
}

// PathString prints the AS_PATH as operators do: "64513 64514 {64515,64516}".
func (a Attrs) PathString() string {
	var b strings.Builder
	a.segments(func(kind byte, asns string) bool {
		open, sep, end := "", " ", ""
		if kind == wire.BGP_ASPATH_ATTR_TYPE_SET {
			open, sep, end = "{", ",", "}"
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(open)
		for i := range len(asns) / 4 {
			if i > 0 {
				b.WriteString(sep)
			}
			b.WriteString(strconv.FormatUint(uint64(asAt(asns, i)), 10))
		}
		b.WriteString(end)
		return true
	})
	return b.String()
}

// Clusters is the CLUSTER_LIST, the last reflector first.
func (a Attrs) Clusters() []netip.Addr {
	var out []netip.Addr
	for i := 0; i+4 <= len(a.ClusterList); i += 4 {
		out = append(out, netip.AddrFrom4([4]byte([]byte(a.ClusterList[i:i+4]))))
	}
	return out
}

// FormatCommunities prints the wire octets of the two attributes as ParseCommunities reads them.
func FormatCommunities(communities, large string) string {
	var out []string
	for b := []byte(communities); len(b) >= 4; b = b[4:] {
		out = append(out, fmt.Sprintf("%d:%d", binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])))
	}
	for b := []byte(large); len(b) >= 12; b = b[12:] {
		out = append(out, fmt.Sprintf("%d:%d:%d", binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])))
	}
	return strings.Join(out, " ")
}

// ParseCommunities reads a blank-separated list of "aa:nn" (RFC 1997) and "aa:nn:mm" (RFC 8092) values
// into the wire octets of the two attributes.
func ParseCommunities(s string) (communities, large string, err error) {
	for _, field := range strings.Fields(s) {
		parts := strings.Split(field, ":")
		size := 32
		if len(parts) == 2 {
			size = 16
		} else if len(parts) != 3 {
			return "", "", fmt.Errorf("community %q: want aa:nn or aa:nn:mm", field)
		}
		var b []byte
		for _, p := range parts {
			v, err := strconv.ParseUint(p, 10, size)
			if err != nil {
				return "", "", fmt.Errorf("community %q: %q is not a number of %d bits", field, p, size)
			}
			if size == 16 {
				b = binary.BigEndian.AppendUint16(b, uint16(v))
			} else {
				b = binary.BigEndian.AppendUint32(b, uint32(v))
			}
		}
		if size == 16 {
			communities += string(b)
		} else {
			large += string(b)
		}
	}
	return communities, large, nil
}
