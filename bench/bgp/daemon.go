package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// server is where the reflector listens.
func server() netip.AddrPort { return netip.MustParseAddrPort("10.3.250.1:179") }

// birdConf has a session for each client, as confd writes them. The clients' next
// hops are addresses of the namespace, which BIRD takes for its own; it resolves
// them by a static route instead. Times are Calico's, the error wait time the
// shortest that BIRD takes.
func birdConf(clients int) string {
	var b strings.Builder
	b.WriteString(`
router id 10.3.250.1;
protocol device { }
protocol static hops { ipv4; route 10.200.0.0/16 via 10.3.250.2; }
template bgp neighbour {
  local 10.3.250.1 as 64512;
  rr client; rr cluster id ` + clusterID + `; multihop; passive;
  connect delay time 2; connect retry time 5; error wait time 1, 1;
  ipv4 { import all; export all; gateway recursive; };
}
`)
	for i := range clients {
		fmt.Fprintf(&b, "protocol bgp c%d from neighbour { neighbor %s as 64512; }\n", i, clientAddr(i))
	}
	return b.String()
}

// frrConf takes clients in by a range, with FRR's own times; tuned, it has a
// session for each client, as birdConf has, and gathers changes for 100 ms instead
// of up to 10 s.
func frrConf(clients int, tuned bool) string {
	var b strings.Builder
	b.WriteString(`
hostname frr
router bgp 64512
 bgp router-id 10.3.250.1
 bgp cluster-id ` + clusterID + `
 no bgp default ipv4-unicast
 neighbor clients peer-group
 neighbor clients remote-as 64512
`)
	if tuned {
		b.WriteString(" coalesce-time 100\n neighbor clients passive\n")
		for i := range clients {
			fmt.Fprintf(&b, " neighbor %s peer-group clients\n", clientAddr(i))
		}
	} else {
		b.WriteString(" bgp listen limit 5000\n bgp listen range 10.200.0.0/16 peer-group clients\n")
	}
	b.WriteString(` address-family ipv4 unicast
  neighbor clients activate
  neighbor clients route-reflector-client
 exit-address-family
`)
	return b.String()
}

// daemon is one reflector that can be started and started again.
type daemon struct {
	name string
	make func() (*exec.Cmd, error)
	cmd  *exec.Cmd
}

func newDaemon(name, dir string, clients int) (*daemon, error) {
	d := &daemon{name: name}
	conf := map[string]string{"bird": birdConf(clients), "frr": frrConf(clients, false), "frr-tuned": frrConf(clients, true)}[name]
	path := filepath.Join(dir, name+".conf")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o777); err != nil { // FRR gives up root
		return nil, err
	}
	file := func(suffix string) string { return filepath.Join(dir, name+suffix) }
	switch name {
	case "maneki":
		spec, err := json.Marshal(speakerSpec{Addr: server().Addr(), Clients: clients})
		if err != nil {
			return nil, err
		}
		d.make = func() (*exec.Cmd, error) { return child(roleSpeaker, string(spec)), nil }
	case "bird":
		d.make = func() (*exec.Cmd, error) {
			return plain("/usr/sbin/bird", "-f", "-c", path, "-s", file(".ctl"), "-P", file(".pid")), nil
		}
	case "frr", "frr-tuned":
		d.make = func() (*exec.Cmd, error) {
			return plain("/usr/lib/frr/bgpd", "-f", path, "-i", file(".pid"), "--vty_socket", dir, "-z", file(".api"),
				"-n", "-S", "-Z", "-l", server().Addr().String(), "--limit-fds", "4096"), nil
		}
	default:
		return nil, fmt.Errorf("daemon %q: want maneki, bird, frr or frr-tuned", name)
	}
	return d, nil
}

func plain(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// start returns when the daemon accepts connections.
func (d *daemon) start() error {
	cmd, err := d.make()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	d.cmd = cmd
	for range 1000 {
		c, err := net.DialTimeout("tcp", server().String(), time.Second)
		if err == nil {
			return c.Close()
		}
		time.Sleep(5 * time.Millisecond)
	}
	d.kill()
	return fmt.Errorf("%s does not listen on %s", d.name, server())
}

func (d *daemon) kill() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait() // that it was killed is no news
	d.cmd = nil
}

// usage is what a process has used so far.
type usage struct {
	cpu  time.Duration
	peak float64 // MB, of resident memory
}

// ticks is USER_HZ, which every architecture of ours has at 100; the exact times
// of schedstat are used where a process has one thread.
const ticks = 100

func usageOf(pid int) (usage, error) {
	var u usage
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return u, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	for _, f := range strings.Fields(rest)[11:13] { // utime and stime of proc(5)
		n, err := strconv.Atoi(f)
		if err != nil {
			return u, fmt.Errorf("read %s/stat: %w", dir, err)
		}
		u.cpu += time.Duration(n) * time.Second / ticks
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			var kb float64
			if _, err := fmt.Sscan(rest, &kb); err != nil {
				return u, fmt.Errorf("read %s/status: %w", dir, err)
			}
			u.peak = kb / 1000
		}
	}
	return u, nil
}
