package ctl_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/ctl"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
	"github.com/manekinet/maneki/exit"
)

// meddler is a store on which somebody else writes a pool just before some of
// our writes, or which breaks.
type meddler struct {
	*memory.Store
	meddle  atomic.Int32 // writes that find the pool changed
	breaks  atomic.Int32 // the write with this number, and those after it, fail
	written atomic.Int32
}

func (m *meddler) Close() error { return nil }

func (m *meddler) Put(ctx context.Context, key datastore.Key, value []byte, pre datastore.Precondition) (datastore.Revision, error) {
	if key.Kind == "IPPool" {
		if n := m.breaks.Load(); n > 0 && m.written.Add(1) >= n {
			return "", fmt.Errorf("put %s: %w", key, datastore.ErrUnavailable)
		}
		if m.meddle.Add(-1) >= 0 {
			e, err := m.Get(ctx, key)
			if err != nil {
				return "", err
			}
			changed := bytes.Replace(e.Value, []byte(`"spec"`), []byte(`"spec" `), 1)
			if _, err := m.Store.Put(ctx, key, changed, datastore.Always()); err != nil {
				return "", err
			}
		}
	}
	return m.Store.Put(ctx, key, value, pre)
}

// run is one command on the store.
func (m *meddler) run(input string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = ctl.Execute(context.Background(), ctl.Options{
		Stdin: strings.NewReader(input), Stdout: &out, Stderr: &errs,
		Environ:   func(string) string { return "" },
		OpenStore: func(context.Context, config.Config, *slog.Logger) (datastore.Store, error) { return m, nil },
	}, args)
	return code, out.String(), errs.String()
}

func pool(name, cidr, mode string) string {
	return fmt.Sprintf("---\napiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: %s}\nspec: {cidr: %s, ipipMode: %s}\n", name, cidr, mode)
}

func TestApplyAmongOtherWriters(t *testing.T) {
	m := &meddler{Store: memory.New()}
	if code, _, stderr := m.run(pool("p1", "10.0.0.0/16", "Never"), "create", "-f", "-"); code != 0 {
		t.Fatal(stderr)
	}
	for _, verb := range []string{"apply", "replace"} {
		m.meddle.Store(5)
		mode := map[string]string{"apply": "Always", "replace": "CrossSubnet"}[verb]
		if code, _, stderr := m.run(pool("p1", "10.0.0.0/16", mode), verb, "-f", "-"); code != 0 {
			t.Fatalf("%s: exit %d: %s", verb, code, stderr)
		}
		if m.meddle.Load() >= 0 {
			t.Fatalf("%s: nobody meddled", verb)
		}
		p, err := datastore.For[api.IPPool](m).Get(context.Background(), "", "p1")
		if err != nil || string(p.Spec.IPIPMode) != mode {
			t.Errorf("%s: stored is %v, %v, want mode %s", verb, p, err, mode)
		}
	}
	// A writer who never stops is given up on, with a word of what to do.
	m.meddle.Store(1 << 20)
	code, _, stderr := m.run(pool("p1", "10.0.0.0/16", "Never"), "apply", "-f", "-")
	if code != int(exit.Conflict) || !strings.Contains(stderr, "update conflict: IPPool(p1)") || !strings.Contains(stderr, "; get it again") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// TestDatastoreBreaksInTheMiddle stops at the first resource that cannot be
// written and says how far it came.
func TestDatastoreBreaksInTheMiddle(t *testing.T) {
	m := &meddler{Store: memory.New()}
	m.breaks.Store(2)
	input := pool("p1", "10.1.0.0/16", "Never") + pool("p2", "10.2.0.0/16", "Never") + pool("p3", "10.3.0.0/16", "Never")
	code, stdout, stderr := m.run(input, "apply", "-f", "-")
	if code != int(exit.Unreachable) {
		t.Errorf("exit %d", code)
	}
	if want := "Partial success: applied the first 1 out of 3 'IPPool' resources:\n"; stdout != want {
		t.Errorf("stdout %q, want %q", stdout, want)
	}
	if strings.Count(stderr, "datastore unavailable") != 1 || strings.Count(stderr, "\n") != 1 {
		t.Errorf("stderr %q", stderr)
	}
	if got := m.written.Load(); got != 2 {
		t.Errorf("%d writes were tried, want 2", got)
	}
}

// FuzzApply gives the command line any text: it must not panic, and what it
// refuses as bad input must leave the store as it was.
func FuzzApply(f *testing.F) {
	f.Add(pool("p1", "10.0.0.0/16", "Never") + pool("p2", "10.0.0.0/17", "Never"))
	f.Add("kind: IPPoolList\napiVersion: projectcalico.org/v3\nitems: [{metadata: {name: a}, spec: {cidr: 10.1.0.0/24}}]")
	f.Add(`[{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"n"}}]`)
	f.Fuzz(func(t *testing.T, input string) {
		m := &meddler{Store: memory.New()}
		code, _, stderr := m.run(input, "apply", "-f", "-")
		if code != 0 && stderr == "" {
			t.Errorf("exit %d without a word", code)
		}
		if code != int(exit.Input) || strings.Contains(stderr, "hit error") {
			return
		}
		for _, kind := range api.Kinds() {
			if kind.Name == "ClusterInformation" {
				continue
			}
			if entries, _, err := m.List(context.Background(), datastore.Query{Kind: kind.Name}); err != nil || len(entries) > 0 {
				t.Errorf("refused with %q, but stored: %v, %v", stderr, entries, err)
			}
		}
	})
}
