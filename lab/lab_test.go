package lab_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/lab"
)

// machine is what a lab must leave as it was.
type machine struct {
	Links, Mounts, Directories []string
}

func lookAtMachine(t *testing.T) machine {
	t.Helper()
	var m machine
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		m.Links = append(m.Links, l.Attrs().Name)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	m.Mounts = strings.Split(string(mounts), "\n")
	for _, dir := range []string{"/", "/etc", "/opt", "/var/lib"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			m.Directories = append(m.Directories, filepath.Join(dir, e.Name()))
		}
	}
	return m
}

// namespacesOf are the network namespaces of a lab's processes.
func namespacesOf(t *testing.T, name string) map[string]bool {
	t.Helper()
	spaces := map[string]bool{}
	for _, pid := range processesOf(t, name) {
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil {
			spaces[ns] = true
		}
	}
	return spaces
}

// processesOf finds a lab's processes by their environment, independently of
// the code under test.
func processesOf(t *testing.T, name string) []int {
	t.Helper()
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		env, _ := os.ReadFile(filepath.Join("/proc", d.Name(), "environ"))
		if strings.Contains("\x00"+string(env), "\x00"+lab.Marker+"="+name+"/") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// expectNothing checks that nothing of a lab is left.
func expectNothing(t *testing.T, root, name string, before machine, spaces map[string]bool) {
	t.Helper()
	if pids := processesOf(t, name); len(pids) > 0 {
		t.Errorf("processes left: %v", pids)
	}
	for _, path := range []string{filepath.Join(root, name), filepath.Join(root, name+".lock")} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is left", path)
		}
	}
	if diff := cmp.Diff(before, lookAtMachine(t)); diff != "" {
		t.Errorf("the machine changed (-before +after):\n%s", diff)
	}
	held, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range held {
		if ns, err := os.Readlink(path); err == nil && spaces[ns] {
			t.Errorf("%s still holds namespace %s of the lab", path, ns)
		}
	}
}

// newRoot is a state directory of the test's own.
func newRoot(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "labs")
}

// maneki runs a command line of the binary and returns stdout and stderr.
func maneki(t *testing.T, args ...string) (string, string, error) {
	t.Helper()
	var out, errs strings.Builder
	cmd := exec.Command(binary(t), args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	return out.String(), errs.String(), err
}

func mustManeki(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, err := maneki(t, args...)
	if err != nil {
		t.Fatalf("maneki %s: %v\n%s%s", strings.Join(args, " "), err, out, errs)
	}
	return out
}

// upFor starts a lab by command and removes it at the end of the test.
func upFor(t *testing.T, root, name, topology string, flags ...string) func(args ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "topology.yaml")
	if err := os.WriteFile(file, []byte(topology), 0o600); err != nil {
		t.Fatal(err)
	}
	before := lookAtMachine(t)
	t.Cleanup(func() {
		spaces := namespacesOf(t, name)
		if len(spaces) == 0 {
			t.Errorf("lab %s had no namespaces", name)
		}
		mustManeki(t, "lab", "--root", root, "--name", name, "down")
		expectNothing(t, root, name, before, spaces)
	})
	mustManeki(t, append([]string{"lab", "--root", root, "--name", name, "up", file}, flags...)...)
	return func(args ...string) string {
		t.Helper()
		return mustManeki(t, append([]string{"lab", "--root", root, "--name", name}, args...)...)
	}
}

func TestHostsReachEachOther(t *testing.T) {
	root := newRoot(t)
	run := upFor(t, root, "t-three", `
subnets: [{name: net1, cidr: 172.18.0.0/24, cidr6: "fd00:18::/64"}]
hosts: [{name: h1}, {name: h2}, {name: h3}]
`, "--no-agents")
	for _, to := range []string{"172.18.0.12", "172.18.0.13", "fd00:18::c", "h2"} {
		out := run("exec", "--host", "h1", "--", binary(t), "lab", "ping", "-c", "2", "-i", "0.05", to)
		if !strings.Contains(out, "2 packets transmitted, 2 packets received, 0% packet loss") || !strings.Contains(out, "ttl=64") {
			t.Errorf("ping %s: %s", to, out)
		}
	}
	if got := run("exec", "--host", "h2", "--", "hostname"); got != "h2\n" {
		t.Errorf("hostname of h2 is %q", got)
	}
	out := run("exec", "--host", "h1", "--", binary(t), "lab", "routes")
	if want := "default via 172.18.0.254 dev eth0"; !strings.HasPrefix(out, want) {
		t.Errorf("routes of h1:\n%swant %s", out, want)
	}
	// What a host writes in the standard places is its own.
	run("exec", "--host", "h1", "--", "sh", "-c", "echo x >/etc/h1-only; mkdir -p /opt/h1-only /var/lib/h1-only /run/h1-only")
	if out, _, err := maneki(t, "lab", "--root", root, "--name", "t-three", "exec", "--host", "h2", "--", "ls", "/etc/h1-only"); err == nil {
		t.Errorf("h2 sees a file of h1: %s", out)
	}
}

