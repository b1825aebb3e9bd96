package render

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

// policyKey is a policy as it is rendered: its pointer changes with its content.
type policyKey struct {
	policy *policy.Policy
	d      policy.Direction
	how    variant
}

// variant is what an Allow does. It depends on the place; the forward place is
// like the normal one.
type variant uint8

const (
	tracked   variant = iota // accept
	preDNAT                  // accept, and pass host endpoints later on
	untracked                // the same, without connection tracking
)

func variantOf(p policy.Place) variant {
	switch p {
	case policy.PlaceUntracked:
		return untracked
	case policy.PlacePreDNAT:
		return preDNAT
	}
	return tracked
}

func (v variant) place() policy.Place {
	return [...]policy.Place{policy.PlaceNormal, policy.PlacePreDNAT, policy.PlaceUntracked}[v]
}

// prefix of chains.
func (v variant) prefix() string { return [...]string{"p", "d", "u"}[v] }

// acceptedMark is the bit of a packet's mark that says that an untracked or
// preDNAT policy has allowed it: host endpoints ask no more. It is the first of
// the bits that Calico uses by default (iptablesMarkMask 0xffff0000).
const acceptedMark = 0x10000

// allowChain is the chain that allows in a variant, where accept alone does not.
func (v variant) allowChain() (string, []desired.Rule) {
	accepted := desired.Rule{Mark: desired.Mark{Set: acceptedMark}, Do: desired.Accept}
	switch v {
	case preDNAT:
		return "allow-prednat", []desired.Rule{accepted}
	case untracked:
		return "allow-untracked", []desired.Rule{{Do: desired.Notrack}, accepted}
	}
	return "", nil
}

// policy renders one policy, or finds it rendered.
func (b *builder) policy(p *policy.Policy, d policy.Direction, how variant) *piece {
	key := policyKey{p, d, how}
	if done := b.keep[key]; done != nil {
		return done
	}
	out := b.r.policies[key]
	if out == nil || !b.valid(out) {
		out = b.r.render(b, p, d, how)
	}
	b.keep[key] = out
	b.add(out, d)
	return out
}

// valid reports whether the sets that a piece asks still have the names by which
// it asks them.
func (b *builder) valid(p *piece) bool {
	for i, id := range p.uses {
		if b.split[id].shape() != p.shapes[i] {
			return false
		}
	}
	return true
}

// compiler renders the rules of one policy.
type compiler struct {
	r   *Renderer
	b   *builder
	p   *policy.Policy
	d   policy.Direction
	how variant
	out *piece
	set map[string]bool // constant sets that are in out already
}

func (r *Renderer) render(b *builder, p *policy.Policy, d policy.Direction, how variant) *piece {
	c := &compiler{r: r, b: b, p: p, d: d, how: how, out: &piece{labels: policy.Labels{}}, set: map[string]bool{}}
	rules := p.Rules(d)
	c.out.inline = slices.ContainsFunc(rules, func(r policy.Rule) bool { return r.Do == policy.Pass })
	c.out.name = safeName(how.prefix()+map[policy.Direction]string{policy.Ingress: "i-", policy.Egress: "o-"}[d], policyName(p.ID))
	if p.Broken != "" {
		c.emit(-1, desired.Rule{Do: desired.Goto, Chain: c.deny(policy.Label{Verdict: policy.Verdict{Reason: policy.ByBrokenPolicy, Rule: -1}})})
	}
	c.group(reach{})
	c.out.reaches = reachesOf(rules, d)
	if p.Broken != "" {
		c.out.reaches = []reach{{}}
	}
	for len(rules) > 0 {
		n := c.fold(rules)
		if n == 0 {
			c.rule(&rules[0])
			n = 1
		}
		c.group(reachesOf(rules[:n], d)...)
		rules = rules[n:]
	}
	if !c.out.inline && len(c.out.rules) > 0 {
		c.out.id = desired.JoinRuleIDs(c.out.ids)
		c.out.jump = desired.Rule{Do: desired.Jump, Chain: c.out.name}
		c.out.jumpID = c.out.jump.ID()
	}
	return c.out
}

// group makes a group of the rules since the last one, which match what is in one of the reaches.
func (c *compiler) group(reaches ...reach) {
	from := len(c.out.ids)
	for _, r := range c.out.rules[from:] {
		c.out.ids = append(c.out.ids, r.ID())
	}
	if to := len(c.out.ids); to > from {
		g := &piece{inline: true, rules: c.out.rules[from:to:to], ids: c.out.ids[from:to:to], refs: c.out.refs[from:to:to], reaches: reaches}
		c.out.groups = append(c.out.groups, g)
	}
}

