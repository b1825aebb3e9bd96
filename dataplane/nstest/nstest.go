// Package nstest gives a test its own network namespaces.
//
// A namespace made here has no name and no mount: it lives exactly as long as the file descriptor which the test
// process holds, so that a test which crashes or is killed leaves nothing behind on the machine. The namespace of
// the machine itself is never written to.
package nstest

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// threadNS names the network namespace of the calling thread. /proc/self would name that of the process's first
// thread, which is another one as soon as a thread has been moved.
const threadNS = "/proc/thread-self/ns/net"

// NS is one network namespace that belongs to a test. It is safe for use by several goroutines.
type NS struct {
	t      testing.TB
	file   *os.File
	handle *netlink.Handle
}

// New creates a network namespace with lo up and removes it when the test ends. It fails the test when the caller
// is not root.
func New(t testing.TB) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("nstest: a network namespace can be created by root only: run the tests as root")
	}
	file, err := create()
	if err != nil {
		t.Fatalf("nstest: %v", err)
	}
	t.Cleanup(func() { _ = file.Close() })

	handle, err := open(file)
	if err != nil {
		t.Fatalf("nstest: open netlink in new namespace: %v", err)
	}
	t.Cleanup(handle.Close)

	ns := &NS{t: t, file: file, handle: handle}
	ns.Up("lo")
	return ns
}

// open gives a handle for every netlink family, or for routes alone where the kernel lacks another, such as IPsec's.
func open(file *os.File) (*netlink.Handle, error) {
	handle, err := netlink.NewHandleAt(netns.NsHandle(file.Fd()))
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return netlink.NewHandleAt(netns.NsHandle(file.Fd()), unix.NETLINK_ROUTE)
	}
	return handle, err
}

// Current is the namespace of the calling thread, for a machine that belongs to the test as a whole.
func Current(t testing.TB) *NS {
	t.Helper()
	file, err := os.Open(threadNS)
	if err != nil {
		t.Fatalf("nstest: %v", err)
	}
	t.Cleanup(func() { _ = file.Close() })
	handle, err := open(file)
	if err != nil {
		t.Fatalf("nstest: open netlink: %v", err)
	}
	t.Cleanup(handle.Close)
	return &NS{t: t, file: file, handle: handle}
}

// create makes the namespace on a thread of its own. The thread is never unlocked: the runtime ends it together
// with its goroutine, so no other goroutine can find itself in the new namespace.
func create() (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("create network namespace: %w", err)}
			return
		}
		file, err := os.Open(threadNS)
		done <- result{file, err}
	}()
	r := <-done
	return r.file, r.err
}

// Path is the namespace's path in the file system, for programs that want one (CNI_NETNS, nsenter --net=). It is
// valid in every process of this machine for as long as the test runs.
func (ns *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd()) }

// FD is the namespace's file descriptor; it is closed when the test ends.
func (ns *NS) FD() int { return int(ns.file.Fd()) }

// Handle is a netlink handle in the namespace; it is closed when the test ends.
func (ns *NS) Handle() *netlink.Handle { return ns.handle }

// Do runs fn in the namespace, on the calling goroutine, so t.Fatal inside fn works. Sockets and files of
// /proc/sys/net opened by fn, and processes started by it, belong to the namespace. Goroutines started by fn do
// not, and neither do subtests.
func (ns *NS) Do(fn func()) {
	ns.t.Helper()
	runtime.LockOSThread()
	before, err := os.Open(threadNS)
	if err != nil {
		runtime.UnlockOSThread()
		ns.t.Fatalf("nstest: open own namespace: %v", err)
	}
	defer before.Close()
	if err := unix.Setns(ns.FD(), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		ns.t.Fatalf("nstest: enter namespace: %v", err)
	}
	defer func() {
		if err := unix.Setns(int(before.Fd()), unix.CLONE_NEWNET); err != nil {
			// The thread stays locked and ends with this goroutine, rather than serving others in the wrong place.
			ns.t.Errorf("nstest: leave namespace: %v", err)
			return
		}
		runtime.UnlockOSThread()
	}()
	fn()
}

// Command runs a program in the namespace and returns its standard output. The test fails when the program is not
// installed or does not end with success.
func (ns *NS) Command(name string, args ...string) string {
	ns.t.Helper()
	out, err := ns.TryCommand(name, args...)
	if err != nil {
		ns.t.Fatalf("nstest: %v", err)
	}
	return out
}

// TryCommand is Command for programs that may fail: the error holds the command line and its standard error.
func (ns *NS) TryCommand(name string, args ...string) (string, error) {
	ns.t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		ns.t.Fatalf("nstest: program %s is missing: install the Debian package that has it (ip, ss, bridge: iproute2; "+
			"ping: iputils-ping; nft: nftables): %v", name, err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var runErr error
	// The child inherits the namespace of the thread that forks it.
	ns.Do(func() { runErr = cmd.Run() })
	if runErr != nil {
		return stdout.String(), fmt.Errorf("run %s %s: %w: %s", name, strings.Join(args, " "), runErr,
			strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Up sets an interface of the namespace up.
func (ns *NS) Up(dev string) {
	ns.t.Helper()
	link, err := ns.handle.LinkByName(dev)
	if err == nil {
		err = ns.handle.LinkSetUp(link)
	}
	if err != nil {
		ns.t.Fatalf("nstest: set %s up: %v", dev, err)
	}
}

// AddAddr gives an interface an address in CIDR form, usable at once: IPv6 without duplicate address detection.
func (ns *NS) AddAddr(dev, cidr string) {
	ns.t.Helper()
	prefix, err := netip.ParsePrefix(cidr)
	if err != nil {
		ns.t.Fatalf("nstest: %v", err)
	}
	link, err := ns.handle.LinkByName(dev)
	if err != nil {
		ns.t.Fatalf("nstest: find %s: %v", dev, err)
	}
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		ns.t.Fatalf("nstest: parse address %s: %v", cidr, err)
	}
	if prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := ns.handle.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		ns.t.Fatalf("nstest: add %s to %s: %v", cidr, dev, err)
	}
}

// Veth joins two namespaces (or one with itself) by a veth pair, both ends up.
func Veth(a *NS, aName string, b *NS, bName string) {
	a.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = aName
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.FD())}
	if err := a.handle.LinkAdd(pair); err != nil {
		a.t.Fatalf("nstest: create veth %s - %s: %v", aName, bName, err)
	}
	a.Up(aName)
	b.Up(bName)
}
