package desired

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go4.org/netipx"
)

// KeyType is the type of one part of a set's key, in nft's words.
type KeyType uint8

// The types.
const (
	TypeIPv4 KeyType = iota + 1
	TypeIPv6
	TypeProto // IP protocol number
	TypePort
	TypeInterface // name of an interface
)

// String is nft's name of the type.
func (t KeyType) String() string {
	return [...]string{"", "ipv4_addr", "ipv6_addr", "inet_proto", "inet_service", "ifname"}[min(t, TypeInterface)]
}

// Size in bytes of a value.
func (t KeyType) Size() int {
	return [...]int{0, 4, 16, 1, 2, 16}[min(t, TypeInterface)]
}

// SetType is what a set's elements are. It is comparable.
type SetType struct {
	Key      [4]KeyType // a concatenation, ended by zero
	Interval bool       // elements are ranges
	Verdicts bool       // a map: every element has a verdict
	Counters bool       // every element counts its packets
}

// NewSetType is the type of a set whose elements have this key.
func NewSetType(interval bool, key ...KeyType) SetType {
	t := SetType{Interval: interval}
	copy(t.Key[:], key)
	return t
}

// AddrSetType is the type of a set of prefixes.
func AddrSetType(v4 bool) SetType { return NewSetType(true, addrType(v4)) }

// HostSetType is the type of a set of single addresses. The kernel finds these by a hash, and a change costs what has
// changed; a change of a set of prefixes costs as much as the set (nft_set_rbtree.c, since Linux 6.18).
func HostSetType(v4 bool) SetType { return NewSetType(false, addrType(v4)) }

// AddrPortSetType is the type of a set of addresses with protocol and port.
func AddrPortSetType(v4 bool) SetType { return NewSetType(false, addrType(v4), TypeProto, TypePort) }

func addrType(v4 bool) KeyType {
	if v4 {
		return TypeIPv4
	}
	return TypeIPv6
}

// Parts is the key without the unused rest.
func (t SetType) Parts() []KeyType {
	n := slices.Index(t.Key[:], 0)
	if n < 0 {
		n = len(t.Key)
	}
	return t.Key[:n]
}

// OfMembers reports whether the content of such a set is kept as Members.
func (t SetType) OfMembers() bool {
	for _, v4 := range []bool{true, false} {
		if t == AddrSetType(v4) || t == HostSetType(v4) || t == AddrPortSetType(v4) {
			return true
		}
	}
	return false
}

// String is the type as nft lists it, statements separated by "; ".
func (t SetType) String() string {
	var parts []string
	for _, p := range t.Parts() {
		parts = append(parts, p.String())
	}
	s := "type " + strings.Join(parts, " . ")
	if t.Verdicts {
		s += " : verdict"
	}
	if t.Interval {
		s += "; flags interval"
	}
	if t.Counters {
		s += "; counter"
	}
	return s
}

// Verdict is what a map says.
type Verdict struct {
	Do    Action // Accept, Drop, Return, Jump or Goto
	Chain string // of Jump and Goto
}

// String is the verdict as nft prints it.
func (v Verdict) String() string {
	if v.Chain == "" {
		return string(v.Do)
	}
	return string(v.Do) + " " + v.Chain
}

// Element is an element of a set or map, as the kernel holds it: the parts of the key one after the other in network
// byte order, in a concatenation each padded to four bytes. It is comparable.
type Element struct {
	Key     string
	End     string // the last key of a range, included; empty unless the set has intervals
	Verdict Verdict
}

// Part is one part of a key, from and to.
type Part struct{ from, to string }

// AddrPart is the addresses of a prefix.
func AddrPart(p netip.Prefix) Part {
	return Part{string(p.Masked().Addr().AsSlice()), string(netipx.PrefixLastIP(p).AsSlice())}
}

// AddrRangePart is the addresses from one to another, both included.
func AddrRangePart(from, to netip.Addr) Part {
	return Part{string(from.AsSlice()), string(to.AsSlice())}
}

// ProtoPart is a protocol.
func ProtoPart(n uint8) Part { return Part{string([]byte{n}), string([]byte{n})} }

// PortPart is a range of ports, both ends included.
func PortPart(from, to uint16) Part {
	b := func(n uint16) string { return string(binary.BigEndian.AppendUint16(nil, n)) }
	return Part{b(from), b(to)}
}

// InterfacePart is the name of an interface.
func InterfacePart(name string) Part {
	b := make([]byte, TypeInterface.Size())
	copy(b[:len(b)-1], name)
	return Part{string(b), string(b)}
}

// Element makes an element of a set of this type. It panics when the parts do not fit the type, which no input can
// cause.
func (t SetType) Element(v Verdict, parts ...Part) Element {
	types := t.Parts()
	if len(types) != len(parts) {
		panic(fmt.Sprintf("element of %d parts for a set of %q", len(parts), t))
	}
	var e Element
	for i, p := range parts {
		if len(p.from) != types[i].Size() || !t.Interval && p.from != p.to {
			panic(fmt.Sprintf("part %d does not fit a set of %q", i, t))
		}
		e.Key += p.from
		e.End += p.to
		if pad := -len(p.from) & 3; len(types) > 1 && pad > 0 {
			e.Key += "\x00\x00\x00"[:pad]
			e.End += "\x00\x00\x00"[:pad]
		}
	}
	if !t.Interval {
		e.End = ""
	}
	e.Verdict = v
	return e
}

// MemberElement is a member as an element of a set of this type, which must be OfMembers.
func (t SetType) MemberElement(m Member) Element {
	if len(t.Parts()) == 1 {
		return t.Element(Verdict{}, AddrPart(m.Net))
	}
	return t.Element(Verdict{}, AddrPart(m.Net), ProtoPart(m.Proto), PortPart(m.Port, m.Port))
}