// policyName is "gnp/name" or "np/namespace/name", as Calico abbreviates
// (spec/calico.md §5.4).
func policyName(id policy.ID) string {
	short := map[string]string{
		"GlobalNetworkPolicy": "gnp", "NetworkPolicy": "np", "KubernetesNetworkPolicy": "knp", "KubernetesClusterNetworkPolicy": "kcnp", "Profile": "pr",
	}
	kind := cmp.Or(short[id.Kind], id.Kind)
	if id.Namespace == "" {
		return kind + "/" + id.Name
	}
	return kind + "/" + id.Namespace + "/" + id.Name
}

func (c *compiler) emit(index int, r desired.Rule) {
	c.out.rules = append(c.out.rules, r)
	c.out.refs = append(c.out.refs, RuleRef{Policy: c.p.ID, Direction: c.d, Rule: index})
}

// deny adds the chain of a reason and returns its name.
func (c *compiler) deny(l policy.Label) string {
	l.Verdict.Direction, l.Verdict.Tier, l.Verdict.Policy, l.Place = c.d, c.p.Tier, c.p.ID, c.how.place()
	made, label := c.r.deny(l)
	c.out.chains = append(c.out.chains, made)
	c.out.labels[label] = l
	return made.name
}

// constant adds a set of the rules' own, once.
func (c *compiler) constant(s constantSet) string {
	if !c.set[s.name] {
		c.set[s.name] = true
		c.out.sets = append(c.out.sets, s)
	}
	return s.name
}

// do is what a rule does when it matches.
func (c *compiler) do(r *policy.Rule) desired.Rule {
	switch r.Do {
	case policy.Allow:
		name, rules := c.how.allowChain()
		if name == "" {
			return desired.Rule{Counter: true, Do: desired.Accept}
		}
		c.out.chains = append(c.out.chains, newChain(name, rules))
		return desired.Rule{Counter: true, Do: desired.Goto, Chain: name}
	case policy.Pass:
		return desired.Rule{Counter: true, Do: desired.Return}
	case policy.Log:
		out := desired.Rule{Counter: true, Log: desired.Log{Kernel: true, Prefix: c.logPrefix()}}
		if n := c.r.settings.logLimit; n > 0 {
			out.Limit = desired.Limit{PerSecond: uint32(n), Burst: uint32(2 * n)}
		}
		return out
	}
	chain := c.deny(policy.Label{Verdict: policy.Verdict{Reason: policy.ByRule, Rule: r.Index}})
	return desired.Rule{Counter: true, Do: desired.Goto, Chain: chain}
}

// maxLogPrefix is what the kernel takes (NF_LOG_PREFIXLEN with its zero).
const maxLogPrefix = 127

// logPrefix replaces %t by the tier, %k by the kind, %n by the policy's name and
// %p by its name with its namespace.
func (c *compiler) logPrefix() string {
	kind, full, _ := strings.Cut(policyName(c.p.ID), "/")
	s := strings.NewReplacer("%t", c.p.Tier, "%k", kind, "%n", c.p.ID.Name, "%p", full).Replace(cmp.Or(c.r.settings.logPrefix, "calico-packet"))
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), maxLogPrefix-2)] + ": "
}

// rule renders one rule, once for each family where it asks for addresses, and
// once for each way in which its lists of ports can hold.
func (c *compiler) rule(r *policy.Rule) {
	var variants [][]desired.Match
	for _, f := range families(r) {
		variants = append(variants, c.matches(r, f)...)
	}
	if len(variants) == 0 {
		return
	}
	do := c.do(r)
	for _, m := range variants {
		do.Match = m
		c.emit(r.Index, do)
	}
}

// families are those a rule has to be rendered for; 0 is both at once.
func families(r *policy.Rule) []uint8 {
	if r.Family != 0 {
		return []uint8{r.Family}
	}
	if asksAddress(&r.Src) || asksAddress(&r.Dst) {
		return []uint8{4, 6}
	}
	return []uint8{0}
}

func asksAddress(e *policy.Entity) bool {
	return e.Nets != nil || len(e.NotNets) > 0 || e.Set != "" || e.NotSet != "" || e.Service != "" || len(e.Named) > 0 || len(e.NotNamed) > 0
}

