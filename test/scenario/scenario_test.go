// Package scenario runs the documents that users start from: txtar scripts
// against the real binary in lab/. Each script brings its own lab up; whatever
// happens, the lab is taken down afterwards.
package scenario

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// binDir holds the binary under test, built by `make build`.
func binDir(t *testing.T) string {
	dir, err := filepath.Abs(filepath.Join("..", "..", "bin"))
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command("make", "--silent", "build")
	build.Dir = filepath.Dir(dir)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	return dir
}

func TestScenarios(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("the scenarios make network namespaces: run them as root")
	}
	bin := binDir(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			name := "s-" + strings.TrimSuffix(filepath.Base(e.WorkDir), "-script")
			name = regexp.MustCompile(`[^a-z0-9-]`).ReplaceAllString(strings.ToLower(strings.TrimPrefix(name, "s-script-")), "-")
			e.Setenv("LAB", name)
			e.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			e.Setenv("HOME", e.WorkDir)
			e.Defer(func() {
				if out, err := exec.Command(filepath.Join(bin, "maneki"), "lab", "down", "--name", name).CombinedOutput(); err != nil {
					t.Errorf("lab down %s: %v\n%s", name, err, out)
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"up":         up,
			"host":       onHost,
			"in":         inContainer,
			"eventually": eventually,
			"bad":        bad,
			"code":       code,
		},
	})
}

// run executes the binary and gives its output to stdout/stderr matching.
func run(ts *testscript.TestScript, neg bool, args ...string) {
	err := ts.Exec("maneki", args...)
	switch {
	case err != nil && !neg:
		ts.Fatalf("maneki %s: %v", strings.Join(args, " "), err)
	case err == nil && neg:
		ts.Fatalf("maneki %s succeeded", strings.Join(args, " "))
	}
}

// up [topology.yaml]: brings this script's lab up and waits until it is ready.
func up(ts *testscript.TestScript, neg bool, args []string) {
	cmd := []string{"lab", "up", "--name", ts.Getenv("LAB")}
	if len(args) > 0 {
		cmd = append(cmd, "-f", ts.MkAbs(args[0]))
	}
	run(ts, neg, cmd...)
}

// host NAME command...: runs a command on a host.
func onHost(ts *testscript.TestScript, neg bool, args []string) {
	run(ts, neg, append([]string{"lab", "exec", "--name", ts.Getenv("LAB"), "--host", args[0], "--"}, args[1:]...)...)
}

// in NAME command...: runs a command in a container.
func inContainer(ts *testscript.TestScript, neg bool, args []string) {
	run(ts, neg, append([]string{"lab", "exec", "--name", ts.Getenv("LAB"), args[0], "--"}, args[1:]...)...)
}

// eventually SECONDS REGEXP host|in NAME command...: repeats until the output
// matches; with ! until it does not.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	want, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	cmd := []string{"lab", "exec", "--name", ts.Getenv("LAB")}
	if args[2] == "host" {
		cmd = append(cmd, "--host")
	}
	cmd = append(append(cmd, args[3], "--"), args[4:]...)
	start := time.Now()
	var out []byte
	for time.Since(start) < limit {
		c := exec.Command(filepath.Join(strings.SplitN(ts.Getenv("PATH"), ":", 2)[0], "maneki"), cmd...)
		out, err = c.CombinedOutput()
		if want.Match(out) != neg && (err == nil || neg) {
			ts.Logf("after %s:\n%s", time.Since(start).Round(time.Millisecond), bytes.TrimSpace(out))
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	ts.Fatalf("%s after %s: %v\n%s", fmt.Sprintf("%q (negated: %t)", args[1], neg), limit, err, out)
}

// code N REGEXP HOST command...: the command on the host ends with exit code N
// and one line on stderr that matches.
func code(ts *testscript.TestScript, _ bool, args []string) {
	want, text, host, cmd := args[0], args[1], args[2], args[3:]
	full := append([]string{"lab", "exec", "--name", ts.Getenv("LAB"), "--host", host, "--"}, cmd...)
	c := exec.Command(filepath.Join(strings.SplitN(ts.Getenv("PATH"), ":", 2)[0], "maneki"), full...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	ts.Logf("%s: %v\n%s%s", strings.Join(cmd, " "), err, stdout.String(), stderr.String())
	if got := fmt.Sprint(c.ProcessState.ExitCode()); got != want {
		ts.Fatalf("exit code %s, want %s", got, want)
	}
	if last := lines[len(lines)-1]; !regexp.MustCompile(text).MatchString(last) {
		ts.Fatalf("stderr ends in %q, want a line with %q", last, text)
	}
}

// bad N FILE REGEXP: apply of the file on host h1 fails with exit code N and
// exactly one line that matches.
func bad(ts *testscript.TestScript, neg bool, args []string) {
	code(ts, neg, []string{args[0], args[2], "h1", "maneki", "apply", "-f", ts.MkAbs(args[1])})
}
