package capture_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/manekinet/maneki/lab/capture"
)

// Builders of frames: each puts one header before what it carries.

func u16(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }
func u32(v int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(v)) }

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func addr(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

func ether(kind int, body []byte) []byte {
	return cat([]byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}, u16(kind), body)
}

func ip4Frag(src, dst string, proto, frag int, body []byte) []byte {
	h := cat([]byte{0x45, 0}, u16(20+len(body)), u16(1), u16(frag), []byte{64, byte(proto)}, u16(0), addr(src), addr(dst))
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	sum = sum>>16 + sum&0xffff
	copy(h[10:], u16(int(^(sum>>16 + sum))))
	return cat(h, body)
}

func ip4(src, dst string, proto int, body []byte) []byte { return ip4Frag(src, dst, proto, 0, body) }

func ip6(src, dst string, next int, body []byte) []byte {
	return cat([]byte{0x60, 0, 0, 0}, u16(len(body)), []byte{byte(next), 64}, addr(src), addr(dst), body)
}

func udp(sport, dport int, body []byte) []byte {
	return cat(u16(sport), u16(dport), u16(8+len(body)), u16(0), body)
}

func tcp(sport, dport int, flags byte, options, body []byte) []byte {
	return cat(u16(sport), u16(dport), u32(1000), u32(2000), []byte{byte(5+len(options)/4) << 4, flags}, u16(502), u16(0), u16(7), options, body)
}

func echo(kind, id, seq int) []byte {
	return cat([]byte{byte(kind), 0, 0, 0}, u16(id), u16(seq), make([]byte, 56))
}

func icmp(kind, code, rest int, body []byte) []byte {
	return cat([]byte{byte(kind), byte(code), 0, 0}, u32(rest), body)
}

func arp(op int, targetMAC []byte) []byte {
	return cat(u16(1), u16(0x0800), []byte{6, 4}, u16(op), []byte{2, 0, 0, 0, 0, 1}, addr("10.0.0.1"), targetMAC, addr("10.0.0.2"))
}

const a4, b4, a6, b6 = "10.244.4.5", "10.244.3.5", "fd00::1", "fd00::2"

type sample struct {
	name, line string
	frame      []byte
}

