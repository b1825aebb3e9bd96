// Package explain says why a packet passes or not. It follows the first packet
// of a connection from its source to its destination over the two hosts at the
// ends, asks at every place the compiled policy that the hosts enforce
// (policy.State), and looks for the smallest change that would turn the answer.
// It does no I/O: the states come from the agent or from the same calculation
// that the agent runs.
package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

// Kind is what an end of the traffic is.
type Kind uint8

// The kinds.
const (
	Outside  Kind = iota + 1 // an address that is none of the network's
	Workload                 // a container or pod
	Host                     // a host itself
)

// Party is one end of the traffic.
type Party struct {
	Kind Kind
	Name string // as people call it: "default/web", "h1", "203.0.113.9"
	Node string // the host; empty for Outside
	Key  desired.EndpointKey
	Addr netip.Addr
}

// Network is what an explanation is drawn from.
type Network struct {
	Hosts map[string]*policy.State // by node
	// NATOutgoing are pools whose addresses are hidden behind their host towards everything that is in no pool.
	NATOutgoing, Pools []netip.Prefix
	Addresses          map[string][]netip.Addr // of the hosts themselves, by node
}

// Stage is one place on the way where something decides.
type Stage struct {
	Node  string
	Title string // "egress of default/web on h1"
	// Trace is the evaluation where an endpoint's policies were asked.
	Trace *policy.Trace
	// Note says what happens where no policy is asked: `the host's own packets are not policed`.
	Note    string
	Allowed bool
	Packet  policy.Packet // as it comes by here, after NAT
}

// Answer is an explanation.
type Answer struct {
	From, To Party
	Packet   policy.Packet
	Stages   []Stage // up to and including the one that denies
	Allowed  bool
	Change   *Change // what would turn it; nil where nothing small was found
}

// Explain follows a packet from one party to the other.
func Explain(n Network, from, to Party, p policy.Packet) (Answer, error) {
	if from.Kind == Workload && to.Kind == Outside && to.Addr == policy.Gateway() {
		to.Kind, to.Node, to.Name = Host, from.Node, from.Node // whoever asks there asks its own host
	}
	a, err := follow(n, from, to, p)
	if err != nil {
		return Answer{}, err
	}
	a.Change = smallest(n, a)
	return a, nil
}

// follow is Explain without looking for a change.
func follow(n Network, from, to Party, p policy.Packet) (Answer, error) {
	w := way{n: n, a: Answer{From: from, To: to, Packet: p}, p: p}
	for _, step := range []func() error{w.leave, w.cross, w.arrive} {
		if err := step(); err != nil {
			return Answer{}, err
		}
		if w.denied() {
			return w.a, nil
		}
	}
	w.a.Allowed = true
	return w.a, nil
}

// way is a packet under way.
type way struct {
	n Network
	a Answer
	p policy.Packet
	// accepted by an untracked or preDNAT policy: the host endpoint is asked no more, but where the packet leaves again.
	accepted bool
}

func (w *way) denied() bool {
	return len(w.a.Stages) > 0 && !w.a.Stages[len(w.a.Stages)-1].Allowed
}

func (w *way) state(node string) (*policy.State, error) {
	s := w.n.Hosts[node]
	if s == nil {
		return nil, fmt.Errorf("the policies of host %q are not known", node)
	}
	return s, nil
}

func (w *way) note(node, title, text string) {
	w.a.Stages = append(w.a.Stages, Stage{Node: node, Title: title, Note: text, Allowed: true, Packet: w.p})
}

// ask evaluates one place of an endpoint. Places where nothing applies are left
// out, so that what is printed is what matters.
func (w *way) ask(s *policy.State, node string, ep *policy.Endpoint, place policy.Place, d policy.Direction) {
	if w.denied() || ep.Host && place != policy.PlaceNormal && len(ep.At(place).In(d)) == 0 {
		return
	}
	if leaves := place == policy.PlaceForward && d == policy.Egress; ep.Host && w.accepted && !leaves {
		return
	}
	t := s.EvaluateAt(ep, place, d, w.p)
	if place == policy.PlaceUntracked || place == policy.PlacePreDNAT {
		w.accepted = t.Allowed && t.Verdict.Reason == policy.ByRule
	}
	name := ep.Key.String()
	for _, party := range []Party{w.a.From, w.a.To} {
		if party.Kind == Workload && party.Key == ep.Key {
			name = party.Name
		}
	}
	title := fmt.Sprintf("%s of %s on %s", d, name, node)
	if ep.Host {
		title = fmt.Sprintf("%s policy of host endpoint %s on %s, %s", place, ep.Key.Name, node, d)
	}
	w.a.Stages = append(w.a.Stages, Stage{Node: node, Title: title, Trace: &t, Allowed: t.Allowed, Packet: w.p})
}

