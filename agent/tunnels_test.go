package agent

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/ipam"
	"github.com/manekinet/maneki/reconcile"
)

// present is a tunnel table whose kernel holds whatever is put.
type present map[string]desired.Tunnel

func (p present) Dump(context.Context) (map[string]desired.Tunnel, error) { return p, nil }
func (p present) Put(_ context.Context, k string, v desired.Tunnel) error { p[k] = v; return nil }
func (p present) Delete(_ context.Context, k string) error                { delete(p, k); return nil }

// TestTunnelAddress: assigned once the device is there, kept, kept by a pool
// that is disabled, and released after a grace.
func TestTunnelAddress(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	store := memory.New()
	a := newAgent(t, store, "n1", "10.0.0.1/24")
	a.opts.Pool4.VXLAN, a.opts.Pool6.CIDR = api.EncapAlways, "none"
	if err := a.register(ctx); err != nil {
		t.Fatal(err)
	}
	a.tables = &tables{tunnels: reconcile.NewTable(present{}, reconcile.Options[string]{})}
	done := make(chan error, 1)
	go func() { done <- a.tables.tunnels.Run(ctx) }()
	client := ipam.New(store, ipam.Options{})
	host := ipam.NewHost(client, "n1")
	hostDone := make(chan error, 1)
	go func() { hostDone <- host.Run(ctx) }()
	defer func() {
		cancel()
		if err := errors.Join(<-done, <-hostDone); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	inNode := func() netip.Addr {
		n, err := datastore.For[api.Node](store).Get(ctx, "", "n1")
		if err != nil {
			t.Fatal(err)
		}
		addr, _ := netip.ParseAddr(n.Spec.IPv4VXLANTunnelAddr)
		return addr
	}
	held := func() int {
		addrs, err := client.ByHandle(ctx, ipam.TunnelVXLAN.Handle("n1"))
		if err != nil {
			t.Fatal(err)
		}
		return len(addrs)
	}
	v4 := tunnelAddresses()[0]
	var placed netip.Addr
	v4.place = func(_ context.Context, addr netip.Addr) error {
		if inNode().IsValid() && !addr.IsValid() {
			t.Error("the address is taken off the device while the Node names it")
		}
		placed = addr
		return nil
	}
	keep := func(use calc.TunnelUse) error { return a.keepTunnel(ctx, host, v4, use) }

	used := calc.TunnelUse{VXLAN: calc.DeviceUse{Used: true, Assign: "192.168.0.0/16 "}}
	if err := keep(used); err == nil || inNode().IsValid() {
		t.Fatalf("an address was published before the device was there (%v)", err)
	}
	a.tables.tunnels.Set(desired.Tunnels{desired.VXLANDevice: {VNI: 1}})
	if err := keep(used); err != nil {
		t.Fatal(err)
	}
	addr := inNode()
	if !addr.IsValid() || held() != 1 || placed != addr {
		t.Fatalf("address %s, %d held", addr, held())
	}
	used.VXLAN.Addr = addr
	for what, use := range map[string]calc.TunnelUse{"again": used, "all pools disabled": {VXLAN: calc.DeviceUse{Used: true, Addr: addr}}} {
		if err := keep(use); err != nil || inNode() != addr {
			t.Errorf("%s: %s, %v", what, inNode(), err)
		}
	}
	unused := calc.TunnelUse{VXLAN: calc.DeviceUse{Addr: addr}}
	if err := keep(unused); err != nil || inNode() != addr || held() != 1 {
		t.Fatalf("released without a grace: %v", err)
	}
	v4.unused = time.Now().Add(-tunnelGrace)
	if err := keep(unused); err != nil || inNode().IsValid() || held() != 0 {
		t.Fatalf("after the grace: %s, %d held, %v", inNode(), held(), err)
	}
}
