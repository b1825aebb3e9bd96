package bundle_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/manekinet/maneki/ctl/bundle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// unpack reads a bundle.
func unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(text)
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	logs := filepath.Join(dir, "log")
	for i, name := range []string{"old.log", "a/new.log", "middle.log"} {
		path := filepath.Join(logs, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(int64(1000+[]int{0, 2, 1}[i]), 0)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	items, err := bundle.Logs("logs", logs, 2)
	if err != nil {
		t.Fatal(err)
	}
	items = append(items,
		bundle.Text("date", "now\n"),
		bundle.Command("echo", "Saying hello", "/bin/echo", "hello"),
		bundle.Command("none", "Looking for nothing", "/nonexistent/program"),
		bundle.Command("fails", "", "/bin/sh", "-c", "echo partial; exit 3"),
		bundle.File("gone", filepath.Join(dir, "gone")),
	)
	var said []string
	path := filepath.Join(dir, "diags.tar.gz")
	if err := bundle.Write(context.Background(), path, time.Unix(0, 0), items, 3, func(s string) { said = append(said, s) }); err != nil {
		t.Fatal(err)
	}
	files := unpack(t, path)
	for name, want := range map[string]string{
		"logs/a/new.log": "a/new.log", "logs/middle.log": "middle.log", "date": "now\n", "echo": "hello\n",
		"none": "\nnot collected: run /nonexistent/program: ", "fails": "partial\n\nnot collected: run /bin/sh -c echo partial; exit 3: exit status 3\n",
		"gone": "\nnot collected: open ",
	} {
		if got := files["diagnostics/"+name]; !strings.HasPrefix(got, want) || want == "" {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
	if len(files) != len(items) {
		t.Errorf("%d files, want %d", len(files), len(items))
	}
	if !slices.Equal(said, []string{"Saying hello", "Looking for nothing"}) {
		t.Errorf("said %q", said)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".diags-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestWriteIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	path := filepath.Join(t.TempDir(), "d.tar.gz")
	err := bundle.Write(ctx, path, time.Unix(0, 0), []bundle.Item{bundle.Command("sleep", "", "/bin/sleep", "100")}, 1, func(string) {})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a bundle was written")
	}
}
