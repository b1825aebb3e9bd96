package ctl_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/ctl"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
	"github.com/manekinet/maneki/datastore/etcd"
	"github.com/manekinet/maneki/datastore/memory"
	"github.com/manekinet/maneki/ipam"
)

// TestScripts runs the transcripts below testdata/script on a store in memory.
// They have these commands:
//
//	maneki ARGS       and calicoctl, kubectl-calico: the program; "!" in front
//	                  means that it must fail
//	code N PROG ARGS  the program must end with exit code N
//	store SAVE|SAME   remember the stored bytes; fail if they are others now
//	put KIND NAME F   store the file's bytes under a key, as another program does
//	newstore          go on with an empty store
//	assign HOST POD N POOL  give a pod on a host N addresses
//
// $STDIN names the file to read standard input from. status.json, if it is
// there, is what the agent answers.
func TestScripts(t *testing.T) {
	runScripts(t, func() fullStore { return memory.New() })
}

// TestScriptsOnEtcd runs the same transcripts, each on an etcd of its own, with
// the same outcome to the letter.
func TestScriptsOnEtcd(t *testing.T) {
	runScripts(t, func() fullStore {
		server := datastoretest.StartEtcd(t)
		store, err := etcd.New(context.Background(), etcd.Config{Endpoints: []string{server.Endpoint()}, RequestTimeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		return store
	})
}

func runScripts(t *testing.T, fresh func() fullStore) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       os.Getenv("UPDATE") != "",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Values[worldKey{}] = &world{store: fresh(), fresh: fresh}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"maneki":         program("maneki"),
			"calicoctl":      program("calicoctl"),
			"kubectl-calico": program("kubectl-calico"),
			"code":           exitCode,
			"store":          compareStore,
			"put":            putRaw,
			"assign":         assign,
			"newstore":       newStore,
		},
	})
}

type worldKey struct{}

// world is what outlives one command of a script.
type world struct {
	store fullStore
	fresh func() fullStore
	saved string
}

// fullStore is a store that can do all that etcd can.
type fullStore interface {
	datastore.Store
	datastore.Snapshotter
	datastore.Transactor
}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

func program(name string) func(ts *testscript.TestScript, neg bool, args []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		code := run(ts, name, args)
		if neg != (code != 0) {
			ts.Fatalf("%s ended with %d", name, code)
		}
	}
}

func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N PROG ARGS")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if got := run(ts, args[1], args[2:]); got != want {
		ts.Fatalf("%s ended with %d, want %d", args[1], got, want)
	}
}

var (
	uid     = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	guid    = regexp.MustCompile(`[0-9a-f]{32}`)
	created = regexp.MustCompile(`(creationTimestamp"?: "?)[-0-9T:Z.]+`)
)

// normal replaces what differs in every run.
func normal(text []byte) []byte {
	text = uid.ReplaceAll(text, []byte("UID"))
	text = guid.ReplaceAll(text, []byte("GUID"))
	return created.ReplaceAll(text, []byte("${1}2026-11-21T00:00:00Z"))
}

func run(ts *testscript.TestScript, name string, args []string) int {
	var stdout, stderr bytes.Buffer
	var stdin io.Reader = strings.NewReader("")
	if f := ts.Getenv("STDIN"); f != "" {
		stdin = strings.NewReader(ts.ReadFile(f))
	}
	for i, arg := range args {
		if i > 0 && args[i-1] == "-f" && arg != "-" {
			// The script's directory is not the process's; messages are to
			// have the short name all the same.
			args[i] = ts.MkAbs(arg)
		}
	}
	code := ctl.Execute(context.Background(), ctl.Options{
		Name: ctl.ProgramName("/usr/bin/" + name), Version: "v0.1.0", GitRevision: "abc1234",
		Stdin: stdin, Stdout: &stdout, Stderr: &stderr,
		Environ: ts.Getenv,
		OpenStore: func(_ context.Context, c config.Config, _ *slog.Logger) (datastore.Store, error) {
			return openStore(ts, c)
		},
		Status: func(context.Context, string) (*agentapi.Status, error) { return readStatus(ts) },
		Now:    func() time.Time { return time.Date(2026, 11, 21, 9, 0, 0, 0, time.Local) },
	}, args)
	short := []byte(ts.MkAbs("x")[:len(ts.MkAbs("x"))-1])
	ts.Stdout().Write(bytes.ReplaceAll(normal(stdout.Bytes()), short, nil))
	ts.Stderr().Write(bytes.ReplaceAll(normal(stderr.Bytes()), short, nil))
	return code
}