// hostEndpoint is the host endpoint that stands for a host's way to the others:
// the one with the host's address, else the one of all interfaces.
func (w *way) hostEndpoint(s *policy.State, node string) *policy.Endpoint {
	var all *policy.Endpoint
	for _, key := range sortedKeys(s.Endpoints) {
		ep := s.Endpoints[key]
		if !ep.Host {
			continue
		}
		for _, a := range w.n.Addresses[node] {
			if slices.Contains(ep.Addrs.Addrs(), a) {
				return ep
			}
		}
		if ep.Interface == "*" {
			all = ep
		}
	}
	return all
}

func sortedKeys(m map[desired.EndpointKey]*policy.Endpoint) []desired.EndpointKey {
	keys := make([]desired.EndpointKey, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, desired.EndpointKey.Compare)
	return keys
}

// leave is what happens on the source's host before the packet is on its way.
func (w *way) leave() error {
	from, to := w.a.From, w.a.To
	if from.Kind == Outside {
		return nil
	}
	s, err := w.state(from.Node)
	if err != nil {
		return err
	}
	if from.Kind == Workload {
		ep := s.Endpoints[from.Key]
		if ep == nil {
			return fmt.Errorf("workload %s is not known on host %s", from.Name, from.Node)
		}
		own := to.Kind == Host && to.Node == from.Node
		if own && w.p.NeighbourDiscovery() {
			w.note(from.Node, w.ownHost(), "neighbour and multicast listener discovery (ICMPv6 types 130 to 136) passes whatever policies say")
			return nil
		}
		w.ask(s, from.Node, ep, policy.PlaceNormal, policy.Egress)
		if !w.denied() && own {
			w.toOwnHost(s)
		}
	}
	return nil
}

func (w *way) ownHost() string { return "from a workload to its own host " + w.a.To.Node }

// toOwnHost is defaultEndpointToHostAction.
func (w *way) toOwnHost(s *policy.State) {
	stage := Stage{Node: w.a.To.Node, Title: w.ownHost(), Allowed: true, Packet: w.p}
	switch s.Options.EndpointToHost {
	case policy.EndpointToHostDrop:
		stage.Note = "defaultEndpointToHostAction is Drop, which does not concern the name server for containers at " + policy.Gateway().String()
		if !w.p.NameServer() {
			stage.Allowed, stage.Note = false, "defaultEndpointToHostAction is Drop"
		}
	case policy.EndpointToHostAccept:
		stage.Note = "defaultEndpointToHostAction is Accept"
	case policy.EndpointToHostReturn:
		stage.Note = "defaultEndpointToHostAction is Return: the host's other rules decide"
	}
	w.a.Stages = append(w.a.Stages, stage)
}

// cross is the way from the source's host to the destination's: the policies of
// the host endpoint that the packet leaves by, and NAT.
func (w *way) cross() error {
	from, to := w.a.From, w.a.To
	if from.Kind == Outside || from.Node == to.Node {
		return nil
	}
	s, err := w.state(from.Node)
	if err != nil {
		return err
	}
	if hep := w.hostEndpoint(s, from.Node); hep != nil {
		if from.Kind == Host {
			w.ask(s, from.Node, hep, policy.PlaceUntracked, policy.Egress)
			w.ask(s, from.Node, hep, policy.PlaceNormal, policy.Egress)
		} else {
			w.ask(s, from.Node, hep, policy.PlaceForward, policy.Egress)
		}
	}
	w.translate()
	return nil
}

