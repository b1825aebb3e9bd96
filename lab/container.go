package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
)

const (
	conflistPath = "/etc/cni/net.d/10-maneki.conflist"
	pluginDir    = "/opt/cni/bin"
	cniCacheDir  = "/var/lib/cni"
	cniTimeout   = 60 * time.Second
	containerIf  = "eth0"
)

// ContainerSpec is what `lab run` starts.
type ContainerSpec struct {
	Container
	// Command runs in the container once it is attached; empty means that the
	// pause process is all there is in it.
	Command []string
}

// ContainerStatus is a container as it stands.
type ContainerStatus struct {
	Container
	ID        string       `json:"id"`
	Attached  bool         `json:"attached"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	PID       int          `json:"pid,omitempty"` // of the pause process; 0 when it is gone
	// Attach is how long CNI ADD took; only Run knows it.
	Attach time.Duration `json:"-"`
}

// containerRecord is container.json. It is written before anything of the
// container exists, so that whatever a crash left can be detached again.
type containerRecord struct {
	Container
	ID        string       `json:"id"`
	Command   []string     `json:"command,omitempty"`
	Attached  bool         `json:"attached"`
	Addresses []netip.Addr `json:"addresses,omitempty"`

	attach time.Duration
}

func (l *Lab) recordPath(name string) string { return l.path(name, "container.json") }

// netnsPath is where the container's network namespace is mounted, inside the
// mount namespace of its host; `ip netns exec NAME` works there.
func netnsPath(name string) string { return "/run/netns/" + name }

func (l *Lab) readContainer(name string) (containerRecord, error) {
	var c containerRecord
	raw, err := os.ReadFile(l.recordPath(name))
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("read state of container %s: %w", name, err)
	}
	return c, nil
}

// Containers lists the containers of the lab by name.
func (l *Lab) Containers() []ContainerStatus {
	files, _ := filepath.Glob(filepath.Join(l.dir(), "*", "container.json"))
	var list []ContainerStatus
	for _, f := range files {
		name := filepath.Base(filepath.Dir(f))
		c, err := l.readContainer(name)
		if err != nil {
			continue // removed by another command meanwhile
		}
		st := ContainerStatus{Container: c.Container, ID: c.ID, Attached: c.Attached, Addresses: c.Addresses}
		if p := readPID(l.path(name, "pause.pid")); p.Alive() {
			st.PID = p.PID
		}
		list = append(list, st)
	}
	slices.SortFunc(list, func(a, b ContainerStatus) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func (l *Lab) startContainers(ctx context.Context) error {
	if l.cfg.NoAgents {
		return nil
	}
	for _, c := range l.cfg.Topology.Containers {
		if _, err := l.Run(ctx, ContainerSpec{Container: c}); err != nil {
			return err
		}
	}
	return nil
}

// Run starts a container on a host and attaches it through the CNI plugin that
// is installed there. On failure nothing of it remains.
func (l *Lab) Run(ctx context.Context, spec ContainerSpec) (ContainerStatus, error) {
	var st ContainerStatus
	if err := l.checkSpec(spec); err != nil {
		return st, err
	}
	if old, err := l.readContainer(spec.Name); err == nil {
		if old.Attached {
			return st, classified{ErrBusy, fmt.Sprintf("run %s: the name is in use by a container on %s: remove it with `maneki lab rm %s`",
				spec.Name, old.Host, spec.Name)}
		}
		if err := l.RemoveContainer(ctx, spec.Name); err != nil { // an interrupted run
			return st, err
		}
	}
	id, err := newContainerID()
	if err != nil {
		return st, err
	}
	rec := containerRecord{Container: spec.Container, ID: id, Command: spec.Command}
	if rec.Namespace == "" {
		rec.Namespace = "default"
	}
	if err := l.createContainer(ctx, &rec); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), cniTimeout)
		defer cancel()
		return st, errors.Join(fmt.Errorf("run %s on %s: %w", spec.Name, spec.Host, err), l.RemoveContainer(undo, spec.Name))
	}
	pid := readPID(l.path(spec.Name, "pause.pid")).PID
	return ContainerStatus{
		Container: rec.Container, ID: id, Attached: true, Addresses: rec.Addresses, PID: pid, Attach: rec.attach,
	}, nil
}

func (l *Lab) checkSpec(spec ContainerSpec) error {
	if _, err := l.host(spec.Host); err != nil {
		return err
	}
	if err := checkName("name", spec.Name); err != nil {
		return err
	}
	for _, e := range l.cfg.Topology.entries() {
		if e.name == spec.Name && !strings.HasPrefix(e.field, "containers") {
			return classified{ErrBusy, fmt.Sprintf("run %s: the name is in use by %s of the topology", spec.Name, e.field)}
		}
	}
	if err := spec.check("namespace", "labels"); err != nil {
		return classified{ErrInput, "run " + spec.Name + ": " + err.Error()}
	}
	return nil
}

func newContainerID() (string, error) {
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("make container id: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

func (l *Lab) createContainer(ctx context.Context, rec *containerRecord) error {
	if err := os.MkdirAll(filepath.Dir(l.recordPath(rec.Name)), 0o700); err != nil {
		return err
	}
	l.cfg.Step("container " + rec.Name)
	if err := writeJSON(l.recordPath(rec.Name), *rec); err != nil {
		return err
	}
	host, err := l.enter(rec.Host)
	if err != nil {
		return err
	}
	p, err := l.startPause(host, rec.Name, KindContainer)
	if err != nil {
		return err
	}
	if err := host.do(func() error { return mountNetns(p, netnsPath(rec.Name)) }); err != nil {
		return err
	}
	l.cfg.Step("attach " + rec.Name)
	began := time.Now()
	if rec.Addresses, err = l.cniAdd(ctx, host, *rec); err != nil {
		return err
	}
	rec.attach = time.Since(began)
	l.cfg.Step("attached " + rec.Name)
	rec.Attached = true
	if err := writeJSON(l.recordPath(rec.Name), *rec); err != nil {
		return err
	}
	if len(rec.Command) == 0 {
		return nil
	}
	_, err = l.startInContainer(*rec)
	return err
}

func (l *Lab) startInContainer(rec containerRecord) (Process, error) {
	s, err := l.enter(rec.Name)
	if err != nil {
		return Process{}, err
	}
	var binary string
	err = s.do(func() error {
		binary, err = lookPath(rec.Command[0], l.baseEnv(rec.Name))
		return err
	})
	if err != nil {
		return Process{}, err
	}
	return l.startDaemon(rec.Name, "command", binary, rec.Command[1:], []string{"HOSTNAME=" + rec.Name})
}

// mountNetns gives a network namespace a name in the calling thread's mount
// namespace. Like the sandbox of a container runtime it then outlives its
// processes until it is unmounted.
func mountNetns(p Process, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	source := fmt.Sprintf("/proc/%d/ns/net", p.PID)
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount network namespace on %s: %w", path, err)
	}
	return nil
}

func unmountNetns(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// RemoveContainer detaches a container with CNI DEL and ends its processes.
func (l *Lab) RemoveContainer(ctx context.Context, name string) error {
	rec, err := l.readContainer(name)
	if errors.Is(err, os.ErrNotExist) {
		return classified{ErrNotFound, fmt.Sprintf("lab %s has no container %q", l.cfg.Name, name)}
	}
	if err != nil {
		return err
	}
	host, err := l.enter(rec.Host)
	if err != nil {
		return err
	}
	if err := l.cniDel(ctx, host, rec); err != nil {
		return fmt.Errorf("remove container %s: %w", name, err)
	}
	l.leave(name)
	for _, file := range []string{"command.pid", "pause.pid"} {
		if err := readPID(l.path(name, file)).stop(ctx, unix.SIGTERM, 500*time.Millisecond); err != nil {
			return fmt.Errorf("remove container %s: %w", name, err)
		}
	}
	if err := host.do(func() error { return unmountNetns(netnsPath(name)) }); err != nil {
		return fmt.Errorf("remove container %s: %w", name, err)
	}
	if err := os.RemoveAll(filepath.Dir(l.recordPath(name))); err != nil {
		return fmt.Errorf("remove container %s: %w", name, err)
	}
	return nil
}

// installCNI runs `maneki cni install` on the host. Containers get an IPv6
// address where their host has one.
func (l *Lab) installCNI(ctx context.Context, host string) error {
	l.cfg.Step("cni " + host)
	argv := []string{"maneki", "cni", "install"}
	if l.hostPlan(host).Address6().IsValid() {
		argv = append(argv, "--ipv6")
	}
	if _, err := l.Output(ctx, host, nil, argv...); err != nil {
		return fmt.Errorf("install cni: %w", err)
	}
	return nil
}

// cniAdd attaches the container; it returns the addresses of its interface.
func (l *Lab) cniAdd(ctx context.Context, host *space, rec containerRecord) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	var result types.Result
	err := host.do(func() error {
		list, err := loadConflist(rec)
		if err != nil {
			return err
		}
		result, err = newCNI().AddNetworkList(ctx, list, runtimeConf(rec))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	r, err := types100.GetResult(result)
	if err != nil {
		return nil, fmt.Errorf("read cni result: %w", err)
	}
	var list []netip.Addr
	for _, ip := range r.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			list = append(list, a.Unmap())
		}
	}
	return list, nil
}

func (l *Lab) cniDel(ctx context.Context, host *space, rec containerRecord) error {
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	return host.do(func() error {
		list, err := loadConflist(rec)
		if errors.Is(err, os.ErrNotExist) {
			return nil // never installed, so nothing was attached
		}
		if err != nil {
			return err
		}
		return newCNI().DelNetworkList(ctx, list, runtimeConf(rec))
	})
}

func newCNI() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{pluginDir}, cniCacheDir, nil)
}

func runtimeConf(rec containerRecord) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: rec.ID, NetNS: netnsPath(rec.Name), IfName: containerIf,
		Args: [][2]string{{"IgnoreUnknown", "1"}},
	}
}

// loadConflist reads the host's conflist and puts the workload's name,
// namespace and labels into every plugin's configuration.
func loadConflist(rec containerRecord) (*libcni.NetworkConfigList, error) {
	raw, err := os.ReadFile(conflistPath)
	if err != nil {
		return nil, fmt.Errorf("read cni configuration: %w", err)
	}
	with, err := injectWorkload(raw, rec.Container)
	if err != nil {
		return nil, err
	}
	list, err := libcni.ConfListFromBytes(with)
	if err != nil {
		return nil, fmt.Errorf("read cni configuration %s: %w", conflistPath, err)
	}
	return list, nil
}

// workload is args["maneki.net"] of a plugin's configuration.
type workload struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// injectWorkload sets args["maneki.net"] in each plugin of a conflist and
// keeps everything else as it is.
func injectWorkload(conflist []byte, c Container) ([]byte, error) {
	var list map[string]json.RawMessage
	var plugins []map[string]json.RawMessage
	if err := json.Unmarshal(conflist, &list); err != nil {
		return nil, fmt.Errorf("read cni configuration %s: %w", conflistPath, err)
	}
	if err := json.Unmarshal(list["plugins"], &plugins); err != nil {
		return nil, fmt.Errorf("read cni configuration %s: plugins: %w", conflistPath, err)
	}
	own, err := json.Marshal(workload{Namespace: c.Namespace, Name: c.Name, Labels: c.Labels})
	if err != nil {
		return nil, err
	}
	for _, p := range plugins {
		args := map[string]json.RawMessage{}
		if len(p["args"]) > 0 {
			if err := json.Unmarshal(p["args"], &args); err != nil {
				return nil, fmt.Errorf("read cni configuration %s: args: %w", conflistPath, err)
			}
		}
		args["maneki.net"] = own
		if p["args"], err = json.Marshal(args); err != nil {
			return nil, err
		}
	}
	if list["plugins"], err = json.Marshal(plugins); err != nil {
		return nil, err
	}
	return json.Marshal(list)
}
