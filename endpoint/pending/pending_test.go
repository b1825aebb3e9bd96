package pending_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/manekinet/maneki/endpoint/pending"
)

func TestWriteListRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pending")
	if records, problems, err := pending.List(dir); len(records)+len(problems) != 0 || err != nil {
		t.Fatalf("a directory that is not there: %v %v %v", records, problems, err)
	}
	a := pending.Record{Network: "n", ContainerID: "c", IfName: "eth0"}
	b := pending.Record{Network: "n", ContainerID: "c", IfName: "eth0", Namespace: "shop", Pod: "p"}
	for _, r := range []pending.Record{a, b, a} {
		if err := pending.Write(dir, r); err != nil {
			t.Fatal(err)
		}
	}
	records, problems, err := pending.List(dir)
	if len(records) != 2 || len(problems) != 0 || err != nil {
		t.Fatalf("%v %v %v", records, problems, err)
	}
	for _, path := range []string{dir, filepath.Join(dir, "*.json")} {
		names, _ := filepath.Glob(path)
		for _, name := range names {
			if info, err := os.Stat(name); err != nil || info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: %v %v", name, info.Mode(), err)
			}
		}
	}
	if !pending.Has(dir, a) || pending.Remove(dir, a) != nil || pending.Has(dir, a) || !pending.Has(dir, b) || pending.Remove(dir, a) != nil {
		t.Error("remove takes one record, once or twice")
	}
}

func TestBadFilesAreReportedAndLeft(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"half.json": `{"network":"n","contai`, "empty.json": "", "anon.json": "{}", "big.json": strings.Repeat(" ", 65<<10), "other.txt": "x",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link.json")); err != nil {
		t.Fatal(err)
	}
	if err := pending.Write(dir, pending.Record{Network: "n", ContainerID: "c", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	records, problems, err := pending.List(dir)
	if len(records) != 1 || len(problems) != 5 || err != nil {
		t.Errorf("%v %v %v", records, problems, err)
	}
}

func TestSweepTakesOldLeftovers(t *testing.T) {
	dir := t.TempDir()
	old, fresh := filepath.Join(dir, ".tmp-1"), filepath.Join(dir, ".tmp-2")
	for _, f := range []string{old, fresh} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	if err := pending.Sweep(dir); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".tmp-*")); len(left) != 1 || left[0] != fresh {
		t.Errorf("left %v", left)
	}
}

func TestDifferentRecordsHaveDifferentFiles(t *testing.T) {
	text := rapid.StringMatching(`[a-z0-9.]{1,5}`)
	rapid.Check(t, func(rt *rapid.T) {
		draw := func() pending.Record {
			return pending.Record{
				Network: text.Draw(rt, "network"), ContainerID: text.Draw(rt, "container"), IfName: text.Draw(rt, "if"),
				Namespace: text.Draw(rt, "namespace"), Pod: text.Draw(rt, "pod"),
			}
		}
		a, b := draw(), draw()
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		if err := pending.Write(dir, a); err != nil {
			rt.Fatal(err)
		}
		if pending.Has(dir, b) != (a == b) {
			rt.Fatalf("%v and %v", a, b)
		}
	})
}
