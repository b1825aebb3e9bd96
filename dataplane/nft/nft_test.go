package nft_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"go.uber.org/goleak"

	"github.com/manekinet/maneki/dataplane/nft"
	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/desired"
	tables "github.com/manekinet/maneki/reconcile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func set(name string) desired.NFTKey   { return desired.NFTKey{Kind: desired.NFTSet, Name: name} }
func chain(name string) desired.NFTKey { return desired.NFTKey{Kind: desired.NFTChain, Name: name} }

func rule(do desired.Action, m ...desired.Match) desired.Rule { return desired.Rule{Match: m, Do: do} }

func dropped(m ...desired.Match) desired.Rule {
	return desired.Rule{Match: m, Counter: true, Do: desired.Drop}
}

func hook(kind, name string, priority int) desired.Hook {
	return desired.Hook{Type: kind, Name: name, Priority: priority}
}

// wanted has every kind of object, match and action.
func wanted() desired.NFT {
	var n desired.NFT
	n.AddSet("pools4", desired.AddrSetType(true), desired.NetMembers(prefix("10.0.0.0/8"), prefix("11.0.0.0/9"), prefix("255.255.255.0/24"), prefix("172.18.0.3/32"), prefix("0.0.0.0/32")))
	n.AddSet("hosts6", desired.AddrSetType(false), desired.NetMembers(prefix("fd00::/8"), prefix("ffff::/16")))
	n.AddSet("empty4", desired.AddrSetType(true), nil)
	n.AddSet("web6", desired.AddrPortSetType(false), desired.NewMembers(desired.Member{Net: prefix("fd00::1/128"), Proto: 6, Port: 80}))
	ports := desired.NewSetType(true, desired.TypePort)
	n.AddElements("ports", ports, desired.NewElements(ports.Element(desired.Verdict{}, desired.PortPart(80, 90)), ports.Element(desired.Verdict{}, desired.PortPart(443, 443))))
	dispatch := desired.NewSetType(false, desired.TypeInterface)
	dispatch.Verdicts = true
	n.AddElements("dispatch", dispatch, desired.NewElements(
		dispatch.Element(desired.Verdict{Do: desired.Goto, Chain: "ep1"}, desired.InterfacePart("cali1")),
		dispatch.Element(desired.Verdict{Do: desired.Accept}, desired.InterfacePart("cali2"))))
	fold := desired.NewSetType(true, desired.TypeIPv4, desired.TypeProto, desired.TypePort)
	fold.Verdicts, fold.Counters = true, true
	n.AddElements("fold4", fold, desired.NewElements(
		fold.Element(desired.Verdict{Do: desired.Accept}, desired.AddrPart(prefix("10.0.0.0/8")), desired.ProtoPart(6), desired.PortPart(80, 90)),
		fold.Element(desired.Verdict{Do: desired.Jump, Chain: "deny"}, desired.AddrPart(prefix("11.0.0.1/32")), desired.ProtoPart(17), desired.PortPart(0, 65535))))
	n.AddChain("prerouting", hook("filter", "prerouting", -300),
		rule(desired.Accept, desired.InInterface("cali12"), desired.SrcNet(prefix("10.128.0.0/9"))),
		rule(desired.Accept, desired.InInterface("cali12"), desired.SrcNet(prefix("fd00::/17"))),
		dropped(desired.InInterface("cali*"), desired.Spoofed()),
		dropped(desired.InInterface("cali*"), desired.UDPPort(4789)),
		dropped(desired.InInterface("cali*"), desired.Proto(4)),
		rule(desired.Notrack, desired.UDPPort(4789)),
		desired.Rule{Mark: desired.Mark{Clear: 0x10000}}, desired.Rule{Mark: desired.Mark{Set: 0x10000}, Do: desired.Accept},
	)
	n.AddChain("input", hook("filter", "input", -10), dropped(desired.UDPPort(4789), desired.SrcIn("hosts6", false).Negate()),
		rule(desired.Accept, desired.State(desired.Established|desired.Related)),
		rule(desired.Drop, desired.State(desired.Invalid)),
		rule(desired.Accept, desired.Marked(0x10000)), rule(desired.Accept, desired.Marked(0x10000).Negate()))
	n.AddChain("input2", hook("filter", "input", -9), desired.Rule{Do: desired.VMap, Map: "dispatch", Key: []desired.Field{desired.FieldIn}})
	n.AddChain("ep1", desired.Hook{}, desired.Rule{Do: desired.VMap, Map: "fold4", Key: []desired.Field{desired.FieldSrc4, desired.FieldProto, desired.FieldDstPort}},
		desired.Rule{Match: []desired.Match{desired.Proto(6)}, Counter: true, Do: desired.Jump, Chain: "deny"},
		rule(desired.Return, desired.Family(6), desired.Proto(58), desired.ICMPType(128, 0)),
		rule(desired.Return, desired.Family(4), desired.Proto(1), desired.ICMPType(3, -1).Negate()),
		rule(desired.Accept, desired.Proto(6).Negate(), desired.InSet("web6", desired.FieldDst6, desired.FieldProto, desired.FieldDstPort)),
		rule(desired.Accept, desired.Proto(17), desired.SrcPort(53, 53), desired.DstPort(1024, 65535), desired.DstPort(2000, 3000).Negate()),
		rule(desired.Accept, desired.Proto(132), desired.InSet("ports", desired.FieldDstPort), desired.InSet("ports", desired.FieldSrcPort).Negate()),
		desired.Rule{Match: []desired.Match{desired.DstNet(prefix("10.0.0.1/32")), desired.SrcNet(prefix("10.0.0.0/8")).Negate()}, Do: desired.Goto, Chain: "deny"},
	)
	n.AddChain("deny", desired.Hook{},
		desired.Rule{Limit: desired.Limit{PerSecond: 10, Burst: 20}, Log: desired.Log{Group: 77, Prefix: "m:0123456789abcdef"}},
		desired.Rule{Limit: desired.Limit{PerSecond: 1, Burst: 7}, Log: desired.Log{Kernel: true, Prefix: "calico-packet: "}},
		rule(desired.Reset, desired.Proto(6)), desired.Rule{Counter: true, Do: desired.Reject})
	n.AddChain("postrouting", hook("nat", "postrouting", 90),
		rule(desired.Masquerade, desired.OutInterface("vxlan.calico"), desired.ForeignSrc()),
		desired.Rule{Match: []desired.Match{desired.SrcIn("pools4", true), desired.DstIn("pools4", true).Negate(), desired.DstIn("empty4", true).Negate()}, Do: desired.Masquerade, NAT: desired.NAT{Random: true}},
		desired.Rule{Match: []desired.Match{desired.Proto(6)}, Do: desired.Masquerade, NAT: desired.NAT{From: 1024, To: 2047, Random: true}},
		desired.Rule{Match: []desired.Match{desired.Family(4), desired.Proto(17)}, Do: desired.SNAT, NAT: desired.NAT{Addr: addr("192.0.2.1"), From: 5000, To: 6000, Random: true}})
	n.AddChain("dnat", hook("nat", "prerouting", -110),
		desired.Rule{Match: []desired.Match{desired.Family(4), desired.LocalDst(), desired.Proto(6), desired.DstPort(8080, 8080)}, Do: desired.DNAT, NAT: desired.NAT{Addr: addr("10.0.0.1"), From: 80}},
		desired.Rule{Match: []desired.Match{desired.Family(6), desired.Proto(6)}, Do: desired.DNAT, NAT: desired.NAT{Addr: addr("fd00::1"), From: 80}},
		desired.Rule{Match: []desired.Match{desired.Family(4)}, Do: desired.DNAT, NAT: desired.NAT{Addr: addr("10.0.0.1")}})
	return n
}

