package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/atomicfile"
)

// DefaultRoot is where labs keep their state.
const DefaultRoot = "/run/maneki-lab"

// DefaultName is the lab that commands mean when none is named.
const DefaultName = "lab"

// record is lab.json: what Down and later commands must know. It is written
// before the first object is made, and again when something changes.
type record struct {
	Topology Topology `json:"topology"`
	Binary   string   `json:"binary"`
	// Complete is set once the lab is up; a lab that is not complete is what an
	// interrupted command left, and the next one removes it.
	Complete bool `json:"complete"`
	// Made are directories of the machine that had to be made, in order.
	Made []string `json:"made,omitempty"`
}

const recordFile = "lab.json"

func (l *Lab) dir() string { return filepath.Join(l.cfg.Root, l.cfg.Name) }

// path is a file in the state directory of a member.
func (l *Lab) path(member, file string) string { return filepath.Join(l.dir(), member, file) }

func readRecord(root, name string) (record, error) {
	var r record
	raw, err := os.ReadFile(filepath.Join(root, name, recordFile))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("read state of lab %s: %w", name, err)
	}
	return r, nil
}

func (l *Lab) writeRecord() error {
	return writeJSON(filepath.Join(l.dir(), recordFile), l.rec)
}

func writeJSON[T record | containerRecord](path string, v T) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return writeFile(path, append(raw, '\n'), 0o600)
}

func writeFile(path string, data []byte, mode os.FileMode) error {
	if err := atomicfile.Write(path, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// lockWait is how long a command waits for another one on the same lab.
const lockWait = 30 * time.Second

// lockLab takes the lab's lock, ROOT/NAME.lock. The file itself is removed by
// Down while the lock is held, so after locking the path must still lead to
// the locked file.
func lockLab(ctx context.Context, root, name string) (*os.File, error) {
	path := filepath.Join(root, name+".lock")
	deadline := time.Now().Add(lockWait)
	for {
		f, err := tryLock(root, path)
		if err != nil {
			return nil, fmt.Errorf("lock lab %s: %w", name, err)
		}
		if f != nil {
			return f, nil
		}
		if time.Now().After(deadline) {
			holder, _ := os.ReadFile(path)
			return nil, classified{ErrBusy, fmt.Sprintf("lab %s is being changed by another command (process %s): wait for it or stop it",
				name, strings.TrimSpace(string(holder)))}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock lab %s: %w", name, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// tryLock returns nil without an error when someone else holds the lock.
func tryLock(root, path string) (*os.File, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil // another Down has just removed the root
		}
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, f.Close()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	mine, err1 := f.Stat()
	there, err2 := os.Stat(path)
	if err1 != nil || err2 != nil || !os.SameFile(mine, there) {
		return nil, f.Close()
	}
	// The holder's pid is only for the message of the one who waits.
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	return f, nil
}

// removeLock removes the lock file, and the root when it is empty, while the
// lock is still held.
func removeLock(root string, lock *os.File) error {
	err := os.Remove(lock.Name())
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	_ = os.Remove(root) // fails when other labs are there, as it should
	return err
}

// Names lists the labs that left state or processes on this machine.
func Names(root string) ([]string, error) {
	var names []string
	dirs, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	for _, d := range dirs {
		if d.IsDir() && checkName("name", d.Name()) == nil {
			names = append(names, d.Name())
		}
	}
	found, err := findMarked("")
	if err != nil {
		return nil, err
	}
	for _, m := range found {
		if checkName("name", m.Lab) == nil {
			names = append(names, m.Lab)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// makeBases makes the directories of the machine that hosts put overlays on.
// Any Linux has them; where one is missing it is remembered for Down.
func (l *Lab) makeBases() error {
	for _, dir := range overlaid {
		for _, d := range []string{filepath.Dir(dir), dir} {
			if _, err := os.Stat(d); err == nil {
				continue
			}
			l.rec.Made = append(l.rec.Made, d)
			if err := l.writeRecord(); err != nil {
				return err
			}
			if err := os.Mkdir(d, 0o755); err != nil {
				return fmt.Errorf("make %s: %w", d, err)
			}
		}
	}
	return nil
}