// samples are frames and the line that tcpdump 4.99 prints for them with -nn
// -S; TestLinesAreThoseOfTcpdump holds this table against the program.
func samples() []sample {
	ping := ip4(a4, b4, 1, echo(8, 8704, 0))
	zero := make([]byte, 6)
	syn := tcp(40000, 80, 0x02, unhex("020405b40402080a000000010000000001030307"), nil)
	lost := ip4(a4, b4, 17, udp(5000, 9, nil))
	lost6 := ip6(a6, b6, 17, udp(5000, 9, nil))
	return []sample{
		{"echo request", "IP 10.244.4.5 > 10.244.3.5: ICMP echo request, id 8704, seq 0, length 64", ether(0x0800, ping)},
		{"echo reply, padded", "IP 10.244.3.5 > 10.244.4.5: ICMP echo reply, id 1, seq 2, length 64", ether(0x0800, cat(ip4(b4, a4, 1, echo(0, 1, 2)), make([]byte, 6)))},
		{"ip in ip", "IP 192.168.10.30 > 192.168.10.29: IP 10.244.4.5 > 10.244.3.5: ICMP echo request, id 8704, seq 0, length 64 (ipip-proto-4)", ether(0x0800, ip4("192.168.10.30", "192.168.10.29", 4, ping))},
		{"ip6 in ip", "IP 192.168.10.30 > 192.168.10.29: IP6 fd00::1 > fd00::2: ICMP6, echo request, id 3, seq 4, length 64", ether(0x0800, ip4("192.168.10.30", "192.168.10.29", 41, ip6(a6, b6, 58, echo(128, 3, 4))))},
		{"ip in ip6", "IP6 fd00::1 > fd00::2: IP 10.244.4.5 > 10.244.3.5: ICMP echo request, id 8704, seq 0, length 64", ether(0x86dd, ip6(a6, b6, 4, ping))},
		{"who has", "ARP, Request who-has 10.0.0.2 tell 10.0.0.1, length 28", ether(0x0806, arp(1, zero))},
		{"who has, by unicast", "ARP, Request who-has 10.0.0.2 (02:00:00:00:00:02) tell 10.0.0.1, length 28", ether(0x0806, arp(1, []byte{2, 0, 0, 0, 0, 2}))},
		{"is at", "ARP, Reply 10.0.0.1 is-at 02:00:00:00:00:01, length 46", ether(0x0806, cat(arp(2, zero), make([]byte, 18)))},
		{"syn", "IP 10.244.4.5.40000 > 10.244.3.5.80: Flags [S], seq 1000, win 502, options [mss 1460,sackOK,TS val 1 ecr 0,nop,wscale 7], length 0", ether(0x0800, ip4(a4, b4, 6, syn))},
		{"data", "IP 10.244.4.5.40000 > 10.244.3.5.7777: Flags [P.], seq 1000:1003, ack 2000, win 502, length 3", ether(0x0800, ip4(a4, b4, 6, tcp(40000, 7777, 0x18, nil, []byte("abc"))))},
		{"ack with sack", "IP 10.244.4.5.40000 > 10.244.3.5.7777: Flags [.], ack 2000, win 502, options [nop,nop,sack 1 {5:9}], length 0", ether(0x0800, ip4(a4, b4, 6, tcp(40000, 7777, 0x10, unhex("0101050a0000000500000009"), nil)))},
		{"reset", "IP 10.244.4.5.40000 > 10.244.3.5.7777: Flags [R.], seq 1000, ack 2000, win 502, length 0", ether(0x0800, ip4(a4, b4, 6, tcp(40000, 7777, 0x14, nil, nil)))},
		{"no flags", "IP 10.244.4.5.40000 > 10.244.3.5.7777: Flags [none], win 502, length 0", ether(0x0800, ip4(a4, b4, 6, tcp(40000, 7777, 0, nil, nil)))},
		{"all flags", "IP 10.244.4.5.40000 > 10.244.3.5.7777: Flags [FSRP.UEW], seq 1000, ack 2000, win 502, urg 7, length 0", ether(0x0800, ip4(a4, b4, 6, tcp(40000, 7777, 0xff, nil, nil)))},
		{"md5", "IP 10.244.4.5.40000 > 10.244.3.5.7777: Flags [.], ack 2000, win 502, options [nop,nop,md5 can't check - 000102030405060708090a0b0c0d0e0f], length 0", ether(0x0800, ip4(a4, b4, 6, tcp(40000, 7777, 0x10, unhex("01011312000102030405060708090a0b0c0d0e0f"), nil)))},
		{"bgp", "IP 10.244.4.5.40000 > 10.244.3.5.179: Flags [P.], seq 1000:1019, ack 2000, win 502, length 19: BGP", ether(0x0800, ip4(a4, b4, 6, tcp(40000, 179, 0x18, nil, cat(bytes.Repeat([]byte{0xff}, 16), u16(19), []byte{4}))))},
		{"udp", "IP 10.244.4.5.5000 > 10.244.3.5.6000: UDP, length 5", ether(0x0800, ip4(a4, b4, 17, udp(5000, 6000, []byte("hello"))))},
		{"udp, first fragment", "IP 10.244.4.5.5000 > 10.244.3.5.6000: UDP, length 8", ether(0x0800, ip4Frag(a4, b4, 17, 0x2000, udp(5000, 6000, make([]byte, 8))))},
		{"later fragment", "IP 10.244.4.5 > 10.244.3.5: ip-proto-17", ether(0x0800, ip4Frag(a4, b4, 17, 185, []byte("12345678")))},
		{"otv", "IP 172.18.0.11.5000 > 172.18.0.12.8472: OTV, flags [I] (0x08), overlay 0, instance 1\nIP 10.244.4.5 > 10.244.3.5: ICMP echo request, id 8704, seq 0, length 64", ether(0x0800, ip4("172.18.0.11", "172.18.0.12", 17, udp(5000, 8472, cat([]byte{8, 0, 0, 0, 0, 0, 1, 0}, ether(0x0800, ping)))))},
		{"vxlan", "IP 172.18.0.11.5000 > 172.18.0.12.4789: VXLAN, flags [I] (0x08), vni 4096\nIP6 fd00::1 > fd00::2: ICMP6, echo request, id 3, seq 4, length 64", ether(0x0800, ip4("172.18.0.11", "172.18.0.12", 17, udp(5000, 4789, cat([]byte{8, 0, 0, 0, 0, 16, 0, 0}, ether(0x86dd, ip6(a6, b6, 58, echo(128, 3, 4)))))))},
		{"port unreachable", "IP 10.244.3.5 > 10.244.4.5: ICMP 10.244.3.5 udp port 9 unreachable, length 36", ether(0x0800, ip4(b4, a4, 1, icmp(3, 3, 0, lost)))},
		{"host unreachable", "IP 10.244.3.5 > 10.244.4.5: ICMP host 10.244.3.5 unreachable, length 36", ether(0x0800, ip4(b4, a4, 1, icmp(3, 1, 0, lost)))},
		{"net unreachable", "IP 10.244.3.5 > 10.244.4.5: ICMP net 10.244.3.5 unreachable, length 36", ether(0x0800, ip4(b4, a4, 1, icmp(3, 0, 0, lost)))},
		{"protocol unreachable", "IP 10.244.3.5 > 10.244.4.5: ICMP 10.244.3.5 protocol 17 unreachable, length 36", ether(0x0800, ip4(b4, a4, 1, icmp(3, 2, 0, lost)))},
		{"need to frag", "IP 10.244.3.5 > 10.244.4.5: ICMP 10.244.3.5 unreachable - need to frag (mtu 1480), length 36", ether(0x0800, ip4(b4, a4, 1, icmp(3, 4, 1480, lost)))},
		{"prohibited", "IP 10.244.3.5 > 10.244.4.5: ICMP host 10.244.3.5 unreachable - admin prohibited filter, length 36", ether(0x0800, ip4(b4, a4, 1, icmp(3, 13, 0, lost)))},
		{"time exceeded", "IP 10.244.3.5 > 10.244.4.5: ICMP time exceeded in-transit, length 36", ether(0x0800, ip4(b4, a4, 1, icmp(11, 0, 0, lost)))},
		{"reassembly", "IP 10.244.3.5 > 10.244.4.5: ICMP ip reassembly time exceeded, length 36", ether(0x0800, ip4(b4, a4, 1, icmp(11, 1, 0, lost)))},
		{"redirect", "IP 10.244.3.5 > 10.244.4.5: ICMP redirect 10.244.3.5 to host 10.0.0.9, length 36", ether(0x0800, ip4(b4, a4, 1, icmp(5, 1, 0x0a000009, lost)))},
		{"igmp", "IP 10.244.4.5 > 224.0.0.22: igmp v3 report, 1 group record(s)", ether(0x0800, ip4(a4, "224.0.0.22", 2, unhex("2200000000000001040000 00e00000fb")))},
		{"unknown protocol", "IP 10.244.4.5 > 10.244.3.5:  ip-proto-253 4", ether(0x0800, ip4(a4, b4, 253, []byte("1234")))},
		{"echo6", "IP6 fd00::1 > fd00::2: ICMP6, echo reply, id 3, seq 4, length 64", ether(0x86dd, ip6(a6, b6, 58, echo(129, 3, 4)))},
		{"solicitation", "IP6 fd00::1 > ff02::1:ff00:2: ICMP6, neighbor solicitation, who has fd00::2, length 24", ether(0x86dd, ip6(a6, "ff02::1:ff00:2", 58, icmp(135, 0, 0, addr(b6))))},
		{"advertisement", "IP6 fd00::2 > fd00::1: ICMP6, neighbor advertisement, tgt is fd00::2, length 24", ether(0x86dd, ip6(b6, a6, 58, icmp(136, 0, 0x60000000, addr(b6))))},
		{"router solicitation", "IP6 fe80::1 > ff02::2: ICMP6, router solicitation, length 8", ether(0x86dd, ip6("fe80::1", "ff02::2", 58, icmp(133, 0, 0, nil)))},
		{"router advertisement", "IP6 fe80::1 > ff02::1: ICMP6, router advertisement, length 16", ether(0x86dd, ip6("fe80::1", "ff02::1", 58, icmp(134, 0, 0, make([]byte, 8))))},
		{"redirect6", "IP6 fe80::1 > fd00::1: ICMP6, redirect, fd00::2 to fe80::9, length 40", ether(0x86dd, ip6("fe80::1", a6, 58, icmp(137, 0, 0, cat(addr("fe80::9"), addr(b6)))))},
		{"listener report", "IP6 :: > ff02::16: HBH ICMP6, multicast listener report v2, 1 group record(s), length 28", ether(0x86dd, ip6("::", "ff02::16", 0, cat(unhex("3a00050200000100"), icmp(143, 0, 1, unhex("04000000ff0200000000000000000001ff000002")))))},
		{"too big", "IP6 fd00::2 > fd00::1: ICMP6, packet too big, mtu 1280, length 56", ether(0x86dd, ip6(b6, a6, 58, icmp(2, 0, 1280, lost6)))},
		{"no route6", "IP6 fd00::2 > fd00::1: ICMP6, destination unreachable, unreachable route fd00::2, length 56", ether(0x86dd, ip6(b6, a6, 58, icmp(1, 0, 0, lost6)))},
		{"address6", "IP6 fd00::2 > fd00::1: ICMP6, destination unreachable, unreachable address fd00::2, length 56", ether(0x86dd, ip6(b6, a6, 58, icmp(1, 3, 0, lost6)))},
		{"port6", "IP6 fd00::2 > fd00::1: ICMP6, destination unreachable, unreachable port, fd00::2 udp port 9, length 56", ether(0x86dd, ip6(b6, a6, 58, icmp(1, 4, 0, lost6)))},
		{"time6", "IP6 fd00::2 > fd00::1: ICMP6, time exceeded in-transit for fd00::2, length 56", ether(0x86dd, ip6(b6, a6, 58, icmp(3, 0, 0, lost6)))},
		{"tcp6", "IP6 fd00::1.40000 > fd00::2.7777: Flags [S], seq 1000, win 502, length 0", ether(0x86dd, ip6(a6, b6, 6, tcp(40000, 7777, 2, nil, nil)))},
		{"udp6", "IP6 fd00::1.5000 > fd00::2.6000: UDP, length 5", ether(0x86dd, ip6(a6, b6, 17, udp(5000, 6000, []byte("hello"))))},
		{"frag6", "IP6 fd00::1 > fd00::2: frag (0|64) ICMP6, echo request, id 3, seq 4, length 64", ether(0x86dd, ip6(a6, b6, 44, cat(unhex("3a00000100000001"), echo(128, 3, 4))))},
		{"later frag6", "IP6 fd00::1 > fd00::2: frag (64|8)", ether(0x86dd, ip6(a6, b6, 44, cat(unhex("3a00004000000001"), make([]byte, 8))))},
		{"vlan", "vlan 5, p 0, IP 10.244.4.5 > 10.244.3.5: ICMP echo request, id 8704, seq 0, length 64", ether(0x8100, cat(u16(5), u16(0x0800), ping))},
	}
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

func TestLines(t *testing.T) {
	for _, s := range samples() {
		if got := capture.Line(capture.Ethernet, s.frame); got != s.line {
			t.Errorf("%s:\n got %s\nwant %s", s.name, got, s.line)
		}
	}
}

// pcapFile writes frames one second apart.
func pcapFile(t testing.TB, link capture.Link, frames ...[]byte) string {
	t.Helper()
	var b bytes.Buffer
	w, err := capture.NewWriter(&b, link)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range frames {
		if err := w.Write(capture.Packet{Time: time.Unix(1700000000+int64(i), 123456789), Data: f}); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "x.pcap")
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func tcpdump(t testing.TB, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("tcpdump"); err != nil {
		t.Fatal("tcpdump is missing: install the package tcpdump")
	}
	cmd := exec.Command("tcpdump", args...)
	cmd.Env = append(os.Environ(), "TZ=UTC")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tcpdump %q: %v\n%s", args, err, stderr.String())
	}
	return string(out)
}

// asTcpdump takes out of our lines what tcpdump 4.99 leaves away: the note that
// its 4.9 put after IP in IP, and the VLAN tag, which it shows with -e only.
func asTcpdump(line string) string {
	return strings.NewReplacer(" (ipip-proto-4)", "", "vlan 5, p 0, ", "").Replace(line)
}

// tcpdumpLines makes tcpdump's output comparable: without blanks at the ends of
// lines, and without its advice about an option that only it has.
func tcpdumpLines(out string) string {
	out = strings.NewReplacer(" \n", "\n", "shared secret not supplied with -M, ", "").Replace(out)
	return strings.TrimRight(out, "\n")
}

func TestLinesAreThoseOfTcpdump(t *testing.T) {
	for _, s := range samples() {
		file := pcapFile(t, capture.Ethernet, s.frame)
		want := tcpdumpLines(tcpdump(t, "-nn", "-S", "-t", "-r", file))
		if diff := cmp.Diff(want, asTcpdump(s.line)); diff != "" {
			t.Errorf("%s: (-tcpdump +table)\n%s", s.name, diff)
		}
	}
}

// TestPcapOfEveryLink: time, lengths and link type are read back by tcpdump.
func TestPcapOfEveryLink(t *testing.T) {
	ping := ip4(a4, b4, 1, echo(8, 1, 1))
	cooked := capture.CookedHeader{EtherType: 0x0800, Interface: 7, Hardware: 1, Type: 4, Address: []byte{2, 0, 0, 0, 0, 1}}.Frame(ping)
	const text = "IP 10.244.4.5 > 10.244.3.5: ICMP echo request, id 1, seq 1, length 64"
	for _, tt := range []struct {
		link  capture.Link
		frame []byte
		want  string
	}{
		{capture.Ethernet, ether(0x0800, ping), "22:13:20.123456 " + text},
		{capture.Raw, ping, "22:13:20.123456 " + text},
		{capture.Cooked, cooked, "22:13:20.123456 ?     Out " + text},
	} {
		out := strings.TrimSpace(tcpdump(t, "-nn", "-r", pcapFile(t, tt.link, tt.frame)))
		if out != tt.want {
			t.Errorf("%s: tcpdump reads %q, want %q", tt.link, out, tt.want)
		}
		if got := capture.Line(tt.link, tt.frame); got != text {
			t.Errorf("%s: %q, want %q", tt.link, got, text)
		}
	}
	if got := capture.Direction(capture.Cooked, cooked); got != "Out" {
		t.Errorf("direction %q, want Out", got)
	}
}

// TestFiltersSelectAsTcpdumpDoes runs each expression through both programs
// over the same packets.
func TestFiltersSelectAsTcpdumpDoes(t *testing.T) {
	var frames [][]byte
	for _, s := range samples() {
		frames = append(frames, s.frame)
	}
	file := pcapFile(t, capture.Ethernet, frames...)
	for _, text := range []string{
		"", "icmp", "icmp6", "arp", "tcp", "udp", "ip", "ip6", "ip proto 4", "ip6 proto 58", "proto 4", `ip proto \icmp`,
		"host 10.244.4.5", "src host 10.244.4.5", "dst 10.244.4.5", "src 10.0.0.1", "host fd00::1", "dst host ff02::16",
		"ip host 192.168.10.29 and host 192.168.10.30", "host 10.0.0.1 or 10.244.3.5", "net 10.244.0.0/16", "src net 172.18.0.0/24",
		"port 80", "tcp port 7777", "udp port 4789 or 8472", "dst port 179", "not tcp and not udp", "! arp",
		"icmp or tcp and host 10.244.4.5", "tcp or (udp and port 6000)", "not (icmp or icmp6)", "arp host 10.0.0.2", "ip6 host fd00::2",
		"tcp && dst host 10.244.3.5 || arp", "port 80 or 6000", "src port 5000", "ip6 proto 44", "icmp and not src 10.244.3.5",
	} {
		f, err := capture.ParseFilter(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		var mine []string
		for _, s := range samples() {
			if f.Match(capture.Ethernet, s.frame) {
				mine = append(mine, s.line)
			}
		}
		got := asTcpdump(strings.Join(mine, "\n"))
		want := tcpdumpLines(tcpdump(t, "-nn", "-S", "-t", "-r", file, text))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: (-tcpdump +this)\n%s", text, diff)
		}
	}
}

func TestBadFilters(t *testing.T) {
	for text, want := range map[string]string{
		"host":                    `filter: host "" is not an IP address`,
		"host h1":                 `filter: host "h1" is not an IP address`,
		"port http":               `filter: port "http" is not allowed, want 0 to 65535`,
		"port 70000":              `filter: port "70000" is not allowed, want 0 to 65535`,
		"net 10.0.0.1/24":         `filter: net "10.0.0.1/24" is not allowed, want a CIDR without host bits`,
		"ip proto 256":            `filter: protocol "256" is not allowed, want 0 to 255, icmp, icmp6, tcp, udp or ipip`,
		"(tcp":                    `filter: a ( is not closed`,
		"tcp)":                    `filter: ")" is not expected here, want and or or`,
		"tcp udp":                 `filter: "udp" is not expected here, want and or or`,
		"src or dst host x":       `filter: "or" is not allowed after src, leave both away to mean either side`,
		"vlan":                    `filter: "vlan" is not understood, allowed: host A, net CIDR, port N, each with src or dst, ip, ip6, arp, icmp, icmp6, tcp, udp, ip proto N, and, or, not, ( )`,
		"not":                     `filter: it ends too early, allowed: host A, net CIDR, port N, each with src or dst, ip, ip6, arp, icmp, icmp6, tcp, udp, ip proto N, and, or, not, ( )`,
		strings.Repeat("( ", 201): `filter: 201 words, at most 200 are allowed`,
	} {
		if _, err := capture.ParseFilter(text); err == nil || err.Error() != want {
			t.Errorf("%q: error %v, want %s", text, err, want)
		}
	}
}

// TestEveryCut: a frame cut anywhere is described, and without a stray
// newline at its end.
func TestEveryCut(t *testing.T) {
	for _, s := range samples() {
		for n := range s.frame {
			if got := capture.Line(capture.Ethernet, s.frame[:n]); got == "" {
				t.Errorf("%s cut to %d octets: no text", s.name, n)
			}
		}
	}
}

// TestNesting: packets in packets without end are not followed for ever.
func TestNesting(t *testing.T) {
	p := ip4(a4, b4, 1, echo(8, 1, 1))
	for range 20 {
		p = ip4(a4, b4, 4, p)
	}
	if got := capture.Line(capture.Raw, p); !strings.Contains(got, "[nested too deep]") {
		t.Errorf("20 levels: %s", got)
	}
}

func FuzzLine(f *testing.F) {
	for _, s := range samples() {
		f.Add(uint32(capture.Ethernet), s.frame, "tcp port 80 or not host 10.0.0.1")
		f.Add(uint32(capture.Raw), s.frame[14:], "(icmp")
		f.Add(uint32(capture.Cooked), append(make([]byte, 6), s.frame...), "src net fd00::/8")
	}
	f.Fuzz(func(t *testing.T, link uint32, frame []byte, filter string) {
		line := capture.Line(capture.Link(link), frame)
		if line == "" || len(line) > 8000 {
			t.Errorf("a line of %d octets for %d octets", len(line), len(frame))
		}
		capture.Direction(capture.Link(link), frame)
		if parsed, err := capture.ParseFilter(filter); err == nil {
			parsed.Match(capture.Link(link), frame)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("filter %q: the error has several lines: %v", filter, err)
		}
	})
}
