package calc

import (
	"maps"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

// end is an endpoint of this host that policy is enforced on: a workload or a
// host endpoint.
type end struct {
	key   desired.EndpointKey
	wep   *api.WorkloadEndpoint
	hep   *api.HostEndpoint
	iface string
	addrs desired.AddrSet
}

func (e end) profiles() []string {
	switch {
	case e.wep != nil:
		return e.wep.Spec.Profiles
	case e.hep != nil:
		return e.hep.Spec.Profiles
	}
	return nil
}

func (e end) labels() map[string]string {
	switch {
	case e.wep != nil:
		return workloadLabels(e.wep)
	case e.hep != nil:
		return e.hep.Labels
	}
	return nil
}

// local is what is known of such an endpoint.
type local struct {
	end
	own      map[string]string
	matched  bits // of the slots of the policies that select it
	dirty    bool // endpoint is out of date
	endpoint *policy.Endpoint
}

// update takes over an endpoint as it is now and reports whether its own labels
// or its profiles may be other ones.
func (p *policies) update(l *local, in end) bool {
	same := l.wep == in.wep && l.hep == in.hep
	if l.end != in {
		l.dirty = true
	}
	if !same {
		for _, name := range in.profiles() {
			if p.named[name] == nil {
				p.named[name] = &named{}
			}
			p.named[name].refs++
		}
		for _, name := range l.profiles() {
			p.named[name].refs--
		}
		l.own = in.labels()
	}
	l.end = in
	return !same
}

// inheritsFrom reports whether the endpoint names one of the profiles.
func (l *local) inheritsFrom(profiles map[string]struct{}) bool {
	return len(profiles) > 0 && slices.ContainsFunc(l.profiles(), func(name string) bool {
		_, there := profiles[name]
		return there
	})
}

// try sees whether a policy selects an endpoint: by its own labels, else by
// those of its first profile that has them.
func (p *policies) try(l *local, e *entry) {
	on := e.spec != nil && e.spec.selector.MatchFunc(func(key string) (string, bool) {
		if v, ok := l.own[key]; ok {
			return v, true
		}
		for _, name := range l.profiles() {
			if spec := p.profileSpec(name); spec != nil {
				if v, ok := spec.LabelsToApply[key]; ok {
					return v, true
				}
			}
		}
		return "", false
	})
	p.set(l, e, on)
}

func (p *policies) set(l *local, e *entry, on bool) {
	if l.matched.has(e.slot) == on {
		return
	}
	l.matched.set(e.slot, on)
	l.dirty = true
	if on {
		e.refs++
	} else {
		e.refs--
	}
	p.pending[e.id] = e
}

// endpointMap is the state's map of endpoints, shared with the last state if
// nothing in it changed.
func (p *policies) endpointMap() map[desired.EndpointKey]*policy.Endpoint {
	var out map[desired.EndpointKey]*policy.Endpoint
	if p.absent || p.state.Endpoints == nil {
		out = make(map[desired.EndpointKey]*policy.Endpoint, len(p.locals))
		for k, l := range p.locals {
			if l.endpoint != nil {
				out[k] = l.endpoint
			}
		}
		p.absent = false
	}
	shared := map[string]*hooks{} // of endpoints that the same policies select
	for k, l := range p.locals {
		if !l.dirty {
			continue
		}
		l.dirty = false
		next := p.endpoint(l, shared)
		if l.endpoint != nil && equalEndpoints(l.endpoint, next) {
			continue
		}
		l.endpoint = next
		if out == nil {
			out = maps.Clone(p.state.Endpoints)
		}
		out[k] = next
	}
	if out == nil {
		return p.state.Endpoints
	}
	return out
}

func equalEndpoints(a, b *policy.Endpoint) bool {
	equalTiers := func(x, y []policy.Tier) bool {
		return slices.EqualFunc(x, y, func(s, t policy.Tier) bool {
			return s.Name == t.Name && s.EndDeny == t.EndDeny && s.EndDenyStaged == t.EndDenyStaged && slices.Equal(s.Policies, t.Policies)
		})
	}
	equalHooks := func(x, y policy.Hook) bool { return equalTiers(x.Ingress, y.Ingress) && equalTiers(x.Egress, y.Egress) }
	return a.Key == b.Key && a.Host == b.Host && a.Interface == b.Interface && a.Addrs == b.Addrs &&
		slices.Equal(a.Profiles, b.Profiles) &&
		equalHooks(a.Normal, b.Normal) && equalHooks(a.Forward, b.Forward) && equalHooks(a.PreDNAT, b.PreDNAT) && equalHooks(a.Untracked, b.Untracked)
}

// hooks are what applies to an endpoint.
type hooks struct{ normal, forward, preDNAT, untracked hookBuilder }

func (p *policies) endpoint(l *local, shared map[string]*hooks) *policy.Endpoint {
	id := l.matched.key(l.hep != nil)
	h := shared[id]
	if h == nil {
		h = p.hooksOf(l)
		shared[id] = h
	}
	ep := &policy.Endpoint{
		Key: l.key, Host: l.hep != nil, Interface: l.iface, Addrs: l.addrs,
		Normal: h.normal.hook(), Forward: h.forward.hook(), PreDNAT: h.preDNAT.hook(), Untracked: h.untracked.hook(),
	}
	for _, name := range l.profiles() {
		ep.Profiles = append(ep.Profiles, policy.ID{Kind: "Profile", Name: name})
	}
	return ep
}

// hooksOf sorts the policies that select an endpoint into its hooks
// (spec/calico.md §5.1). A policy that is untracked or preDNAT is in that hook
// alone, which only host endpoints have; forwarded traffic is met by those
// others that say so.
func (p *policies) hooksOf(l *local) *hooks {
	host := l.hep != nil
	h := &hooks{normal: hookBuilder{ends: true}, forward: hookBuilder{ends: true}}
	for _, e := range p.ranked {
		if !l.matched.has(e.slot) {
			continue
		}
		switch s := e.spec; {
		case s.untracked && host:
			h.untracked.add(e, s.ingress, s.egress)
		case s.preDNAT && host:
			h.preDNAT.add(e, s.ingress, false)
		case s.untracked || s.preDNAT:
		default:
			h.normal.add(e, s.ingress, s.egress)
			if host && s.onForward {
				h.forward.add(e, s.ingress, s.egress)
			}
		}
	}
	return h
}

// hookBuilder collects tiers. In one that ends, a tier's default action counts.
type hookBuilder struct {
	ends  bool
	tiers [2][]policy.Tier
}

func (b *hookBuilder) add(e *entry, ingress, egress bool) {
	for d, on := range [2]bool{policy.Ingress: ingress, policy.Egress: egress} {
		if !on {
			continue
		}
		list := &b.tiers[d]
		if n := len(*list); n == 0 || (*list)[n-1].Name != e.spec.tier {
			*list = append(*list, policy.Tier{Name: e.spec.tier, EndDenyStaged: b.ends && e.tier.deny})
		}
		t := &(*list)[len(*list)-1]
		t.Policies = append(t.Policies, e.spec.id)
		t.EndDeny = t.EndDeny || t.EndDenyStaged && !e.spec.staged
	}
}

func (b *hookBuilder) hook() policy.Hook {
	return policy.Hook{Ingress: b.tiers[policy.Ingress], Egress: b.tiers[policy.Egress]}
}

// slots number the policies, so that a set of them is a row of bits.
type slots struct {
	next int
	free []int
}

func (s *slots) take() int {
	if n := len(s.free); n > 0 {
		slot := s.free[n-1]
		s.free = s.free[:n-1]
		return slot
	}
	s.next++
	return s.next - 1
}

func (s *slots) give(slot int) { s.free = append(s.free, slot) }

type bits []uint64

func (b bits) has(i int) bool { return i/64 < len(b) && b[i/64]>>(i%64)&1 == 1 }

func (b *bits) set(i int, on bool) {
	for i/64 >= len(*b) {
		*b = append(*b, 0)
	}
	if on {
		(*b)[i/64] |= 1 << (i % 64)
	} else {
		(*b)[i/64] &^= 1 << (i % 64)
	}
}

// key is the same for two endpoints of the same sort with the same bits.
func (b bits) key(host bool) string {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	var text strings.Builder
	if host {
		text.WriteByte('h')
	}
	for _, word := range b {
		for shift := 0; shift < 64; shift += 8 {
			text.WriteByte(byte(word >> shift))
		}
	}
	return text.String()
}
