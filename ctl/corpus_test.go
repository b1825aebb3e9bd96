package ctl_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/ctl"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
	"github.com/manekinet/maneki/exit"
)

// applier runs commands on one store and says whether it was changed.
type applier struct {
	t     *testing.T
	store *memory.Store
	dir   string
}

func newApplier(t *testing.T) *applier {
	return &applier{t: t, store: memory.New(), dir: t.TempDir()}
}

func (a *applier) write(input []byte) {
	a.t.Helper()
	if err := os.WriteFile(filepath.Join(a.dir, "in.yaml"), input, 0o600); err != nil {
		a.t.Fatal(err)
	}
}

// run gives the input to a command as a file called in.yaml.
func (a *applier) run(input []byte, args ...string) (code int, stdout, stderr string) {
	a.t.Helper()
	path := filepath.Join(a.dir, "in.yaml")
	if input != nil {
		a.write(input)
	}
	var out, errs bytes.Buffer
	code = ctl.Execute(context.Background(), ctl.Options{
		Stdout: &out, Stderr: &errs, Environ: func(string) string { return "" },
		OpenStore: func(context.Context, config.Config, *slog.Logger) (datastore.Store, error) {
			return keepOpen{a.store}, nil
		},
	}, append(args, "-f", path))
	short := func(b bytes.Buffer) string { return strings.ReplaceAll(b.String(), a.dir+"/", "") }
	return code, short(out), short(errs)
}

// contents are all stored keys with their revisions, those that the first
// writing verb makes left out.
func (a *applier) contents() string {
	var b strings.Builder
	for _, k := range api.Kinds() {
		if k.Name == "ClusterInformation" || k.Name == "Tier" {
			continue
		}
		es, _, err := a.store.List(context.Background(), datastore.Query{Kind: k.Name})
		if err != nil {
			a.t.Fatal(err)
		}
		for _, e := range es {
			fmt.Fprintln(&b, e.Key, e.Rev)
		}
	}
	return b.String()
}

const goodPool = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: good}\nspec: {cidr: 172.31.0.0/16}\n"

// Nothing of api's corpus is written by any verb; each is one error of class
// Input, also when a good resource stands in front of it.
func TestCorpusWritesNothing(t *testing.T) {
	corpus, err := txtar.ParseFile("../api/testdata/bad.txtar")
	if err != nil {
		t.Fatal(err)
	}
	if len(corpus.Files) < 2*150 {
		t.Fatalf("the corpus has %d cases", len(corpus.Files)/2)
	}
	a := newApplier(t)
	if code, _, stderr := a.run([]byte(goodPool), "apply"); code != 0 {
		t.Fatal(stderr)
	}
	before := a.contents()
	for i := 0; i+1 < len(corpus.Files); i += 2 {
		in, want := corpus.Files[i], corpus.Files[i+1]
		if in.Name == "policy without namespace" {
			continue // -n or its default names one
		}
		first := strings.TrimSpace(strings.SplitN(string(want.Data), "\n", 2)[0])
		for _, verb := range []string{"apply", "create", "replace", "validate"} {
			code, stdout, stderr := a.run(in.Data, verb)
			if code != int(exit.Input) || stdout != "" {
				t.Errorf("%s: %s ended with %d, %q %q", in.Name, verb, code, stdout, stderr)
			}
			if lines := strings.Count(stderr, "\n"); lines != max(1, strings.Count(string(want.Data), "\n")) {
				t.Errorf("%s: %s printed %d lines: %s", in.Name, verb, lines, stderr)
			}
			if say, ok := ownWords[in.Name]; ok {
				first = say
			}
			if !sameReason(stderr, first) {
				t.Errorf("%s: %s says\n%swant it to hold\n%s", in.Name, verb, stderr, first)
			}
		}
		if !strings.HasPrefix(string(in.Data), "{") {
			if code, _, stderr := a.run([]byte(goodPool+"---\n"+string(in.Data)), "replace"); code != int(exit.Input) {
				t.Errorf("%s after a good one: replace ended with %d, %q", in.Name, code, stderr)
			}
		}
		if after := a.contents(); after != before {
			t.Fatalf("%s has changed the store from\n%s\nto\n%s", in.Name, before, after)
		}
	}
}

// ownWords are calicoctl's, which come before package api's.
var ownWords = map[string]string{
	"second document broken":          "in.yaml:5: invalid YAML: did not find expected node content; nothing was changed",
	"name missing":                    "error with field Metadata.Name = '' (name is missing)",
	"namespace of a global kind":      "namespace should not be specified for a non-namespaced resource. Node is not a namespaced resource",
	"globalnetworkset in a namespace": "GlobalNetworkSet is not a namespaced resource",
	"generateName":                    "error with field Metadata.GenerateName = 'n-' (generated names are not supported, set name)",
	"cluster information":             "is not supported on ClusterInformation: resource is readonly",
}