func asksPorts(e *policy.Entity) bool {
	return !e.AnyPort || len(e.NotPorts) > 0 || len(e.NotNamed) > 0
}

// matches renders a rule's criteria in one family: every list is a way in which
// it can hold. None where it cannot.
func (c *compiler) matches(r *policy.Rule, family uint8) [][]desired.Match {
	var out [][]desired.Match
	for _, src := range c.addresses(&r.Src, family, true) {
		for _, dst := range c.addresses(&r.Dst, family, false) {
			base := slices.Concat(src, dst)
			if family != 0 && len(base) == 0 {
				base = []desired.Match{desired.Family(family)}
			}
			out = append(out, c.rest(r, family, base)...)
		}
	}
	return out
}

// rest is the criteria behind those of addresses.
func (c *compiler) rest(r *policy.Rule, family uint8, base []desired.Match) [][]desired.Match {
	var out [][]desired.Match
	for _, proto := range protocols(r) {
		withProto := slices.Clone(base)
		if proto != 0 {
			withProto = append(withProto, desired.Proto(proto))
		}
		if r.NotProtocol != 0 {
			withProto = append(withProto, desired.Proto(r.NotProtocol).Negate())
		}
		withProto = append(withProto, icmp(r)...)
		for _, s := range c.ports(&r.Src, family, true) {
			for _, d := range c.ports(&r.Dst, family, false) {
				out = append(out, slices.Concat(withProto, s, d))
			}
		}
	}
	return out
}

// protocols are those a rule has to be rendered for; 0 is any. Only some have
// ports: a rule that asks for ports is about these.
func protocols(r *policy.Rule) []uint8 {
	switch ports := asksPorts(&r.Src) || asksPorts(&r.Dst); {
	case !ports && r.Protocol == 0 && (r.ICMP != nil || r.NotICMP != nil):
		if r.Family == 6 {
			return []uint8{policy.ProtoICMPv6}
		}
		return []uint8{policy.ProtoICMP}
	case !ports:
		return []uint8{r.Protocol}
	case r.Protocol == 0:
		return []uint8{policy.ProtoTCP, policy.ProtoUDP, policy.ProtoSCTP}
	case policy.HasPorts(r.Protocol):
		return []uint8{r.Protocol}
	}
	return nil
}

func icmp(r *policy.Rule) []desired.Match {
	var out []desired.Match
	match := func(i *policy.ICMP) desired.Match {
		if i.Code == nil {
			return desired.ICMPType(i.Type, -1)
		}
		return desired.ICMPType(i.Type, int(*i.Code))
	}
	if r.ICMP != nil {
		out = append(out, match(r.ICMP))
	}
	if r.NotICMP != nil {
		out = append(out, match(r.NotICMP).Negate())
	}
	return out
}

// addresses renders what is asked of an address: every list is a way in which it can hold, one of them empty where
// nothing is asked.
func (c *compiler) addresses(e *policy.Entity, family uint8, source bool) [][]desired.Match {
	if family == 0 {
		return [][]desired.Match{nil}
	}
	v4 := family == 4
	field := desired.DstField(v4)
	if source {
		field = desired.SrcField(v4)
	}
	var out []desired.Match
	if e.Nets != nil {
		nets := ofFamily(e.Nets, v4)
		if len(nets) == 0 {
			return nil
		}
		out = append(out, c.nets(nets, field))
	}
	if nets := ofFamily(e.NotNets, v4); len(nets) > 0 {
		out = append(out, c.nets(nets, field).Negate())
	}
	if e.NotSet != "" {
		out = append(out, negate(c.inSet(e.NotSet, family, source))...)
	}
	ways := [][]desired.Match{out}
	for _, id := range []policy.SetID{e.Set, e.Service} {
		if id != "" {
			ways = product(ways, c.inSet(id, family, source))
		}
	}
	return ways
}

// product is every list with one more of the conditions.
func product(lists [][]desired.Match, more []desired.Match) [][]desired.Match {
	var out [][]desired.Match
	for _, list := range lists {
		for _, m := range more {
			out = append(out, append(slices.Clone(list), m))
		}
	}
	return out
}

// negate is none of the conditions.
func negate(list []desired.Match) []desired.Match {
	out := make([]desired.Match, len(list))
	for i, m := range list {
		out[i] = m.Negate()
	}
	return out
}

func ofFamily(nets []netip.Prefix, v4 bool) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(nets), func(n netip.Prefix) bool { return n.Addr().Is4() != v4 })
}

