package render_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/policy/render"
)

// oracle says what becomes of a packet, from the specification alone
// (spec/calico.md §5.1, §5.2, §5.5).
type oracle struct{ s *policy.State }

// answer of a list of rules.
type answer uint8

const (
	silent answer = iota
	allowed
	denied
	passed
)

func (o oracle) rules(rules []policy.Rule, p policy.Packet) answer {
	for _, r := range rules {
		if !o.matches(r, p) {
			continue
		}
		switch r.Do {
		case policy.Allow:
			return allowed
		case policy.Deny:
			return denied
		case policy.Pass:
			return passed
		}
	}
	return silent
}

// ask is tiers, and profiles where they count; final says what an endpoint that
// decides everything does with what nobody decided.
func (o oracle) ask(ep *policy.Endpoint, place policy.Place, d policy.Direction, p policy.Packet) answer {
	for _, t := range ep.At(place).In(d) {
		a := silent
		for _, id := range t.Policies {
			pol := o.s.Policies[id]
			if pol == nil || pol.Staged {
				continue
			}
			if a = o.rules(pol.Rules(d), p); pol.Broken != "" {
				a = denied
			}
			if a != silent {
				break
			}
		}
		if a == silent && t.EndDeny {
			a = denied
		}
		if a == allowed || a == denied {
			return a
		}
	}
	if place != policy.PlaceNormal {
		return silent
	}
	for _, id := range ep.Profiles {
		if pol := o.s.Policies[id]; pol != nil {
			if pol.Broken != "" {
				return denied
			}
			if a := o.rules(pol.Rules(d), p); a == allowed || a == denied {
				return a
			}
		}
	}
	return denied
}

func (o oracle) matches(r policy.Rule, p policy.Packet) bool {
	family := uint8(6)
	if p.Dst.Is4() {
		family = 4
	}
	isICMP := func(i *policy.ICMP) bool { return i.Type == p.Type && (i.Code == nil || *i.Code == p.Code) }
	if r.Family != 0 && r.Family != family || r.Protocol != 0 && r.Protocol != p.Protocol || r.NotProtocol != 0 && r.NotProtocol == p.Protocol {
		return false
	}
	if r.ICMP != nil && !isICMP(r.ICMP) || r.NotICMP != nil && isICMP(r.NotICMP) {
		return false
	}
	return o.entity(r.Src, p, p.Src, p.SrcPort) && o.entity(r.Dst, p, p.Dst, p.DstPort)
}

func (o oracle) entity(e policy.Entity, p policy.Packet, a netip.Addr, port uint16) bool {
	within := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(n netip.Prefix) bool { return n.Contains(a) })
	}
	if e.Nets != nil && !within(e.Nets) || within(e.NotNets) {
		return false
	}
	if e.Set != "" && !o.in(e.Set, p, a, port) || e.NotSet != "" && o.in(e.NotSet, p, a, port) || e.Service != "" && !o.in(e.Service, p, a, port) {
		return false
	}
	if e.AnyPort && len(e.NotPorts)+len(e.NotNamed) == 0 {
		return true
	}
	if p.Protocol != 6 && p.Protocol != 17 && p.Protocol != 132 {
		return false
	}
	listed := func(ranges []policy.PortRange, named []policy.SetID) bool {
		return slices.ContainsFunc(ranges, func(r policy.PortRange) bool { return r.From <= port && port <= r.To }) ||
			slices.ContainsFunc(named, func(id policy.SetID) bool { return o.in(id, p, a, port) })
	}
	return (e.AnyPort || listed(e.Ports, e.Named)) && !listed(e.NotPorts, e.NotNamed)
}

func (o oracle) in(id policy.SetID, p policy.Packet, a netip.Addr, port uint16) bool {
	set := o.s.Sets[id]
	if set == nil {
		return false
	}
	for m := range set.Members.All() {
		if m.Net.Contains(a) && (m.Proto == 0 || m.Proto == p.Protocol && m.Port == port) {
			return true
		}
	}
	return false
}

func (o oracle) failsafe(list []policy.Failsafe, p policy.Packet, far netip.Addr) bool {
	return slices.ContainsFunc(list, func(f policy.Failsafe) bool {
		return f.Protocol == p.Protocol && f.Port == p.DstPort && (!f.Net.IsValid() || f.Net.Contains(far))
	})
}

