package desired_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/manekinet/maneki/desired"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestRoutesPrintLikeIPRoute(t *testing.T) {
	rs := desired.Routes{}
	add := func(dst string, r desired.Route) { rs.Add(desired.NewRouteKey(prefix(dst)), r) }
	add("192.168.57.64/26", desired.Route{Gateway: addr("172.18.0.3"), Dev: "eth0", Proto: desired.ProtoBGP})
	add("192.168.36.192/26", desired.Route{Type: desired.Blackhole, Proto: desired.ProtoComputed, Dev: "ignored"})
	add("192.168.36.192/32", desired.Route{Dev: "cali123", Proto: desired.ProtoEndpoint})
	add("0.0.0.0/0", desired.Route{Gateway: addr("10.0.0.1"), Dev: "eth0", Proto: desired.ProtoBGP})
	add("10.9.0.77/26", desired.Route{
		Gateway: addr("10.9.0.64"), Dev: "vxlan.calico", Onlink: true, MTU: 1450,
		Proto: desired.ProtoComputed, Src: addr("10.0.0.2"),
	})
	add("fd00:10::40/122", desired.Route{Gateway: addr("fd01::3"), Dev: "eth0", Proto: desired.ProtoBGP})
	add("fd00:10::80/122", desired.Route{Type: desired.Blackhole, Proto: desired.ProtoComputed})
	rs.Add(desired.RouteKey{Table: 100, Dst: prefix("10.0.0.0/8"), Priority: 7}, desired.Route{Dev: "eth1", Proto: 80})

	want := `10.0.0.0/8 dev eth1 table 100 proto 80 scope link metric 7
default via 10.0.0.1 dev eth0 proto 81
10.9.0.64/26 via 10.9.0.64 dev vxlan.calico proto 80 src 10.0.0.2 onlink mtu 1450
blackhole 192.168.36.192/26 proto 80
192.168.36.192 dev cali123 scope link
192.168.57.64/26 via 172.18.0.3 dev eth0 proto 81
fd00:10::40/122 via fd01::3 dev eth0 proto 81 metric 1024 pref medium
blackhole fd00:10::80/122 dev lo proto 80 metric 1024 pref medium
`
	if got := rs.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got, want := rs[desired.NewRouteKey(prefix("192.168.57.64/26"))].String(), "via 172.18.0.3 dev eth0 proto 81"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestValidate(t *testing.T) {
	key := desired.NewRouteKey(prefix("10.0.0.0/24"))
	ok := desired.Route{Gateway: addr("10.1.0.1"), Dev: "eth0", Proto: 80}
	tests := []struct {
		name string
		key  desired.RouteKey
		edit func(*desired.Route)
		want string // part of the error; empty for none
	}{
		{"good", key, func(*desired.Route) {}, ""},
		{"good blackhole", key, func(r *desired.Route) { *r = desired.Route{Type: desired.Blackhole, Proto: 80} }, ""},
		{"no destination", desired.RouteKey{}, func(*desired.Route) {}, "destination is missing"},
		{"host bits", desired.RouteKey{Table: 254, Dst: prefix("10.0.0.1/24")}, func(*desired.Route) {}, "must be 10.0.0.0/24"},
		{"no priority", desired.RouteKey{Table: 254, Dst: prefix("fd00::/64")}, func(*desired.Route) {}, "metric 1024"},
		{"other", key, func(r *desired.Route) { r.Type = desired.Other }, "type other"},
		{"no protocol", key, func(r *desired.Route) { r.Proto = 0 }, "protocol 0"},
		{"no device", key, func(r *desired.Route) { r.Dev = "" }, "interface is missing"},
		{"mtu", key, func(r *desired.Route) { r.MTU = -1 }, "mtu -1"},
		{"gateway family", desired.NewRouteKey(prefix("fd00::/64")), func(*desired.Route) {}, "gateway 10.1.0.1"},
		{"IPv6 gateway of an IPv4 destination", key, func(r *desired.Route) { r.Gateway = addr("fe80::1") }, ""},
		{"gateway with a zone", key, func(r *desired.Route) { r.Gateway = addr("fe80::1%eth0") }, "zone"},
		{"multipath", key, func(r *desired.Route) { *r = r.Via(twoHops()) }, ""},
		{"multipath and gateway", key, func(r *desired.Route) { r.NextHops = twoHops() }, "beside next hops"},
		{"multipath of one", key, func(r *desired.Route) {
			*r = desired.Route{Proto: 81, NextHops: desired.NewNextHops(twoHops().List()[0])}
		}, "1 next hops"},
		{"multipath without interface", key, func(r *desired.Route) {
			*r = desired.Route{Proto: 81, NextHops: desired.NewNextHops(twoHops().List()[0], desired.NextHop{Gateway: addr("10.3.0.1")})}
		}, "interface is missing"},
		{"multipath without gateway", key, func(r *desired.Route) {
			*r = desired.Route{Proto: 81, NextHops: desired.NewNextHops(twoHops().List()[0], desired.NextHop{Dev: "eth1"})}
		}, "without a gateway"},
		{"source family", key, func(r *desired.Route) { r.Src = addr("fd00::1") }, "source fd00::1"},
		{"onlink alone", key, func(r *desired.Route) { r.Gateway, r.Onlink = netip.Addr{}, true }, "onlink"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := ok
			tt.edit(&r)
			err := r.Validate(tt.key)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func twoHops() desired.NextHops {
	return desired.NewNextHops(desired.NextHop{Gateway: addr("10.2.0.1"), Dev: "eth1"}, desired.NextHop{Gateway: addr("10.1.0.1"), Dev: "eth0"},
		desired.NextHop{Gateway: addr("10.2.0.1"), Dev: "eth1"})
}

func TestNextHops(t *testing.T) {
	s := twoHops()
	if s != desired.NewNextHops(s.List()...) || s.Len() != 2 || s.String() != "nexthop via 10.1.0.1 dev eth0 weight 1 nexthop via 10.2.0.1 dev eth1 weight 1" {
		t.Errorf("%s", s)
	}
	one := desired.NewNextHops(desired.NextHop{Gateway: addr("fe80::1%eth0"), Dev: "eth0", Onlink: true})
	r := desired.Route{Proto: 81, LinkScope: true}.Via(one).Normal(prefix("10.0.0.0/8"))
	if want := (desired.Route{Proto: 81, Gateway: addr("fe80::1"), Dev: "eth0", Onlink: true}); r != want {
		t.Errorf("one hop gives %+v", r)
	}
	if got, want := r.Line(desired.NewRouteKey(prefix("10.0.0.0/8"))), "10.0.0.0/8 via inet6 fe80::1 dev eth0 proto 81 onlink"; got != want {
		t.Errorf("got %q", got)
	}
	r = desired.Route{Proto: 81}.Via(s)
	if got, want := r.Line(desired.NewRouteKey(prefix("10.0.0.0/8"))), "10.0.0.0/8 proto 81 "+s.String(); got != want {
		t.Errorf("got %q", got)
	}
	if hops := r.Hops(); len(hops) != 2 || hops[0].Dev != "eth0" || (desired.Route{Type: desired.Blackhole}).Hops() != nil {
		t.Errorf("hops %v", hops)
	}
	if (desired.NextHops{}) != desired.NewNextHops() {
		t.Error("the zero value is not the empty set")
	}
}

func TestNormalIsIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bytes := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")
		a := netip.AddrFrom16([16]byte(bytes))
		if rapid.Bool().Draw(t, "four") {
			a = netip.AddrFrom4([4]byte(bytes[:4]))
		}
		if rapid.Bool().Draw(t, "mapped") {
			a = netip.AddrFrom16(a.As16())
		}
		k := desired.RouteKey{
			Table:    rapid.IntRange(0, 300).Draw(t, "table"),
			Dst:      netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")),
			Priority: rapid.Uint32().Draw(t, "priority"),
		}
		n := k.Normal()
		if n != n.Normal() {
			t.Fatalf("%v: %v then %v", k, n, n.Normal())
		}
		if !n.Dst.Contains(n.Dst.Addr()) || n.Table == 0 || n.Compare(n) != 0 {
			t.Fatalf("%v gives %v", k, n)
		}
		r := desired.Route{Dev: "eth0", Proto: 80, LinkScope: rapid.Bool().Draw(t, "scope")}.Normal(n.Dst)
		if err := r.Validate(n); err != nil {
			t.Fatalf("normal route is refused: %v", err)
		}
	})
}

