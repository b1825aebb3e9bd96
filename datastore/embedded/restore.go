package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// ErrNotEmpty means that a data directory holds data already.
var ErrNotEmpty = errors.New("not empty")

// revisionBump is how far a restored store is ahead of its snapshot, so that no
// client which saw the store after the snapshot was taken meets a revision
// again with other contents. Their watches find the revision compacted and list.
const revisionBump = 1_000_000_000

// RestoreConfig says what is restored where.
type RestoreConfig struct {
	Snapshot string // file in etcd's format
	Dir      string // data directory to make
	Name     string // of the member; empty: DefaultName
	Force    bool   // move a directory that is there aside
	// SkipHashCheck takes a database file that was copied from a member's data
	// directory, which has no checksum at its end.
	SkipHashCheck bool
}

// SnapshotStatus describes a snapshot.
type SnapshotStatus struct {
	Revision int64
	Keys     int
	Size     int64  // bytes
	Version  string // of etcd's storage, empty before 3.6
}

// Inspect reads a snapshot file and checks its structure.
func Inspect(path string) (st SnapshotStatus, err error) {
	if _, err := os.Stat(path); err != nil {
		return st, err
	}
	defer func() { // the library panics on some damage
		if r := recover(); r != nil {
			err = fmt.Errorf("read snapshot %s: not a snapshot of etcd, or damaged: %v", path, r)
		}
	}()
	got, err := snapshot.NewV3(zap.NewNop()).Status(path)
	if err != nil {
		return st, fmt.Errorf("read snapshot %s: not a snapshot of etcd, or damaged: %w", path, err)
	}
	return SnapshotStatus{Revision: got.Revision, Keys: got.TotalKey, Size: got.TotalSize, Version: got.Version}, nil
}

// Restore makes the data of a member from a snapshot: that of the only member of a
// new cluster. It returns where data that were there have been moved, inside the
// directory, which may be a disk of its own. The error wraps ErrNotEmpty when
// there are data and Force is not set. Until all is complete nothing is changed.
func Restore(cfg RestoreConfig) (moved string, err error) {
	if cfg.Name == "" {
		cfg.Name = DefaultName
	}
	begun := false // the directory was not there
	if _, err := os.Stat(cfg.Dir); errors.Is(err, fs.ErrNotExist) {
		begun = true
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return "", fmt.Errorf("restore into %s: %w", cfg.Dir, err)
	}
	defer lock.Close()
	defer func() {
		if err != nil && begun {
			err = errors.Join(err, os.RemoveAll(cfg.Dir))
		}
	}()
	member := filepath.Join(cfg.Dir, "member")
	_, err = os.Stat(member)
	there := err == nil
	if there && !cfg.Force {
		return "", fmt.Errorf("restore into %s: the directory is %w", cfg.Dir, ErrNotEmpty)
	}
	made := filepath.Join(cfg.Dir, fmt.Sprintf("restore-%d", os.Getpid()))
	defer os.RemoveAll(made)
	if err := extract(cfg, made); err != nil {
		return "", err
	}
	fresh := filepath.Join(made, "member")
	if !there {
		return "", os.Rename(fresh, member)
	}
	moved = member + ".old-" + time.Now().Format("20060102-150405")
	// At no moment is there no member: a start then would begin an empty store.
	if err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, member, unix.RENAME_EXCHANGE); err != nil {
		return "", fmt.Errorf("restore into %s: %w", cfg.Dir, err)
	}
	if err := os.Rename(fresh, moved); err != nil {
		return "", fmt.Errorf("restore into %s: move what was there aside: %w", cfg.Dir, err)
	}
	return moved, nil
}

func extract(cfg RestoreConfig, dir string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("restore snapshot %s: not a snapshot of etcd, or damaged: %v", cfg.Snapshot, r)
		}
	}()
	total, _, err := disk(dir)
	if err != nil {
		return err
	}
	shortenWAL(spaceOf(total).segment)
	// Nobody connects to a single member's peer address, and it tells the others
	// its true one when it is started.
	peer := "http://localhost:2380"
	err = snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: cfg.Snapshot, SkipHashCheck: cfg.SkipHashCheck,
		Name: cfg.Name, OutputDataDir: dir, PeerURLs: []string{peer}, InitialCluster: cfg.Name + "=" + peer,
		InitialClusterToken: uuid.NewString(),
		RevisionBump:        revisionBump, MarkCompacted: true,
	})
	switch {
	case err == nil:
		return errors.Join(os.Chmod(dir, 0o700), trim(filepath.Join(dir, "member", "snap", "db")))
	case strings.Contains(err.Error(), "missing hash"), errors.Is(err, syscall.EINVAL):
		err = errors.New("there is no checksum at its end: it was cut short, or it is a database file copied from a data directory, which --skip-hash-check takes")
	case strings.Contains(err.Error(), "expected sha256"):
		err = errors.New("it is damaged: its checksum does not fit")
	}
	return fmt.Errorf("restore snapshot %s: %w", cfg.Snapshot, err)
}

// trim cuts off what the library has added to the database's file for the future,
// which a small disk has no room for.
func trim(path string) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: lockWait})
	if err != nil {
		return fmt.Errorf("read restored database: %w", err)
	}
	size := int64(0)
	err = db.View(func(tx *bbolt.Tx) error {
		size = tx.Size()
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("read restored database: %w", err)
	}
	return os.Truncate(path, size)
}
