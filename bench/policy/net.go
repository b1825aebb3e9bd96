package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// space is a network namespace, which ends with the process.
type space struct{ file *os.File }

func newSpace() (space, error) {
	type result struct {
		s   space
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{err: fmt.Errorf("create network namespace: %w", err)}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		done <- result{space{f}, err}
	}()
	r := <-done
	if r.err != nil {
		return r.s, r.err
	}
	return r.s, r.s.run("ip", "link", "set", "lo", "up")
}

// do runs fn with the namespace as that of its thread.
func (s space) do(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}

func (s space) run(name string, args ...string) error {
	return s.input("", name, args...)
}

func (s space) input(in, name string, args ...string) error {
	return s.do(func() error {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(in)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("run %s %s: %w: %.300s", name, strings.Join(args, " "), err, out)
		}
		return nil
	})
}

// topology is two workloads behind one host.
type topology struct{ host, client, server space }

func newTopology() (t topology, err error) {
	for _, s := range []*space{&t.host, &t.client, &t.server} {
		if *s, err = newSpace(); err != nil {
			return t, err
		}
	}
	for i, s := range []space{t.client, t.server} {
		iface, addr := fmt.Sprintf("cali%d", i+1), fmt.Sprintf("10.0.0.%d", i+1)
		err = errors.Join(err,
			t.host.run("ip", "link", "add", iface, "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.file.Fd())),
			t.host.run("ip", "link", "set", iface, "up", "address", "ee:ee:ee:ee:ee:ee"),
			t.host.run("ip", "route", "add", addr, "dev", iface),
			s.run("ip", "link", "set", "eth0", "up"),
			s.run("ip", "addr", "add", addr+"/32", "dev", "eth0"),
			s.run("ip", "route", "add", "169.254.1.1", "dev", "eth0"),
			s.run("ip", "route", "add", "default", "via", "169.254.1.1"),
			s.run("ip", "neigh", "add", "169.254.1.1", "dev", "eth0", "lladdr", "ee:ee:ee:ee:ee:ee"),
		)
		if err != nil {
			return t, err
		}
	}
	return t, t.host.do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644) })
}