func TestAddrSet(t *testing.T) {
	a := desired.NewAddrSet(addr("fd00::1"), addr("10.0.0.2"), addr("10.0.0.1"), addr("::ffff:10.0.0.2"), netip.Addr{})
	b := desired.NewAddrSet(addr("10.0.0.1"), addr("10.0.0.2"), addr("fd00::1"))
	if a != b || a.String() != "10.0.0.1,10.0.0.2,fd00::1" || !a.Has4() || !a.Has6() || len(a.Addrs()) != 3 {
		t.Errorf("sets %v and %v", a, b)
	}
	if got := fmt.Sprintf("%v", desired.Endpoint{Interface: "cali1", MAC: "ee:ee", Addrs: a}); got != "{cali1 ee:ee 10.0.0.1,10.0.0.2,fd00::1}" {
		t.Error(got)
	}
	var empty desired.AddrSet
	if empty != desired.NewAddrSet() || empty.Addrs() != nil || empty.Has4() || empty.Has6() {
		t.Error("the zero value is not the empty set")
	}
}

func TestSysctls(t *testing.T) {
	s := desired.HostSysctls(true, true)
	s.Merge(desired.EndpointSysctls("cali.1", true, true))
	want := `net/ipv4/conf/cali.1/forwarding = 1
net/ipv4/conf/cali.1/proxy_arp = 1
net/ipv4/conf/cali.1/route_localnet = 1
net/ipv4/ip_forward = 1
net/ipv4/neigh/cali.1/proxy_delay = 0
net/ipv6/conf/all/forwarding = 1
net/ipv6/conf/cali.1/accept_dad = 0
net/ipv6/conf/cali.1/accept_ra = 0
net/ipv6/conf/cali.1/disable_ipv6 = 0
net/ipv6/conf/cali.1/forwarding = 1
net/ipv6/conf/cali.1/proxy_ndp = 1
`
	if got := s.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestWorkloadMTU(t *testing.T) {
	if got := desired.WorkloadMTU(1500); got != 1500 {
		t.Errorf("no encapsulation: %d", got)
	}
	if got := desired.WorkloadMTU(1500, desired.OverheadIPIP, desired.OverheadVXLAN6, desired.OverheadVXLAN); got != 1430 {
		t.Errorf("three encapsulations: %d", got)
	}
}

func TestTunnelTablesPrint(t *testing.T) {
	dev := desired.VXLANDevice
	ns := desired.Neighbours{{Dev: dev, Addr: addr("10.0.0.9")}: "66:00:00:00:00:02", {Dev: dev, Addr: addr("10.0.0.1")}: "66:00:00:00:00:01"}
	if got, want := ns.String(), "10.0.0.1 dev vxlan.calico lladdr 66:00:00:00:00:01 PERMANENT\n10.0.0.9 dev vxlan.calico lladdr 66:00:00:00:00:02 PERMANENT\n"; got != want {
		t.Errorf("got\n%s", got)
	}
	f := desired.FDB{{Dev: dev, MAC: "66:00:00:00:00:02"}: addr("172.18.0.3"), {Dev: dev, MAC: "66:00:00:00:00:01"}: addr("172.18.0.2")}
	if got, want := f.String(), "66:00:00:00:00:01 dev vxlan.calico dst 172.18.0.2 self permanent\n66:00:00:00:00:02 dev vxlan.calico dst 172.18.0.3 self permanent\n"; got != want {
		t.Errorf("got\n%s", got)
	}
	ts := desired.Tunnels{dev: {VNI: 4096, Port: 4789, Underlay: "eth0", Local: addr("172.18.0.2"), MAC: "66:00:00:00:00:01", Addrs: desired.NewAddrSet(addr("10.0.0.1")), MTU: 1450}}
	if got, want := ts.String(), "vxlan.calico vni 4096 port 4789 local 172.18.0.2 dev eth0 mac 66:00:00:00:00:01 addr 10.0.0.1 mtu 1450\n"; got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestRulesPrintAsNFT(t *testing.T) {
	r := func(do desired.Action, m ...desired.Match) desired.Rule { return desired.Rule{Match: m, Do: do} }
	for want, rule := range map[string]desired.Rule{
		"accept":                                 r(desired.Accept),
		`iifname "cali*" oifname != "eth0" drop`: r(desired.Drop, desired.InInterface("cali*"), desired.OutInterface("eth0").Negate()),
		"ip saddr 10.0.0.0/8 ip6 daddr != fd00::1 drop":                           r(desired.Drop, desired.SrcNet(prefix("10.1.0.0/8")), desired.DstNet(prefix("fd00::1/128")).Negate()),
		"udp dport 4789 notrack":                                                  r(desired.Notrack, desired.UDPPort(4789)),
		"tcp dport 80 tcp sport != 1-2 return":                                    r(desired.Return, desired.Proto(6), desired.DstPort(80, 80), desired.SrcPort(1, 2).Negate()),
		"meta l4proto != 6 th dport 80 return":                                    r(desired.Return, desired.Proto(6).Negate(), desired.DstPort(80, 80)),
		"meta nfproto ipv6 @th,0,16 32769":                                        r("", desired.Family(6), desired.ICMPType(128, 1)),
		"@th,0,8 != 8":                                                            r("", desired.ICMPType(8, -1).Negate()),
		"ct state established,related accept":                                     r(desired.Accept, desired.State(desired.Established|desired.Related)),
		"ip daddr . meta l4proto . th dport != @w goto x":                         {Match: []desired.Match{desired.InSet("w", desired.FieldDst4, desired.FieldProto, desired.FieldDstPort).Negate()}, Do: desired.Goto, Chain: "x"},
		"sctp sport @p iifname vmap @m":                                           {Match: []desired.Match{desired.Proto(132), desired.InSet("p", desired.FieldSrcPort)}, Do: desired.VMap, Map: "m", Key: []desired.Field{desired.FieldIn}},
		`limit rate 3/second burst 4 packets counter log prefix "x" group 7 drop`: {Limit: desired.Limit{PerSecond: 3, Burst: 4}, Counter: true, Log: desired.Log{Group: 7, Prefix: "x"}, Do: desired.Drop},
		`log prefix "a" meta mark set meta mark & 0xfffefffe | 0x00000001`:        {Log: desired.Log{Kernel: true, Prefix: "a"}, Mark: desired.Mark{Clear: 0x10000, Set: 1}},
		"masquerade to :5-6 fully-random":                                         {Do: desired.Masquerade, NAT: desired.NAT{From: 5, To: 6, Random: true}},
		"dnat ip6 to [fd00::1]:80":                                                {Do: desired.DNAT, NAT: desired.NAT{Addr: addr("fd00::1"), From: 80, To: 80}},
		"snat ip to 192.0.2.1":                                                    {Do: desired.SNAT, NAT: desired.NAT{Addr: addr("192.0.2.1")}},
		"fib daddr type local accept":                                             r(desired.Accept, desired.LocalDst()),
		"meta mark & 0x00000001 == 0x00000000 accept":                             r(desired.Accept, desired.Marked(1).Negate()),
	} {
		if got := rule.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestElementsEncodeAndPrint(t *testing.T) {
	fold := desired.NewSetType(true, desired.TypeIPv4, desired.TypeProto, desired.TypePort)
	fold.Verdicts = true
	e := fold.Element(desired.Verdict{Do: desired.Goto, Chain: "x"}, desired.AddrPart(prefix("10.0.0.0/8")), desired.ProtoPart(6), desired.PortPart(80, 90))
	if got := fold.Text(e); got != "10.0.0.0/8 . 6 . 80-90 : goto x" {
		t.Error(got)
	}
	if want := "\x0a\x00\x00\x00\x06\x00\x00\x00\x00\x50\x00\x00"; e.Key != want {
		t.Errorf("%x", e.Key)
	}
	if got := fold.Text(desired.Element{Key: "x", End: "y"}); got != "78-79" {
		t.Error(got)
	}
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(0, 128).Draw(t, "bits")
		a := netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "addr")))
		m := desired.Member{Net: netip.PrefixFrom(a, bits).Masked()}
		if got, ok := desired.AddrSetType(false).Member(desired.AddrSetType(false).MemberElement(m)); !ok || got != m {
			t.Fatalf("%v came back as %v", m, got)
		}
		m = desired.Member{Net: netip.PrefixFrom(a, 128), Proto: rapid.Byte().Draw(t, "proto"), Port: rapid.Uint16().Draw(t, "port")}
		if got, ok := desired.AddrPortSetType(false).Member(desired.AddrPortSetType(false).MemberElement(m)); !ok || got != m {
			t.Fatalf("%v came back as %v", m, got)
		}
	})
}

