package embedded_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
	"github.com/manekinet/maneki/datastore/embedded"
	"github.com/manekinet/maneki/datastore/etcd"
)

// save writes a snapshot of the store to a file.
func save(t *testing.T, s *etcd.Store) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "snapshot.db"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.Backup(t.Context(), f)
	if err := errors.Join(err, f.Close()); err != nil || n == 0 {
		t.Fatalf("%d bytes, %v", n, err)
	}
	return f.Name()
}

func etcdctl(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("etcdctl", args...)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("etcdctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// A snapshot holds the state of its moment; the store restored from it goes on at
// revisions that nobody has seen.
func TestRestore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	s := start(t, embedded.Config{Dir: dir})
	put(t, s.Store(), "n", "before")
	file := save(t, s.Store().(*etcd.Store))
	put(t, s.Store(), "n", "after")
	old, err := s.Store().Get(t.Context(), datastore.Key{Kind: "Node", Name: "n"})
	if err != nil {
		t.Fatal(err)
	}
	st, err := embedded.Inspect(file)
	if err != nil || st.Revision == 0 || st.Keys == 0 {
		t.Fatalf("%+v, %v", st, err)
	}

	r := embedded.RestoreConfig{Snapshot: file, Dir: dir, Name: "h1", Force: true}
	if _, err := embedded.Restore(r); !errors.Is(err, embedded.ErrInUse) {
		t.Fatalf("restore under a running server: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r.Force = false
	if _, err := embedded.Restore(r); !errors.Is(err, embedded.ErrNotEmpty) {
		t.Fatalf("restore over data: %v", err)
	}
	r.Force = true
	moved, err := embedded.Restore(r)
	if err != nil || !strings.HasPrefix(moved, dir+"/member.old-") {
		t.Fatalf("%q, %v", moved, err)
	}
	if _, err := os.Stat(filepath.Join(moved, "snap", "db")); err != nil {
		t.Errorf("what was there is not in %s: %v", moved, err)
	}
	s = start(t, embedded.Config{Dir: dir, Name: "h1"})
	wantValue(t, s.Store(), "n", "before")
	e, err := s.Store().Get(t.Context(), datastore.Key{Kind: "Node", Name: "n"})
	if err != nil {
		t.Fatal(err)
	}
	// An object read before the restore is not written over what is there now.
	if _, err := s.Store().Put(t.Context(), e.Key, nil, datastore.At(old.Rev)); !errors.Is(err, datastore.ErrConflict) {
		t.Errorf("write at a revision of before: %v", err)
	}
	rev, err := s.Store().Put(t.Context(), e.Key, []byte("x"), datastore.At(e.Rev))
	if err != nil {
		t.Fatal(err)
	}
	seen, _ := strconv.Atoi(string(old.Rev))
	if n, _ := strconv.Atoi(string(rev)); n <= seen {
		t.Errorf("revision %s after the restore, %s had been seen", rev, old.Rev)
	}
	// And a watch from before is told to list again.
	w := s.Store().Watch(t.Context(), old.Rev, datastore.Query{Kind: "Node"})
	for range w.Events() {
	}
	if !errors.Is(w.Err(), datastore.ErrCompacted) {
		t.Errorf("watch from before: %v", w.Err())
	}
}

// Debian's etcdctl reads our snapshot and its etcd serves it; and a snapshot of
// that etcd becomes an embedded one.
func TestSnapshotOfOthers(t *testing.T) {
	s := start(t, embedded.Config{Dir: filepath.Join(t.TempDir(), "etcd")})
	put(t, s.Store(), "n", "from the embedded one")
	file := save(t, s.Store().(*etcd.Store))
	if out := etcdctl(t, "snapshot", "status", file, "-w", "fields"); !strings.Contains(out, `"Revision"`) {
		t.Errorf("etcdctl snapshot status: %s", out)
	}
	external := datastoretest.StartEtcd(t)
	external.Kill()
	if err := os.RemoveAll(external.Dir); err != nil {
		t.Fatal(err)
	}
	external.Restore(file)
	external.Start()
	store, err := etcd.New(t.Context(), etcd.Config{Endpoints: []string{external.Endpoint()}})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	wantValue(t, store, "n", "from the embedded one")

	put(t, store, "n", "from the external one")
	saved := filepath.Join(t.TempDir(), "external.db")
	etcdctl(t, "--endpoints", external.Endpoint(), "snapshot", "save", saved)
	dir := filepath.Join(t.TempDir(), "restored")
	if _, err := embedded.Restore(embedded.RestoreConfig{Snapshot: saved, Dir: dir}); err != nil {
		t.Fatal(err)
	}
	wantValue(t, start(t, embedded.Config{Dir: dir}).Store(), "n", "from the external one")
}

// A file that is no snapshot, or a torn one, leaves everything as it is.
func TestRestoreRefuses(t *testing.T) {
	s := start(t, embedded.Config{Dir: filepath.Join(t.TempDir(), "etcd")})
	put(t, s.Store(), "n", "x")
	whole, err := os.ReadFile(save(t, s.Store().(*etcd.Store)))
	if err != nil {
		t.Fatal(err)
	}
	flipped := append([]byte{}, whole...)
	flipped[len(flipped)/2] ^= 1
	for name, content := range map[string][]byte{
		"empty": nil, "text": []byte(strings.Repeat("no snapshot ", 2000)), "cut": whole[:len(whole)/2], "without sum": whole[:len(whole)-32], "bit flipped": flipped,
	} {
		t.Run(name, func(t *testing.T) {
			file, dir := filepath.Join(t.TempDir(), "snapshot.db"), filepath.Join(t.TempDir(), "etcd")
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := embedded.Restore(embedded.RestoreConfig{Snapshot: file, Dir: dir}); err == nil {
				t.Error("restored")
			} else {
				t.Log(err)
			}
			left, err := os.ReadDir(filepath.Dir(dir))
			if err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
	file, dir := filepath.Join(t.TempDir(), "db"), filepath.Join(t.TempDir(), "etcd")
	if err := os.WriteFile(file, whole[:len(whole)-32], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := embedded.Restore(embedded.RestoreConfig{Snapshot: file, Dir: dir, SkipHashCheck: true}); err != nil {
		t.Errorf("a database file: %v", err)
	}
}
