package tunnels_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/dataplane/tunnels"
	"github.com/manekinet/maneki/desired"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func host(t *testing.T) *nstest.NS {
	ns, peer := nstest.New(t), nstest.New(t)
	nstest.Veth(ns, "eth0", peer, "p0")
	ns.AddAddr("eth0", "172.18.0.2/16")
	ns.AddAddr("eth0", "fd18::2/64")
	return ns
}

func wanted() desired.Tunnels {
	return desired.Tunnels{
		desired.VXLANDevice: {
			VNI: 4096, Port: 4789, Underlay: "eth0", Local: addr("172.18.0.2"), MAC: "66:f9:37:c3:7e:94",
			Addrs: desired.NewAddrSet(addr("10.1.0.1")), MTU: 1450,
		},
		desired.VXLANDevice6: {
			VNI: 4096, Port: 4789, Underlay: "eth0", Local: addr("fd18::2"), MAC: "66:0f:35:f2:60:df",
			Addrs: desired.NewAddrSet(addr("fd01::1")), MTU: 1430,
		},
	}
}

// TestEveryDifferenceIsSeenAndRepaired: whatever somebody does to a device, the
// listing differs from what is wanted, and one Put brings it back.
func TestEveryDifferenceIsSeenAndRepaired(t *testing.T) {
	ctx := context.Background()
	ns := host(t)
	ns.AddAddr("eth0", "172.18.0.9/16")
	a := tunnels.New(ns.Handle(), desired.VXLANDevice, desired.VXLANDevice6)
	put := func() {
		t.Helper()
		for name, want := range wanted() {
			if err := a.Put(ctx, name, want); err != nil {
				t.Fatal(err)
			}
		}
		have, err := a.Dump(ctx)
		if err != nil || desired.Tunnels(have).String() != wanted().String() || len(have) != 2 || have[desired.VXLANDevice] != wanted()[desired.VXLANDevice] || have[desired.VXLANDevice6] != wanted()[desired.VXLANDevice6] {
			t.Fatalf("have\n%+v\nwant\n%+v\n%v", have, wanted(), err)
		}
	}
	put()
	show := ns.Command("ip", "-d", "link", "show", "vxlan.calico")
	for _, word := range []string{"mtu 1450", "66:f9:37:c3:7e:94", "vxlan id 4096", "local 172.18.0.2", "dev eth0", "dstport 4789", "nolearning", "UP"} {
		if !strings.Contains(show, word) {
			t.Errorf("%q is missing in\n%s", word, show)
		}
	}
	for _, harm := range []string{
		"link set vxlan.calico down",
		"link set vxlan.calico mtu 1300",
		"link set vxlan.calico address 66:00:00:00:00:01",
		"link del vxlan.calico",
		"addr del 10.1.0.1/32 dev vxlan.calico",
		"addr add 10.9.0.1/32 dev vxlan.calico",
		"addr add 10.9.0.1/24 dev vxlan.calico",
		"addr flush dev vxlan-v6.calico",
		"link set vxlan.calico type vxlan learning",
		"link set vxlan.calico type vxlan local 172.18.0.9",
	} {
		ns.Command("ip", strings.Fields(harm)...)
		have, err := a.Dump(ctx)
		if err != nil || have[desired.VXLANDevice] == wanted()[desired.VXLANDevice] && have[desired.VXLANDevice6] == wanted()[desired.VXLANDevice6] {
			t.Errorf("%s is not seen: %+v, %v", harm, have, err)
		}
		put()
	}
	for name := range wanted() {
		if err := errors.Join(a.Delete(ctx, name), a.Delete(ctx, name)); err != nil {
			t.Error(err)
		}
	}
	if have, err := a.Dump(ctx); err != nil || len(have) != 0 {
		t.Errorf("after deletion: %v, %v", have, err)
	}
}

func TestAForeignDeviceStays(t *testing.T) {
	ctx := context.Background()
	ns := host(t)
	ns.Command("ip", "link", "add", "vxlan.calico", "type", "bridge")
	a := tunnels.New(ns.Handle(), desired.VXLANDevice)
	if err := a.Put(ctx, desired.VXLANDevice, wanted()[desired.VXLANDevice]); !errors.Is(err, tunnels.ErrForeign) {
		t.Errorf("put: %v", err)
	}
	if have, err := a.Dump(ctx); err != nil || len(have) != 0 {
		t.Errorf("dump: %v, %v", have, err)
	}
	if err := a.Delete(ctx, desired.VXLANDevice); err != nil {
		t.Error(err)
	}
	if show := ns.Command("ip", "-d", "link", "show", "vxlan.calico"); !strings.Contains(show, "bridge") {
		t.Errorf("it is gone: %s", show)
	}
}

func TestBadWishes(t *testing.T) {
	ctx := context.Background()
	a := tunnels.New(host(t).Handle(), desired.VXLANDevice)
	for field, edit := range map[string]func(*desired.Tunnel){
		"MAC":      func(v *desired.Tunnel) { v.MAC = "nonsense" },
		"underlay": func(v *desired.Tunnel) { v.Underlay = "eth9" },
	} {
		v := wanted()[desired.VXLANDevice]
		edit(&v)
		if err := a.Put(ctx, desired.VXLANDevice, v); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestChecksumOffload: it is turned off when that is wanted and kept off, and
// what somebody else turned off is not turned on.
func TestChecksumOffload(t *testing.T) {
	ctx := context.Background()
	ns := host(t)
	a := tunnels.New(ns.Handle(), desired.VXLANDevice)
	name, want := desired.VXLANDevice, wanted()[desired.VXLANDevice]
	check := func(offload bool, step string) {
		t.Helper()
		ns.Do(func() {
			if err := a.Put(ctx, name, want); err != nil {
				t.Fatal(err)
			}
			have, err := a.Dump(ctx)
			if err != nil || have[name] != want {
				t.Errorf("%s: have %+v, want %+v, %v", step, have[name], want, err)
			}
			if on, err := tunnels.TxChecksum(name); err != nil || on != offload {
				t.Errorf("%s: offload %t, %v", step, on, err)
			}
		})
	}
	check(true, "new device")
	want.NoOffload = true
	check(false, "turned off")
	ns.Command("ethtool", "-K", name, "tx-checksum-ip-generic", "on")
	ns.Do(func() {
		if have, err := a.Dump(ctx); err != nil || have[name] == want {
			t.Errorf("offload turned on is not seen: %+v, %v", have[name], err)
		}
	})
	check(false, "turned off again")
	want.NoOffload = false
	check(false, "no matter any more")
}
