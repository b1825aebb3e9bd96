package capture

import "net/netip"

// summary is what filters look at.
type summary struct {
	family       byte // 4, 6, 'a' for ARP, 0 for anything else
	src, dst     netip.Addr
	proto        byte
	fragment     bool // proto stands in an IPv6 fragment header
	hasPorts     bool
	sport, dport uint16
}

// summarize reads the outermost network header; what is not there stays zero.
func summarize(link Link, d []byte) summary {
	var kind uint16
	switch {
	case link == Ethernet && len(d) >= 14:
		kind, d = be16(d[12:]), d[14:]
	case link == Cooked && len(d) >= cookedLen:
		kind, d = be16(d), d[cookedLen:]
	case link == Raw && len(d) > 0 && d[0]>>4 == 4:
		kind = typeIPv4
	case link == Raw && len(d) > 0 && d[0]>>4 == 6:
		kind = typeIPv6
	}
	switch {
	case kind == typeIPv4 && len(d) >= 20:
		return summarize4(d)
	case kind == typeIPv6 && len(d) >= 40:
		s := summary{family: 6, src: addr6(d[8:]), dst: addr6(d[24:]), proto: d[6]}
		if d = d[40:]; s.proto == protoFragment && len(d) >= 8 {
			s.proto, s.fragment = d[0], true // as in pcap, its ports are not looked at
			return s
		}
		s.ports(d)
		return s
	case kind == typeARP && len(d) >= 28:
		return summary{family: 'a', src: addr4(d[14:]), dst: addr4(d[24:])}
	default:
		return summary{}
	}
}

func summarize4(d []byte) summary {
	s := summary{family: 4, src: addr4(d[12:]), dst: addr4(d[16:]), proto: d[9]}
	header := int(d[0]&0x0f) * 4
	if be16(d[6:])&0x1fff == 0 && header >= 20 && header <= len(d) {
		s.ports(d[header:])
	}
	return s
}

func (s *summary) ports(d []byte) {
	if (s.proto == protoTCP || s.proto == protoUDP) && len(d) >= 4 {
		s.hasPorts, s.sport, s.dport = true, be16(d), be16(d[2:])
	}
}
