package main

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"github.com/manekinet/maneki/dataplane/nft"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/policy/render"
)

// change measures rendering and the kernel: from a compiled state to the first
// packet that meets the new verdict.
func change(n int) error {
	t, err := newTopology()
	if err != nil {
		return err
	}
	var a *nft.Applier
	if err := t.host.do(func() (err error) { a, err = nft.New(); return err }); err != nil {
		return err
	}
	defer a.Close()
	probe, err := newProbe(t.client, t.server, netip.AddrFrom4([4]byte{10, 0, 0, 1}), netip.AddrFrom4([4]byte{10, 0, 0, 2}))
	if err != nil {
		return err
	}
	defer probe.close()
	fmt.Println("| among | one policy more or less: p50 ms | p99 ms | of which rendering, p50 ms |")
	fmt.Println("|---|---|---|---|")
	for _, others := range []int{0, 100, 1000} {
		if err := policyChanges(a, probe, others, n); err != nil {
			return err
		}
	}
	fmt.Println()
	if err := put(a, desired.NFT{}); err != nil {
		return err
	}
	if err := peers(t, probe, n); err != nil {
		return err
	}
	for _, members := range []int{1, 100} {
		if err := start(t, members); err != nil {
			return err
		}
	}
	for _, net := range []string{"", "203.0.113.0/24"} {
		if err := move(t, n, net); err != nil {
			return err
		}
	}
	return nil
}

// states make states with policies that do not match the probe, and one more that
// does. Policies of earlier states are the same objects, as the calculation shares
// them.
type states struct {
	others []*policy.Policy
	sets   map[policy.SetID]*policy.Set
}

func newStates(n int) states {
	base := manyState(n + 1)
	s := states{sets: base.Sets}
	for i := range n {
		s.others = append(s.others, base.Policies[gnp(fmt.Sprintf("p%04d", i))])
	}
	return s
}

func (s states) with(on bool) *policy.State {
	list := s.others
	one := &policy.Policy{ID: gnp("one-more"), Ingress: []policy.Rule{anything(policy.Allow)}}
	if !on {
		one.Ingress = []policy.Rule{anything(policy.Deny)}
	}
	mid := len(list) / 2
	list = append(append(append([]*policy.Policy{}, list[:mid]...), one), list[mid:]...)
	out := workloads(list...)
	out.Sets = s.sets
	return out
}

