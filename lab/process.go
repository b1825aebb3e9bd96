package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Marker is the environment variable that every process of a lab carries; its
// value is LAB/MEMBER. Children inherit it, so the processes of a lab can be
// found whoever started them and whatever became of the state directory.
const Marker = "MANEKI_LAB_MEMBER"

// Process is a process that cannot be mistaken for another one: the start time
// (in clock ticks since boot, field 22 of /proc/PID/stat) tells a reused pid.
type Process struct {
	PID   int
	Start uint64
}

// lookupProcess reads the identity of a running pid. A zombie is reported as
// not existing, because nothing of it is left but its exit code, unless other
// threads of it are still ending: those hold its files, locks and namespaces.
func lookupProcess(pid int) (Process, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, os.ErrProcessDone
	}
	// The command name stands in parentheses and may hold anything.
	end := bytes.LastIndexByte(raw, ')')
	if end < 0 {
		return Process{}, fmt.Errorf("read process %d: unexpected stat line", pid)
	}
	fields := strings.Fields(string(raw[end+1:]))
	if len(fields) < 20 {
		return Process{}, fmt.Errorf("read process %d: %d fields in the stat line, want 20", pid, len(fields))
	}
	dead := fields[0] == "Z" || fields[0] == "X"
	if threads := fields[17]; dead && (threads == "0" || threads == "1") {
		return Process{}, os.ErrProcessDone
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return Process{}, fmt.Errorf("read process %d: start time: %w", pid, err)
	}
	return Process{PID: pid, Start: start}, nil
}

// Alive tells whether this very process still runs.
func (p Process) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	now, err := lookupProcess(p.PID)
	return err == nil && now == p
}

// Signal sends sig through a pidfd that was checked against the start time, so
// that a process which took over the pid is never hit.
func (p Process) Signal(sig unix.Signal) error {
	if p.PID <= 0 {
		return os.ErrProcessDone
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return os.ErrProcessDone
	}
	defer unix.Close(fd)
	if !p.Alive() {
		return os.ErrProcessDone
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// waitGone waits until the process has ended.
func (p Process) waitGone(ctx context.Context) error {
	for p.Alive() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for process %d to end: %w", p.PID, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

// stop ends a process: sig first, SIGKILL when it takes longer than grace.
func (p Process) stop(ctx context.Context, sig unix.Signal, grace time.Duration) error {
	if err := p.Signal(sig); err != nil {
		if errors.Is(err, os.ErrProcessDone) {
			return nil
		}
		return err
	}
	soft, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if p.waitGone(soft) == nil {
		return nil
	}
	if err := p.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	hard, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return p.waitGone(hard)
}

// writePID records a process in a file: "PID START\n".
func writePID(path string, p Process) error {
	return writeFile(path, fmt.Appendf(nil, "%d %d\n", p.PID, p.Start), 0o600)
}

// readPID reads a file written by writePID; the zero Process when there is none.
func readPID(path string) Process {
	raw, err := os.ReadFile(path)
	if err != nil {
		return Process{}
	}
	var p Process
	if _, err := fmt.Sscanf(string(raw), "%d %d\n", &p.PID, &p.Start); err != nil {
		return Process{}
	}
	return p
}

// marked is a process that carries a lab's marker.
type marked struct {
	Process
	Lab, Member string
}

// findMarked scans /proc for the processes of the named lab ("" = of any). The
// caller and its ancestors are left out: they cannot be members, only shells
// that were opened in one.
func findMarked(lab string) ([]marked, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	family := ancestors()
	var found []marked
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || family[pid] {
			continue
		}
		m, ok := readMarked(pid)
		if ok && (lab == "" || m.Lab == lab) {
			found = append(found, m)
		}
	}
	return found, nil
}

func readMarked(pid int) (marked, bool) {
	before, err := lookupProcess(pid)
	if err != nil {
		return marked{}, false
	}
	lab, member, ok := markerOf(pid)
	if !ok || !before.Alive() {
		return marked{}, false
	}
	return marked{before, lab, member}, true
}

// markerOf reads a process's marker from its environment. A pause process is
// also known by its arguments.
func markerOf(pid int) (lab, member string, ok bool) {
	dir := fmt.Sprintf("/proc/%d", pid)
	env, err := os.ReadFile(filepath.Join(dir, "environ"))
	if err == nil {
		for v := range bytes.SplitSeq(env, []byte{0}) {
			if rest, found := strings.CutPrefix(string(v), Marker+"="); found {
				return strings.Cut(rest, "/")
			}
		}
	}
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return "", "", false
	}
	return parsePauseArgs(strings.Split(string(bytes.TrimRight(cmdline, "\x00")), "\x00"))
}

func ancestors() map[int]bool {
	family := map[int]bool{}
	for pid := os.Getpid(); pid > 1 && !family[pid]; {
		family[pid] = true
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			break
		}
		var state string
		if _, err := fmt.Sscanf(string(raw[bytes.LastIndexByte(raw, ')')+1:]), "%s %d", &state, &pid); err != nil {
			break
		}
	}
	return family
}

// sweep kills every process of a lab and returns how many there were. It looks
// again until none is left, because a process may fork while it is being
// killed.
func sweep(ctx context.Context, lab string) (int, error) {
	killed := map[Process]bool{}
	for range 200 {
		found, err := findMarked(lab)
		if err != nil {
			return len(killed), err
		}
		if len(found) == 0 {
			return len(killed), nil
		}
		for _, m := range found {
			killed[m.Process] = true
			if err := m.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return len(killed), err
			}
		}
		wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		for _, m := range found {
			if m.waitGone(wait) != nil {
				break
			}
		}
		cancel()
	}
	return len(killed), fmt.Errorf("stop the processes of lab %s: some are still there after 200 attempts", lab)
}
