package desired

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go4.org/netipx"
)

// NFTTable is the name of our one nftables table, of family inet. Everything in it is ours, nothing outside it is.
const NFTTable = "maneki"

// NFTKey names an object of the table.
type NFTKey struct {
	Kind NFTKind
	Name string
}

// NFTKind says what an object is.
type NFTKind uint8

// The kinds, in the order in which they are made: chains refer to sets.
const (
	NFTSet NFTKind = iota + 1
	NFTChain
)

// String is "set pools4" or "chain postrouting".
func (k NFTKey) String() string {
	if k.Kind == NFTSet {
		return "set " + k.Name
	}
	return "chain " + k.Name
}

// Compare orders sets before chains, then by name.
func (k NFTKey) Compare(o NFTKey) int {
	if k.Kind != o.Kind {
		return int(k.Kind) - int(o.Kind)
	}
	return strings.Compare(k.Name, o.Name)
}

// NFTObject is a set, where only V4 and Members count, or a base chain.
type NFTObject struct {
	V4      bool   // the set holds IPv4 addresses, otherwise IPv6
	Members NetSet // of a set

	Type     string // of a chain: filter or nat
	Hook     string // prerouting, input, forward, output or postrouting
	Priority int    // as nft prints it in numbers; the policy is accept
	Rules    Rules
}

// NFT is everything in the table.
type NFT map[NFTKey]NFTObject

