package render

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

// Priorities of the base chains. Each comes just before the round number that
// other programs use, and after the guards against spoofing and forged tunnel
// packets (raw -300, filter -10).
const (
	priorityRaw        = -299
	priorityMangle     = -151
	priorityFilter     = -9
	priorityToHost     = -8
	priorityForwardOut = -8
)

// Base chains.
const (
	rawIn      = "policy_raw_in"
	rawOut     = "policy_raw_out"
	mangleIn   = "policy_prednat"
	forwardIn  = "policy_forward_in"
	forwardOut = "policy_forward_out"
	input      = "policy_input"
	toHost     = "policy_to_host"
	output     = "policy_output"
)

// dispatch is a base chain and whom it sends packets to.
type dispatch struct {
	name, hook string
	priority   int
	field      desired.Field
	targets    map[string]string // interface -> chain
	all        string            // chain of the host endpoint of all interfaces
}

func established() desired.Rule {
	return desired.Rule{Match: []desired.Match{desired.State(desired.Established | desired.Related)}, Do: desired.Accept}
}

// bases makes the base chains and everything below them.
func (b *builder) bases() {
	list := map[string]*dispatch{}
	for _, d := range []dispatch{
		{name: rawIn, hook: "prerouting", priority: priorityRaw, field: desired.FieldIn},
		{name: rawOut, hook: "output", priority: priorityRaw, field: desired.FieldOut},
		{name: mangleIn, hook: "prerouting", priority: priorityMangle, field: desired.FieldIn},
		{name: forwardIn, hook: "forward", priority: priorityFilter, field: desired.FieldIn},
		{name: forwardOut, hook: "forward", priority: priorityForwardOut, field: desired.FieldOut},
		{name: input, hook: "input", priority: priorityFilter, field: desired.FieldIn},
		{name: output, hook: "output", priority: priorityFilter, field: desired.FieldOut},
	} {
		d.targets = map[string]string{}
		list[d.name] = &d
	}
	for _, key := range slices.SortedFunc(maps.Keys(b.s.Endpoints), desired.EndpointKey.Compare) {
		ep := b.s.Endpoints[key]
		if ep.Host {
			b.hostEndpoint(ep, list)
			continue
		}
		if ep.Interface == "" {
			continue
		}
		egress := b.endpoint(ep, policy.PlaceNormal, policy.Egress)
		list[forwardIn].targets[ep.Interface] = egress
		list[input].targets[ep.Interface] = egress
		list[forwardOut].targets[ep.Interface] = b.endpoint(ep, policy.PlaceNormal, policy.Ingress)
	}
	marks := busy(list[rawIn]) || busy(list[rawOut]) || busy(list[mangleIn])
	for _, d := range list {
		b.base(d, marks)
	}
	b.toHost()
}

// busy reports whether a base chain sends packets anywhere.
func busy(d *dispatch) bool { return len(d.targets) > 0 || d.all != "" }

// hostEndpoint adds a host endpoint at each place where it has a say.
func (b *builder) hostEndpoint(ep *policy.Endpoint, list map[string]*dispatch) {
	at := func(base string, place policy.Place, d policy.Direction) {
		chain := b.endpoint(ep, place, d)
		switch {
		case chain == "":
		case ep.Interface == "*":
			list[base].all = chain
		case ep.Interface != "":
			list[base].targets[ep.Interface] = chain
		}
	}
	at(rawIn, policy.PlaceUntracked, policy.Ingress)
	at(rawOut, policy.PlaceUntracked, policy.Egress)
	at(mangleIn, policy.PlacePreDNAT, policy.Ingress)
	at(forwardIn, policy.PlaceForward, policy.Ingress)
	at(forwardOut, policy.PlaceForward, policy.Egress)
	at(input, policy.PlaceNormal, policy.Ingress)
	at(output, policy.PlaceNormal, policy.Egress)
}

// base makes one base chain, if it has anything to do. The first rule of those
// that see tracked connections is the one that most packets need.
func (b *builder) base(d *dispatch, marks bool) {
	workloads := desired.Match{Kind: desired.MatchInterface, Field: d.field, Name: b.s.Options.InterfacePrefix + "*"}
	fromWorkloads := d.name == forwardIn || d.name == forwardOut || d.name == input
	raw := d.name == rawIn || d.name == rawOut
	if !busy(d) && !fromWorkloads && !(raw && marks) {
		return
	}
	var rules []desired.Rule
	if raw {
		// Nobody else's mark is an acceptance of ours.
		rules = append(rules, desired.Rule{Mark: desired.Mark{Clear: acceptedMark}})
	} else {
		rules = append(rules, established())
	}
	if d.name == input {
		rules = append(rules, neighbourDiscovery(workloads))
	}
	if len(d.targets) > 0 || fromWorkloads {
		rules = append(rules, desired.Rule{Do: desired.VMap, Map: b.dispatchMap(d), Key: []desired.Field{d.field}})
	}
	if fromWorkloads && b.s.Options.InterfacePrefix != "" {
		direction := policy.Egress
		if d.name == forwardOut {
			direction = policy.Ingress
		}
		rules = append(rules, b.denyRule(policy.Label{Place: policy.PlaceNormal, Verdict: policy.Verdict{Direction: direction, Rule: -1, Reason: policy.ByUnknownEndpoint}}, workloads))
	}
	if d.all != "" {
		// All interfaces of the host itself: not its loopback, which never leaves it, and not those of workloads.
		lo := desired.Match{Kind: desired.MatchInterface, Field: d.field, Name: "lo"}
		rules = append(rules, desired.Rule{Match: []desired.Match{lo}, Do: desired.Accept}, desired.Rule{Match: []desired.Match{workloads}, Do: desired.Accept},
			desired.Rule{Do: desired.Goto, Chain: d.all})
	}
	b.out.NFT.AddChain(d.name, desired.Hook{Type: "filter", Name: d.hook, Priority: d.priority}, rules...)
}

