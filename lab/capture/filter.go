package capture

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Filter selects packets. The zero value selects all.
type Filter struct{ root node }

// Match looks at the outermost network header of a frame, as tcpdump does.
func (f Filter) Match(link Link, frame []byte) bool {
	return f.root == nil || f.root.match(summarize(link, frame))
}

// filterWords is for the message about a word that is not understood.
const filterWords = "host A, net CIDR, port N, each with src or dst, ip, ip6, arp, icmp, icmp6, tcp, udp, ip proto N, and, or, not, ( )"

// maxFilterWords bounds the depth of the expression.
const maxFilterWords = 200

// ParseFilter reads the common part of pcap's filter language: primitives
// `[ip|ip6|arp|tcp|udp] [src|dst] host|net|port VALUE`, `ip proto N`, and the
// protocol names, joined by and, or, not and parentheses. As in pcap, `and`
// and `or` bind equally and to the left, and a bare value repeats the words
// before the last value: `host 10.0.0.1 or 10.0.0.2`.
func ParseFilter(text string) (Filter, error) {
	for _, r := range []string{"(", ")", "!"} {
		text = strings.ReplaceAll(text, r, " "+r+" ")
	}
	p := &parser{words: strings.Fields(text)}
	if len(p.words) == 0 {
		return Filter{}, nil
	}
	if len(p.words) > maxFilterWords {
		return Filter{}, fmt.Errorf("filter: %d words, at most %d are allowed", len(p.words), maxFilterWords)
	}
	root, err := p.expression()
	if err == nil && len(p.words) > 0 {
		err = fmt.Errorf("%q is not expected here, want and or or", p.words[0])
	}
	if err != nil {
		return Filter{}, fmt.Errorf("filter: %w", err)
	}
	return Filter{root}, nil
}

// node is a part of a filter.
type node interface{ match(s summary) bool }

type (
	both   struct{ a, b node }
	either struct{ a, b node }
	not    struct{ a node }
)

func (n both) match(s summary) bool   { return n.a.match(s) && n.b.match(s) }
func (n either) match(s summary) bool { return n.a.match(s) || n.b.match(s) }
func (n not) match(s summary) bool    { return !n.a.match(s) }

// term is one primitive: everything that is set must hold.
type term struct {
	family byte   // 4, 6, or 'a' for ARP; 0 for any
	proto  int    // IP protocol, -1 for any
	dir    string // src, dst, or "" for either
	kind   string // host, net, port, or ""
	net    netip.Prefix
	port   uint16
}

func (t term) match(s summary) bool {
	if t.family != 0 && t.family != s.family {
		return false
	}
	if t.proto >= 0 && !s.carries(t.proto) {
		return false
	}
	switch t.kind {
	case "host", "net":
		return s.family != 0 && t.side(t.net.Contains(s.src), t.net.Contains(s.dst))
	case "port":
		return s.hasPorts && t.side(s.sport == t.port, s.dport == t.port)
	default:
		return true
	}
}

// carries says whether the packet is IP with this protocol.
func (s summary) carries(proto int) bool {
	switch s.family {
	case 4, 6:
		return int(s.proto) == proto || s.fragment && proto == protoFragment
	default:
		return false
	}
}

func (t term) side(src, dst bool) bool {
	switch t.dir {
	case "src":
		return src
	case "dst":
		return dst
	default:
		return src || dst
	}
}

type parser struct {
	words []string
	last  term // its words are repeated by a bare value
}

func (p *parser) peek() string {
	if len(p.words) == 0 {
		return ""
	}
	return p.words[0]
}

func (p *parser) next() string {
	w := p.peek()
	if len(p.words) > 0 {
		p.words = p.words[1:]
	}
	return w
}

func (p *parser) expression() (node, error) {
	left, err := p.unary()
	for err == nil {
		var right node
		switch p.peek() {
		case "and", "&&":
			p.next()
			right, err = p.unary()
			left = both{left, right}
		case "or", "||":
			p.next()
			right, err = p.unary()
			left = either{left, right}
		default:
			return left, nil
		}
	}
	return nil, err
}

