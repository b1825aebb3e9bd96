package embedded_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/embedded"
)

// childDir is the variable that makes this test binary the process to be killed, smallDir the one on a small disk,
// fullDir the one that fills its disk.
const (
	childDir = "MANEKI_TEST_EMBEDDED_DIR"
	fullDir  = "MANEKI_TEST_EMBEDDED_FULL"
	smallDir = "MANEKI_TEST_EMBEDDED_SMALL"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := writeForever(dir, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	if dir := os.Getenv(fullDir); dir != "" {
		if err := fillDisk(dir, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(smallDir); dir != "" {
		if err := liveOnSmallDisk(dir, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// etcd leaves connections between members to their idle timeout.
	var between []goleak.Option
	for _, f := range []string{"net/http.(*persistConn).readLoop", "net/http.(*persistConn).writeLoop", "net/http.(*connReader).backgroundRead", "net/http.(*conn).serve"} {
		between = append(between, goleak.IgnoreAnyFunction(f))
	}
	goleak.VerifyTestMain(m, between...)
}

// fillDisk writes until the disk takes no more, for which a limit of the
// process stands, and says how the server took it.
func fillDisk(dir string, out io.Writer) error {
	signal.Ignore(syscall.SIGXFSZ)
	ctx := context.Background()
	s, err := embedded.Start(ctx, embedded.Config{Dir: dir, ClientURLs: []string{anyPort}})
	if err != nil {
		return err
	}
	if err := syscall.Setrlimit(unix.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 12 << 20, Max: 12 << 20}); err != nil {
		return err
	}
	for i := 0; err == nil && i < 1000; i++ {
		_, err = s.Store().Put(ctx, counter(i), make([]byte, 500<<10), datastore.Always())
	}
	fmt.Fprintln(out, "put:", err)
	select {
	case err := <-s.Failed():
		fmt.Fprintln(out, "failed:", err)
	case <-time.After(20 * time.Second):
		return errors.New("the server has not reported its end")
	}
	fmt.Fprintln(out, "close:", s.Close())
	return nil
}

// When the disk takes no more the server ends with a reason; the process does
// not end with it.
func TestDiskFull(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fullDir+"="+filepath.Join(t.TempDir(), "etcd"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"put: put IPAMHandle(", "datastore unavailable", "failed: embedded etcd: ", "file too large", "close:"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("output does not hold %q:\n%s", want, out)
		}
	}
	t.Logf("%s", out)
}

func counter(i int) datastore.Key {
	return datastore.Key{Kind: datastore.KindIPAMHandle, Name: strconv.Itoa(i % 50)}
}

// writeForever writes 1, 2, 3 ... and prints each number when it is acknowledged.
func writeForever(dir string, out io.Writer) error {
	ctx := context.Background()
	s, err := embedded.Start(ctx, embedded.Config{Dir: dir, ClientURLs: []string{anyPort}})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "ready")
	for i := 1; ; i++ {
		if _, err := s.Store().Put(ctx, counter(i), []byte(strconv.Itoa(i)), datastore.Always()); err != nil {
			return err
		}
		fmt.Fprintln(out, i)
	}
}

// child starts this test binary as a writer on dir and waits until it is ready.
func child(t *testing.T, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Fatalf("child printed %q", lines.Text())
	}
	return cmd, lines
}

// Whatever was acknowledged before kill -9 is there afterwards, again and again.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	for round := range 3 {
		cmd, lines := child(t, dir)
		go func() {
			time.Sleep(300 * time.Millisecond)
			_ = cmd.Process.Kill()
		}()
		acknowledged := 0
		for lines.Scan() {
			n, err := strconv.Atoi(lines.Text())
			if err != nil {
				break // half a line, cut by the kill
			}
			acknowledged = max(acknowledged, n)
		}
		_ = cmd.Wait()
		if acknowledged < 10 {
			t.Fatalf("only %d writes in round %d", acknowledged, round)
		}
		begun := time.Now()
		s := start(t, embedded.Config{Dir: dir})
		t.Logf("round %d: %d writes, start after kill took %s", round, acknowledged, time.Since(begun))
		for i := max(1, acknowledged-49); i <= acknowledged; i++ {
			e, err := s.Store().Get(t.Context(), counter(i))
			if err != nil {
				t.Fatalf("write %d of %d: %v", i, acknowledged, err)
			}
			if n, _ := strconv.Atoi(string(e.Value)); n < i {
				t.Fatalf("acknowledged write %d of %d is lost, %d is there", i, acknowledged, n)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A process killed at any moment of its first start leaves a directory that
// can be started from.
func TestKillDuringFirstStart(t *testing.T) {
	for round := range 8 {
		dir := filepath.Join(t.TempDir(), "etcd")
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if _, err := os.Stat(dir); err == nil { // the start proper begins
				break
			}
		}
		time.Sleep(time.Duration(round) * 10 * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err := start(t, embedded.Config{Dir: dir}).Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDirectoryInUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	cmd, lines := child(t, dir)
	defer func() {
		_ = cmd.Process.Kill()
		for lines.Scan() {
		}
		_ = cmd.Wait()
	}()
	begun := time.Now()
	_, err := embedded.Start(t.Context(), embedded.Config{Dir: dir, ClientURLs: []string{anyPort}})
	want := fmt.Sprintf("data directory %s is in use by process %d", dir, cmd.Process.Pid)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("error is %v, want %q", err, want)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %s to say so", took)
	}
}

// Another etcd, which knows nothing of our lock file, is recognised as well.
func TestDirectoryInUseByEtcd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	if err := start(t, embedded.Config{Dir: dir}).Close(); err != nil {
		t.Fatal(err)
	}
	db := filepath.Join(dir, "member", "snap", "db")
	f, err := os.OpenFile(db, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	_, err = embedded.Start(t.Context(), embedded.Config{Dir: dir, ClientURLs: []string{anyPort}})
	if want := db + " is in use by another etcd"; err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("error is %v, want %q", err, want)
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := filepath.Join(t.TempDir(), "etcd")
	_, err = embedded.Start(t.Context(), embedded.Config{Dir: dir, ClientURLs: []string{"http://" + l.Addr().String()}})
	if err == nil || !strings.Contains(err.Error(), "address already in use") || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Fatalf("error is %v", err)
	}
	start(t, embedded.Config{Dir: dir}) // the failure has left nothing locked
}

// A process killed right after it made the database file can start again.
func TestEmptyDatabaseFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	if err := os.MkdirAll(filepath.Join(dir, "member", "snap"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "member", "snap", "db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, embedded.Config{Dir: dir})
}

func TestBadConfig(t *testing.T) {
	for _, c := range []struct {
		cfg  embedded.Config
		says string
	}{
		{embedded.Config{}, "no data directory"},
		{embedded.Config{Dir: "/dev/null/x"}, "create data directory"},
		{embedded.Config{Dir: "x", ClientURLs: []string{"unix://x"}}, `client URL "unix://x": scheme`},
		{embedded.Config{Dir: "x", ClientURLs: []string{"http://127.0.0.1"}}, "port is missing"},
		{embedded.Config{Dir: "x", ClientURLs: []string{"http://example.com:1"}}, `host is "example.com"`},
		{embedded.Config{Dir: "x", ClientURLs: []string{"https://127.0.0.1:0"}}, "needs a certificate"},
		{embedded.Config{Dir: "x", PeerURLs: []string{"127.0.0.1:0"}}, "peer URL"},
	} {
		if _, err := embedded.Start(t.Context(), c.cfg); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: error is %v, want %q", c.cfg, err, c.says)
		}
	}
	if _, err := os.Stat("x"); !errors.Is(err, os.ErrNotExist) {
		t.Error("a refused configuration made a directory")
	}
}

// Every kind of damage is an error that names the file; the process lives on.
func TestDamage(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, member string)
		says   string
	}{
		{"database overwritten", func(t *testing.T, member string) { overwrite(t, filepath.Join(member, "snap", "db"), 0, 64<<10) }, "snap/db"},
		{"database cut", func(t *testing.T, member string) { truncate(t, filepath.Join(member, "snap", "db"), 8<<10) }, "snap/db"},
		{"database empty", func(t *testing.T, member string) { truncate(t, filepath.Join(member, "snap", "db"), 0) }, "snap/db"},
		{"log overwritten", func(t *testing.T, member string) { overwrite(t, segment(t, member), 200, 2000) }, "wal"},
		{"log gone, database there", func(t *testing.T, member string) {
			if err := os.RemoveAll(filepath.Join(member, "wal")); err != nil {
				t.Fatal(err)
			}
		}, "wal"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "etcd")
			s := start(t, embedded.Config{Dir: dir})
			for i := range 60 {
				if _, err := s.Store().Put(t.Context(), counter(i), make([]byte, 1000), datastore.Always()); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			c.damage(t, filepath.Join(dir, "member"))
			s, err := embedded.Start(t.Context(), embedded.Config{Dir: dir, ClientURLs: []string{anyPort}})
			if err == nil {
				_ = s.Close()
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error is %v, want damage and %q", err, c.says)
			}
		})
	}
}