// delivered follows a packet through the hooks.
func (o oracle) delivered(from, to string, p policy.Packet) bool {
	workload := func(name string) *policy.Endpoint {
		return o.s.Endpoints[desired.EndpointKey{Namespace: "default", Name: name}]
	}
	hep := o.s.Endpoints[desired.EndpointKey{Name: "hep"}]
	accepted := false // by an untracked or preDNAT policy
	switch {
	case from == "out" && hep != nil:
		if !o.failsafe(o.s.Options.FailsafeInbound, p, p.Src) {
			for _, place := range []policy.Place{policy.PlaceUntracked, policy.PlacePreDNAT} {
				switch a := o.ask(hep, place, policy.Ingress, p); {
				case accepted:
				case a == denied:
					return false
				case a == allowed:
					accepted = true
				}
			}
		}
		if accepted {
			break
		}
		if to == "host" {
			return o.failsafe(o.s.Options.FailsafeInbound, p, p.Src) || o.ask(hep, policy.PlaceNormal, policy.Ingress, p) == allowed
		}
		if o.ask(hep, policy.PlaceForward, policy.Ingress, p) == denied {
			return false
		}
	case from == "host":
		if to != "out" || hep == nil {
			return true
		}
		if o.failsafe(o.s.Options.FailsafeOutbound, p, p.Dst) {
			return true
		}
		switch o.ask(hep, policy.PlaceUntracked, policy.Egress, p) {
		case allowed:
			return true
		case denied:
			return false
		}
		return o.ask(hep, policy.PlaceNormal, policy.Egress, p) == allowed
	case from != "out":
		if w := workload(from); w == nil || o.ask(w, policy.PlaceNormal, policy.Egress, p) == denied {
			return false
		}
		if to == "host" {
			return o.s.Options.EndpointToHost != policy.EndpointToHostDrop
		}
	}
	switch to {
	case "out":
		return hep == nil || o.ask(hep, policy.PlaceForward, policy.Egress, p) != denied
	case "host":
		return true
	}
	w := workload(to)
	return w != nil && o.ask(w, policy.PlaceNormal, policy.Ingress, p) == allowed
}

// drawing of random states.

func drawNets(t *rapid.T, label string) []netip.Prefix {
	all := []string{
		"10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32", "10.0.0.0/30", "10.0.0.0/8", "192.0.2.1/32", "192.0.2.0/24", "0.0.0.0/0", "172.18.0.1/32",
		"fd00::1/128", "fd00::2/128", "fd00::/64", "fd01::1/128", "fd01::/16", "::/0", "fd18::1/128",
	}
	return nets(rapid.SliceOfN(rapid.SampledFrom(all), 1, 3).Draw(t, label)...)
}

func drawPorts(t *rapid.T, label string) []policy.PortRange {
	return rapid.SliceOfN(rapid.SampledFrom(ports(80, 80, 443, 443, 80, 90, 53, 443, 8080, 8080, 0, 65535, 81, 81)), 1, 2).Draw(t, label)
}

func drawEntity(t *rapid.T, label string, hasPorts bool) policy.Entity {
	e := entity()
	set := func(ids ...policy.SetID) policy.SetID { return rapid.SampledFrom(ids).Draw(t, label+" set") }
	for _, what := range rapid.SliceOfN(rapid.IntRange(0, 9), 0, 2).Draw(t, label) {
		switch what {
		case 0, 1:
			e.Nets = drawNets(t, label+" nets")
		case 2:
			e.NotNets = drawNets(t, label+" not nets")
		case 3:
			e.Set = set("s:a", "s:b", "s:gone")
		case 4:
			e.NotSet = set("s:a", "s:b", "s:gone")
		case 5:
			e.Service = set("v:default/web", "w:default/web")
		case 6:
			if hasPorts {
				e.AnyPort, e.Ports = false, drawPorts(t, label+" ports")
			}
		case 7:
			if hasPorts {
				e.AnyPort, e.Named = false, []policy.SetID{set("n:6:http:x", "n:17:dns:x")}
			}
		case 8:
			if hasPorts {
				e.NotPorts = drawPorts(t, label+" not ports")
			}
		case 9:
			if hasPorts {
				e.NotNamed = []policy.SetID{set("n:6:http:x", "n:17:dns:x")}
			}
		}
	}
	return e
}

