package bgp

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/manekinet/maneki/bgp/bgptest"
)

// swarmEnv makes the test binary a process of simulated neighbours, so that the benchmark's memory and
// CPU figures are the speaker's alone. Its value is a swarmSpec.
const swarmEnv = "MANEKI_BGP_TEST_SWARM"

// swarmSpec describes the neighbours of a benchmark.
type swarmSpec struct {
	Server   netip.AddrPort
	Clients  int
	Routes   int  // each
	External bool // each client has an AS of its own, so that the speaker passes everything on
	Reflect  bool // the speaker is their route reflector
	Expect   int  // routes each client is to hold in the end
}

func (s swarmSpec) addr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 200, byte(i / 200), byte(i%200 + 1)})
}

func (s swarmSpec) asn(i int) uint32 {
	if s.External {
		return uint32(65001 + i)
	}
	return 64512
}

func (s swarmSpec) clients() []bgptest.Client {
	var out []bgptest.Client
	for i := range s.Clients {
		c := bgptest.Client{Local: s.addr(i), RouterID: s.addr(i), ASN: s.asn(i)}
		for r := range s.Routes {
			n := uint32(i*s.Routes + r)
			c.Routes = append(c.Routes, netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(n >> 10), byte(n >> 2), byte(n << 6)}), 26))
		}
		out = append(out, c)
	}
	return out
}

// runSwarm is the child process: it reports on stdout and ends when stdin does.
func runSwarm(spec string) error {
	var s swarmSpec
	if err := json.Unmarshal([]byte(spec), &s); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	began := time.Now()
	sw := bgptest.Start(ctx, bgptest.Options{Server: s.Server, Clients: s.clients()})
	defer sw.Close()
	if err := sw.Wait(ctx, func() bool { return sw.Established() == s.Clients }); err != nil {
		return err
	}
	fmt.Printf("%d\n", time.Since(began).Microseconds())
	if err := sw.Wait(ctx, func() bool { return sw.Holding(s.Expect) == s.Clients }); err != nil {
		return fmt.Errorf("%d of %d clients hold %d routes: %w", sw.Holding(s.Expect), s.Clients, s.Expect, err)
	}
	fmt.Printf("%d\n", time.Since(began).Microseconds())
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// BenchmarkCold starts all neighbours at once against one speaker and waits until every one of them and
// the speaker have everything (design §5, "reflector, 200 clients x 10 routes, cold"). Internal
// neighbours are the mesh's or, when the speaker reflects, the clients of a reflector; external ones are
// sent every route, too.
func BenchmarkCold(b *testing.B) {
	for _, s := range []swarmSpec{
		{Clients: 50, Routes: 4},
		{Clients: 50, Routes: 100},
		{Clients: 200, Routes: 10, External: true},
		{Clients: 50, Routes: 10, Reflect: true},
		{Clients: 200, Routes: 10, Reflect: true},
		{Clients: 1000, Routes: 10, Reflect: true},
	} {
		kind := "mesh"
		switch {
		case s.External:
			kind = "passed-on"
		case s.Reflect:
			kind = "reflector"
		}
		b.Run(fmt.Sprintf("%s-%dx%d", kind, s.Clients, s.Routes), func(b *testing.B) {
			for i := range b.N {
				cold(b, s, fmt.Sprintf("10.3.%d.%d", i/200, i%200+1))
			}
		})
	}
}

const ownRoutes = 4

func cold(b *testing.B, s swarmSpec, addr string) {
	s.Server, s.Expect = netip.AddrPortFrom(netip.MustParseAddr(addr), 179), ownRoutes
	if s.External || s.Reflect {
		s.Expect += (s.Clients - 1) * s.Routes
	}
	b.StopTimer()
	runtime.GC()
	heapBefore, cpuBefore := heap(), cpu()
	n := New(quiet(), Options{MaxPending: 4096})
	cfg := Config{
		RouterID: routerID(s.Server.Addr()), ASN: 64512, Listen: []netip.AddrPort{s.Server},
		Peers: map[netip.Addr]Peer{}, Announce: map[netip.Prefix]Announcement{},
	}
	for i := range s.Clients {
		cfg.Peers[s.addr(i)] = Peer{Name: "client", Type: TypeMesh, Addr: s.addr(i), Local: s.Server.Addr(), ASN: s.asn(i), Passive: true, Client: s.Reflect}
	}
	for i := range ownRoutes {
		cfg.Announce[netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i), 0}), 24)] = Announcement{}
	}
	if err := n.Set(cfg); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()

	b.StartTimer()
	established, converged, end := runClients(b, s)
	within(b, time.Minute, "all routes", func() bool { return len(n.Best()) == s.Clients*s.Routes })
	b.StopTimer()
	runtime.GC()
	b.ReportMetric(established, "ms-established")
	b.ReportMetric(converged, "ms-converged")
	b.ReportMetric(float64(heap()-heapBefore)/1e6, "MB-heap")
	b.ReportMetric(rss(b), "MB-peak-rss")
	b.ReportMetric((cpu()-cpuBefore).Seconds()*1000, "ms-cpu")
	end()
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	b.StartTimer()
}

// runClients starts the child process and returns its two times in milliseconds.
func runClients(b *testing.B, s swarmSpec) (established, converged float64, end func()) {
	spec, err := json.Marshal(s)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), swarmEnv+"="+string(spec))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	var us [2]float64
	lines := bufio.NewReader(out)
	for i := range us {
		if _, err := fmt.Fscan(lines, &us[i]); err != nil {
			b.Fatalf("the swarm gave no result: %v, %v", err, cmd.Wait())
		}
	}
	return us[0] / 1000, us[1] / 1000, func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rss is the process's peak resident memory in megabytes.
func rss(b *testing.B) float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	var kb float64
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			if _, err := fmt.Sscan(rest, &kb); err != nil {
				b.Fatal(err)
			}
		}
	}
	return kb / 1000
}