func overwrite(t *testing.T, path string, from, to int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(strings.Repeat("damage", (to-from)/6)), int64(from)); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func segment(t *testing.T, member string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(member, "wal", "*.wal"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no WAL segment: %v", err)
	}
	return files[0]
}

// The server starts and stops quickly, also while others have watches open, and
// they learn of its end.
func TestStartStop(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	begun := time.Now()
	s := start(t, embedded.Config{Dir: dir})
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("start took %s", took)
	} else {
		t.Logf("start took %s", took)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("data directory: %v, %v", info.Mode(), err)
	}
	other, err := clientv3.New(clientv3.Config{Endpoints: s.Endpoints(), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	remote := other.Watch(ctx, "/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if r := <-remote; !r.Created {
		t.Fatalf("remote watch: %+v", r)
	}
	own := s.Store().Watch(ctx, "", datastore.Query{Kind: "Node"})
	begun = time.Now()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("stop took %s with watches open", took)
	} else {
		t.Logf("stop took %s", took)
	}
	for range own.Events() {
	}
	if !errors.Is(own.Err(), datastore.ErrUnavailable) {
		t.Errorf("own watch ended with %v", own.Err())
	}
}

// A single member may come back with other URLs for clients and peers.
func TestURLsChange(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	for i, peers := range [][]string{nil, {"http://127.0.0.1:0"}, {"http://localhost:0"}, nil} {
		s := start(t, embedded.Config{Dir: dir, PeerURLs: peers})
		if _, err := s.Store().Put(t.Context(), counter(i), []byte("x"), datastore.Absent()); err != nil {
			t.Fatal(err)
		}
		es, _, err := s.Store().List(t.Context(), datastore.Query{Kind: datastore.KindIPAMHandle})
		if err != nil || len(es) != i+1 {
			t.Fatalf("start %d: %d entries, %v", i, len(es), err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
