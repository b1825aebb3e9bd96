package embedded_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/embedded"
	"github.com/manekinet/maneki/datastore/etcd"
)

// A disk of 16 MiB, filled by the server itself and then by somebody else: writes
// are refused in words, reads go on, nothing is torn, and when there is space
// again the server takes writes without anybody's help.
func TestSmallDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("the test mounts a small filesystem: run it as root")
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), smallDir+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

const objectSize = 16 << 10

func liveOnSmallDisk(mount string, out io.Writer) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, "size=16m"); err != nil {
		return err
	}
	dir := filepath.Join(mount, "etcd")
	ctx := context.Background()
	s, err := embedded.Start(ctx, embedded.Config{Dir: dir, ClientURLs: []string{anyPort}, Log: slog.New(slog.NewTextHandler(out, nil))})
	if err != nil {
		return err
	}
	written, err := fill(ctx, s)
	fmt.Fprintf(out, "after %d objects: %v\n", written, err)
	if err := wantNoSpace(ctx, s, err); err != nil {
		return err
	}
	// Deleting is allowed, and makes room.
	kept := written * 3 / 4
	for i := range kept {
		if err := s.Store().Delete(ctx, object(i), datastore.Always()); err != nil {
			return err
		}
	}
	if err := recovered(ctx, s, out); err != nil {
		return err
	}
	// Somebody else takes the rest of the disk, and gives it back.
	if err := squeeze(ctx, s, mount, out); err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	s, err = embedded.Start(ctx, embedded.Config{Dir: dir, ClientURLs: []string{anyPort}})
	if err != nil {
		return err
	}
	for i := kept; i < written; i++ {
		e, err := s.Store().Get(ctx, object(i))
		if err != nil || len(e.Value) != objectSize {
			return fmt.Errorf("object %d: %d bytes, %w", i, len(e.Value), err)
		}
	}
	return s.Close()
}

func object(i int) datastore.Key {
	return datastore.Key{Kind: datastore.KindIPAMHandle, Name: fmt.Sprint("o", i)}
}

func random() []byte {
	b := make([]byte, objectSize)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// fill writes new objects until one is refused.
func fill(ctx context.Context, s *embedded.Server) (int, error) {
	for i := range 2000 {
		if _, err := s.Store().Put(ctx, object(i), random(), datastore.Absent()); err != nil {
			return i, err
		}
	}
	return 0, errors.New("the disk took everything")
}

func wantNoSpace(ctx context.Context, s *embedded.Server, err error) error {
	if !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), "has no space left (NOSPACE)") {
		return fmt.Errorf("the write was refused with: %w", err)
	}
	if e, err := s.Store().Get(ctx, object(1)); err != nil && !errors.Is(err, datastore.ErrNotFound) {
		return fmt.Errorf("reads do not go on: %s, %w", e.Key, err)
	}
	alarms, err := s.Store().(*etcd.Store).Alarms(ctx)
	if err != nil || len(alarms) != 1 || alarms[0] != "NOSPACE on maneki" {
		return fmt.Errorf("alarms: %v, %w", alarms, err)
	}
	select {
	case err := <-s.Failed():
		return fmt.Errorf("the server has ended: %w", err)
	default:
		return nil
	}
}

func recovered(ctx context.Context, s *embedded.Server, out io.Writer) (err error) {
	begun := time.Now()
	for time.Since(begun) < 20*time.Second {
		if _, err = s.Store().Put(ctx, object(9999), []byte("x"), datastore.Always()); err == nil {
			fmt.Fprintf(out, "writes again after %s\n", time.Since(begun).Round(100*time.Millisecond))
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("no writes after 20 s: %w", err)
}

func squeeze(ctx context.Context, s *embedded.Server, mount string, out io.Writer) error {
	hog := filepath.Join(mount, "hog")
	f, err := os.Create(hog)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Statfs(mount, &st); err != nil {
		return err
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-1<<20); err != nil {
		return err
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, err = s.Store().Put(ctx, object(9998), []byte("x"), datastore.Always()); err != nil {
			break
		}
	}
	fmt.Fprintln(out, "with a file beside it:", err)
	if err := wantNoSpace(ctx, s, err); err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(0), os.Remove(hog)); err != nil {
		return err
	}
	return recovered(ctx, s, out)
}