func TestExecKeepsExitCodeAndStreams(t *testing.T) {
	root := newRoot(t)
	upFor(t, root, "t-exec", "hosts: [{name: h1}]", "--no-agents")
	cmd := exec.Command(binary(t), "lab", "--root", root, "--name", "t-exec", "exec", "--host", "h1", "--",
		"sh", "-c", "cat; echo err >&2; exit 7")
	cmd.Stdin = strings.NewReader("typed")
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	var code *exec.ExitError
	if !errors.As(err, &code) || code.ExitCode() != 7 || string(out) != "typed" || errs.String() != "err\n" {
		t.Errorf("exec: %v, stdout %q, stderr %q", err, out, errs.String())
	}
}

func TestRoutersJoinSubnets(t *testing.T) {
	root := newRoot(t)
	run := upFor(t, root, "t-routers", `
subnets:
- {name: a, cidr: 10.1.0.0/24, cidr6: "fd01::/64"}
- {name: b, cidr: 10.2.0.0/24, cidr6: "fd02::/64"}
- {name: c, cidr: 10.3.0.0/24, cidr6: "fd03::/64"}
routers:
- {name: r1, subnets: [a, b]}
- {name: r2, subnets: [b, c]}
hosts:
- {name: h1, subnet: a}
- {name: h2, subnet: c, address: 10.3.0.50}
`, "--no-agents")
	for to, ttl := range map[string]string{"10.3.0.50": "ttl=62", "fd03::b": "ttl=62", "10.1.0.1": "ttl=64", "10.2.0.2": "ttl=63"} {
		out := run("exec", "--host", "h1", "--", binary(t), "lab", "ping", "-c", "1", to)
		if !strings.Contains(out, ttl) || !strings.Contains(out, " 0% packet loss") {
			t.Errorf("ping %s, want %s: %s", to, ttl, out)
		}
	}
}

func TestAgentsAndContainers(t *testing.T) {
	root := newRoot(t)
	run := upFor(t, root, "t-agents", `
subnets: [{name: net1, cidr: 172.18.0.0/24}]
hosts:
- {name: h1, asNumber: 65001, args: [--extra]}
- {name: h2, env: {COLOUR: red}, labels: {zone: west, rack: r1}}
- {name: h3, agent: manual}
containers: [{name: c1, host: h1, namespace: prod, labels: {app: web}}]
`)
	status := run("status")
	for _, want := range []string{
		`(?m)^h1 +net1 +172.18.0.11/24 +pid \d+ +1/2 up +ready$`, `(?m)^h2 .*ready$`, `(?m)^h3 .* - +- +no agent$`,
		`(?m)^c1 +h1 +10.201.1.\d+ +prod +app=web +running$`,
	} {
		if !regexp.MustCompile(want).MatchString(status) {
			t.Errorf("status does not match %s:\n%s", want, status)
		}
	}
	log1 := run("agent", "log", "h1")
	if want := "args [--name h1 --ip 172.18.0.11 --etcd-listen=http://172.18.0.11:2379 --extra] etcd  as 65001\n"; log1 != want {
		t.Errorf("agent of h1 was started as %q, want %q", log1, want)
	}
	if log2, want := run("agent", "log", "h2"), "args [--name h2 --ip 172.18.0.12 --label rack=r1 --label zone=west] etcd http://172.18.0.11:2379 as \n"; log2 != want {
		t.Errorf("agent of h2 was started as %q, want %q", log2, want)
	}
	if env := run("exec", "--host", "h2", "--", "env"); !strings.Contains(env, "COLOUR=red\n") || !strings.Contains(env, "NODENAME=h2\n") {
		t.Errorf("environment of h2:\n%s", env)
	}

	address := strings.TrimSpace(run("run", "h2", "c2", "--label", "app=db", "--", "sleep", "1000"))
	out := run("exec", "--host", "h2", "--", binary(t), "lab", "ping", "-c", "1", address)
	if !strings.Contains(out, " 0% packet loss") {
		t.Errorf("h2 does not reach its container: %s", out)
	}
	if got := run("exec", "c2", "hostname"); got != "c2\n" {
		t.Errorf("hostname of c2 is %q", got)
	}
	conf := run("exec", "--host", "h2", "--", "sh", "-c", "cat /var/lib/cni/results/*")
	if !strings.Contains(conf, "maneki") {
		t.Errorf("no CNI cache on h2: %s", conf)
	}
	run("rm", "c2")
	if links := run("exec", "--host", "h2", "--", binary(t), "lab", "addr"); strings.Contains(links, "veth") {
		t.Errorf("a veth is left after rm:\n%s", links)
	}
	if leases := run("exec", "--host", "h2", "--", "ls", "/var/lib/cni/networks/maneki"); strings.Contains(leases, address) {
		t.Errorf("CNI DEL was not called: %s", leases)
	}

	run("agent", "start", "h3")
	run("agent", "restart", "h1")
	run("agent", "kill", "h2")
	status = run("status")
	for _, want := range []string{`(?m)^h1 .*ready$`, `(?m)^h2 .*no agent$`, `(?m)^h3 .*ready$`} {
		if !regexp.MustCompile(want).MatchString(status) {
			t.Errorf("status does not match %s:\n%s", want, status)
		}
	}
}