// translate is NAT outgoing.
func (w *way) translate() {
	from := w.a.From
	holds := func(list []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	if w.denied() || from.Kind != Workload || !holds(w.n.NATOutgoing, w.p.Src) || holds(w.n.Pools, w.p.Dst) {
		return
	}
	for _, a := range w.n.Addresses[from.Node] {
		if a.Is4() == w.p.Src.Is4() {
			w.note(from.Node, "NAT outgoing on "+from.Node, fmt.Sprintf("the source %s becomes %s: the destination is in no pool", w.p.Src, a))
			w.p.Src, w.p.SrcPort = a, 0
			return
		}
	}
}

// arrive is what the destination's host asks.
func (w *way) arrive() error {
	from, to := w.a.From, w.a.To
	if to.Kind == Outside {
		return nil
	}
	s, err := w.state(to.Node)
	if err != nil {
		return err
	}
	away := from.Node != to.Node
	hep := w.hostEndpoint(s, to.Node)
	if away && hep != nil {
		w.ask(s, to.Node, hep, policy.PlaceUntracked, policy.Ingress)
		w.ask(s, to.Node, hep, policy.PlacePreDNAT, policy.Ingress)
		if to.Kind == Workload {
			w.ask(s, to.Node, hep, policy.PlaceForward, policy.Ingress)
		}
	}
	switch {
	case w.denied():
	case to.Kind == Workload && from.Kind == Host && !away:
		w.note(to.Node, fmt.Sprintf("ingress of %s on %s", to.Name, to.Node), "a workload's own host may always reach it")
	case to.Kind == Workload:
		ep := s.Endpoints[to.Key]
		if ep == nil {
			return fmt.Errorf("workload %s is not known on host %s", to.Name, to.Node)
		}
		w.ask(s, to.Node, ep, policy.PlaceNormal, policy.Ingress)
	case away && hep != nil:
		w.ask(s, to.Node, hep, policy.PlaceNormal, policy.Ingress)
	}
	return nil
}

// Decision is the stage that decided: the one that denies, or the last that a
// rule allowed.
func (a Answer) Decision() *Stage {
	for i := len(a.Stages) - 1; i >= 0; i-- {
		s := &a.Stages[i]
		if !s.Allowed || a.Allowed && s.Trace != nil {
			return s
		}
	}
	return nil
}

// Because is the decision of a trace in words.
func Because(s *policy.State, t *policy.Trace) string { return Reason(s, t.Verdict) }

// Reason is a verdict in words, with the rule's text where a rule decided.
func Reason(s *policy.State, v policy.Verdict) string {
	switch v.Reason {
	case policy.ByRule:
		return fmt.Sprintf("rule %d of %s%s: %s", v.Rule+1, v.Policy, inTier(v.Tier), ruleText(s, v))
	case policy.ByTierEnd:
		return fmt.Sprintf("no policy of tier %s matched%s, and what none of them matches is denied at its end", v.Tier, asked(s, v))
	case policy.ByNoProfile:
		return "no policy applies and no profile matches: " + profilesText(s.Endpoints[v.Endpoint])
	case policy.ByBrokenPolicy:
		return fmt.Sprintf("%s%s cannot be enforced as it is written and denies%s", v.Policy, inTier(v.Tier), brokenText(s, v.Policy))
	case policy.ByFailsafe:
		return "a failsafe port, which no policy of a host endpoint can close"
	case policy.ByNoPolicy:
		return "no policy decided here: what is not denied goes on"
	case policy.ByInvalid:
		return "connection tracking knows no connection that it could belong to (state invalid)"
	case policy.ByEndpointToHost:
		return "from a workload to its own host (defaultEndpointToHostAction)"
	case policy.BySpoofing:
		return "the source address is not the workload's"
	case policy.ByTunnelGuard:
		return "a tunnel packet from somebody who may not send one"
	case policy.ByEstablished:
		return "belongs to a connection that was allowed before"
	case policy.ByUnknownEndpoint:
		return "the interface belongs to no endpoint that is known"
	}
	return "decided by the dataplane"
}

// asked names the policies of the tier at whose end it was decided.
func asked(s *policy.State, v policy.Verdict) string {
	ep := s.Endpoints[v.Endpoint]
	if ep == nil {
		return ""
	}
	const most = 3
	for _, t := range ep.Normal.In(v.Direction) {
		if t.Name != v.Tier {
			continue
		}
		var names, staged []string
		for _, id := range t.Policies {
			switch p := s.Policies[id]; {
			case p == nil:
			case p.Staged:
				staged = append(staged, id.String())
			default:
				names = append(names, id.String())
			}
		}
		if len(names) == 0 {
			names = staged // it is asked what they would do
		}
		if len(names) > most {
			names = append(names[:most], fmt.Sprintf("%d more", len(names)-most))
		}
		return " (" + strings.Join(names, ", ") + ")"
	}
	return ""
}

func inTier(tier string) string {
	if tier == "" {
		return ""
	}
	return " in tier " + tier
}

func brokenText(s *policy.State, id policy.ID) string {
	if p := s.Policies[id]; p != nil && p.Broken != "" {
		return ": " + p.Broken
	}
	return ""
}

func profilesText(ep *policy.Endpoint) string {
	if ep == nil {
		return "every profile of the endpoint was asked"
	}
	if len(ep.Profiles) == 0 {
		return "the endpoint names none"
	}
	names := make([]string, len(ep.Profiles))
	for i, id := range ep.Profiles {
		names[i] = id.Name
	}
	return "the endpoint names " + strings.Join(names, ", ")
}

// ruleText is the text of the rule that decided.
func ruleText(s *policy.State, v policy.Verdict) string {
	p := s.Policies[v.Policy]
	if p == nil {
		return "(the policy has changed since)"
	}
	for _, r := range p.Rules(v.Direction) {
		if r.Index == v.Rule {
			return r.Text
		}
	}
	return "(the policy has changed since)"
}
