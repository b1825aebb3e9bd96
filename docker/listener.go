package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// errAnswers means that another program serves a socket.
var errAnswers = errors.New("another program answers there")

// listener is one socket. It lets in root only, and a bounded number of connections.
type listener struct {
	*net.UnixListener
	path  string
	kind  string // networkDriver or ipamDriver
	slots chan struct{}
	done  chan struct{}
	once  sync.Once
}

// listen creates a socket that gets its name when its mode is right: nobody can connect before.
func listen(path string, connections int) (*listener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, errAnswers)
	}
	tmp := path + ".new" // dockerd takes only names that end in .sock for plugins
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(tmp, 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close(), os.Remove(tmp))
	}
	return &listener{UnixListener: l, path: path, slots: make(chan struct{}, connections), done: make(chan struct{})}, nil
}

// Accept waits for a free slot first.
func (l *listener) Accept() (net.Conn, error) {
	for {
		select {
		case l.slots <- struct{}{}:
		case <-l.done:
			return nil, net.ErrClosed
		}
		conn, err := l.AcceptUnix()
		if err != nil {
			<-l.slots
			return nil, err
		}
		cred, err := credentials(conn)
		if err == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid()) {
			return &connection{UnixConn: conn, pid: int(cred.Pid), leave: sync.OnceFunc(func() { <-l.slots })}, nil
		}
		_ = conn.Close()
		<-l.slots
	}
}

// Close ends Accept.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.UnixListener.Close()
}

func credentials(conn *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, err
	}
	return cred, credErr
}

// connection is one of dockerd's.
type connection struct {
	*net.UnixConn
	pid   int // of dockerd; 0 when it is not in our PID namespace
	leave func()
}

// Close frees the slot.
func (c *connection) Close() error {
	defer c.leave()
	return c.UnixConn.Close()
}

type peerKey struct{}

// withPeer keeps the connection's process for the handlers.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	if conn, ok := c.(*connection); ok {
		return context.WithValue(ctx, peerKey{}, conn.pid)
	}
	return ctx
}

func peer(ctx context.Context) int {
	pid, _ := ctx.Value(peerKey{}).(int)
	return pid
}
