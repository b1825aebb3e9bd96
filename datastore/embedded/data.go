package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/protobuf/proto"

	"github.com/manekinet/maneki/datastore/etcd"
)

// lockName is the file in the data directory that a running server holds.
const lockName = "maneki.lock"

// lockWait is how long to wait for another process's lock on the database: not
// at all, but the library wants a time.
const lockWait = 50 * time.Millisecond

// ErrInUse means that another process has the data directory.
var ErrInUse = errors.New("in use")

type inUse struct{ dir, process string }

func (e inUse) Error() string {
	return fmt.Sprintf("data directory %s is in use by process %s", e.dir, e.process)
}
func (inUse) Unwrap() error { return ErrInUse }

// lockDir makes the data directory ours, or says whose it is. etcd's own lock
// would wait forever.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create data directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("protect data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		owner := make([]byte, 32)
		n, _ := f.ReadAt(owner, 0)
		_ = f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
		}
		return nil, inUse{dir, strings.TrimSpace(string(owner[:n]))}
	}
	// The number is for the message above; the lock is what counts.
	if err := f.Truncate(0); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if _, err := fmt.Fprintf(f, "%d\n", os.Getpid()); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	return f, nil
}

// checkData reports a data directory that etcd could not start from: it would
// end the process, or wait forever. An empty directory is good.
func checkData(dir string) (stored, error) {
	database, log := filepath.Join(dir, "member", "snap", "db"), filepath.Join(dir, "member", "wal")
	logged := wal.Exist(log)
	if info, err := os.Stat(database); err == nil && info.Size() == 0 && !logged {
		return stored{}, nil // left by a process that was killed during its first start
	}
	st, err := checkDatabase(database)
	if err != nil {
		return st, err
	}
	if !logged {
		if st.applied > 0 {
			return st, damaged(log, errors.New("the log is missing, though the database holds data"))
		}
		return st, nil
	}
	l, err := readLog(log)
	switch {
	case err != nil:
		return st, err
	case !l.begun && st.applied == 0:
		return st, discard(dir)
	case l.last < st.applied:
		// An entry is on the disk before it is applied. Damage that hits the
		// length of a record looks like the end of the log.
		return st, damaged(log, fmt.Errorf("the log ends with entry %d, though the database holds entry %d", l.last, st.applied))
	}
	return st, nil
}

func damaged(path string, err error) error {
	return fmt.Errorf("data is damaged: %s: %w; `maneki datastore restore SNAPSHOT --force` puts a snapshot in its place. "+
		"Where other hosts keep the datastore too: `maneki datastore members remove` this host there, move the directory away, and start with --join", path, err)
}

// stored is what the database says of itself.
type stored struct {
	applied uint64 // number of the last log entry that it holds; 0: nothing was ever written
	members int    // of the cluster; 0: not begun
}

func checkDatabase(path string) (st stored, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	defer func() { // the library panics on some damage
		if r := recover(); r != nil {
			err = damaged(path, fmt.Errorf("%v", r))
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: lockWait})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return st, fmt.Errorf("%s is in use by another etcd", path)
	}
	if err != nil {
		return st, damaged(path, err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		if want := tx.Size(); info.Size() < want {
			return damaged(path, fmt.Errorf("the file has %d bytes, %d are missing", info.Size(), want-info.Size()))
		}
		// etcd notes here the number of the last log entry it has applied.
		if meta := tx.Bucket([]byte("meta")); meta != nil {
			if index := meta.Get([]byte("consistent_index")); len(index) == 8 {
				st.applied = binary.BigEndian.Uint64(index)
			}
		}
		if members := tx.Bucket([]byte("members")); members != nil {
			st.members = members.Stats().KeyN
		}
		return nil
	})
	return st, err
}

// memberLog is what the log of a member says of itself.
type memberLog struct {
	member, cluster uint64
	// begun is false until the member's own admission to the cluster, the first
	// entry, was written together with a commit index of at least one: without
	// that nothing was ever acknowledged to anybody.
	begun bool
	last  uint64 // number of the last entry
}

// readLog reads and checks the log from the last snapshot on.
func readLog(dir string) (l memberLog, err error) {
	quiet := zap.NewNop()
	snaps, err := wal.ValidSnapshotEntries(quiet, dir)
	if err != nil {
		return l, damaged(dir, err)
	}
	if len(snaps) == 0 {
		return l, damaged(dir, errors.New("no snapshot record"))
	}
	from := snaps[len(snaps)-1]
	w, err := wal.OpenForRead(quiet, dir, from)
	if err != nil {
		return l, damaged(dir, err)
	}
	defer w.Close()
	raw, state, entries, err := w.ReadAll()
	if err != nil {
		return l, damaged(dir, err)
	}
	var meta etcdserverpb.Metadata
	if err := proto.Unmarshal(raw, &meta); err != nil {
		return l, damaged(dir, err)
	}
	l = memberLog{member: meta.GetNodeID(), cluster: meta.GetClusterID(), begun: state.GetCommit() > 0, last: from.GetIndex()}
	if n := len(entries); n > 0 {
		l.last = entries[n-1].GetIndex()
	}
	return l, nil
}

// discard removes the log that a process left which was killed after it had
// made the file and before the member had admitted itself: etcd would take it
// for a member's that has been running, and wait for an election in a cluster
// without members.
func discard(dir string) error {
	if err := os.RemoveAll(filepath.Join(dir, "member")); err != nil {
		return fmt.Errorf("remove what a first start left that was killed: %w", err)
	}
	return nil
}

// guard keeps etcd from ending our process: where it would log and exit or
// panic, only its goroutine ends, and the reason comes out of fatal.
type guard struct {
	fatal    chan error
	broken   atomic.Bool // a goroutine of etcd has ended
	stopping atomic.Bool // what etcd says while it stops is of no interest
}

func newGuard() *guard { return &guard{fatal: make(chan error, 1)} }

// logger is etcd's: warnings and worse go to log.
func (g *guard) logger(log *slog.Logger) *zap.Logger {
	return etcd.ZapLogger(log, slog.LevelWarn, zap.WithFatalHook(g), zap.WithPanicHook(g), zap.WrapCore(g.quiet))
}

// OnWrite is called after a record of level panic or fatal.
func (g *guard) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	text := e.Message
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	if cause, ok := enc.Fields["error"]; ok {
		text = fmt.Sprintf("%s: %v", text, cause)
	}
	g.broken.Store(true)
	select {
	case g.fatal <- errors.New(text):
	default: // the first reason is the one that counts
	}
	runtime.Goexit()
}

// expected are warnings of etcd about what we chose, and what is told otherwise.
var expected = []string{
	"Running http and grpc server on single port. This is not recommended for production.",
	"simple token is not cryptographically signed",
	"failed to apply request", // for lack of space: the caller is told
}

// quiet drops them.
func (g *guard) quiet(core zapcore.Core) zapcore.Core { return quietCore{core, g} }

type quietCore struct {
	zapcore.Core
	guard *guard
}

func (c quietCore) With(fields []zapcore.Field) zapcore.Core {
	return quietCore{c.Core.With(fields), c.guard}
}

func (c quietCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if slices.Contains(expected, e.Message) || c.guard.stopping.Load() {
		return ce
	}
	return c.Core.Check(e, ce)
}