// Member is the inverse of MemberElement; false where the element is no prefix.
func (t SetType) Member(e Element) (Member, bool) {
	size := t.Key[0].Size()
	if len(e.Key) < size || t.Interval && len(e.End) != size {
		return Member{}, false
	}
	from, _ := netip.AddrFromSlice([]byte(e.Key[:size]))
	if t.Interval {
		to, _ := netip.AddrFromSlice([]byte(e.End))
		p, ok := netipx.IPRangeFrom(from, to).Prefix()
		return Member{Net: p}, ok
	}
	if len(t.Parts()) == 1 {
		return Member{Net: netip.PrefixFrom(from, from.BitLen())}, len(e.Key) == size
	}
	if len(e.Key) != size+8 {
		return Member{}, false
	}
	return Member{Net: netip.PrefixFrom(from, from.BitLen()), Proto: e.Key[size], Port: binary.BigEndian.Uint16([]byte(e.Key[size+4:]))}, true
}

// Text prints an element as nft does: "10.0.0.0/8 . 6 . 80-90 : accept".
func (t SetType) Text(e Element) string {
	var parts []string
	at := 0
	types := t.Parts()
	for _, kt := range types {
		end := at + kt.Size()
		if end > len(e.Key) || e.End != "" && end > len(e.End) {
			return fmt.Sprintf("%x-%x", e.Key, e.End)
		}
		to := e.Key[at:end]
		if e.End != "" {
			to = e.End[at:end]
		}
		parts = append(parts, kt.text(e.Key[at:end], to))
		if at = end; len(types) > 1 {
			at = (at + 3) &^ 3
		}
	}
	s := strings.Join(parts, " . ")
	if t.Verdicts {
		s += " : " + e.Verdict.String()
	}
	return s
}

func (t KeyType) text(from, to string) string {
	one := func(s string) string {
		switch t {
		case TypeIPv4, TypeIPv6:
			a, _ := netip.AddrFromSlice([]byte(s))
			return a.String()
		case TypeProto:
			return strconv.Itoa(int(s[0]))
		case TypePort:
			return strconv.Itoa(int(binary.BigEndian.Uint16([]byte(s))))
		}
		return strconv.Quote(strings.TrimRight(s, "\x00"))
	}
	if from == to {
		return one(from)
	}
	if t == TypeIPv4 || t == TypeIPv6 {
		a, _ := netip.AddrFromSlice([]byte(from))
		b, _ := netip.AddrFromSlice([]byte(to))
		if p, ok := netipx.IPRangeFrom(a, b).Prefix(); ok {
			return p.String()
		}
	}
	return one(from) + "-" + one(to)
}

// Compare orders elements by key, end and verdict.
func (e Element) Compare(o Element) int {
	return cmp.Or(strings.Compare(e.Key, o.Key), strings.Compare(e.End, o.End), strings.Compare(string(e.Verdict.Do), string(o.Verdict.Do)), strings.Compare(e.Verdict.Chain, o.Verdict.Chain))
}

func (e Element) encode(b []byte) []byte {
	for _, s := range []string{e.Key, e.End, string(e.Verdict.Do), e.Verdict.Chain} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return b
}

// Elements is the content of a set or map of any type, like Members that of a set of addresses. No two elements have one
// key. nil is the empty one.
type Elements struct{ c *content[Element] }

func elementsOf(c *content[Element]) *Elements {
	if c == nil {
		return nil
	}
	return &Elements{c}
}

func (e *Elements) content() *content[Element] {
	if e == nil {
		return nil
	}
	return e.c
}

// NewElements is the content with these elements. Of several with one key the first counts.
func NewElements(list ...Element) *Elements {
	seen := make(map[[2]string]struct{}, len(list))
	once := make([]Element, 0, len(list))
	for _, e := range list {
		key := [2]string{e.Key, e.End}
		if _, there := seen[key]; !there {
			seen[key] = struct{}{}
			once = append(once, e)
		}
	}
	return elementsOf(newContent(once))
}

// Change is the content with elements added and taken out, like Members.Change. Whoever gives a key another verdict takes
// out the element with the old one.
func (e *Elements) Change(add, del []Element) *Elements {
	next := e.content().change(add, del)
	if next == e.content() {
		return e
	}
	return elementsOf(next)
}

// Digest identifies the content.
func (e *Elements) Digest() Digest { return e.content().id() }

// Len is the number of elements.
func (e *Elements) Len() int { return e.Digest().Size }

// All lists the elements in no order.
func (e *Elements) All() iter.Seq[Element] { return e.content().all() }

// List is the elements by key.
func (e *Elements) List() []Element { return sorted(slices.Collect(e.All())) }

// Since says what has to be added to old, and taken out of it, to make e. See Members.Since.
func (e *Elements) Since(old *Elements) (add, del []Element) { return e.content().since(old.content()) }

// ElementsDigest is the digest of a list without repetitions.
func ElementsDigest(list []Element) Digest { return digestOf(list) }

// UnionOf is the addresses of the prefixes as the fewest prefixes: overlapping and adjacent ones are merged. Invalid
// ones do not count.
func UnionOf(nets ...netip.Prefix) []netip.Prefix {
	var b netipx.IPSetBuilder
	for _, n := range nets {
		if n.IsValid() {
			b.AddPrefix(n.Masked())
		}
	}
	set, err := b.IPSet()
	if err != nil {
		return nil // cannot be: every prefix is valid
	}
	return set.Prefixes()
}

// NetMembers is the union of the prefixes as the members of a set.
func NetMembers(nets ...netip.Prefix) *Members {
	var list []Member
	for _, n := range UnionOf(nets...) {
		list = append(list, Member{Net: n})
	}
	return NewMembers(list...)
}
