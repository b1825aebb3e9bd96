package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kind is what a member of a lab is.
type Kind string

// The kinds of members.
const (
	KindSwitch    Kind = "switch"
	KindRouter    Kind = "router"
	KindHost      Kind = "host"
	KindContainer Kind = "container"
)

// cloneFlags are the namespaces that a member of each kind gets of its own. A
// container shares the mount namespace of its host.
func (k Kind) cloneFlags() uintptr {
	flags := uintptr(unix.CLONE_NEWNET | unix.CLONE_NEWUTS)
	if k == KindHost {
		flags |= unix.CLONE_NEWNS
	}
	return flags
}

// readyFD is where a pause process reports: "ok", or one line of error.
const readyFD = 3

func pauseArgs(lab, member string, kind Kind) []string {
	return []string{"lab", "pause", "--lab", lab, "--member", member, "--kind", string(kind)}
}

// parsePauseArgs recognises the command line of a pause process.
func parsePauseArgs(argv []string) (lab, member string, ok bool) {
	if len(argv) != 9 || !slices.Equal(argv[1:4], []string{"lab", "pause", "--lab"}) || argv[5] != "--member" {
		return "", "", false
	}
	return argv[4], argv[6], true
}

// Pause is the body of `maneki lab pause`: it furnishes the namespaces it was
// started in, reports on file descriptor 3 and then only keeps them alive. It
// returns on SIGTERM.
func Pause(member string, kind Kind) error {
	if err := refuseByHand(); err != nil {
		return err
	}
	report := os.NewFile(readyFD, "ready")
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	signal.Ignore(unix.SIGHUP, unix.SIGINT)
	err := furnish(member, kind)
	word := "ok"
	if err != nil {
		word = oneLine(err)
	}
	if _, werr := io.WriteString(report, word+"\n"); werr != nil && err == nil {
		err = werr
	}
	if cerr := report.Close(); cerr != nil && err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	<-stop
	return nil
}

// furnish sets up the new namespaces of the calling process.
func furnish(member string, kind Kind) error {
	if !slices.Contains([]Kind{KindSwitch, KindRouter, KindHost, KindContainer}, kind) {
		return fmt.Errorf("lab pause: kind %q is not known", kind)
	}
	if kind == KindHost {
		if err := furnishMounts(); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte(member)); err != nil {
		return fmt.Errorf("set host name %s: %w", member, err)
	}
	if err := furnishSysctls(kind); err != nil {
		return err
	}
	return setUp("lo")
}

// refuseByHand guards the machine: a pause process that was started by hand
// would otherwise furnish the root namespaces.
func refuseByHand() error {
	byHand := errors.New("lab pause is started by `maneki lab`, not by hand")
	var st unix.Stat_t
	if err := unix.Fstat(readyFD, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return byHand
	}
	for _, k := range []string{"net", "uts"} {
		mine, err := os.Readlink("/proc/self/ns/" + k)
		if err != nil {
			return fmt.Errorf("read own namespace: %w", err)
		}
		parent, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", os.Getppid(), k))
		if err == nil && parent == mine {
			return byHand
		}
	}
	return nil
}

func setUp(device string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find %s: %w", device, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", device, err)
	}
	return nil
}

// furnishSysctls sets what a member's own network namespace needs. Duplicate
// address detection would keep IPv6 addresses unusable for a second or two.
func furnishSysctls(kind Kind) error {
	settings := []string{
		"net/ipv6/conf/default/accept_dad=0", "net/ipv6/conf/all/accept_dad=0",
		"net/ipv6/conf/default/accept_ra=0", "net/ipv6/conf/all/accept_ra=0",
	}
	switch kind {
	case KindRouter:
		settings = append(settings,
			"net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1",
			"net/ipv4/conf/default/rp_filter=0", "net/ipv4/conf/all/rp_filter=0")
	case KindSwitch:
		settings = append(settings, "net/ipv4/ip_forward=0")
	case KindHost, KindContainer:
	}
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		if strings.HasPrefix(name, "net/ipv6/") && !haveIPv6() {
			continue
		}
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

func haveIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// startPause starts the pause process of a member on the calling thread and
// waits until its namespaces are furnished.
func (l *Lab) startPause(s *space, member string, kind Kind) (Process, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return Process{}, fmt.Errorf("start %s: %w", member, err)
	}
	defer r.Close()
	cmd := l.command(member, l.cfg.Binary, pauseArgs(l.cfg.Name, member, kind)...)
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr.Cloneflags = kind.cloneFlags()
	p, err := l.start(s, cmd, l.path(member, "pause.pid"))
	_ = w.Close()
	if err != nil {
		return Process{}, fmt.Errorf("start %s: %w", member, err)
	}
	word, err := io.ReadAll(io.LimitReader(r, 4096))
	if err != nil {
		return p, fmt.Errorf("start %s: %w", member, err)
	}
	if text := strings.TrimSpace(string(word)); text != "ok" {
		if text == "" {
			text = "the pause process ended before it was ready"
		}
		return p, fmt.Errorf("start %s: %s", member, text)
	}
	return p, nil
}

// command prepares a process of the lab: clean environment, own session, and
// death together with this process when the lab is bound to it.
func (l *Lab) command(member, binary string, args ...string) *exec.Cmd {
	cmd := exec.Command(binary, args...)
	cmd.Dir = "/"
	cmd.Env = l.baseEnv(member)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if l.cfg.Bound {
		cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	}
	return cmd
}

// baseEnv is the environment of every process of the lab. The caller's own is
// not handed down: its datastore settings would reach every agent.
func (l *Lab) baseEnv(member string) []string {
	return []string{
		"PATH=" + filepath.Dir(l.cfg.Binary) + ":" + defaultPath,
		"HOME=/root", "LANG=C.UTF-8",
		Marker + "=" + l.cfg.Name + "/" + member,
	}
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// start starts cmd on the thread of s, records it in pidFile and reaps it when
// it ends.
func (l *Lab) start(s *space, cmd *exec.Cmd, pidFile string) (Process, error) {
	var p Process
	err := s.do(cmd.Start)
	if err != nil {
		return p, err
	}
	p, err = lookupProcess(cmd.Process.Pid)
	l.reapers.Go(func() { _ = cmd.Wait() })
	if err != nil {
		return p, fmt.Errorf("%s ended at once", filepath.Base(cmd.Path))
	}
	if err := writePID(pidFile, p); err != nil {
		return p, errors.Join(err, p.Signal(unix.SIGKILL))
	}
	return p, nil
}
