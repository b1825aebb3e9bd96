package policy

import (
	"errors"
	"fmt"

	"github.com/manekinet/maneki/desired"
)

// Place is where on a packet's way a host endpoint's policies are asked; a
// workload's are asked at PlaceNormal.
type Place uint8

// The places, in the order in which a packet comes by.
const (
	PlaceUntracked Place = iota + 1
	PlacePreDNAT
	PlaceForward
	PlaceNormal
)

// String names the kind of policy that applies there.
func (p Place) String() string {
	return [...]string{"?", "untracked", "pre-DNAT", "forward", "normal"}[min(p, PlaceNormal)]
}

// At returns what applies to the endpoint at a place.
func (e *Endpoint) At(p Place) Hook {
	switch p {
	case PlaceUntracked:
		return e.Untracked
	case PlacePreDNAT:
		return e.PreDNAT
	case PlaceForward:
		return e.Forward
	}
	return e.Normal
}

// Step is one rule that was looked at.
type Step struct {
	Tier   string
	Policy ID
	Staged bool
	Rule   *Rule      // nil for a broken policy
	Misses []Mismatch // empty: the rule matched
}

// Trace is the ordered evaluation of one packet at one place of one endpoint.
type Trace struct {
	Endpoint  *Endpoint
	Direction Direction
	Place     Place
	Steps     []Step // the last one that matched decided, where a rule decided
	Allowed   bool
	Verdict   Verdict
	// Staged is what would be decided if the staged policies were in force.
	Staged *Trace
}

// ErrNoEndpoint is returned for an endpoint that the state does not have.
var ErrNoEndpoint = errors.New("no such endpoint on this host")

// Evaluate asks what becomes of the first packet of a connection at one place
// of an endpoint.
func (s *State) Evaluate(key desired.EndpointKey, place Place, d Direction, p Packet) (Trace, error) {
	ep := s.Endpoints[key]
	if ep == nil {
		return Trace{}, fmt.Errorf("evaluate %s: %w", key, ErrNoEndpoint)
	}
	return s.EvaluateAt(ep, place, d, p), nil
}

// EvaluateAt is Evaluate for an endpoint at hand.
func (s *State) EvaluateAt(ep *Endpoint, place Place, d Direction, p Packet) Trace {
	w := walk{s: s, p: p, t: Trace{Endpoint: ep, Direction: d, Place: place}}
	w.run()
	if hasStaged(s, ep.At(place).In(d)) {
		staged := walk{s: s, p: p, staged: true, t: Trace{Endpoint: ep, Direction: d, Place: place}}
		staged.run()
		w.t.Staged = &staged.t
	}
	return w.t
}

func hasStaged(s *State, tiers []Tier) bool {
	for _, t := range tiers {
		for _, id := range t.Policies {
			if pol := s.Policies[id]; pol != nil && pol.Staged {
				return true
			}
		}
	}
	return false
}

// walk is one evaluation under way.
type walk struct {
	s      *State
	p      Packet
	staged bool // staged policies count
	t      Trace
}

// run goes through failsafes, tiers and profiles (spec/calico.md §5.1). Profiles
// speak at the normal place only: what the others do not decide goes on.
func (w *walk) run() {
	ep, place := w.t.Endpoint, w.t.Place
	if ep.Host && w.failsafe() {
		w.decide(true, Verdict{Reason: ByFailsafe, Rule: -1})
		return
	}
	for _, t := range ep.At(place).In(w.t.Direction) {
		if w.tier(t) {
			return
		}
	}
	if place != PlaceNormal {
		w.decide(true, Verdict{Reason: ByNoPolicy, Rule: -1})
		return
	}
	for _, id := range ep.Profiles {
		if pol := w.s.Policies[id]; pol != nil && w.policy("", pol) == decided {
			return
		}
	}
	w.decide(false, Verdict{Reason: ByNoProfile, Rule: -1})
}

type outcome uint8

const (
	undecided outcome = iota
	passed
	decided
)

// tier asks the policies of a tier; true: it decided.
func (w *walk) tier(t Tier) bool {
	end := t.EndDeny
	for _, id := range t.Policies {
		pol := w.s.Policies[id]
		if pol == nil {
			continue
		}
		if w.staged && pol.Staged {
			end = end || t.EndDenyStaged
		}
		switch w.policy(t.Name, pol) {
		case decided:
			return true
		case passed:
			return false
		}
	}
	if end {
		w.decide(false, Verdict{Tier: t.Name, Reason: ByTierEnd, Rule: -1})
	}
	return end
}

// policy asks one policy's rules in order. Rules of a staged policy are listed
// and decide only where staged policies count.
func (w *walk) policy(tier string, pol *Policy) outcome {
	counts := !pol.Staged || w.staged
	if pol.Broken != "" && counts {
		w.t.Steps = append(w.t.Steps, Step{Tier: tier, Policy: pol.ID, Staged: pol.Staged})
		w.decide(false, Verdict{Tier: tier, Policy: pol.ID, Rule: -1, Reason: ByBrokenPolicy})
		return decided
	}
	rules := pol.Rules(w.t.Direction)
	for i := range rules {
		r := &rules[i]
		step := Step{Tier: tier, Policy: pol.ID, Staged: pol.Staged, Rule: r, Misses: w.s.Mismatches(r, w.p)}
		w.t.Steps = append(w.t.Steps, step)
		if len(step.Misses) > 0 || r.Do == Log {
			continue
		}
		if !counts {
			return undecided // the staged policy would have decided here
		}
		if r.Do == Pass {
			return passed
		}
		w.decide(r.Do == Allow, Verdict{Tier: tier, Policy: pol.ID, Rule: r.Index, Reason: ByRule})
		return decided
	}
	return undecided
}

func (w *walk) decide(allowed bool, v Verdict) {
	v.Endpoint, v.Direction = w.t.Endpoint.Key, w.t.Direction
	w.t.Allowed, w.t.Verdict = allowed, v
}

// failsafe reports whether the packet is one that no policy of a host endpoint
// may stop.
func (w *walk) failsafe() bool {
	list, far := w.s.Options.FailsafeInbound, w.p.Src
	if w.t.Direction == Egress {
		list, far = w.s.Options.FailsafeOutbound, w.p.Dst
	}
	if w.t.Place == PlaceForward {
		return false // forwarded traffic is not the host's own
	}
	for _, f := range list {
		if f.Protocol == w.p.Protocol && f.Port == w.p.DstPort && (!f.Net.IsValid() || f.Net.Contains(far)) {
			return true
		}
	}
	return false
}
