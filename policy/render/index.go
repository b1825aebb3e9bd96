package render

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

const (
	// indexFrom is how many policies or rules in a row are worth an index: fewer are asked one after the other.
	indexFrom = 16
	// maxIndexRules bounds the rules in the chains of one index. Beyond it, where many rules ask for the same peers in ever
	// other combinations, there is none.
	maxIndexRules = 1 << 16
	// maxLeafRules bounds the rules in the chains by protocol and port below one class.
	maxLeafRules = 1 << 14
)

// body is a chain in the making.
type body struct {
	rules []desired.Rule
	ids   []desired.RuleID
	refs  []RuleRef
}

func (c *body) put(r desired.Rule, id desired.RuleID, ref RuleRef) {
	c.rules, c.ids, c.refs = append(c.rules, r), append(c.ids, id), append(c.refs, ref)
}

func (c *body) lookup(set string, key desired.Field) {
	r := desired.Rule{Do: desired.VMap, Map: set, Key: []desired.Field{key}}
	c.put(r, r.ID(), RuleRef{Rule: -1})
}

// ending is the rule at the end of every chain of an index; nil: back to who asked.
type ending struct {
	rule desired.Rule
	id   desired.RuleID
}

// index asks a list of policies, or of rules, so that a packet meets those only that can match it: by the other end's
// address, then by protocol and port. What it meets stands in the order of the list, as it is, so that verdicts, counters
// and reports are those of the list. name tells indexes apart and outlives a change of the list.
type index struct {
	b    *builder
	x    *peers
	d    policy.Direction
	list []*piece
	end  *ending

	by      map[atomID][]int // who asks for an atom
	anybody []int            // who asks for everybody, or for what x does not tell apart
}

// indexed is the chain that asks the list.
func (b *builder) indexed(name string, d policy.Direction, list []*piece, end *ending) body {
	if len(list) < b.r.opts.IndexFrom {
		return b.leaf(list, end)
	}
	i := &index{b: b, d: d, list: list, end: end}
	if !i.prepare(name) {
		return b.ports(candidatesOf(list), end)
	}
	return i.emit()
}

// prepare brings the index of peers up to date; false where it is not worth one.
func (i *index) prepare(name string) bool {
	want := map[atomID]*desired.Members{}
	bounded := 0
	for _, p := range i.list {
		if !slices.ContainsFunc(p.reaches, reach.everybody) {
			bounded++
		}
		for _, r := range p.reaches {
			for _, id := range r.atoms {
				want[id] = nil
			}
		}
	}
	if 2*bounded < i.b.r.opts.IndexFrom {
		return false
	}
	i.b.bound(want)
	i.x = i.b.r.peers[name]
	if i.x == nil {
		i.x = newPeers(name)
	}
	i.x.used = i.b.r.now
	i.b.r.peers[name] = i.x
	i.x.update(i.b.r.now, want)
	i.by = make(map[atomID][]int, len(want))
	for n, p := range i.list {
		i.post(n, p, want)
	}
	return true
}

// bound fills in the members of the atoms, and takes out those that are too large for an index.
func (b *builder) bound(want map[atomID]*desired.Members) {
	type size struct {
		id          atomID
		hosts, nets int
	}
	var sizes []size
	hosts, nets := 0, 0
	for id := range want {
		members, wide := b.members(id)
		s := size{id: id, nets: wide, hosts: members.Len() - wide}
		if s.hosts > maxAtomHosts || s.nets > maxAtomNets {
			delete(want, id)
			continue
		}
		want[id] = members
		hosts, nets = hosts+s.hosts, nets+s.nets
		sizes = append(sizes, s)
	}
	if hosts <= maxHosts && nets <= maxNets {
		return
	}
	slices.SortFunc(sizes, func(x, y size) int {
		return cmp.Or(cmp.Compare(y.hosts+y.nets, x.hosts+x.nets), cmp.Compare(x.id, y.id))
	})
	for _, s := range sizes { // the largest first
		if hosts <= maxHosts && nets <= maxNets {
			return
		}
		hosts, nets = hosts-s.hosts, nets-s.nets
		delete(want, s.id)
	}
}

// members of an atom, and how many of them are prefixes.
func (b *builder) members(id atomID) (*desired.Members, int) {
	if net, ok := id.prefix(); ok {
		wide := 0
		if !net.IsSingleIP() {
			wide = 1
		}
		return desired.NewMembers(desired.Member{Net: net}), wide
	}
	s := b.split[policy.SetID(id)]
	if s == nil {
		return nil, 0
	}
	return s.all, s.nets
}

// post notes for whom a policy asks.
func (i *index) post(n int, p *piece, known map[atomID]*desired.Members) {
	for _, r := range p.reaches {
		if i.everybody(r) {
			i.anybody = append(i.anybody, n)
			break
		}
	}
	for _, r := range p.reaches {
		for _, id := range r.atoms {
			if _, ok := known[id]; !ok {
				continue
			}
			if list := i.by[id]; len(list) == 0 || list[len(list)-1] != n {
				i.by[id] = append(list, n)
			}
		}
	}
}

// everybody reports whether a rule may match whatever the class of its peer is.
func (i *index) everybody(r reach) bool {
	return r.atoms == nil || slices.ContainsFunc(r.atoms, func(id atomID) bool { return i.x.atoms[id] == nil })
}

