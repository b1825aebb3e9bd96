package render_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/dataplane/nft"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/policy/render"
	"github.com/manekinet/maneki/reconcile"
)

// variantState allows UDP to w2 on port 80 and denies port 81, in one of many
// ways: by a single rule, by lists that fold, by selectors, by tiers that pass.
func variantState(n int) *policy.State {
	s := state(nil)
	s.Sets["s:w1"] = &policy.Set{ID: "s:w1", Kind: policy.Addresses, Members: members("10.0.0.1/32", fmt.Sprintf("198.51.100.%d/32", n%256))}
	udp80 := func(from ...func(*policy.Rule)) policy.Rule {
		return rule(policy.Allow, append(from, proto(17), to(80, 80))...)
	}
	var rules []policy.Rule
	switch n % 4 {
	case 0:
		rules = []policy.Rule{udp80(fromSet("s:w1"))}
	case 1:
		for i := range 6 + n%7 {
			rules = append(rules, udp80(from(fmt.Sprintf("10.0.0.%d/32", (i+n)%12+1))))
		}
		rules = append(rules, udp80(from("10.0.0.1/32")))
	case 2:
		rules = []policy.Rule{rule(policy.Deny, proto(17), to(81, 81)), udp80(), rule(policy.Log, proto(6))}
	case 3:
		rules = []policy.Rule{rule(policy.Deny, proto(17), to(81, 90)), rule(policy.Pass)}
	}
	id := gnp(fmt.Sprintf("flip-%d", n%3))
	s.Policies[id] = &policy.Policy{ID: id, Tier: "default", Ingress: numbered(rules...)}
	s.Policies[gnp("always")] = &policy.Policy{ID: gnp("always"), Tier: "last", Ingress: numbered(udp80())}
	clear(s.Endpoints)
	for i := 1; i <= 2; i++ {
		key := desired.EndpointKey{Namespace: "default", Name: fmt.Sprintf("w%d", i)}
		s.Endpoints[key] = &policy.Endpoint{
			Key: key, Interface: fmt.Sprintf("cali%d", i), Profiles: []policy.ID{{Kind: "Profile", Name: "kns.default"}},
			Normal: policy.Hook{Ingress: []policy.Tier{{Name: "default", Policies: []policy.ID{id}, EndDeny: n%4 != 3}, {Name: "last", Policies: []policy.ID{gnp("always")}, EndDeny: true}}},
		}
	}
	return s
}

// indexedState decides the same in ways that an index tells apart: by a selector, a network, an address, for everybody;
// beside policies that are about other ports, and whose selectors select the sender at some times and not at others.
func indexedState(n int) *policy.State {
	s := variantState(0)
	allow := rule(policy.Allow, proto(17), to(80, 80))
	var rules []policy.Rule
	switch n % 5 {
	case 0:
		rules = []policy.Rule{rule(policy.Allow, proto(17), to(80, 80), fromSet("s:w1"))}
	case 1:
		rules = []policy.Rule{rule(policy.Allow, proto(17), to(80, 80), from("10.0.0.0/30"))}
	case 2:
		rules = []policy.Rule{allow}
	case 3:
		rules = []policy.Rule{rule(policy.Deny, proto(17), to(81, 81), fromSet("s:w1")), allow}
	case 4:
		rules = []policy.Rule{rule(policy.Allow, proto(17), to(80, 80), from("10.0.0.1/32"))}
	}
	id := gnp(fmt.Sprintf("decides-%d", n%3))
	s.Policies[id] = &policy.Policy{ID: id, Tier: "default", Ingress: numbered(rules...)}
	ids := []policy.ID{id}
	for i := range 3 + n%4 {
		set := policy.SetID(fmt.Sprintf("s:other-%d", (n/7+i)%6))
		list := []string{fmt.Sprintf("198.51.100.%d/32", i), fmt.Sprintf("198.51.%d.0/24", n%3)}
		if (n+i)%3 == 0 {
			list = append(list, "10.0.0.1/32")
		}
		s.Sets[set] = &policy.Set{ID: set, Kind: policy.Addresses, Members: members(list...)}
		other := gnp(fmt.Sprintf("other-%d", i))
		s.Policies[other] = &policy.Policy{ID: other, Tier: "default", Ingress: numbered(rule(policy.Deny, proto(17), to(82, 82), fromSet(set)))}
		ids = slices.Insert(ids, i%2, other)
	}
	for _, ep := range s.Endpoints {
		ep.Normal.Ingress = []policy.Tier{{Name: "default", Policies: ids, EndDeny: true}}
	}
	return s
}

