package bgp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/bgp/bfd"
)

var watched = BFD{Interval: 100 * time.Millisecond, Multiplier: 3} // as the annotation's "on" is

func withBFD(p Peer, b BFD) Peer { p.BFD = b; return p }

func bfdUp(n *node, peer string) func() bool {
	return func() bool { return n.peer(peer).BFD.State == "Up" }
}

// cut drops every packet in the neighbour's namespace: the links stay up, and nobody is told.
func (h *host) cut() (mend func()) {
	h.t.Helper()
	h.run("nft", "table inet cut { chain i { type filter hook input priority 0; policy drop; }; chain o { type filter hook output priority 0; policy drop; }; }")
	return func() { h.run("nft", "delete table inet cut") }
}

func TestBFDBetweenSpeakers(t *testing.T) {
	a := start(t, "10.1.30.1", Options{}, withBFD(mesh("10.1.30.2"), watched))
	b := start(t, "10.1.30.2", Options{}, withBFD(mesh("10.1.30.1"), watched))
	b.announce("10.65.1.0/26")
	eventually(t, "BFD up", func() bool { return bfdUp(a, "10.1.30.2")() && bfdUp(b, "10.1.30.1")() && a.has("10.65.1.0/26") }, a, b)
	eventually(t, "the short interval", func() bool { return a.peer("10.1.30.2").BFD.Detection == 300*time.Millisecond }, a)

	// An orderly stop tells the neighbour that BFD goes on purpose: the routes stay what they are.
	b.stop()
	eventually(t, "BFD down", func() bool { return a.peer("10.1.30.2").BFD.State == "Down" }, a)
	time.Sleep(50 * time.Millisecond)
	p, _ := a.path("10.65.1.0/26")
	if !p.Stale || p.Demoted {
		t.Errorf("after an orderly stop: stale %t, demoted %t; want stale only", p.Stale, p.Demoted)
	}
	if r := a.peer("10.1.30.2").BFD.Reason; r != "the neighbour has taken it down on purpose" {
		t.Errorf("reason %q", r)
	}
}

// TestBFDTakesNobodysPackets sends packets that must change nothing: with a low TTL, from a stranger, with a
// wrong discriminator, and rubbish.
func TestBFDTakesNobodysPackets(t *testing.T) {
	a := start(t, "10.1.31.1", Options{}, withBFD(mesh("10.1.31.2"), watched))
	b := start(t, "10.1.31.2", Options{}, withBFD(mesh("10.1.31.1"), watched))
	eventually(t, "BFD up", func() bool { return bfdUp(a, "10.1.31.2")() && bfdUp(b, "10.1.31.1")() }, a, b)
	since := a.peer("10.1.31.2").BFD.Since
	down := bfd.Packet{State: bfd.Down, Multiplier: 3, Mine: 99, DesiredMinTx: time.Second, RequiredMinRx: time.Second}
	for _, c := range []struct {
		from string
		ttl  int
		body []byte
	}{
		{"10.1.31.2", 254, down.Encode()},
		{"10.1.31.9", 255, down.Encode()},
		{"10.1.31.2", 255, bfd.Packet{State: bfd.Down, Multiplier: 3, Mine: 99, Yours: 12345}.Encode()},
		{"10.1.31.2", 255, []byte("not a bfd packet, but long enough to be one")},
		{"10.1.31.2", 255, nil},
	} {
		udp(t, c.from, "10.1.31.1:3784", c.ttl, c.body)
	}
	time.Sleep(300 * time.Millisecond)
	if st := a.peer("10.1.31.2").BFD; st.State != "Up" || !st.Since.Equal(since) {
		t.Errorf("BFD is %s since %s: %s", st.State, st.Since, st.Reason)
	}
	// The same packet with the right TTL is what takes the session down: the checks above are not vacuous.
	udp(t, "10.1.31.2", "10.1.31.1:3784", 255, down.Encode())
	eventually(t, "BFD down", func() bool { return !a.peer("10.1.31.2").BFD.Since.Equal(since) }, a)
}

func udp(t *testing.T, from, to string, ttl int, body []byte) {
	t.Helper()
	c, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, ttl) }); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(body); err != nil {
		t.Fatal(err)
	}
}

