package ctl_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/ctl"
	"github.com/manekinet/maneki/ctl/probe"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
	"github.com/manekinet/maneki/exit"
)

func files(t *testing.T, path string) map[string]string {
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
	found := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		found[strings.TrimPrefix(h.Name, "diagnostics/")] = string(text)
	}
}

// system runs commands of this machine on a store in memory.
type system struct {
	store   datastore.Store
	inspect func(string) (*ctl.System, error)
}

func (s system) run(input string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = ctl.Execute(context.Background(), ctl.Options{
		Stdin: strings.NewReader(input), Stdout: &out, Stderr: &errs, Environ: func(string) string { return "" },
		OpenStore: func(context.Context, config.Config, *slog.Logger) (datastore.Store, error) { return s.store, nil },
		Status:    func(context.Context, string) (*agentapi.Status, error) { return &agentapi.Status{Node: "n1"}, nil },
		Inspect:   s.inspect,
		Now:       func() time.Time { return time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC) },
	}, args)
	return code, out.String(), errs.String()
}

func TestNodeDiags(t *testing.T) {
	logs := t.TempDir()
	if err := os.WriteFile(filepath.Join(logs, "felix.log"), []byte("a line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	code, stdout, stderr := system{}.run("", "node", "diags", "--log-dir", logs)
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	saved := regexp.MustCompile(`(?m)^Diags saved to (.*/diags-20261121_090000.tar.gz)$`).FindStringSubmatch(stdout)
	if saved == nil || !strings.HasPrefix(stdout, "Collecting diagnostics\nUsing temp dir: ") || !strings.Contains(stdout, "\nDumping routes (IPv4)\n") || !strings.Contains(stdout, "\nCopying Calico logs\n") {
		t.Fatal(stdout)
	}
	found := files(t, saved[1])
	for name, want := range map[string]string{
		"logs/felix.log": "a line\n", "status.json": `"node": "n1"`, "ipv4_route": "table local", "checksystem": "Checking kernel features...", "ip_forward": "\n", "date": "2026-11-21T09:00:00Z",
	} {
		if !strings.Contains(found[name], want) {
			t.Errorf("%s holds %q", name, found[name])
		}
	}
	if info, err := os.Stat(saved[1]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if code, stdout, _ := (system{}).run("", "node", "diags", "--log-dir", "/nonexistent"); code != 0 || !strings.Contains(stdout, "Error copying log files: ") {
		t.Errorf("exit %d: %s", code, stdout)
	}
}

func TestClusterDiags(t *testing.T) {
	s := system{store: keepOpen{memory.New()}}
	const input = `
{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: n1}}
---
{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: n2}}
---
{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: p1}, spec: {cidr: 10.65.0.0/16}}
---
{apiVersion: projectcalico.org/v3, kind: WorkloadEndpoint, metadata: {name: n1-k8s-a-eth0}, spec: {orchestrator: k8s, node: n1, pod: a, endpoint: eth0, ipNetworks: [10.65.0.1/32], interfaceName: cali1}}
`
	if code, _, stderr := s.run(input, "apply", "-f", "-"); code != 0 {
		t.Fatal(stderr)
	}
	dir := t.TempDir()
	code, stdout, stderr := s.run("", "cluster", "diags", "--output-dir", dir, "--focus-nodes=n1", "--since=5m", "--max-logs=0", "--log-dir", dir, "--skip-temp-dir-cleanup")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	path := filepath.Join(dir, "calico-diagnostics-20261121_090000.tar.gz")
	if !strings.HasPrefix(stdout, "==== Begin collecting diagnostics. ====\n") || !strings.HasSuffix(stdout, "\nDiags saved to "+path+"\n") {
		t.Error(stdout)
	}
	found := files(t, path)
	for name, want := range map[string]string{
		"resources/ippools.yaml": "cidr: 10.65.0.0/16", "nodes/n1.yaml": "n1-k8s-a-eth0", "ipam/check": "10.65.0.1 in use by Workload(default/n1-k8s-a-eth0) and in active IPAM pool",
		"ipam/data.json": "{", "host/date": "2026", "resources/clusterinformations.yaml": "clusterGUID",
	} {
		if !strings.Contains(found[name], want) {
			t.Errorf("%s holds %q", name, found[name])
		}
	}
	if _, there := found["nodes/n2.yaml"]; there {
		t.Error("n2 is there, but the focus was n1")
	}
	for _, tt := range []struct {
		code exit.Code
		args []string
	}{
		{exit.NotFound, []string{"--focus-nodes=n9"}}, {exit.Usage, []string{"--max-parallelism=0"}}, {exit.Usage, []string{"--since=x"}}, {exit.Input, []string{"--output-dir=/nonexistent"}},
	} {
		if code, _, stderr := s.run("", append([]string{"cluster", "diags"}, tt.args...)...); code != int(tt.code) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit %d: %s", tt.args, code, stderr)
		}
	}
}

func TestChecksystem(t *testing.T) {
	code, stdout, stderr := system{}.run("", "node", "checksystem")
	if code != 0 || !strings.HasSuffix(stdout, "System meets minimum system requirements to run Calico!\n") {
		t.Errorf("exit %d on this machine: %s%s", code, stdout, stderr)
	}
	code, _, stderr = system{}.run("", "node", "checksystem", "-f", "/nonexistent")
	if code != int(exit.Input) || !strings.Contains(stderr, "/nonexistent") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	bad := func(string) (*ctl.System, error) {
		return &ctl.System{
			Release: "2.6.18-el5", Modules: map[string]bool{"ip_tables": true},
			Features: []probe.Result{
				{Feature: "veth", Needed: true, For: "a workload's interface", Err: unix.EOPNOTSUPP},
				{Feature: "nftables set", For: "policy", Replaces: []string{"ip_set"}},
				{Feature: "ipip", For: "IPIP pools", Instead: "BPF", Err: unix.EOPNOTSUPP},
			},
			Leftovers: []probe.Leftover{{Of: "Calico", What: "interface tunl0"}},
			Filters:   []string{"ip filter FORWARD has rules that drop"},
		}, nil
	}
	code, stdout, stderr = system{inspect: bad}.run("", "node", "checksystem")
	if code != 1 || stderr != "system doesn't meet one or more minimum systems requirements to run Calico; use a kernel with veth\n" {
		t.Errorf("exit %d: %s", code, stderr)
	}
	for _, want := range []string{
		"Checking kernel version...\n\t\t2.6.18-el5          \t\t\t\t\tFAIL\nMinimum kernel version to run Calico is 2.6.24. Detected kernel version: 2.6.18-el5\n",
		"WARNING: Unable to detect the ip_set module as Loaded/Builtin module or lsmod; nftables set works in its place\n\t\tip_set              \t\t\t\t\tFAIL\n",
		"\t\tip_tables           \t\t\t\t\tOK\n", "; it is optional\n", "; it is not used\n",
		"WARNING: veth (for a workload's interface): operation not supported; it is required\n\t\tveth                \t\t\t\t\tFAIL\n",
		"WARNING: ipip (for IPIP pools): operation not supported; instead: BPF\n",
		"Packet filters of others that forwarded packets pass besides ours:\n\t\tip filter FORWARD has rules that drop\n",
		"Found on this host (nothing was changed; --clean-leftovers removes what has no remark):\n\t\tCalico   interface tunl0\n",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	denied := func(string) (*ctl.System, error) { return nil, unix.EPERM }
	if code, _, stderr := (system{inspect: denied}).run("", "node", "checksystem"); code != int(exit.Denied) || stderr != "Need super user privileges: Operation not permitted; run the command as root\n" {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
