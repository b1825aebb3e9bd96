// Command store measures the datastore at the size of a large cluster: listing
// and following 1000 nodes and 50 000 endpoints, an agent's first calculation
// from them, and how many watchers one embedded etcd serves. The plain etcd
// client on the same data, and Debian's etcd as the server, are measured in the
// same run. Each part is a process of its own, so that its memory is its own.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/embedded"
	"github.com/manekinet/maneki/datastore/etcd"
)

func main() {
	nodes := flag.Int("nodes", 1000, "hosts")
	endpoints := flag.Int("endpoints", 50_000, "workload endpoints")
	part := flag.String("part", "", "used by the command itself")
	url := flag.String("url", "", "used by the command itself")
	n := flag.Int("n", 0, "used by the command itself")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	var err error
	switch *part {
	case "":
		err = measure(ctx, *nodes, *endpoints)
	case "server":
		err = serve(ctx, *url)
	case "list":
		err = list(ctx, *url)
	case "agent":
		err = agent(ctx, *url)
	case "watchers":
		err = watchers(ctx, *url, *n)
	default:
		err = fmt.Errorf("part %q is unknown", *part)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// measure runs the parts against both servers and prints the tables.
func measure(ctx context.Context, nodes, endpoints int) error {
	dir, err := os.MkdirTemp("", "bench-store")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	type result struct{ name, list, agent, watch string }
	var results []result
	for _, s := range []struct {
		name  string
		start func(ctx context.Context, dir, url string) (*exec.Cmd, error)
	}{{"embedded (etcd 3.7)", startEmbedded}, {"Debian's etcd 3.4", startDebian}} {
		port, err := freePort()
		if err != nil {
			return err
		}
		url := "http://127.0.0.1:" + port
		server, err := s.start(ctx, filepath.Join(dir, port), url)
		if err != nil {
			return err
		}
		r := result{name: s.name}
		err = func() error {
			defer func() { _ = server.Process.Signal(syscall.SIGTERM); _ = server.Wait() }()
			if err := fill(ctx, url, nodes, endpoints); err != nil {
				return err
			}
			if r.list, err = again(ctx, "list", url, 0); err != nil {
				return err
			}
			if r.agent, err = again(ctx, "agent", url, 0); err != nil {
				return err
			}
			for _, n := range []int{500, 2000} {
				before := cpuOf(server.Process.Pid)
				rows, err := again(ctx, "watchers", url, n)
				if err != nil {
					return err
				}
				r.watch += fmt.Sprintf("| %s | %s | %.1f | %.0f |\n", s.name, strings.TrimSpace(rows), cpuOf(server.Process.Pid)-before, rssOf(server.Process.Pid))
			}
			return nil
		}()
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		results = append(results, r)
	}
	fmt.Printf("%d nodes, %d workload endpoints with their blocks and handles.\n\n", nodes, endpoints)
	fmt.Print("| server | list nodes ms | list all endpoints ms | the same with the plain etcd client, undecoded ms |\n|---|---|---|---|\n")
	for _, r := range results {
		fmt.Printf("| %s | %s |\n", r.name, strings.TrimSpace(r.list))
	}
	fmt.Print("\nAn agent's first state: everything listed and followed, calculated once.\n\n| server | listed and in sync ms | calculated after another ms | CPU s | RSS MiB, after a garbage collection | peak MiB |\n|---|---|---|---|---|---|\n")
	for _, r := range results {
		fmt.Printf("| %s | %s |\n", r.name, strings.TrimSpace(r.agent))
	}
	fmt.Print("\nWatchers of one kind, one connection each; 100 writes, from the acknowledgement to the last watcher.\n\n| server | watchers | p50 ms | p99 ms | events per second in a burst | server's CPU s | server's RSS MiB |\n|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		fmt.Print(r.watch)
	}
	return nil
}

// again runs one part of this program.
func again(ctx context.Context, part, url string, n int) (string, error) {
	c := exec.CommandContext(ctx, os.Args[0], "-part", part, "-url", url, "-n", strconv.Itoa(n))
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", part, err)
	}
	return string(out), nil
}

func startEmbedded(ctx context.Context, dir, url string) (*exec.Cmd, error) {
	c := exec.Command(os.Args[0], "-part", "server", "-url", url)
	c.Env = append(os.Environ(), "BENCH_DIR="+dir)
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		return nil, err
	}
	return c, reachable(ctx, url)
}