// TestBFDIsOptional has BFD at one end only: the session must come up and stay.
func TestBFDIsOptional(t *testing.T) {
	a := start(t, "10.1.32.1", Options{}, withBFD(mesh("10.1.32.2"), watched))
	b := start(t, "10.1.32.2", Options{}, mesh("10.1.32.1"))
	eventually(t, "session", established(a, "10.1.32.2"), a, b)
	time.Sleep(500 * time.Millisecond)
	st := a.peer("10.1.32.2")
	if st.State != "Established" || st.BFD.State != "Down" || st.BFD.Reason != "nothing has been heard yet" {
		t.Errorf("%s, BFD %s: %s", st.State, st.BFD.State, st.BFD.Reason)
	}
	// Turned on at the other end, later made faster, turned off again: the session of BGP never notices.
	up := a.peer("10.1.32.2").Since
	b.cfg.Peers[a.addr] = withBFD(b.cfg.Peers[a.addr], watched)
	b.set()
	eventually(t, "BFD up", bfdUp(a, "10.1.32.2"), a, b)
	fast := BFD{Interval: 50 * time.Millisecond, Multiplier: 4}
	for _, n := range []*node{a, b} {
		for addr, p := range n.cfg.Peers {
			n.cfg.Peers[addr] = withBFD(p, fast)
		}
		n.set()
	}
	eventually(t, "faster", func() bool { return a.peer("10.1.32.2").BFD.Detection == 200*time.Millisecond }, a, b)
	b.cfg.Peers[a.addr] = withBFD(b.cfg.Peers[a.addr], BFD{})
	b.set()
	eventually(t, "BFD down on purpose", func() bool { return a.peer("10.1.32.2").BFD.Reason == "the neighbour has taken it down on purpose" }, a, b)
	time.Sleep(100 * time.Millisecond)
	if st := a.peer("10.1.32.2"); st.State != "Established" || !st.Since.Equal(up) {
		t.Errorf("the session is %s since %s, was up since %s: %s", st.State, st.Since, up, st.LastError)
	}
}

// birdBFD is BIRD's BFD with Maneki's intervals.
const birdBFD = `
protocol bfd { interface "*" { interval 100 ms; multiplier 3; }; multihop { interval 100 ms; multiplier 3; }; }
`

// failover has a route over two neighbours and cuts the path to the better one. It returns how long it took
// until the other one was chosen.
func failover(t *testing.T, n *node, h *host, prefix, better, other string) time.Duration {
	t.Helper()
	hop := func() string { return n.Best()[netip.MustParsePrefix(prefix)].NextHop.String() }
	eventually(t, "the better path", func() bool { return hop() == better }, n)
	defer h.cut()()
	began := time.Now()
	for hop() == better {
		if time.Since(began) > 20*time.Second {
			t.Fatalf("the route stays with the dead neighbour: %+v", n.peer(better))
		}
		time.Sleep(time.Millisecond)
	}
	took := time.Since(began)
	if hop() != other {
		t.Fatalf("next hop %s, want %s", hop(), other)
	}
	return took
}

func TestBFDWithBIRD(t *testing.T) {
	for i, c := range []struct {
		name, extra string
		watch       BFD
	}{
		{"single hop", "bfd on; direct;", watched},
		{"multihop", "bfd on; multihop;", BFD{Interval: watched.Interval, Multiplier: 3, Multihop: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, 20+i)
			_, show := h.bird(c.extra + "}" + birdBFD + "template bgp unused {")
			n := start(t, h.us, Options{}, withBFD(realPeer(h.them), c.watch))
			backup := second(t, n, 20+i, "10.244.7.0/26")
			eventually(t, "BFD up", bfdUp(n, h.them), n)
			eventually(t, "BIRD's BFD up", func() bool {
				return strings.Contains(show("show bfd sessions"), h.us) && strings.Contains(show("show bfd sessions"), "Up")
			}, n)
			took := failover(t, n, h, "10.244.7.0/26", h.them, backup)
			t.Logf("BIRD, %s: the route moved after %s", c.name, took.Round(time.Millisecond))
			if took > 3*time.Second {
				t.Errorf("the route moved after %s, want less than half of the hold time", took)
			}
			if r := n.peer(h.them).LastError; r != "BFD: nothing was heard within the detection time" {
				t.Errorf("reason %q", r)
			}
			eventually(t, "session and BFD back", func() bool { return established(n, h.them)() && bfdUp(n, h.them)() }, n)
			eventually(t, "the route back", func() bool {
				return n.Best()[netip.MustParsePrefix("10.244.7.0/26")].NextHop.String() == h.them
			}, n)
		})
	}
}

// second is another neighbour of n that offers prefix with a lower LOCAL_PREF; it returns its next hop.
func second(t *testing.T, n *node, i int, prefix string) string {
	t.Helper()
	addr := fmt.Sprintf("10.2.%d.2", i)
	local := fmt.Sprintf("10.2.%d.1", i)
	p := mesh(addr)
	p.Local = netip.MustParseAddr(local)
	n.cfg.Peers[p.Addr] = p
	n.cfg.Listen = append(n.cfg.Listen, netip.AddrPortFrom(p.Local, 179))
	n.set()
	b := start(t, addr, Options{}, mesh(local))
	b.cfg.Announce[netip.MustParsePrefix(prefix)] = Announcement{LocalPref: 50}
	b.set()
	return addr
}

// TestHoldTimeWithoutBFD is the same failure without BFD.
func TestHoldTimeWithoutBFD(t *testing.T) {
	h := newHost(t, 24)
	h.bird("hold time 6;")
	p := realPeer(h.them)
	p.HoldTime = 6 * time.Second
	n := start(t, h.us, Options{}, p)
	backup := second(t, n, 24, "10.244.7.0/26")
	took := failover(t, n, h, "10.244.7.0/26", h.them, backup)
	t.Logf("without BFD, hold time 6 s: the route moved after %s", took.Round(10*time.Millisecond))
	if took < 3*time.Second || took > 7*time.Second {
		t.Errorf("the route moved after %s, want about the hold time of 6s", took)
	}
}

