package routes_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/dataplane/routes"
	"github.com/manekinet/maneki/desired"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addr(s string) netip.Addr        { return netip.MustParseAddr(s) }
func key(dst string) desired.RouteKey { return desired.NewRouteKey(netip.MustParsePrefix(dst)) }
func normal(r desired.Route, dst string) desired.Route {
	return r.Normal(netip.MustParsePrefix(dst))
}

// host is a namespace with eth0 (10.0.0.1/24, fd00::1/64), caliA and caliB, and an applier in it.
func host(t testing.TB, opts routes.Options) (*nstest.NS, *routes.Applier) {
	t.Helper()
	ns, peer := nstest.New(t), nstest.New(t)
	for i, dev := range []string{"eth0", "caliA", "caliB"} {
		nstest.Veth(ns, dev, peer, fmt.Sprintf("peer%d", i))
	}
	ns.AddAddr("eth0", "10.0.0.1/24")
	ns.AddAddr("eth0", "fd00::1/64")
	opts.Namespace = ns.Path()
	a, err := routes.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return ns, a
}

func contains(err error, part string) bool { return strings.Contains(err.Error(), part) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func dump(t testing.TB, a *routes.Applier) desired.Routes {
	t.Helper()
	got, err := a.Dump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func put(t testing.TB, a *routes.Applier, dst string, r desired.Route) {
	t.Helper()
	if err := a.Put(t.Context(), key(dst), normal(r, dst)); err != nil {
		t.Fatalf("put %s: %v", dst, err)
	}
}

// ipRoute is what ip-route(8) prints for both families, sorted, without what the kernel made itself.
func ipRoute(ns *nstest.NS) []string {
	var lines []string
	for _, family := range []string{"-4", "-6"} {
		for _, l := range strings.Split(ns.Command("ip", family, "route", "show", "table", "main"), "\n") {
			if l = strings.TrimSpace(l); strings.HasPrefix(l, "nexthop") {
				lines[len(lines)-1] += " " + l // of the multipath route above
			} else if l != "" && !strings.Contains(l, "proto kernel") {
				lines = append(lines, l)
			}
		}
	}
	slices.Sort(lines)
	return lines
}

func sortedLines(rs desired.Routes) []string {
	lines := strings.Split(strings.TrimSpace(rs.String()), "\n")
	slices.Sort(lines)
	return lines
}

// two is next hops on eth0; a link-local one of them is on caliA, so that there are two interfaces.
func two(gateways ...string) desired.NextHops {
	var hops []desired.NextHop
	for _, g := range gateways {
		h := desired.NextHop{Gateway: addr(g), Dev: "eth0"}
		if h.Gateway.IsLinkLocalUnicast() {
			h.Dev = "caliA"
		}
		hops = append(hops, h)
	}
	return desired.NewNextHops(hops...)
}

// TestPutDumpAndPrint: what is put is what Dump finds, and desired prints it as ip-route(8) does.
func TestPutDumpAndPrint(t *testing.T) {
	ns, a := host(t, routes.Options{})
	want := desired.Routes{}
	add := func(dst string, r desired.Route) {
		want.Add(key(dst), r)
		put(t, a, dst, r)
	}
	add("192.168.57.64/26", desired.Route{Gateway: addr("10.0.0.2"), Dev: "eth0", Proto: desired.ProtoBGP})
	add("192.168.36.192/26", desired.Route{Type: desired.Blackhole, Proto: desired.ProtoComputed})
	add("192.168.36.192/32", desired.Route{Dev: "caliA", Proto: desired.ProtoEndpoint})
	add("192.168.40.0/26", desired.Route{Gateway: addr("172.16.0.9"), Dev: "eth0", Onlink: true, MTU: 1450, Proto: desired.ProtoComputed})
	add("192.168.41.0/26", desired.Route{Dev: "eth0", Src: addr("10.0.0.1"), Proto: desired.ProtoComputed})
	add("0.0.0.0/0", desired.Route{Gateway: addr("10.0.0.254"), Dev: "eth0", Proto: desired.ProtoBGP})
	add("fd10::40/122", desired.Route{Gateway: addr("fd00::2"), Dev: "eth0", Proto: desired.ProtoBGP})
	add("fd10::80/122", desired.Route{Type: desired.Blackhole, Proto: desired.ProtoComputed})
	add("fd10::81/128", desired.Route{Dev: "caliA", Proto: desired.ProtoEndpoint})
	add("fd10::c0/122", desired.Route{Gateway: addr("fe80::9"), Dev: "eth0", Onlink: true, MTU: 1430, Proto: desired.ProtoComputed})
	add("fd11::/64", desired.Route{Gateway: addr("fd00::3"), Dev: "eth0", Src: addr("fd00::1"), Proto: desired.ProtoBGP})
	add("10.64.0.0/26", desired.Route{Gateway: addr("fe80::9"), Dev: "eth0", Proto: desired.ProtoBGP})
	add("10.64.1.0/26", desired.Route{Proto: desired.ProtoBGP, MTU: 1400}.Via(two("10.0.0.2", "10.0.0.3")))
	add("10.64.2.0/26", desired.Route{Proto: desired.ProtoBGP}.Via(two("fe80::8", "10.0.0.3")))
	add("fd12::/64", desired.Route{Proto: desired.ProtoBGP}.Via(two("fd00::2", "fd00::3")))
	add("::/0", desired.Route{Gateway: addr("fd00::fe"), Dev: "eth0", Proto: desired.ProtoBGP})

	if d := cmp.Diff(want, dump(t, a), cmp.Comparer(func(x, y netip.Addr) bool { return x == y }), cmp.Comparer(func(x, y desired.NextHops) bool { return x == y }),
		cmp.Comparer(func(x, y desired.RouteKey) bool { return x == y })); d != "" {
		t.Errorf("dump (-want +got):\n%s", d)
	}
	if d := cmp.Diff(sortedLines(want), ipRoute(ns)); d != "" {
		t.Errorf("ip route (-desired +ip):\n%s", d)
	}
	for k := range want {
		if err := a.Delete(t.Context(), k); err != nil {
			t.Errorf("delete %s: %v", k, err)
		}
	}
	if got := ipRoute(ns); len(got) != 0 {
		t.Errorf("left over: %q", got)
	}
}

// An address delivered to this host, which no interface has: it answers from the first moment, and the kernel's own
// entries of that table are nobody's business.
func TestLocalAddress(t *testing.T) {
	ns, a := host(t, routes.Options{Tables: []int{desired.TableMain, desired.TableLocal}})
	if got := dump(t, a); len(got) != 0 {
		t.Errorf("the kernel's own: %v", got)
	}
	k := desired.RouteKey{Table: desired.TableLocal, Dst: netip.MustParsePrefix("169.254.1.1/32")}
	want := desired.Route{Type: desired.Local, Proto: desired.ProtoComputed}
	for range 2 {
		if err := a.Put(t.Context(), k, want); err != nil {
			t.Fatal(err)
		}
	}
	if got := dump(t, a); len(got) != 1 || got[k] != want {
		t.Errorf("dump %v", got)
	}
	if out := ns.Command("ip", "route", "show", "table", "local", "169.254.1.1"); !strings.Contains(out, "dev lo proto 80 scope host") {
		t.Error(out)
	}
	ns.Command("ip", "link", "set", "lo", "up")
	ns.Command("ping", "-c1", "-W1", "169.254.1.1")
	if err := a.Delete(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	if out := ns.Command("ip", "route", "show", "table", "local", "proto", "80"); out != "" {
		t.Error(out)
	}
}

// TestReplaceEveryShapeByEveryOther in both families: afterwards there is exactly the new route. The kernel's rules
// for what a replacement replaces differ between the families, and in IPv6 between shapes.
func TestReplaceEveryShapeByEveryOther(t *testing.T) {
	ns, a := host(t, routes.Options{})
	shapes := map[string][]desired.Route{
		"192.168.1.1/32": {
			{Dev: "caliA", Proto: 3},
			{Dev: "caliB", Proto: 3},
			{Gateway: addr("10.0.0.2"), Dev: "eth0", Proto: 81},
			{Gateway: addr("10.0.0.3"), Dev: "eth0", Proto: 81},
			{Gateway: addr("10.0.0.3"), Dev: "eth0", Proto: 80, MTU: 1400},
			{Gateway: addr("10.9.9.9"), Dev: "eth0", Proto: 80, Onlink: true},
			{Gateway: addr("fe80::9"), Dev: "eth0", Proto: 81},
			desired.Route{Proto: 81}.Via(two("10.0.0.2", "10.0.0.3")),
			desired.Route{Proto: 81}.Via(two("10.0.0.3", "10.0.0.4", "10.0.0.5")),
			desired.Route{Proto: 81}.Via(two("10.0.0.2", "fe80::9")),
			{Type: desired.Blackhole, Proto: 80},
		},
		"fd10::1/128": {
			{Dev: "caliA", Proto: 3},
			{Dev: "caliB", Proto: 3},
			{Gateway: addr("fd00::2"), Dev: "eth0", Proto: 81},
			{Gateway: addr("fd00::3"), Dev: "eth0", Proto: 81},
			{Gateway: addr("fd00::3"), Dev: "eth0", Proto: 80, MTU: 1400},
			{Gateway: addr("fe80::9"), Dev: "eth0", Proto: 80, Onlink: true},
			desired.Route{Proto: 81}.Via(two("fd00::2", "fd00::3")),
			desired.Route{Proto: 81}.Via(two("fd00::3", "fd00::4", "fd00::5")),
			desired.Route{Proto: 81}.Via(two("fd00::2", "fe80::9")),
			{Type: desired.Blackhole, Proto: 80},
		},
	}
	for dst, list := range shapes {
		for _, from := range list {
			for _, to := range list {
				put(t, a, dst, from)
				put(t, a, dst, to)
				want := desired.Routes{key(dst): normal(to, dst)}
				if got, want := ipRoute(ns), sortedLines(want); !slices.Equal(got, want) {
					t.Fatalf("%v replaced by %v: kernel has %q, want %q", from, to, got, want)
				}
				if got := dump(t, a); got[key(dst)] != want[key(dst)] || len(got) != 1 {
					t.Fatalf("%v replaced by %v: dump is %v", from, to, got)
				}
			}
		}
		if err := a.Delete(t.Context(), key(dst)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOwnership: which routes Dump sees. The others survive everything.
func TestOwnership(t *testing.T) {
	ours := []string{
		"10.1.0.0/24 via 10.0.0.2 dev eth0 proto 80",
		"10.1.1.0/24 via 10.0.0.2 dev eth0 proto 81",
		"10.1.2.1 dev caliA scope link",              // boot
		"10.1.2.2 dev caliA proto static scope link", // somebody's, on our interface
		"unreachable 10.1.2.3 proto 80",
		"10.1.2.4 proto 80 nexthop via 10.0.0.2 dev eth0 weight 1 nexthop via 10.0.0.3 dev eth0 weight 1",
		"10.1.2.5 nexthop dev caliA weight 1 nexthop dev caliB weight 1",
		"fd10::1 dev caliA metric 1024",
		"fd10::/64 via fd00::2 dev eth0 proto 80 metric 1024",
	}
	others := []string{
		"10.2.0.0/24 via 10.0.0.2 dev eth0",
		"10.2.1.0/24 via 10.0.0.2 dev eth0 proto static",
		"blackhole 10.2.2.0/24",
		"10.2.3.0/24 via 10.0.0.2 dev eth0 proto bird",
		"10.2.4.0/24 proto static nexthop via 10.0.0.2 dev eth0 weight 1 nexthop dev caliA weight 1",
		"fd20::/64 via fd00::2 dev eth0 metric 1024",
		"10.1.0.0/24 via 10.0.0.2 dev eth0 table 100 proto 80",
	}
	tests := []struct {
		name string
		opts routes.Options
		ours []string
	}{
		{"default", routes.Options{}, ours},
		{"keep external", routes.Options{KeepExternal: true}, slices.Delete(slices.Clone(ours), 3, 4)},
		{"bird too", routes.Options{Protocols: []int{12, 80, 81}}, append(slices.Clone(ours), others[3])},
		{"table 100", routes.Options{Tables: []int{100}}, others[6:]},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ns, a := host(t, tt.opts)
			before := countRoutes(t, ns)
			for _, r := range slices.Concat(ours, others) {
				words := strings.Fields(r)
				if strings.Contains(r, ":") {
					words = append([]string{"-6"}, append([]string{"route", "add"}, words...)...)
				} else {
					words = append([]string{"route", "add"}, words...)
				}
				ns.Command("ip", words...)
			}
			got := dump(t, a)
			if len(got) != len(tt.ours) {
				t.Errorf("dump has %d routes, want %d:\n%s", len(got), len(tt.ours), got)
			}
			for _, r := range tt.ours {
				words := strings.Fields(r)
				if words[0] == "unreachable" {
					words = words[1:]
				}
				dst := words[0]
				if !strings.Contains(dst, "/") {
					dst = netip.PrefixFrom(addr(dst), addr(dst).BitLen()).String()
				}
				k := key(dst)
				k.Table = 254
				if strings.Contains(r, "table 100") {
					k.Table = 100
				}
				v, ok := got[k]
				switch {
				case !ok:
					t.Errorf("dump does not have %s", r)
				case strings.Contains(r, "unreachable"):
					if v.Type != desired.Other {
						t.Errorf("%s is %v, want type other", r, v)
					}
				}
				if err := a.Delete(t.Context(), k); err != nil {
					t.Errorf("delete %s: %v", k, err)
				}
			}
			if left := dump(t, a); len(left) != 0 {
				t.Errorf("left after deletion:\n%s", left)
			}
			if after, want := countRoutes(t, ns), before+len(ours)+len(others)-len(tt.ours); after != want {
				t.Errorf("%d routes are left, want %d: %q", after, want, ipRoute(ns))
			}
		})
	}
}

// countRoutes counts the routes of all tables that the kernel did not make itself.
func countRoutes(t *testing.T, ns *nstest.NS) int {
	t.Helper()
	rs, err := ns.Handle().RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	return len(slices.DeleteFunc(rs, func(r netlink.Route) bool { return r.Protocol == unix.RTPROT_KERNEL }))
}

func TestOccupiedByOthers(t *testing.T) {
	for _, tt := range []struct{ family, dst, foreign, gateway string }{
		{"-4", "192.168.57.64/26", "192.168.57.64/26 via 10.0.0.9 dev eth0 proto static", "10.0.0.2"},
		{"-6", "fd10::40/122", "fd10::40/122 via fd00::9 dev eth0 proto static metric 1024 pref medium", "fd00::2"},
	} {
		t.Run(tt.family, func(t *testing.T) {
			ns, a := host(t, routes.Options{})
			ns.Command("ip", append([]string{tt.family, "route", "add"}, strings.Fields(strings.TrimSuffix(tt.foreign, " pref medium"))...)...)
			ours := normal(desired.Route{Gateway: addr(tt.gateway), Dev: "eth0", Proto: 81}, tt.dst)
			for range 3 { // with and without a listing that knows
				if err := a.Put(t.Context(), key(tt.dst), ours); !errors.Is(err, routes.ErrOccupied) {
					t.Fatalf("put: %v, want ErrOccupied", err)
				}
				if err := a.Delete(t.Context(), key(tt.dst)); err != nil {
					t.Fatal(err)
				}
				if got := ipRoute(ns); !slices.Equal(got, []string{tt.foreign}) {
					t.Fatalf("the other's route is now %q", got)
				}
				_ = a.Put(t.Context(), key(tt.dst), ours)
				if got := dump(t, a); len(got) != 0 {
					t.Fatalf("dump has\n%s", got)
				}
			}
			ns.Command("ip", tt.family, "route", "del", tt.dst)
			dump(t, a)
			put(t, a, tt.dst, ours)
		})
	}
}

// TestSecondRouteUnderOneKey: somebody appends a route that looks like ours.
func TestSecondRouteUnderOneKey(t *testing.T) {
	ns, a := host(t, routes.Options{})
	ours := desired.Route{Gateway: addr("10.0.0.2"), Dev: "eth0", Proto: 81}
	put(t, a, "10.5.0.0/24", ours)
	ns.Command("ip", "route", "append", "10.5.0.0/24", "via", "10.0.0.3", "proto", "81")
	ns.Command("ip", "route", "append", "10.5.0.0/24", "via", "10.0.0.4", "proto", "80")
	ns.Command("ip", "route", "add", "10.5.0.0/24", "tos", "0x10", "via", "10.0.0.5", "proto", "80")
	if got := dump(t, a)[key("10.5.0.0/24")]; got.Type != desired.Other {
		t.Errorf("dump has %v, want other", got)
	}
	put(t, a, "10.5.0.0/24", ours)
	if got := ipRoute(ns); !slices.Equal(got, []string{"10.5.0.0/24 via 10.0.0.2 dev eth0 proto 81"}) {
		t.Errorf("routes are %q", got)
	}

	// With a stranger's appended, ours is still there as wanted, and goes alone.
	ns.Command("ip", "route", "append", "10.5.0.0/24", "via", "10.0.0.3", "proto", "static")
	if got := dump(t, a)[key("10.5.0.0/24")]; got != ours {
		t.Errorf("dump has %v, want %v", got, ours)
	}
	if err := a.Delete(t.Context(), key("10.5.0.0/24")); err != nil {
		t.Fatal(err)
	}
	if got := ipRoute(ns); !slices.Equal(got, []string{"10.5.0.0/24 via 10.0.0.3 dev eth0 proto static"}) {
		t.Errorf("routes are %q", got)
	}

	// IPv6 makes one multipath route of two.
	ours6 := desired.Route{Gateway: addr("fd00::2"), Dev: "eth0", Proto: 81}
	put(t, a, "fd10::/64", ours6)
	ns.Command("ip", "-6", "route", "append", "fd10::/64", "via", "fd00::3", "proto", "81", "metric", "1024")
	if got, want := dump(t, a)[key("fd10::/64")], (desired.Route{Proto: 81}.Via(two("fd00::2", "fd00::3"))); got != want {
		t.Errorf("dump has %v, want %v", got, want)
	}
	put(t, a, "fd10::/64", ours6)
	if got := ns.Command("ip", "-6", "route", "show", "fd10::/64"); strings.TrimSpace(got) != "via fd00::2 dev eth0 proto 81 metric 1024 pref medium" &&
		strings.TrimSpace(got) != "fd10::/64 via fd00::2 dev eth0 proto 81 metric 1024 pref medium" {
		t.Errorf("route is %q", got)
	}
}

func TestErrors(t *testing.T) {
	ns, a := host(t, routes.Options{})
	down := "caliB"
	link, err := ns.Handle().LinkByName(down)
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Handle().LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		key  desired.RouteKey
		r    desired.Route
		want string
		is   error
	}{
		{"no interface", key("10.3.0.1/32"), normal(desired.Route{Dev: "cali999", Proto: 3}, "10.3.0.1/32"), "interface cali999 does not exist", nil},
		{"interface down", key("10.3.0.1/32"), normal(desired.Route{Dev: down, Proto: 3}, "10.3.0.1/32"), "network is down", unix.ENETDOWN},
		{"no way to gateway", key("10.3.0.0/24"), desired.Route{Gateway: addr("172.31.0.1"), Dev: "eth0", Proto: 81}, "network is unreachable", unix.ENETUNREACH},
		{"not normal", key("10.3.0.1/32"), desired.Route{Dev: "caliA", Proto: 3}, "is not normal", nil},
		{"not valid", key("10.3.0.1/32"), desired.Route{Dev: "caliA", LinkScope: true}, "protocol 0", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := a.Put(t.Context(), tt.key, tt.r)
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	if err := a.Delete(t.Context(), key("10.77.0.0/24")); err != nil {
		t.Errorf("delete of nothing: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Delete(ctx, key("10.77.0.0/24")); !errors.Is(err, context.Canceled) {
		t.Errorf("delete after cancel: %v", err)
	}
	if _, err := routes.New(routes.Options{Namespace: "/nowhere"}); err == nil || !strings.Contains(err.Error(), "open network namespace") {
		t.Errorf("new: %v", err)
	}
	if _, err := routes.New(routes.Options{InterfacePrefixes: []string{""}}); err == nil {
		t.Error("an empty prefix was accepted")
	}
	a.Close()
	if _, err := a.Dump(t.Context()); err == nil {
		t.Error("dump after close gave no error")
	}
}

// TestInterfaceMadeAnew: the same name, another index.
func TestInterfaceMadeAnew(t *testing.T) {
	ns, a := host(t, routes.Options{})
	put(t, a, "10.4.0.1/32", desired.Route{Dev: "caliA", Proto: 3})
	link, err := ns.Handle().LinkByName("caliA")
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Handle().LinkDel(link); err != nil {
		t.Fatal(err)
	}
	if err := a.Delete(t.Context(), key("10.4.0.1/32")); err != nil {
		t.Errorf("delete of a route that went with its interface: %v", err)
	}
	nstest.Veth(ns, "caliA", nstest.New(t), "eth0")
	put(t, a, "10.4.0.1/32", desired.Route{Dev: "caliA", Proto: 3})
	if got := dump(t, a); len(got) != 1 || got[key("10.4.0.1/32")].Dev != "caliA" {
		t.Errorf("dump has\n%s", got)
	}
}

func TestConnectionsOfRemovedWorkloadsAreForgotten(t *testing.T) {
	ns, a := host(t, routes.Options{})
	connection := func(src, dst string) {
		t.Helper()
		flow := &netlink.ConntrackFlow{
			FamilyType: unix.AF_INET,
			Forward:    netlink.IPTuple{Protocol: 17, SrcIP: addr(src).AsSlice(), DstIP: addr(dst).AsSlice(), SrcPort: 1000, DstPort: 53},
			Reverse:    netlink.IPTuple{Protocol: 17, SrcIP: addr(dst).AsSlice(), DstIP: addr(src).AsSlice(), SrcPort: 53, DstPort: 1000},
			TimeOut:    100,
		}
		if addr(src).Is6() {
			flow.FamilyType = unix.AF_INET6
		}
		if err := ns.Handle().ConntrackCreate(netlink.ConntrackTable, netlink.InetFamily(flow.FamilyType), flow); err != nil {
			t.Fatalf("create connection (needs a kernel with nf_conntrack_netlink): %v", err)
		}
	}
	connections := func() (srcs []string) {
		t.Helper()
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			flows, err := ns.Handle().ConntrackTableList(netlink.ConntrackTable, family)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range flows {
				a, _ := netip.AddrFromSlice(f.Forward.SrcIP)
				srcs = append(srcs, a.Unmap().String())
			}
		}
		slices.Sort(srcs)
		return srcs
	}
	expect := func(what string, want ...string) {
		t.Helper()
		if got := connections(); !slices.Equal(got, want) {
			t.Errorf("%s: connections from %v, want %v", what, got, want)
		}
	}
	workload := func(dev string) desired.Route { return desired.Route{Dev: dev, Proto: 3} }
	for _, dst := range []string{"10.6.0.1/32", "10.6.0.2/32", "10.6.0.3/32", "fd10::4/128"} {
		put(t, a, dst, workload("caliA"))
	}
	put(t, a, "10.6.0.5/32", desired.Route{Gateway: addr("10.0.0.2"), Dev: "eth0", Proto: 81})
	connection("10.6.0.1", "10.99.0.1")
	connection("10.99.0.2", "10.6.0.2")
	connection("10.6.0.3", "10.99.0.1")
	connection("fd10::4", "fd99::1")
	connection("10.6.0.5", "10.99.0.1")
	expect("before", "10.6.0.1", "10.6.0.3", "10.6.0.5", "10.99.0.2", "fd10::4")

	put(t, a, "10.6.0.1/32", workload("caliA"))
	expect("put again", "10.6.0.1", "10.6.0.3", "10.6.0.5", "10.99.0.2", "fd10::4")
	put(t, a, "10.6.0.1/32", workload("caliB"))
	expect("moved", "10.6.0.3", "10.6.0.5", "10.99.0.2", "fd10::4")
	for _, dst := range []string{"10.6.0.2/32", "fd10::4/128", "10.6.0.5/32"} {
		if err := a.Delete(t.Context(), key(dst)); err != nil {
			t.Fatal(err)
		}
	}
	expect("deleted; .5 is not local", "10.6.0.3", "10.6.0.5")

	// Somebody deletes the route, and it is put back: the workload is the same.
	ns.Command("ip", "route", "del", "10.6.0.3")
	dump(t, a)
	put(t, a, "10.6.0.3/32", workload("caliA"))
	expect("healed", "10.6.0.3", "10.6.0.5")

	// The interface goes first, as when a container ends; its route goes with it.
	ns.Command("ip", "link", "del", "caliA")
	dump(t, a)
	if err := a.Delete(t.Context(), key("10.6.0.3/32")); err != nil {
		t.Fatal(err)
	}
	expect("interface gone", "10.6.0.5")
}

// TestAnyRouteRoundTrips: whatever can be put is what Dump finds.
func TestAnyRouteRoundTrips(t *testing.T) {
	_, a := host(t, routes.Options{Tables: []int{254, 1000}})
	rapid.Check(t, func(t *rapid.T) {
		want := desired.Routes{}
		for range rapid.IntRange(1, 8).Draw(t, "routes") {
			k, r := drawRoute(t)
			want.Add(k, r)
		}
		entries := make([]routes.Entry, 0, len(want))
		for k, r := range want {
			entries = append(entries, routes.Entry{Key: k, Value: r})
		}
		if errs := a.Apply(context.Background(), entries, nil); len(errs) > 0 {
			t.Fatal(errs)
		}
		got, err := a.Dump(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if g, w := desired.Routes(got).String(), want.String(); g != w {
			t.Fatalf("got\n%swant\n%s", g, w)
		}
		if errs := a.Apply(context.Background(), nil, want.Keys()); len(errs) > 0 {
			t.Fatal(errs)
		}
		if got, err = a.Dump(context.Background()); err != nil || len(got) != 0 {
			t.Fatalf("left over %v, %v", got, err)
		}
	})
}

func drawRoute(t *rapid.T) (desired.RouteKey, desired.Route) {
	six := rapid.Bool().Draw(t, "six")
	pick := func(four, six6 string) netip.Addr {
		if six {
			return addr(six6)
		}
		return addr(four)
	}
	dst := pick("10.128.0.0", "fd80::")
	raw := dst.AsSlice()
	raw[len(raw)-1] = rapid.Byte().Draw(t, "host")
	dst, _ = netip.AddrFromSlice(raw)
	k := desired.RouteKey{
		Table:    rapid.SampledFrom([]int{254, 1000}).Draw(t, "table"),
		Dst:      netip.PrefixFrom(dst, rapid.IntRange(dst.BitLen()-8, dst.BitLen()).Draw(t, "bits")),
		Priority: rapid.SampledFrom([]uint32{0, 1, 512, 1024}).Draw(t, "priority"),
	}
	r := desired.Route{Proto: rapid.SampledFrom([]int{80, 81}).Draw(t, "proto")}
	switch rapid.IntRange(0, 5).Draw(t, "shape") {
	case 4:
		r = r.Via(two(pick("10.0.0.2", "fd00::2").String(), pick("10.0.0.3", "fd00::3").String()))
	case 5:
		r = r.Via(two(pick("10.0.0.2", "fd00::2").String(), "fe80::5"))
	case 0:
		r.Type = desired.Blackhole
		return k, r
	case 1:
		r.Dev, r.Proto = rapid.SampledFrom([]string{"caliA", "caliB"}).Draw(t, "dev"), 3
	case 2:
		r.Dev, r.Gateway = "eth0", pick("10.0.0.2", "fd00::2")
	case 3:
		r.Dev, r.Gateway, r.Onlink = "eth0", pick("172.16.1.1", "fe80::77"), true
	}
	if rapid.Bool().Draw(t, "mtu") {
		r.MTU = rapid.IntRange(1280, 9000).Draw(t, "bytes")
	}
	if rapid.Bool().Draw(t, "src") {
		r.Src = pick("10.0.0.1", "fd00::1")
	}
	return k, r
}