func (p *parser) unary() (node, error) {
	switch p.peek() {
	case "not", "!":
		p.next()
		n, err := p.unary()
		return not{n}, err
	case "(":
		p.next()
		n, err := p.expression()
		if err == nil && p.next() != ")" {
			err = fmt.Errorf("a ( is not closed")
		}
		return n, err
	default:
		return p.primitive()
	}
}

func (p *parser) primitive() (node, error) {
	if p.last.kind != "" {
		t := p.last
		if t.value(p.peek()) == nil { // the words before the last value, again
			p.next()
			return t, nil
		}
	}
	t := term{proto: -1}
	named := p.protocol(&t)
	if w := p.peek(); w == "proto" && (t.family == 4 || t.family == 6 || !named) {
		p.next()
		return p.number(t)
	}
	if w := p.peek(); w == "src" || w == "dst" {
		t.dir = p.next()
		if slices.Contains([]string{"or", "and"}, p.peek()) {
			return nil, fmt.Errorf("%q is not allowed after %s, leave both away to mean either side", p.peek(), t.dir)
		}
	}
	switch p.peek() {
	case "host", "net", "port":
		t.kind = p.next()
	default:
		if named && t.dir == "" {
			return t, nil
		}
		if t.dir == "" {
			return nil, unknownWord(p.peek())
		}
		t.kind = "host"
	}
	if err := t.value(p.peek()); err != nil {
		return nil, err
	}
	p.next()
	p.last = t
	return t, nil
}

func unknownWord(w string) error {
	if w == "" {
		return fmt.Errorf("it ends too early, allowed: %s", filterWords)
	}
	return fmt.Errorf("%q is not understood, allowed: %s", w, filterWords)
}

// protocol reads a protocol's name.
func (p *parser) protocol(t *term) bool {
	switch p.peek() {
	case "ip":
		t.family = 4
	case "ip6":
		t.family = 6
	case "arp":
		t.family = 'a'
	case "icmp":
		t.family, t.proto = 4, protoICMP
	case "icmp6":
		t.family, t.proto = 6, protoICMPv6
	case "tcp":
		t.proto = protoTCP
	case "udp":
		t.proto = protoUDP
	default:
		return false
	}
	p.next()
	return true
}

// number reads what follows `proto`.
func (p *parser) number(t term) (node, error) {
	names := map[string]int{
		"icmp": protoICMP, "igmp": protoIGMP, "ipip": protoIPIP, "tcp": protoTCP,
		"udp": protoUDP, "ipv6": protoIPv6, "icmp6": protoICMPv6,
	}
	w := strings.TrimPrefix(p.next(), `\`) // pcap wants its keywords escaped
	n, ok := names[w]
	if !ok {
		v, err := strconv.ParseUint(w, 10, 8)
		if err != nil {
			return nil, fmt.Errorf("protocol %q is not allowed, want 0 to 255, icmp, icmp6, tcp, udp or ipip", w)
		}
		n = int(v)
	}
	t.proto = n
	return t, nil
}

// value reads the value of a host, net or port.
func (t *term) value(w string) error {
	if t.kind == "port" {
		v, err := strconv.ParseUint(w, 10, 16)
		if err != nil {
			return fmt.Errorf("port %q is not allowed, want 0 to 65535", w)
		}
		t.port = uint16(v)
		return nil
	}
	if t.kind == "host" {
		a, err := netip.ParseAddr(w)
		if err != nil || a.Zone() != "" {
			return fmt.Errorf("host %q is not an IP address", w)
		}
		t.net = netip.PrefixFrom(a, a.BitLen())
		return nil
	}
	n, err := netip.ParsePrefix(w)
	if err != nil || n != n.Masked() {
		return fmt.Errorf("net %q is not allowed, want a CIDR without host bits", w)
	}
	t.net = n
	return nil
}
