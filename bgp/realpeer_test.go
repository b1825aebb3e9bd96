package bgp

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// host is a second network namespace joined to the test's by a veth pair: us 172.31.n.1 and fd31:n::1,
// them .2 and ::2. It lives as long as the process that holds it.
type host struct {
	t    *testing.T
	pid  int
	us   string // our address
	them string
	us6  string
	dir  string
	link netlink.Link // our end
}

func newHost(t *testing.T, n int) *host {
	t.Helper()
	need(t, "nsenter", "util-linux")
	hold := exec.Command("sleep", "600")
	hold.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := hold.Start(); err != nil {
		t.Fatalf("start a process in a new network namespace: %v", err)
	}
	t.Cleanup(func() { _ = hold.Process.Kill(); _ = hold.Wait() })
	h := &host{
		t: t, pid: hold.Process.Pid, dir: t.TempDir(),
		us: fmt.Sprintf("172.31.%d.1", n), them: fmt.Sprintf("172.31.%d.2", n), us6: fmt.Sprintf("fd31:%d::1", n),
	}
	name, peer := fmt.Sprintf("bgp%da", n), fmt.Sprintf("bgp%db", n)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer, PeerNamespace: netlink.NsPid(h.pid)}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal("add veth:", err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(veth) })
	for _, s := range []string{h.us + "/24", h.us6 + "/64"} {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		a.Flags = syscall.IFA_F_NODAD
		if err := netlink.AddrAdd(veth, a); err != nil {
			t.Fatal(err)
		}
	}
	h.link = veth
	if err := netlink.LinkSetUp(veth); err != nil {
		t.Fatal(err)
	}
	h.run("ip", "link", "set", "lo", "up")
	h.run("ip", "addr", "add", h.them+"/24", "dev", peer)
	h.run("ip", "addr", "add", fmt.Sprintf("fd31:%d::2/64", n), "nodad", "dev", peer)
	h.run("ip", "link", "set", peer, "up")
	return h
}

func need(t *testing.T, program, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatalf("%s is missing: install the Debian package %s", program, pkg)
	}
	return path
}

func (h *host) command(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", fmt.Sprint(h.pid), "-n"}, args...)...)
}

