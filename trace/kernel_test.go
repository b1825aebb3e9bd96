package trace

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/manekinet/maneki/dataplane/nstest"
)

// TestLook: what the kernel says of a namespace, rules and metrics included.
func TestLook(t *testing.T) {
	ns, peer := nstest.New(t), nstest.New(t)
	nstest.Veth(ns, "eth0", peer, "p0")
	nstest.Veth(ns, "cali1", peer, "c0")
	ns.AddAddr("eth0", "172.18.0.2/24")
	ns.AddAddr("eth0", "fd18::2/64")
	for _, line := range []string{
		"ip link add vxlan.calico type vxlan id 4096 dstport 4789 local 172.18.0.2 dev eth0 nolearning",
		"ip link set vxlan.calico up mtu 1450",
		"ip addr add 10.0.0.1/32 dev vxlan.calico",
		"ip neigh add 10.0.1.0 lladdr 66:00:00:00:00:02 dev vxlan.calico nud permanent",
		"bridge fdb add 66:00:00:00:00:02 dst 172.18.0.3 dev vxlan.calico",
		"ip route add 10.0.1.0/26 via 10.0.1.0 dev vxlan.calico proto 80 onlink",
		"ip route add blackhole 10.0.0.0/26 proto 80",
		"ip route add 10.9.0.0/24 via 172.18.0.7 table 77",
		"ip route add 10.9.0.0/24 via 172.18.0.8 metric 5",
		"ip route add 10.8.0.0/24 nexthop via 172.18.0.7 dev eth0 nexthop via 172.18.0.8 dev eth0 weight 2",
		"nft add table ip filter",
		"nft add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }",
		"ip rule add from 10.5.0.0/16 lookup 77 priority 100",
		"ip route add 10.5.0.9 dev cali1",
		"sysctl -qw net.ipv4.conf.cali1.proxy_arp=1",
		"sysctl -qw net.ipv4.ip_forward=1",
		"sysctl -qw net.ipv4.conf.all.rp_filter=0",
		"sysctl -qw net.ipv4.conf.cali1.rp_filter=1",
	} {
		w := strings.Fields(line)
		ns.Command(w[0], w[1:]...)
	}
	var v *View
	var err error
	ns.Do(func() { v, err = Look("h1", Host) })
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()

	vx, ok := v.Link("vxlan.calico")
	if !ok || vx.Type != "vxlan" || vx.VNI != 4096 || vx.Port != 4789 || vx.Local != addr("172.18.0.2") || vx.MTU != 1450 || !vx.Up {
		t.Errorf("vxlan.calico %+v", vx)
	}
	if cali, _ := v.Link("cali1"); !cali.ProxyARP || cali.Peer == 0 {
		t.Errorf("cali1 %+v", cali)
	}
	if n, ok := v.neighbour("vxlan.calico", addr("10.0.1.0")); !ok || n.State != "PERMANENT" || n.MAC != "66:00:00:00:00:02" {
		t.Errorf("neighbour %+v", n)
	}
	if dst, ok := v.behind("vxlan.calico", "66:00:00:00:00:02"); !ok || dst != addr("172.18.0.3") {
		t.Errorf("forwarding entry %v", dst)
	}
	if v.NoForward4 || !v.NoForward6 {
		t.Errorf("forwarding: IPv4 off %t, IPv6 off %t", v.NoForward4, v.NoForward6)
	}
	if len(v.Filters) != 1 || v.Filters[0] != (Filter{"ip filter FORWARD", "forward", true, false, "drops what none of its rules accepts (policy drop)"}) {
		t.Errorf("packet filters %+v", v.Filters)
	}
	several, err := v.Lookup(Query{Dst: addr("10.8.0.1")})
	if want := "nexthop via 172.18.0.7 dev eth0 weight 1\nnexthop via 172.18.0.8 dev eth0 weight 2\n"; err != nil || several.Ways != want {
		t.Errorf("next hops %q, %v", several.Ways, err)
	}
	if several.Dev != "eth0" || several.Gateway != addr("172.18.0.7") && several.Gateway != addr("172.18.0.8") {
		t.Errorf("taken: %s dev %s", several.Gateway, several.Dev)
	}
	for _, tt := range []struct{ name, src, dst, in, want, rule string }{
		{"remote block", "", "10.0.1.9", "", "10.0.1.0/26 via 10.0.1.0 dev vxlan.calico proto 80 onlink", "32766: from all lookup main"},
		{"by metric", "", "10.9.0.1", "", "10.9.0.0/24 via 172.18.0.8 dev eth0", "32766: from all lookup main"},
		{"by rule", "10.5.0.9", "10.9.0.1", "cali1", "10.9.0.0/24 via 172.18.0.7 dev eth0 table 77", "100: from 10.5.0.0/16 lookup 77"},
		{"own address", "", "172.18.0.2", "", "local 172.18.0.2 dev eth0 proto kernel src 172.18.0.2", ""},
		{"IPv6", "", "fd18::9", "", "fd18::/64 dev eth0 proto kernel", ""},
		{"blackhole", "", "10.0.0.9", "", "error invalid argument", ""},
		{"nowhere", "", "8.8.8.8", "", "error network is unreachable", ""},
		{"spoofed", "10.77.0.1", "10.0.1.9", "cali1", "error invalid argument", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := Query{Dst: addr(tt.dst), In: tt.in}
			if tt.src != "" {
				q.Src = netip.MustParseAddr(tt.src)
			}
			r, err := v.Lookup(q)
			got := r.Line
			if err != nil {
				got = "error " + err.Error()
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if rule, _ := v.rule(r.Table, q); tt.rule != "" && rule.String() != tt.rule {
				t.Errorf("rule %q, want %q", rule, tt.rule)
			}
		})
	}
}

// TestPeerNamespace: the other end of a container's veth is found by the id that
// its namespace has here.
func TestPeerNamespace(t *testing.T) {
	ns, container := nstest.New(t), nstest.New(t)
	nstest.Veth(ns, "cali1", container, "eth0")
	container.AddAddr("eth0", "10.0.0.5/32")
	process := sleeper(t, container)
	var path, dev string
	var err error
	ns.Do(func() { path, dev, err = peerNamespace("cali1") })
	if err != nil || dev != "eth0" {
		t.Fatalf("%s, %s, %v", path, dev, err)
	}
	var v *View
	if err := InNamespace(path, func() (err error) { v, err = Look("c1", Container); return err }); err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if _, ok := v.Owner(addr("10.0.0.5")); !ok {
		t.Errorf("looked at the wrong namespace %s (process %d): %+v", path, process, v.Links)
	}
	ns.Do(func() { _, _, err = peerNamespace("lo") })
	if err == nil || !strings.Contains(err.Error(), "no other end") {
		t.Errorf("of lo: %v", err)
	}
}