// TestContentDecidesIdentity: what is equal has one identity, and a change is what makes one content of the other.
func TestContentDecidesIdentity(t *testing.T) {
	ports := desired.NewSetType(true, desired.TypePort)
	draw := rapid.Custom(func(t *rapid.T) desired.Element {
		from := rapid.Uint16Range(0, 20).Draw(t, "from")
		return ports.Element(desired.Verdict{}, desired.PortPart(from, from+rapid.Uint16Range(0, 3).Draw(t, "more")))
	})
	rapid.Check(t, func(t *rapid.T) {
		a := desired.NewElements(rapid.SliceOfN(draw, 0, 8).Draw(t, "a")...)
		b := desired.NewElements(rapid.SliceOfN(draw, 0, 8).Draw(t, "b")...)
		if (a.Digest() == b.Digest()) != slices.Equal(a.List(), b.List()) {
			t.Fatal("digest and content disagree")
		}
		add, del := b.Since(a)
		left := slices.DeleteFunc(slices.Clone(a.List()), func(e desired.Element) bool { return slices.Contains(del, e) })
		if got := desired.NewElements(append(left, add...)...); got.Digest() != b.Digest() {
			t.Fatalf("%v changed by +%v -%v is not %v", a.List(), add, del, b.List())
		}
	})
	one, two := desired.Rule{Do: desired.Accept}, desired.Rule{Do: desired.Drop}
	if desired.NewRulesID([]desired.Rule{one, two}) == desired.NewRulesID([]desired.Rule{two, one}) || desired.NewRulesID(nil) != (desired.RulesID{}) {
		t.Error("the order of rules does not count")
	}
}

