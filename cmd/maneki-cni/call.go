package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/cni/wire"
	"github.com/manekinet/maneki/endpoint/pending"
)

// grace is how much longer the executable waits than the agent may work.
const grace = time.Second

// settings is the part of the network configuration that the executable itself reads; the rest is the agent's.
type settings struct {
	Name     string `json:"name"`
	Socket   string `json:"maneki_socket"`
	StateDir string `json:"maneki_state_dir"`
	Args     struct {
		Maneki struct {
			Namespace string `json:"namespace"`
		} `json:"maneki.net"`
	} `json:"args"`
}

func readSettings(config []byte) (settings, error) {
	s := settings{Socket: wire.DefaultSocket, StateDir: wire.DefaultStateDir}
	if err := json.Unmarshal(config, &s); err != nil {
		return s, types.NewError(types.ErrDecodingFailure, "network configuration cannot be read", err.Error())
	}
	if v := os.Getenv("MANEKI_CNI_SOCKET"); v != "" {
		s.Socket = v
	}
	if v := os.Getenv("MANEKI_CNI_STATE_DIR"); v != "" {
		s.StateDir = v
	}
	for name, path := range map[string]string{"maneki_socket": s.Socket, "maneki_state_dir": s.StateDir} {
		if !filepath.IsAbs(path) {
			return s, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("%s: %q is not an absolute path", name, path), "")
		}
	}
	return s, nil
}

func add(args *skel.CmdArgs) error {
	netns, err := openNetns(args)
	if err != nil {
		return err
	}
	defer netns.Close()
	return forward("ADD", args, netns, func(s settings, cause error) error {
		return types.NewError(types.ErrTryAgainLater, notAnswering(s), remedy(cause))
	})
}

func check(args *skel.CmdArgs) error {
	netns, err := openNetns(args)
	if err != nil {
		return err
	}
	defer netns.Close()
	return forward("CHECK", args, netns, func(s settings, cause error) error {
		return types.NewError(types.ErrTryAgainLater, notAnswering(s), remedy(cause))
	})
}

// del never opens the container's namespace: the host's end of the pair takes the container's end with it, and a
// runtime may have removed the namespace already.
func del(args *skel.CmdArgs) error {
	return forward("DEL", args, nil, func(s settings, cause error) error {
		record := pending.Record{Network: s.Name, ContainerID: args.ContainerID, IfName: args.IfName, Namespace: s.Args.Maneki.Namespace}
		if ns, pod := argument(args.Args, "K8S_POD_NAMESPACE"), argument(args.Args, "K8S_POD_NAME"); ns != "" && pod != "" {
			record.Namespace, record.Pod = ns, pod
		}
		if err := pending.Write(filepath.Join(s.StateDir, wire.PendingDir), record); err != nil {
			return types.NewError(types.ErrIOFailure, notAnswering(s)+", and the deletion cannot be kept for later", err.Error()+"; "+remedy(cause))
		}
		fmt.Fprintf(os.Stderr, "maneki-cni: %s (%v): DEL of %s is kept for later\n", notAnswering(s), cause, args.ContainerID)
		return nil
	})
}

func gc(args *skel.CmdArgs) error {
	return forward("GC", args, nil, func(s settings, cause error) error {
		return types.NewError(types.ErrTryAgainLater, notAnswering(s), remedy(cause))
	})
}

func status(args *skel.CmdArgs) error {
	return forward("STATUS", args, nil, func(s settings, cause error) error {
		return types.NewError(types.ErrPluginNotAvailable, notAnswering(s), remedy(cause))
	})
}

func notAnswering(s settings) string {
	return "the Maneki agent of this host does not answer on " + s.Socket
}

func remedy(cause error) string {
	return cause.Error() + "; start it with 'maneki node run', or see its log"
}

// argument returns the value of one key of CNI_ARGS ("K=V;K2=V2").
func argument(args, key string) string {
	for _, pair := range strings.Split(args, ";") {
		if k, v, ok := strings.Cut(pair, "="); ok && k == key {
			return v
		}
	}
	return ""
}

// openNetns opens the namespace to work on. It must be another one than the plugin's own, which is the host's:
// otherwise the host's interfaces would be taken for the container's.
func openNetns(args *skel.CmdArgs) (*os.File, error) {
	f, err := os.Open(args.Netns)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS %q cannot be opened", args.Netns), err.Error())
	}
	override := strings.EqualFold(args.NetnsOverride, "true") || args.NetnsOverride == "1"
	var own, given unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &own); err == nil && !override {
		if err := unix.Fstat(int(f.Fd()), &given); err == nil && own.Dev == given.Dev && own.Ino == given.Ino {
			f.Close()
			return nil, types.NewError(types.ErrInvalidNetNS, "plugin's netns and netns from CNI_NETNS should not be the same", args.Netns)
		}
	}
	return f, nil
}

