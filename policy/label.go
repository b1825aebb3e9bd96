package policy

import "slices"

// Labels tell what the labels in the packet filter stand for: short names of
// verdicts, in reports of denied packets. A label follows from what it stands
// for, so that it outlives a restart of the agent.
type Labels map[string]Label

// Label is a verdict as the packet filter knows it. Endpoints share rules, and
// one look-up may stand for several rules: For tells the rest from the packet.
type Label struct {
	Verdict Verdict
	Place   Place
	// Rules are the indexes of the rules of Verdict.Policy of which one decided, where one look-up stands for several.
	Rules []int
}

// For is the verdict on one packet that came by one interface and was about to
// leave by another; either may be empty.
func (l Label) For(s *State, p Packet, in, out string) Verdict {
	v := l.Verdict
	if ep := l.endpoint(s, in, out); ep != nil {
		v.Endpoint = ep.Key
	}
	pol := s.Policies[v.Policy]
	if pol == nil || len(l.Rules) == 0 {
		return v
	}
	for i := range pol.Rules(v.Direction) {
		if r := &pol.Rules(v.Direction)[i]; slices.Contains(l.Rules, r.Index) && s.Matches(r, p) {
			v.Rule = r.Index
			break
		}
	}
	return v
}

// endpoint finds whose policies were asked. A workload's are asked on its way
// out by the interface that the packet came by, on its way in by the one that it
// leaves by; a host endpoint's the other way round.
func (l Label) endpoint(s *State, in, out string) *Endpoint {
	workload, host := in, out
	if l.Verdict.Direction == Ingress {
		workload, host = out, in
	}
	var all *Endpoint
	var named *Endpoint
	for _, ep := range s.Endpoints {
		switch {
		case !ep.Host && l.Place == PlaceNormal && workload != "" && ep.Interface == workload:
			return ep
		case ep.Host && host != "" && ep.Interface == host:
			named = ep
		case ep.Host && ep.Interface == "*":
			all = ep
		}
	}
	if named != nil {
		return named
	}
	return all
}
