package render

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

const (
	// foldFrom is how many rules in a row are worth a map: a look-up costs as much as a few rules.
	foldFrom = 4
	// foldProduct bounds the elements of one rule; lists that multiply to more are two sets.
	foldProduct = 64
	// foldRanges bounds the elements of a map with ranges: ranges that overlap must be found, pair by pair, and a change of
	// such a map copies it (net/netfilter/nft_set_pipapo.c, pipapo_clone). Maps without ranges have no such bound.
	foldRanges = 1024
)

// shape is which criteria a foldable rule has. Rules of one shape ask for the
// same fields of a packet, so that one look-up with these fields finds the first
// of them that matches.
type shape struct{ src, dst, proto, ports bool }

// box is one element in the making: the packets that one combination of a rule's
// lists matches. What the shape does not ask is zero.
type box struct {
	src, dst netip.Prefix
	proto    uint8
	ports    policy.PortRange
}

// exact reports whether the box is one key.
func (b box) exact() bool {
	single := func(p netip.Prefix) bool { return !p.IsValid() || p.IsSingleIP() }
	return single(b.src) && single(b.dst) && b.ports.From == b.ports.To
}

func (b box) v4() bool {
	if b.src.IsValid() {
		return b.src.Addr().Is4()
	}
	return b.dst.Addr().Is4()
}

// overlaps and within compare boxes of one shape and family.
func (b box) overlaps(o box) bool {
	nets := func(x, y netip.Prefix) bool { return !x.IsValid() || x.Overlaps(y) }
	return b.proto == o.proto && b.ports.From <= o.ports.To && o.ports.From <= b.ports.To && nets(b.src, o.src) && nets(b.dst, o.dst)
}

func (b box) within(o box) bool {
	nets := func(x, y netip.Prefix) bool { return !x.IsValid() || y.Bits() <= x.Bits() && y.Contains(x.Addr()) }
	return b.proto == o.proto && o.ports.From <= b.ports.From && b.ports.To <= o.ports.To && nets(b.src, o.src) && nets(b.dst, o.dst)
}

// foldable is a rule's shape, if it has one: it asks for nothing but lists of
// prefixes, a protocol and destination ports.
func foldable(r *policy.Rule) (shape, bool) {
	plain := func(e *policy.Entity) bool {
		return len(e.NotNets)+len(e.Named)+len(e.NotPorts)+len(e.NotNamed) == 0 && e.Set == "" && e.NotSet == "" && e.Service == ""
	}
	s := shape{src: r.Src.Nets != nil, dst: r.Dst.Nets != nil, proto: r.Protocol != 0, ports: !r.Dst.AnyPort}
	switch {
	case r.Do == policy.Log, r.NotProtocol != 0, r.ICMP != nil, r.NotICMP != nil, !plain(&r.Src), !plain(&r.Dst), !r.Src.AnyPort,
		s.ports && !policy.HasPorts(r.Protocol), !s.src && !s.dst && (r.Family != 0 || !s.ports):
		return s, false
	}
	return s, len(boxes(r, s)) <= foldProduct
}

// boxes multiplies a rule's lists, up to one more than foldProduct.
func boxes(r *policy.Rule, s shape) []box {
	out := []box{{proto: r.Protocol}}
	multiply := func(n int, set func(b *box, i int)) {
		var next []box
		for _, b := range out {
			for i := range n {
				if len(next) > foldProduct {
					break
				}
				c := b
				set(&c, i)
				next = append(next, c)
			}
		}
		out = next
	}
	if s.src {
		nets := desired.UnionOf(r.Src.Nets...)
		multiply(len(nets), func(b *box, i int) { b.src = nets[i] })
	}
	if s.dst {
		nets := desired.UnionOf(r.Dst.Nets...)
		multiply(len(nets), func(b *box, i int) { b.dst = nets[i] })
	}
	if s.ports {
		ports := mergePorts(r.Dst.Ports)
		multiply(len(ports), func(b *box, i int) { b.ports = ports[i] })
	}
	var fit []box
	for _, b := range out {
		mixed := b.src.IsValid() && b.dst.IsValid() && b.src.Addr().Is4() != b.dst.Addr().Is4()
		wrong := r.Family != 0 && (s.src || s.dst) && b.v4() != (r.Family == 4)
		if !mixed && !wrong {
			fit = append(fit, b)
		}
	}
	return fit
}

// folding is a run of rules being put into one map for each family.
type folding struct {
	shape  shape
	maps   map[bool]*foldMap // by whether it is of IPv4
	ranges bool
	n      int // rules
	deny   []int
}

type foldMap struct {
	boxes []box
	rules []*policy.Rule
	seen  map[box]bool
}

// fold puts as many of the first rules as it can into maps, and returns how many;
// 0 where that is not worth it. First match wins in a list of rules; in a map no
// two elements may hold for one packet. So what an earlier rule covers is left
// out, and a rule that overlaps an earlier one otherwise begins another map.
func (c *compiler) fold(rules []policy.Rule) int {
	want, ok := foldable(&rules[0])
	if !ok {
		return 0
	}
	f := &folding{shape: want, maps: map[bool]*foldMap{}}
	// With ranges anywhere every pair is compared; so it is decided first whether there are any.
	end := 1
	for end < len(rules) {
		if s, ok := foldable(&rules[end]); !ok || s != want {
			break
		}
		end++
	}
	if end < foldFrom {
		return 0
	}
	exact := 0
	for exact < end && allExact(boxes(&rules[exact], want)) {
		exact++
	}
	f.ranges = exact < foldFrom
	if !f.ranges {
		end = exact
	}
	for f.n < end && f.take(&rules[f.n]) {
		f.n++
	}
	if f.n < foldFrom {
		return 0
	}
	c.emitFold(f, rules[0].Index)
	return f.n
}