// flood sends UDP from w1 to w2 on ports 80 and 81 in turns until it is stopped.
type flood struct {
	r          *rig
	stop       context.CancelFunc
	wg         sync.WaitGroup
	good, evil []uint64
}

func startFlood(r *rig) *flood {
	ctx, stop := context.WithCancel(context.Background())
	f := &flood{r: r, stop: stop}
	e := r.ends["w1"]
	to := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: e.index, Halen: 6}
	copy(to.Addr[:], e.mac)
	f.wg.Go(func() {
		for n := uint64(1); ctx.Err() == nil; n++ {
			p := policy.Packet{Src: workloadAddr(1, true), Dst: workloadAddr(2, true), Protocol: 17, SrcPort: uint16(1024 + n%60000), DstPort: 80}
			list := &f.good
			if n%2 == 0 {
				p.DstPort, list = 81, &f.evil
			}
			if unix.Sendto(e.send, build(p, 0x4242<<48|n), 0, to) == nil {
				*list = append(*list, 0x4242<<48|n)
			}
			if n%32 == 0 {
				time.Sleep(2 * time.Millisecond) // some ten thousand packets per second
			}
		}
	})
	return f
}

// wrong counts the packets with the wrong verdict: good ones that did not arrive,
// and evil ones that did.
func (f *flood) wrong() (lost, leaked int) {
	f.stop()
	f.wg.Wait()
	got := f.r.arrived(f.good)
	for _, c := range f.good {
		if len(got[c]) == 0 {
			lost++
		}
	}
	for _, c := range f.evil {
		if len(got[c]) > 0 {
			leaked++
		}
	}
	return lost, leaked
}

// table runs the applier as the agent does.
func (r *rig) table(t *testing.T) *reconcile.Table[desired.NFTKey, desired.NFTObject] {
	table := reconcile.NewTable(r.applier, reconcile.Options[desired.NFTKey]{Name: "nftables", Compare: desired.NFTKey.Compare})
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = table.Run(ctx) })
	wg.Go(func() { r.host.Do(func() { _ = r.applier.Watch(ctx, table.Dirty) }) })
	t.Cleanup(func() {
		stop()
		wg.Wait()
	})
	return table
}

