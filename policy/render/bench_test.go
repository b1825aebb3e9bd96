package render_test

import (
	"fmt"
	"testing"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/policy/render"
)

// BenchmarkOneMorePolicy renders a state of 1000 policies on each of 100
// endpoints in which one policy has changed.
func BenchmarkOneMorePolicy(b *testing.B) {
	b.Run("each with peers of its own", func(b *testing.B) {
		oneMorePolicy(b, func(i int) string { return fmt.Sprintf("10.1.%d.%d/32", i/256, i%256) })
	})
	b.Run("all with the same peer", func(b *testing.B) { oneMorePolicy(b, func(int) string { return "10.0.0.1/32" }) })
}

func oneMorePolicy(b *testing.B, member func(int) string) {
	s := state(nil)
	var ids []policy.ID
	for i := range 1000 {
		p := &policy.Policy{ID: gnp(fmt.Sprintf("p%04d", i)), Tier: "default", Ingress: numbered(rule(policy.Allow, proto(6), fromSet(policy.SetID(fmt.Sprintf("s:%d", i))), to(80, 80)))}
		s.Policies[p.ID] = p
		s.Sets[p.Ingress[0].Src.Set] = &policy.Set{ID: p.Ingress[0].Src.Set, Kind: policy.Addresses, Members: members(member(i))}
		ids = append(ids, p.ID)
	}
	clear(s.Endpoints)
	for i := range 100 {
		key := desired.EndpointKey{Namespace: "default", Name: fmt.Sprint(i)}
		s.Endpoints[key] = &policy.Endpoint{Key: key, Interface: fmt.Sprintf("cali%d", i), Normal: policy.Hook{Ingress: []policy.Tier{{Name: "default", Policies: ids, EndDeny: true}}}}
	}
	r := render.New(render.Options{ReportGroup: 77})
	r.Render(s)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		id := gnp("p0500")
		p := *s.Policies[id]
		p.Ingress = numbered(rule(policy.Allow, proto(6), to(uint16(i%60000+1), uint16(i%60000+1))))
		s.Policies[id] = &p
		r.Render(s)
	}
}

// BenchmarkFold renders a policy of 10 000 rules.
func BenchmarkFold(b *testing.B) {
	var rules []policy.Rule
	for i := range 10_000 {
		rules = append(rules, rule(policy.Allow, proto(6), from(fmt.Sprintf("10.%d.%d.1/32", i/256, i%256)), to(80, 80)))
	}
	s := state([]*policy.Policy{{ID: gnp("list"), Tier: "default", Ingress: numbered(rules...)}}, policy.Tier{Name: "default", Policies: []policy.ID{gnp("list")}})
	b.ReportAllocs()
	for b.Loop() {
		render.New(render.Options{}).Render(s)
	}
}
