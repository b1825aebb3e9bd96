package agent

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/reconcile"
)

// enforced is the policy in force, empty before there is one.
func (p *pipeline) enforced() *policy.State {
	if s, _ := p.policy(); s != nil {
		return s
	}
	return &policy.State{}
}

// profilePatience is long beside the time that the watch takes to bring a profile
// that was created a moment ago.
const profilePatience = time.Second

// waitProfiles returns when the profiles of an endpoint that was just written
// are known: without them it would be denied everything.
func (p *pipeline) waitProfiles(ctx context.Context, wep *api.WorkloadEndpoint) {
	ctx, cancel := context.WithTimeout(ctx, profilePatience)
	defer cancel()
	known := func() bool {
		s := p.enforced()
		return !slices.ContainsFunc(wep.Spec.Profiles, func(name string) bool { return s.Policies[policy.ID{Kind: "Profile", Name: name}] == nil })
	}
	for !known() {
		next := make(chan struct{})
		p.mu.Lock()
		p.waiters = append(p.waiters, next)
		p.mu.Unlock()
		if known() { // it may have become so before anybody waited
			return
		}
		select {
		case <-next:
		case <-ctx.Done():
			p.opts.Log.Warn("a profile of a workload is not known; the workload is denied what only that would allow",
				"endpoint", wep.Namespace+"/"+wep.Name, "profiles", wep.Spec.Profiles)
			return
		}
	}
}

func (a *Agent) servePolicy(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(policyReport(a.opts.Node, a.pipe.enforced())); err != nil {
		a.opts.Log.Debug("policy was not read to its end", "err", err)
	}
}

func policyCount(s *policy.State) agentapi.PolicyCount {
	c := agentapi.PolicyCount{Sets: len(s.Sets)}
	for _, e := range s.Endpoints {
		if e.Host {
			c.HostEndpoints++
		} else {
			c.Endpoints++
		}
	}
	for id, p := range s.Policies {
		switch {
		case id.Kind == "Profile":
			c.Profiles++
		case p.Staged:
			c.Policies++
			c.Staged++
		default:
			c.Policies++
		}
		if p.Broken != "" {
			c.Broken++
		}
		c.Rules += len(p.Ingress) + len(p.Egress)
	}
	for _, set := range s.Sets {
		c.Members += set.Members.Len()
	}
	return c
}

// policyApplied adds how far the packet filter is in the kernel. What was computed
// is given to the table before it is counted: when the table has it all, the
// counts are those of the kernel.
func policyApplied(c agentapi.PolicyCount, s reconcile.Status[desired.NFTKey]) agentapi.PolicyCount {
	c.Applied, c.Pending = s.InSync(), s.Wanted-s.Present+s.Extra
	if s.LastError != nil && !c.Applied {
		c.Error = s.LastError.Error()
	}
	return c
}

func policyReport(node string, s *policy.State) agentapi.Policy {
	out := agentapi.Policy{Node: node, Endpoints: []agentapi.PolicyEndpoint{}, Policies: []agentapi.CompiledPolicy{}, Sets: []agentapi.PolicySet{}}
	for _, k := range slices.SortedFunc(maps.Keys(s.Endpoints), desired.EndpointKey.Compare) {
		out.Endpoints = append(out.Endpoints, policyEndpoint(s.Endpoints[k]))
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.Policies), policy.ID.Compare) {
		p := s.Policies[id]
		out.Policies = append(out.Policies, agentapi.CompiledPolicy{
			Name: id.String(), Tier: p.Tier, Staged: p.Staged, Broken: p.Broken, Ingress: compiledRules(p.Ingress), Egress: compiledRules(p.Egress),
		})
	}
	for _, id := range slices.Sorted(maps.Keys(s.Sets)) {
		set := s.Sets[id]
		out.Sets = append(out.Sets, agentapi.PolicySet{ID: string(id), Selector: set.Selector, Size: set.Members.Len()})
	}
	return out
}

func policyEndpoint(e *policy.Endpoint) agentapi.PolicyEndpoint {
	out := agentapi.PolicyEndpoint{
		Namespace: e.Key.Namespace, Name: e.Key.Name, Host: e.Host, Interface: e.Interface, Addresses: e.Addrs.Addrs(),
		Tiers: []agentapi.EndpointTier{}, Profiles: names(e.Profiles),
	}
	for _, place := range []policy.Place{policy.PlaceUntracked, policy.PlacePreDNAT, policy.PlaceForward, policy.PlaceNormal} {
		for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
			for _, t := range e.At(place).In(d) {
				out.Tiers = append(out.Tiers, agentapi.EndpointTier{
					Hook: place.String(), Direction: d.String(), Tier: t.Name, Policies: names(t.Policies), EndDeny: t.EndDeny,
				})
			}
		}
	}
	return out
}

func names(ids []policy.ID) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = id.String()
	}
	return out
}

func compiledRules(rules []policy.Rule) []agentapi.CompiledRule {
	var out []agentapi.CompiledRule
	for i := range rules {
		out = append(out, agentapi.CompiledRule{Index: rules[i].Index, Text: rules[i].Text, Resolved: rules[i].String()})
	}
	return out
}
