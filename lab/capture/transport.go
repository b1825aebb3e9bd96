package capture

import (
	"fmt"
	"strings"
)

const (
	portBGP   = 179
	portVXLAN = 4789 // RFC 7348 §8
	portOTV   = 8472 // Linux's own VXLAN port; tcpdump reads it as OTV
)

// tcpFlags in tcpdump's order, from the lowest bit.
const tcpFlags = "FSRP.UEW"

const (
	tcpFIN = 1 << iota
	tcpSYN
	tcpRST
	tcpPSH
	tcpACK
	tcpURG
)

// tcp prints RFC 9293 §3.1 with absolute sequence numbers.
func (p *printer) tcp(f flow, d []byte, length int) {
	if len(d) < 20 {
		p.portsIfThere(f, d)
		p.truncated("tcp")
		return
	}
	p.ports(f, d)
	header, flags := int(d[12]>>4)*4, d[13]
	if header < 20 || header > length {
		p.printf("tcp %d [bad hdr length %d]", length, header)
		return
	}
	payload := length - header
	p.printf("Flags [%s]", flagLetters(flags))
	seq := be32(d[4:])
	if payload > 0 || flags&(tcpSYN|tcpFIN|tcpRST) != 0 {
		p.printf(", seq %d", seq)
		if payload > 0 {
			p.printf(":%d", seq+uint32(payload))
		}
	}
	if flags&tcpACK != 0 {
		p.printf(", ack %d", be32(d[8:]))
	}
	p.printf(", win %d", be16(d[14:]))
	if flags&tcpURG != 0 {
		p.printf(", urg %d", be16(d[18:]))
	}
	if header > 20 {
		p.printf(", options [%s]", tcpOptions(d[20:min(header, len(d))]))
	}
	p.printf(", length %d", payload)
	if payload > 0 && (be16(d) == portBGP || be16(d[2:]) == portBGP) {
		p.WriteString(": BGP")
	}
}

func (p *printer) portsIfThere(f flow, d []byte) {
	if len(d) >= 4 {
		p.ports(f, d)
	} else if f.inline {
		p.printf("%s > %s: ", f.src, f.dst)
	}
}

func flagLetters(flags byte) string {
	var s []byte
	for i := range tcpFlags {
		if flags&(1<<i) != 0 {
			s = append(s, tcpFlags[i])
		}
	}
	if len(s) == 0 {
		return "none"
	}
	return string(s)
}

// tcpOptions lists the options (RFC 9293 §3.2, RFC 7323, 2018, 2385).
func tcpOptions(d []byte) string {
	var list []string
	for len(d) > 0 {
		kind := d[0]
		if kind == 0 {
			list = append(list, "eol")
			break
		}
		if kind == 1 {
			list, d = append(list, "nop"), d[1:]
			continue
		}
		if len(d) < 2 || int(d[1]) < 2 || int(d[1]) > len(d) {
			list = append(list, "bad opt")
			break
		}
		list = append(list, tcpOption(kind, d[2:d[1]]))
		d = d[d[1]:]
	}
	return strings.Join(list, ",")
}

func tcpOption(kind byte, d []byte) string {
	switch {
	case kind == 2 && len(d) == 2:
		return fmt.Sprintf("mss %d", be16(d))
	case kind == 3 && len(d) == 1:
		return fmt.Sprintf("wscale %d", d[0])
	case kind == 4 && len(d) == 0:
		return "sackOK"
	case kind == 5 && len(d)%8 == 0:
		var b strings.Builder
		fmt.Fprintf(&b, "sack %d ", len(d)/8)
		for ; len(d) > 0; d = d[8:] {
			fmt.Fprintf(&b, "{%d:%d}", be32(d), be32(d[4:]))
		}
		return b.String()
	case kind == 8 && len(d) == 8:
		return fmt.Sprintf("TS val %d ecr %d", be32(d), be32(d[4:]))
	case kind == 19 && len(d) == 16:
		return fmt.Sprintf("md5 can't check - %x", d)
	default:
		return fmt.Sprintf("unknown-%d 0x%x", kind, d)
	}
}

func (p *printer) udp(f flow, d []byte, length int) {
	if len(d) < 8 {
		p.portsIfThere(f, d)
		p.truncated("udp")
		return
	}
	p.ports(f, d)
	declared := int(be16(d[4:]))
	if declared == 0 { // an IPv6 jumbogram, or segmentation left to the device
		declared = length
	}
	if declared < 8 {
		p.printf("truncated-udplength %d", declared)
		return
	}
	body := d[8:min(declared, len(d))]
	switch port := be16(d[2:]); port {
	case portVXLAN, portOTV:
		p.vxlan(port, body)
	default:
		p.printf("UDP, length %d", declared-8)
	}
}

// vxlan prints RFC 7348 §5 and the frame inside.
func (p *printer) vxlan(port uint16, d []byte) {
	name := "VXLAN"
	if port == portOTV {
		name = "OTV"
	}
	if len(d) < 8 {
		p.WriteString(name + " ")
		p.truncated(strings.ToLower(name))
		return
	}
	flag := "."
	if d[0]&0x08 != 0 {
		flag = "I"
	}
	p.printf("%s, flags [%s] (0x%02x), ", name, flag, d[0])
	if port == portOTV {
		p.printf("overlay %d, instance %d\n", be32(d)&0xffffff, be32(d[4:])>>8)
	} else {
		p.printf("vni %d\n", be32(d[4:])>>8)
	}
	if p.deeper() {
		p.ethernet(d[8:])
	}
}
