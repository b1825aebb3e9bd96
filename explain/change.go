package explain

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/manekinet/maneki/policy"
)

// Change is one change that would turn an answer. It was tried: with it, the
// same evaluation gives the other answer.
type Change struct {
	Text string
	Cost int // how much is changed, for comparison only
}

// candidate is a change to try.
type candidate struct {
	Change
	node  string
	apply func(*policy.State) *policy.State // nil: the packet changes
	pack  func(policy.Packet) policy.Packet
}

// Costs: a label or a port is easier to change than what a policy says.
const (
	costPort   = 10
	costLabel  = 10
	costRemove = 20
	costNets   = 20
	costAdd    = 25
	costOther  = 30
)

// maxCandidates bounds the search; beyond it, the cheapest found counts.
const maxCandidates = 4096

// smallest looks for the cheapest change that turns the answer.
func smallest(n Network, a Answer) *Change {
	var list []candidate
	for i := range a.Stages {
		st := &a.Stages[i]
		if st.Trace == nil || st.Allowed != a.Allowed {
			continue
		}
		list = append(list, candidates(n.Hosts[st.Node], st)...)
	}
	slices.SortStableFunc(list, func(x, y candidate) int { return x.Cost - y.Cost })
	if len(list) > maxCandidates {
		list = list[:maxCandidates]
	}
	for _, c := range list {
		if turns(n, a, c) {
			return &c.Change
		}
	}
	return nil
}

// turns tries a candidate.
func turns(n Network, a Answer, c candidate) bool {
	p := a.Packet
	if c.pack != nil {
		p = c.pack(p)
	}
	if c.apply != nil {
		changed := n
		changed.Hosts = maps.Clone(n.Hosts)
		changed.Hosts[c.node] = c.apply(n.Hosts[c.node])
		n = changed
	}
	b, err := follow(n, a.From, a.To, p)
	return err == nil && b.Allowed != a.Allowed
}

// candidates are the changes that one stage suggests.
func candidates(s *policy.State, st *Stage) []candidate {
	t := st.Trace
	want := policy.Deny // an action that would turn it
	if !st.Allowed {
		want = policy.Allow
	}
	var out []candidate
	for _, step := range t.Steps {
		if step.Rule == nil || step.Staged || step.Rule.Do != want || len(step.Misses) == 0 {
			continue
		}
		if c, ok := meet(s, st, step); ok {
			out = append(out, c)
		}
	}
	out = append(out, without(s, st)...)
	if t.Verdict.Reason == policy.ByTierEnd {
		out = append(out, addition(s, st)...)
	}
	return out
}

// meet makes a rule match: the ports, labels and nets that it misses are given.
func meet(s *policy.State, st *Stage, step policy.Step) (candidate, bool) {
	r := step.Rule
	c := candidate{node: st.Node}
	next := *r
	var words []string
	for _, m := range step.Misses {
		word, cost, ok := remedy(s, &next, r, m, st.Packet)
		if !ok {
			return candidate{}, false
		}
		words = append(words, word)
		c.Cost += cost
	}
	c.Text = fmt.Sprintf("rule %d of %s (%s) would match if %s", r.Index+1, step.Policy, r.Text, join(words))
	c.apply = func(s *policy.State) *policy.State { return withRule(s, step.Policy, st.Trace.Direction, r, &next) }
	return c, true
}

func join(words []string) string {
	out := ""
	for i, w := range words {
		switch {
		case i > 0 && i == len(words)-1:
			out += " and "
		case i > 0:
			out += ", "
		}
		out += w
	}
	return out
}

// remedy says what would meet a criterion, and loosens it in next for the trial.
func remedy(s *policy.State, next, r *policy.Rule, m policy.Mismatch, p policy.Packet) (text string, cost int, ok bool) {
	switch m.What {
	case policy.CriterionSource:
		return loosen(s, &next.Src, r.Src, p.Src, "source")
	case policy.CriterionDestination:
		return loosen(s, &next.Dst, r.Dst, p.Dst, "destination")
	case policy.CriterionSourcePort:
		next.Src.AnyPort, next.Src.NotPorts, next.Src.NotNamed = true, nil, nil
		return "it held for source port " + fmt.Sprint(p.SrcPort), costPort, true
	case policy.CriterionDestinationPort:
		next.Dst.AnyPort, next.Dst.NotPorts, next.Dst.NotNamed = true, nil, nil
		return "it held for port " + fmt.Sprint(p.DstPort), costPort, true
	case policy.CriterionProtocol:
		next.Protocol, next.NotProtocol = 0, 0
		return "it held for " + policy.ProtocolName(p.Protocol), costOther, true
	case policy.CriterionICMP:
		next.ICMP, next.NotICMP = nil, nil
		return fmt.Sprintf("it held for ICMP type %d", p.Type), costOther, true
	}
	return "", 0, false // a rule of the other family
}

