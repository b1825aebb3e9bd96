// Package uml puts a host with another kernel into one network with a host of this one: Debian's user-mode-linux,
// Linux 6.1, which has IP in IP as a module, and clsact but no tcx. The test binary is the first process in there.
//
// The file system of the machine is that of the guest too, read only. UML_KERNEL names another kernel to boot; its
// modules are looked for under /usr/lib/uml/modules/<release>, and not missed if they are built in.
package uml

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/dataplane/tunnels"
	"github.com/manekinet/maneki/desired"
)

// Addresses of both hosts, their tunnels and a workload behind each.
const (
	here, there             = "172.18.0.2", "172.18.0.9"
	tunnelHere, tunnelThere = "10.1.1.1", "10.1.9.1"
	podHere, podThere       = "10.1.1.2", "10.1.9.2"
	echoPort                = ":7000"
	bulk                    = 4 << 20 // bytes each way
)

// What the host writes on the guest's command line, and the guest finds in its environment.
const (
	envVariant = "MANEKI_UML_VARIANT" // kernel or programs
	envFolder  = "MANEKI_UML_FOLDER"
)

// Files in the folder that both see.
const (
	fileStop = "stop" // made by the host when it needs the guest no longer
	fileDone = "done" // made by the guest if all its tests pass
)

func TestMain(m *testing.M) {
	if inGuest() {
		boot(m)
	}
	os.Exit(m.Run())
}

func inGuest() bool { return os.Getpid() == 1 && os.Getenv(envVariant) != "" }

func tunnelEnd(local, addr, other string) desired.Tunnel {
	return desired.Tunnel{
		Encap: desired.EncapIPIP, Local: netip.MustParseAddr(local), Uplinks: "eth0",
		Hosts: desired.NewNetSet(netip.MustParsePrefix(other + "/32")), Addrs: desired.NewAddrSet(netip.MustParseAddr(addr)), MTU: 1480,
	}
}

// host gives a namespace a tunnel to the other host and a workload behind it.
func host(t *testing.T, ns *nstest.NS, want desired.Tunnel, pod string, other string) (*tunnels.Applier, *nstest.NS) {
	t.Helper()
	p := nstest.New(t)
	nstest.Veth(ns, "cali1", p, "eth0")
	p.AddAddr("eth0", pod+"/32")
	p.Command("ip", "link", "set", "eth0", "mtu", "1480")
	p.Command("ip", "route", "add", "169.254.1.1", "dev", "eth0")
	p.Command("ip", "route", "add", "default", "via", "169.254.1.1")
	ns.AddAddr("cali1", "169.254.1.1/32")
	ns.Command("ip", "route", "add", pod, "dev", "cali1")
	a := tunnels.New(ns.Handle(), desired.IPIPDevice)
	t.Cleanup(a.Close)
	ns.Do(func() {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
		if err := a.Put(context.Background(), desired.IPIPDevice, want); err != nil {
			t.Fatal(err)
		}
		if have, err := a.Dump(context.Background()); err != nil || have[desired.IPIPDevice] != want {
			t.Fatalf("have\n%+v\nwant\n%+v\n%v", have[desired.IPIPDevice], want, err)
		}
	})
	ns.Command("ip", "route", "add", other, "via", want.Hosts.Prefixes()[0].Addr().String(), "dev", "tunl0", "onlink")
	return a, p
}

// TestKernels pings and sends bulk data both ways between a host with tcx programs and one with another kernel: with the
// kernel's own ipip there, and with our programs on clsact.
func TestKernels(t *testing.T) {
	if inGuest() {
		guest(t)
		return
	}
	for _, variant := range []tunnels.Implementation{tunnels.Kernel, tunnels.Programs} {
		t.Run(string(variant), func(t *testing.T) {
			ns, cable := nstest.New(t), nstest.New(t)
			nstest.Veth(ns, "eth0", cable, "u0")
			// The guest takes frames from a packet socket: whole ones, with their checksum.
			for _, end := range []struct {
				ns  *nstest.NS
				dev string
			}{{ns, "eth0"}, {cable, "u0"}} {
				end.ns.Command("ethtool", "-K", end.dev, "tx", "off", "tso", "off", "gso", "off", "gro", "off")
			}
			ns.AddAddr("eth0", here+"/24")
			a, pod := host(t, ns, tunnelEnd(here, tunnelHere, there), podHere, "10.1.9.0/24")
			if is, _ := a.IPIP(); is != "programs (tcx)" {
				t.Logf("this kernel's own tunnel is %q: the test then compares other things than on a kernel without ipip", is)
			}
			stopEcho := echo(t, pod, podHere)
			defer stopEcho()
			guest := start(t, cable, variant)
			pod.Command("ping", "-c", "3", "-i", "0.1", "-W", "2", podThere)
			if wire := sniff(t, ns, pod); !strings.Contains(wire, here+" > "+there+": IP "+podHere+" > "+podThere+": ICMP echo request") ||
				!strings.Contains(wire, there+" > "+here+": IP "+podThere+" > "+podHere+": ICMP echo reply") {
				t.Errorf("on the wire:\n%s", wire)
			}
			exchange(t, pod, podThere)
			guest.stop(t)
		})
	}
}

