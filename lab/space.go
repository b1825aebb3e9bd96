package lab

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespaceKinds are the namespaces of a member, in the order they are joined:
// the mount namespace last, because /proc/PID/ns is looked up in the old one.
var namespaceKinds = []struct {
	file string
	flag int
}{
	{"net", unix.CLONE_NEWNET},
	{"uts", unix.CLONE_NEWUTS},
	{"mnt", unix.CLONE_NEWNS},
}

// space is an operating system thread that lives inside a member's namespaces
// and runs functions there. A process started by such a function is born in
// these namespaces, and its parent-death signal is tied to this thread, not to
// one that the Go runtime may end at any time.
type space struct {
	jobs chan job
	done chan struct{}
}

type job struct {
	run    func() error
	result chan error
}

// newSpace starts a thread in the caller's own namespaces.
func newSpace() *space {
	s := &space{jobs: make(chan job), done: make(chan struct{})}
	go s.begin()
	return s
}

// enterSpace starts a thread in the namespaces of process p.
func enterSpace(p Process) (*space, error) {
	s := newSpace()
	if err := s.do(func() error { return joinNamespaces(p) }); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// begin finds a thread for the loop that is not the process's first one: that
// one the runtime cannot end, and its namespaces are what /proc/PID shows.
func (s *space) begin() {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		s.loop()
		return
	}
	locked := make(chan struct{})
	go func() { // cannot get the first thread: it is locked until then
		runtime.LockOSThread()
		close(locked)
		s.loop()
	}()
	<-locked
	runtime.UnlockOSThread()
}

// loop runs on a locked thread that is never unlocked: the runtime ends the
// thread together with the goroutine, so no other goroutine ever runs in a
// foreign namespace.
func (s *space) loop() {
	defer close(s.done)
	for j := range s.jobs {
		j.result <- j.run()
	}
}

// do runs f on the thread. f must not start goroutines that open sockets or
// files: those would do so in the caller's namespaces.
func (s *space) do(f func() error) error {
	j := job{run: f, result: make(chan error, 1)}
	s.jobs <- j
	return <-j.result
}

func (s *space) close() {
	close(s.jobs)
	<-s.done
}

// joinNamespaces moves the calling thread, which must be locked, into the
// namespaces of p.
func joinNamespaces(p Process) error {
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for _, k := range namespaceKinds {
		path := fmt.Sprintf("/proc/%d/ns/%s", p.PID, k.file)
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open namespace %s: %w", path, err)
		}
		fds = append(fds, fd)
	}
	if !p.Alive() { // the descriptors might be those of a reused pid
		return fmt.Errorf("enter process %d: %w", p.PID, os.ErrProcessDone)
	}
	// Threads of a Go process share root and working directory; the kernel
	// lets only a thread with its own change the mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the working directory: %w", err)
	}
	for i, k := range namespaceKinds {
		if err := unix.Setns(fds[i], k.flag); err != nil {
			return fmt.Errorf("enter %s namespace of process %d: %w", k.file, p.PID, err)
		}
	}
	return nil
}