func TestUnusedObjectsGo(t *testing.T) {
	var n desired.NFT
	m := desired.NewSetType(false, desired.TypeInterface)
	m.Verdicts = true
	n.AddElements("dispatch", m, desired.NewElements(m.Element(desired.Verdict{Do: desired.Goto, Chain: "used"}, desired.InterfacePart("cali1"))))
	n.AddSet("lonely", desired.AddrSetType(true), nil)
	n.AddSet("asked", desired.AddrSetType(true), nil)
	n.AddChain("base", desired.Hook{Type: "filter", Name: "input"}, desired.Rule{Do: desired.VMap, Map: "dispatch", Key: []desired.Field{desired.FieldIn}})
	n.AddChain("used", desired.Hook{}, desired.Rule{Match: []desired.Match{desired.SrcIn("asked", true)}, Do: desired.Drop})
	n.AddChain("unused", desired.Hook{}, desired.Rule{Do: desired.Jump, Chain: "unused"})
	n.DropUnused()
	if got := slices.SortedFunc(maps.Keys(n.Objects), desired.NFTKey.Compare); fmt.Sprint(got) != "[set asked set dispatch chain base chain used]" {
		t.Error(got)
	}
}

func TestUnionMerges(t *testing.T) {
	s := desired.UnionOf(prefix("10.0.0.128/25"), prefix("10.0.0.0/25"), prefix("10.0.0.7/32"), prefix("10.0.1.0/26"), netip.Prefix{})
	if fmt.Sprint(s) != "[10.0.0.0/24 10.0.1.0/26]" || desired.NetMembers(s...).Len() != 2 {
		t.Error(s)
	}
}