// candidate is a policy or rule with those of its reaches that the packets here may be in.
type candidate struct {
	p     *piece
	reach []reach
}

func candidatesOf(list []*piece) []candidate {
	out := make([]candidate, len(list))
	for n, p := range list {
		out[n] = candidate{p, p.reaches}
	}
	return out
}

// of lists who may match packets of a class.
func (i *index) of(c *class) []int {
	out := i.anybody
	for _, id := range c.atoms {
		if more := i.by[id]; len(more) > 0 {
			out = append(slices.Clip(out), more...)
		}
	}
	if len(out) == len(i.anybody) {
		return out
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// chain is the chain of the packets of a class that many may match.
func (i *index) chain(c *class, who []int) body {
	list := make([]candidate, len(who))
	for j, n := range who {
		list[j].p = i.list[n]
		for _, r := range i.list[n].reaches {
			if i.everybody(r) || slices.ContainsFunc(r.atoms, func(id atomID) bool { return slices.Contains(c.atoms, id) }) {
				list[j].reach = append(list[j].reach, r)
			}
		}
	}
	return i.b.ports(list, i.end)
}

// same reports whether two pieces are asked in the same way. A policy that has changed is jumped to as before.
func (p *piece) same(o *piece) bool {
	return p == o || !p.inline && !o.inline && p.jumpID == o.jumpID
}

// small is the chain of the packets of a class that few may match. It is remembered: few changes concern it.
func (i *index) small(c *class, who []int) {
	list := make([]*piece, len(who))
	for j, n := range who {
		list[j] = i.list[n]
	}
	end := desired.RuleID{}
	if i.end != nil {
		end = i.end.id
	}
	if c.known && c.end == end && slices.EqualFunc(c.list, list, (*piece).same) {
		return
	}
	c.known, c.end, c.list = true, end, list
	c.body = i.b.leaf(list, i.end)
	c.id = desired.JoinRuleIDs(c.body.ids)
}

// emit adds the maps and the chains of the classes, and returns the chain that asks them.
func (i *index) emit() body {
	who, total := make(map[*class][]int, len(i.x.classes)), 0
	for _, c := range i.x.classes {
		who[c] = i.of(c)
		total += len(who[c])
	}
	if total > maxIndexRules {
		return i.b.ports(candidatesOf(i.list), i.end)
	}
	for c, list := range who {
		if len(list) >= i.b.r.opts.IndexFrom {
			body := i.chain(c, list)
			i.b.chain(c.chain, body, desired.JoinRuleIDs(body.ids))
			continue
		}
		i.small(c, list)
		i.b.chain(c.chain, c.body, c.id)
	}
	var out body
	for n, v4 := range []bool{true, false} {
		field := desired.SrcField(v4)
		if i.d == policy.Egress {
			field = desired.DstField(v4)
		}
		if e := i.x.elements[n]; e.Len() > 0 {
			name := fmt.Sprintf("hosts%s-%s", familyName(v4), hash(i.x.name))
			i.b.out.NFT.AddElements(name, hostsType(v4), e)
			out.lookup(name, field)
		}
		if len(i.x.segments[n]) > 0 {
			out.lookup(i.segments(n, v4), field)
		}
	}
	none := &class{}
	rest := i.chain(none, i.of(none))
	for j := range rest.rules {
		out.put(rest.rules[j], rest.ids[j], rest.refs[j])
	}
	return out
}

// segments adds the map of the prefixes of a family. It is named by its content: a change is another map, for in a map of
// ranges not all elements change at one moment (nft_set_rbtree.c, nft_set_pipapo.c).
func (i *index) segments(n int, v4 bool) string {
	typ := desired.AddrSetType(v4)
	typ.Verdicts = true
	var list []desired.Element
	for _, s := range i.x.segments[n] {
		list = append(list, typ.Element(desired.Verdict{Do: desired.Goto, Chain: s.class.chain}, desired.AddrRangePart(s.from, s.to)))
	}
	return i.b.contentMap("nets"+familyName(v4)+"-", typ, list)
}

func familyName(v4 bool) string {
	if v4 {
		return "4"
	}
	return "6"
}

// contentMap adds a map named by its content.
func (b *builder) contentMap(prefix string, typ desired.SetType, list []desired.Element) string {
	e := desired.NewElements(list...)
	name := prefix + hash(fmt.Sprint(e.Digest(), typ))
	b.out.NFT.AddElements(name, typ, e)
	return name
}

// chain adds a chain by its name.
func (b *builder) chain(name string, c body, id desired.RulesID) {
	b.out.NFT.AddRules(name, desired.Hook{}, id, c.rules)
	if slices.ContainsFunc(c.refs, func(r RuleRef) bool { return r.Rule >= 0 }) {
		b.out.Chains[name] = c.refs
	}
}

// leaf asks all of a list.
func (b *builder) leaf(list []*piece, end *ending) body {
	c := tierChain{b: b, long: len(list) >= b.r.opts.IndexFrom}
	for _, p := range list {
		c.add(p)
	}
	c.closeSegment()
	if end != nil {
		c.put(end.rule, end.id, RuleRef{Rule: -1})
	}
	return c.body
}
