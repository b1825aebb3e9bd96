package bgp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
)

// insideEnv marks the copy of the test binary that runs in its own network namespace.
const insideEnv = "MANEKI_BGP_TEST_NETNS"

// TestMain runs the tests in a network namespace of their own, because they listen on port 179 and add
// addresses. All of 10.0.0.0/8 and a few IPv6 addresses are local there.
func TestMain(m *testing.M) {
	if spec := os.Getenv(swarmEnv); spec != "" {
		if err := runSwarm(spec); err != nil {
			fmt.Fprintln(os.Stderr, "simulated neighbours:", err)
			os.Exit(1)
		}
		return
	}
	if os.Getenv(insideEnv) == "" {
		os.Exit(runInside())
	}
	if err := prepareNamespace(); err != nil {
		fmt.Fprintln(os.Stderr, "prepare the test's network namespace:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func runInside() int {
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the tests in a network namespace (needs root):", err)
		return 1
	}
	return 0
}

func prepareNamespace() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	addrs := []string{"10.0.0.1/8"}
	for i := 1; i <= 8; i++ {
		addrs = append(addrs, fmt.Sprintf("fd00::%d/128", i))
	}
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lo, a); err != nil {
			return fmt.Errorf("add %s: %w", s, err)
		}
	}
	return nil
}

// node is a speaker under test at one address.
type node struct {
	*Speaker
	t    testing.TB
	addr netip.Addr
	cfg  Config
	stop func()
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func logger(t testing.TB) *slog.Logger {
	if os.Getenv("BGP_TEST_LOG") == "" {
		return quiet()
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("test", t.Name())
}

// start runs a speaker at addr with the given peers. The router ID is 10.255.0.n for last octet n.
func start(t testing.TB, addr string, opts Options, peers ...Peer) *node {
	t.Helper()
	return startLogging(t, logger(t).With("node", addr), addr, opts, peers...)
}

func startLogging(t testing.TB, log *slog.Logger, addr string, opts Options, peers ...Peer) *node {
	t.Helper()
	a := netip.MustParseAddr(addr)
	n := &node{Speaker: New(log, opts), t: t, addr: a, cfg: Config{
		RouterID: routerID(a), ASN: 64512, Listen: []netip.AddrPort{netip.AddrPortFrom(a, 179)},
		Peers: map[netip.Addr]Peer{}, Announce: map[netip.Prefix]Announcement{},
	}}
	for _, p := range peers {
		p.Local = a
		n.cfg.Peers[p.Addr] = p
	}
	n.set()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run %s: %v", addr, err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

func routerID(a netip.Addr) netip.Addr {
	b := a.AsSlice()
	return netip.AddrFrom4([4]byte{10, 255, b[len(b)-2], b[len(b)-1]})
}

func (n *node) set() {
	n.t.Helper()
	if err := n.Set(n.cfg); err != nil {
		n.t.Fatalf("set %s: %v", n.addr, err)
	}
}

func (n *node) announce(prefixes ...string) {
	n.t.Helper()
	for _, p := range prefixes {
		n.cfg.Announce[netip.MustParsePrefix(p)] = Announcement{}
	}
	n.set()
}

func (n *node) withdraw(prefixes ...string) {
	n.t.Helper()
	for _, p := range prefixes {
		delete(n.cfg.Announce, netip.MustParsePrefix(p))
	}
	n.set()
}

func mesh(addr string) Peer {
	return Peer{Name: "n" + addr, Type: TypeMesh, Addr: netip.MustParseAddr(addr), ASN: 64512}
}

// state returns the state of the session with peer.
func (n *node) peer(addr string) PeerStatus {
	for _, st := range n.Status() {
		if st.Peer.Addr == netip.MustParseAddr(addr) {
			return st
		}
	}
	return PeerStatus{State: "absent"}
}

func (n *node) has(prefix string) bool {
	_, ok := n.Best()[netip.MustParsePrefix(prefix)]
	return ok
}

// eventually waits until done, and fails the test with the state of the nodes if that does not happen.
func eventually(t testing.TB, what string, done func() bool, nodes ...*node) {
	t.Helper()
	within(t, 15*time.Second, what, done, nodes...)
}

func within(t testing.TB, limit time.Duration, what string, done func() bool, nodes ...*node) {
	t.Helper()
	end := time.Now().Add(limit)
	for wait := 200 * time.Microsecond; !done(); wait = min(wait*2, 10*time.Millisecond) {
		if time.Now().After(end) {
			for _, n := range nodes {
				for _, st := range n.Status() {
					t.Logf("%s: peer %s %s %q received %d", n.addr, st.Peer.Addr, st.State, st.LastError, st.Received)
				}
				t.Logf("%s: best %v", n.addr, n.Best())
			}
			t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(wait)
	}
}

func established(n *node, peers ...string) func() bool {
	return func() bool {
		for _, p := range peers {
			if n.peer(p).State != "Established" {
				return false
			}
		}
		return true
	}
}

func checkLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

// raw dials a speaker from an address and returns the connection.
func raw(t *testing.T, from, to string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))}
	c, err := d.Dial("tcp", net.JoinHostPort(to, "179"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