func TestBFDWithFRR(t *testing.T) {
	h := newHost(t, 26)
	f := h.daemons(fmt.Sprintf(frrConf, h.us, h.us6)+"router bgp 64512\n neighbor "+h.us+" bfd 3 100 100\n", "zebra", "bfdd", "bgpd")
	n := start(t, h.us, Options{}, withBFD(realPeer(h.them), watched))
	backup := second(t, n, 26, "10.245.7.0/26")
	eventually(t, "BFD up", bfdUp(n, h.them), n)
	eventually(t, "FRR's BFD up", func() bool { return strings.Contains(f.show("bfdd", "show bfd peers"), "Status: up") }, n)
	if out := f.show("bgpd", "show bgp neighbors "+h.us); !strings.Contains(out, "BFD: Type: single hop") {
		t.Errorf("FRR's BFD is not single hop:\n%s", out)
	}
	took := failover(t, n, h, "10.245.7.0/26", h.them, backup)
	t.Logf("FRR: the route moved after %s", took.Round(time.Millisecond))
	if took > 3*time.Second {
		t.Errorf("the route moved after %s, want less than half of the hold time", took)
	}
	eventually(t, "session and BFD back", func() bool { return established(n, h.them)() && bfdUp(n, h.them)() }, n)

	// We stop: FRR is told that BFD goes on purpose and keeps our routes for the restart time.
	n.announce("10.245.1.0/26")
	there := func() bool {
		return strings.Contains(f.show("bgpd", "show bgp ipv4 unicast 10.245.1.0/26"), "from "+h.us)
	}
	eventually(t, "our route in FRR", there, n)
	n.stop()
	for range 10 {
		if !there() {
			t.Fatalf("FRR dropped our route when we stopped:\n%s", f.show("bfdd", "show bfd peers"))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// frrouting is FRR's daemons in a host.
type frrouting struct {
	h     *host
	vtysh string
}

// daemons starts daemons of FRR with one configuration.
func (h *host) daemons(conf string, daemons ...string) *frrouting {
	h.t.Helper()
	vtysh := need(h.t, "vtysh", "frr")
	file := h.write("frr.conf", conf)
	// The daemons give up root.
	if err := errors.Join(os.Chmod(h.dir, 0o777), os.Chmod(filepath.Dir(h.dir), 0o755)); err != nil {
		h.t.Fatal(err)
	}
	zserv := filepath.Join(h.dir, "zserv.api")
	for _, d := range daemons {
		path := "/usr/lib/frr/" + d
		if _, err := os.Stat(path); err != nil {
			h.t.Fatalf("%s is missing: install the Debian package frr", path)
		}
		args := []string{path, "-f", file, "-i", filepath.Join(h.dir, d+".pid"), "--vty_socket", h.dir, "-z", zserv}
		switch d {
		case "bgpd":
			args = append(args, "-l", "0.0.0.0", "-l", "::", "-S")
		case "bfdd":
			args = append(args, "--bfdctl", filepath.Join(h.dir, "bfdd.sock"))
		}
		h.daemon(args...)
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(filepath.Join(h.dir, d+".vty")); err == nil {
				break
			}
			if time.Now().After(end) {
				h.t.Fatalf("%s does not start", d)
			}
		}
	}
	return &frrouting{h: h, vtysh: vtysh}
}

// show runs a command of vtysh.
func (f *frrouting) show(daemon, cmd string) string {
	out, _ := f.h.command(f.vtysh, "--vty_socket", f.h.dir, "-d", daemon, "-c", cmd).CombinedOutput()
	return string(out)
}

// TestBFDFlood: strangers, and a neighbour's address with a wrong TTL, send what they can; the session stays up.
func TestBFDFlood(t *testing.T) {
	fast := BFD{Interval: 50 * time.Millisecond, Multiplier: 3}
	a := start(t, "10.1.33.1", Options{}, withBFD(mesh("10.1.33.2"), fast))
	b := start(t, "10.1.33.2", Options{}, withBFD(mesh("10.1.33.1"), fast))
	eventually(t, "BFD up", func() bool { return bfdUp(a, "10.1.33.2")() && bfdUp(b, "10.1.33.1")() }, a, b)
	since := a.peer("10.1.33.2").BFD.Since
	down := bfd.Packet{State: bfd.Down, Multiplier: 3, Mine: 99, DesiredMinTx: time.Second, RequiredMinRx: time.Second}.Encode()
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			from := netip.MustParseAddrPort([]string{"10.1.33.9:0", "10.1.33.2:0"}[i])
			c, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(from), &net.UDPAddr{IP: net.IPv4(10, 1, 33, 1), Port: 3784})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for end := time.Now().Add(time.Second); time.Now().Before(end); { // with the usual TTL of 64
				_, _ = c.Write(down)
			}
		})
	}
	wg.Wait()
	if st := a.peer("10.1.33.2").BFD; st.State != "Up" || !st.Since.Equal(since) {
		t.Errorf("BFD is %s since %s: %s", st.State, st.Since, st.Reason)
	}
}