// sameReason: the command may know the line of what package api knows the text of.
func sameReason(stderr, want string) bool {
	if strings.Contains(stderr, want) {
		return true
	}
	_, reason, ok := strings.Cut(want, "line 1: ")
	return ok && strings.Contains(stderr, reason[strings.LastIndex(reason, ": ")+1:])
}

// Rules between objects: what is there, what is tried, and what is said. The
// first file of each case is applied before; the second is refused.
func TestRulesBetweenObjects(t *testing.T) {
	cases, err := txtar.ParseFile("testdata/between.txtar")
	if err != nil {
		t.Fatal(err)
	}
	update := os.Getenv("UPDATE") != ""
	for i := 0; i+2 < len(cases.Files); i += 3 {
		there, tried, want := cases.Files[i], cases.Files[i+1], &cases.Files[i+2]
		name, verb, _ := strings.Cut(tried.Name, ": ")
		a := newApplier(t)
		if len(there.Data) > 0 {
			if code, _, stderr := a.run(there.Data, "apply"); code != 0 {
				t.Fatalf("%s: %s", there.Name, stderr)
			}
		}
		before := a.contents()
		code, stdout, stderr := a.run(tried.Data, strings.Fields(verb)...)
		got := fmt.Sprintf("%d %s", code, stderr)
		if update {
			want.Data = []byte(got)
		}
		if got != string(want.Data) || stdout != "" || code == 0 {
			t.Errorf("%s: %s\n got %q %q\nwant %q", name, verb, stdout, got, want.Data)
		}
		if strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: not one line: %s", name, stderr)
		}
		if after := a.contents(); after != before {
			t.Errorf("%s: the store was changed from\n%s\nto\n%s", name, before, after)
		}
	}
	if update {
		if err := os.WriteFile("testdata/between.txtar", txtar.Format(cases), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// Input made to hurt is refused in bounded time and memory.
func TestHostileInput(t *testing.T) {
	bomb := "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'j'; c++ {
		p := string(c - 1)
		bomb += fmt.Sprintf("%c: &%c [*%s]\n", c, c, strings.Join(strings.Split(strings.Repeat(p, 10), ""), ",*"))
	}
	head := "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata:\n  name: x\n"
	for name, in := range map[string]string{
		"bomb of aliases":        bomb,
		"bomb in labels":         head + "  labels: &l {a: b}\nspec: {nets: []}\n" + bomb,
		"label of 8 MiB":         head + "  labels: {a: " + strings.Repeat("x", 8<<20) + "}\n",
		"label key of 8 MiB":     head + "  labels: {" + strings.Repeat("x", 8<<20) + ": a}\n",
		"half a million labels":  head + "  labels:\n" + manyLabels(500_000),
		"deep nesting":           strings.Repeat("[", 1<<20),
		"deep nesting in JSON":   `{"kind":` + strings.Repeat("[", 1<<20),
		"deep mappings":          deepMappings(20_000),
		"64 MiB of one word":     strings.Repeat("x", 64<<20),
		"a million documents":    strings.Repeat("---\n", 1_000_000) + "kind: x\n",
		"selector of 1 MiB":      "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: x}\nspec: {selector: \"" + strings.Repeat("(", 1<<20) + "\"}\n",
		"selector of many terms": "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: x}\nspec: {selector: \"" + strings.Repeat("has(a) || ", 1<<16) + "\"}\n",
	} {
		t.Run(name, func(t *testing.T) {
			a := newApplier(t)
			a.write([]byte(in))
			peak, stop := watchMemory()
			begun := time.Now()
			code, _, stderr := a.run(nil, "apply")
			took := time.Since(begun)
			stop()
			if code == 0 {
				t.Errorf("accepted: %.200s", stderr)
			}
			if len(stderr) > 4096 || strings.Count(stderr, "\n") > 20 {
				t.Errorf("the error has %d bytes: %.200s", len(stderr), stderr)
			}
			if took > 20*time.Second || peak() > 256<<20 {
				t.Errorf("it took %s and %d MiB", took, peak()>>20)
			}
			if a.contents() != "" {
				t.Error("something was written")
			}
			t.Logf("%d in %s, %d MiB: %.150s", code, took.Round(time.Millisecond), peak()>>20, stderr)
		})
	}
}

func manyLabels(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "    l%d: v\n", i)
	}
	return b.String()
}

func deepMappings(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

// watchMemory samples how large the live heap becomes.
func watchMemory() (peak func() uint64, stop func()) {
	runtime.GC()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	base, highest := sample[0].Value.Uint64(), uint64(0)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			metrics.Read(sample)
			if now := sample[0].Value.Uint64(); now > base {
				highest = max(highest, now-base)
			}
			select {
			case <-done:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	return func() uint64 { return highest }, func() { close(done); <-ended }
}
