package neigh_test

import (
	"context"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/manekinet/maneki/dataplane/neigh"
	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/desired"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

const dev = desired.VXLANDevice

func host(t *testing.T) *nstest.NS {
	ns, peer := nstest.New(t), nstest.New(t)
	nstest.Veth(ns, "eth0", peer, "p0")
	ns.AddAddr("eth0", "172.18.0.2/16")
	ns.Command("ip", "link", "add", dev, "type", "vxlan", "id", "4096", "dstport", "4789", "dev", "eth0", "local", "172.18.0.2", "nolearning")
	ns.Up(dev)
	return ns
}

func TestNeighbours(t *testing.T) {
	ctx := context.Background()
	ns := host(t)
	n := neigh.NewNeighbours(ns.Handle(), dev, "missing")
	want := desired.Neighbours{
		{Dev: dev, Addr: addr("10.1.0.64")}: "66:00:00:00:00:02",
		{Dev: dev, Addr: addr("fd01::40")}:  "66:00:00:00:00:03",
	}
	for k, mac := range want {
		if err := n.Put(ctx, k, mac); err != nil {
			t.Fatal(err)
		}
	}
	ns.Command("ip", "neigh", "add", "172.18.0.7", "lladdr", "02:00:00:00:00:07", "dev", "eth0", "nud", "permanent") // not ours
	if have, err := n.Dump(ctx); err != nil || !maps.Equal(have, want) {
		t.Fatalf("have %v, %v", have, err)
	}
	k := desired.NeighbourKey{Dev: dev, Addr: addr("10.1.0.64")}
	ns.Command("ip", "neigh", "replace", "10.1.0.64", "lladdr", "66:00:00:00:00:09", "dev", dev, "nud", "permanent")
	if have, _ := n.Dump(ctx); have[k] != "66:00:00:00:00:09" {
		t.Errorf("a changed MAC is not seen: %v", have)
	}
	ns.Command("ip", "neigh", "replace", "10.1.0.64", "lladdr", "66:00:00:00:00:02", "dev", dev, "nud", "reachable")
	if have, _ := n.Dump(ctx); have[k] != "" {
		t.Errorf("an entry that ages counts as permanent: %v", have)
	}
	if err := n.Put(ctx, k, want[k]); err != nil {
		t.Error(err)
	}
	if have, err := n.Dump(ctx); err != nil || !maps.Equal(have, want) {
		t.Errorf("after repair: %v, %v", have, err)
	}
	for range 2 {
		if err := n.Delete(ctx, k); err != nil {
			t.Error(err)
		}
	}
	if have, _ := n.Dump(ctx); len(have) != 1 {
		t.Errorf("after deletion: %v", have)
	}
	gone := desired.NeighbourKey{Dev: "missing", Addr: addr("10.1.0.64")}
	if err := n.Put(ctx, gone, want[k]); err == nil || n.Delete(ctx, gone) != nil {
		t.Errorf("without a device: %v", err)
	}
}

func TestFDB(t *testing.T) {
	ctx := context.Background()
	ns := host(t)
	f := neigh.NewFDB(ns.Handle(), dev, "missing")
	k, k2 := desired.FDBKey{Dev: dev, MAC: "66:00:00:00:00:02"}, desired.FDBKey{Dev: dev, MAC: "66:00:00:00:00:03"}
	want := desired.FDB{k: addr("172.18.0.3"), k2: addr("172.18.0.4")}
	for key, to := range want {
		if err := f.Put(ctx, key, to); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := f.Dump(ctx); err != nil || !maps.Equal(have, want) {
		t.Fatalf("have %v, %v", have, err)
	}
	if err := f.Put(ctx, k, addr("172.18.0.9")); err != nil {
		t.Error(err)
	}
	if show := ns.Command("bridge", "fdb", "show", "dev", dev); !strings.Contains(show, "66:00:00:00:00:02 dst 172.18.0.9 self permanent") || strings.Contains(show, "172.18.0.3") {
		t.Errorf("moved host:\n%s", show)
	}
	ns.Command("bridge", "fdb", "replace", k.MAC, "dev", dev, "dst", "172.18.0.9", "dynamic")
	if have, _ := f.Dump(ctx); have[k].IsValid() {
		t.Errorf("an entry that ages counts as permanent: %v", have)
	}
	if err := f.Put(ctx, k, want[k]); err != nil {
		t.Error(err)
	}
	if have, err := f.Dump(ctx); err != nil || !maps.Equal(have, want) {
		t.Errorf("after repair: %v, %v", have, err)
	}
	for range 2 {
		if err := f.Delete(ctx, k); err != nil {
			t.Error(err)
		}
	}
	if have, _ := f.Dump(ctx); len(have) != 1 || have[k2] != want[k2] {
		t.Errorf("after deletion: %v", have)
	}
}

// TestWatch: entries of our devices are heard of, those of others are not.
func TestWatch(t *testing.T) {
	ns := host(t)
	ctx, stop := context.WithCancel(context.Background())
	heard, done := make(chan struct{}, 16), make(chan error, 1)
	go func() {
		ns.Do(func() {
			done <- neigh.Watch(ctx, ns.Handle(), func(d string) bool { return d == dev }, func() {
				select {
				case heard <- struct{}{}:
				default:
				}
			})
		})
	}()
	expect := func(what string, want bool) {
		t.Helper()
		select {
		case <-heard:
			if !want {
				t.Errorf("%s was heard of", what)
			}
		case <-time.After(map[bool]time.Duration{true: 5 * time.Second, false: 200 * time.Millisecond}[want]):
			if want {
				t.Errorf("%s was not heard of", what)
			}
		}
		for len(heard) > 0 {
			<-heard
		}
	}
	expect("the start", true)
	time.Sleep(50 * time.Millisecond) // what making the device caused is over
	for len(heard) > 0 {
		<-heard
	}
	ns.Command("bridge", "fdb", "add", "66:00:00:00:00:02", "dev", dev, "dst", "172.18.0.3")
	expect("a forwarding entry", true)
	ns.Command("bridge", "fdb", "del", "66:00:00:00:00:02", "dev", dev, "dst", "172.18.0.3")
	expect("its deletion", true)
	ns.Command("ip", "neigh", "add", "10.1.0.64", "lladdr", "66:00:00:00:00:02", "dev", dev, "nud", "permanent")
	expect("a neighbour", true)
	ns.Command("ip", "neigh", "add", "172.18.0.7", "lladdr", "02:00:00:00:00:07", "dev", "eth0", "nud", "permanent")
	expect("another device's neighbour", false)
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