// applier works in a namespace: its socket belongs there wherever it is used.
func applier(t *testing.T, ns *nstest.NS) *nft.Applier {
	var a *nft.Applier
	var err error
	ns.Do(func() { a, err = nft.New() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// reconcile brings the table to want the way a Table does.
func reconcile(t testing.TB, a *nft.Applier, want desired.NFT) {
	t.Helper()
	ctx := context.Background()
	have, err := a.Dump(ctx)
	if err != nil {
		t.Fatal(err)
	}
	a.Provide(want)
	puts, dels := differences(want, have)
	if errs := a.Apply(ctx, puts, dels); len(errs) > 0 {
		t.Fatalf("apply: %v", errs)
	}
	if have, err = a.Dump(ctx); err != nil {
		t.Fatal(err)
	}
	if puts, dels = differences(want, have); len(puts)+len(dels) > 0 {
		for _, p := range puts {
			t.Errorf("%s: have %+v, want %+v", p.Key, have[p.Key], p.Value)
		}
		t.Fatalf("left: %v", dels)
	}
}

func differences(want desired.NFT, have map[desired.NFTKey]desired.NFTObject) (puts []nft.Entry, dels []desired.NFTKey) {
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
	return puts, dels
}

// inOurWords undoes what nft(8) 1.0.6 abbreviates or has names for.
func inOurWords(shown string) string {
	return strings.NewReplacer(
		"counter packets 0 bytes 0", "counter", "l4proto ipencap", "l4proto 4", "l4proto tcp", "l4proto 6", "l4proto != tcp", "l4proto != 6",
		"l4proto udp", "l4proto 17", "l4proto ipv6-icmp", "l4proto 58", "l4proto icmp", "l4proto 1", "l4proto sctp", "l4proto 132",
		"icmpv6 type echo-request icmpv6 code no-route", "meta nfproto ipv6 meta l4proto 58 @th,0,16 32768",
		"icmp type != destination-unreachable", "meta nfproto ipv4 meta l4proto 1 @th,0,8 != 3",
	).Replace(shown)
}

// TestTheKernelHoldsWhatWePrint: nft(8), as an independent reader, shows the
// rules in the very words in which we print them.
func TestTheKernelHoldsWhatWePrint(t *testing.T) {
	ns := nstest.New(t)
	reconcile(t, applier(t, ns), wanted())
	shown := ns.Command("nft", "list", "table", "inet", "maneki")
	shown = inOurWords(shown)
	for _, o := range wanted().Objects {
		rules, _ := wanted().Rules(o.Rules)
		for _, r := range rules {
			if !strings.Contains(shown, "\t\t"+r.String()+"\n") {
				t.Errorf("nft does not show %q:\n%s", r, shown)
			}
		}
	}
	for _, part := range []string{"10.0.0.0/8", "11.0.0.0/9", "172.18.0.3", "255.255.255.0/24", "fd00::/8", "ffff::/16", "0.0.0.0,", `"cali1" : goto ep1`, "10.0.0.0/8 . tcp . 80-90 counter : accept", "fd00::1 . tcp . 80"} {
		if !strings.Contains(shown, part) {
			t.Errorf("nft does not show %s:\n%s", part, shown)
		}
	}
}

// TestEveryDifferenceIsSeenAndRepaired, and other tables are left alone.
func TestEveryDifferenceIsSeenAndRepaired(t *testing.T) {
	ns := nstest.New(t)
	a := applier(t, ns)
	ns.Command("nft", "add table inet other; add chain inet other c { type filter hook input priority 0; policy accept; }")
	reconcile(t, a, wanted())
	for _, harm := range []string{
		"flush table inet maneki",
		"delete table inet maneki",
		"flush chain inet maneki prerouting",
		"flush set inet maneki pools4",
		"delete element inet maneki pools4 { 172.18.0.3 }",
		"add element inet maneki pools4 { 1.2.3.0/24 }",
		"add rule inet maneki input accept",
		"insert rule inet maneki prerouting accept comment \"drop\"",
		"add chain inet maneki mine",
		"add chain inet maneki hooked { type filter hook forward priority 0; policy drop; }",
		"add set inet maneki mine { type inet_service; elements = { 80 } }",
		"add chain inet maneki mine; add rule inet maneki input jump mine",
		"delete chain inet maneki input; add chain inet maneki input { type filter hook input priority 7; }",
		"add element inet maneki dispatch { cali3 : accept }",
		"delete element inet maneki fold4 { 10.0.0.0/8 . 6 . 80-90 }",
		"add element inet maneki pools4 { 172.18.0.4 }",
		"add table inet maneki { flags dormant; }",
		"insert rule inet maneki ep1 accept",
		"flush chain inet maneki postrouting; delete set inet maneki empty4; add set inet maneki empty4 { type ipv6_addr; }",
	} {
		ns.Command("nft", harm)
		have, err := a.Dump(context.Background())
		if puts, dels := differences(wanted(), have); err != nil || len(puts)+len(dels) == 0 {
			t.Errorf("%s is not seen (%v)", harm, err)
		}
		reconcile(t, a, wanted())
	}
	reconcile(t, a, desired.NFT{})
	if left := ns.Command("nft", "list", "ruleset"); !strings.Contains(left, "table inet other") || strings.Contains(left, "chain input") {
		t.Errorf("left:\n%s", left)
	}
}

// TestARuleWithOtherExpressionsIsForeign although it carries the identity of one of ours.
func TestARuleWithOtherExpressionsIsForeign(t *testing.T) {
	ns := nstest.New(t)
	a := applier(t, ns)
	reconcile(t, a, wanted())
	var conn *nftables.Conn
	ns.Do(func() { conn, _ = nftables.New(nftables.AsLasting()) })
	defer conn.CloseLasting()
	table := &nftables.Table{Name: desired.NFTTable, Family: nftables.TableFamilyINet}
	input := &nftables.Chain{Name: "input", Table: table}
	rules, err := conn.GetRules(table, input)
	if err != nil || len(rules) == 0 {
		t.Fatal(rules, err)
	}
	forged := *rules[0]
	forged.Exprs = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	conn.ReplaceRule(&forged)
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	have, err := a.Dump(context.Background())
	if puts, _ := differences(wanted(), have); err != nil || len(puts) != 1 || puts[0].Key != chain("input") {
		t.Errorf("a forged rule is taken for ours: %v %v", puts, err)
	}
	reconcile(t, a, wanted())
}

// TestLargeSets: more elements than one message can hold arrive all.
func TestLargeSets(t *testing.T) {
	ns := nstest.New(t)
	a := applier(t, ns)
	var list []desired.Member
	for i := range 100_000 { // neighbours touch, which the kernel must keep apart
		list = append(list, desired.Member{Net: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)})
	}
	members := desired.NewMembers(list...)
	fold := desired.NewSetType(false, desired.TypeIPv4, desired.TypeProto, desired.TypePort)
	fold.Verdicts, fold.Counters = true, true
	var elements []desired.Element
	for _, m := range list[:10_000] {
		elements = append(elements, fold.Element(desired.Verdict{Do: desired.Accept}, desired.AddrPart(m.Net), desired.ProtoPart(6), desired.PortPart(80, 80)))
	}
	want := func(m *desired.Members) (n desired.NFT) {
		n.AddSet("large", desired.AddrSetType(true), m)
		n.AddElements("fold", fold, desired.NewElements(elements...))
		return n
	}
	reconcile(t, a, want(members))
	moved := members.Change([]desired.Member{{Net: prefix("192.0.2.1/32")}, {Net: prefix("11.0.0.0/16")}}, []desired.Member{list[7], list[99_999]})
	events := monitored(t, ns, func() { reconcile(t, a, want(moved)) })
	if n := strings.Count(events, "element"); n != 4 {
		t.Errorf("a change of four members took %d elements:\n%.2000s", n, events)
	}
	reconcile(t, a, desired.NFT{})
}

// monitored is what nft(8) hears of while fn runs.
func monitored(t *testing.T, ns *nstest.NS, fn func()) string {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command("nft", "monitor")
	cmd.Stdout = &out
	var err error
	ns.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // it lists everything first
	fn()
	time.Sleep(200 * time.Millisecond)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return out.String()
}

func TestBadWishes(t *testing.T) {
	a := applier(t, nstest.New(t))
	for want, add := range map[string]func(*desired.NFT){
		"hook":    func(n *desired.NFT) { n.AddChain("c", hook("filter", "nowhere", 0)) },
		"type":    func(n *desired.NFT) { n.AddChain("c", hook("foreign", "input", 0)) },
		"action":  func(n *desired.NFT) { n.AddChain("c", desired.Hook{}, desired.Rule{Do: "fly"}) },
		"jump":    func(n *desired.NFT) { n.AddChain("c", desired.Hook{}, desired.Rule{Do: desired.Jump}) },
		"kind":    func(n *desired.NFT) { n.AddChain("c", desired.Hook{}, rule(desired.Drop, desired.Match{})) },
		"address": func(n *desired.NFT) { n.AddChain("c", desired.Hook{}, rule(desired.SNAT)) },
		"no such": func(n *desired.NFT) {
			n.AddChain("c", desired.Hook{}, desired.Rule{Do: desired.Goto, Chain: "nowhere"})
		},
		"at hand": func(n *desired.NFT) {
			n.Objects = map[desired.NFTKey]desired.NFTObject{chain("c"): {Rules: desired.RulesID{N: 1}}}
		},
		"its elements are not at hand": func(n *desired.NFT) {
			n.Objects = map[desired.NFTKey]desired.NFTObject{set("c"): {Type: desired.AddrSetType(true), Elements: desired.Digest{Size: 1}}}
		},
	} {
		var n desired.NFT
		add(&n)
		a.Provide(n)
		for k, o := range n.Objects {
			if err := a.Put(context.Background(), k, o); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", want, err)
			}
		}
	}
	if have, err := a.Dump(context.Background()); err != nil || len(have) > 0 {
		t.Errorf("left: %v %v", have, err)
	}
}

func TestWatch(t *testing.T) {
	ns := nstest.New(t)
	a := applier(t, ns)
	reconcile(t, a, wanted())
	ctx, stop := context.WithCancel(context.Background())
	heard, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ns.Do(func() {
			done <- a.Watch(ctx, func() {
				select {
				case heard <- struct{}{}:
				default:
				}
			})
		})
	}()
	for i, step := range []struct {
		command string
		heard   bool
	}{
		{"", true}, // the start
		{"flush chain inet maneki input", true},
		{"flush set inet maneki pools4", true},
		{"add table inet other; add chain inet other c", false},
		{"add table inet maneki2", false},
		{"delete table inet maneki", true},
	} {
		if step.command != "" {
			ns.Command("nft", step.command)
		}
		select {
		case <-heard:
			if !step.heard {
				t.Errorf("step %d: %q was heard of", i, step.command)
			}
		case <-time.After(map[bool]time.Duration{true: 5 * time.Second, false: 200 * time.Millisecond}[step.heard]):
			if step.heard {
				t.Errorf("step %d: %q was not heard of", i, step.command)
			}
		}
		time.Sleep(20 * time.Millisecond)
		for len(heard) > 0 {
			<-heard
		}
	}
	reconcile(t, a, desired.NFT{}) // our own changes are none to be told
	reconcile(t, a, wanted())
	select {
	case <-heard:
		t.Error("own changes were heard of")
	case <-time.After(200 * time.Millisecond):
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestFastWishes: while a change is being written, new wishes come faster than
// they can be met. None of them makes a change fail, and the last one stands.
func TestFastWishes(t *testing.T) {
	ns := nstest.New(t)
	a := applier(t, ns)
	table := tables.NewTable(a, tables.Options[desired.NFTKey]{Name: "nftables", Compare: desired.NFTKey.Compare})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- table.Run(ctx) }()
	wish := func(i int) desired.NFT {
		var n desired.NFT
		for k := range 50 {
			name := fmt.Sprintf("set%d", k)
			n.AddSet(name, desired.AddrSetType(true), desired.NetMembers(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(k), byte(i >> 8), byte(i)}), 32)))
			n.AddChain(fmt.Sprintf("chain%d-%d", k, i), desired.Hook{}, dropped(desired.SrcIn(name, true)))
		}
		return n
	}
	var last desired.NFT
	for i := range 2000 {
		last = wish(i)
		a.Provide(last)
		table.Set(last.Objects)
		if i%16 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := table.Wait(wait, last.Objects); err != nil {
		t.Fatal(err)
	}
	if s := table.Status(); s.Errors > 0 {
		t.Errorf("%d errors, the last: %v", s.Errors, s.LastError)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
