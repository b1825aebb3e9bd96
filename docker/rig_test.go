package docker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
	"github.com/manekinet/maneki/docker"
	"github.com/manekinet/maneki/endpoint"
	"github.com/manekinet/maneki/ipam"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const node = "etcd1"

// rig is a host with an agent's Docker part. The test is dockerd.
type rig struct {
	testing.TB
	host    *nstest.NS
	store   datastore.Store
	ipam    *ipam.Client
	manager *endpoint.Manager
	engine  *engine
	dir     string
	config  docker.Config
	backend docker.Backend
	stop    func()
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{TB: t, host: nstest.New(t), store: memory.New(), dir: t.TempDir()}
	t.Cleanup(func() { _ = r.store.Close() })
	for name, cidr := range map[string]string{"four": "192.168.0.0/16", "six": "fd65::/64"} {
		p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: cidr}}
		p.Name = name
		p.Default()
		if err := datastore.For[api.IPPool](r.store).Create(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	r.ipam = ipam.New(r.store, ipam.Options{})
	host := ipam.NewHost(r.ipam, node)
	log := slog.New(slog.NewTextHandler(logWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	ns := nsFile(t, r.host)
	var err error
	r.manager, err = endpoint.New(endpoint.Config{
		Store: r.store, IPAM: host, Sink: &sink{handle: r.host.Handle()}, Node: node, StateDir: r.dir, Log: log, Netns: ns,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.manager.Close)
	r.engine = newEngine(t)
	r.backend = docker.Backend{Endpoints: r.manager, IPAM: host, Store: r.store, Node: node}
	r.config = docker.Config{
		StateDir: r.dir, Log: log,
		PluginDir: filepath.Join(r.dir, "plugins"), Engine: r.engine.socket, LabelTime: 300 * time.Millisecond, Collect: time.Hour,
	}
	r.host.AddAddr("lo", "10.0.0.1/32")
	r.host.AddAddr("lo", "fd00::1/128")
	r.start()
	return r
}

// start serves until r.stop or the end of the test.
func (r *rig) start() {
	r.Helper()
	s := r.listen()
	s.Open(r.backend)
	r.serve(s)
}

func (r *rig) listen() *docker.Server {
	r.Helper()
	s, err := docker.Listen(r.config)
	if err != nil {
		r.Fatal(err)
	}
	return s
}

func (r *rig) serve(s *docker.Server) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			r.Errorf("serve: %v", err)
		}
	})
	r.Cleanup(r.stop)
}

// post sends one request as dockerd does and returns the answer.
func (r *rig) post(method, body string) string {
	r.Helper()
	plugin := "maneki"
	if strings.HasPrefix(method, "IpamDriver.") {
		plugin = "maneki-ipam"
	}
	text, err := post(filepath.Join(r.config.PluginDir, plugin+".sock"), method, body)
	if err != nil {
		r.Fatal(err)
	}
	return text
}

func post(socket, method, body string) (string, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	c := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: time.Minute}
	resp, err := c.Post("http://plugin/"+method, "", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/vnd.docker.plugins.v1.2+json") {
		err = fmt.Errorf("%s: %s %s %s", method, resp.Status, resp.Header.Get("Content-Type"), text)
	}
	return string(bytes.TrimSpace(text)), err
}

// call is post with typed messages; an answer with an error fails the test.
func call[A any](r *rig, method, body string) (a A) {
	r.Helper()
	text := r.post(method, body)
	if strings.Contains(text, `"Err"`) {
		r.Fatalf("%s %s: %s", method, body, text)
	}
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		r.Fatal(err)
	}
	return a
}

// left is what containers left, one line each.
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
	for _, dir := range []string{"journal", "pending", "docker/networks"} {
		files, err := os.ReadDir(filepath.Join(r.dir, dir))
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

func nsFile(t testing.TB, ns *nstest.NS) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(ns.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), ns.Path())
	t.Cleanup(func() { _ = f.Close() })
	return f
}

type logWriter struct{ testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	w.Logf("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

// engine is Docker's API as far as the drivers use it.
type engine struct {
	socket     string
	mu         sync.Mutex
	networks   map[string]string // ID to name
	containers string            // JSON
	locked     string            // ID of the container that Docker is at work on
	starts     chan struct{}     // told as events; nil: there are no events
	lists      int               // of containers, asked for
}

func newEngine(t testing.TB) *engine {
	e := &engine{socket: filepath.Join(t.TempDir(), "docker.sock"), networks: map[string]string{}, containers: "[]"}
	l, err := net.Listen("unix", e.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: e, ReadHeaderTimeout: time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return e
}

func (e *engine) set(f func(e *engine)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f(e)
}

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if id, ok := strings.CutPrefix(strings.TrimSuffix(r.URL.Path, "/json"), "/containers/"); ok && id != "" {
		if id == e.locked {
			e.mu.Unlock()
			<-r.Context().Done()
			e.mu.Lock()
			return
		}
		e.describe(w, id)
		return
	}
	if id, ok := strings.CutPrefix(r.URL.Path, "/networks/"); ok {
		name, ok := e.networks[id]
		if !ok {
			http.Error(w, `{"message":"no such network"}`, http.StatusNotFound)
			return
		}
		fmt.Fprintf(w, `{"Name":%q,"Id":%q}`, name, id)
		return
	}
	if r.URL.Path == "/events" && e.starts != nil {
		e.mu.Unlock()
		e.tell(w, r)
		e.mu.Lock()
		return
	}
	if r.URL.Path != "/containers/json" {
		http.NotFound(w, r)
		return
	}
	e.lists++
	fmt.Fprint(w, e.containers)
}

// tell is the stream of events.
func (e *engine) tell(w http.ResponseWriter, r *http.Request) {
	w.(http.Flusher).Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case <-e.starts:
			fmt.Fprint(w, `{"status":"start","id":"c1","Type":"container","Action":"start","Actor":{"ID":"c1","Attributes":{"image":"busybox"}}}`)
			w.(http.Flusher).Flush()
		}
	}
}

// describe answers with the container of that ID in the list.
func (e *engine) describe(w http.ResponseWriter, id string) {
	var all []map[string]json.RawMessage
	if err := json.Unmarshal([]byte(e.containers), &all); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	for _, c := range all {
		if string(c["Id"]) == strconv.Quote(id) {
			delete(c, "Names")
			_ = json.NewEncoder(w).Encode(c)
			return
		}
	}
	http.Error(w, `{"message":"no such container"}`, http.StatusNotFound)
}

// sink puts the routes of endpoints into the kernel at once.
type sink struct{ handle *netlink.Handle }

func (k *sink) Ensure(_ context.Context, w *api.WorkloadEndpoint) error {
	link, err := k.handle.LinkByName(w.Spec.InterfaceName)
	if err != nil {
		return err
	}
	for _, n := range w.Spec.IPNetworks {
		dst, err := netlink.ParseIPNet(n)
		if err != nil {
			return err
		}
		if err := k.handle.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}); err != nil {
			return err
		}
	}
	return nil
}

func (k *sink) Remove(context.Context, string, string) error { return nil }