func (b *builder) dispatchMap(d *dispatch) string {
	typ := desired.NewSetType(false, desired.TypeInterface)
	typ.Verdicts = true
	list := make([]desired.Element, 0, len(d.targets))
	for iface, chain := range d.targets {
		list = append(list, typ.Element(desired.Verdict{Do: desired.Goto, Chain: chain}, desired.InterfacePart(iface)))
	}
	name := dispatchName(d.name)
	b.out.NFT.AddElements(name, typ, desired.NewElements(list...))
	return name
}

// neighbourDiscovery accepts what a workload must be able to send to its host
// whatever policies say: multicast listener and neighbour discovery, ICMPv6 types
// 130 to 136 (spec/calico.md §5.5).
func neighbourDiscovery(workloads desired.Match) desired.Rule {
	return desired.Rule{Match: []desired.Match{
		workloads, desired.Family(6), desired.Proto(policy.ProtoICMPv6), {Kind: desired.MatchICMPRange, Num: 130, To: 136},
	}, Do: desired.Accept}
}

// toHost is defaultEndpointToHostAction: what becomes of packets from a workload
// to its own host that the workload's egress policy has let through.
func (b *builder) toHost() {
	if b.s.Options.EndpointToHost != policy.EndpointToHostDrop || b.s.Options.InterfacePrefix == "" {
		return // an accept here ends nothing but this chain, as if there were none
	}
	workloads := desired.InInterface(b.s.Options.InterfacePrefix + "*")
	rules := []desired.Rule{established(), neighbourDiscovery(workloads)}
	for _, proto := range []uint8{policy.ProtoUDP, policy.ProtoTCP} {
		// The name server for Docker's containers answers on the gateway's address, which is nobody else's.
		rules = append(rules, desired.Rule{Match: []desired.Match{workloads, desired.DstNet(gateway()), desired.Proto(proto), desired.DstPort(53, 53)}, Do: desired.Accept})
	}
	rules = append(rules, b.denyRule(policy.Label{Place: policy.PlaceNormal, Verdict: policy.Verdict{Direction: policy.Egress, Rule: -1, Reason: policy.ByEndpointToHost}}, workloads))
	b.out.NFT.AddChain(toHost, desired.Hook{Type: "filter", Name: "input", Priority: priorityToHost}, rules...)
}

// endpoint makes the chain of an endpoint at a place in one direction and names
// it; "" where it has no say.
func (b *builder) endpoint(ep *policy.Endpoint, place policy.Place, d policy.Direction) string {
	tiers := ep.At(place).In(d)
	if place != policy.PlaceNormal && len(tiers) == 0 {
		return ""
	}
	var rules []desired.Rule
	if ep.Host {
		// What an earlier place has accepted, the later ones do not ask about; only those where the packet leaves the host
		// again have a say of their own.
		if place == policy.PlaceNormal || place == policy.PlacePreDNAT || place == policy.PlaceForward && d == policy.Ingress {
			rules = append(rules, desired.Rule{Match: []desired.Match{desired.Marked(acceptedMark)}, Do: desired.Accept})
		}
		rules = append(rules, b.tunnels(place)...)
	}
	if place != policy.PlaceUntracked && !b.s.Options.KeepInvalid {
		rules = append(rules, b.denyRule(policy.Label{Place: place, Verdict: policy.Verdict{Direction: d, Rule: -1, Reason: policy.ByInvalid}}, desired.State(desired.Invalid)))
	}
	if ep.Host && place != policy.PlaceForward {
		rules = append(rules, b.failsafes(place, d)...)
	}
	for _, t := range tiers {
		if name := b.tier(t, d, place); name != "" {
			rules = append(rules, desired.Rule{Do: desired.Jump, Chain: name})
		}
	}
	if place == policy.PlaceNormal {
		for _, id := range ep.Profiles {
			if p := b.s.Policies[id]; p != nil {
				if done := b.policy(p, d, tracked); len(done.rules) > 0 {
					rules = append(rules, b.inlineOrJump(done)...)
				}
			}
		}
		rules = append(rules, b.denyRule(policy.Label{Place: place, Verdict: policy.Verdict{Direction: d, Rule: -1, Reason: policy.ByNoProfile}}))
	}
	return b.content("ep-", rules, nil, nil)
}

