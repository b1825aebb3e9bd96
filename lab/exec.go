package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exec replaces the calling process by a command inside a member (a host, a
// router, a switch or a container). It returns only on failure.
func Exec(root, name, member string, argv []string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: run it with sudo", ErrNotRoot)
	}
	l, err := Open(root, name)
	if err != nil {
		return err
	}
	if err := l.checkMember(member); err != nil {
		return err
	}
	p, err := l.pause(member)
	if err != nil {
		return err
	}
	env := l.ExecEnv(member, os.Environ())
	runtime.LockOSThread() // for good: execve follows, or the process ends
	if err := joinNamespaces(p); err != nil {
		return err
	}
	path, err := lookPath(argv[0], env)
	if err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", argv[0], syscall.Exec(path, argv, env))
}

func (l *Lab) checkMember(member string) error {
	var names []string
	for _, e := range l.cfg.Topology.entries() {
		names = append(names, e.name)
	}
	for _, c := range l.Containers() {
		names = append(names, c.Name)
	}
	if slices.Contains(names, member) {
		return nil
	}
	slices.Sort(names)
	return classified{ErrNotFound, fmt.Sprintf("lab %s has no %q, it has: %s", l.cfg.Name, member, strings.Join(slices.Compact(names), ", "))}
}

// settingPrefixes are variables of the caller that would point a command in
// the lab to another datastore or node.
var settingPrefixes = []string{
	"CALICO_", "DATASTORE_", "ETCD_", "ETCDCTL_", "FELIX_", "IP=", "IP6=", "KUBECONFIG=",
	"MANEKI_", "NODENAME=", "HOSTNAME=", "PATH=", "PWD=", "OLDPWD=", "AS=",
}

// ExecEnv is the environment of a command inside a member: the caller's own,
// without what belongs to its machine, plus what the member's agent has.
func (l *Lab) ExecEnv(member string, environ []string) []string {
	var env []string
	for _, v := range environ {
		if !slices.ContainsFunc(settingPrefixes, func(p string) bool { return strings.HasPrefix(v, p) }) {
			env = append(env, v)
		}
	}
	env = append(env,
		"PATH="+filepath.Dir(l.cfg.Binary)+":"+defaultPath,
		Marker+"="+l.cfg.Name+"/"+member)
	if h, err := l.host(member); err == nil {
		return append(env, l.hostEnv(h)...)
	}
	return append(env, "HOSTNAME="+member)
}

// lookPath finds a program by the PATH of env, in the namespaces that the
// calling thread is in.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := ""
	for _, v := range env {
		if p, ok := strings.CutPrefix(v, "PATH="); ok {
			path = p
		}
	}
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, name)
		if unix.Access(file, unix.X_OK) == nil {
			if st, err := os.Stat(file); err == nil && st.Mode().IsRegular() {
				return file, nil
			}
		}
	}
	return "", fmt.Errorf("run %s: not found in %s", name, path)
}

// Output runs a command inside a member, waits for it and returns what it
// wrote to stdout; stderr is part of the error.
func (l *Lab) Output(ctx context.Context, member string, stdin io.Reader, argv ...string) (string, error) {
	var out, errs bytes.Buffer
	err := l.Exec(ctx, member, Stdio{In: stdin, Out: &out, Err: &errs}, argv...)
	if err != nil {
		text := strings.TrimSpace(errs.String())
		return out.String(), fmt.Errorf("%s on %s: %w: %s", strings.Join(argv, " "), member, err, text)
	}
	return out.String(), nil
}

// Stdio is where a command reads and writes; nil is /dev/null.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// Exec runs a command inside a member and waits for it. The program is found
// as `maneki lab exec` finds it; "maneki" is always this lab's own binary. The
// error of a command that failed is an *exec.ExitError.
func (l *Lab) Exec(ctx context.Context, member string, stdio Stdio, argv ...string) error {
	cmd, err := l.prepare(ctx, member, stdio, argv)
	if err != nil {
		return err
	}
	return cmd.Wait()
}

// prepare starts a command inside a member; the caller waits for it.
func (l *Lab) prepare(ctx context.Context, member string, stdio Stdio, argv []string) (*exec.Cmd, error) {
	s, err := l.enter(member)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, l.cfg.Binary, argv[1:]...)
	cmd.Env = l.ExecEnv(member, os.Environ())
	cmd.Dir = "/"
	cmd.Args[0] = argv[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdio.In, stdio.Out, stdio.Err
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if l.cfg.Bound {
		cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	}
	err = s.do(func() error {
		if argv[0] != "maneki" {
			if cmd.Path, err = lookPath(argv[0], cmd.Env); err != nil {
				return err
			}
		}
		return cmd.Start()
	})
	if err != nil {
		return nil, err
	}
	return cmd, nil
}

// watched collects output while others look at it.
type watched struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func newWatched() *watched { return &watched{} }

// Write appends to the text.
func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(b)
}

func (w *watched) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}
