package render

import (
	"cmp"
	"slices"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

// ports asks candidates by protocol and port, where there are many of them and that tells them apart.
func (b *builder) ports(list []candidate, end *ending) body {
	all := pieces(list)
	if len(list) < b.r.opts.IndexFrom {
		return b.leaf(all, end)
	}
	s := splitPorts(list)
	leaves, rules := 1, len(s.rest)
	for _, p := range s.protos {
		leaves, rules = leaves+1+len(p.ranges), rules+len(p.rest)
		for _, r := range p.ranges {
			rules += len(r.list)
		}
	}
	if len(s.protos) == 0 || rules > maxLeafRules || rules/leaves > len(list)/2 {
		return b.leaf(all, end)
	}
	typ := desired.NewSetType(false, desired.TypeProto)
	typ.Verdicts = true
	var elements []desired.Element
	for _, p := range s.protos {
		chain := b.protocol(p, end)
		elements = append(elements, typ.Element(desired.Verdict{Do: desired.Goto, Chain: chain}, desired.ProtoPart(p.proto)))
	}
	var out body
	out.lookup(b.contentMap("protos-", typ, elements), desired.FieldProto)
	rest := b.leaf(s.rest, end)
	for j := range rest.rules {
		out.put(rest.rules[j], rest.ids[j], rest.refs[j])
	}
	return out
}

// protocol adds the chain for packets of one protocol.
func (b *builder) protocol(p protoSplit, end *ending) string {
	var out body
	if len(p.ranges) > 0 {
		typ := desired.NewSetType(slices.ContainsFunc(p.ranges, func(r portSplit) bool { return r.from != r.to }), desired.TypePort)
		typ.Verdicts = true
		var elements []desired.Element
		for _, r := range p.ranges {
			leaf := b.leaf(r.list, end)
			chain := b.content("port-", leaf.rules, leaf.ids, leaf.refs)
			elements = append(elements, typ.Element(desired.Verdict{Do: desired.Goto, Chain: chain}, desired.PortPart(r.from, r.to)))
		}
		out.lookup(b.contentMap("ports-", typ, elements), desired.FieldDstPort)
	}
	rest := b.leaf(p.rest, end)
	for j := range rest.rules {
		out.put(rest.rules[j], rest.ids[j], rest.refs[j])
	}
	return b.content("proto-", out.rules, out.ids, out.refs)
}

func pieces(list []candidate) []*piece {
	out := make([]*piece, len(list))
	for i, c := range list {
		out[i] = c.p
	}
	return out
}

// portsSplit is candidates by protocol; rest is for the protocols that are not listed.
type portsSplit struct {
	protos []protoSplit
	rest   []*piece
}

// protoSplit is the candidates of one protocol by port; rest is for the other ports.
type protoSplit struct {
	proto  uint8
	ranges []portSplit
	rest   []*piece
}

type portSplit struct {
	from, to uint16
	list     []*piece
}

func splitPorts(list []candidate) portsSplit {
	var out portsSplit
	numbers := map[uint8]bool{}
	for _, c := range list {
		anyProto := false
		for _, r := range c.reach {
			anyProto = anyProto || r.protos == nil
			for _, n := range r.protos {
				numbers[n] = true
			}
		}
		if anyProto {
			out.rest = append(out.rest, c.p)
		}
	}
	for n := range numbers {
		out.protos = append(out.protos, splitProto(list, n))
	}
	slices.SortFunc(out.protos, func(a, b protoSplit) int { return cmp.Compare(a.proto, b.proto) })
	return out
}

func splitProto(list []candidate, n uint8) protoSplit {
	out := protoSplit{proto: n}
	var some []candidate
	var anyPort []int
	var spans []span[uint16, int]
	for _, c := range list {
		every, here := false, false
		for _, r := range c.reach {
			if r.protos != nil && !slices.Contains(r.protos, n) {
				continue
			}
			here = true
			every = every || r.ports == nil
			for _, p := range r.ports {
				spans = append(spans, span[uint16, int]{p.From, p.To, len(some)})
			}
		}
		switch {
		case every:
			anyPort = append(anyPort, len(some))
			out.rest = append(out.rest, c.p)
		case !here:
			continue
		}
		some = append(some, c)
	}
	if !policy.HasPorts(n) {
		return out // no rule about ports is about this protocol
	}
	next := func(p uint16) uint16 { return p + 1 }
	prev := func(p uint16) uint16 { return p - 1 }
	sweep(spans, cmp.Compare[uint16], next, prev, func(from, to uint16, what []int) {
		who := slices.Concat(anyPort, what)
		slices.Sort(who)
		leaf := portSplit{from: from, to: to}
		for _, i := range slices.Compact(who) {
			leaf.list = append(leaf.list, some[i].p)
		}
		out.ranges = append(out.ranges, leaf)
	})
	return out
}
