package endpoint_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
	"github.com/manekinet/maneki/endpoint"
	"github.com/manekinet/maneki/ipam"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
	}
	goleak.VerifyTestMain(m)
}

const node = "node1"

// rig is one host: a namespace, a datastore, IPAM, and a Manager.
type rig struct {
	testing.TB
	host  *nstest.NS
	store datastore.Store
	ipam  *ipam.Client
	sink  *kernelSink
	dir   string
	*endpoint.Manager
}

func newRig(t testing.TB, change ...func(*endpoint.Config)) *rig {
	t.Helper()
	s := memory.New()
	t.Cleanup(func() { _ = s.Close() })
	return newRigOn(t, s, change...)
}

func newRigOn(t testing.TB, s datastore.Store, change ...func(*endpoint.Config)) *rig {
	t.Helper()
	r := &rig{TB: t, host: nstest.New(t), store: s, dir: t.TempDir()}
	makePools(t, r.store)
	r.ipam = ipam.New(r.store, ipam.Options{})
	r.sink = &kernelSink{handle: r.host.Handle(), local: map[string][]string{}}
	r.Manager = r.manager(change...)
	r.host.Do(func() {
		for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+name, []byte("1"), 0); err != nil {
				t.Fatal(err)
			}
		}
	})
	r.host.AddAddr("lo", "10.0.0.1/32")
	r.host.AddAddr("lo", "fd00::1/128")
	return r
}

func makePools(t testing.TB, s datastore.Store) {
	t.Helper()
	for name, cidr := range map[string]string{"four": "10.65.0.0/16", "six": "fd65::/64"} {
		p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: cidr}}
		p.Name = name
		p.Default()
		if err := datastore.For[api.IPPool](s).Create(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
}

// manager makes a Manager on the rig's host, as an agent does at its start.
func (r *rig) manager(change ...func(*endpoint.Config)) *endpoint.Manager {
	r.Helper()
	ns := nsFile(r, r.host)
	defer ns.Close()
	c := endpoint.Config{
		Store: r.store, IPAM: ipam.NewHost(r.ipam, node), Sink: r.sink, Node: node, MTU: func() int { return 1450 }, StateDir: r.dir,
		Log: slog.New(slog.NewTextHandler(logWriter{r.TB}, nil)), Netns: ns,
	}
	for _, f := range change {
		f(&c)
	}
	m, err := endpoint.New(c)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(m.Close)
	return m
}

// logWriter sends the log to the test.
type logWriter struct{ testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	w.Logf("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

// nsFile is a file of its own for a namespace.
func nsFile(t testing.TB, ns *nstest.NS) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(ns.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), ns.Path())
}

// spec is the usual attachment: dual stack, plain container.
func spec(t testing.TB, container *nstest.NS, id string) endpoint.Spec {
	f := nsFile(t, container)
	t.Cleanup(func() { _ = f.Close() })
	return endpoint.Spec{
		ID: endpoint.ID{Network: "net1", ContainerID: id, IfName: "eth0"}, Netns: f, IPv4: true, IPv6: true,
	}
}

func (r *rig) attach(s endpoint.Spec) endpoint.Result {
	r.Helper()
	res, err := r.Attach(r.Context(), s)
	if err != nil {
		r.Fatal(err)
	}
	return res
}

// left is everything that attachments leave on the rig, one line each, sorted by kind.
func (r *rig) left() string {
	r.Helper()
	var b strings.Builder
	for _, kind := range []string{"WorkloadEndpoint", datastore.KindIPAMHandle} {
		entries, _, err := r.store.List(context.Background(), datastore.Query{Kind: kind})
		if err != nil {
			r.Fatal(err)
		}
		for _, e := range entries {
			fmt.Fprintln(&b, e.Key)
		}
	}
	blocks, _, err := r.store.List(context.Background(), datastore.Query{Kind: datastore.KindIPAMBlock})
	if err != nil {
		r.Fatal(err)
	}
	for _, e := range blocks {
		if strings.Contains(string(e.Value), "handle_id") {
			fmt.Fprintln(&b, "addresses in", e.Key)
		}
	}
	links, err := r.host.Handle().LinkList()
	if err != nil {
		r.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "veth" {
			fmt.Fprintln(&b, "link", l.Attrs().Name)
		}
	}
	for _, dir := range []string{"journal", "pending"} {
		files, err := os.ReadDir(r.dir + "/" + dir)
		if err != nil {
			r.Fatal(err)
		}
		for _, f := range files {
			fmt.Fprintln(&b, dir, f.Name())
		}
	}
	return b.String()
}

func (r *rig) wantNothingLeft() {
	r.Helper()
	if got := r.left(); got != "" {
		r.Errorf("left behind:\n%s", got)
	}
}

func wantText(t testing.TB, got, want string) {
	t.Helper()
	if diff := cmp.Diff(strings.TrimSpace(want), strings.TrimSpace(got)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// kernelSink puts the routes of endpoints into the kernel at once, as the agent does through its calculation.
type kernelSink struct {
	handle *netlink.Handle

	mu    sync.Mutex
	local map[string][]string // endpoint to its networks
	err   error               // given by the next Ensure
}

func (k *kernelSink) Ensure(_ context.Context, w *api.WorkloadEndpoint) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.err; err != nil {
		k.err = nil
		return err
	}
	link, err := k.handle.LinkByName(w.Spec.InterfaceName)
	if err != nil {
		return err
	}
	for _, n := range w.Spec.IPNetworks {
		dst, err := netlink.ParseIPNet(n)
		if err != nil {
			return err
		}
		route := netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}
		if err := k.handle.RouteReplace(&route); err != nil {
			return fmt.Errorf("route %s: %w", n, err)
		}
	}
	k.local[w.Namespace+"/"+w.Name] = w.Spec.IPNetworks
	return nil
}

func (k *kernelSink) Remove(_ context.Context, namespace, name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.local, namespace+"/"+name)
	return nil
}

// ping fails the test unless all of three packets come back.
func ping(t testing.TB, from *nstest.NS, to netip.Addr, extra ...string) string {
	t.Helper()
	return from.Command("ping", append([]string{"-c3", "-i0.05", "-W1", "-q", to.String()}, extra...)...)
}
