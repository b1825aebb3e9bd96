package desired

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Rule is one rule. All matches must hold; then what follows is done in the order of the fields.
type Rule struct {
	Match   []Match
	Limit   Limit // how often the rest is done; beyond that the rule does not match
	Counter bool
	Log     Log
	Mark    Mark
	Do      Action  // empty: the next rule
	Chain   string  // of Jump and Goto
	Map     string  // of VMap: the map that is asked
	Key     []Field // of VMap: with what
	NAT     NAT     // of SNAT, DNAT and Masquerade
}

// Action is what a rule does, in nft's words.
type Action string

// The actions.
const (
	Accept     Action = "accept"
	Drop       Action = "drop"
	Return     Action = "return"
	Jump       Action = "jump"
	Goto       Action = "goto"
	VMap       Action = "vmap" // what the map says; without an element the rule does not match
	Notrack    Action = "notrack"
	Reject     Action = "reject"                // an ICMP error: port unreachable
	Reset      Action = "reject with tcp reset" // of TCP only
	Masquerade Action = "masquerade"
	SNAT       Action = "snat"
	DNAT       Action = "dnat"
)

// Limit is a rate of packets. The zero value is no limit.
type Limit struct{ PerSecond, Burst uint32 }

// Log hands a packet to the nflog group of that number, or with Kernel to the kernel's log.
type Log struct {
	Group  uint16 // 0: none
	Kernel bool
	Prefix string
}

// Mark changes bits of the packet's mark.
type Mark struct{ Clear, Set uint32 }

// NAT is where to translate to. All addresses and ports are optional but for DNAT and SNAT, which need an address.
type NAT struct {
	Addr     netip.Addr
	From, To uint16 // ports; zero leaves the choice to the kernel
	Random   bool   // fully random
}

// Field is a property of a packet that sets are asked about.
type Field uint8

// The fields.
const (
	FieldIn Field = iota + 1 // name of the interface it came by
	FieldOut
	FieldSrc4
	FieldSrc6
	FieldDst4
	FieldDst6
	FieldProto
	FieldSrcPort // of every protocol that has ports
	FieldDstPort
)

// SrcField and DstField are the address fields of a family.
func SrcField(v4 bool) Field {
	if v4 {
		return FieldSrc4
	}
	return FieldSrc6
}

// DstField is SrcField for the destination.
func DstField(v4 bool) Field { return SrcField(v4) + (FieldDst4 - FieldSrc4) }

// String is the field as nft prints it.
func (f Field) String() string {
	return [...]string{"", "iifname", "oifname", "ip saddr", "ip6 saddr", "ip daddr", "ip6 daddr", "meta l4proto", "th sport", "th dport"}[min(f, FieldDstPort)]
}

// Type is the type of the field's values.
func (f Field) Type() KeyType {
	return [...]KeyType{0, TypeInterface, TypeInterface, TypeIPv4, TypeIPv6, TypeIPv4, TypeIPv6, TypeProto, TypePort, TypePort}[min(f, FieldDstPort)]
}

// Family is 4 or 6 where the field exists in one family only, else 0.
func (f Field) Family() uint8 {
	switch f {
	case FieldSrc4, FieldDst4:
		return 4
	case FieldSrc6, FieldDst6:
		return 6
	}
	return 0
}

// CTState is a set of states of connection tracking, with the kernel's bits.
type CTState uint32

// The states.
const (
	Invalid     CTState = 1
	Established CTState = 2
	Related     CTState = 4
	New         CTState = 8
	Untracked   CTState = 64
)

// String is the states as nft prints them.
func (c CTState) String() string {
	var words []string
	for _, s := range []struct {
		bit  CTState
		name string
	}{{Invalid, "invalid"}, {Established, "established"}, {Related, "related"}, {New, "new"}, {Untracked, "untracked"}} {
		if c&s.bit != 0 {
			words = append(words, s.name)
		}
	}
	return strings.Join(words, ",")
}

// MatchKind says which fields of a Match count.
type MatchKind uint8

// The kinds.
const (
	MatchInterface  MatchKind = iota + 1 // Field FieldIn or FieldOut, Name; with a star at the end, how the name begins
	MatchFamily                          // Num is 4 or 6
	MatchProto                           // Num
	MatchNet                             // Field of an address, Net
	MatchPort                            // Field of a port, From to To
	MatchUDPPort                         // it is UDP to port From
	MatchICMP                            // Num is the type; From the code, or -1
	MatchICMPRange                       // the type is Num to To
	MatchState                           // States
	MatchSet                             // Key is in the set Name
	MatchMark                            // one of the bits Num of the mark is set
	MatchSpoofed                         // the way back to its source does not lead out where it came in
	MatchForeignSrc                      // its source is this host's, but not an address of the interface it leaves by
	MatchLocalDst                        // its destination is an address of this host
)