func drawRule(t *rapid.T, pass bool) policy.Rule {
	actions := []policy.Action{policy.Allow, policy.Allow, policy.Deny, policy.Log}
	if pass {
		actions = append(actions, policy.Pass)
	}
	r := policy.Rule{Do: rapid.SampledFrom(actions).Draw(t, "do")}
	r.Protocol = rapid.SampledFrom([]uint8{0, 0, 1, 6, 6, 17, 58, 132, 100}).Draw(t, "protocol")
	if r.Protocol == 0 {
		r.NotProtocol = rapid.SampledFrom([]uint8{0, 0, 6, 17}).Draw(t, "not protocol")
	}
	if rapid.IntRange(0, 4).Draw(t, "with family") == 0 {
		r.Family = rapid.SampledFrom([]uint8{4, 6}).Draw(t, "family")
	}
	if r.Protocol == 1 || r.Protocol == 58 {
		r.Family = map[uint8]uint8{1: 4, 58: 6}[r.Protocol]
		i := &policy.ICMP{Type: rapid.SampledFrom([]uint8{8, 13, 128, 139}).Draw(t, "type")}
		if rapid.Bool().Draw(t, "code") {
			i.Code = ptr(rapid.Uint8Range(0, 1).Draw(t, "code number"))
		}
		switch rapid.IntRange(0, 2).Draw(t, "icmp") {
		case 1:
			r.ICMP = i
		case 2:
			r.NotICMP = i
		}
	}
	hasPorts := r.Protocol == 0 || policy.HasPorts(r.Protocol)
	r.Src, r.Dst = drawEntity(t, "src", hasPorts), drawEntity(t, "dst", hasPorts)
	return r
}

func ptr(n uint8) *uint8 { return &n }

// drawRun is rules of one shape, which are folded.
func drawRun(t *rapid.T, pass bool) []policy.Rule {
	actions := []policy.Action{policy.Allow, policy.Allow, policy.Deny}
	if pass {
		actions = append(actions, policy.Pass)
	}
	shape := rapid.IntRange(1, 7).Draw(t, "shape")
	exact := rapid.Bool().Draw(t, "exact")
	var out []policy.Rule
	for range rapid.IntRange(4, 10).Draw(t, "run") {
		r := rule(rapid.SampledFrom(actions).Draw(t, "do"))
		address := func(label string) []netip.Prefix {
			if exact {
				return nets(rapid.SampledFrom([]string{"10.0.0.1/32", "10.0.0.2/32", "192.0.2.1/32", "fd00::1/128", "fd00::2/128", "fd01::1/128", "172.18.0.1/32"}).Draw(t, label))
			}
			return drawNets(t, label)
		}
		if shape&1 != 0 {
			r.Src.Nets = address("run src")
		}
		if shape&2 != 0 {
			r.Dst.Nets = address("run dst")
		}
		if shape&4 != 0 {
			r.Protocol = rapid.SampledFrom([]uint8{6, 17}).Draw(t, "run protocol")
			r.Dst.AnyPort, r.Dst.Ports = false, drawPorts(t, "run ports")
			if exact {
				r.Dst.Ports = ports(80, 80)
			}
		}
		out = append(out, r)
	}
	return out
}

func drawRules(t *rapid.T, pass bool) []policy.Rule {
	var out []policy.Rule
	for range rapid.IntRange(0, 2).Draw(t, "parts") {
		if rapid.Bool().Draw(t, "folded") {
			out = append(out, drawRun(t, pass)...)
			continue
		}
		for range rapid.IntRange(1, 3).Draw(t, "rules") {
			out = append(out, drawRule(t, pass))
		}
	}
	return numbered(out...)
}

func drawTiers(t *rapid.T, ids []policy.ID, ends bool) []policy.Tier {
	var out []policy.Tier
	for i := range rapid.IntRange(0, 2).Draw(t, "tiers") {
		tier := policy.Tier{Name: fmt.Sprintf("tier%d", i), Policies: rapid.SliceOfNDistinct(rapid.SampledFrom(ids), 1, 3, policy.ID.String).Draw(t, "policies")}
		tier.EndDeny = ends && rapid.Bool().Draw(t, "end")
		out = append(out, tier)
	}
	return out
}