func TestExternalEtcdCluster(t *testing.T) {
	root := newRoot(t)
	run := upFor(t, root, "t-etcd", `
subnets: [{name: net1, cidr: 172.18.0.0/24}]
hosts: [{name: h1}, {name: h2}, {name: h3}]
etcd: {mode: external, hosts: [h1, h2]}
`)
	out := run("exec", "--host", "h3", "--", "env", "ETCDCTL_API=3", "etcdctl",
		"--endpoints", "http://172.18.0.11:2379,http://172.18.0.12:2379", "member", "list")
	if strings.Count(out, "started") != 2 {
		t.Errorf("member list:\n%s", out)
	}
	for host, endpoint := range map[string]string{"h1": "172.18.0.11", "h2": "172.18.0.12", "h3": "172.18.0.11"} {
		if log := run("agent", "log", host); !strings.Contains(log, "etcd http://"+endpoint+":2379") {
			t.Errorf("agent of %s was started as %s", host, log)
		}
		if cfg := run("exec", "--host", host, "--", "cat", "/etc/calico/calicoctl.cfg"); !strings.Contains(cfg, `etcdEndpoints: "http://`+endpoint) {
			t.Errorf("calicoctl.cfg of %s:\n%s", host, cfg)
		}
	}
}

func TestFailedAgentLeavesNothing(t *testing.T) {
	root, name := newRoot(t), "t-fail"
	before := lookAtMachine(t)
	topology := lab.Topology{
		Subnets: []lab.Subnet{{Name: "net1", CIDR: "172.18.0.0/24"}},
		Hosts:   []lab.Host{{Name: "h1", Subnet: "net1", Env: map[string]string{"FAIL": "1"}}},
	}
	_, err := lab.Up(t.Context(), lab.Config{Name: name, Root: root, Topology: topology})
	if err == nil || !strings.Contains(err.Error(), "the agent was told to fail") {
		t.Errorf("error %v does not quote the agent's log", err)
	}
	expectNothing(t, root, name, before, nil)
}

func TestUpTwiceIsRefusedAndDownTwiceIsNot(t *testing.T) {
	root := newRoot(t)
	upFor(t, root, "t-twice", "hosts: [{name: h1}]", "--no-agents")
	_, errs, err := maneki(t, "lab", "--root", root, "--name", "t-twice", "up", "--no-agents")
	var code *exec.ExitError
	if !errors.As(err, &code) || code.ExitCode() != 9 || !strings.Contains(errs, "lab t-twice is up") {
		t.Errorf("second up: %v %s", err, errs)
	}
	if out := mustManeki(t, "lab", "--root", root, "--name", "t-none", "down"); out != "there is no lab t-none\n" {
		t.Errorf("down of nothing: %q", out)
	}
}

// TestLostStateIsSwept removes the state directory under a running lab.
func TestLostStateIsSwept(t *testing.T) {
	root := newRoot(t)
	upFor(t, root, "t-lost", "hosts: [{name: h1}, {name: h2}]")
	if err := os.RemoveAll(filepath.Join(root, "t-lost")); err != nil {
		t.Fatal(err)
	}
	names, err := lab.Names(root)
	if err != nil || !slices.Contains(names, "t-lost") {
		t.Errorf("Names = %v, %v; want t-lost in it", names, err)
	}
}

// TestKilledPauseIsSwept kills the pause process of a host: its agent lives on
// in namespaces that nothing else refers to.
func TestKilledPauseIsSwept(t *testing.T) {
	root := newRoot(t)
	run := upFor(t, root, "t-pause", "hosts: [{name: h1}, {name: h2}]")
	raw, err := os.ReadFile(filepath.Join(root, "t-pause", "h1", "pause.pid"))
	if err != nil {
		t.Fatal(err)
	}
	var p lab.Process
	if _, err := fmt.Sscanf(string(raw), "%d %d", &p.PID, &p.Start); err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for p.Alive() {
		time.Sleep(time.Millisecond)
	}
	if out := run("status"); !regexp.MustCompile(`(?m)^h1 .* gone$`).MatchString(out) {
		t.Errorf("status:\n%s", out)
	}
}

