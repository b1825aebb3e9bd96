package nft_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/manekinet/maneki/dataplane/nft"
	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/desired"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func set(name string) desired.NFTKey   { return desired.NFTKey{Kind: desired.NFTSet, Name: name} }
func chain(name string) desired.NFTKey { return desired.NFTKey{Kind: desired.NFTChain, Name: name} }

func wanted() desired.NFT {
	pools, hosts := desired.SetMatch{Set: "pools4", V4: true}, desired.SetMatch{Set: "hosts6"}
	return desired.NFT{
		set("pools4"): {V4: true, Members: desired.NewNetSet(prefix("10.0.0.0/8"), prefix("11.0.0.0/9"), prefix("255.255.255.0/24"), prefix("172.18.0.3/32"))},
		set("hosts6"): {Members: desired.NewNetSet(prefix("fd00::/8"), prefix("ffff::/16"))},
		set("empty4"): {V4: true},
		chain("prerouting"): {Type: "filter", Hook: "prerouting", Priority: -300, Rules: desired.NewRules(
			desired.Rule{In: "cali12", Src: prefix("10.128.0.0/9"), Do: desired.Accept},
			desired.Rule{In: "cali12", Src: prefix("fd00::/17"), Do: desired.Accept},
			desired.Rule{In: "cali*", Spoofed: true, Do: desired.Drop},
			desired.Rule{In: "cali*", UDPPort: 4789, Do: desired.Drop},
			desired.Rule{In: "cali*", Protocol: 4, Do: desired.Drop},
			desired.Rule{UDPPort: 4789, Do: desired.Notrack},
		)},
		chain("input"): {Type: "filter", Hook: "input", Priority: -10, Rules: desired.NewRules(desired.Rule{UDPPort: 4789, SrcNotIn: hosts, Do: desired.Drop})},
		chain("postrouting"): {Type: "nat", Hook: "postrouting", Priority: 90, Rules: desired.NewRules(
			desired.Rule{Out: "vxlan.calico", SrcForeignTo: true, Do: desired.Masquerade},
			desired.Rule{SrcIn: pools, DstNotIn: [2]desired.SetMatch{pools, {Set: "empty4", V4: true}}, Do: desired.Masquerade},
		)},
	}
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
func reconcile(t *testing.T, a *nft.Applier, want desired.NFT) {
	t.Helper()
	ctx := context.Background()
	have, err := a.Dump(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var puts []nft.Entry
	var dels []desired.NFTKey
	for k, o := range want {
		if h, ok := have[k]; !ok || h != o {
			puts = append(puts, nft.Entry{Key: k, Value: o})
		}
	}
	for k := range have {
		if _, ok := want[k]; !ok {
			dels = append(dels, k)
		}
	}
	if errs := a.Apply(ctx, puts, dels); len(errs) > 0 {
		t.Fatalf("apply: %v", errs)
	}
	if have, err = a.Dump(ctx); err != nil || desired.NFT(have).String() != want.String() {
		t.Fatalf("have %v\n%s\nwant\n%s", err, desired.NFT(have), want)
	}
}

// TestTheKernelHoldsWhatWePrint: nft(8), as an independent reader, shows the
// rules in the very words in which we print them.
func TestTheKernelHoldsWhatWePrint(t *testing.T) {
	ns := nstest.New(t)
	reconcile(t, applier(t, ns), wanted())
	shown := ns.Command("nft", "list", "table", "inet", "maneki")
	shown = strings.ReplaceAll(shown, "counter packets 0 bytes 0 ", "")
	shown = strings.ReplaceAll(shown, "meta l4proto ipencap", "meta l4proto 4")
	for _, o := range wanted() {
		for _, r := range o.Rules.List() {
			if !strings.Contains(shown, "\t\t"+r.String()+"\n") {
				t.Errorf("nft does not show %q:\n%s", r, shown)
			}
		}
	}
	for _, part := range []string{"10.0.0.0-11.127.255.255", "172.18.0.3", "255.255.255.0/24", "fd00::/8", "ffff::/16"} {
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
		"flush chain inet maneki postrouting; delete set inet maneki empty4; add set inet maneki empty4 { type ipv6_addr; }",
	} {
		ns.Command("nft", harm)
		have, err := a.Dump(context.Background())
		if err != nil || desired.NFT(have).String() == wanted().String() {
			t.Errorf("%s is not seen (%v)", harm, err)
		}
		reconcile(t, a, wanted())
	}
	reconcile(t, a, desired.NFT{})
	if left := ns.Command("nft", "list", "ruleset"); !strings.Contains(left, "table inet other") || strings.Contains(left, "chain input") {
		t.Errorf("left:\n%s", left)
	}
}

// TestLargeSets: more elements than one message can hold arrive all.
func TestLargeSets(t *testing.T) {
	ns := nstest.New(t)
	var nets []netip.Prefix
	for i := range 20000 { // every second address, so that none can be merged
		nets = append(nets, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 15), byte(i >> 7), byte(i << 1)}), 32))
	}
	reconcile(t, applier(t, ns), desired.NFT{set("large"): {V4: true, Members: desired.NewNetSet(nets...)}})
}

func TestBadWishes(t *testing.T) {
	a := applier(t, nstest.New(t))
	for want, e := range map[string]nft.Entry{
		"hook":         {Key: chain("c"), Value: desired.NFTObject{Type: "filter", Hook: "nowhere"}},
		"type":         {Key: chain("c"), Value: desired.NFTObject{Type: "foreign", Hook: "input"}},
		"other family": {Key: set("s"), Value: desired.NFTObject{V4: true, Members: desired.NewNetSet(prefix("fd00::/8"))}},
	} {
		if err := a.Put(context.Background(), e.Key, e.Value); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestWatch(t *testing.T) {
	ns := nstest.New(t)
	reconcile(t, applier(t, ns), wanted())
	ctx, stop := context.WithCancel(context.Background())
	heard, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ns.Do(func() {
			done <- nft.Watch(ctx, func() {
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
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