func drawState(t *rapid.T) *policy.State {
	s := state(nil)
	clear(s.Endpoints)
	var ids []policy.ID
	for i := range 6 {
		id := gnp(fmt.Sprintf("policy-%d", i))
		pass := rapid.IntRange(0, 2).Draw(t, "passes") == 0
		p := &policy.Policy{ID: id, Tier: "default", Ingress: drawRules(t, pass), Egress: drawRules(t, pass)}
		switch rapid.IntRange(0, 14).Draw(t, "special") {
		case 0:
			p.Broken, p.Ingress, p.Egress = "it is", nil, nil
		case 1:
			p.Staged = true
		}
		s.Policies[id] = p
		ids = append(ids, id)
	}
	some := func(label string, all ...string) *desired.Members {
		return members(rapid.SliceOfNDistinct(rapid.SampledFrom(all), 0, 3, rapid.ID).Draw(t, label)...)
	}
	for _, id := range []policy.SetID{"s:a", "s:b", "w:default/web"} {
		s.Sets[id] = &policy.Set{ID: id, Kind: policy.Addresses, Members: some(string(id), "10.0.0.1/32", "10.0.0.2/31", "fd00::1/128", "192.0.2.0/24", "fd01::2/128")}
	}
	for id, proto := range map[policy.SetID]uint8{"n:6:http:x": 6, "n:17:dns:x": 17, "v:default/web": 6} {
		var list []desired.Member
		for _, a := range rapid.SliceOfN(rapid.SampledFrom([]string{"10.0.0.1/32", "10.0.0.2/32", "fd00::1/128", "fd00::2/128"}), 0, 3).Draw(t, string(id)) {
			list = append(list, desired.Member{Net: prefix(a), Proto: proto, Port: rapid.SampledFrom([]uint16{80, 53}).Draw(t, "named")})
		}
		s.Sets[id] = &policy.Set{ID: id, Kind: policy.AddressPorts, Members: desired.NewMembers(list...)}
	}
	s.Policies[policy.ID{Kind: "Profile", Name: "p1"}] = &policy.Policy{ID: policy.ID{Kind: "Profile", Name: "p1"}, Ingress: drawRules(t, false), Egress: drawRules(t, false)}
	for i := 1; i <= 3; i++ {
		key := desired.EndpointKey{Namespace: "default", Name: fmt.Sprintf("w%d", i)}
		s.Endpoints[key] = &policy.Endpoint{
			Key: key, Interface: fmt.Sprintf("cali%d", i), Normal: policy.Hook{Ingress: drawTiers(t, ids, true), Egress: drawTiers(t, ids, true)},
			Profiles: rapid.SampledFrom([][]policy.ID{{{Kind: "Profile", Name: "kns.default"}}, {{Kind: "Profile", Name: "p1"}, {Kind: "Profile", Name: "kns.default"}}, {{Kind: "Profile", Name: "gone"}}, nil}).Draw(t, "profiles"),
		}
	}
	if rapid.IntRange(0, 9).Draw(t, "unknown") == 0 {
		delete(s.Endpoints, desired.EndpointKey{Namespace: "default", Name: "w3"})
	}
	s.Options.EndpointToHost = rapid.SampledFrom([]policy.EndpointToHost{policy.EndpointToHostDrop, policy.EndpointToHostAccept, policy.EndpointToHostReturn}).Draw(t, "to host")
	s.Options.Reject = rapid.Bool().Draw(t, "reject")
	s.Options.FailsafeInbound = []policy.Failsafe{{Protocol: 6, Port: 443}, {Protocol: 17, Port: 53, Net: prefix("192.0.2.0/30")}}
	s.Options.FailsafeOutbound = []policy.Failsafe{{Protocol: 6, Port: 8080, Net: prefix("fd01::/64")}}
	if rapid.Bool().Draw(t, "host endpoint") {
		key := desired.EndpointKey{Name: "hep"}
		s.Endpoints[key] = &policy.Endpoint{
			Key: key, Host: true, Interface: rapid.SampledFrom([]string{"eth0", "*"}).Draw(t, "interface"),
			Normal:    policy.Hook{Ingress: drawTiers(t, ids, true), Egress: drawTiers(t, ids, true)},
			Forward:   policy.Hook{Ingress: drawTiers(t, ids, true), Egress: drawTiers(t, ids, true)},
			PreDNAT:   policy.Hook{Ingress: drawTiers(t, ids, false)},
			Untracked: policy.Hook{Ingress: drawTiers(t, ids, false), Egress: drawTiers(t, ids, false)},
			Profiles:  rapid.SampledFrom([][]policy.ID{{{Kind: "Profile", Name: "kns.default"}}, nil}).Draw(t, "profiles"),
		}
	}
	return s
}