func (r *rig) set(t *testing.T, table *reconcile.Table[desired.NFTKey, desired.NFTObject], s *policy.State) {
	t.Helper()
	n := r.renderer.Render(s).NFT
	r.applier.Provide(n)
	table.Set(n.Objects)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := table.WaitSynced(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestChangesAreAtomic: packets meet the old state or the new one, never half of
// one (spec/faults.md §2 row 28).
func TestChangesAreAtomic(t *testing.T) {
	t.Run("lists", func(t *testing.T) { changesAreAtomic(t, newRig(t), variantState) })
	t.Run("indexes", func(t *testing.T) {
		changesAreAtomic(t, newRigWith(t, render.Options{ReportGroup: 77, IndexFrom: 2}), indexedState)
	})
}

func changesAreAtomic(t *testing.T, r *rig, state func(n int) *policy.State) {
	table := r.table(t)
	r.set(t, table, state(0))
	changes := 10_000
	if testing.Short() {
		changes = 500
	}
	f := startFlood(r)
	for n := range changes {
		r.set(t, table, state(n))
	}
	lost, leaked := f.wrong()
	t.Logf("%d changes, %d packets", changes, len(f.good)+len(f.evil))
	if lost+leaked > 0 || len(f.good) < changes/10 {
		t.Errorf("of %d packets %d were lost, of %d forbidden ones %d came through", len(f.good), lost, len(f.evil), leaked)
	}
}

// TestForeignChangesHeal within a second, whatever was done to the table; and
// what heals is what was there before.
func TestForeignChangesHeal(t *testing.T) {
	r := newRig(t)
	table := r.table(t)
	r.set(t, table, variantState(1))
	before := r.listing()
	for _, harm := range []string{
		"flush table inet maneki", "delete table inet maneki", "flush ruleset", "flush chain inet maneki policy_forward_out",
		"insert rule inet maneki policy_forward_out accept", "add table inet maneki { flags dormant; }",
		"delete element inet maneki policy_forward_out_by_interface { cali2 }", "add chain inet maneki open { type filter hook forward priority -300; }",
		"flush map inet maneki policy_forward_in_by_interface",
	} {
		begin := time.Now()
		r.host.Command("nft", harm)
		for r.listing() != before {
			if time.Since(begin) > 5*time.Second {
				t.Fatalf("%s: not healed: %+v\n%s", harm, table.Status(), r.listing())
			}
			time.Sleep(5 * time.Millisecond)
		}
		took := time.Since(begin)
		t.Logf("%-75s %v", harm, took.Round(time.Millisecond))
		if took > 3*time.Second {
			t.Errorf("%s: healed after %v", harm, took)
		}
	}
}

// listing is the table as nft(8) shows it, in an order of its own, without
// counters.
func (r *rig) listing() string {
	out, err := r.host.TryCommand("nft", "-s", "list", "table", "inet", "maneki")
	if err != nil {
		return err.Error()
	}
	parts := strings.Split(out, "\n\n")
	for i := range parts {
		parts[i] = strings.Trim(parts[i], "\n} {")
	}
	seen := map[string]bool{}
	for _, p := range parts {
		seen[strings.TrimPrefix(p, "table inet maneki {\n")] = true
	}
	return fmt.Sprint(seen)
}

// TestARestartLeavesPolicyInForce: another agent finds everything as it wants it.
func TestARestartLeavesPolicyInForce(t *testing.T) {
	r := newRig(t)
	r.apply(variantState(1))
	var again *nft.Applier
	var err error
	r.host.Do(func() { again, err = nft.New() })
	must(t, err)
	defer again.Close()
	have, err := again.Dump(context.Background())
	must(t, err)
	if puts, dels := differences(render.New(render.Options{ReportGroup: 77}).Render(variantState(1)).NFT, have); len(puts)+len(dels) > 0 {
		t.Errorf("a restart rewrites %v and removes %v", puts, dels)
	}
}

// TestTamperingOpensNothing: random damage, up to four times at once: rules, sets,
// maps and chains emptied, deleted, added to. What is denied may get through
// between the damage and its repair, for damage by root is an act of root; once
// the table is as before, which takes no longer than the bound, nothing does that
// should not, and what should does.
func TestTamperingOpensNothing(t *testing.T) {
	const bound = 5 * time.Second // a second on an idle machine: TestForeignChangesHeal
	r := newRig(t)
	table := r.table(t)
	r.set(t, table, variantState(1))
	before := r.listing()
	random := rand.New(rand.NewPCG(1, 2))
	slowest := time.Duration(0)
	for round := range 60 {
		all := r.harms()
		var done []string
		for range 1 + random.IntN(4) {
			harm := all[random.IntN(len(all))]
			_, _ = r.host.TryCommand("nft", harm) // it may be gone already, or in use
			done = append(done, harm)
		}
		begin := time.Now()
		for r.listing() != before {
			if time.Since(begin) > bound {
				t.Fatalf("%q: not healed: %+v\n%s", done, table.Status(), r.listing())
			}
			time.Sleep(5 * time.Millisecond)
		}
		slowest = max(slowest, time.Since(begin))
		packet := func(port uint16) policy.Packet {
			return policy.Packet{Src: workloadAddr(1, true), Dst: workloadAddr(2, true), Protocol: 17, SrcPort: uint16(2000 + round), DstPort: port}
		}
		evil, good := r.send("w1", packet(81)), r.send("w1", packet(80))
		if got := r.arrived([]uint64{good}); len(got[evil]) > 0 || len(got[good]) == 0 {
			t.Fatalf("after %q: %v, of %d what is denied and %d what is allowed", done, got, evil, good)
		}
	}
	t.Logf("healed after %v at most", slowest)
}

// harms are commands for nft(8) that each damage the table as it is now.
func (r *rig) harms() []string {
	out := []string{"delete table inet maneki", "add table inet maneki { flags dormant; }"}
	list, err := r.host.TryCommand("nft", "-a", "list", "table", "inet", "maneki")
	if err != nil {
		return out
	}
	chain := ""
	for line := range strings.Lines(list) {
		w := strings.Fields(line)
		if len(w) > 1 && (w[0] == "chain" || w[0] == "map" || w[0] == "set") {
			chain = w[1]
			out = append(out, "flush "+w[0]+" inet maneki "+w[1], "delete "+w[0]+" inet maneki "+w[1])
			if w[0] == "chain" {
				out = append(out, "insert rule inet maneki "+w[1]+" accept", "add rule inet maneki "+w[1]+" counter accept")
			}
			continue
		}
		if at := strings.Index(line, "# handle "); at > 0 && strings.HasPrefix(line, "\t\t") {
			out = append(out, "delete rule inet maneki "+chain+" handle "+strings.TrimSpace(line[at+9:]))
		}
	}
	return out
}

// TestNoPolicyWindow: an interface is closed before its endpoint is known, and
// what passes once it is known is what the policy says (spec/faults.md §2 row 27).
func TestNoPolicyWindow(t *testing.T) {
	r := newRig(t)
	table := r.table(t)
	all := variantState(2)
	none := *all
	none.Endpoints = map[desired.EndpointKey]*policy.Endpoint{}
	r.set(t, table, &none)
	var passed atomic.Int64
	for n := range 200 {
		early := r.send("w1", policy.Packet{Src: workloadAddr(1, true), Dst: workloadAddr(2, true), Protocol: 17, SrcPort: uint16(2000 + n), DstPort: 80})
		r.set(t, table, all) // what ADD waits for
		evil := r.send("w1", policy.Packet{Src: workloadAddr(1, true), Dst: workloadAddr(2, true), Protocol: 17, SrcPort: uint16(3000 + n), DstPort: 81})
		good := r.send("w1", policy.Packet{Src: workloadAddr(1, true), Dst: workloadAddr(2, true), Protocol: 17, SrcPort: uint16(4000 + n), DstPort: 80})
		got := r.arrived([]uint64{good})
		passed.Add(int64(len(got[early]) + len(got[evil])))
		if len(got[good]) == 0 {
			t.Fatalf("round %d: what is allowed did not pass", n)
		}
		r.set(t, table, &none)
	}
	if passed.Load() > 0 {
		t.Errorf("%d packets passed that no policy allows", passed.Load())
	}
}

// TestHitsAndLabels: counters and labels lead back to the rules.
func TestHitsAndLabels(t *testing.T) {
	r := newRig(t)
	s := variantState(1)
	id := gnp("flip-1")
	s.Policies[id].Ingress = append(s.Policies[id].Ingress, rule(policy.Deny, proto(17), to(81, 81)))
	s.Policies[id].Ingress = numbered(s.Policies[id].Ingress...)
	res := r.apply(s)
	packet := func(port uint16) policy.Packet {
		return policy.Packet{Src: workloadAddr(1, true), Dst: workloadAddr(2, true), Protocol: 17, SrcPort: 5000 + port, DstPort: port}
	}
	good := r.send("w1", packet(80))
	r.send("w1", packet(81))
	r.arrived([]uint64{good})
	var counters nft.Counters
	var err error
	r.host.Do(func() { counters, err = nft.ReadCounters(res.CountedTypes()) })
	must(t, err)
	hits := res.Hits(func(chain string) []render.Hit {
		var out []render.Hit
		for _, c := range counters.Rules[chain] {
			out = append(out, render.Hit(c))
		}
		return out
	}, func(set string, e desired.Element) render.Hit { return render.Hit(counters.Elements[set][e]) })
	decided := map[int]uint64{}
	for ref, hit := range hits {
		if ref.Policy == id && hit.Packets > 0 {
			decided[ref.Rule] = hit.Packets
		}
	}
	o := s.EvaluateAt(s.Endpoints[desired.EndpointKey{Namespace: "default", Name: "w2"}], policy.PlaceNormal, policy.Ingress, packet(80))
	last := len(s.Policies[id].Ingress) - 1
	if len(decided) != 2 || decided[o.Verdict.Rule] != 1 || decided[last] != 1 {
		t.Errorf("hits %v, expected one of rule %d and one of rule %d", decided, o.Verdict.Rule, last)
	}
	found := false
	for _, l := range res.Labels {
		v := l.For(s, packet(81), "cali1", "cali2")
		found = found || v.Policy == id && v.Rule == last && v.Endpoint.Name == "w2" && v.Reason == policy.ByRule
	}
	if !found {
		t.Errorf("no label names the rule that denied: %v", res.Labels)
	}
}