func sniff(t *testing.T, ns, pod *nstest.NS) string {
	out := make(chan string, 1)
	go func() {
		text, _ := ns.TryCommand("timeout", "5", "tcpdump", "--immediate-mode", "-l", "-nn", "-i", "eth0", "-c", "2", "ip proto 4")
		out <- text
	}()
	time.Sleep(700 * time.Millisecond) // until it listens, which it says on a stream that is read at its end
	pod.Command("ping", "-c", "2", "-i", "0.1", "-W", "2", podThere)
	return <-out
}

// echo serves in a namespace: everything that arrives is sent back.
func echo(t *testing.T, ns *nstest.NS, addr string) (stop func()) {
	t.Helper()
	var l net.Listener
	var err error
	ns.Do(func() { l, err = net.Listen("tcp4", addr+echoPort) })
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	})
	return func() { _ = l.Close(); wg.Wait() }
}

// exchange sends bulk data to the other side's echo and compares what comes back.
func exchange(t *testing.T, ns *nstest.NS, addr string) {
	t.Helper()
	var c net.Conn
	var err error
	ns.Do(func() { c, err = net.DialTimeout("tcp4", addr+echoPort, 10*time.Second) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	sent := make([]byte, bulk)
	_, _ = rand.Read(sent)
	begin := time.Now()
	go func() {
		_, _ = c.Write(sent)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back of %d, or others (%v)", len(got), len(sent), err)
	}
	t.Logf("%d MiB to %s and back in %s", bulk>>20, addr, time.Since(begin).Round(time.Millisecond))
}

// machine is a running guest.
type machine struct {
	cmd    *exec.Cmd
	folder string
	ended  chan error
	mu     sync.Mutex
	said   bytes.Buffer
}

// Write takes what the guest says.
func (m *machine) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.said.Write(b)
}

func (m *machine) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.said.String()
}

const ready = "guest is ready"

// start boots a guest on the end of the cable and waits until its network is up.
func start(t *testing.T, cable *nstest.NS, variant tunnels.Implementation) *machine {
	t.Helper()
	kernel := os.Getenv("UML_KERNEL")
	if kernel == "" {
		kernel = "linux.uml"
	}
	path, err := exec.LookPath(kernel)
	if err != nil {
		t.Fatalf("the kernel of the other host is missing: install the Debian package user-mode-linux, or name one by UML_KERNEL: %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{folder: t.TempDir(), ended: make(chan error, 1)}
	m.cmd = exec.Command(path, "mem=256M", "root=none", "rootfstype=hostfs", "rootflags=/", "ro", "init="+self, "quiet", "panic=1",
		"con=null", "con0=fd:0,fd:1", "con1=null", "ssl=null", "umid="+filepath.Base(filepath.Dir(m.folder)),
		"vec0:transport=raw,ifname=u0,depth=64,gro=0", envVariant+"="+string(variant), envFolder+"="+m.folder)
	m.cmd.Stdout, m.cmd.Stderr = m, m
	m.cmd.Env = append(os.Environ(), "HOME="+m.folder)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cable.Do(func() { err = m.cmd.Start() })
	if err != nil {
		t.Fatalf("boot %s: %v", path, err)
	}
	go func() { m.ended <- m.cmd.Wait() }()
	t.Cleanup(func() { _ = syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL) }) // its own process group
	deadline := time.Now().Add(time.Minute)
	for !strings.Contains(m.text(), ready) {
		select {
		case err := <-m.ended:
			t.Fatalf("the guest ended at once: %v\n%s", err, m.text())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("the guest is not ready after a minute:\n%s", m.text())
		}
	}
	return m
}

// stop ends the guest and asks it how it went.
func (m *machine) stop(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.folder, fileStop), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.ended:
	case <-time.After(time.Minute):
		t.Fatalf("the guest does not end:\n%s", m.text())
	}
	if _, err := os.Stat(filepath.Join(m.folder, fileDone)); err != nil {
		t.Errorf("tests in the guest failed:\n%s", m.text())
	}
	t.Log(fmt.Sprint(lastLines(m.text())))
}

func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-6):], "\n")
}
