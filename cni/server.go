// Package cni is the front door for container runtimes: a server on a Unix socket to which the CNI executable
// (cmd/maneki-cni) hands what the runtime asked for. It speaks CNI 0.1.0 to 1.1.0 in words of package endpoint, and
// leaves version negotiation and the forms of results to the CNI library.
//
// Commands: ADD, DEL, CHECK (from 0.4.0), GC and STATUS (from 1.1.0). VERSION is answered by the executable alone.
//
// The socket is a file of mode 0600 and only root (or the agent's own user) is served. Every connection has deadlines,
// their number is bounded, and a panic ends only its own. A request whose executable dies is cancelled; an ADD whose
// result nobody took is undone.
package cni

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/cni/wire"
	"github.com/manekinet/maneki/endpoint"
)

// Endpoints does the work; *endpoint.Manager is one.
type Endpoints interface {
	Attach(ctx context.Context, s endpoint.Spec) (endpoint.Result, error)
	Detach(ctx context.Context, id endpoint.ID) error
	Check(ctx context.Context, id endpoint.ID, netns *os.File, want []netip.Prefix) error
	GC(ctx context.Context, network string, keep []endpoint.Attachment) error
	CheckReady(ctx context.Context) error
}

// Config is what a Server is made of. Endpoints and Log must be set.
type Config struct {
	Endpoints   Endpoints
	Log         *slog.Logger
	Socket      string // empty: wire.DefaultSocket
	Connections int    // served at once; 0: 128. More wait in the kernel's queue.
}

// Deadlines beside wire.Budget.
const (
	readTime  = 5 * time.Second  // for the request to arrive
	writeTime = 5 * time.Second  // for the answer to leave
	ackTime   = 5 * time.Second  // for the executable to hand the result on
	undoTime  = 10 * time.Second // for undoing an ADD that nobody took
)

// Server serves one socket.
type Server struct {
	Config
	listener *net.UnixListener
	users    map[uint32]bool
}

// Listen creates the socket. A file left by a dead agent is replaced; a living one is an error.
func Listen(c Config) (*Server, error) {
	c.Socket, c.Connections = cmp.Or(c.Socket, wire.DefaultSocket), cmp.Or(c.Connections, 128)
	if conn, err := net.DialTimeout("unix", c.Socket, time.Second); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("listen on %s: another agent answers there; stop it first", c.Socket)
	}
	dir := filepath.Dir(c.Socket)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", c.Socket, err)
	}
	// The socket gets its name when its mode is right: nobody can connect before.
	tmp := c.Socket + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", c.Socket, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", c.Socket, err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(tmp, 0o600)
	if err == nil {
		err = os.Rename(tmp, c.Socket)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", c.Socket, err), l.Close(), os.Remove(tmp))
	}
	return &Server{Config: c, listener: l, users: map[uint32]bool{0: true, uint32(os.Geteuid()): true}}, nil
}

// Serve answers until ctx ends; then it takes no new request, lets those in progress end, removes the socket and
// returns the context's error. Call it once.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.listener.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer os.Remove(s.Socket)
	slots := make(chan struct{}, s.Connections)
	for {
		slots <- struct{}{}
		conn, err := s.listener.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return ctx.Err()
		}
		if err != nil { // out of descriptors, most likely: it passes
			s.Log.Warn("accept on CNI socket", "err", err)
			<-slots
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			// A stop of the agent does not cut an attachment in two.
			s.serve(context.WithoutCancel(ctx), conn)
		})
	}
}

// serve answers one connection.
func (s *Server) serve(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("panic while serving a CNI request", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	if err := s.admit(conn); err != nil {
		s.Log.Warn("CNI connection refused", "err", err)
		return
	}
	_ = conn.SetDeadline(time.Now().Add(readTime))
	req, netns, err := receive(conn)
	if netns != nil {
		defer netns.Close()
	}
	if err != nil {
		s.Log.Warn("CNI request not understood", "err", err)
		s.send(conn, &wire.Response{Error: toError(err)})
		return
	}
	ctx, cancel := context.WithTimeout(ctx, wire.Budget(req.Command))
	defer cancel()
	w := watch(conn, cancel)
	defer w.stop(conn)
	s.answer(ctx, conn, w, req, netns)
}

// admit lets in root and the agent's own user.
func (s *Server) admit(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("read peer's credentials: %w", credErr)
	}
	if !s.users[cred.Uid] {
		return fmt.Errorf("user %d (process %d) may not use the CNI socket", cred.Uid, cred.Pid)
	}
	return nil
}

// maxRights is how many descriptors are taken from one message; all but the first are closed at once.
const maxRights = 8

// receive reads one request and the descriptor that came with it, if any.
func receive(conn *net.UnixConn) (req wire.Request, netns *os.File, err error) {
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(4*maxRights))
	n, oobn, _, _, err := conn.ReadMsgUnix(head[:], oob)
	if err != nil {
		return req, nil, fmt.Errorf("read message: %w", err)
	}
	netns = firstFile(oob[:oobn])
	for n > 0 && n < len(head) && err == nil {
		var more int
		more, err = conn.Read(head[n:])
		n += more
	}
	if err == nil && n == 0 {
		err = errors.New("nothing sent")
	}
	if err != nil {
		return req, netns, fmt.Errorf("read message: %w", err)
	}
	return req, netns, wire.ReadBody(conn, head, &req)
}

// firstFile takes the first descriptor out of the control messages and closes the others.
func firstFile(oob []byte) (first *os.File) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			if first == nil {
				first = os.NewFile(uintptr(fd), "netns")
				continue
			}
			_ = unix.Close(fd)
		}
	}
	return first
}

func (s *Server) send(conn *net.UnixConn, r *wire.Response) bool {
	msg, err := wire.Frame(r)
	if err == nil {
		_ = conn.SetWriteDeadline(time.Now().Add(writeTime))
		_, err = conn.Write(msg)
	}
	if err != nil {
		s.Log.Warn("CNI answer not delivered", "err", err)
	}
	return err == nil
}

// watcher reads what comes after the request: the acknowledgement, or the end of the connection.
type watcher struct {
	acked chan struct{} // closed when the result has been handed on
	ended chan struct{} // closed when nothing more will come
}

// watch starts the reading; gone is called when the other side goes away.
func watch(conn *net.UnixConn, gone func()) *watcher {
	w := &watcher{acked: make(chan struct{}), ended: make(chan struct{})}
	_ = conn.SetReadDeadline(time.Time{}) // stop sets it
	go func() {
		defer close(w.ended)
		var b [1]byte
		if n, err := conn.Read(b[:]); err == nil && n == 1 && b[0] == wire.Ack {
			close(w.acked)
			return
		}
		gone()
	}()
	return w
}

// wait reports whether the acknowledgement comes in time.
func (w *watcher) wait() bool {
	timer := time.NewTimer(ackTime)
	defer timer.Stop()
	select {
	case <-w.acked:
		return true
	case <-w.ended:
		select { // an acknowledgement ends the reading as well
		case <-w.acked:
			return true
		default:
			return false
		}
	case <-timer.C:
		return false
	}
}

// stop ends the reading and joins its goroutine.
func (w *watcher) stop(conn *net.UnixConn) {
	_ = conn.SetReadDeadline(time.Unix(1, 0))
	<-w.ended
}
