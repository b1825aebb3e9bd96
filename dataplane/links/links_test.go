package links_test

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/manekinet/maneki/dataplane/links"
	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/desired"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestList(t *testing.T) {
	ns, peer := nstest.New(t), nstest.New(t)
	nstest.Veth(ns, "eth0", peer, "p0")
	nstest.Veth(ns, "tun0", peer, "p1")
	ns.AddAddr("eth0", "172.18.0.2/16")
	ns.AddAddr("eth0", "172.18.0.3/16") // secondary
	ns.AddAddr("eth0", "fd00::2/64")
	ns.Command("ip", "addr", "add", "fd00::9/64", "dev", "eth0", "nodad", "preferred_lft", "0") // deprecated
	ns.Command("ip", "addr", "add", "fd00::3/64", "dev", "eth0", "nodad")
	ns.Command("ip", "addr", "add", "10.1.0.1", "peer", "10.1.0.2/32", "dev", "tun0")
	ns.Command("ip", "link", "set", "eth0", "mtu", "1400")
	ns.Command("ip", "link", "set", "tun0", "down")

	list, err := links.List(ns.Handle())
	if err != nil {
		t.Fatal(err)
	}
	var here []links.Interface
	ns.Do(func() { here, err = links.List(nil) })
	if err != nil || fmt.Sprint(here) != fmt.Sprint(list) {
		t.Errorf("in the namespace, without a handle: %v, %v; want %v", here, err, list)
	}
	byName := map[string]links.Interface{}
	for i, l := range list {
		byName[l.Name] = l
		if i > 0 && list[i-1].Index >= l.Index {
			t.Errorf("order: %v", list)
		}
	}
	if len(list) != 3 || !byName["lo"].Up || byName["lo"].Index != 1 || byName["lo"].MTU != 65536 {
		t.Errorf("interfaces %+v", list)
	}
	eth0 := byName["eth0"]
	if eth0.MTU != 1400 || !eth0.Up || len(eth0.MAC) != 6 {
		t.Errorf("eth0 %+v", eth0)
	}
	global := slices.DeleteFunc(slices.Clone(eth0.Addrs), func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() })
	if got, want := fmt.Sprint(global), "[172.18.0.2/16 172.18.0.3/16 fd00::3/64 fd00::2/64 fd00::9/64]"; got != want {
		t.Errorf("addresses of eth0 %s, want %s", got, want)
	}
	tun0 := byName["tun0"]
	if got := fmt.Sprint(tun0.Addrs); tun0.Up || got != "[10.1.0.1/32]" {
		t.Errorf("tun0 %+v: want the local address, not the peer's", tun0)
	}
}

func TestTowards(t *testing.T) {
	ns, peer := nstest.New(t), nstest.New(t)
	nstest.Veth(ns, "eth0", peer, "p0")
	nstest.Veth(ns, "eth1", peer, "p1")
	ns.AddAddr("eth0", "172.18.0.2/16")
	ns.AddAddr("eth1", "10.1.0.2/24")
	ns.AddAddr("eth1", "fd00::2/64")
	ns.Command("ip", "route", "add", "default", "via", "10.1.0.1")
	for dst, want := range map[string]string{
		"172.18.9.9": "eth0 172.18.0.2", "8.8.8.8": "eth1 10.1.0.2", "fd00::77": "eth1 fd00::2", "10.1.0.2": "lo 10.1.0.2",
	} {
		iface, src, err := links.Towards(ns.Handle(), netip.MustParseAddr(dst))
		if got := fmt.Sprint(iface, " ", src); err != nil || got != want {
			t.Errorf("towards %s: %s, %v; want %s", dst, got, err, want)
		}
	}
	if _, _, err := links.Towards(ns.Handle(), netip.MustParseAddr("fd99::1")); err == nil {
		t.Error("an unreachable address gave no error")
	}
}

func TestHostMTU(t *testing.T) {
	up := func(name string, mtu int) links.Interface { return links.Interface{Name: name, MTU: mtu, Up: true} }
	tests := []struct {
		name string
		list []links.Interface
		want int
	}{
		{"none", nil, 1460},
		{"no match", []links.Interface{up("lo", 65536), up("cali1", 1400), up("docker0", 1300), up("veth0", 1200)}, 1460},
		{"smallest", []links.Interface{up("eth0", 1500), up("ens32", 1450), up("wlan0", 1480)}, 1450},
		{"down does not count", []links.Interface{up("eth0", 1500), {Name: "eth1", MTU: 1200}}, 1500},
		{"names", []links.Interface{up("enp3s0", 9000), up("ibs1", 2044), up("enet0", 1000), up("eno1", 8000)}, 2044},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := links.HostMTU(tt.list, regexp.MustCompile(desired.MTUPattern)); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}