// forward has the agent execute the command and prints its result. unreachable decides what it means that the agent
// does not answer.
func forward(command string, args *skel.CmdArgs, netns *os.File, unreachable func(settings, error) error) error {
	s, err := readSettings(args.StdinData)
	if err != nil {
		return err
	}
	msg, err := wire.Frame(&wire.Request{
		Command: command, ContainerID: args.ContainerID, Netns: args.Netns, IfName: args.IfName, Args: args.Args,
		Config: args.StdinData,
	})
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, "network configuration cannot be passed on", err.Error())
	}
	c, err := await(s.Socket, command)
	if err != nil {
		return unreachable(s, err)
	}
	answer, err := c.exchange(msg, netns)
	if err != nil {
		c.close() // first: it cancels the request, so that the agent does not work on what is promised for later
		return unreachable(s, err)
	}
	defer c.close()
	if answer.Error != nil {
		return answer.Error
	}
	if len(answer.Result) > 0 {
		if _, err := os.Stdout.Write(answer.Result); err != nil {
			return types.NewError(types.ErrIOFailure, "result cannot be written to standard output", err.Error())
		}
	}
	if command == "ADD" {
		c.ack()
	}
	return nil
}

// conn is a blocking Unix socket. Package net would start the runtime's poller, which is a tenth of the whole call.
type conn struct {
	fd       int
	deadline time.Time
}

// restartTime is how long a command that needs the agent waits for its socket: an agent that is restarted is back in
// well under a second, and a runtime that hears "try again later" does so after many.
const (
	restartTime  = 2 * time.Second
	restartPause = 20 * time.Millisecond
)

// await connects to the agent. DEL does not wait: it can be done later.
func await(path, command string) (*conn, error) {
	until := time.Now().Add(restartTime)
	for {
		c, err := dial(path, wire.Budget(command)+grace)
		absent := errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
		if !absent || command == "DEL" || command == "STATUS" || time.Now().After(until) {
			return c, err
		}
		time.Sleep(restartPause)
	}
}

func dial(path string, budget time.Duration) (*conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("create socket: %w", err)
	}
	c := &conn{fd: fd, deadline: time.Now().Add(budget)}
	err = c.limit(unix.SO_SNDTIMEO) // holds for connect as well: a listener may be full
	if err == nil {
		err = retryInterrupted(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) })
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("connect: %w", err)
	}
	return c, nil
}

func (c *conn) close() {
	if c.fd >= 0 {
		_ = unix.Close(c.fd)
		c.fd = -1
	}
}

// limit makes the next call on the socket end at the deadline.
func (c *conn) limit(option int) error {
	left := time.Until(c.deadline)
	if left <= 0 {
		return os.ErrDeadlineExceeded
	}
	tv := unix.NsecToTimeval(int64(max(left, time.Millisecond)))
	return unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, option, &tv)
}

// exchange sends one message, with the namespace if there is one, and reads the answer.
func (c *conn) exchange(msg []byte, netns *os.File) (*wire.Response, error) {
	var rights []byte
	if netns != nil {
		rights = unix.UnixRights(int(netns.Fd()))
	}
	for len(msg) > 0 {
		if err := c.limit(unix.SO_SNDTIMEO); err != nil {
			return nil, fmt.Errorf("send request: %w", err)
		}
		var n int
		err := retryInterrupted(func() (err error) {
			n, err = unix.SendmsgN(c.fd, msg, rights, nil, unix.MSG_NOSIGNAL)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("send request: %w", timeout(err))
		}
		msg, rights = msg[n:], nil // the descriptor goes with the first bytes only
	}
	var answer wire.Response
	if err := wire.Read(c, &answer); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errors.New("the agent stopped before it answered")
		}
		return nil, err
	}
	return &answer, nil
}

// Read implements io.Reader.
func (c *conn) Read(p []byte) (int, error) {
	if err := c.limit(unix.SO_RCVTIMEO); err != nil {
		return 0, err
	}
	var n int
	err := retryInterrupted(func() (err error) {
		n, err = unix.Read(c.fd, p)
		return err
	})
	if err != nil {
		return 0, timeout(err)
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// ack tells the agent that the result is delivered. If that fails the agent is gone, and what it did stays done.
func (c *conn) ack() {
	_, _ = unix.SendmsgN(c.fd, []byte{wire.Ack}, nil, nil, unix.MSG_NOSIGNAL)
}

// timeout gives the kernel's word for a passed SO_RCVTIMEO or SO_SNDTIMEO its usual name.
func timeout(err error) error {
	if errors.Is(err, unix.EAGAIN) {
		return os.ErrDeadlineExceeded
	}
	return err
}

// retryInterrupted repeats a call that a signal of the Go runtime cut short.
func retryInterrupted(call func() error) error {
	for range 100 {
		if err := call(); err != unix.EINTR { //nolint:errorlint // a raw system call
			return err
		}
	}
	return unix.EINTR
}