// Match is one condition.
type Match struct {
	Kind     MatchKind
	Not      bool
	Field    Field
	Name     string
	Net      netip.Prefix
	Num      uint32
	From, To int
	States   CTState
	Key      []Field
}

// InInterface is the interface by which a packet came; with a star at the end of the name, how the name begins.
func InInterface(name string) Match { return Match{Kind: MatchInterface, Field: FieldIn, Name: name} }

// OutInterface is the interface by which a packet leaves.
func OutInterface(name string) Match { return Match{Kind: MatchInterface, Field: FieldOut, Name: name} }

// Family is 4 or 6.
func Family(n uint8) Match { return Match{Kind: MatchFamily, Num: uint32(n)} }

// Proto is the IP protocol of a packet.
func Proto(n uint8) Match { return Match{Kind: MatchProto, Num: uint32(n)} }

// UDPPort is UDP to a port.
func UDPPort(n uint16) Match { return Match{Kind: MatchUDPPort, From: int(n)} }

// DstPort is a destination port between two, both included, of a protocol that has ports: use it after Proto.
func DstPort(from, to uint16) Match {
	return Match{Kind: MatchPort, Field: FieldDstPort, From: int(from), To: int(to)}
}

// SrcPort is DstPort for the source.
func SrcPort(from, to uint16) Match {
	return Match{Kind: MatchPort, Field: FieldSrcPort, From: int(from), To: int(to)}
}

// ICMPType is ICMP's or ICMPv6's type, and the code unless it is negative: use it after Proto.
func ICMPType(typ uint8, code int) Match {
	return Match{Kind: MatchICMP, Num: uint32(typ), From: code}
}

// SrcNet is a source within a prefix.
func SrcNet(p netip.Prefix) Match {
	return Match{Kind: MatchNet, Field: SrcField(p.Addr().Is4()), Net: p.Masked()}
}

// DstNet is a destination within a prefix.
func DstNet(p netip.Prefix) Match {
	return Match{Kind: MatchNet, Field: DstField(p.Addr().Is4()), Net: p.Masked()}
}

// SrcIn is a source in a set of addresses.
func SrcIn(set string, v4 bool) Match { return InSet(set, SrcField(v4)) }

// DstIn is a destination in a set of addresses.
func DstIn(set string, v4 bool) Match { return InSet(set, DstField(v4)) }

// InSet is any fields of a packet in a set of such keys.
func InSet(set string, key ...Field) Match { return Match{Kind: MatchSet, Name: set, Key: key} }

// State is one of the states of connection tracking.
func State(s CTState) Match { return Match{Kind: MatchState, States: s} }

// Marked is one of the bits of a packet's mark.
func Marked(bits uint32) Match { return Match{Kind: MatchMark, Num: bits} }

// Spoofed is a source to which the way back does not lead out where the packet came in.
func Spoofed() Match { return Match{Kind: MatchSpoofed} }

// ForeignSrc is a source that is this host's, but not an address of the interface that the packet leaves by.
func ForeignSrc() Match { return Match{Kind: MatchForeignSrc} }

// LocalDst is a destination that is an address of this host.
func LocalDst() Match { return Match{Kind: MatchLocalDst} }

// Negate is the opposite condition. Of an address, of the same family; of a port or an ICMP type, of the same protocol.
func (m Match) Negate() Match {
	m.Not = !m.Not
	return m
}

// String is the condition as nft prints it.
func (m Match) String() string {
	op := ""
	if m.Not {
		op = "!= "
	}
	switch m.Kind {
	case MatchInterface:
		return m.Field.String() + " " + op + strconv.Quote(m.Name)
	case MatchFamily:
		return "meta nfproto " + op + map[uint32]string{4: "ipv4", 6: "ipv6"}[m.Num]
	case MatchProto:
		return fmt.Sprintf("meta l4proto %s%d", op, m.Num)
	case MatchNet:
		if m.Net.IsSingleIP() {
			return m.Field.String() + " " + op + m.Net.Addr().String()
		}
		return m.Field.String() + " " + op + m.Net.String()
	case MatchPort:
		if m.From == m.To {
			return fmt.Sprintf("%s %s%d", m.Field, op, m.From)
		}
		return fmt.Sprintf("%s %s%d-%d", m.Field, op, m.From, m.To)
	case MatchUDPPort:
		return fmt.Sprintf("udp dport %s%d", op, m.From)
	case MatchICMP:
		if m.From < 0 {
			return fmt.Sprintf("@th,0,8 %s%d", op, m.Num)
		}
		return fmt.Sprintf("@th,0,16 %s%d", op, m.Num<<8|uint32(m.From))
	case MatchICMPRange:
		return fmt.Sprintf("@th,0,8 %s%d-%d", op, m.Num, m.To)
	case MatchState:
		if m.Not {
			return "ct state ! " + m.States.String()
		}
		return "ct state " + m.States.String()
	case MatchSet:
		return keyText(m.Key) + " " + op + "@" + m.Name
	case MatchMark:
		if m.Not {
			return fmt.Sprintf("meta mark & 0x%08x == 0x00000000", m.Num)
		}
		return fmt.Sprintf("meta mark & 0x%08x != 0x00000000", m.Num)
	case MatchSpoofed:
		return "fib saddr . iif oif missing"
	case MatchForeignSrc:
		return "fib saddr type local fib saddr . oif type != local"
	case MatchLocalDst:
		return "fib daddr type local"
	}
	return fmt.Sprintf("match %d", m.Kind)
}

