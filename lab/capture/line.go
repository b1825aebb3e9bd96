package capture

import (
	"fmt"
	"net/netip"
	"strings"
)

// maxNesting bounds packets in packets; it is also the number of extension
// headers that one IPv6 packet may have.
const maxNesting = 8

// EtherTypes (IEEE 802 numbers).
const (
	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeVLAN = 0x8100
	typeIPv6 = 0x86dd
)

// IP protocol numbers (IANA).
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoIGMP     = 2
	protoIPIP     = 4
	protoTCP      = 6
	protoUDP      = 17
	protoIPv6     = 41
	protoRouting  = 43
	protoFragment = 44
	protoICMPv6   = 58
	protoNone     = 59
	protoDestOpts = 60
)

// Line describes a frame as `tcpdump -nn -S` does, without the time. A frame
// that ends too early is described as far as it goes, then "[|name]". The text
// of a packet inside VXLAN stands on a line of its own, as there.
func Line(link Link, frame []byte) string {
	p := &printer{}
	switch link {
	case Ethernet:
		p.ethernet(frame)
	case Raw:
		p.rawIP(frame)
	case Cooked:
		p.cooked(frame)
	default:
		p.printf("unknown link type %d", uint32(link))
	}
	return p.String()
}

// printer collects the text of one frame.
type printer struct {
	strings.Builder
	depth int // packets around the present one
}

func (p *printer) printf(format string, args ...any) { fmt.Fprintf(p, format, args...) }

func (p *printer) truncated(what string) { p.printf("[|%s]", what) }

// deeper says whether one more packet inside the present one is looked into.
func (p *printer) deeper() bool {
	p.depth++
	if p.depth <= maxNesting {
		return true
	}
	p.WriteString("[nested too deep]")
	return false
}

func (p *printer) ethernet(d []byte) {
	if len(d) < 14 {
		p.truncated("ether")
		return
	}
	p.etherType(be16(d[12:]), d[14:])
}

func (p *printer) etherType(t uint16, d []byte) {
	switch {
	case t == typeIPv4:
		p.ipv4(d)
	case t == typeIPv6:
		p.ipv6(d)
	case t == typeARP:
		p.arp(d)
	case t == typeVLAN:
		p.vlan(d)
	case t < 0x0600: // a length: IEEE 802.3
		p.printf("802.3, length %d", t)
	default:
		p.printf("ethertype 0x%04x, length %d", t, len(d))
	}
}

func (p *printer) vlan(d []byte) {
	if len(d) < 4 {
		p.truncated("vlan")
		return
	}
	tag := be16(d)
	p.printf("vlan %d, p %d, ", tag&0x0fff, tag>>13)
	if p.deeper() {
		p.etherType(be16(d[2:]), d[4:])
	}
}

func (p *printer) rawIP(d []byte) {
	switch {
	case len(d) == 0:
		p.truncated("ip")
	case d[0]>>4 == 4:
		p.ipv4(d)
	case d[0]>>4 == 6:
		p.ipv6(d)
	default:
		p.printf("ip version %d, length %d", d[0]>>4, len(d))
	}
}

// Cooked frames: protocol 2, reserved 2, interface 4, ARPHRD 2, packet type 1,
// address length 1, address 8 octets, then the packet.
const cookedLen = 20

func (p *printer) cooked(d []byte) {
	if len(d) < cookedLen {
		p.truncated("sll2")
		return
	}
	p.etherType(be16(d), d[cookedLen:])
}

// arp prints RFC 826 for IPv4 over Ethernet.
func (p *printer) arp(d []byte) {
	p.WriteString("ARP, ")
	if len(d) < 28 {
		p.truncated("arp")
		return
	}
	if be16(d) != 1 || be16(d[2:]) != typeIPv4 || d[4] != 6 || d[5] != 4 {
		p.printf("hardware type %d, protocol type 0x%04x, length %d", be16(d), be16(d[2:]), len(d))
		return
	}
	sender, target := addr4(d[14:]), addr4(d[24:])
	switch op := be16(d[6:]); op {
	case 1:
		p.printf("Request who-has %s", target)
		if mac := mac(d[18:]); mac != "00:00:00:00:00:00" {
			p.printf(" (%s)", mac)
		}
		p.printf(" tell %s", sender)
	case 2:
		p.printf("Reply %s is-at %s", sender, mac(d[8:]))
	default:
		p.printf("operation %d", op)
	}
	p.printf(", length %d", len(d))
}

func mac(d []byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", d[0], d[1], d[2], d[3], d[4], d[5])
}

func addr4(d []byte) netip.Addr { return netip.AddrFrom4([4]byte(d[:4])) }

func addr6(d []byte) netip.Addr { return netip.AddrFrom16([16]byte(d[:16])) }