// inlineOrJump is how a profile is asked. A Pass has no meaning in one; should
// there be one, it ends the profile and no more.
func (b *builder) inlineOrJump(p *piece) []desired.Rule {
	if !p.inline {
		return []desired.Rule{p.jump}
	}
	return []desired.Rule{{Do: desired.Jump, Chain: b.content("pass-", p.rules, p.ids, p.refs)}}
}

// tierKey tells tiers of one rendering apart without looking at their policies:
// endpoints that the same policies select share the list.
type tierKey struct {
	first   *policy.ID // of a short list
	n       int
	digest  string // of a long one
	name    string
	endDeny bool
	d       policy.Direction
	place   policy.Place
}

// keyOf is a tier's key. Lists that are long are compared by what they are: two would be two indexes.
func (b *builder) keyOf(t policy.Tier, d policy.Direction, place policy.Place) tierKey {
	out := tierKey{name: t.Name, endDeny: t.EndDeny, d: d, place: place}
	list := listKey{&t.Policies[0], len(t.Policies)}
	if list.n < b.r.opts.IndexFrom {
		out.first, out.n = list.first, list.n
		return out
	}
	digest, known := b.lists[list]
	if !known {
		if digest, known = b.r.lists[list]; !known {
			digest = listDigest(t.Policies)
		}
		b.lists[list] = digest
	}
	out.digest = digest
	return out
}

// listKey is a list of policies that is not changed as long as somebody holds it.
type listKey struct {
	first *policy.ID
	n     int
}

func listDigest(list []policy.ID) string {
	h := sha256.New()
	for _, id := range list {
		fmt.Fprintf(h, "%q", []string{id.Kind, id.Namespace, id.Name})
	}
	return string(h.Sum(nil))
}

// own names the tiers by one of the endpoints that ask them, so that an index keeps its name when a policy comes or
// goes. It is the endpoint with the least hash: another one that comes or goes seldom changes that.
func (b *builder) own() {
	for key, ep := range b.s.Endpoints {
		name := ""
		for _, place := range []policy.Place{policy.PlaceUntracked, policy.PlacePreDNAT, policy.PlaceForward, policy.PlaceNormal} {
			for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
				for _, t := range ep.At(place).In(d) {
					if len(t.Policies) == 0 {
						continue
					}
					if name == "" {
						name = hash(key.String())
					}
					at, mine := b.keyOf(t, d, place), fmt.Sprintf("%s %s %d %s", name, d, place, t.Name)
					if old, there := b.owners[at]; !there || mine < old {
						b.owners[at] = mine
					}
				}
			}
		}
	}
}

// tier makes a tier's chain and names it; "" where it has nothing to say.
func (b *builder) tier(t policy.Tier, d policy.Direction, place policy.Place) string {
	if len(t.Policies) == 0 {
		return ""
	}
	key := b.keyOf(t, d, place)
	if name, done := b.tiers[key]; done {
		return name
	}
	var list []*piece
	for _, id := range t.Policies {
		p := b.s.Policies[id]
		if p == nil || p.Staged {
			continue
		}
		switch done := b.policy(p, d, variantOf(place)); {
		case len(done.rules) == 0:
		case done.inline:
			list = append(list, done.groups...)
		default:
			list = append(list, done)
		}
	}
	var end *ending
	if t.EndDeny {
		r := b.denyRule(policy.Label{Place: place, Verdict: policy.Verdict{Direction: d, Tier: t.Name, Rule: -1, Reason: policy.ByTierEnd}})
		end = &ending{r, r.ID()}
	}
	name := ""
	if c := b.indexed(b.owners[key], d, list, end); len(c.rules) > 0 {
		name = b.content("tier-", c.rules, c.ids, c.refs)
	}
	b.tiers[key] = name
	return name
}

// tierChain collects a tier's rules. Many policies in a row are cut into
// segments, each a chain named by its content: a policy more or less then
// rewrites one segment and not the whole tier. Where a segment ends depends on
// the policy there and on nothing else, so that the others stay the same.
type tierChain struct {
	body
	b       *builder
	long    bool // worth segments
	segment []*piece
}

// segmentMean is how many policies a segment has on average.
const segmentMean = 16

func (c *tierChain) add(p *piece) {
	switch {
	case len(p.rules) == 0:
		return
	case p.inline:
		c.closeSegment()
		for i, r := range p.rules {
			c.put(r, p.ids[i], p.refs[i])
		}
		return
	}
	c.segment = append(c.segment, p)
	if p.jumpID[0]%segmentMean == 0 {
		c.closeSegment()
	}
}

func (c *tierChain) closeSegment() {
	list := c.segment
	c.segment = nil
	if len(list) < segmentMean/2 || !c.long {
		for _, p := range list {
			c.put(p.jump, p.jumpID, RuleRef{Rule: -1})
		}
		return
	}
	rules, ids := make([]desired.Rule, len(list)), make([]desired.RuleID, len(list))
	for i, p := range list {
		rules[i], ids[i] = p.jump, p.jumpID
	}
	r := desired.Rule{Do: desired.Jump, Chain: c.b.content("seg-", rules, ids, nil)}
	c.put(r, r.ID(), RuleRef{Rule: -1})
}
