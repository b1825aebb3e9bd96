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
	"cmp"
	"encoding/hex"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

// Options of a Renderer.
type Options struct {
	// ReportGroup is the nflog group that denied packets are reported to; 0 reports none.
	ReportGroup uint16
	// IndexFrom is how many policies or rules in a row are worth an index; 0 is the default. Tests ask for small ones.
	IndexFrom int
}

// Result is the packet filter of a State.
type Result struct {
	NFT desired.NFT
	// Labels say why a packet was denied: the label is the prefix of its report.
	Labels policy.Labels
	// Chains and Sets say which counters belong to which rule of a policy; see Hits.
	Chains map[string][]RuleRef
	Sets   map[string]CountedSet

	pieces map[policyKey]*piece
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
	lists    map[listKey]string // digests of the long lists of the last State
	peers    map[string]*peers  // indexes of the last State, by name
	settings settings
	objects  int    // of the last result
	now      uint64 // counts renderings
}

// settings are the options of a State that show in the rules of policies.
type settings struct {
	reject    bool
	logPrefix string
	logLimit  int
}

// New returns a Renderer that has rendered nothing yet.
func New(o Options) *Renderer {
	o.IndexFrom = cmp.Or(o.IndexFrom, indexFrom)
	return &Renderer{opts: o, policies: map[policyKey]*piece{}, sets: map[policy.SetID]*splitSet{}, denies: map[denyKey]chain{}, peers: map[string]*peers{}}
}

// maxDenies bounds the chains that are remembered of states that are gone.
const maxDenies = 4096

// splitSet is a set's members by family, and by whether they are one address: the kernel's sets have one kind.
type splitSet struct {
	all   *desired.Members
	parts [4]*desired.Members
	nets  int // members of either family that are more than one address
}

// Render renders a State.
func (r *Renderer) Render(s *policy.State) Result {
	now := settings{reject: s.Options.Reject, logPrefix: s.Options.LogPrefix, logLimit: s.Options.LogLimitPerSecond}
	if now != r.settings || len(r.denies) > maxDenies {
		r.policies, r.denies = map[policyKey]*piece{}, map[denyKey]chain{}
		r.settings = now
	}
	r.now++
	b := &builder{
		owners: map[tierKey]string{}, lists: map[listKey]string{},
		r: r, s: s, keep: make(map[policyKey]*piece, len(r.policies)), tiers: map[tierKey]string{}, used: map[policy.SetID]bool{},
		split: make(map[policy.SetID]*splitSet, len(s.Sets)),
		out:   Result{Labels: policy.Labels{}, Chains: map[string][]RuleRef{}, Sets: map[string]CountedSet{}},
	}
	b.out.NFT.Grow(r.objects)
	for id, set := range s.Sets {
		b.split[id] = r.sets[id].change(set.Members)
	}
	b.own()
	b.bases()
	b.addressSets()
	maps.DeleteFunc(r.peers, func(_ string, x *peers) bool { return x.used != r.now })
	r.policies, r.sets, r.objects = b.keep, b.split, len(b.out.NFT.Objects)
	r.lists = b.lists
	b.out.pieces = b.keep
	return b.out
}

// WithoutIndexes renders without indexes from now on; it reports whether there was any.
func (r *Renderer) WithoutIndexes() bool {
	had := len(r.peers) > 0
	r.opts.IndexFrom = math.MaxInt
	return had
}

// Owners are the policies that an object of the filter has been made for: those that deny if it cannot be had.
func (r Result) Owners(k desired.NFTKey) []policy.ID {
	var out []policy.ID
	for key, p := range r.pieces {
		if p.owns(k) && !slices.Contains(out, key.policy.ID) {
			out = append(out, key.policy.ID)
		}
	}
	return out
}

func (p *piece) owns(k desired.NFTKey) bool {
	if k.Kind == desired.NFTChain {
		return k.Name == p.name || slices.ContainsFunc(p.chains, func(c chain) bool { return c.name == k.Name })
	}
	return slices.ContainsFunc(p.sets, func(s constantSet) bool { return s.name == k.Name }) ||
		slices.ContainsFunc(p.uses, func(id policy.SetID) bool {
			return slices.ContainsFunc([]bool{true, false}, func(v4 bool) bool { return k.Name == setName(id, v4, "") || k.Name == setName(id, v4, "h") })
		})
}

