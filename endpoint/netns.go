package endpoint

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// threadNetns names the network namespace of the calling thread; /proc/self would name that of the first thread.
const threadNetns = "/proc/thread-self/ns/net"

// ErrNotNetns means that a file which should be a network namespace is none.
var ErrNotNetns = errors.New("not a network namespace")

// identity is what makes two open files the same namespace.
type identity struct{ dev, ino uint64 }

func identify(f *os.File) (identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return identity{}, fmt.Errorf("identify namespace: %w", err)
	}
	return identity{uint64(st.Dev), st.Ino}, nil //nolint:unconvert // the width differs between architectures
}

// checkNetns reports whether f is a network namespace and another one than the host's.
func checkNetns(f *os.File, host identity) error {
	if f == nil {
		return fmt.Errorf("%w: no file given", ErrNotNetns)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return fmt.Errorf("%w: %s", ErrNotNetns, f.Name())
	}
	id, err := identify(f)
	if err != nil {
		return err
	}
	if id == host {
		return fmt.Errorf("%w of a container: %s is the host's own", ErrNotNetns, f.Name())
	}
	return nil
}

// visit runs fn on a thread that is in the namespace ns, and brings the thread back to home. Only the thread that
// runs fn is there: fn must not start goroutines. Open sockets and files of /proc/sys/net keep belonging to ns.
//
// fn runs in a goroutine of its own, so that a thread which cannot be brought home ends with it (it stays locked)
// instead of serving others in the wrong place.
func visit(ns, home *os.File, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err := fn()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// host is the namespace that the host ends of the pairs are in.
type host struct {
	file *os.File
	home *os.File // the process's own, where threads go back to
	own  bool     // file is home: no visit is needed
	id   identity
	idle chan *netlink.Handle // open sockets that nobody uses

	deletions chan struct{}  // one for each deletion that the kernel has not finished
	deleting  sync.WaitGroup // the same
}

const (
	maxIdle      = 8  // netlink sockets kept open
	maxDeletions = 32 // at once; each holds a thread
)

// openHost opens the host's namespace, which is f, or the calling thread's when f is nil.
func openHost(f *os.File) (_ *host, err error) {
	h := &host{idle: make(chan *netlink.Handle, maxIdle), deletions: make(chan struct{}, maxDeletions)}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	if h.home, err = os.Open(threadNetns); err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	homeID, err := identify(h.home)
	if err != nil {
		return nil, err
	}
	if f == nil {
		f = h.home
	}
	// A descriptor of our own: the caller may close its file.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate network namespace: %w", err)
	}
	h.file = os.NewFile(uintptr(fd), f.Name())
	if h.id, err = identify(h.file); err != nil {
		return nil, err
	}
	h.own = h.id == homeID
	return h, nil
}

// close waits for the kernel to finish what was deleted.
func (h *host) close() {
	h.deleting.Wait()
	for len(h.idle) > 0 {
		(<-h.idle).Close()
	}
	for _, f := range []*os.File{h.file, h.home} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// do runs fn in the host's namespace.
func (h *host) do(fn func() error) error {
	if h.own {
		return fn()
	}
	return visit(h.file, h.home, fn)
}

// with runs fn with a netlink socket in the host's namespace that nobody else uses meanwhile. One socket for all would
// have everybody wait for each deletion (see deleteLink).
func (h *host) with(fn func(nl *netlink.Handle) error) error {
	var nl *netlink.Handle
	select {
	case nl = <-h.idle:
	default:
		err := h.do(func() (err error) {
			nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
			return err
		})
		if err != nil {
			return fmt.Errorf("open netlink on the host: %w", err)
		}
	}
	defer func() {
		select {
		case h.idle <- nl:
		default:
			nl.Close()
		}
	}()
	return fn(nl)
}

// link finds an interface of the host.
func (h *host) link(name string) (l netlink.Link, err error) {
	err = h.with(func(nl *netlink.Handle) error {
		l, err = nl.LinkByName(name)
		return err
	})
	return l, err
}

// deleteLink removes an interface and returns when it is gone for everybody.
//
// The kernel answers some 25 ms later: it takes the interface out of all lists under its lock (net/core/dev.c:
// unregister_netdevice_many), and then, without the lock, waits until no processor can still hold what it frees
// (netdev_run_todo: rcu_barrier). Which end of a pair is deleted, and in what state, changes nothing of that. So the
// request has a thread of its own, and what counts is that the kernel does not know the interface's index any more,
// which it never gives to another one soon: asking takes the same lock.
func (h *host) deleteLink(link netlink.Link) error {
	const first, last = 200 * time.Microsecond, 5 * time.Millisecond
	h.deletions <- struct{}{}
	done := make(chan error, 1)
	h.deleting.Go(func() {
		defer func() { <-h.deletions }()
		done <- h.with(func(nl *netlink.Handle) error { return nl.LinkDel(link) })
	})
	for wait := first; ; wait = min(2*wait, last) {
		select {
		case err := <-done:
			return err
		case <-time.After(wait):
		}
		err := h.with(func(nl *netlink.Handle) error {
			_, err := nl.LinkByIndex(link.Attrs().Index)
			return err
		})
		if notFound(err) {
			return nil
		}
	}
}