// nets matches a list of prefixes: by itself, or by a set.
func (c *compiler) nets(nets []netip.Prefix, field desired.Field) desired.Match {
	if len(nets) == 1 {
		return desired.Match{Kind: desired.MatchNet, Field: field, Net: nets[0].Masked()}
	}
	v4 := nets[0].Addr().Is4()
	union := desired.UnionOf(nets...)
	var text strings.Builder
	for _, n := range union {
		text.WriteString(n.String() + ",")
	}
	name := "nets6-"
	if v4 {
		name = "nets4-"
	}
	return desired.InSet(c.constant(constantSet{
		name: name + hash(text.String()), typ: desired.AddrSetType(v4), members: desired.NetMembers(union...),
	}), field)
}

// inSet matches a set of addresses, or of addresses with protocol and port: one of the conditions holds.
func (c *compiler) inSet(id policy.SetID, family uint8, source bool) []desired.Match {
	c.out.uses, c.out.shapes = append(c.out.uses, id), append(c.out.shapes, c.b.split[id].shape())
	v4 := family == 4
	addr, port := desired.DstField(v4), desired.FieldDstPort
	if source {
		addr, port = desired.SrcField(v4), desired.FieldSrcPort
	}
	var out []desired.Match
	for _, ref := range c.b.set(id, v4) {
		if len(ref.typ.Parts()) > 1 {
			out = append(out, desired.InSet(ref.name, addr, desired.FieldProto, port))
			continue
		}
		out = append(out, desired.InSet(ref.name, addr))
	}
	return out
}

// kindOf is a set's kind, which its name tells (policy.SetID).
func kindOf(s *policy.State, id policy.SetID) policy.SetKind {
	if set := s.Sets[id]; set != nil {
		return set.Kind
	}
	if strings.HasPrefix(string(id), "n:") || strings.HasPrefix(string(id), "v:") {
		return policy.AddressPorts
	}
	return policy.Addresses
}

// ports renders what is asked of a port: every list is a way in which it can
// hold, one of them empty where nothing is asked.
func (c *compiler) ports(e *policy.Entity, family uint8, source bool) [][]desired.Match {
	field := desired.FieldDstPort
	if source {
		field = desired.FieldSrcPort
	}
	var not []desired.Match
	if len(e.NotPorts) > 0 {
		not = append(not, c.portRanges(e.NotPorts, field).Negate())
	}
	for _, id := range e.NotNamed {
		not = append(not, negate(c.inSet(id, family, source))...)
	}
	if e.AnyPort {
		return [][]desired.Match{not}
	}
	var out [][]desired.Match
	if len(e.Ports) > 0 {
		out = append(out, append([]desired.Match{c.portRanges(e.Ports, field)}, not...))
	}
	for _, id := range e.Named {
		for _, m := range c.inSet(id, family, source) {
			out = append(out, append([]desired.Match{m}, not...))
		}
	}
	return out
}

// portRanges matches a list of ports: by itself, or by a set.
func (c *compiler) portRanges(list []policy.PortRange, field desired.Field) desired.Match {
	list = mergePorts(list)
	if len(list) == 1 {
		return desired.Match{Kind: desired.MatchPort, Field: field, From: int(list[0].From), To: int(list[0].To)}
	}
	typ := desired.NewSetType(true, desired.TypePort)
	var text strings.Builder
	var elements []desired.Element
	for _, r := range list {
		text.WriteString(r.String() + ",")
		elements = append(elements, typ.Element(desired.Verdict{}, desired.PortPart(r.From, r.To)))
	}
	return desired.InSet(c.constant(constantSet{name: "ports-" + hash(text.String()), typ: typ, elements: desired.NewElements(elements...)}), field)
}

// mergePorts is a list of ranges as the fewest that do not touch. A range whose
// end is before its beginning has no port.
func mergePorts(list []policy.PortRange) []policy.PortRange {
	sorted := slices.DeleteFunc(slices.Clone(list), func(r policy.PortRange) bool { return r.To < r.From })
	slices.SortFunc(sorted, func(a, b policy.PortRange) int { return cmp.Compare(a.From, b.From) })
	var out []policy.PortRange
	for _, r := range sorted {
		if n := len(out); n > 0 && int(r.From) <= int(out[n-1].To)+1 {
			out[n-1].To = max(out[n-1].To, r.To)
			continue
		}
		out = append(out, r)
	}
	return out
}