const crashTopology = `
subnets: [{name: net1, cidr: 172.18.0.0/24}]
hosts: [{name: h1}, {name: h2}]
containers: [{name: c1, host: h1}]
`

// dieCommand is `die N up|demo ...`: a lab.Up that kills its own process with
// SIGKILL at its N-th step.
func dieCommand() *cobra.Command {
	return &cobra.Command{Use: "die ROOT NAME BOUND STEP", Args: cobra.ExactArgs(4), RunE: func(_ *cobra.Command, args []string) error {
		topology, err := lab.ParseTopology([]byte(crashTopology))
		if err != nil {
			return err
		}
		steps := make(chan string, 100)
		_, err = lab.Up(context.Background(), lab.Config{
			Root: args[0], Name: args[1], Bound: args[2] == "true", Topology: topology,
			Step: func(s string) {
				steps <- s
				if s == args[3] {
					_ = unix.Kill(os.Getpid(), unix.SIGKILL)
					time.Sleep(time.Minute)
				}
			},
		})
		if args[3] == "list" {
			for range len(steps) {
				fmt.Println(<-steps)
			}
		}
		return err
	}}
}

// TestCrashAtEveryStep kills the building process with SIGKILL at each step,
// with processes bound to it and not, and wants Down to leave nothing.
func TestCrashAtEveryStep(t *testing.T) {
	root, name := newRoot(t), "t-crash"
	before := lookAtMachine(t)
	list := mustManeki(t, "die", root, name, "false", "list")
	steps := strings.Split(strings.TrimSpace(list), "\n")
	if len(steps) < 15 {
		t.Fatalf("only %d steps: %q", len(steps), steps)
	}
	spaces := namespacesOf(t, name)
	for i, step := range steps {
		// Every other time the crash meets what the crash before it left.
		if i%2 == 0 {
			mustManeki(t, "lab", "--root", root, "--name", name, "down")
			expectNothing(t, root, name, before, spaces)
		}
		for _, bound := range []bool{true, false} {
			_, _, err := maneki(t, "die", root, name, fmt.Sprint(bound), step)
			var code *exec.ExitError
			if !errors.As(err, &code) || code.Sys().(interface{ Signaled() bool }).Signaled() == false {
				t.Fatalf("step %s: the process was to be killed: %v", step, err)
			}
			maps.Copy(spaces, namespacesOf(t, name))
			if bound {
				expectDead(t, name)
			}
		}
	}
	mustManeki(t, "lab", "--root", root, "--name", name, "down")
	expectNothing(t, root, name, before, spaces)
}

// expectDead wants a bound lab's processes gone with the one that started them.
func expectDead(t *testing.T, name string) {
	t.Helper()
	for range 500 {
		if len(processesOf(t, name)) == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("processes outlive the one they are bound to: %v", processesOf(t, name))
}

// dieRunCommand is a `lab run` that kills its own process at a step.
func dieRunCommand() *cobra.Command {
	return &cobra.Command{Use: "dierun ROOT NAME STEP", Args: cobra.ExactArgs(3), RunE: func(_ *cobra.Command, args []string) error {
		l, err := lab.Change(context.Background(), args[0], args[1])
		if err != nil {
			return err
		}
		l.SetStep(func(s string) {
			if s == args[2] {
				_ = unix.Kill(os.Getpid(), unix.SIGKILL)
				time.Sleep(time.Minute)
			}
		})
		_, err = l.Run(context.Background(), lab.ContainerSpec{Container: lab.Container{Name: "c1", Host: "h1"}})
		return err
	}}
}

// TestCrashedRunIsRepeated starts a container again whose first `lab run` was
// killed: what the first one attached is detached, no address stays behind.
func TestCrashedRunIsRepeated(t *testing.T) {
	root := newRoot(t)
	run := upFor(t, root, "t-rerun", "hosts: [{name: h1}]")
	for _, step := range []string{"container c1", "attach c1", "attached c1"} {
		_, errs, err := maneki(t, "dierun", root, "t-rerun", step)
		var code *exec.ExitError
		if !errors.As(err, &code) || code.ExitCode() != -1 {
			t.Fatalf("step %s: the process was to be killed: %v %s", step, err, errs)
		}
		address := strings.TrimSpace(run("run", "h1", "c1"))
		out := run("exec", "--host", "h1", "--", binary(t), "lab", "ping", "-c", "1", address)
		if !strings.Contains(out, " 0% packet loss") {
			t.Errorf("after a crash at %s: %s", step, out)
		}
		leases := run("exec", "--host", "h1", "--", "sh", "-c", "ls /var/lib/cni/networks/maneki | grep -c ^10")
		if strings.TrimSpace(leases) != "1" {
			t.Errorf("after a crash at %s: %s leases are held, want 1", step, leases)
		}
		run("rm", "c1")
	}
}