// way is a packet and between whom.
type way struct {
	from, to string
	p        policy.Packet
}

func drawWay(t *rapid.T, n int) way {
	places := []string{"w1", "w2", "w3", "out", "host"}
	w := way{from: rapid.SampledFrom(places).Draw(t, "from")}
	w.to = rapid.SampledFrom(slices.DeleteFunc(places, func(s string) bool { return s == w.from })).Draw(t, "to")
	v4 := rapid.Bool().Draw(t, "v4")
	addr := func(place string) netip.Addr {
		switch place {
		case "out":
			return outAddr(rapid.IntRange(1, 3).Draw(t, "outside"), v4)
		case "host":
			return hostAddr(v4)
		}
		return workloadAddr(int(place[1]-'0'), v4)
	}
	w.p = policy.Packet{
		Src: addr(w.from), Dst: addr(w.to), Protocol: rapid.SampledFrom([]uint8{6, 6, 17, 17, 1, 132, 100}).Draw(t, "protocol"),
		SrcPort: uint16(1024 + n%60000), DstPort: rapid.SampledFrom([]uint16{80, 81, 443, 53, 8080, 9999}).Draw(t, "port"),
	}
	if w.p.Protocol == 1 {
		w.p.Type = rapid.SampledFrom([]uint8{8, 13}).Draw(t, "type")
		if !v4 {
			w.p.Protocol, w.p.Type = 58, rapid.SampledFrom([]uint8{128, 139}).Draw(t, "type6")
		}
		w.p.Code = rapid.Uint8Range(0, 1).Draw(t, "code")
	}
	return w
}

// TestPacketsMeetTheirVerdicts: random policies, random packets, and three
// opinions: the kernel's, the oracle's, and policy.Evaluate's.
func TestPacketsMeetTheirVerdicts(t *testing.T) {
	t.Run("lists", func(t *testing.T) { packetsMeetTheirVerdicts(t, render.Options{ReportGroup: 77}) })
	t.Run("indexes", func(t *testing.T) { packetsMeetTheirVerdicts(t, render.Options{ReportGroup: 77, IndexFrom: 2}) })
}

func packetsMeetTheirVerdicts(t *testing.T, o render.Options) {
	r := newRigWith(t, o)
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t)
		res := r.apply(s)
		o := oracle{s}
		var ways []way
		var cookies, expected []uint64
		for range 24 {
			n++
			w := drawWay(t, n)
			ways = append(ways, w)
			cookies = append(cookies, r.send(w.from, w.p))
			if o.delivered(w.from, w.to, w.p) {
				expected = append(expected, cookies[len(cookies)-1])
			}
			evaluated(t, o, w)
		}
		got := r.arrived(expected)
		for i, w := range ways {
			want := slices.Contains(expected, cookies[i])
			at := ""
			for _, place := range got[cookies[i]] {
				if place != w.from { // an ICMP error quotes the packet to its sender
					at = place
				}
			}
			if (at == w.to) != want || at != "" && at != w.to {
				t.Fatalf("%s from %s to %s: delivered to %q, expected %v\n%s", w.p, w.from, w.to, at, want, res.NFT)
			}
		}
	})
}

// evaluated compares policy.Evaluate with the oracle, place by place.
func evaluated(t *rapid.T, o oracle, w way) {
	for _, ep := range o.s.Endpoints {
		for _, place := range []policy.Place{policy.PlaceNormal, policy.PlaceForward, policy.PlacePreDNAT, policy.PlaceUntracked} {
			for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
				trace := o.s.EvaluateAt(ep, place, d, w.p)
				if trace.Verdict.Reason == policy.ByFailsafe {
					continue
				}
				if want := o.ask(ep, place, d, w.p) != denied; trace.Allowed != want {
					t.Fatalf("%s at %s, %s, %s: evaluated to %v, expected %v", w.p, ep.Key, place, d, trace.Allowed, want)
				}
			}
		}
	}
}