func allExact(list []box) bool {
	for _, b := range list {
		if !b.exact() {
			return false
		}
	}
	return true
}

// take adds a rule's boxes, or none of them and reports false.
func (f *folding) take(r *policy.Rule) bool {
	list := boxes(r, f.shape)
	var add []box
	for _, b := range list {
		m := f.of(b)
		switch {
		case m.seen[b]:
			continue
		case !f.ranges:
		case len(m.boxes)+len(list) > foldRanges:
			return false
		default:
			covered, crosses := false, false
			for _, o := range m.boxes {
				if b.overlaps(o) {
					covered = covered || b.within(o)
					crosses = true
				}
			}
			if covered {
				continue
			}
			if crosses {
				return false
			}
		}
		add = append(add, b)
	}
	for _, b := range add {
		m := f.of(b)
		m.seen[b] = true
		m.boxes, m.rules = append(m.boxes, b), append(m.rules, r)
	}
	if r.Do == policy.Deny && len(add) > 0 {
		f.deny = append(f.deny, r.Index)
	}
	return true
}

func (f *folding) of(b box) *foldMap {
	v4 := !f.shape.src && !f.shape.dst || b.v4()
	if f.maps[v4] == nil {
		f.maps[v4] = &foldMap{seen: map[box]bool{}}
	}
	return f.maps[v4]
}

// emitFold adds the maps and the rules that ask them. The maps of one policy are
// numbered by the rule that they begin with, so that a change of some of its
// rules changes some elements.
func (c *compiler) emitFold(f *folding, first int) {
	deny := ""
	if len(f.deny) > 0 {
		l := policy.Label{Verdict: policy.Verdict{Reason: policy.ByRule, Rule: f.deny[0]}}
		if len(f.deny) > 1 {
			l.Rules = f.deny
		}
		deny = c.deny(l)
	}
	for _, v4 := range []bool{true, false} {
		m := f.maps[v4]
		if m == nil {
			continue
		}
		fields, typ := f.shape.key(v4)
		typ.Interval, typ.Verdicts, typ.Counters = f.ranges, true, true
		set := constantSet{name: c.foldName(f, first, v4, typ), typ: typ, refs: map[desired.Element]RuleRef{}}
		var elements []desired.Element
		for i, b := range m.boxes {
			e := typ.Element(c.verdict(m.rules[i], deny), b.parts(f.shape)...)
			elements = append(elements, e)
			set.refs[e] = RuleRef{Policy: c.p.ID, Direction: c.d, Rule: m.rules[i].Index}
		}
		set.elements = desired.NewElements(elements...)
		c.emit(-1, desired.Rule{Do: desired.VMap, Map: c.constant(set), Key: fields})
	}
}

// foldName is the map's name. Its type is part of it: a map of another type is
// another map.
func (c *compiler) foldName(f *folding, first int, v4 bool, typ desired.SetType) string {
	family := "6-"
	if v4 {
		family = "4-"
	}
	return "fold" + family + hash(fmt.Sprint(c.out.name, first, f.shape, typ))
}

func (c *compiler) verdict(r *policy.Rule, deny string) desired.Verdict {
	switch r.Do {
	case policy.Allow:
		name, rules := c.how.allowChain()
		if name == "" {
			return desired.Verdict{Do: desired.Accept}
		}
		c.out.chains = append(c.out.chains, newChain(name, rules))
		return desired.Verdict{Do: desired.Goto, Chain: name}
	case policy.Pass:
		return desired.Verdict{Do: desired.Return}
	}
	return desired.Verdict{Do: desired.Goto, Chain: deny}
}

// key is the fields that a shape asks for, and the type of such keys.
func (s shape) key(v4 bool) ([]desired.Field, desired.SetType) {
	var fields []desired.Field
	if s.src {
		fields = append(fields, desired.SrcField(v4))
	}
	if s.dst {
		fields = append(fields, desired.DstField(v4))
	}
	if s.proto {
		fields = append(fields, desired.FieldProto)
	}
	if s.ports {
		fields = append(fields, desired.FieldDstPort)
	}
	var types []desired.KeyType
	for _, f := range fields {
		types = append(types, f.Type())
	}
	return fields, desired.NewSetType(false, types...)
}

func (b box) parts(s shape) []desired.Part {
	var out []desired.Part
	if s.src {
		out = append(out, desired.AddrPart(b.src))
	}
	if s.dst {
		out = append(out, desired.AddrPart(b.dst))
	}
	if s.proto {
		out = append(out, desired.ProtoPart(b.proto))
	}
	if s.ports {
		out = append(out, desired.PortPart(b.ports.From, b.ports.To))
	}
	return out
}

// String is for the name of a map.
func (s shape) String() string {
	var words []string
	for _, w := range []struct {
		on   bool
		name string
	}{{s.src, "saddr"}, {s.dst, "daddr"}, {s.proto, "proto"}, {s.ports, "dport"}} {
		if w.on {
			words = append(words, w.name)
		}
	}
	return strings.Join(words, ".")
}