func startDebian(ctx context.Context, dir, url string) (*exec.Cmd, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	peer := "http://127.0.0.1:" + port
	c := exec.Command("etcd", "--data-dir", dir, "--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peer,
		"--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer, "--log-level", "error")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	return c, reachable(ctx, url)
}

func serve(ctx context.Context, url string) error {
	s, err := embedded.Start(ctx, embedded.Config{Dir: os.Getenv("BENCH_DIR"), ClientURLs: []string{url}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	<-ctx.Done()
	return s.Close()
}

func reachable(ctx context.Context, url string) error {
	addr := strings.TrimPrefix(url, "http://")
	for range 300 {
		if c, err := net.Dial("tcp", addr); err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s does not listen", url)
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port), nil
}

func open(ctx context.Context, url string) (*etcd.Store, error) {
	return etcd.New(ctx, etcd.Config{Endpoints: []string{url}})
}

// writers is how many writes are under way at once while the store is filled.
const writers = 64

// fill writes the cluster.
func fill(ctx context.Context, url string, nodes, endpoints int) error {
	s, err := open(ctx, url)
	if err != nil {
		return err
	}
	defer s.Close()
	work := make(chan api.Object, writers)
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for o := range work {
				if err := datastore.CreateObject(ctx, s, o); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	for i := range nodes {
		work <- node(i)
	}
	for i := range endpoints {
		work <- endpoint(i, nodes)
	}
	close(work)
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return fillBlocks(ctx, s, nodes, endpoints)
}

func nodeName(i int) string { return fmt.Sprintf("node-%04d", i) }

func node(i int) api.Object {
	n := &api.Node{Spec: api.NodeSpec{BGP: &api.NodeBGPSpec{IPv4Address: fmt.Sprintf("172.16.%d.%d/16", i/250, i%250+1)}}}
	n.Name = nodeName(i)
	n.Labels = map[string]string{"topology.kubernetes.io/zone": "zone-" + strconv.Itoa(i%3)}
	n.Default()
	return n
}

// address is the i-th endpoint's: 50 on each node's block of 64.
func address(i, nodes int) (block, ordinal int, text string) {
	block, ordinal = i%nodes, i/nodes
	n := block*64 + ordinal
	return block, ordinal, fmt.Sprintf("10.%d.%d.%d", 64+n>>16, n>>8&255, n&255)
}

func endpoint(i, nodes int) api.Object {
	at, _, ip := address(i, nodes)
	w := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{
		Orchestrator: "k8s", Node: nodeName(at), Pod: fmt.Sprintf("app-%d-%06d", i%200, i), Endpoint: "eth0", ContainerID: fmt.Sprintf("%064x", i),
		ServiceAccountName: "default", IPNetworks: []string{ip + "/32"}, Profiles: []string{"kns.ns" + strconv.Itoa(i%50), "ksa.ns" + strconv.Itoa(i%50) + ".default"},
		InterfaceName: fmt.Sprintf("cali%011x", i), MAC: "ee:ee:ee:ee:ee:ee", Ports: []api.EndpointPort{{Name: "http", Protocol: api.IntOrString{Text: "TCP"}, Port: 8080}},
	}}
	w.Namespace = "ns" + strconv.Itoa(i%50)
	w.Labels = map[string]string{"app": "app-" + strconv.Itoa(i%200), "tier": "t" + strconv.Itoa(i%4), "projectcalico.org/serviceaccount": "default"}
	w.Default()
	w.Name, _ = w.Spec.EndpointName()
	return w
}

func fillBlocks(ctx context.Context, s *etcd.Store, nodes, endpoints int) error {
	for n := range nodes {
		_, _, first := address(n, nodes)
		cidr := first + "/26"
		owner := "host:" + nodeName(n)
		b := api.IPAMBlock{CIDR: cidr, Affinity: &owner, Allocations: make([]*int, 64)}
		for i := n; i < endpoints; i += nodes {
			_, ordinal, _ := address(i, nodes)
			handle := fmt.Sprintf("k8s-pod-network.%064x", i)
			at := len(b.Attributes)
			b.Attributes = append(b.Attributes, api.IPAMAttribute{HandleID: &handle, Secondary: map[string]string{"node": nodeName(n), "pod": fmt.Sprintf("app-%d-%06d", i%200, i)}})
			b.Allocations[ordinal] = &at
		}
		text, err := json.Marshal(b)
		if err != nil {
			return err
		}
		if _, err := s.Put(ctx, datastore.Key{Kind: datastore.KindIPAMBlock, Name: cidr}, text, datastore.Always()); err != nil {
			return err
		}
		affinity := datastore.Key{Kind: datastore.KindBlockAffinity, Namespace: owner, Name: cidr}
		if _, err := s.Put(ctx, affinity, []byte(`{"state":"confirmed"}`), datastore.Always()); err != nil {
			return err
		}
	}
	return nil
}

// rounds is how often a listing is timed; the median counts.
const rounds = 5

func list(ctx context.Context, url string) error {
	s, err := open(ctx, url)
	if err != nil {
		return err
	}
	defer s.Close()
	plain, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, MaxCallRecvMsgSize: 1 << 30})
	if err != nil {
		return err
	}
	defer plain.Close()
	kind := func(name string) func() error {
		return func() error {
			k, err := api.LookupKind(name)
			if err != nil {
				return err
			}
			_, _, _, err = datastore.ListObjects(ctx, s, k, "")
			return err
		}
	}
	var row []string
	for _, do := range []func() error{kind("Node"), kind("WorkloadEndpoint"), func() error {
		_, err := plain.Get(ctx, "/calico/resources/v3/projectcalico.org/workloadendpoints/", clientv3.WithPrefix())
		return err
	}} {
		var took []time.Duration
		for range rounds {
			start := time.Now()
			if err := do(); err != nil {
				return err
			}
			took = append(took, time.Since(start))
		}
		row = append(row, ms(median(took)))
	}
	fmt.Println(strings.Join(row, " | "))
	return nil
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000) }

