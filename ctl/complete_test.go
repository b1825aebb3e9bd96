package ctl_test

import (
	"context"
	"log/slog"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/ctl"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
)

func TestCompletion(t *testing.T) {
	s := system{store: keepOpen{memory.New()}}
	const input = `
{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: rack1-a}}
---
{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: rack2-b}}
---
{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: p1}, spec: {cidr: 10.65.0.0/16}}
---
{apiVersion: projectcalico.org/v3, kind: WorkloadEndpoint, metadata: {name: n1-k8s-a-eth0, namespace: shop}, spec: {orchestrator: k8s, node: n1, pod: a, endpoint: eth0, ipNetworks: [10.65.0.1/32], interfaceName: cali1}}
`
	if code, _, stderr := s.run(input, "apply", "-f", "-"); code != 0 {
		t.Fatal(stderr)
	}
	tests := []struct {
		words string // "_" is an empty word
		want  []string
	}{
		{"get ipp", []string{"ipp\tIPPool", "ippool\tIPPool", "ippools\tIPPool", "ipps\tIPPool"}},
		{"get nodes _", []string{"rack1-a", "rack2-b"}},
		{"get no rack2", []string{"rack2-b"}},
		{"get nodes rack1-a _", []string{"rack2-b"}},
		{"get profiles _", []string{"projectcalico-default-allow"}},
		{"get wep _", nil},
		{"get wep -n shop _", []string{"n1-k8s-a-eth0"}},
		{"get wep -n _", []string{"default", "shop"}},
		{"get nodes -o j", []string{"json"}},
		{"get bogus _", nil},
		{"delete ippools _", []string{"p1"}},
		{"patch ippools p1 _", nil},
		{"patch ippools p1 -t m", []string{"merge"}},
		{"label nodes rack1", []string{"rack1-a"}},
		{"ipam split 2 --name _", []string{"p1"}},
		{"cluster diags --focus-nodes rack1", []string{"rack1-a"}},
		{"get -l d", []string{"debug"}},
		{"datastore mig", []string{"migrate\tMove the contents to another datastore", "migrate-policy-names\tStore policies under their own names"}},
	}
	for _, tt := range tests {
		args := strings.Fields(tt.words)
		if last := len(args) - 1; args[last] == "_" {
			args[last] = ""
		}
		code, stdout, _ := s.run("", append([]string{"__complete"}, args...)...)
		got, directive, _ := strings.Cut(stdout, ":")
		want := strings.Join(tt.want, "\n")
		if want != "" {
			want += "\n"
		}
		if code != 0 || got != want || directive != "4\n" {
			t.Errorf("%s: exit %d, got %q %q, want %q", tt.words, code, got, directive, want)
		}
	}
}

// TestCompletionDoesNotWait: a datastore that does not answer offers nothing,
// soon.
func TestCompletionDoesNotWait(t *testing.T) {
	start := time.Now()
	var out strings.Builder
	code := ctl.Execute(context.Background(), ctl.Options{
		Stdout: &out, Stderr: &out, Environ: func(string) string { return "" },
		OpenStore: func(ctx context.Context, _ config.Config, _ *slog.Logger) (datastore.Store, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	}, []string{"__complete", "get", "nodes", ""})
	if took := time.Since(start); code != 0 || took > 3*time.Second || !strings.HasPrefix(out.String(), ":4\n") {
		t.Errorf("exit %d after %s: %s", code, took, &out)
	}
}

// TestCompletionScripts: the shells themselves accept them, where they are
// installed; bash is everywhere.
func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		code, stdout, stderr := system{}.run("", "completion", shell)
		if code != 0 || len(stdout) < 1000 || !strings.Contains(stdout, "maneki") {
			t.Errorf("%s: exit %d: %s", shell, code, stderr)
		}
		if shell != "bash" {
			continue
		}
		c := exec.Command("bash", "-n")
		c.Stdin = strings.NewReader(stdout)
		if text, err := c.CombinedOutput(); err != nil {
			t.Errorf("bash does not accept it: %v: %s", err, text)
		}
	}
}