func (h *host) run(args ...string) string {
	h.t.Helper()
	out, err := h.command(args...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// daemon is a program kept running in the host; stop ends it with a signal and waits.
func (h *host) daemon(args ...string) (stop func(syscall.Signal)) {
	h.t.Helper()
	var log bytes.Buffer
	cmd := h.command(args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	running := true
	stop = func(sig syscall.Signal) {
		if running {
			running = false
			_ = cmd.Process.Signal(sig)
			_ = cmd.Wait()
			if h.t.Failed() {
				h.t.Logf("%s:\n%s", args[0], log.String())
			}
		}
	}
	h.t.Cleanup(func() { stop(syscall.SIGKILL) })
	return stop
}

func (h *host) write(name, content string) string {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// birdConf is a neighbour as Calico configures BIRD (spec/calico.md §6.1), with both families.
const birdConf = `
router id 172.31.0.2;
protocol device { scan time 1; }
protocol static s4 { ipv4; route 10.244.7.0/26 blackhole; route 10.244.8.0/26 blackhole; }
protocol static s6 { ipv6; route fd44:7::/122 blackhole; }
template bgp maneki {
  local as 64512;
  graceful restart;
  connect delay time 1; connect retry time 1; error wait time 1, 2;
  multihop;
  %s
}
protocol bgp m4 from maneki { neighbor %s as 64512; source address %s; ipv4 { import all; export all; next hop self; }; }
protocol bgp m6 from maneki { neighbor %s as 64512; source address %s; ipv6 { import all; export all; next hop self; }; }
`

func (h *host) bird(extra string, flags ...string) (stop func(syscall.Signal), show func(string) string) {
	h.t.Helper()
	return h.birdRuns(fmt.Sprintf(birdConf, extra, h.us, h.them, h.us6, strings.Replace(h.us6, "::1", "::2", 1)), flags...)
}

// birdWith runs BIRD with a configuration of the test's own.
func (h *host) birdWith(conf string) (show func(string) string) {
	h.t.Helper()
	_, show = h.birdRuns(conf)
	return show
}

func (h *host) birdRuns(config string, flags ...string) (stop func(syscall.Signal), show func(string) string) {
	h.t.Helper()
	bird := need(h.t, "bird", "bird2")
	birdc := need(h.t, "birdc", "bird2")
	conf := h.write("bird.conf", config)
	sock := filepath.Join(h.dir, "bird.ctl")
	stop = h.daemon(append([]string{bird, "-f", "-c", conf, "-s", sock, "-P", filepath.Join(h.dir, "bird.pid")}, flags...)...)
	return stop, func(cmd string) string {
		out, _ := h.command(append([]string{birdc, "-s", sock}, strings.Fields(cmd)...)...).CombinedOutput()
		return string(out)
	}
}

func realPeer(addr string) Peer {
	return Peer{Name: "real", Type: TypeGlobal, Addr: netip.MustParseAddr(addr), ASN: 64512}
}

func TestBIRD(t *testing.T) {
	h := newHost(t, 1)
	stop, show := h.bird("")
	them6 := strings.Replace(h.us6, "::1", "::2", 1)
	p6 := realPeer(them6)
	n := start(t, h.us, Options{}, realPeer(h.them))
	n.cfg.Listen = append(n.cfg.Listen, netip.AddrPortFrom(netip.MustParseAddr(h.us6), 179))
	n.cfg.Peers[p6.Addr] = p6
	n.cfg.Announce[netip.MustParsePrefix("10.244.1.0/26")] = Announcement{Communities: "64512:7", MED: 5, LocalPref: 2147482623}
	n.cfg.Announce[netip.MustParsePrefix("fd44:1::/122")] = Announcement{}
	n.set()
	eventually(t, "BIRD's routes", func() bool { return n.has("10.244.7.0/26") && n.has("10.244.8.0/26") && n.has("fd44:7::/122") }, n)
	if hop := n.Best()[netip.MustParsePrefix("10.244.7.0/26")].NextHop; hop.String() != h.them {
		t.Errorf("next hop %s, want %s", hop, h.them)
	}
	eventually(t, "our routes in BIRD", func() bool {
		r := show("show route all for 10.244.1.1")
		return strings.Contains(r, "via "+h.us) || strings.Contains(r, "BGP.next_hop: "+h.us)
	}, n)
	r := show("show route all for 10.244.1.1")
	for _, want := range []string{"BGP.local_pref: 2147482623", "BGP.community: (64512,7)", "BGP.med: 5", "BGP.origin: IGP"} {
		if !strings.Contains(r, want) {
			t.Errorf("BIRD does not show %q:\n%s", want, r)
		}
	}
	if r := show("show route for fd44:1::1"); !strings.Contains(r, "fd44:1::/122") {
		t.Errorf("no IPv6 route in BIRD:\n%s", r)
	}
	n.withdraw("10.244.1.0/26")
	eventually(t, "withdrawal in BIRD", func() bool { return !strings.Contains(show("show route for 10.244.1.1"), "10.244.1.0/26") }, n)

	// BIRD restarts: kill -9 is what a crash looks like. Its routes must stay until it is back.
	eventually(t, "End-of-RIB", func() bool { return n.peer(h.them).EoR }, n)
	stop(syscall.SIGKILL)
	eventually(t, "stale", func() bool { return n.Best()[netip.MustParsePrefix("10.244.7.0/26")].Stale }, n)
	h.bird("", "-R") // as Calico starts it: BIRD then says that its forwarding state survived
	end := time.Now().Add(15 * time.Second)
	for n.Best()[netip.MustParsePrefix("10.244.7.0/26")].Stale || !n.peer(h.them).EoR {
		if !n.has("10.244.7.0/26") || !n.has("10.244.8.0/26") {
			t.Fatal("BIRD's routes went away while it restarted")
		}
		if time.Now().After(end) {
			t.Fatalf("BIRD did not come back: %+v", n.peer(h.them))
		}
		time.Sleep(time.Millisecond)
	}
}

// TestBIRDKeepsOurRoutes restarts our side: BIRD is the helper (RFC 4724 §4.2).
func TestBIRDKeepsOurRoutes(t *testing.T) {
	h := newHost(t, 2)
	_, show := h.bird("")
	a := start(t, h.us, Options{}, realPeer(h.them))
	a.announce("10.244.1.0/26", "10.244.2.0/26")
	there := func() bool { return strings.Contains(show("show route for 10.244.1.1"), "10.244.1.0/26") }
	eventually(t, "our route in BIRD", there, a)
	eventually(t, "End-of-RIB", a.Converged, a)
	a.stop()
	for range 10 {
		if !there() {
			t.Fatal("BIRD dropped our route when we stopped")
		}
		time.Sleep(20 * time.Millisecond)
	}
	b := start(t, h.us, Options{RestartedRecently: true}, realPeer(h.them))
	b.announce("10.244.1.0/26")
	for end := time.Now().Add(15 * time.Second); strings.Contains(show("show route for 10.244.2.1"), "10.244.2.0/26"); {
		if !there() {
			t.Fatal("BIRD dropped our route while we restarted")
		}
		if time.Now().After(end) {
			t.Fatalf("BIRD keeps a route that was not announced again:\n%s", show("show protocols all m4"))
		}
	}
	if !there() {
		t.Fatal("our route is gone after the restart")
	}
}

func TestBIRDWithPasswordAndTTL(t *testing.T) {
	h := newHost(t, 3)
	h.bird(`password "tanuki"; ttl security on;`)
	p := realPeer(h.them)
	p.Password, p.TTLSecurity = "tanuki", 1
	n := start(t, h.us, Options{}, p)
	eventually(t, "session", established(n, h.them), n)
	eventually(t, "routes", func() bool { return n.has("10.244.7.0/26") }, n)
}

// frrConf has FRR as an iBGP neighbour with graceful restart.
const frrConf = `
hostname frr
log stdout
router bgp 64512
 bgp router-id 172.31.0.3
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
 no bgp ebgp-requires-policy
 no bgp network import-check
 timers bgp 3 9
 neighbor %[1]s remote-as 64512
 neighbor %[1]s timers connect 1
 neighbor %[2]s remote-as 64512
 neighbor %[2]s timers connect 1
 address-family ipv4 unicast
  network 10.245.7.0/26
  network 10.245.8.0/26
  no neighbor %[2]s activate
 exit-address-family
 address-family ipv6 unicast
  network fd45:7::/122
  neighbor %[2]s activate
 exit-address-family
`

func TestFRR(t *testing.T) {
	const bgpd = "/usr/lib/frr/bgpd"
	if _, err := os.Stat(bgpd); err != nil {
		t.Fatalf("%s is missing: install the Debian package frr", bgpd)
	}
	vtysh := need(t, "vtysh", "frr")
	h := newHost(t, 4)
	conf := h.write("bgpd.conf", fmt.Sprintf(frrConf, h.us, h.us6))
	if err := os.Chmod(h.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	frr := func() func(syscall.Signal) {
		return h.daemon(bgpd, "-f", conf, "-i", filepath.Join(h.dir, "bgpd.pid"), "--vty_socket", h.dir, "-z", filepath.Join(h.dir, "zserv.api"), "-n", "-S", "-Z", "-l", "0.0.0.0")
	}
	stop := frr()
	show := func(cmd string) string {
		out, _ := h.command(vtysh, "--vty_socket", h.dir, "-d", "bgpd", "-c", cmd).CombinedOutput()
		return string(out)
	}
	them6 := strings.Replace(h.us6, "::1", "::2", 1)
	p6 := realPeer(them6)
	n := start(t, h.us, Options{}, realPeer(h.them))
	n.cfg.Listen = append(n.cfg.Listen, netip.AddrPortFrom(netip.MustParseAddr(h.us6), 179))
	n.cfg.Peers[p6.Addr] = p6
	n.announce("10.245.1.0/26", "fd45:1::/122")
	eventually(t, "FRR's routes", func() bool { return n.has("10.245.7.0/26") && n.has("10.245.8.0/26") && n.has("fd45:7::/122") }, n)
	eventually(t, "our route in FRR", func() bool { return strings.Contains(show("show bgp ipv4 unicast 10.245.1.0/26"), h.us+" from "+h.us) }, n)
	eventually(t, "our IPv6 route in FRR", func() bool { return strings.Contains(show("show bgp ipv6 unicast fd45:1::/122"), h.us6) }, n)
	n.withdraw("10.245.1.0/26")
	eventually(t, "withdrawal in FRR", func() bool { return strings.Contains(show("show bgp ipv4 unicast 10.245.1.0/26"), "not in table") }, n)

	// FRR asks for everything again (ROUTE-REFRESH).
	n.announce("10.245.2.0/26")
	eventually(t, "route in FRR", func() bool { return strings.Contains(show("show bgp ipv4 unicast 10.245.2.0/26"), h.us) }, n)
	before := n.peer(h.them).MessagesOut
	show("clear bgp ipv4 unicast * soft in")
	eventually(t, "routes sent again", func() bool { return n.peer(h.them).MessagesOut > before }, n)
	if st := n.peer(h.them); st.State != "Established" {
		t.Errorf("state %s: %s", st.State, st.LastError)
	}

	eventually(t, "End-of-RIB", func() bool { return n.peer(h.them).EoR }, n)
	stop(syscall.SIGKILL)
	eventually(t, "stale", func() bool { return n.Best()[netip.MustParsePrefix("10.245.7.0/26")].Stale }, n)
	frr()
	end := time.Now().Add(20 * time.Second)
	for n.Best()[netip.MustParsePrefix("10.245.7.0/26")].Stale {
		if !n.has("10.245.7.0/26") {
			t.Fatal("FRR's routes went away while it restarted")
		}
		if time.Now().After(end) {
			t.Fatalf("FRR did not come back: %+v", n.peer(h.them))
		}
		time.Sleep(time.Millisecond)
	}
}
