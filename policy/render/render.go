// Package render makes the packet filter that enforces a policy.State.
//
// The shape (docs/policy.md, "In the kernel"): base chains dispatch by interface
// with one verdict map; an endpoint's chain asks one chain for each tier, which
// jumps to the chains of its policies; an Allow accepts, which ends only the base
// chain, so that workload egress, workload ingress and host endpoints each have
// their own say without marks on the packet. A Pass must leave the tier from
// within a policy: policies with Pass are written into the tier's chain itself,
// where it is a return.
//
// Nothing here does I/O, and nothing here reads a clock.
package render

import (
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

// Options of a Renderer.
type Options struct {
	// ReportGroup is the nflog group that denied packets are reported to; 0 reports none.
	ReportGroup uint16
}

// Result is the packet filter of a State.
type Result struct {
	NFT desired.NFT
	// Labels say why a packet was denied: the label is the prefix of its report.
	Labels policy.Labels
	// Chains and Sets say which counters belong to which rule of a policy; see Hits.
	Chains map[string][]RuleRef
	Sets   map[string]CountedSet
}

// RuleRef is one rule of a policy in one direction. Rule is -1 where a counter belongs to none.
type RuleRef struct {
	Policy    policy.ID
	Direction policy.Direction
	Rule      int
}

// CountedSet is a set whose elements stand for rules.
type CountedSet struct {
	Type     desired.SetType
	Elements map[desired.Element]RuleRef
}

// Renderer remembers what it has rendered, so that a change costs what has
// changed. It belongs to one goroutine.
type Renderer struct {
	opts     Options
	policies map[policyKey]*piece // of the last State
	sets     map[policy.SetID]*splitSet
	denies   map[denyKey]chain
	settings settings
	objects  int // of the last result
}

// settings are the options of a State that show in the rules of policies.
type settings struct {
	reject    bool
	logPrefix string
	logLimit  int
}

// New returns a Renderer that has rendered nothing yet.
func New(o Options) *Renderer {
	return &Renderer{opts: o, policies: map[policyKey]*piece{}, sets: map[policy.SetID]*splitSet{}, denies: map[denyKey]chain{}}
}

// maxDenies bounds the chains that are remembered of states that are gone.
const maxDenies = 4096

// splitSet is a set's members by family: the kernel's sets have one.
type splitSet struct {
	all    *desired.Members
	v4, v6 *desired.Members
	nets   int // members of either family that are more than one address
}

// Render renders a State.
func (r *Renderer) Render(s *policy.State) Result {
	now := settings{reject: s.Options.Reject, logPrefix: s.Options.LogPrefix, logLimit: s.Options.LogLimitPerSecond}
	if now != r.settings || len(r.denies) > maxDenies {
		r.policies, r.denies = map[policyKey]*piece{}, map[denyKey]chain{}
		r.settings = now
	}
	b := &builder{
		r: r, s: s, keep: make(map[policyKey]*piece, len(r.policies)), tiers: map[tierKey]string{}, used: map[policy.SetID]bool{},
		split: make(map[policy.SetID]*splitSet, len(s.Sets)),
		out:   Result{Labels: policy.Labels{}, Chains: map[string][]RuleRef{}, Sets: map[string]CountedSet{}},
	}
	b.out.NFT.Grow(r.objects)
	for id, set := range s.Sets {
		b.split[id] = r.sets[id].change(set.Members)
	}
	b.bases()
	b.addressSets()
	r.policies, r.sets, r.objects = b.keep, b.split, len(b.out.NFT.Objects)
	return b.out
}

// builder is one rendering under way.
type builder struct {
	r     *Renderer
	s     *policy.State
	out   Result
	keep  map[policyKey]*piece // what the next rendering may use again
	tiers map[tierKey]string   // chains of tiers that are there already
	used  map[policy.SetID]bool
	split map[policy.SetID]*splitSet
}

// piece is the objects of one policy in one direction at one place.
type piece struct {
	rules  []desired.Rule // of the policy's own chain, or to be written into a tier's
	ids    []desired.RuleID
	refs   []RuleRef
	inline bool
	jump   desired.Rule // to the chain
	jumpID desired.RuleID
	name   string // of the chain

	chains []chain
	sets   []constantSet
	uses   []policy.SetID
	hosts  []bool // which of them were sets of single addresses
	labels policy.Labels
}

// chain is a chain that goes with a piece.
type chain struct {
	name  string
	rules []desired.Rule
	id    desired.RulesID
}

// constantSet is a set that is part of the rules: lists of nets and ports, and rules folded into a map.
type constantSet struct {
	name     string
	typ      desired.SetType
	elements *desired.Elements
	members  *desired.Members
	refs     map[desired.Element]RuleRef
}

// add puts a piece's objects into the result.
func (b *builder) add(p *piece) {
	for _, c := range p.chains {
		b.out.NFT.AddRules(c.name, desired.Hook{}, c.id, c.rules)
	}
	for _, s := range p.sets {
		if s.typ.OfMembers() {
			b.out.NFT.AddSet(s.name, s.typ, s.members)
			continue
		}
		b.out.NFT.AddElements(s.name, s.typ, s.elements)
		if s.refs != nil {
			b.out.Sets[s.name] = CountedSet{Type: s.typ, Elements: s.refs}
		}
	}
	for _, id := range p.uses {
		b.used[id] = true
	}
	maps.Copy(b.out.Labels, p.labels)
}

// addressSets adds the sets that rules ask, both families of each.
func (b *builder) addressSets() {
	for id := range b.used {
		split := b.split[id]
		for _, v4 := range []bool{true, false} {
			ref := b.set(id, v4)
			b.out.NFT.AddSet(ref.name, ref.typ, split.family(v4))
		}
	}
}

// setRef is a policy's set of one family as the kernel has it.
type setRef struct {
	name string
	typ  desired.SetType
}

// set finds the kernel's set. Its type shows in its name: a set that is given its
// first prefix becomes another set.
func (b *builder) set(id policy.SetID, v4 bool) setRef {
	switch {
	case kindOf(b.s, id) == policy.AddressPorts:
		return setRef{setName(id, v4, ""), desired.AddrPortSetType(v4)}
	case b.split[id].hosts():
		return setRef{setName(id, v4, "h"), desired.HostSetType(v4)}
	}
	return setRef{setName(id, v4, ""), desired.AddrSetType(v4)}
}

// hosts reports whether the set is kept as one of single addresses.
func (s *splitSet) hosts() bool { return s == nil || s.nets == 0 }

// change brings the families to new members, at the cost of what has changed.
func (s *splitSet) change(members *desired.Members) *splitSet {
	if s == nil {
		s = &splitSet{}
	}
	if s.all == members {
		return s
	}
	var adds, dels [2][]desired.Member
	add, del := members.Since(s.all)
	sort := func(list []desired.Member, into *[2][]desired.Member) {
		for _, m := range list {
			i := 0
			if m.Net.Addr().Is6() {
				i = 1
			}
			into[i] = append(into[i], m)
		}
	}
	sort(add, &adds)
	sort(del, &dels)
	wide := func(list []desired.Member) (n int) {
		for _, m := range list {
			if !m.Net.IsSingleIP() {
				n++
			}
		}
		return n
	}
	return &splitSet{nets: s.nets + wide(add) - wide(del), all: members, v4: s.v4.Change(adds[0], dels[0]), v6: s.v6.Change(adds[1], dels[1])}
}

func (s *splitSet) family(v4 bool) *desired.Members {
	if s == nil {
		return nil
	}
	if v4 {
		return s.v4
	}
	return s.v6
}

// setName is the kernel's name of a policy's set of one family.
func setName(id policy.SetID, v4 bool, suffix string) string {
	family := "6"
	if v4 {
		family = "4"
	}
	kind, rest, _ := strings.Cut(string(id), ":")
	return safeName(kind+family+suffix+"-", rest)
}

// maxName keeps names readable; nft(8) allows 128 characters, the kernel 255.
const maxName = 100

// safeName is a name that nft(8) can read back: what it cannot, and what is too
// long, becomes a hash.
func safeName(prefix, name string) string {
	ok := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./", r)
	}
	if name != "" && len(name) <= maxName && !strings.ContainsFunc(name, func(r rune) bool { return !ok(r) }) {
		return prefix + name
	}
	return prefix + "_" + hash(name)
}

// hash is 96 bits, in characters that every name may have.
func hash(s string) string {
	id := desired.NewRulesID([]desired.Rule{{Chain: s, Do: desired.Jump}})
	return hex.EncodeToString(id.Sum[:12])
}

// content adds a chain named by its content, which equal ones share, and returns
// its name.
func (b *builder) content(prefix string, rules []desired.Rule, ids []desired.RuleID, refs []RuleRef) string {
	if ids == nil {
		for _, r := range rules {
			ids = append(ids, r.ID())
		}
	}
	id := desired.JoinRuleIDs(ids)
	name := prefix + hex.EncodeToString(id.Sum[:12])
	b.out.NFT.AddRules(name, desired.Hook{}, id, rules)
	if slices.ContainsFunc(refs, func(r RuleRef) bool { return r.Rule >= 0 }) {
		b.out.Chains[name] = refs
	}
	return name
}