func keyText(key []Field) string {
	words := make([]string, len(key))
	for i, f := range key {
		words[i] = f.String()
	}
	return strings.Join(words, " . ")
}

// String is the rule as nft(8) prints it.
func (r Rule) String() string {
	var w []string
	add := func(format string, args ...any) { w = append(w, fmt.Sprintf(format, args...)) }
	w = append(w, r.matches()...)
	if r.Limit != (Limit{}) {
		add("limit rate %d/second burst %d packets", r.Limit.PerSecond, r.Limit.Burst)
	}
	if r.Counter {
		w = append(w, "counter")
	}
	switch {
	case r.Log.Group != 0:
		add("log prefix %q group %d", r.Log.Prefix, r.Log.Group)
	case r.Log.Kernel:
		add("log prefix %q", r.Log.Prefix)
	}
	switch {
	case r.Mark.Clear != 0 && r.Mark.Set != 0:
		add("meta mark set meta mark & 0x%08x | 0x%08x", ^(r.Mark.Clear | r.Mark.Set), r.Mark.Set)
	case r.Mark.Clear != 0:
		add("meta mark set meta mark & 0x%08x", ^r.Mark.Clear)
	case r.Mark.Set != 0:
		add("meta mark set meta mark | 0x%08x", r.Mark.Set)
	}
	switch r.Do {
	case "":
	case VMap:
		add("%s vmap @%s", keyText(r.Key), r.Map)
	case Jump, Goto:
		add("%s %s", r.Do, r.Chain)
	case SNAT, DNAT, Masquerade:
		w = append(w, r.nat())
	default:
		w = append(w, string(r.Do))
	}
	return strings.Join(w, " ")
}

// matches prints the conditions. A protocol that has ports and its ports are one expression: "tcp dport 80".
func (r Rule) matches() []string {
	names := map[uint32]string{6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}
	proto, name := -1, ""
	for i, m := range r.Match {
		if m.Kind == MatchProto && !m.Not && names[m.Num] != "" {
			proto, name = i, names[m.Num]
		}
	}
	isPort := func(m Match) bool {
		return m.Kind == MatchPort || m.Kind == MatchSet && len(m.Key) == 1 && m.Key[0].Type() == TypePort
	}
	ported := proto >= 0 && slices.ContainsFunc(r.Match[proto:], isPort)
	var w []string
	for i, m := range r.Match {
		switch {
		case ported && i == proto:
		case ported && i > proto && isPort(m):
			w = append(w, name+strings.TrimPrefix(m.String(), "th"))
		default:
			w = append(w, m.String())
		}
	}
	return w
}

func (r Rule) nat() string {
	s := string(r.Do)
	to := ""
	if r.NAT.Addr.IsValid() {
		s += map[bool]string{true: " ip", false: " ip6"}[r.NAT.Addr.Is4()]
		to = r.NAT.Addr.String()
		if r.NAT.Addr.Is6() && r.NAT.From != 0 {
			to = "[" + to + "]"
		}
	}
	if r.NAT.From != 0 {
		to += fmt.Sprintf(":%d", r.NAT.From)
		if r.NAT.To > r.NAT.From {
			to += fmt.Sprintf("-%d", r.NAT.To)
		}
	}
	if to != "" {
		s += " to " + to
	}
	if r.NAT.Random {
		s += " fully-random"
	}
	return s
}

// ID identifies the rule by its text.
func (r Rule) ID() RuleID {
	sum := sha256.Sum256([]byte(r.String()))
	return RuleID(sum[:16])
}

// Sets names the sets and maps that the rule refers to.
func (r Rule) Sets() []string {
	var out []string
	for _, m := range r.Match {
		if m.Kind == MatchSet {
			out = append(out, m.Name)
		}
	}
	if r.Do == VMap {
		out = append(out, r.Map)
	}
	return slices.Clip(out)
}
