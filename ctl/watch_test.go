package ctl_test

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/ctl"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
)

// screen is what a running command has printed so far.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// waitFor waits until the screen shows n lines.
func (s *screen) waitFor(t *testing.T, n int) string {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if text := s.String(); strings.Count(text, "\n") >= n {
			return text
		}
	}
	t.Fatalf("want %d lines, have:\n%s", n, s)
	return ""
}

// startWatch runs `get ... -w` until the function returned is called.
func startWatch(t *testing.T, store datastore.Store, args ...string) (out *screen, end func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	out = &screen{}
	code := make(chan int, 1)
	go func() {
		code <- ctl.Execute(ctx, ctl.Options{
			Stdin: strings.NewReader(""), Stdout: out, Stderr: out,
			Environ:   func(string) string { return "" },
			OpenStore: func(context.Context, config.Config, *slog.Logger) (datastore.Store, error) { return store, nil },
		}, append(args, "-w"))
	}()
	return out, func() int { cancel(); return <-code }
}

func TestWatch(t *testing.T) {
	ctx := context.Background()
	store := keepOpen{memory.New()}
	pools := datastore.For[api.IPPool](store)
	p := func(name, cidr string) *api.IPPool {
		p := &api.IPPool{}
		p.Name, p.Spec.CIDR = name, cidr
		p.Default()
		return p
	}
	if err := pools.Create(ctx, p("a", "10.1.0.0/16")); err != nil {
		t.Fatal(err)
	}
	table, endTable := startWatch(t, store, "get", "ippools")
	lines, endLines := startWatch(t, store, "get", "ippools", "b", "-o", "json")
	table.waitFor(t, 2)
	if err := pools.Create(ctx, p("b", "10.2.0.0/16")); err != nil {
		t.Fatal(err)
	}
	table.waitFor(t, 3)
	if _, err := pools.Modify(ctx, "", "a", func(p *api.IPPool) error { p.Spec.NodeSelector = "has(rack)"; return nil }); err != nil {
		t.Fatal(err)
	}
	table.waitFor(t, 4)
	if _, err := pools.Delete(ctx, "", "b", ""); err != nil {
		t.Fatal(err)
	}
	got, gotLines := table.waitFor(t, 5), lines.waitFor(t, 2)
	want := `EVENT      NAME   CIDR          SELECTOR   
ADDED      a      10.1.0.0/16   all()      
ADDED      b      10.2.0.0/16   all()      
MODIFIED   a      10.1.0.0/16   has(rack)   
DELETED    b      10.2.0.0/16   all()       
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	rows := strings.Split(strings.TrimSpace(gotLines), "\n")
	if len(rows) != 2 || !strings.HasPrefix(rows[0], `{"type":"ADDED","object":{"kind":"IPPool"`) || !strings.HasPrefix(rows[1], `{"type":"DELETED","object":{"kind":"IPPool"`) {
		t.Errorf("json: %s", gotLines)
	}
	if a, b := endTable(), endLines(); a != 0 || b != 0 {
		t.Errorf("the watches ended with %d and %d", a, b)
	}
}

// TestWatchShowsTheBuiltInProfile: it is not stored, but it is there.
func TestWatchShowsTheBuiltInProfile(t *testing.T) {
	out, end := startWatch(t, keepOpen{memory.New()}, "get", "profiles", "-o", "yaml")
	if text := out.waitFor(t, 5); !strings.HasPrefix(text, "---\nobject:\n  apiVersion: projectcalico.org/v3\n  kind: Profile\n  metadata:\n    name: projectcalico-default-allow\n") {
		t.Error(text)
	}
	if code := end(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// flaky is a store whose watches and lists break on demand.
type flaky struct {
	keepOpen
	mu     sync.Mutex
	broken bool
}

func (f *flaky) set(broken bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = broken
}

func (f *flaky) down() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.broken
}

// Snapshot fails while the store is broken.
func (f *flaky) Snapshot(ctx context.Context, qs ...datastore.Query) ([]datastore.Entry, datastore.Revision, error) {
	if f.down() {
		return nil, "", datastore.ErrUnavailable
	}
	return f.keepOpen.Snapshot(ctx, qs...)
}

func TestWatchSaysThatTheDatastoreIsLost(t *testing.T) {
	f := &flaky{keepOpen: keepOpen{memory.New()}, broken: false}
	f.set(true)
	out, end := startWatch(t, f, "get", "ippools")
	out.waitFor(t, 1)
	f.set(false)
	text := out.waitFor(t, 3)
	if !strings.Contains(text, "Warning: the datastore is lost: ") || !strings.Contains(text, "Warning: the datastore is back\n") {
		t.Error(text)
	}
	end()
}

// closedPipe is an output that nobody reads.
type closedPipe struct{}

func (closedPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestWatchEndsWithItsReader(t *testing.T) {
	var errs strings.Builder
	code := ctl.Execute(context.Background(), ctl.Options{
		Stdout: closedPipe{}, Stderr: &errs, Environ: func(string) string { return "" },
		OpenStore: func(context.Context, config.Config, *slog.Logger) (datastore.Store, error) {
			return keepOpen{memory.New()}, nil
		},
	}, []string{"get", "profiles", "-o", "json", "-w"})
	if code != 1 || !strings.Contains(errs.String(), "closed pipe") {
		t.Errorf("exit %d: %s", code, errs.String())
	}
	code, _, stderr := execute(t, nil, "get", "ippools", "-w", "-o", "go-template={{.}}")
	if code != 2 || !strings.Contains(stderr, "template") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
