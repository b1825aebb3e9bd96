package endpoint_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
	"github.com/manekinet/maneki/datastore/etcd"
	"github.com/manekinet/maneki/endpoint"
	"github.com/manekinet/maneki/endpoint/pending"
	"github.com/manekinet/maneki/ipam"
)

// childEnv, set, makes the test binary an agent that attaches or detaches one container and is killed at a step.
const childEnv = "MANEKI_ENDPOINT_CHILD"

// order is what the child does.
type order struct {
	Etcd, StateDir string
	ID             endpoint.ID
	Detach         bool
	KillAt         string // a step; empty: do not
}

// Descriptors that the child inherits.
const hostFD, containerFD = 3, 4

// child does its order in a process of its own. It prints "begin" when its work begins.
func child() {
	var o order
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &o); err != nil {
		panic(err)
	}
	if err := o.do(context.Background()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (o order) do(ctx context.Context) error {
	store, err := etcd.New(ctx, etcd.Config{Endpoints: []string{o.Etcd}})
	if err != nil {
		return err
	}
	handle, err := netlink.NewHandleAt(netns.NsHandle(hostFD))
	if err != nil {
		return err
	}
	m, err := endpoint.New(endpoint.Config{
		Store: store, IPAM: ipam.NewHost(ipam.New(store, ipam.Options{}), node), Node: node, StateDir: o.StateDir,
		Sink: &kernelSink{handle: handle, local: map[string][]string{}},
		Log:  slog.New(slog.DiscardHandler), Netns: os.NewFile(hostFD, "host"),
		Step: func(name string) {
			if name == o.KillAt {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // the signal may reach another thread first
			}
		},
	})
	if err != nil {
		return err
	}
	fmt.Println("begin")
	if o.Detach {
		return m.Detach(ctx, o.ID)
	}
	_, err = m.Attach(ctx, endpoint.Spec{ID: o.ID, Netns: os.NewFile(containerFD, "container"), IPv4: true, IPv6: true})
	return err
}

// run starts the child and waits for its end. after, if not zero, is when it is killed once it has begun.
func (o order) run(t *testing.T, host, container *nstest.NS, after time.Duration) (killed bool) {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	h, c := nsFile(t, host), nsFile(t, container)
	defer h.Close()
	defer c.Close()
	cmd.ExtraFiles = []*os.File{h, c}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	begin := make([]byte, len("begin\n"))
	if _, err := io.ReadFull(out, begin); err != nil || string(begin) != "begin\n" {
		rest, _ := io.ReadAll(out)
		t.Fatalf("child did not begin: %s%s %v", begin, rest, err)
	}
	if after > 0 {
		time.Sleep(after)
		_ = cmd.Process.Signal(syscall.SIGKILL)
	}
	rest, _ := io.ReadAll(out)
	var exit *exec.ExitError
	err = cmd.Wait()
	if err != nil && (!errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL) {
		t.Fatalf("child: %v\n%s", err, rest)
	}
	return err != nil
}

// crashRig is a rig whose datastore outlives the agent.
func crashRig(t *testing.T) (*rig, order) {
	// The server dies with the thread that started it (prctl PR_SET_PDEATHSIG), and nstest ends threads.
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	server := datastoretest.StartEtcd(t)
	s, err := etcd.New(t.Context(), etcd.Config{Endpoints: []string{server.Endpoint()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	r := newRigOn(t, s)
	return r, order{
		Etcd: server.Endpoint(), StateDir: r.dir, ID: endpoint.ID{Network: "net1", ContainerID: "c1", IfName: "eth0"},
	}
}

func TestKillAtEveryStep(t *testing.T) {
	r, o := crashRig(t)
	for _, step := range []string{
		endpoint.StepJournal, endpoint.StepPair, endpoint.StepAddress, endpoint.StepEndpoint, endpoint.StepContainer,
		endpoint.StepRoutes,
	} {
		t.Run("attach killed after "+step, func(t *testing.T) {
			container := nstest.New(t)
			o := o
			o.KillAt = step
			if !o.run(t, r.host, container, 0) {
				t.Fatal("the child was not killed")
			}
			m := r.manager()
			if err := m.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.wantNothingLeft() // the ADD was never answered
			if err := m.Detach(t.Context(), o.ID); err != nil {
				t.Fatal(err)
			}
			r.wantNothingLeft()
			if got := ip(container, "-br", "link"); strings.Contains(got, "eth0") {
				t.Errorf("the container still has an interface:\n%s", got)
			}
		})
	}
	for _, step := range []string{
		endpoint.StepPairGone, endpoint.StepRoutesGone, endpoint.StepEndpointGone, endpoint.StepAddressGone,
	} {
		t.Run("detach killed after "+step, func(t *testing.T) {
			s := spec(t, nstest.New(t), "c1")
			r.attach(s)
			o := o
			o.KillAt, o.Detach = step, true
			if !o.run(t, r.host, nstest.New(t), 0) {
				t.Fatal("the child was not killed")
			}
			// What the executable does when the agent goes away in its hands.
			if err := pending.Write(filepath.Join(r.dir, "pending"), pending.Record{Network: "net1", ContainerID: "c1", IfName: "eth0"}); err != nil {
				t.Fatal(err)
			}
			if err := r.manager().Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.wantNothingLeft()
		})
	}
}

// TestKillAnywhere kills at moments that no step names.
func TestKillAnywhere(t *testing.T) {
	r, o := crashRig(t)
	killed := 0
	for range 40 {
		container := nstest.New(t)
		if o.run(t, r.host, container, time.Duration(rand.IntN(12_000)+1)*time.Microsecond) {
			killed++
		}
		m := r.manager()
		if err := m.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := m.Detach(t.Context(), o.ID); err != nil { // the runtime's, when the child had come to the end
			t.Fatal(err)
		}
		r.wantNothingLeft()
		m.Close()
	}
	t.Logf("%d of 40 killed in the middle", killed)
	if killed == 0 {
		t.Error("no child was killed before it had finished: the times do not fit this machine")
	}
}

func TestDatastoreGone(t *testing.T) {
	gone := false
	r := newRig(t)
	faulty := datastoretest.Faulty(r.store, func(datastoretest.Call) datastoretest.Fault {
		if gone {
			return datastoretest.Fault{Err: datastore.ErrUnavailable}
		}
		return datastoretest.Fault{}
	})
	m := r.manager(func(c *endpoint.Config) {
		c.Store, c.IPAM = faulty, ipam.NewHost(ipam.New(faulty, ipam.Options{}), node)
	})
	s := spec(t, nstest.New(t), "c1")
	if _, err := m.Attach(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	gone = true
	if _, err := m.Attach(t.Context(), spec(t, nstest.New(t), "c2")); !errors.Is(err, datastore.ErrUnavailable) {
		t.Errorf("attach without datastore: %v", err)
	}
	if err := m.Detach(t.Context(), s.ID); err != nil {
		t.Errorf("detach without datastore: %v", err)
	}
	if got := r.left(); strings.Contains(got, "link") || !strings.Contains(got, "pending") || !strings.Contains(got, "WorkloadEndpoint") {
		t.Errorf("the interface must be gone, the deletion kept:\n%s", got)
	}
	if err := m.Recover(t.Context()); !errors.Is(err, datastore.ErrUnavailable) {
		t.Errorf("recover without datastore: %v", err)
	}
	gone = false
	if err := m.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.wantNothingLeft()
}

// TestPendingDeletionComesFirst: a container's ID is used again before its deletion was worked off.
func TestPendingDeletionComesFirst(t *testing.T) {
	r := newRig(t)
	s := spec(t, nstest.New(t), "c1")
	first := r.attach(s)
	if err := pending.Write(filepath.Join(r.dir, "pending"), pending.Record{Network: "net1", ContainerID: "c1", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	again := spec(t, nstest.New(t), "c1")
	second := r.attach(again)
	if !second.Created || first.Addresses[0] == second.Addresses[0] {
		t.Errorf("first %v, second %v", first, second)
	}
	if err := r.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	ping(t, r.host, second.Addresses[0].Addr()) // the old record did not take the new attachment
}

func TestGCKeepsWhatIsListed(t *testing.T) {
	r := newRig(t)
	keep, drop, other := spec(t, nstest.New(t), "keep"), spec(t, nstest.New(t), "drop"), spec(t, nstest.New(t), "other")
	other.Network = "net2"
	pod := spec(t, nstest.New(t), "sandbox")
	pod.Namespace, pod.Pod = "shop", "nginx"
	for _, s := range []endpoint.Spec{keep, drop, other, pod} {
		r.attach(s)
	}
	// Only the interface of this one is left.
	bare := spec(t, nstest.New(t), "bare")
	r.attach(bare)
	if _, err := r.store.Get(t.Context(), datastore.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: "node1-cni-bare-eth0"}); err != nil {
		t.Fatal(err)
	}
	if err := r.store.Delete(t.Context(), datastore.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: "node1-cni-bare-eth0"}, datastore.Always()); err != nil {
		t.Fatal(err)
	}
	// An address that nothing else is left of, and one of a network whose name begins with this one's.
	for _, handle := range []string{"net1.leaked", "net1.more.c9", "net10.c1"} {
		if _, err := r.ipam.AutoAssign(t.Context(), ipam.Request{Host: node, Handle: handle, Num4: 1}); err != nil {
			t.Fatal(err)
		}
	}
	more := spec(t, nstest.New(t), "c9")
	more.Network = "net1.more"
	r.attach(more)
	if err := r.GC(t.Context(), "net1", []endpoint.Attachment{{ContainerID: "keep", IfName: "eth0"}}); err != nil {
		t.Fatal(err)
	}
	wantText(t, r.left(), `
WorkloadEndpoint(default/node1-cni-c9-eth0)
WorkloadEndpoint(default/node1-cni-keep-eth0)
WorkloadEndpoint(default/node1-cni-other-eth0)
IPAMHandle(net1.keep)
IPAMHandle(net1.more.c9)
IPAMHandle(net10.c1)
IPAMHandle(net2.other)
`+blocksAndLinks(r))
	if got := r.left(); strings.Count(got, "link cali") != 3 {
		t.Errorf("interfaces left:\n%s", got)
	}
}

// blocksAndLinks is the part of left that does not depend on which endpoints there are.
func blocksAndLinks(r *rig) string {
	var lines []string
	for l := range strings.Lines(r.left()) {
		if strings.HasPrefix(l, "addresses") || strings.HasPrefix(l, "link") {
			lines = append(lines, l)
		}
	}
	return strings.Join(lines, "")
}

func TestCheckFindsDamage(t *testing.T) {
	damages := map[string]func(t *testing.T, r *rig, container *nstest.NS){
		"has hardware address": func(_ *testing.T, _ *rig, c *nstest.NS) {
			c.Command("ip", "link", "set", "eth0", "address", "02:00:00:00:00:01")
		},
		"does not have address": func(_ *testing.T, _ *rig, c *nstest.NS) { c.Command("ip", "addr", "flush", "dev", "eth0") },
		"does not have route":   func(_ *testing.T, _ *rig, c *nstest.NS) { c.Command("ip", "route", "del", "default") },
		"is down":               func(_ *testing.T, _ *rig, c *nstest.NS) { c.Command("ip", "link", "set", "eth0", "down") },
		"interface eth0 in": func(_ *testing.T, _ *rig, c *nstest.NS) {
			c.Command("ip", "link", "set", "eth0", "down")
			c.Command("ip", "link", "set", "eth0", "name", "x")
		},
		"host interface calic1": func(_ *testing.T, r *rig, _ *nstest.NS) { r.host.Command("ip", "link", "del", "calic1") },
		"host has no route":     func(_ *testing.T, r *rig, _ *nstest.NS) { r.host.Command("ip", "route", "flush", "dev", "calic1") },
		"is not in the datastore": func(t *testing.T, r *rig, _ *nstest.NS) {
			key := datastore.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: "node1-cni-c1-eth0"}
			if err := r.store.Delete(t.Context(), key, datastore.Always()); err != nil {
				t.Fatal(err)
			}
		},
		"is not assigned": func(t *testing.T, r *rig, _ *nstest.NS) {
			if _, err := r.ipam.ReleaseByHandle(t.Context(), "net1.c1"); err != nil {
				t.Fatal(err)
			}
		},
	}
	for want, damage := range damages {
		t.Run(want, func(t *testing.T) {
			r := newRig(t)
			container := nstest.New(t)
			s := spec(t, container, "c1")
			res := r.attach(s)
			if err := r.Check(t.Context(), s.ID, s.Netns, res.Addresses); err != nil {
				t.Fatal(err)
			}
			damage(t, r, container)
			err := r.Check(t.Context(), s.ID, s.Netns, res.Addresses)
			if !errors.Is(err, endpoint.ErrBroken) || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want %q", err, want)
			}
		})
	}
}
