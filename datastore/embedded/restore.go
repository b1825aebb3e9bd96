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
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
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

// Restore makes a data directory from a snapshot: that of the only member of a
// new cluster. It returns where a directory that was there has been moved. The
// error wraps ErrNotEmpty when there is one and Force is not set. Until all is
// complete nothing is changed.
func Restore(cfg RestoreConfig) (moved string, err error) {
	if cfg.Name == "" {
		cfg.Name = DefaultName
	}
	lock, full, err := claim(cfg)
	if err != nil {
		return "", fmt.Errorf("restore into %s: %w", cfg.Dir, err)
	}
	if lock != nil {
		defer lock.Close()
	}
	made := fmt.Sprintf("%s.restore-%d", cfg.Dir, os.Getpid())
	defer os.RemoveAll(made)
	if err := extract(cfg, made); err != nil {
		return "", err
	}
	if full {
		moved = cfg.Dir + ".old-" + time.Now().Format("20060102-150405")
		err = os.Rename(cfg.Dir, moved)
	} else {
		err = os.RemoveAll(cfg.Dir)
	}
	if err == nil {
		err = os.Rename(made, cfg.Dir)
	}
	if err != nil {
		return moved, fmt.Errorf("restore into %s: %w", cfg.Dir, err)
	}
	return moved, nil
}

// claim locks the directory that is there, if one is, and says whether it holds
// anything.
func claim(cfg RestoreConfig) (lock *os.File, full bool, err error) {
	if _, err := os.Stat(cfg.Dir); errors.Is(err, fs.ErrNotExist) {
		return nil, false, os.MkdirAll(filepath.Dir(cfg.Dir), 0o700)
	}
	if lock, err = lockDir(cfg.Dir); err != nil {
		return nil, false, err
	}
	entries, err := os.ReadDir(cfg.Dir)
	for _, e := range entries {
		full = full || e.Name() != lockName
	}
	if err == nil && full && !cfg.Force {
		err = fmt.Errorf("the directory is %w", ErrNotEmpty)
	}
	if err != nil {
		return nil, full, errors.Join(err, lock.Close())
	}
	return lock, full, nil
}

func extract(cfg RestoreConfig, dir string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("restore snapshot %s: not a snapshot of etcd, or damaged: %v", cfg.Snapshot, r)
		}
	}()
	shortenWAL(walSegment)
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
		return os.Chmod(dir, 0o700)
	case strings.Contains(err.Error(), "missing hash"), errors.Is(err, syscall.EINVAL):
		err = errors.New("there is no checksum at its end: it was cut short, or it is a database file copied from a data directory, which --skip-hash-check takes")
	case strings.Contains(err.Error(), "expected sha256"):
		err = errors.New("it is damaged: its checksum does not fit")
	}
	return fmt.Errorf("restore snapshot %s: %w", cfg.Snapshot, err)
}
