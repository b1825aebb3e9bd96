package datastoretest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// EtcdServer is one process of the etcd that Debian packages, on free ports of
// 127.0.0.1, with its data in the test's folder. It ends with the test, and
// with the test process.
type EtcdServer struct {
	t       testing.TB
	scheme  string
	args    []string
	cmd     *exec.Cmd
	exited  chan error
	Dir     string // of the data
	Address string // "127.0.0.1:port" for clients
}

// StartEtcd starts a server, waits until it accepts connections, and stops it
// at the end of the test. args are added to its command line; with --cert-file
// among them its clients need TLS. The test fails if etcd is not installed.
func StartEtcd(t testing.TB, args ...string) *EtcdServer {
	t.Helper()
	s := &EtcdServer{t: t, scheme: "http", args: args, Dir: filepath.Join(t.TempDir(), "etcd"), Address: freeAddress(t)}
	for _, a := range args {
		if a == "--cert-file" {
			s.scheme = "https"
		}
	}
	s.Start()
	t.Cleanup(s.Kill)
	return s
}

// Endpoint is the server's URL.
func (s *EtcdServer) Endpoint() string { return s.scheme + "://" + s.Address }

// Start starts the server again, with the same address and data.
func (s *EtcdServer) Start() {
	s.t.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		s.t.Fatal("etcd is not installed: apt-get install etcd-server")
	}
	peer := "http://" + freeAddress(s.t)
	log, err := os.OpenFile(s.Dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(path, append([]string{
		"--name", "test", "--data-dir", s.Dir, "--listen-client-urls", s.Endpoint(), "--advertise-client-urls", s.Endpoint(),
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "test=" + peer,
	}, s.args...)...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatalf("start etcd: %v", err)
	}
	s.exited = make(chan error, 1)
	go func(cmd *exec.Cmd, exited chan<- error) { exited <- cmd.Wait() }(s.cmd, s.exited)
	if err := s.waitReady(); err != nil {
		text, _ := os.ReadFile(s.Dir + ".log")
		s.t.Fatalf("etcd %v\n%s", err, text)
	}
}

func (s *EtcdServer) waitReady() error {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-s.exited:
			s.exited <- err
			return fmt.Errorf("ended: %w", err)
		default:
		}
		if c, err := net.DialTimeout("tcp", s.Address, time.Second); err == nil {
			_ = c.Close()
			return nil
		}
	}
	return errors.New("does not listen on " + s.Address)
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

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}
