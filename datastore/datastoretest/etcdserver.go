package datastoretest

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// EtcdServer is one process of an etcd, on free ports of
// 127.0.0.1, with its data in the test's folder. It ends with the test, and
// with the test process.
type EtcdServer struct {
	t       testing.TB
	binary  string
	scheme  string
	name    string
	peer    string // URL for other members
	cluster string // "name=peer URL,..." of all members
	args    []string
	cmd     *exec.Cmd
	exited  chan error
	logged  int64  // size of the log when this process began
	Dir     string // of the data
	Address string // "127.0.0.1:port" for clients
}

// Version is a release of etcd.
type Version string

// The releases that tests run. Debian's is in the package etcd-server; the others
// are built from test/etcd. The release that Maneki embeds has the suite of
// package embedded.
const (
	Debian Version = "3.4"
	V35    Version = "3.5"
	V36    Version = "3.6"
)

// Versions are all of them.
func Versions() []Version { return []Version{Debian, V35, V36} }

// binary is the program of a release.
func (v Version) binary(t testing.TB) string {
	t.Helper()
	if v == Debian {
		path, err := exec.LookPath("etcd")
		if err != nil {
			t.Fatal("etcd is not installed: apt-get install etcd-server")
		}
		return path
	}
	path, err := build(string(v))
	if err != nil {
		t.Fatalf("build etcd %s: %v", v, err)
	}
	return path
}

// StartEtcd starts Debian's etcd. See Version.Start.
func StartEtcd(t testing.TB, args ...string) *EtcdServer {
	t.Helper()
	return Debian.Start(t, args...)
}

// Start starts a server, waits until it serves, and stops it at the end of the
// test. args are added to its command line; with --cert-file among them its
// clients need TLS. The test fails if etcd is not installed.
func (v Version) Start(t testing.TB, args ...string) *EtcdServer {
	t.Helper()
	s := newServer(t, v.binary(t), "test", args)
	s.cluster = s.name + "=" + s.peer
	s.launch()
	s.ready()
	t.Cleanup(s.Kill)
	return s
}

// StartCluster starts a cluster of n members.
func (v Version) StartCluster(t testing.TB, n int) []*EtcdServer {
	t.Helper()
	var members []*EtcdServer
	var peers []string
	for i := range n {
		m := newServer(t, v.binary(t), "m"+strconv.Itoa(i), nil)
		members = append(members, m)
		peers = append(peers, m.name+"="+m.peer)
	}
	for _, m := range members {
		m.cluster = strings.Join(peers, ",")
		m.launch()
		t.Cleanup(m.Kill)
	}
	for _, m := range members {
		m.ready()
	}
	return members
}

func newServer(t testing.TB, binary, name string, args []string) *EtcdServer {
	s := &EtcdServer{t: t, binary: binary, name: name, scheme: "http", args: args, Dir: filepath.Join(t.TempDir(), "etcd")}
	if slices.Contains(args, "--cert-file") {
		s.scheme = "https"
	}
	s.Address, s.peer = freeAddress(t), "http://"+freeAddress(t)
	return s
}

// Endpoint is the server's URL.
func (s *EtcdServer) Endpoint() string { return s.scheme + "://" + s.Address }

// Start starts the server again, with the same address and data.
func (s *EtcdServer) Start() {
	s.t.Helper()
	s.launch()
	s.ready()
}

func (s *EtcdServer) launch() {
	s.t.Helper()
	log, err := os.OpenFile(s.Dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	if s.logged, err = log.Seek(0, io.SeekEnd); err != nil {
		s.t.Fatal(err)
	}
	s.cmd = exec.Command(s.binary, append([]string{
		"--name", s.name, "--data-dir", s.Dir, "--listen-client-urls", s.Endpoint(), "--advertise-client-urls", s.Endpoint(),
		"--listen-peer-urls", s.peer, "--initial-advertise-peer-urls", s.peer, "--initial-cluster", s.cluster,
	}, s.args...)...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatalf("start etcd: %v", err)
	}
	s.exited = make(chan error, 1)
	go func(cmd *exec.Cmd, exited chan<- error) { exited <- cmd.Wait() }(s.cmd, s.exited)
}

func (s *EtcdServer) ready() {
	s.t.Helper()
	if err := s.waitReady(); err != nil {
		text, _ := os.ReadFile(s.Dir + ".log")
		s.t.Fatalf("etcd %v\n%s", err, text)
	}
}

// serving is what etcd writes to its log, whatever its version, when it answers.
// It accepts connections long before, on a loaded machine by seconds.
const serving = "ready to serve client requests"

func (s *EtcdServer) waitReady() error {
	for end := time.Now().Add(startPatience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-s.exited:
			s.exited <- err
			return fmt.Errorf("ended: %w", err)
		default:
		}
		if text, err := os.ReadFile(s.Dir + ".log"); err == nil && bytes.Contains(text[min(s.logged, int64(len(text))):], []byte(serving)) {
			return nil
		}
	}
	return fmt.Errorf("does not serve on %s after %s", s.Address, startPatience)
}

// Kill ends the server at once, as a crash does.
func (s *EtcdServer) Kill() {
	_ = s.cmd.Process.Kill() // it may have ended by itself
	err := <-s.exited
	s.exited <- err
}

// Pause stops the server without closing its connections; Resume lets it go on.
func (s *EtcdServer) Pause() { s.signal(syscall.SIGSTOP) }

// Resume undoes Pause.
func (s *EtcdServer) Resume() { s.signal(syscall.SIGCONT) }

func (s *EtcdServer) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatalf("signal etcd: %v", err)
	}
}

// freeAddress is an address of this host on which nobody listens, below the
// ports that the kernel gives to outgoing connections.
func freeAddress(t testing.TB) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(15000+rand.IntN(17000))))
		if err != nil {
			continue
		}
		defer l.Close()
		return l.Addr().String()
	}
	t.Fatal("no free port found on 127.0.0.1")
	return ""
}

// Restore makes the data of a server that does not run from a snapshot, with
// etcdctl.
func (s *EtcdServer) Restore(snapshot string) {
	s.t.Helper()
	cmd := exec.Command("etcdctl", "snapshot", "restore", snapshot, "--name", s.name, "--data-dir", s.Dir,
		"--initial-cluster", s.cluster, "--initial-advertise-peer-urls", s.peer)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("etcdctl snapshot restore: %v\n%s", err, out)
	}
}
