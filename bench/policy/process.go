package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is the agent of this host: the one that was there, and after the first
// kill the one that this program has started the same way.
type process struct {
	pid  int
	path string
	args []string
	env  []string
	cmd  *exec.Cmd // nil: somebody else's child
}

// adopt reads how a process was started.
func adopt(pid int) (*process, error) {
	p := &process{pid: pid}
	var err error
	if p.path, err = os.Readlink(p.proc("exe")); err != nil {
		return nil, fmt.Errorf("read the agent's program: %w", err)
	}
	for file, into := range map[string]*[]string{"cmdline": &p.args, "environ": &p.env} {
		b, err := os.ReadFile(p.proc(file))
		if err != nil {
			return nil, fmt.Errorf("read how the agent was started: %w", err)
		}
		for _, field := range bytes.Split(bytes.TrimRight(b, "\x00"), []byte{0}) {
			*into = append(*into, string(field))
		}
	}
	return p, nil
}

func (p *process) proc(file string) string { return fmt.Sprintf("/proc/%d/%s", p.pid, file) }

// kill ends the agent without warning and waits until it is gone.
func (p *process) kill() error {
	if err := unix.Kill(p.pid, unix.SIGKILL); err != nil {
		return fmt.Errorf("kill the agent: %w", err)
	}
	if p.cmd != nil {
		_ = p.cmd.Wait() // says that it was killed
		return nil
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(p.proc("stat"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || bytes.Contains(b, []byte(") Z ")) {
			return nil
		}
	}
	return errors.New("the agent does not end")
}

func (p *process) start() error {
	log, err := logFile()
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = &exec.Cmd{Path: p.path, Args: p.args, Env: p.env, Stdout: log, Stderr: log}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	p.pid = p.cmd.Process.Pid
	return nil
}

// end stops an agent that this program has started; it would lose its parent.
func (p *process) end() {
	if p.cmd == nil {
		return
	}
	_ = unix.Kill(p.pid, unix.SIGTERM)
	_ = p.cmd.Wait()
}

// cpu is the time that the process has used, in ticks of 10 ms.
func (p *process) cpu() (time.Duration, error) {
	b, err := os.ReadFile(p.proc("stat"))
	if err != nil {
		return 0, fmt.Errorf("read the agent's times: %w", err)
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	user, err1 := strconv.Atoi(fields[11]) // proc_pid_stat(5): utime and stime are fields 14 and 15
	system, err2 := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// rss is the resident memory in MiB.
func (p *process) rss() (float64, error) {
	b, err := os.ReadFile(p.proc("status"))
	if err != nil {
		return 0, fmt.Errorf("read the agent's memory: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			return float64(kb) / 1024, err
		}
	}
	return 0, errors.New("the agent's memory is not in its status")
}
