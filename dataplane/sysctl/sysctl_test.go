package sysctl_test

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/dataplane/sysctl"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/reconcile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bound fails the test unless the applier looks into the namespace. Every test that writes calls it first: a mistake
// must not change the machine. Only the namespace has the interface.
func bound(t *testing.T, a *sysctl.Applier, iface string) {
	t.Helper()
	key := "net/ipv4/conf/" + iface + "/proxy_arp"
	if _, err := os.Stat("/proc/sys/" + key); err == nil {
		t.Fatalf("the machine has an interface %s as well: the test cannot tell where it is", iface)
	}
	if err := a.Put(t.Context(), key, "0"); err != nil {
		t.Fatalf("the applier is not in the test's namespace: %v", err)
	}
	if err := a.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
}

// read is what a program in the namespace sees.
func read(t *testing.T, ns *nstest.NS, key string) string {
	t.Helper()
	var b []byte
	var err error
	ns.Do(func() { b, err = os.ReadFile("/proc/sys/" + key) })
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func write(t *testing.T, ns *nstest.NS, key, value string) {
	t.Helper()
	var err error
	ns.Do(func() { err = os.WriteFile("/proc/sys/"+key, []byte(value), 0) })
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, ns *nstest.NS) *sysctl.Applier {
	t.Helper()
	a, err := sysctl.New(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// TestEveryParameterWeWant can be set in a new namespace, for a name with a dot as well, and only there.
func TestEveryParameterWeWant(t *testing.T) {
	outside, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		t.Fatal(err)
	}
	ns, other := nstest.New(t), nstest.New(t)
	nstest.Veth(ns, "cali.5", other, "eth0")
	write(t, other, "net/ipv4/ip_forward", "0")
	a := open(t, ns)
	bound(t, a, "cali.5")
	want := desired.HostSysctls(true, true)
	want.Merge(desired.EndpointSysctls("cali.5", true, true))
	for k, v := range want {
		if err := a.Put(t.Context(), k, v); err != nil {
			t.Error(err)
		}
	}
	for k, v := range want {
		if got := read(t, ns, k); got != v {
			t.Errorf("%s is %s, want %s", k, got, v)
		}
	}
	got, err := a.Dump(t.Context())
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("dump %v, %v; want %v", got, err, want)
	}
	if v := read(t, other, "net/ipv4/ip_forward"); v != "0" {
		t.Errorf("ip_forward of another namespace is %s", v)
	}
	if now, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); string(now) != string(outside) {
		t.Errorf("ip_forward of this machine was %s and is %s", outside, now)
	}
}

func TestReconciled(t *testing.T) {
	ns := nstest.New(t)
	nstest.Veth(ns, "cali1", nstest.New(t), "eth0")
	a := open(t, ns)
	bound(t, a, "cali1")
	table := reconcile.NewTable(a, reconcile.Options[string]{Name: "sysctls", Resync: -1, Compare: strings.Compare})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- table.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	synced := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := table.WaitSynced(ctx); err != nil {
			t.Fatal(err)
		}
	}
	want := desired.EndpointSysctls("cali1", true, true)
	table.Set(want)
	synced()
	if got := read(t, ns, "net/ipv4/conf/cali1/proxy_arp"); got != "1" {
		t.Errorf("proxy_arp is %s", got)
	}

	write(t, ns, "net/ipv4/conf/cali1/proxy_arp", "0")
	table.Dirty()
	synced()
	if got := read(t, ns, "net/ipv4/conf/cali1/proxy_arp"); got != "1" {
		t.Errorf("proxy_arp is %s after the repair", got)
	}

	// No longer wanted is no longer looked after, and not taken back.
	table.Set(nil)
	synced()
	write(t, ns, "net/ipv4/conf/cali1/proxy_arp", "0")
	table.Dirty()
	synced()
	if got := read(t, ns, "net/ipv4/conf/cali1/proxy_arp"); got != "0" {
		t.Errorf("proxy_arp is %s, want it left alone", got)
	}
	if got := read(t, ns, "net/ipv4/conf/cali1/forwarding"); got != "1" {
		t.Errorf("forwarding is %s, want it left alone", got)
	}

	// The interface is gone: an error that says so, until it is back.
	table.Set(want)
	synced()
	ns.Command("ip", "link", "del", "cali1")
	table.Dirty()
	time.Sleep(100 * time.Millisecond)
	st := table.Status()
	if err := st.Failed["net/ipv4/conf/cali1/proxy_arp"]; !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("status %+v", st)
	}
	nstest.Veth(ns, "cali1", nstest.New(t), "eth0")
	table.Dirty()
	synced()
}

func TestErrors(t *testing.T) {
	ns := nstest.New(t)
	nstest.Veth(ns, "cali1", nstest.New(t), "eth0")
	a := open(t, ns)
	bound(t, a, "cali1")
	tests := []struct{ key, value, want string }{
		{"net/ipv4/../../kernel/hostname", "x", "must be a path below net/ipv4 or net/ipv6"},
		{"net/ipv4//ip_forward", "1", "must be a path below net/ipv4 or net/ipv6"},
		{"/proc/sys/net/ipv4/ip_forward", "1", "must be a path below net/ipv4 or net/ipv6"},
		{"net/core/somaxconn", "1", "must be a path below net/ipv4 or net/ipv6"},
		{"kernel/hostname", "x", "must be a path below net/ipv4 or net/ipv6"},
		{"net", "1", "must be a path below net/ipv4 or net/ipv6"},
		{"", "1", "must be a path below net/ipv4 or net/ipv6"},
		{"net/ipv4/ip_forward", "", "must be one line"},
		{"net/ipv4/ip_forward", "1\n0", "must be one line"},
		{"net/ipv4/ip_forward", "nonsense", "invalid argument"},
		{"net/ipv4/conf/cali404/forwarding", "1", "no such file or directory"},
		{"net/ipv6/conf/cali404/accept_ra", "0", "no such file or directory"},
		{"net/ipv4/conf", "1", "is a directory"},
	}
	for _, tt := range tests {
		if err := a.Put(t.Context(), tt.key, tt.value); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("put %q = %q: %v, want %q", tt.key, tt.value, err, tt.want)
		}
	}
	if got, err := a.Dump(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("what failed is managed: %v, %v", got, err)
	}
	if err := a.Delete(t.Context(), "net/never/put"); err != nil {
		t.Error(err)
	}
	if _, err := sysctl.New("/nowhere"); err == nil {
		t.Error("a namespace that does not exist was opened")
	}
}

// TestCallingThread: without a path it is the namespace of whoever calls New, also when others use the Applier.
func TestCallingThread(t *testing.T) {
	ns := nstest.New(t)
	nstest.Veth(ns, "cali1", nstest.New(t), "eth0")
	var a *sysctl.Applier
	var err error
	ns.Do(func() { a, err = sysctl.New("") })
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	bound(t, a, "cali1")
	write(t, ns, "net/ipv4/ip_forward", "0")
	if err := a.Put(t.Context(), "net/ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, ns, "net/ipv4/ip_forward"); got != "1" {
		t.Errorf("ip_forward is %s", got)
	}
}
