package routes_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/dataplane/routes"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/reconcile"
)

// recorder counts events.
type recorder struct {
	mu     sync.Mutex
	events map[routes.Event]int
	block  chan struct{} // when set, the next event waits for it
}

func (r *recorder) note(e routes.Event) {
	r.mu.Lock()
	block := r.block
	r.block = nil
	r.events[e]++
	r.mu.Unlock()
	if block != nil {
		<-block
	}
}

func (r *recorder) take() map[routes.Event]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.events
	r.events = map[routes.Event]int{}
	return got
}

// watch runs Watch until the test ends and waits until it listens.
func watch(t testing.TB, a *routes.Applier, changed func(routes.Event)) *recorder {
	t.Helper()
	r := &recorder{events: map[routes.Event]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	ready := make(chan struct{}, 100)
	go func() {
		done <- a.Watch(ctx, func(e routes.Event) {
			r.note(e)
			if changed != nil {
				changed(e)
			}
			select {
			case ready <- struct{}{}:
			default:
			}
		})
	}()
	for range 5 {
		<-ready
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	if got := r.take(); got[routes.Event{Kind: routes.Route}] == 0 || len(got) < 5 {
		t.Fatalf("events at the start: %v", got)
	}
	return r
}

// settled waits until no event has come for a moment, and returns what came.
func (r *recorder) settled() map[routes.Event]int {
	all := map[routes.Event]int{}
	for quiet := 0; quiet < 5; quiet++ {
		time.Sleep(10 * time.Millisecond)
		for e, n := range r.take() {
			all[e] += n
			quiet = 0
		}
	}
	return all
}

var routeEvent = routes.Event{Kind: routes.Route}

func TestOwnWritesAreNoEvents(t *testing.T) {
	ns, a := host(t, routes.Options{})
	r := watch(t, a, nil)
	dump(t, a)
	r.settled()
	// The same key is not written twice before its first message is read: that would look like somebody else's.
	each := func(do func(dst string)) {
		for i := range 50 {
			do(fmt.Sprintf("10.7.0.%d/32", i))
			do(fmt.Sprintf("fd10::%x/128", i))
		}
		if got := r.settled(); got[routeEvent] != 0 {
			t.Errorf("own writes caused %v", got)
		}
	}
	each(func(dst string) { put(t, a, dst, desired.Route{Dev: "caliA", Proto: 3}) })
	each(func(dst string) { put(t, a, dst, desired.Route{Dev: "caliB", Proto: 3}) })
	each(func(dst string) {
		if err := a.Delete(t.Context(), key(dst)); err != nil {
			t.Fatal(err)
		}
	})
	put(t, a, "10.8.0.0/24", desired.Route{Type: desired.Blackhole, Proto: 80})
	put(t, a, "fd11::/64", desired.Route{Type: desired.Blackhole, Proto: 80})
	put(t, a, "fd12::/64", desired.Route{Gateway: addr("fd00::2"), Dev: "eth0", MTU: 1400, Src: addr("fd00::1"), Proto: 80})
	put(t, a, "fd13::/64", desired.Route{Proto: 81}.Via(two("fd00::2", "fd00::3")))
	put(t, a, "10.8.1.0/24", desired.Route{Proto: 81}.Via(two("10.0.0.2", "10.0.0.3")))
	put(t, a, "10.8.2.0/24", desired.Route{Proto: 81}.Via(two("10.0.0.2", "fe80::3")))
	put(t, a, "10.8.3.0/24", desired.Route{Gateway: addr("fe80::3"), Dev: "caliA", Proto: 81})
	if got := r.settled(); got[routeEvent] != 0 {
		t.Errorf("own writes caused %v", got)
	}
	for _, dst := range []string{"fd13::/64", "10.8.1.0/24", "10.8.2.0/24"} {
		if err := a.Delete(t.Context(), key(dst)); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.settled(); got[routeEvent] != 0 {
		t.Errorf("own writes caused %v", got)
	}
	ns.Command("ip", "route", "add", "10.9.0.0/24", "via", "10.0.0.2", "proto", "static")
	ns.Command("ip", "route", "del", "10.9.0.0/24")
	if got := r.settled(); got[routeEvent] != 0 {
		t.Errorf("routes of others caused %v", got)
	}
}

func TestWhatOthersDoToOurRoutesIsAnEvent(t *testing.T) {
	tests := []struct {
		name string
		do   func(ns *nstest.NS)
	}{
		{"delete", func(ns *nstest.NS) { ns.Command("ip", "route", "del", "10.7.0.1") }},
		{"delete v6", func(ns *nstest.NS) { ns.Command("ip", "-6", "route", "del", "fd10::/64") }},
		{"replace by ours", func(ns *nstest.NS) { ns.Command("ip", "route", "replace", "10.7.0.1", "dev", "caliB") }},
		{"replace by theirs", func(ns *nstest.NS) {
			ns.Command("ip", "route", "replace", "10.8.0.0/24", "via", "10.0.0.9", "proto", "static")
		}},
		{"change of mtu", func(ns *nstest.NS) {
			ns.Command("ip", "route", "replace", "10.8.0.0/24", "via", "10.0.0.2", "proto", "81", "mtu", "1300")
		}},
		{"second hop v6", func(ns *nstest.NS) {
			ns.Command("ip", "-6", "route", "append", "fd10::/64", "via", "fd00::3", "proto", "81", "metric", "1024")
		}},
		{"fewer hops", func(ns *nstest.NS) {
			ns.Command("ip", "route", "replace", "10.8.1.0/24", "via", "10.0.0.2", "proto", "81")
		}},
		{"other hops", func(ns *nstest.NS) {
			ns.Command("ip", "route", "replace", "10.8.1.0/24", "proto", "81", "nexthop", "via", "10.0.0.2", "nexthop", "via", "10.0.0.4")
		}},
		{"other weights", func(ns *nstest.NS) {
			ns.Command("ip", "route", "replace", "10.8.1.0/24", "proto", "81", "nexthop", "via", "10.0.0.2", "weight", "2", "nexthop", "via", "10.0.0.3")
		}},
		{"fewer hops v6", func(ns *nstest.NS) {
			ns.Command("ip", "-6", "route", "del", "fd13::/64", "via", "fd00::2")
		}},
		{"unwanted on our interface", func(ns *nstest.NS) { ns.Command("ip", "route", "add", "10.7.0.9", "dev", "caliA") }},
		{"unwanted with our protocol", func(ns *nstest.NS) {
			ns.Command("ip", "route", "add", "10.9.0.0/24", "via", "10.0.0.2", "proto", "80")
		}},
		{"interface down", func(ns *nstest.NS) { ns.Command("ip", "link", "set", "caliA", "down") }},
		{"interface gone", func(ns *nstest.NS) { ns.Command("ip", "link", "del", "caliA") }},
		{"source address gone", func(ns *nstest.NS) { ns.Command("ip", "addr", "del", "10.0.0.1/24", "dev", "eth0") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ns, a := host(t, routes.Options{})
			r := watch(t, a, nil)
			put(t, a, "10.7.0.1/32", desired.Route{Dev: "caliA", Proto: 3})
			put(t, a, "10.8.0.0/24", desired.Route{Gateway: addr("10.0.0.2"), Dev: "eth0", Src: addr("10.0.0.1"), Proto: 81})
			put(t, a, "fd10::/64", desired.Route{Gateway: addr("fd00::2"), Dev: "eth0", Proto: 81})
			put(t, a, "10.8.1.0/24", desired.Route{Proto: 81}.Via(two("10.0.0.2", "10.0.0.3")))
			put(t, a, "fd13::/64", desired.Route{Proto: 81}.Via(two("fd00::2", "fd00::3")))
			dump(t, a)
			r.settled()
			tt.do(ns)
			if got := r.settled(); got[routeEvent] == 0 {
				t.Errorf("events %v, want one of our routes", got)
			}
		})
	}
}

func TestLinksAndAddressesAreEvents(t *testing.T) {
	ns, a := host(t, routes.Options{})
	r := watch(t, a, nil)
	r.settled()
	nstest.Veth(ns, "tun7", nstest.New(t), "eth0")
	ns.AddAddr("tun7", "10.77.0.1/24")
	got := r.settled()
	for _, kind := range []routes.Kind{routes.Link, routes.Addr} {
		if got[routes.Event{Kind: kind, Interface: "tun7"}] == 0 {
			t.Errorf("no %s event of tun7 in %v", kind, got)
		}
	}
	ns.Command("ip", "addr", "del", "10.77.0.1/24", "dev", "tun7")
	if got := r.settled(); got[routes.Event{Kind: routes.Addr, Interface: "tun7"}] == 0 {
		t.Errorf("no event of the address in %v", got)
	}
	for setting, iface := range map[string]string{
		"ipv4/conf/tun7/proxy_arp": "tun7", "ipv6/conf/tun7/forwarding": "tun7", "ipv4/conf/all/forwarding": "all",
	} {
		ns.Do(func() {
			if err := os.WriteFile("/proc/sys/net/"+setting, []byte("1"), 0); err != nil {
				t.Error(err)
			}
		})
		if got := r.settled(); got[routes.Event{Kind: routes.Conf, Interface: iface}] == 0 {
			t.Errorf("no event of %s in %v", setting, got)
		}
	}
	ns.Command("ip", "link", "del", "tun7")
	if got := r.settled(); got[routes.Event{Kind: routes.Link, Interface: "tun7"}] == 0 {
		t.Errorf("no event of the interface in %v", got)
	}
}

// TestLostNotifications: more happens than fits into the buffer while nobody reads.
func TestLostNotifications(t *testing.T) {
	ns, a := host(t, routes.Options{ReceiveBuffer: 4096})
	r := watch(t, a, nil)
	put(t, a, "10.7.0.1/32", desired.Route{Dev: "caliA", Proto: 3})
	dump(t, a)
	r.settled()

	block := make(chan struct{})
	r.mu.Lock()
	r.block = block
	r.mu.Unlock()
	ns.AddAddr("eth0", "10.0.7.7/32") // the event that blocks
	for i := range 200 {
		ns.AddAddr("eth0", fmt.Sprintf("10.1.%d.1/32", i))
	}
	ns.Command("ip", "route", "del", "10.7.0.1") // nobody hears
	close(block)
	got := r.settled()
	for _, kind := range []routes.Kind{routes.Link, routes.Addr, routes.Conf, routes.Route} {
		if got[routes.Event{Kind: kind}] == 0 {
			t.Errorf("no full %s event in %v", kind, got)
		}
	}
	// It goes on listening.
	ns.AddAddr("eth0", "10.0.8.8/32")
	if got := r.settled(); got[routes.Event{Kind: routes.Addr, Interface: "eth0"}] == 0 {
		t.Errorf("after the loss: %v", got)
	}
}

func TestWatchAfterClose(t *testing.T) {
	_, a := host(t, routes.Options{})
	a.Close()
	if err := a.Watch(t.Context(), func(routes.Event) {}); err == nil {
		t.Error("watch after close gave no error")
	}
}

// reconciled is a table of routes as the agent runs it.
func reconciled(t testing.TB, a *routes.Applier) *reconcile.Table[desired.RouteKey, desired.Route] {
	t.Helper()
	table := reconcile.NewTable(a, reconcile.Options[desired.RouteKey]{
		Name: "routes", Resync: -1, Compare: desired.RouteKey.Compare,
	})
	watch(t, a, func(e routes.Event) {
		if e.Kind == routes.Route {
			table.Dirty()
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- table.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return table
}

func synced(t testing.TB, table *reconcile.Table[desired.RouteKey, desired.Route]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := table.WaitSynced(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestDeletedRoutesAreBack within a fraction of a second, one after the other.
func TestDeletedRoutesAreBack(t *testing.T) {
	ns, a := host(t, routes.Options{})
	want := desired.Routes{}
	for i := range 20 {
		dst := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 7, byte(i), 1}), 32)
		r := desired.Route{Dev: "caliA", Proto: 3}
		switch i % 4 {
		case 1:
			dst, r = netip.PrefixFrom(dst.Addr(), 24), desired.Route{Gateway: addr("10.0.0.2"), Dev: "eth0", Proto: 81}
		case 2:
			dst, r = netip.PrefixFrom(dst.Addr(), 26), desired.Route{Type: desired.Blackhole, Proto: 80}
		case 3:
			dst = netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x10, 15: byte(i)}), 128)
		}
		want.Add(desired.NewRouteKey(dst), r)
	}
	table := reconciled(t, a)
	table.Set(want)
	synced(t, table)

	var times []time.Duration
	for _, k := range want.Keys() {
		target, err := ns.Handle().RouteListFiltered(family(k), &netlink.Route{Dst: ipNet(k.Dst)}, netlink.RT_FILTER_DST)
		if err != nil || len(target) != 1 {
			t.Fatalf("find %s: %v, %v", k, target, err)
		}
		begin := time.Now()
		if err := ns.Handle().RouteDel(&target[0]); err != nil {
			t.Fatalf("delete %s: %v", k, err)
		}
		for {
			back, err := ns.Handle().RouteListFiltered(family(k), &netlink.Route{Dst: ipNet(k.Dst)}, netlink.RT_FILTER_DST)
			if err == nil && len(back) == 1 {
				break
			}
			if time.Since(begin) > 5*time.Second {
				t.Fatalf("%s is not back: %+v", k, table.Status())
			}
			time.Sleep(time.Millisecond)
		}
		times = append(times, time.Since(begin))
	}
	slices.Sort(times)
	t.Logf("back after %v (median), %v (worst)", times[len(times)/2], times[len(times)-1])
	if median := times[len(times)/2]; median > time.Second {
		t.Errorf("median %v, want under 1 s", median)
	}
	if worst := times[len(times)-1]; worst > 3*time.Second {
		t.Errorf("worst %v, want under 3 s", worst)
	}
	synced(t, table)
	if st := table.Status(); st.Healed != 20 {
		t.Errorf("status %+v", st)
	}
	if got, w := dump(t, a).String(), want.String(); got != w {
		t.Errorf("got\n%swant\n%s", got, w)
	}
}

func family(k desired.RouteKey) int {
	if k.Dst.Addr().Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// TestRouteWaitsForItsInterface: the route is wanted before its interface exists, and follows it down and up, away and
// back.
func TestRouteWaitsForItsInterface(t *testing.T) {
	ns, a := host(t, routes.Options{})
	table := reconciled(t, a)
	want := desired.Routes{}
	want.Add(key("10.7.0.1/32"), desired.Route{Dev: "caliC", Proto: 3})
	want.Add(key("fd10::1/128"), desired.Route{Dev: "caliC", Proto: 3})
	table.Set(want)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := table.WaitKeys(ctx, key("10.7.0.1/32")); err == nil || !contains(err, "interface caliC does not exist") {
		t.Fatalf("wait: %v", err)
	}
	if n := table.Status().Errors; n > 60 {
		t.Errorf("%d attempts in two seconds", n)
	}
	peer := nstest.New(t)
	begin := time.Now()
	nstest.Veth(ns, "caliC", peer, "eth0")
	synced(t, table)
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("routes came %v after their interface", d)
	}
	for _, cmd := range [][]string{
		{"link", "set", "caliC", "down"}, {"link", "set", "caliC", "up"}, {"link", "del", "caliC"},
	} {
		ns.Command("ip", cmd...)
	}
	nstest.Veth(ns, "caliC", nstest.New(t), "eth0")
	deadline := time.Now().Add(time.Second)
	for {
		if got := desired.Routes(dump2(t, ns)).String(); got == want.String() {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("got\n%swant\n%s%+v", got, want, table.Status())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestRouteComesWhenTheOthersGoes: a stranger's route is in the way, and then no longer.
func TestRouteComesWhenTheOthersGoes(t *testing.T) {
	ns, a := host(t, routes.Options{})
	table := reconciled(t, a)
	ns.Command("ip", "route", "add", "10.8.0.0/24", "via", "10.0.0.9", "proto", "static")
	want := desired.Routes{}
	want.Add(key("10.8.0.0/24"), desired.Route{Gateway: addr("10.0.0.2"), Dev: "eth0", Proto: 81})
	table.Set(want)
	time.Sleep(500 * time.Millisecond)
	if st := table.Status(); !errors.Is(st.Failed[key("10.8.0.0/24")], routes.ErrOccupied) {
		t.Errorf("status %+v", st)
	}
	begin := time.Now()
	ns.Command("ip", "route", "del", "10.8.0.0/24")
	synced(t, table)
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("the route came after %v", d)
	}
	if got := ipRoute(ns); !slices.Equal(got, []string{"10.8.0.0/24 via 10.0.0.2 dev eth0 proto 81"}) {
		t.Errorf("routes %q", got)
	}
}

// dump2 lists with an applier of its own, which has nothing cached.
func dump2(t *testing.T, ns *nstest.NS) desired.Routes {
	t.Helper()
	a, err := routes.New(routes.Options{Namespace: ns.Path()})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	return dump(t, a)
}
