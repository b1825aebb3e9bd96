package bgp

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const birdReflector = `
router id 10.3.250.1;
protocol device { }
protocol bgp clients {
  local 10.3.250.1 as 64512;
  neighbor range 10.200.0.0/16 as 64512;
  rr client; rr cluster id 1.1.1.1; multihop; passive;
  ipv4 { import all; export all; gateway recursive; };
}
`

// The clients' next hops are addresses of this namespace, which BIRD takes for its own. It resolves them
// by a route of its own instead.
const birdHops = `protocol static hops { ipv4; route 10.200.0.0/16 via 10.3.250.2; }
`

const frrReflectorBench = `
hostname frr
router bgp 64512
 bgp router-id 10.3.250.1
 bgp cluster-id 1.1.1.1
 no bgp default ipv4-unicast
 neighbor clients peer-group
 neighbor clients remote-as 64512
 bgp listen limit 5000
 bgp listen range 10.200.0.0/16 peer-group clients
 address-family ipv4 unicast
  neighbor clients activate
  neighbor clients route-reflector-client
 exit-address-family
`

// BenchmarkOthers runs the reflector of BenchmarkCold with BIRD 2 and with FRR in the speaker's place.
func BenchmarkOthers(b *testing.B) {
	for _, n := range []int{50, 200, 1000} {
		s := swarmSpec{Server: netip.MustParseAddrPort("10.3.250.1:179"), Clients: n, Routes: 10, Expect: (n - 1) * 10}
		b.Run(fmt.Sprintf("bird-%dx10", n), func(b *testing.B) {
			dir := b.TempDir()
			conf := filepath.Join(dir, "bird.conf")
			write(b, conf, birdReflector+birdHops)
			for range b.N {
				other(b, s, "/usr/sbin/bird", "-f", "-c", conf, "-s", filepath.Join(dir, "ctl"), "-P", filepath.Join(dir, "pid"))
			}
		})
		b.Run(fmt.Sprintf("frr-%dx10", n), func(b *testing.B) {
			dir := b.TempDir()
			conf := filepath.Join(dir, "bgpd.conf")
			write(b, conf, frrReflectorBench)
			if err := os.Chmod(dir, 0o777); err != nil {
				b.Fatal(err)
			}
			for range b.N {
				other(b, s, "/usr/lib/frr/bgpd", "-f", conf, "-i", filepath.Join(dir, "pid"), "--vty_socket", dir,
					"-z", filepath.Join(dir, "zserv.api"), "-n", "-S", "-Z", "-l", "10.3.250.1", "--limit-fds", "4096")
			}
		})
	}
}

func write(b *testing.B, path, text string) {
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
}

// other runs a daemon and the clients against it. That it does not complete within the clients' patience is
// a result, too: it is reported and not an error of the benchmark.
func other(b *testing.B, s swarmSpec, args ...string) {
	b.StopTimer()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	time.Sleep(500 * time.Millisecond)
	b.StartTimer()
	established, converged, end := runClients(b, s)
	b.StopTimer()
	b.ReportMetric(established, "ms-established")
	b.ReportMetric(converged, "ms-converged")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kb float64
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			if _, err := fmt.Sscan(rest, &kb); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(kb/1000, "MB-peak-rss")
		}
	}
	end()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	b.ReportMetric((cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()).Seconds()*1000, "ms-cpu")
	b.StartTimer()
}
