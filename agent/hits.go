package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/dataplane/nft"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/policy/render"
)

// serveHits answers /v1/policy/hits: the counters of the rules in force.
func (a *Agent) serveHits(w http.ResponseWriter, _ *http.Request) {
	rows, err := a.hits()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(rows); err != nil {
		a.opts.Log.Debug("counters were not read to their end", "err", err)
	}
}

func (a *Agent) hits() ([]agentapi.RuleHits, error) {
	state, filter := a.pipe.policy()
	if state == nil || filter == nil {
		return []agentapi.RuleHits{}, nil
	}
	counters, err := nft.ReadCounters(filter.CountedTypes())
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	byRule := filter.Hits(
		func(chain string) []render.Hit {
			out := make([]render.Hit, len(counters.Rules[chain]))
			for i, c := range counters.Rules[chain] {
				out[i] = render.Hit(c)
			}
			return out
		},
		func(set string, e desired.Element) render.Hit { return render.Hit(counters.Elements[set][e]) },
	)
	rows := []agentapi.RuleHits{}
	for label, l := range filter.Labels {
		total := denied(counters, label)
		if l.Verdict.Reason == policy.ByRule && len(l.Rules) == 0 {
			// The packets of a rule that denies are counted where it leads to.
			byRule[render.RuleRef{Policy: l.Verdict.Policy, Direction: l.Verdict.Direction, Rule: l.Verdict.Rule}] = total
		} else if l.Verdict.Reason != policy.ByRule {
			rows = append(rows, agentapi.RuleHits{Verdict: verdictDocument(state, l.Verdict, false), Packets: total.Packets, Bytes: total.Bytes})
		}
	}
	for ref, h := range byRule {
		rows = append(rows, ruleHits(state, ref, h))
	}
	slices.SortFunc(rows, func(x, y agentapi.RuleHits) int {
		return strings.Compare(x.Verdict.Because+x.Verdict.Direction, y.Verdict.Because+y.Verdict.Direction)
	})
	return rows, nil
}

// denied adds up what a label's chain has denied.
func denied(c nft.Counters, label string) (sum render.Hit) {
	for _, n := range c.Rules[render.ChainOf(label)] {
		sum.Packets, sum.Bytes = sum.Packets+n.Packets, sum.Bytes+n.Bytes
	}
	return sum
}

func ruleHits(s *policy.State, ref render.RuleRef, h render.Hit) agentapi.RuleHits {
	v := policy.Verdict{Direction: ref.Direction, Policy: ref.Policy, Rule: ref.Rule, Reason: policy.ByRule}
	allowed := true
	if p := s.Policies[ref.Policy]; p != nil {
		v.Tier = p.Tier
		for _, r := range p.Rules(ref.Direction) {
			if r.Index == ref.Rule {
				allowed = r.Do != policy.Deny
			}
		}
	}
	return agentapi.RuleHits{Verdict: verdictDocument(s, v, allowed), Packets: h.Packets, Bytes: h.Bytes}
}
