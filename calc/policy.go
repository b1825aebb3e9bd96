package calc

import (
	"cmp"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/calc/index"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

// policies compiles network policy. It is kept up to date change by change: a
// policy is compiled when it changes and only while it selects an endpoint of
// this host, only the selectors of such policies are indexed, and the state
// shares with the one before whatever stayed the same.
type policies struct {
	node  string
	index *index.Index[datastore.Key] // what rules select

	// The inputs.
	specs    map[datastore.Key]*policySpec
	tiers    map[string]*api.Tier
	profiles map[string]*api.Profile
	hosts    map[string]*api.HostEndpoint // this host's
	notes    map[datastore.Key]string     // what of a set of networks does not count

	// What has changed since the last state.
	touched         map[policy.ID]struct{}
	touchedProfiles map[string]struct{}
	touchedTiers    bool

	slots    slots
	entries  map[policy.ID]*entry
	ranked   []*entry // in the order in which they apply
	locals   map[desired.EndpointKey]*local
	named    map[string]*named    // profiles that local endpoints name
	pending  map[policy.ID]*entry // to be compiled or forgotten
	refused  map[policy.ID]*refusal
	refusing map[policy.ID]string // refused since the last state, and why
	tryAgain bool                 // what was refused before
	absent   bool                 // a local endpoint has gone since the last state
	state    *policy.State
	problems []string
}

// entry is one policy.
type entry struct {
	id       policy.ID
	spec     *policySpec // nil: about to be forgotten
	tie      string      // orders policies of one tier and order
	ranked   bool        // is in the list of that name
	slot     int
	refs     int // local endpoints that it selects
	compiled compiled
	tier     tierRank
}

// named is one profile that endpoints of this host name.
type named struct {
	refs     int
	compiled compiled // without policy while the profile does not exist
}

func newPolicies(node string) *policies {
	return &policies{
		node: node, index: index.New[datastore.Key](),
		specs: map[datastore.Key]*policySpec{}, tiers: map[string]*api.Tier{}, profiles: map[string]*api.Profile{}, hosts: map[string]*api.HostEndpoint{},
		touched: map[policy.ID]struct{}{}, touchedProfiles: map[string]struct{}{},
		notes: map[datastore.Key]string{}, entries: map[policy.ID]*entry{}, pending: map[policy.ID]*entry{}, refused: map[policy.ID]*refusal{}, refusing: map[policy.ID]string{}, locals: map[desired.EndpointKey]*local{}, named: map[string]*named{},
		state: &policy.State{},
	}
}

// event folds one change of the kinds that only policy looks at.
func (p *policies) event(e datastore.Event) error {
	switch k := e.Entry.Key; k.Kind {
	case "Tier":
		p.touchedTiers = true
		return fold(p.tiers, e)
	case "Profile":
		return p.profileEvent(e)
	case "HostEndpoint":
		return p.hostEvent(e)
	case "NetworkSet", "GlobalNetworkSet":
		return p.setEvent(e)
	default:
		p.policyEvent(e)
	}
	return nil
}

// compute brings the state up to date with the endpoints that are served. What
// was returned before is never changed.
func (p *policies) compute(ends []end, opts policy.Options, probs *problems) *policy.State {
	p.resolve()
	p.match(ends)
	stale := p.activate()
	p.activateProfiles(&stale)
	if p.touchedTiers {
		p.rank()
	}
	next := &policy.State{
		Endpoints: shared(p.state.Endpoints, p.endpointMap()), Policies: shared(p.state.Policies, p.withRefused(p.policyMap(stale))),
		Sets: shared(p.state.Sets, p.setMap(stale)), Options: p.options(opts),
	}
	if p.touchedTiers || len(p.touched)+len(p.touchedProfiles)+len(stale.policies) > 0 {
		p.report()
	}
	clear(p.touched)
	clear(p.touchedProfiles)
	p.touchedTiers = false
	for _, text := range p.problems {
		probs.add("%s", text)
	}
	for _, text := range p.notes {
		probs.add("%s", text)
	}
	p.reportRefused(probs)
	if same(p.state, next) {
		return p.state
	}
	p.state = next
	return next
}

// same reports whether two states are one: their maps are shared if nothing in
// them changed.
func same(a, b *policy.State) bool {
	return sharedMap(a.Endpoints, b.Endpoints) && sharedMap(a.Policies, b.Policies) && sharedMap(a.Sets, b.Sets) && reflect.DeepEqual(a.Options, b.Options)
}

// shared keeps the old map where the new one holds the same.
func shared[K, V comparable](old, next map[K]V) map[K]V {
	if old != nil && (sharedMap(old, next) || maps.Equal(old, next)) {
		return old
	}
	return next
}

func sharedMap[K, V comparable](a, b map[K]V) bool {
	return a != nil && reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}

// resolve finds what each policy that was touched says now. One that is stored
// under both the keys that it may have (spec/calico.md §1.2) is what its own name
// says.
func (p *policies) resolve() {
	ranks := false
	for id := range p.touched {
		spec := p.specs[datastore.Key{Kind: id.Kind, Namespace: id.Namespace, Name: id.Name}]
		if spec == nil || spec.id != id {
			spec = p.specs[datastore.Key{Kind: id.Kind, Namespace: id.Namespace, Name: api.TierDefault + "." + id.Name}]
		}
		if spec != nil && spec.id != id {
			spec = nil
		}
		e := p.entries[id]
		switch {
		case e == nil && spec == nil:
			continue
		case e == nil:
			e = &entry{slot: p.slots.take(), tie: id.Name + "/" + id.Namespace + "/" + id.Kind}
			p.entries[id] = e
		}
		ranks = ranks || !spec.stands(e.spec)
		e.id, e.spec = id, spec
		p.pending[id] = e
	}
	if ranks {
		p.touchedTiers = true
	}
}

// match finds which policies select which of the endpoints.
func (p *policies) match(ends []end) {
	touched := slices.Collect(maps.Values(p.pending))
	present := make(map[desired.EndpointKey]bool, len(ends))
	for _, in := range ends {
		present[in.key] = true
		l := p.locals[in.key]
		if l == nil {
			l = &local{dirty: true}
			p.locals[in.key] = l
		}
		if !p.update(l, in) && !l.inheritsFrom(p.touchedProfiles) {
			for _, e := range touched {
				p.try(l, e)
			}
			continue
		}
		for _, e := range p.entries {
			p.try(l, e)
		}
	}
	for k, l := range p.locals {
		if !present[k] {
			for _, e := range p.entries {
				p.set(l, e, false)
			}
			p.update(l, end{})
			delete(p.locals, k)
			p.absent = true
		}
	}
}

// stale says what of the last state has changed.
type stale struct {
	policies map[policy.ID]*policy.Policy // nil: gone
	dropped  []index.Want                 // sets that are no longer needed
	services bool
}

// activate compiles what is needed now and forgets what no longer is. Sets are
// taken before others are given back, so that one which stays needed is not made
// again.
func (p *policies) activate() stale {
	out := stale{policies: map[policy.ID]*policy.Policy{}}
	for id, e := range p.pending {
		var next compiled
		if e.spec != nil && e.refs > 0 {
			next = compile(e.spec)
		}
		p.exchange(&e.compiled, next, id, &out)
		if e.spec == nil {
			p.slots.give(e.slot)
			delete(p.entries, id)
		}
	}
	clear(p.pending)
	return out
}

func (p *policies) activateProfiles(out *stale) {
	for name, n := range p.named {
		_, touched := p.touchedProfiles[name]
		spec := p.profileSpec(name)
		want := n.refs > 0 && spec != nil
		if !touched && want == (n.compiled.policy != nil) {
			continue
		}
		var next compiled
		if want {
			next = compileProfile(name, spec)
		}
		p.exchange(&n.compiled, next, policy.ID{Kind: "Profile", Name: name}, out)
		if n.refs == 0 {
			delete(p.named, name)
		}
	}
}

// profileSpec is a profile, or nil.
func (p *policies) profileSpec(name string) *api.ProfileSpec {
	if name == api.DefaultAllowProfile {
		return &api.NewDefaultAllowProfile().Spec
	}
	if obj := p.profiles[name]; obj != nil {
		return &obj.Spec
	}
	return nil
}

// exchange puts what was compiled in the place of what was there.
func (p *policies) exchange(have *compiled, next compiled, id policy.ID, out *stale) {
	for _, w := range next.wants {
		p.index.Acquire(w)
	}
	for _, w := range have.wants {
		p.index.Release(w)
	}
	out.dropped = append(out.dropped, have.wants...)
	out.services = out.services || len(have.services)+len(next.services) > 0
	if have.policy != nil && next.policy != nil && reflect.DeepEqual(have.policy, next.policy) {
		next.policy = have.policy
	} else if have.policy != next.policy {
		out.policies[id] = next.policy
	}
	*have = next
}

// policyMap is the state's map of policies, shared with the last state if nothing
// in it changed.
func (p *policies) policyMap(s stale) map[policy.ID]*policy.Policy {
	if len(s.policies) == 0 && p.state.Policies != nil {
		return p.state.Policies
	}
	out := maps.Clone(p.state.Policies)
	if out == nil {
		out = map[policy.ID]*policy.Policy{}
	}
	for id, compiled := range s.policies {
		if compiled == nil {
			delete(out, id)
		} else {
			out[id] = compiled
		}
	}
	return out
}

// setMap is the same for sets.
func (p *policies) setMap(s stale) map[policy.SetID]*policy.Set {
	changed := p.index.Flush()
	if len(changed)+len(s.dropped) == 0 && !s.services && p.state.Sets != nil {
		return p.state.Sets
	}
	out := maps.Clone(p.state.Sets)
	if out == nil {
		out = map[policy.SetID]*policy.Set{}
	}
	for _, w := range s.dropped {
		if _, kept := p.index.Want(w.ID); !kept {
			delete(out, w.ID)
		}
	}
	for _, id := range changed {
		w, _ := p.index.Want(id)
		set := &policy.Set{ID: id, Kind: w.Kind(), Selector: w.String(), Members: p.index.Members(id)}
		if old := out[id]; old == nil || old.Members.Digest() != set.Members.Digest() {
			out[id] = set
		}
	}
	if s.services {
		p.serviceSets(out)
	}
	return out
}

// serviceSets sees to the sets of services, which are not the index's: there are
// those that somebody names, whatever was there before.
func (p *policies) serviceSets(sets map[policy.SetID]*policy.Set) {
	needed := map[policy.SetID]*policy.Set{}
	for _, c := range p.active() {
		for _, set := range c.services {
			needed[set.ID] = set
		}
	}
	maps.DeleteFunc(sets, func(id policy.SetID, _ *policy.Set) bool {
		return needed[id] == nil && (strings.HasPrefix(string(id), "v:") || strings.HasPrefix(string(id), "w:"))
	})
	for id, set := range needed {
		if sets[id] == nil {
			sets[id] = set
		}
	}
}

func (p *policies) active() []*compiled {
	var out []*compiled
	for _, e := range p.entries {
		if e.compiled.policy != nil {
			out = append(out, &e.compiled)
		}
	}
	for _, n := range p.named {
		if n.compiled.policy != nil {
			out = append(out, &n.compiled)
		}
	}
	return out
}

// options keeps the last options where they say the same.
func (p *policies) options(o policy.Options) policy.Options {
	if reflect.DeepEqual(p.state.Options, o) {
		return p.state.Options
	}
	return o
}

// report names what cannot be enforced: of all policies what is wrong with the
// object, of those in force what is wrong with a rule.
func (p *policies) report() {
	probs := &problems{}
	for id, e := range p.entries {
		if e.compiled.policy == nil && e.spec.broken != "" {
			probs.add("%s", brokenText(id, e.spec.staged, e.spec.broken))
		}
	}
	unknown := map[string]bool{}
	for _, e := range p.entries {
		if e.refs > 0 && !e.tier.known {
			unknown[e.spec.tier] = true
		}
	}
	for name := range unknown {
		probs.add("Tier(%s) does not exist: its policies apply after all other tiers, and what they do not decide is denied", name)
	}
	for _, c := range p.active() {
		for _, text := range c.problems {
			probs.add("%s", text)
		}
	}
	p.problems = probs.sorted()
}

// tierRank is where a tier stands and what happens at its end.
type tierRank struct {
	known bool
	order float64
	deny  bool
}

// defaultTierOrder is that of a tier without one (spec/calico.md §5.1).
const defaultTierOrder = 1e6

func (p *policies) tierRank(name string) tierRank {
	t := p.tiers[name]
	if t == nil {
		for _, builtIn := range api.BuiltInTiers() {
			if builtIn.Name == name {
				t = builtIn
			}
		}
	}
	if t == nil {
		return tierRank{order: math.Inf(1), deny: true}
	}
	r := tierRank{known: true, order: defaultTierOrder, deny: true}
	if t.Spec.Order != nil {
		r.order = *t.Spec.Order
	}
	if t.Spec.DefaultAction != nil {
		r.deny = *t.Spec.DefaultAction != api.ActionPass
	}
	return r
}

// rank puts all policies into the order in which they apply: by their tiers'
// order and names, then by their own order, name, namespace and kind
// (spec/calico.md §5.1). It begins with the order that there is, which is right
// but for what has changed.
func (p *policies) rank() {
	p.ranked = slices.DeleteFunc(p.ranked, func(e *entry) bool { return p.entries[e.id] != e })
	ranks := map[string]tierRank{}
	for _, e := range p.entries {
		if _, known := ranks[e.spec.tier]; !known {
			ranks[e.spec.tier] = p.tierRank(e.spec.tier)
		}
		e.tier = ranks[e.spec.tier]
		if !e.ranked {
			e.ranked = true
			p.ranked = append(p.ranked, e)
		}
	}
	slices.SortFunc(p.ranked, (*entry).compare)
	for _, l := range p.locals {
		l.dirty = true
	}
}

func (e *entry) compare(o *entry) int {
	return cmp.Or(cmp.Compare(e.tier.order, o.tier.order), strings.Compare(e.spec.tier, o.spec.tier), cmp.Compare(e.spec.order, o.spec.order), strings.Compare(e.tie, o.tie))
}
