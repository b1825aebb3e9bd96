// Package flows listens to what the packet filter reports and to the kernel's
// connection tracking: the denied packets and the connections that there are. It
// changes nothing but connections that it is told to end.
package flows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/manekinet/maneki/policy"
)

// errShort means that a packet was cut before what had to be read.
var errShort = errors.New("cut short")

// ParsePacket reads the head of an IP packet: addresses, protocol, ports or ICMP
// type. Of a fragment but the first the ports are 0; of a packet that was cut
// before them as well.
func ParsePacket(b []byte) (policy.Packet, error) {
	if len(b) == 0 {
		return policy.Packet{}, fmt.Errorf("parse packet: %w", errShort)
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b)
	case 6:
		return parse6(b)
	}
	return policy.Packet{}, fmt.Errorf("parse packet: IP version %d", b[0]>>4)
}

// parse4 reads an IPv4 header (RFC 791 §3.1).
func parse4(b []byte) (policy.Packet, error) {
	size := int(b[0]&0xf) * 4
	if len(b) < 20 || size < 20 {
		return policy.Packet{}, fmt.Errorf("parse IPv4 header: %w", errShort)
	}
	p := policy.Packet{Src: netip.AddrFrom4([4]byte(b[12:16])), Dst: netip.AddrFrom4([4]byte(b[16:20])), Protocol: b[9]}
	first := binary.BigEndian.Uint16(b[6:8])&0x1fff == 0
	if first && len(b) > size {
		transport(&p, b[size:])
	}
	return p, nil
}

// Extension headers of IPv6 that may stand before the transport's (RFC 8200 §4.1).
const (
	hopByHop    = 0
	routing     = 43
	fragment    = 44
	authHeader  = 51
	destination = 60
)

// parse6 reads an IPv6 header and skips extension headers.
func parse6(b []byte) (policy.Packet, error) {
	if len(b) < 40 {
		return policy.Packet{}, fmt.Errorf("parse IPv6 header: %w", errShort)
	}
	p := policy.Packet{Src: netip.AddrFrom16([16]byte(b[8:24])), Dst: netip.AddrFrom16([16]byte(b[24:40])), Protocol: b[6]}
	rest := b[40:]
	const most = 8 // headers; no honest packet has more
	for range most {
		size := 0
		switch p.Protocol {
		case hopByHop, routing, destination:
			if len(rest) >= 2 {
				size = (int(rest[1]) + 1) * 8
			}
		case authHeader:
			if len(rest) >= 2 {
				size = (int(rest[1]) + 2) * 4
			}
		case fragment:
			size = 8
		default:
			transport(&p, rest)
			return p, nil
		}
		if size == 0 || len(rest) < size {
			return p, nil
		}
		later := p.Protocol == fragment && binary.BigEndian.Uint16(rest[2:4])&0xfff8 != 0
		p.Protocol = rest[0]
		if later {
			return p, nil
		}
		rest = rest[size:]
	}
	return p, nil
}

func transport(p *policy.Packet, b []byte) {
	switch {
	case policy.HasPorts(p.Protocol) || p.Protocol == policy.ProtoUDPLite:
		if len(b) >= 4 {
			p.SrcPort, p.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		}
	case p.Protocol == policy.ProtoICMP || p.Protocol == policy.ProtoICMPv6:
		if len(b) >= 2 {
			p.Type, p.Code = b[0], b[1]
		}
	}
}
