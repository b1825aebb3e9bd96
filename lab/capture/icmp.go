package capture

import "fmt"

// icmp prints RFC 792 and RFC 1191.
func (p *printer) icmp(d []byte, length int) {
	p.WriteString("ICMP ")
	if len(d) < 8 {
		p.truncated("icmp")
		return
	}
	p.printf("%s, length %d", icmpText(d), length)
}

func icmpText(d []byte) string {
	switch d[0] {
	case 0:
		return fmt.Sprintf("echo reply, id %d, seq %d", be16(d[4:]), be16(d[6:]))
	case 8:
		return fmt.Sprintf("echo request, id %d, seq %d", be16(d[4:]), be16(d[6:]))
	case 3:
		return icmpUnreachable(d)
	case 5:
		return icmpRedirect(d)
	case 11:
		if d[1] == 1 {
			return "ip reassembly time exceeded"
		}
		return "time exceeded in-transit"
	default:
		return fmt.Sprintf("type-#%d", d[0])
	}
}

// icmpUnreachable names the packet that could not be delivered: its header and
// at least 8 octets more follow the ICMP header.
func icmpUnreachable(d []byte) string {
	inner := d[8:]
	if len(inner) < 20 {
		return "unreachable [|icmp]"
	}
	dst, proto := addr4(inner[16:]), inner[9]
	switch d[1] {
	case 0:
		return fmt.Sprintf("net %s unreachable", dst)
	case 1:
		return fmt.Sprintf("host %s unreachable", dst)
	case 2:
		return fmt.Sprintf("%s protocol %d unreachable", dst, proto)
	case 3:
		return icmpPort(inner, dst.String(), proto)
	case 4:
		if mtu := be16(d[6:]); mtu != 0 {
			return fmt.Sprintf("%s unreachable - need to frag (mtu %d)", dst, mtu)
		}
		return fmt.Sprintf("%s unreachable - need to frag", dst)
	case 9:
		return fmt.Sprintf("net %s unreachable - admin prohibited", dst)
	case 10:
		return fmt.Sprintf("host %s unreachable - admin prohibited", dst)
	case 13:
		return fmt.Sprintf("host %s unreachable - admin prohibited filter", dst)
	default:
		return fmt.Sprintf("%s unreachable - #%d", dst, d[1])
	}
}

func icmpPort(inner []byte, dst string, proto byte) string {
	header := int(inner[0]&0x0f) * 4
	if header < 20 || len(inner) < header+4 {
		return dst + " port unreachable [|icmp]"
	}
	port := be16(inner[header+2:])
	switch proto {
	case protoTCP:
		return fmt.Sprintf("%s tcp port %d unreachable", dst, port)
	case protoUDP:
		return fmt.Sprintf("%s udp port %d unreachable", dst, port)
	default:
		return fmt.Sprintf("%s protocol %d port %d unreachable", dst, proto, port)
	}
}

func icmpRedirect(d []byte) string {
	if len(d) < 28 {
		return "redirect [|icmp]"
	}
	what := "host"
	if d[1] == 0 || d[1] == 2 {
		what = "net"
	}
	return fmt.Sprintf("redirect %s to %s %s", addr4(d[24:]), what, addr4(d[4:]))
}

// igmp prints RFC 2236 and RFC 3376, as far as a host sends them.
func (p *printer) igmp(d []byte) {
	p.WriteString("igmp ")
	if len(d) < 8 {
		p.truncated("igmp")
		return
	}
	switch group := addr4(d[4:]); d[0] {
	case 0x11:
		p.WriteString("query")
	case 0x16:
		p.printf("v2 report %s", group)
	case 0x17:
		p.printf("leave %s", group)
	case 0x22:
		p.printf("v3 report, %d group record(s)", be16(d[6:]))
	default:
		p.printf("type 0x%02x", d[0])
	}
}

// icmp6 prints RFC 4443, RFC 4861 and RFC 3810.
func (p *printer) icmp6(d []byte, length int) {
	p.WriteString("ICMP6, ")
	if len(d) < 8 {
		p.truncated("icmp6")
		return
	}
	p.printf("%s, length %d", icmp6Text(d), length)
}

func icmp6Text(d []byte) string {
	switch d[0] {
	case 1:
		return "destination unreachable, " + icmp6Unreachable(d)
	case 2:
		return fmt.Sprintf("packet too big, mtu %d", be32(d[4:]))
	case 3:
		return icmp6Time(d)
	case 128:
		return fmt.Sprintf("echo request, id %d, seq %d", be16(d[4:]), be16(d[6:]))
	case 129:
		return fmt.Sprintf("echo reply, id %d, seq %d", be16(d[4:]), be16(d[6:]))
	case 131:
		return "multicast listener report" + listenerAddress(d)
	case 132:
		return "multicast listener done" + listenerAddress(d)
	case 143:
		return fmt.Sprintf("multicast listener report v2, %d group record(s)", be16(d[6:]))
	case 133:
		return "router solicitation"
	case 134:
		return "router advertisement"
	case 135, 136, 137:
		return neighbor(d)
	default:
		return fmt.Sprintf("type %d, code %d", d[0], d[1])
	}
}

func listenerAddress(d []byte) string {
	if len(d) < 24 {
		return " [|icmp6]"
	}
	return " max resp delay: " + fmt.Sprint(be16(d[4:])) + " addr: " + addr6(d[8:]).String()
}

// neighbor prints solicitation, advertisement and redirect (RFC 4861 §4.3-4.5).
func neighbor(d []byte) string {
	if len(d) < 24 {
		return "neighbor discovery [|icmp6]"
	}
	target := addr6(d[8:])
	switch d[0] {
	case 135:
		return fmt.Sprintf("neighbor solicitation, who has %s", target)
	case 136:
		return fmt.Sprintf("neighbor advertisement, tgt is %s", target)
	default:
		if len(d) < 40 {
			return "redirect [|icmp6]"
		}
		return fmt.Sprintf("redirect, %s to %s", addr6(d[24:]), target)
	}
}

func icmp6Time(d []byte) string {
	if d[1] == 1 {
		return "time exceeded in-reassembly"
	}
	if len(d) < 48 {
		return "time exceeded in-transit [|icmp6]"
	}
	return fmt.Sprintf("time exceeded in-transit for %s", addr6(d[32:]))
}

func icmp6Unreachable(d []byte) string {
	inner := d[8:]
	if len(inner) < 40 {
		return "[|icmp6]"
	}
	dst, proto := addr6(inner[24:]), inner[6]
	switch d[1] {
	case 0:
		return fmt.Sprintf("unreachable route %s", dst)
	case 1:
		return fmt.Sprintf("unreachable prohibited %s", dst)
	case 3:
		return fmt.Sprintf("unreachable address %s", dst)
	case 4:
		if len(inner) < 44 {
			return fmt.Sprintf("unreachable port, %s [|icmp6]", dst)
		}
		name := fmt.Sprintf("protocol %d", proto)
		switch proto {
		case protoTCP:
			name = "tcp"
		case protoUDP:
			name = "udp"
		}
		return fmt.Sprintf("unreachable port, %s %s port %d", dst, name, be16(inner[42:]))
	default:
		return fmt.Sprintf("unreachable code %d %s", d[1], dst)
	}
}