func policyChanges(a *nft.Applier, probe *probe, others, n int) error {
	s, r := newStates(others), render.New(render.Options{ReportGroup: policy.ReportGroup})
	first := r.Render(s.with(false)).NFT
	if err := put(a, first); err != nil {
		return err
	}
	have := first.Objects
	var whole, rendering []time.Duration
	for i := range n {
		next := s.with(i%2 == 0)
		begin := time.Now()
		want := r.Render(next).NFT
		rendering = append(rendering, time.Since(begin))
		if err := step(a, want, have); err != nil {
			return err
		}
		have = want.Objects
		if err := probe.until(i%2 == 0); err != nil {
			return err
		}
		whole = append(whole, time.Since(begin))
	}
	fmt.Printf("| %d policies | %.2f | %.2f | %.2f |\n", others, ms(percentile(whole, 0.5)), ms(percentile(whole, 0.99)), ms(percentile(rendering, 0.5)))
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// step applies the difference between two wishes, as a Table does that has heard
// of no foreign change.
func step(a *nft.Applier, want desired.NFT, have map[desired.NFTKey]desired.NFTObject) error {
	a.Provide(want)
	var puts []nft.Entry
	var dels []desired.NFTKey
	for k, o := range want.Objects {
		if h, ok := have[k]; !ok || h != o {
			puts = append(puts, nft.Entry{Key: k, Value: o})
		}
	}
	for k := range have {
		if _, ok := want.Objects[k]; !ok {
			dels = append(dels, k)
		}
	}
	for _, err := range a.Apply(context.Background(), puts, dels) {
		return err
	}
	return nil
}

// start renders and writes 1000 policies on 100 endpoints, from nothing and with
// everything in the kernel already.
func start(t topology, members int) error {
	s := manyState(1000)
	for i := range 1000 {
		set := s.Sets[policy.SetID(fmt.Sprintf("s:%d", i))]
		var more []desired.Member
		for j := range members - 1 {
			more = append(more, desired.Member{Net: netip.PrefixFrom(address(100_000+100*i+j), 32)})
		}
		set.Members = set.Members.Change(more, nil)
	}
	server := s.Endpoints[desired.EndpointKey{Namespace: "default", Name: "server"}]
	for i := range 100 {
		ep := *server
		ep.Key.Name, ep.Interface = fmt.Sprintf("server-%d", i), fmt.Sprintf("cali1%02d", i)
		ep.Normal.Ingress = []policy.Tier{{Name: "default", EndDeny: true, Policies: append([]policy.ID{}, server.Normal.Ingress[0].Policies...)}}
		s.Endpoints[ep.Key] = &ep
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var rendered, cold, warm time.Duration
	err := t.host.do(func() error {
		a, err := nft.New()
		if err != nil {
			return err
		}
		defer a.Close()
		begin := time.Now()
		want := render.New(render.Options{ReportGroup: policy.ReportGroup}).Render(s).NFT
		rendered = time.Since(begin)
		if err := put(a, want); err != nil {
			return err
		}
		cold = time.Since(begin)
		runtime.GC()
		runtime.ReadMemStats(&after)
		runtime.KeepAlive(want)
		again, err := nft.New()
		if err != nil {
			return err
		}
		defer again.Close()
		begin = time.Now()
		err = put(again, render.New(render.Options{ReportGroup: policy.ReportGroup}).Render(s).NFT)
		warm = time.Since(begin)
		return err
	})
	fmt.Printf("1000 policies on each of 100 endpoints, selectors of %d: rendered in %.0f ms; in the kernel after %.0f ms; after a restart found to be there in %.0f ms; %.1f MiB of heap.\n\n",
		members, ms(rendered), ms(cold), ms(warm), float64(after.HeapAlloc-before.HeapAlloc)/(1<<20))
	return err
}

// move moves one address in and out of a selector of 100 000, which may have a
// network among its members.
func move(t topology, n int, net string) error {
	s := setState(100_000)
	if net != "" {
		s.Sets["s:bench"].Members = s.Sets["s:bench"].Members.Change([]desired.Member{{Net: netip.MustParsePrefix(net)}}, nil)
	}
	r := render.New(render.Options{ReportGroup: policy.ReportGroup})
	var load time.Duration
	var times []time.Duration
	err := t.host.do(func() error {
		a, err := nft.New()
		if err != nil {
			return err
		}
		defer a.Close()
		want := r.Render(s).NFT
		begin := time.Now()
		if err := put(a, want); err != nil {
			return err
		}
		load = time.Since(begin)
		have := want.Objects
		set := s.Sets["s:bench"]
		for i := range n {
			next := *s
			m := []desired.Member{{Net: netip.PrefixFrom(netip.AddrFrom4([4]byte{12, 0, 0, 1}), 32)}}
			moved := *set
			if i%2 == 0 {
				moved.Members = set.Members.Change(m, nil)
			} else {
				moved.Members = set.Members.Change(nil, m)
			}
			set = &moved
			next.Sets = map[policy.SetID]*policy.Set{"s:bench": set}
			begin := time.Now()
			want := r.Render(&next).NFT
			if err := step(a, want, have); err != nil {
				return err
			}
			have = want.Objects
			times = append(times, time.Since(begin))
		}
		return nil
	})
	if net != "" {
		net = " and " + net
	}
	fmt.Printf("A selector of 100 000 addresses%s: written in %.0f ms; one address moved in %.2f ms (p50), %.2f ms (p99).\n", net, ms(load), ms(percentile(times, 0.5)), ms(percentile(times, 0.99)))
	return err
}