// builder is one rendering under way.
type builder struct {
	r      *Renderer
	s      *policy.State
	out    Result
	keep   map[policyKey]*piece // what the next rendering may use again
	tiers  map[tierKey]string   // chains of tiers that are there already
	lists  map[listKey]string
	owners map[tierKey]string // names for the indexes of tiers
	used   map[policy.SetID]bool
	split  map[policy.SetID]*splitSet
}

// piece is the objects of one policy in one direction at one place.
type piece struct {
	rules  []desired.Rule // of the policy's own chain, or to be written into a tier's
	ids    []desired.RuleID
	id     desired.RulesID // of all
	refs   []RuleRef
	inline bool
	jump   desired.Rule // to the chain
	jumpID desired.RuleID
	name   string // of the chain
	// groups are its rules one by one, those that go together as one, each as a piece to be written into a chain.
	groups  []*piece
	reaches []reach // what its rules can match

	chains []chain
	sets   []constantSet
	uses   []policy.SetID
	shapes []shapeOfSet // of each
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
func (b *builder) add(p *piece, d policy.Direction) {
	switch {
	case p.inline || len(p.rules) == 0:
	case len(p.groups) < b.r.opts.IndexFrom:
		b.out.NFT.AddRules(p.name, desired.Hook{}, p.id, p.rules)
		b.out.Chains[p.name] = p.refs
	default:
		c := b.indexed(p.name, d, p.groups, nil)
		b.chain(p.name, c, desired.JoinRuleIDs(c.ids))
	}
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
		for _, v4 := range []bool{true, false} {
			for _, ref := range b.set(id, v4) {
				b.out.NFT.AddSet(ref.name, ref.typ, ref.members)
			}
		}
	}
}

// setRef is a set of the kernel for a policy's set: one of a family.
type setRef struct {
	name    string
	typ     desired.SetType
	members *desired.Members
}

// set finds the kernel's sets for a set of one family: single addresses are in one, prefixes in another, for a change of
// a set of prefixes costs as much as the set. A set of both kinds is asked for in both.
func (b *builder) set(id policy.SetID, v4 bool) []setRef {
	s := b.split[id]
	if kindOf(b.s, id) == policy.AddressPorts {
		return []setRef{{setName(id, v4, ""), desired.AddrPortSetType(v4), s.part(v4, false)}}
	}
	var out []setRef
	shape := s.shape()
	if shape != onlyNets {
		out = append(out, setRef{setName(id, v4, "h"), desired.HostSetType(v4), s.part(v4, false)})
	}
	if shape != onlyHosts {
		out = append(out, setRef{setName(id, v4, ""), desired.AddrSetType(v4), s.part(v4, true)})
	}
	return out
}

// shapeOfSet is which of a set's kinds of members there are, in either family.
type shapeOfSet uint8

const (
	onlyHosts shapeOfSet = iota // or none at all
	onlyNets
	hostsAndNets
)

func (s *splitSet) shape() shapeOfSet {
	switch {
	case s == nil || s.nets == 0:
		return onlyHosts
	case s.all.Len() == s.nets:
		return onlyNets
	}
	return hostsAndNets
}

// change brings the parts to new members, at the cost of what has changed.
func (s *splitSet) change(members *desired.Members) *splitSet {
	if s == nil {
		s = &splitSet{}
	}
	if s.all == members {
		return s
	}
	var adds, dels [4][]desired.Member
	add, del := members.Since(s.all)
	for _, m := range add {
		i := partOf(m)
		adds[i] = append(adds[i], m)
	}
	for _, m := range del {
		i := partOf(m)
		dels[i] = append(dels[i], m)
	}
	next := &splitSet{all: members}
	for i := range next.parts {
		next.parts[i] = s.parts[i].Change(adds[i], dels[i])
	}
	next.nets = next.parts[2].Len() + next.parts[3].Len()
	return next
}

// partOf is a member's part: IPv4 and IPv6 addresses, then prefixes.
func partOf(m desired.Member) int {
	i := family(m.Net.Addr())
	if !m.Net.IsSingleIP() {
		i += 2
	}
	return i
}

func (s *splitSet) part(v4, nets bool) *desired.Members {
	if s == nil {
		return nil
	}
	i := 0
	if !v4 {
		i++
	}
	if nets {
		i += 2
	}
	return s.parts[i]
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