// agent does what an agent of the first node does until its first state.
func agent(ctx context.Context, url string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := open(ctx, url)
	if err != nil {
		return err
	}
	defer s.Close()
	core := calc.New(calc.Options{Node: nodeName(0), InterfacePrefix: "cali"})
	start := time.Now()
	synced := make(chan struct{})
	var once sync.Once
	done := make(chan error, 1)
	go func() {
		done <- datastore.Follow(ctx, s, func(b datastore.Batch) {
			core.Apply(calc.Batch{Events: b.Events})
			if b.InSync {
				once.Do(func() { close(synced) })
			}
		}, calc.Queries()...)
	}()
	select {
	case <-synced:
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
	inSync := time.Since(start)
	peak := statusOf(os.Getpid(), "VmHWM")
	start = time.Now()
	state := core.Apply(calc.Batch{})
	again := time.Since(start)
	debug.FreeOSMemory()
	fmt.Printf("%s | %s | %.1f | %.0f | %.0f\n", ms(inSync), ms(again), cpuOf(os.Getpid()), rssOf(os.Getpid()), peak)
	cancel()
	<-done
	_ = state.Problems
	return nil
}

// writes is how many changes the watchers are shown one by one.
const writes = 100

// watchers measures how long news take to reach all of n watchers, and what
// they get at most in a burst.
func watchers(ctx context.Context, url string, n int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var seen atomic.Int64
	ready := make(chan struct{}, n)
	var wg sync.WaitGroup
	for range n {
		s, err := open(ctx, url)
		if err != nil {
			return err
		}
		wg.Go(func() {
			defer s.Close()
			var once sync.Once
			_ = datastore.Follow(ctx, s, func(b datastore.Batch) { // ends with the context
				if b.InSync {
					once.Do(func() { ready <- struct{}{} })
				}
				seen.Add(int64(len(b.Events)))
			}, datastore.Query{Kind: "GlobalNetworkSet"})
		})
	}
	for range n {
		select {
		case <-ready:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s, err := open(ctx, url)
	if err != nil {
		return err
	}
	defer s.Close()
	key := datastore.Key{Kind: "GlobalNetworkSet", Name: "bench"}
	put := func(i int) error {
		_, err := s.Put(ctx, key, fmt.Appendf(nil, `{"kind":"GlobalNetworkSet","apiVersion":"projectcalico.org/v3","metadata":{"name":"bench"},"spec":{"nets":["10.0.0.%d/32"]}}`, i%250), datastore.Always())
		return err
	}
	until := func(want int64) error {
		for seen.Load() < want {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			time.Sleep(50 * time.Microsecond)
		}
		return nil
	}
	seen.Store(0)
	var took []time.Duration
	for i := range writes {
		if err := put(i); err != nil {
			return err
		}
		start := time.Now()
		if err := until(int64(n * (i + 1))); err != nil {
			return err
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	seen.Store(0)
	start := time.Now()
	for i := range writes {
		if err := put(i); err != nil {
			return err
		}
	}
	if err := until(int64(n * writes)); err != nil {
		return err
	}
	rate := float64(n*writes) / time.Since(start).Seconds()
	fmt.Printf("%d | %s | %s | %.0f\n", n, ms(took[len(took)/2]), ms(took[len(took)*99/100]), rate)
	cancel()
	wg.Wait()
	return nil
}

// statusOf reads a size of /proc/PID/status in MiB.
func statusOf(pid int, field string) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if w := strings.Fields(line); len(w) >= 2 && w[0] == field+":" {
			kib, _ := strconv.ParseFloat(w[1], 64)
			return kib / 1024
		}
	}
	return 0
}

func rssOf(pid int) float64 { return statusOf(pid, "VmRSS") }

// cpuOf is the CPU time of a process so far, in seconds (proc(5): clock ticks,
// of which there are 100 in a second on every architecture we build for).
func cpuOf(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	w := strings.Fields(rest)
	if len(w) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(w[11], 64)
	system, _ := strconv.ParseFloat(w[12], 64)
	return (user + system) / 100
}
