package capture

import "net/netip"

// flow is what the headers above a transport say about it.
type flow struct {
	src, dst netip.Addr
	proto    byte
	v6       bool
	// inline means that the addresses are printed together with the ports.
	inline bool
}

func (p *printer) ipv4(d []byte) {
	p.WriteString("IP ")
	if len(d) < 20 {
		p.truncated("ip")
		return
	}
	header, total := int(d[0]&0x0f)*4, int(be16(d[2:]))
	if total == 0 { // segmentation is left to the device
		total = len(d)
	}
	if d[0]>>4 != 4 || header < 20 || total < header {
		p.printf("bad header, length %d", len(d))
		return
	}
	f := flow{src: addr4(d[12:]), dst: addr4(d[16:]), proto: d[9], inline: true}
	if header > len(d) {
		p.printf("%s > %s: ", f.src, f.dst)
		p.truncated("ip")
		return
	}
	offset := int(be16(d[6:])&0x1fff) * 8
	d = d[header:min(total, len(d))] // what follows is padding of the link
	if offset != 0 {
		p.printf("%s > %s: ip-proto-%d", f.src, f.dst, f.proto)
		return
	}
	p.transport(f, d, total-header)
}

func (p *printer) ipv6(d []byte) {
	p.WriteString("IP6 ")
	if len(d) < 40 {
		p.truncated("ip6")
		return
	}
	if d[0]>>4 != 6 {
		p.printf("bad header, length %d", len(d))
		return
	}
	length := int(be16(d[4:]))
	f := flow{src: addr6(d[8:]), dst: addr6(d[24:]), proto: d[6], v6: true, inline: true}
	d = d[40:]
	if length == 0 && f.proto != protoHopByHop { // segmentation is left to the device
		length = len(d)
	}
	d = d[:min(length, len(d))]
	for range maxNesting {
		next, n, done := p.extension(&f, d)
		if done {
			return
		}
		if n == 0 {
			p.transport(f, d, length)
			return
		}
		f.proto, d, length = next, d[n:], length-n
	}
	p.WriteString("[nested too deep]")
}

// extension prints one extension header at the start of d. n is 0 when there
// is none; done means that nothing readable follows.
func (p *printer) extension(f *flow, d []byte) (next byte, n int, done bool) {
	var name string
	switch f.proto {
	case protoHopByHop:
		name = "HBH"
	case protoDestOpts:
		name = "DSTOPT"
	case protoRouting:
		name = "srcrt"
	case protoFragment:
		name = "frag"
	default:
		return 0, 0, false
	}
	if f.inline {
		p.printf("%s > %s: ", f.src, f.dst)
		f.inline = false
	}
	if len(d) < 8 {
		p.truncated(name)
		return 0, 0, true
	}
	if f.proto == protoFragment {
		offset := int(be16(d[2:]) &^ 7)
		p.printf("frag (%d|%d)", offset, len(d)-8)
		if offset != 0 {
			return 0, 0, true
		}
		p.WriteByte(' ')
		return d[0], 8, false
	}
	n = (int(d[1]) + 1) * 8
	if n > len(d) {
		p.truncated(name)
		return 0, 0, true
	}
	p.WriteString(name + " ")
	return d[0], n, false
}

// transport prints what an IP header of either family is followed by. length
// is what the header promises; d may be shorter.
func (p *printer) transport(f flow, d []byte, length int) {
	if f.proto != protoTCP && f.proto != protoUDP && f.inline {
		p.printf("%s > %s: ", f.src, f.dst)
	}
	switch f.proto {
	case protoTCP:
		p.tcp(f, d, length)
	case protoUDP:
		p.udp(f, d, length)
	case protoICMP:
		p.icmp(d, length)
	case protoICMPv6:
		p.icmp6(d, length)
	case protoIGMP:
		p.igmp(d)
	case protoIPIP:
		if !p.deeper() {
			return
		}
		p.ipv4(d)
		if !f.v6 {
			p.WriteString(" (ipip-proto-4)")
		}
	case protoIPv6:
		if p.deeper() {
			p.ipv6(d)
		}
	case protoNone:
		p.WriteString("no next header")
	default:
		p.printf(" ip-proto-%d %d", f.proto, length) // two blanks, as there
	}
}

// ports prints both ends of a TCP or UDP packet.
func (p *printer) ports(f flow, d []byte) {
	if f.inline {
		p.printf("%s.%d > %s.%d: ", f.src, be16(d), f.dst, be16(d[2:]))
		return
	}
	p.printf("%d > %d: ", be16(d), be16(d[2:]))
}