// loosen drops what an end does not meet. It says the first thing; when several
// are wrong, each costs.
func loosen(s *policy.State, next *policy.Entity, e policy.Entity, a netip.Addr, end string) (string, int, bool) {
	one := *next
	one.Nets, one.NotNets, one.Set, one.NotSet, one.Service = nil, nil, "", "", ""
	var words []string
	cost := 0
	within := func(p netip.Prefix) bool { return p.Contains(a) }
	in := func(id policy.SetID) bool { set := s.Sets[id]; return set != nil && set.Members.Contains(a, 0, 0) }
	add := func(c int, format string, args ...any) {
		words = append(words, fmt.Sprintf(format, args...))
		cost += c
	}
	if e.Set != "" && !in(e.Set) {
		add(costLabel, "the %s were selected by %s", end, s.Describe(e.Set))
	}
	if e.NotSet != "" && in(e.NotSet) {
		add(costLabel, "the %s were not selected by %s", end, s.Describe(e.NotSet))
	}
	if e.Nets != nil && !slices.ContainsFunc(e.Nets, within) {
		add(costNets, "%s were among its %s nets", a, end)
	}
	if slices.ContainsFunc(e.NotNets, within) {
		add(costNets, "%s were not in the nets that it leaves out", a)
	}
	if e.Service != "" && len(words) == 0 {
		add(costOther, "the %s were an endpoint of %s", end, s.Describe(e.Service))
	}
	*next = one
	return join(words), cost, len(words) > 0
}

// without takes the rule or the broken policy away that decided.
func without(s *policy.State, st *Stage) []candidate {
	v := st.Trace.Verdict
	switch v.Reason {
	case policy.ByRule:
		var r *policy.Rule
		for _, step := range st.Trace.Steps {
			if step.Policy == v.Policy && step.Rule != nil && step.Rule.Index == v.Rule && len(step.Misses) == 0 {
				r = step.Rule
			}
		}
		if r == nil {
			return nil
		}
		c := candidate{node: st.Node, Change: Change{Cost: costRemove, Text: fmt.Sprintf("without rule %d of %s (%s)", v.Rule+1, v.Policy, r.Text)}}
		c.apply = func(s *policy.State) *policy.State { return withRule(s, v.Policy, st.Trace.Direction, r, nil) }
		return []candidate{c}
	case policy.ByBrokenPolicy:
		c := candidate{node: st.Node, Change: Change{Cost: costRemove, Text: fmt.Sprintf("without %s", v.Policy)}}
		c.apply = func(s *policy.State) *policy.State {
			return edit(s, v.Policy, func(p *policy.Policy) { p.Broken = "" })
		}
		return []candidate{c}
	}
	return nil
}

// addition is a rule at the end of the last policy of the tier that ended.
func addition(s *policy.State, st *Stage) []candidate {
	v := st.Trace.Verdict
	var last policy.ID
	for _, t := range st.Trace.Endpoint.At(st.Trace.Place).In(st.Trace.Direction) {
		if t.Name != v.Tier {
			continue
		}
		for _, id := range t.Policies {
			if p := s.Policies[id]; p != nil && !p.Staged {
				last = id
			}
		}
	}
	if last == (policy.ID{}) {
		return nil
	}
	what := "allow " + policy.ProtocolName(st.Packet.Protocol)
	if policy.HasPorts(st.Packet.Protocol) {
		what += fmt.Sprintf(" to port %d", st.Packet.DstPort)
	}
	if st.Trace.Direction == policy.Ingress {
		what += fmt.Sprintf(" from %s", st.Packet.Src)
	} else {
		what += fmt.Sprintf(" to %s", st.Packet.Dst)
	}
	r := policy.Rule{Do: policy.Allow, Src: policy.Entity{AnyPort: true}, Dst: policy.Entity{AnyPort: true}, Text: what}
	c := candidate{node: st.Node, Change: Change{Cost: costAdd, Text: fmt.Sprintf("with a rule `%s` in %s", what, last)}}
	c.apply = func(s *policy.State) *policy.State {
		return edit(s, last, func(p *policy.Policy) {
			r.Index = len(p.Rules(st.Trace.Direction))
			setRules(p, st.Trace.Direction, append(slices.Clone(p.Rules(st.Trace.Direction)), r))
		})
	}
	return []candidate{c}
}

// withRule returns a state in which a rule is another one, or gone.
func withRule(s *policy.State, id policy.ID, d policy.Direction, old, next *policy.Rule) *policy.State {
	return edit(s, id, func(p *policy.Policy) {
		var rules []policy.Rule
		for i := range p.Rules(d) {
			r := p.Rules(d)[i]
			switch {
			case r.Index != old.Index || r.Text != old.Text || r.Family != old.Family:
				rules = append(rules, r)
			case next != nil:
				rules = append(rules, *next)
			}
		}
		setRules(p, d, rules)
	})
}

func setRules(p *policy.Policy, d policy.Direction, rules []policy.Rule) {
	if d == policy.Egress {
		p.Egress = rules
		return
	}
	p.Ingress = rules
}

// edit returns a state with one policy changed.
func edit(s *policy.State, id policy.ID, change func(*policy.Policy)) *policy.State {
	next := *s
	next.Policies = maps.Clone(s.Policies)
	p := *s.Policies[id]
	change(&p)
	next.Policies[id] = &p
	return &next
}
