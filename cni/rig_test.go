package cni_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/cni"
	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
	"github.com/manekinet/maneki/endpoint"
	"github.com/manekinet/maneki/ipam"
)

const strangerEnv = "MANEKI_CNI_STRANGER"

func TestMain(m *testing.M) {
	if path := os.Getenv(strangerEnv); path != "" {
		stranger(path)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if dir, err := shim(); err == nil {
			_ = os.RemoveAll(dir)
		}
		os.Exit(code)
	}))
}

// shim builds the executable once per test run.
var shim = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "maneki-cni-test-")
	if err != nil {
		return "", err
	}
	out, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/maneki-cni", "../cmd/maneki-cni").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

// binDir is a directory with the executable in it.
func binDir(t testing.TB) string {
	t.Helper()
	built, err := shim()
	if err != nil {
		t.Fatal(err)
	}
	return built
}

// rig is a host with an agent's CNI part, and a runtime that calls the executable.
type rig struct {
	testing.TB
	host     *nstest.NS
	store    datastore.Store
	ipam     *ipam.Client
	sink     *sink
	dir      string // state of the agent and of the executable
	manager  *endpoint.Manager
	stop     func()
	runtime  *libcni.CNIConfig
	ready    error
	socket   string
	cacheDir string
}

func newRig(t testing.TB) *rig {
	r := &rig{TB: t, host: nstest.New(t), store: memory.New(), dir: t.TempDir(), cacheDir: t.TempDir()}
	r.socket = filepath.Join(r.dir, "cni.sock")
	t.Cleanup(func() { _ = r.store.Close() })
	for name, cidr := range map[string]string{"four": "10.65.0.0/16", "six": "fd65::/64"} {
		p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: cidr}}
		p.Name = name
		p.Default()
		if err := datastore.For[api.IPPool](r.store).Create(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	r.ipam = ipam.New(r.store, ipam.Options{})
	r.sink = &sink{handle: r.host.Handle()}
	ns := r.file(r.host)
	var err error
	r.manager, err = endpoint.New(endpoint.Config{
		Store: r.store, IPAM: ipam.NewHost(r.ipam, "node1"), Sink: r.sink, Node: "node1", StateDir: r.dir, Log: r.log(), Netns: ns,
		Ready: func(context.Context) error { return r.ready },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.manager.Close)
	r.runtime = libcni.NewCNIConfigWithCacheDir([]string{binDir(t)}, r.cacheDir, nil)
	r.start()
	return r
}

func (r *rig) log() *slog.Logger { return slog.New(slog.NewTextHandler(logWriter{r.TB}, nil)) }

// start runs the server until r.stop or the end of the test.
func (r *rig) start() {
	r.Helper()
	r.stop = serve(r.TB, cni.Config{Endpoints: r.manager, Log: r.log(), Socket: r.socket})
}

func serve(t testing.TB, c cni.Config) (stop func()) {
	t.Helper()
	s, err := cni.Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

type logWriter struct{ testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	w.Logf("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

func (r *rig) file(ns *nstest.NS) *os.File {
	r.Helper()
	fd, err := unix.FcntlInt(uintptr(ns.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		r.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), ns.Path())
	r.Cleanup(func() { _ = f.Close() })
	return f
}

// list is a network configuration list of one version; extra are further keys of our plugin.
func (r *rig) list(version, extra string) *libcni.NetworkConfigList {
	r.Helper()
	text := fmt.Sprintf(`{"cniVersion": %q, "name": "net1", "plugins": [{
		"type": "maneki-cni", "maneki_socket": %q, "maneki_state_dir": %q %s}]}`, version, r.socket, r.dir, extra)
	list, err := libcni.ConfListFromBytes([]byte(text))
	if err != nil {
		r.Fatal(err)
	}
	return list
}

func (r *rig) args(container *nstest.NS, id string, more ...[2]string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: id, NetNS: container.Path(), IfName: "eth0", Args: more}
}

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
		files, _ := os.ReadDir(filepath.Join(r.dir, dir))
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

// wantCode wants an error of the CNI code whose text holds all parts.
func wantCode(t testing.TB, err error, code uint, parts ...string) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Errorf("error %v, want CNI code %d", err, code)
		return
	}
	text, _ := json.Marshal(e)
	for _, p := range parts {
		if !strings.Contains(strings.ReplaceAll(string(text), `\"`, `"`), p) {
			t.Errorf("error %s lacks %q", text, p)
		}
	}
}

// sink puts routes into the kernel; hold, if set, is waited for first.
type sink struct {
	handle *netlink.Handle
	mu     sync.Mutex
	hold   func(ctx context.Context)
}

func (k *sink) holdWith(f func(ctx context.Context)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.hold = f
}

func (k *sink) Ensure(ctx context.Context, w *api.WorkloadEndpoint) error {
	k.mu.Lock()
	hold := k.hold
	k.mu.Unlock()
	if hold != nil {
		hold(ctx)
	}
	link, err := k.handle.LinkByName(w.Spec.InterfaceName)
	if err != nil {
		return err
	}
	for _, n := range w.Spec.IPNetworks {
		_, dst, err := net.ParseCIDR(n)
		if err != nil {
			return err
		}
		route := netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}
		if err := k.handle.RouteReplace(&route); err != nil {
			return err
		}
	}
	return nil
}

func (k *sink) Remove(context.Context, string, string) error { return nil }