// openStore is the world's store, unless the script asks for a failure with
// $STORE.
func openStore(ts *testscript.TestScript, c config.Config) (datastore.Store, error) {
	switch ts.Getenv("STORE") {
	case "":
		return keepOpen{worldOf(ts).store}, nil
	case "unavailable":
		return failing{worldOf(ts).store, fmt.Errorf("%w: etcd at %s: connection refused", datastore.ErrUnavailable, config.DefaultEndpoint)}, nil
	case "denied":
		return failing{worldOf(ts).store, fmt.Errorf("%w: etcd at %s: the server's certificate is not signed by ca.pem", datastore.ErrDenied, c.EtcdEndpoints[0])}, nil
	case "show":
		return nil, errors.New(c.String())
	}
	return nil, errors.New("STORE has no meaning")
}

// keepOpen is a store that the command may close and the next one use.
type keepOpen struct{ fullStore }

func (keepOpen) Close() error { return nil }

// failing is a store that cannot be asked.
type failing struct {
	fullStore
	err error
}

func (f failing) Get(context.Context, datastore.Key) (datastore.Entry, error) {
	return datastore.Entry{}, f.err
}

func (failing) Close() error { return nil }

func readStatus(ts *testscript.TestScript) (*agentapi.Status, error) {
	text, err := os.ReadFile(ts.MkAbs("status.json"))
	switch {
	case ts.Getenv("AGENT") == "forbidden":
		return nil, fmt.Errorf("%w (socket x: %w)", agentapi.ErrNotRunning, os.ErrPermission)
	case err != nil:
		return nil, fmt.Errorf("%w (no such socket)", agentapi.ErrNotRunning)
	}
	var s agentapi.Status
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

func compareStore(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: store SAVE|SAME")
	}
	w := worldOf(ts)
	now := dump(ts, w.store)
	switch {
	case args[0] == "SAVE":
		w.saved = now
	case now != w.saved:
		ts.Fatalf("the store was changed from\n%s\nto\n%s", w.saved, now)
	}
}

func dump(ts *testscript.TestScript, s datastore.Store) string {
	var b strings.Builder
	kinds := []string{datastore.KindIPAMBlock, datastore.KindBlockAffinity, datastore.KindIPAMHandle, datastore.KindIPAMConfig}
	for _, k := range api.Kinds() {
		if k.Name != "ClusterInformation" { // written by the first writing verb
			kinds = append(kinds, k.Name)
		}
	}
	for _, kind := range kinds {
		entries, _, err := s.List(context.Background(), datastore.Query{Kind: kind})
		ts.Check(err)
		for _, e := range entries {
			fmt.Fprintf(&b, "%s@%s %s\n", e.Key, e.Rev, e.Value)
		}
	}
	return b.String()
}

func putRaw(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: put KIND NAME FILE")
	}
	key := datastore.Key{Kind: args[0], Name: args[1]}
	if owner, name, ok := strings.Cut(args[1], "!"); ok {
		key.Namespace, key.Name = owner, name
	}
	_, err := worldOf(ts).store.Put(context.Background(), key, []byte(strings.TrimSpace(ts.ReadFile(args[2]))), datastore.Always())
	ts.Check(err)
}

func newStore(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: newstore")
	}
	w := worldOf(ts)
	w.store = w.fresh()
}

func assign(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: assign HOST POD N POOL")
	}
	host, pod := args[0], args[1]
	n, err := strconv.Atoi(args[2])
	ts.Check(err)
	r := ipam.Request{Host: host, Handle: "k8s-pod-network." + pod, Attrs: map[string]string{"node": host, "pod": pod, "namespace": "default"}}
	if strings.Contains(args[3], "6") {
		r.Num6, r.Pools6 = n, []string{args[3]}
	} else {
		r.Num4, r.Pools4 = n, []string{args[3]}
	}
	_, err = ipam.New(worldOf(ts).store, ipam.Options{}).AutoAssign(context.Background(), r)
	ts.Check(err)
}