// String is the table as nft(8) lists it.
func (n NFT) String() string {
	if len(n) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", NFTTable)
	for _, k := range slices.SortedFunc(maps.Keys(n), NFTKey.Compare) {
		o := n[k]
		fmt.Fprintf(&b, "\t%s {\n", k)
		if k.Kind == NFTSet {
			family := map[bool]string{true: "ipv4_addr", false: "ipv6_addr"}[o.V4]
			fmt.Fprintf(&b, "\t\ttype %s\n\t\tflags interval\n", family)
			if o.Members != (NetSet{}) {
				fmt.Fprintf(&b, "\t\telements = { %s }\n", strings.ReplaceAll(o.Members.text, ",", ", "))
			}
		} else {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", o.Type, o.Hook, o.Priority)
			for _, r := range o.Rules.List() {
				fmt.Fprintf(&b, "\t\t%s\n", r)
			}
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// NetSet is an immutable set of addresses, kept as the fewest prefixes, that can be compared with ==. The zero value is
// the empty set.
type NetSet struct{ text string }

// NewNetSet is the union of the prefixes: overlapping and adjacent ones are merged. Invalid ones do not count.
func NewNetSet(nets ...netip.Prefix) NetSet {
	var b netipx.IPSetBuilder
	for _, n := range nets {
		if n.IsValid() {
			b.AddPrefix(n.Masked())
		}
	}
	set, err := b.IPSet()
	if err != nil {
		return NetSet{} // cannot be: every prefix is valid
	}
	words := make([]string, 0, len(nets))
	for _, p := range set.Prefixes() {
		words = append(words, p.String())
	}
	return NetSet{strings.Join(words, ",")}
}

// Prefixes is the set as the fewest prefixes in ascending order.
func (s NetSet) Prefixes() []netip.Prefix {
	if s.text == "" {
		return nil
	}
	words := strings.Split(s.text, ",")
	out := make([]netip.Prefix, len(words))
	for i, w := range words {
		out[i] = netip.MustParsePrefix(w) // written by NewNetSet
	}
	return out
}

// Ranges is the set as the fewest ranges in ascending order: no two touch.
func (s NetSet) Ranges() []netipx.IPRange {
	var b netipx.IPSetBuilder
	for _, p := range s.Prefixes() {
		b.AddPrefix(p)
	}
	set, err := b.IPSet()
	if err != nil {
		return nil // cannot be: every prefix is valid
	}
	return set.Ranges()
}

// String is the prefixes separated by commas.
func (s NetSet) String() string { return s.text }

// Rule is one rule. All conditions that are set must hold.
type Rule struct {
	In           string       // name of the interface it came by; with a star at the end, how the name begins
	Out          string       // name of the interface it leaves by
	UDPPort      uint16       // it is UDP to this port
	Protocol     uint8        // its IP protocol is this number; 0 is any
	Src          netip.Prefix // its source lies in here
	SrcIn        SetMatch     // its source is in a set
	DstNotIn     [2]SetMatch  // its destination is in none of these sets
	SrcNotIn     SetMatch     // its source is not in a set
	Spoofed      bool         // the way back to its source does not lead out where it came in
	SrcForeignTo bool         // its source is this host's, but not an address of the interface it leaves by
	Do           Action
}

// SetMatch names a set and the family of its members.
type SetMatch struct {
	Set string
	V4  bool
}

// Action is what a rule does.
type Action string

// The actions, in nft's words.
const (
	Accept     Action = "accept"
	Drop       Action = "drop"
	Notrack    Action = "notrack"
	Masquerade Action = "masquerade fully-random"
)

// String is the rule as nft(8) prints it.
func (r Rule) String() string {
	var w []string
	add := func(words ...string) { w = append(w, words...) }
	ip := func(v4 bool) string {
		if v4 {
			return "ip"
		}
		return "ip6"
	}
	if r.In != "" {
		add("iifname", strconv.Quote(r.In))
	}
	if r.Out != "" {
		add("oifname", strconv.Quote(r.Out))
	}
	if r.UDPPort != 0 {
		add("udp dport", strconv.Itoa(int(r.UDPPort)))
	}
	if r.Protocol != 0 {
		add("meta l4proto", strconv.Itoa(int(r.Protocol)))
	}
	if r.Src.IsValid() {
		add(ip(r.Src.Addr().Is4()), "saddr", r.Src.String())
	}
	if r.SrcIn.Set != "" {
		add(ip(r.SrcIn.V4), "saddr @"+r.SrcIn.Set)
	}
	if r.SrcNotIn.Set != "" {
		add(ip(r.SrcNotIn.V4), "saddr != @"+r.SrcNotIn.Set)
	}
	for _, d := range r.DstNotIn {
		if d.Set != "" {
			add(ip(d.V4), "daddr != @"+d.Set)
		}
	}
	if r.Spoofed {
		add("fib saddr . iif oif missing")
	}
	if r.SrcForeignTo {
		add("fib saddr type local fib saddr . oif type != local")
	}
	add(string(r.Do))
	return strings.Join(w, " ")
}

// ParseRule reads what Rule.String writes.
func ParseRule(text string) (Rule, error) {
	var r Rule
	rest := strings.Fields(text)
	for len(rest) > 0 {
		n, err := r.word(rest)
		if err != nil {
			return Rule{}, fmt.Errorf("parse rule %q: %w", text, err)
		}
		rest = rest[n:]
	}
	if r.String() != text {
		return Rule{}, fmt.Errorf("parse rule %q: it would be printed as %q", text, r)
	}
	return r, nil
}

// word reads one condition or the action and says how many words it took.
func (r *Rule) word(w []string) (int, error) {
	at := func(i int) string {
		if i < len(w) {
			return w[i]
		}
		return ""
	}
	line := strings.Join(w, " ")
	for _, a := range []Action{Accept, Drop, Notrack, Masquerade} {
		if line == string(a) {
			r.Do = a
			return len(w), nil
		}
	}
	var err error
	switch {
	case at(0) == "iifname":
		r.In, err = strconv.Unquote(at(1))
		return 2, err
	case at(0) == "oifname":
		r.Out, err = strconv.Unquote(at(1))
		return 2, err
	case at(0) == "udp" && at(1) == "dport":
		var n uint64
		n, err = strconv.ParseUint(at(2), 10, 16)
		r.UDPPort = uint16(n)
		return 3, err
	case at(0) == "meta" && at(1) == "l4proto":
		var n uint64
		n, err = strconv.ParseUint(at(2), 10, 8)
		r.Protocol = uint8(n)
		return 3, err
	case at(0) == "ip" || at(0) == "ip6":
		return r.address(at(0) == "ip", at)
	case strings.HasPrefix(line, "fib saddr . iif oif missing"):
		r.Spoofed = true
		return 6, nil
	case strings.HasPrefix(line, "fib saddr type local fib saddr . oif type != local"):
		r.SrcForeignTo = true
		return 11, nil
	}
	return 0, fmt.Errorf("%q is not one of our expressions", at(0))
}

func (r *Rule) address(v4 bool, at func(int) string) (int, error) {
	not := at(2) == "!="
	what, n := at(2), 3
	if not {
		what, n = at(3), 4
	}
	set, isSet := strings.CutPrefix(what, "@")
	m := SetMatch{set, v4}
	switch {
	case at(1) == "saddr" && isSet && not:
		r.SrcNotIn = m
	case at(1) == "saddr" && isSet:
		r.SrcIn = m
	case at(1) == "daddr" && isSet && not && r.DstNotIn[0].Set == "":
		r.DstNotIn[0] = m
	case at(1) == "daddr" && isSet && not:
		r.DstNotIn[1] = m
	case at(1) == "saddr" && !not:
		var err error
		r.Src, err = netip.ParsePrefix(what)
		return n, err
	default:
		return 0, fmt.Errorf("%q is not one of our matches of an address", at(1)+" "+what)
	}
	return n, nil
}

// Rules is an immutable list of rules that can be compared with ==. The zero value is the empty list.
type Rules struct{ text string }

// NewRules is the list of the rules given, in order.
func NewRules(rules ...Rule) Rules {
	lines := make([]string, len(rules))
	for i, r := range rules {
		lines[i] = r.String()
	}
	return Rules{strings.Join(lines, "\n")}
}

// List is the rules in order.
func (l Rules) List() []Rule {
	if l.text == "" {
		return nil
	}
	var out []Rule
	for line := range strings.SplitSeq(l.text, "\n") {
		if r, err := ParseRule(line); err == nil { // written by NewRules
			out = append(out, r)
		}
	}
	return out
}

// String is one rule a line.
func (l Rules) String() string { return l.text }
