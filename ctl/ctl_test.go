package ctl_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/ctl"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/resource"
)

func TestMain(m *testing.M) {
	// Times in the transcripts are local ones.
	time.Local = time.UTC
	goleak.VerifyTestMain(m)
}

func TestProgramName(t *testing.T) {
	tests := map[string]string{
		"maneki": "maneki", "/usr/bin/calicoctl": "calicoctl", "./kubectl-calico": "kubectl calico",
		"/opt/kubectl-maneki": "kubectl maneki", "anything": "maneki", "": "maneki",
	}
	for argv0, want := range tests {
		if got := ctl.ProgramName(argv0); got != want {
			t.Errorf("ProgramName(%q) = %q, want %q", argv0, got, want)
		}
	}
}

func TestExitCode(t *testing.T) {
	var fields api.FieldErrors
	fields.Add("f", "v", "r")
	tests := []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{exit.New(exit.Usage, "", errors.New("x")), 2},
		{fmt.Errorf("x: %w", fields.Err()), 3},
		{&resource.Error{Class: resource.ErrUnsupported, Operation: "delete", Kind: "Tier", Name: "default"}, 3},
		{fmt.Errorf("x: %w", datastore.ErrNotFound), 4},
		{fmt.Errorf("x: %w", datastore.ErrExists), 5},
		{fmt.Errorf("x: %w", datastore.ErrConflict), 5},
		{fmt.Errorf("x: %w", datastore.ErrUnavailable), 6},
		{fmt.Errorf("x: %w", datastore.ErrDenied), 7},
		{fmt.Errorf("x: %w", os.ErrPermission), 7},
		{fmt.Errorf("x: %w", agentapi.ErrNotRunning), 8},
		{exit.New(exit.Busy, "", errors.New("x")), 9},
	}
	for _, tt := range tests {
		if got := ctl.ExitCode(tt.err); got != tt.want {
			t.Errorf("ExitCode(%v) = %d, want %d", tt.err, got, tt.want)
		}
	}
}

// execute runs the real program, without anything put in the world's place.
func execute(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = ctl.Execute(context.Background(), ctl.Options{
		Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs,
		Environ: func(name string) string { return env[name] },
	}, args)
	return code, out.String(), errs.String()
}

func TestUnreachableDatastore(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	l.Close() // nobody listens there now
	code, _, stderr := execute(t, map[string]string{"ETCD_ENDPOINTS": url}, "get", "ippools")
	if code != int(exit.Unreachable) || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, url) ||
		!strings.Contains(stderr, "; check that it runs and that the environment names the right endpoints\n") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

func TestWrongCertificate(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(nil)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	// The CA is right, but the certificate is for 127.0.0.1 and example.com only.
	url := strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
	code, _, stderr := execute(t, map[string]string{"ETCD_ENDPOINTS": url, "ETCD_CA_CERT_FILE": ca}, "get", "ippools")
	if code != int(exit.Denied) || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "certificate") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	code, _, stderr = execute(t, map[string]string{"ETCD_ENDPOINTS": url, "ETCD_CA_CERT_FILE": ca + ".none"}, "get", "ippools")
	if code != int(exit.Input) || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "ca.pem.none: no such file") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

func TestKubernetesIsNotServed(t *testing.T) {
	code, _, stderr := execute(t, map[string]string{"DATASTORE_TYPE": "kubernetes"}, "get", "ippools")
	if code != int(exit.General) || !strings.Contains(stderr, "not served by this build yet") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// TestAgentSocket asks a path where no agent listens.
func TestAgentSocket(t *testing.T) {
	code, stdout, stderr := execute(t, nil, "node", "status", "--socket", filepath.Join(t.TempDir(), "none.sock"))
	if code != int(exit.NotRunning) || stdout != "" || !strings.HasPrefix(stderr, "Calico process is not running.") {
		t.Errorf("exit %d: %q %q", code, stdout, stderr)
	}
}

// TestEveryCommandTakesTheGlobalFlags runs the help of the whole tree with them.
func TestEveryCommandTakesTheGlobalFlags(t *testing.T) {
	extra := &cobra.Command{Use: "lab", RunE: func(*cobra.Command, []string) error { return nil }}
	run := &cobra.Command{Use: "run", RunE: func(*cobra.Command, []string) error { return nil }}
	root := ctl.Root(ctl.Options{Stdout: io.Discard, Stderr: io.Discard, Commands: []*cobra.Command{extra}, NodeCommands: []*cobra.Command{run}})
	var paths [][]string
	var walk func(c *cobra.Command, path []string)
	walk = func(c *cobra.Command, path []string) {
		paths = append(paths, path)
		for _, sub := range c.Commands() {
			walk(sub, append(path[:len(path):len(path)], sub.Name()))
		}
	}
	walk(root, nil)
	seen := false
	for _, path := range paths {
		seen = seen || strings.Join(path, " ") == "node run"
		var out bytes.Buffer
		code := ctl.Execute(context.Background(), ctl.Options{
			Name: "kubectl calico", Stdout: &out, Stderr: &out, Commands: []*cobra.Command{{Use: "lab", Run: func(*cobra.Command, []string) {}}},
			NodeCommands: []*cobra.Command{{Use: "run", Run: func(*cobra.Command, []string) {}}},
		}, append(path[:len(path):len(path)], "--allow-version-mismatch", "--context=x", "-l", "debug", "-c", "/none", "--help"))
		if code != 0 {
			t.Errorf("%v: exit %d: %s", path, code, &out)
		}
		if !strings.Contains(out.String(), "kubectl calico") && len(path) > 0 {
			t.Errorf("%v: the usage does not say kubectl calico:\n%s", path, &out)
		}
	}
	if !seen {
		t.Error("node run, handed in, is not in the tree")
	}
}
