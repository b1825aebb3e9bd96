package cni_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/cni"
	"github.com/manekinet/maneki/cni/wire"
	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/endpoint"
)

const dual = `, "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"}`

func TestEveryVersionThroughTheExecutable(t *testing.T) {
	r := newRig(t)
	golden := map[string]string{
		"0.2.0": `{"cniVersion":"0.2.0","ip4":{"ip":"FOUR/32","routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1"}]},"ip6":{"ip":"SIX/128","routes":[{"dst":"::/0","gw":"fe80::ecee:eeff:feee:eeee"}]}}`,
		"0.3.1": `{"cniVersion":"0.3.1","interfaces":[{"name":"cali0-3-1"},{"name":"eth0","mac":"ee:ee:ee:ee:ee:ee","sandbox":"NS"}],"ips":[{"version":"4","interface":1,"address":"FOUR/32"},{"version":"6","interface":1,"address":"SIX/128"}],"routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1"},{"dst":"::/0","gw":"fe80::ecee:eeff:feee:eeee"}]}`,
		"1.0.0": `{"cniVersion":"1.0.0","interfaces":[{"name":"cali1-0-0"},{"name":"eth0","mac":"ee:ee:ee:ee:ee:ee","mtu":1500,"sandbox":"NS"}],"ips":[{"interface":1,"address":"FOUR/32"},{"interface":1,"address":"SIX/128"}],"routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1"},{"dst":"::/0","gw":"fe80::ecee:eeff:feee:eeee"}]}`,
	}
	golden["0.4.0"] = strings.NewReplacer("0.3.1", "0.4.0", "0-3-1", "0-4-0").Replace(golden["0.3.1"])
	golden["1.1.0"] = strings.NewReplacer("1.0.0", "1.1.0", "1-0-0", "1-1-0").Replace(golden["1.0.0"])
	for version, want := range golden {
		t.Run(version, func(t *testing.T) {
			container := nstest.New(t)
			list, args := r.list(version, dual), r.args(container, strings.ReplaceAll(version, ".", "-"))
			result, err := r.runtime.AddNetworkList(t.Context(), list, args)
			if err != nil {
				t.Fatal(err)
			}
			again, err := r.runtime.AddNetworkList(t.Context(), list, args)
			if err != nil {
				t.Fatal(err)
			}
			got := normal(t, container, result)
			if diff := cmp.Diff(got, normal(t, container, again)); diff != "" {
				t.Errorf("the second ADD gave another result: %s", diff)
			}
			if diff := cmp.Diff(canonical(t, want), got); diff != "" {
				t.Errorf("result (-want +got)\n%s", diff)
			}
			if version != "0.2.0" && version != "0.3.1" {
				if err := r.runtime.CheckNetworkList(t.Context(), list, args); err != nil {
					t.Error(err)
				}
				container.Command("ip", "route", "del", "default")
				wantCode(t, r.runtime.CheckNetworkList(t.Context(), list, args), cni.CodeBroken, "does not have route")
			}
			if version == "1.1.0" {
				if err := r.runtime.GetStatusNetworkList(t.Context(), list); err != nil {
					t.Error(err)
				}
			}
			for range 2 {
				if err := r.runtime.DelNetworkList(t.Context(), list, args); err != nil {
					t.Error(err)
				}
			}
			r.wantNothingLeft()
		})
	}
}

// normal is a result with the addresses and the namespace replaced by names.
func normal(t *testing.T, container *nstest.NS, result types.Result) string {
	t.Helper()
	var b bytes.Buffer
	if err := result.PrintTo(&b); err != nil {
		t.Fatal(err)
	}
	s := strings.ReplaceAll(canonical(t, b.String()), container.Path(), "NS")
	s = regexp.MustCompile(`10\.65\.[0-9.]+`).ReplaceAllString(s, "FOUR")
	s = regexp.MustCompile(`fd65::[0-9a-f:]+`).ReplaceAllString(s, "SIX")
	return strings.ReplaceAll(s, `"dns":{},`, "")
}

// canonical is JSON with its keys in order.
func canonical(t *testing.T, s string) string {
	t.Helper()
	var v map[string]json.RawMessage
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatal(err)
	}
	for k, raw := range v {
		var value any
		if err := json.Unmarshal(raw, &value); err != nil {
			t.Fatal(err)
		}
		v[k], _ = json.Marshal(value)
	}
	out, _ := json.Marshal(v)
	return string(out)
}

func TestVersionWithoutAgent(t *testing.T) {
	r := newRig(t)
	r.stop()
	info, err := r.runtime.GetVersionInfo(t.Context(), "maneki-cni")
	if err != nil || !strings.Contains(strings.Join(info.SupportedVersions(), " "), "0.3.1 0.4.0 1.0.0 1.1.0") {
		t.Errorf("versions %v, %v", info, err)
	}
}

func TestAgentDown(t *testing.T) {
	r := newRig(t)
	container := nstest.New(t)
	list, args := r.list("1.1.0", ""), r.args(container, "c1")
	pod := r.args(nstest.New(t), "sandbox", [2]string{"K8S_POD_NAMESPACE", "shop"}, [2]string{"K8S_POD_NAME", "web"})
	for _, a := range []*libcni.RuntimeConf{args, pod} {
		if _, err := r.runtime.AddNetworkList(t.Context(), list, a); err != nil {
			t.Fatal(err)
		}
	}
	r.stop()
	_, err := r.runtime.AddNetworkList(t.Context(), list, r.args(container, "c2"))
	wantCode(t, err, types.ErrTryAgainLater, r.socket, "maneki node run")
	wantCode(t, r.runtime.GetStatusNetworkList(t.Context(), list), types.ErrPluginNotAvailable, r.socket)
	for _, a := range []*libcni.RuntimeConf{args, pod} {
		if err := r.runtime.DelNetworkList(t.Context(), list, a); err != nil {
			t.Errorf("DEL without agent: %v", err)
		}
	}
	if err := r.manager.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.wantNothingLeft()
}

// An agent that is restarted is waited for.
func TestAddWhileTheAgentRestarts(t *testing.T) {
	r := newRig(t)
	list, args := r.list("1.1.0", ""), r.args(nstest.New(t), "c1")
	r.stop()
	added := make(chan error, 1)
	go func() {
		_, err := r.runtime.AddNetworkList(t.Context(), list, args)
		added <- err
	}()
	time.Sleep(300 * time.Millisecond)
	r.start()
	if err := <-added; err != nil {
		t.Error(err)
	}
	if err := r.runtime.DelNetworkList(t.Context(), list, args); err != nil {
		t.Error(err)
	}
	r.wantNothingLeft()
}

// CNI allows more in a container's ID than an object's name may have.
func TestEveryContainerID(t *testing.T) {
	r := newRig(t)
	list := r.list("1.1.0", "")
	for _, id := range []string{"ABC", "abc", "My_c1", "a-", "x..y", "z.", "0-_.-", strings.Repeat("Q", 200)} {
		args := r.args(nstest.New(t), id)
		if _, err := r.runtime.AddNetworkList(t.Context(), list, args); err != nil {
			t.Errorf("ADD %s: %v", id, err)
			continue
		}
		if err := r.runtime.CheckNetworkList(t.Context(), list, args); err != nil {
			t.Errorf("CHECK %s: %v", id, err)
		}
		defer func() {
			if err := r.runtime.DelNetworkList(t.Context(), list, args); err != nil {
				t.Errorf("DEL %s: %v", id, err)
			}
		}()
	}
	t.Cleanup(r.wantNothingLeft)
}

func TestStatusSaysWhy(t *testing.T) {
	r := newRig(t)
	r.ready = errors.New("the datastore is being migrated")
	wantCode(t, r.runtime.GetStatusNetworkList(t.Context(), r.list("1.1.0", "")), types.ErrPluginNotAvailable, "being migrated")
	_, err := r.runtime.AddNetworkList(t.Context(), r.list("1.1.0", ""), r.args(nstest.New(t), "c1"))
	wantCode(t, err, types.ErrTryAgainLater, "being migrated")
	r.wantNothingLeft()
}

func TestGC(t *testing.T) {
	r := newRig(t)
	list := r.list("1.1.0", "")
	for _, id := range []string{"keep", "drop"} {
		if _, err := r.runtime.AddNetworkList(t.Context(), list, r.args(nstest.New(t), id)); err != nil {
			t.Fatal(err)
		}
	}
	// The runtime has lost its cache of results, so that GC alone has to find what is not listed.
	if err := os.RemoveAll(filepath.Join(r.cacheDir, "results")); err != nil {
		t.Fatal(err)
	}
	err := r.runtime.GCNetworkList(t.Context(), list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "keep", IfName: "eth0"}}})
	if err != nil {
		t.Fatal(err)
	}
	want := "WorkloadEndpoint(default/node1-cni-keep-eth0)\nIPAMHandle(net1.keep)\nlink calikeep\n"
	if got := r.left(); got != want {
		t.Errorf("left:\n%s", got)
	}
}

func TestOwnArguments(t *testing.T) {
	r := newRig(t)
	container := nstest.New(t)
	list := r.list("1.0.0", `, "mtu": 1400, "args": {"maneki.net": {"namespace": "shop", "name": "web-1", "labels": {"app": "web"}}}`)
	args := r.args(container, "c1", [2]string{"IgnoreUnknown", "1"}, [2]string{"IP", "10.65.7.8"}, [2]string{"MAC", "02:00:00:00:00:01"})
	if _, err := r.runtime.AddNetworkList(t.Context(), list, args); err != nil {
		t.Fatal(err)
	}
	w, err := datastore.For[api.WorkloadEndpoint](r.store).Get(t.Context(), "shop", "node1-cni-c1-eth0")
	if err != nil {
		t.Fatal(err)
	}
	if w.Labels["app"] != "web" || w.Spec.Workload != "web-1" || w.Spec.IPNetworks[0] != "10.65.7.8/32" || w.Spec.MAC != "02:00:00:00:00:01" {
		t.Errorf("endpoint %+v", w)
	}
	if out := container.Command("ip", "link", "show", "dev", "eth0"); !strings.Contains(out, "mtu 1400") {
		t.Error(out)
	}
	if err := r.runtime.DelNetworkList(t.Context(), list, args); err != nil {
		t.Fatal(err)
	}
	r.wantNothingLeft()
}

func TestBadInput(t *testing.T) {
	r := newRig(t)
	container := nstest.New(t)
	tests := []struct {
		name, extra string
		args        [2]string
		ifName, id  string
		netns       string
		code        uint
		want        string
	}{
		{name: "other ipam", extra: `, "ipam": {"type": "host-local"}`, code: types.ErrInvalidNetworkConfig, want: `ipam.type \"host-local\"`},
		{name: "assign_ipv4", extra: `, "ipam": {"assign_ipv4": "yes"}`, code: types.ErrDecodingFailure, want: `neither`},
		{name: "no family", extra: `, "ipam": {"assign_ipv4": "false"}`, code: types.ErrInvalidNetworkConfig, want: "family"},
		{name: "mtu", extra: `, "mtu": 9`, code: types.ErrInvalidNetworkConfig, want: "mtu"},
		{name: "mtu text", extra: `, "mtu": "big"`, code: types.ErrDecodingFailure, want: "mtu"},
		{name: "pool", extra: `, "ipam": {"ipv4_pools": ["nosuch"]}`, code: cni.CodeNoAddress, want: "nosuch"},
		{name: "label", extra: `, "args": {"maneki.net": {"labels": {"a b": "c"}}}`, code: types.ErrInvalidNetworkConfig, want: "label"},
		{name: "namespace", extra: `, "args": {"maneki.net": {"namespace": "../x"}}`, code: types.ErrInvalidNetworkConfig, want: "name"},
		{name: "ip", args: [2]string{"IP", "10.65.0"}, code: types.ErrInvalidNetworkConfig, want: "IP"},
		{name: "ip of no pool", args: [2]string{"IP", "172.16.0.1"}, code: 0, want: "172.16.0.1"},
		{name: "mac", args: [2]string{"MAC", "zz"}, code: types.ErrInvalidNetworkConfig, want: "MAC"},
		{name: "command in ID", id: "a;touch x", code: types.ErrInvalidEnvironmentVariables, want: "containerID"},
		{name: "long interface", ifName: "eth0eth0eth0eth0", code: types.ErrInvalidEnvironmentVariables, want: "interface name"},
		{name: "no namespace", netns: "/nonexistent", code: types.ErrInvalidNetNS, want: "/nonexistent"},
		{name: "file as namespace", netns: "/etc/passwd", code: types.ErrInvalidNetNS, want: "not a network namespace"},
		{name: "host's namespace", netns: r.host.Path(), code: types.ErrInvalidNetNS, want: "host's own"},
		{name: "runtime's namespace", netns: "/proc/self/ns/net", code: types.ErrInvalidNetNS, want: "should not be the same"},
		{name: "ipc namespace", netns: "/proc/self/ns/ipc", code: types.ErrInvalidNetNS, want: "not a network namespace"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			env := []string{
				"CNI_COMMAND=ADD", "CNI_CONTAINERID=" + or(tt.id, "c1"), "CNI_IFNAME=" + or(tt.ifName, "eth0"),
				"CNI_NETNS=" + or(tt.netns, container.Path()), "CNI_PATH=/x",
			}
			if tt.args[0] != "" {
				env = append(env, "CNI_ARGS="+tt.args[0]+"="+tt.args[1])
			}
			out, err := run(t, env, r.conf(tt.extra))
			var e types.Error
			if err == nil || json.Unmarshal(out, &e) != nil || tt.code != 0 && e.Code != tt.code || !strings.Contains(string(out), tt.want) {
				t.Errorf("%v, want code %d and %q:\n%s", err, tt.code, tt.want, out)
			}
			r.wantNothingLeft()
		})
	}
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// conf is the configuration that a runtime hands to the plugin.
func (r *rig) conf(extra string) string {
	return `{"cniVersion": "1.1.0", "name": "net1", "type": "maneki-cni", "maneki_socket": "` + r.socket + `", "maneki_state_dir": "` + r.dir + `"` + extra + `}`
}

// run executes the plugin as a runtime does.
func run(t testing.TB, env []string, stdin string) ([]byte, error) {
	t.Helper()
	cmd := exec.Command(binDir(t) + "/maneki-cni")
	cmd.Env, cmd.Stdin = env, strings.NewReader(stdin)
	return cmd.Output()
}

func addEnv(container *nstest.NS) []string {
	return []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=" + container.Path(), "CNI_PATH=/x"}
}

func TestKilledExecutableLeavesNothing(t *testing.T) {
	r := newRig(t)
	container := nstest.New(t)
	reached, cancelled := make(chan bool, 1), make(chan bool, 1)
	r.sink.holdWith(func(ctx context.Context) {
		reached <- true
		<-ctx.Done()
		cancelled <- true
	})
	cmd := exec.Command(binDir(t) + "/maneki-cni")
	cmd.Env, cmd.Stdin = addEnv(container), strings.NewReader(r.conf(""))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-reached
	if r.left() == "" {
		t.Error("nothing was there when the executable was killed")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	select {
	case <-cancelled:
	case <-time.After(5 * time.Second):
		t.Error("the request was not cancelled")
	}
	r.stop()
	r.wantNothingLeft()
}

func TestResultThatNobodyTookIsUndone(t *testing.T) {
	r := newRig(t)
	container := nstest.New(t)
	conn := dial(t, r.socket)
	msg, err := wire.Frame(&wire.Request{Command: "ADD", ContainerID: "c1", IfName: "eth0", Config: json.RawMessage(r.conf(""))})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := conn.WriteMsgUnix(msg, unix.UnixRights(container.FD()), nil); err != nil {
		t.Fatal(err)
	}
	var resp wire.Response
	if err := wire.Read(conn, &resp); err != nil || resp.Error != nil {
		t.Fatalf("%v %v", err, resp.Error)
	}
	if r.left() == "" {
		t.Error("nothing was attached")
	}
	_ = conn.Close() // without wire.Ack
	r.stop()
	r.wantNothingLeft()
}

func dial(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// fake is Endpoints without a network.
type fake struct {
	attach func() (endpoint.Result, error)
}

func (f fake) Attach(context.Context, endpoint.Spec) (endpoint.Result, error) { return f.attach() }
func (f fake) Detach(context.Context, endpoint.ID) error                      { return nil }
func (f fake) Check(context.Context, endpoint.ID, *os.File, []netip.Prefix) error {
	return nil
}
func (f fake) GC(context.Context, string, []endpoint.Attachment) error { return nil }
func (f fake) CheckReady(context.Context) error                        { return nil }

func TestHostileConnections(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	stop := serve(t, cni.Config{Endpoints: fake{}, Log: (&rig{TB: t}).log(), Socket: socket})
	for name, data := range map[string]string{
		"nothing":        "",
		"half a length":  "\x00\x00",
		"huge length":    "\xff\xff\xff\xff{}",
		"short body":     "\x00\x00\x00\x10{",
		"not JSON":       "\x00\x00\x00\x04abcd",
		"no config":      "\x00\x00\x00\x02{}",
		"config is null": "\x00\x00\x00\x21" + `{"command":"STATUS","config":null}`,
		"HTTP":           "GET / HTTP/1.1\r\n\r\n",
	} {
		conn := dial(t, socket)
		_, _ = conn.Write([]byte(data))
		_ = conn.CloseWrite()
		var resp wire.Response
		if err := wire.Read(conn, &resp); err == nil && resp.Error == nil {
			t.Errorf("%s: was accepted", name)
		}
		_ = conn.Close()
	}
	// Many descriptors do not stay open.
	before := openFiles(t)
	f, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 20 {
		conn := dial(t, socket)
		fds := []int{int(f.Fd()), int(f.Fd()), int(f.Fd())}
		_, _, _ = conn.WriteMsgUnix([]byte("\x00\x00\x00\x02{}"), unix.UnixRights(fds...), nil)
		var resp wire.Response
		_ = wire.Read(conn, &resp)
		_ = conn.Close()
	}
	stop()
	if after := openFiles(t); after > before+1 {
		t.Errorf("%d files open before, %d after", before, after)
	}
}

func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestPanicEndsOnlyItsConnection(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	serve(t, cni.Config{Endpoints: fake{attach: func() (endpoint.Result, error) { panic("a bug") }}, Log: (&rig{TB: t}).log(), Socket: socket})
	r := &rig{TB: t, socket: socket, dir: t.TempDir()}
	out, err := run(t, addEnv(nstest.New(t)), r.conf(""))
	var e types.Error
	if err == nil || json.Unmarshal(out, &e) != nil || e.Code != types.ErrTryAgainLater {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := run(t, []string{"CNI_COMMAND=STATUS", "CNI_PATH=/x"}, r.conf("")); err != nil {
		t.Errorf("the next request: %v\n%s", err, out)
	}
}

// TestAgentThatHangs: the executable waits no longer than its budget, and DEL keeps its promise.
func TestAgentThatHangs(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket) // takes connections into its queue and answers nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := &rig{TB: t, socket: socket, dir: dir}
	start := time.Now()
	out, err := run(t, []string{"CNI_COMMAND=STATUS", "CNI_PATH=/x"}, r.conf(""))
	var e types.Error
	if err == nil || json.Unmarshal(out, &e) != nil || e.Code != types.ErrPluginNotAvailable {
		t.Errorf("%v\n%s", err, out)
	}
	if d := time.Since(start); d > wire.Budget("STATUS")+2*time.Second {
		t.Errorf("took %s", d)
	}
}

func TestSocketIsPrivate(t *testing.T) {
	dir, err := os.MkdirTemp("", "maneki-cni-test-") // t.TempDir is closed to the stranger
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	serve(t, cni.Config{Endpoints: fake{}, Log: (&rig{TB: t}).log(), Socket: socket})
	if info, err := os.Stat(socket); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := cni.Listen(cni.Config{Endpoints: fake{}, Socket: socket}); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("second agent: %v", err)
	}
	// Somebody who gets past the file's mode is known by his credentials.
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "stranger")
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, data, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = []string{strangerEnv + "=" + socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "refused") {
		t.Errorf("a stranger's request: %v\n%s", err, out)
	}
}

// stranger is the test binary as another user.
func stranger(path string) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		panic(err)
	}
	msg, err := wire.Frame(&wire.Request{Command: "STATUS", Config: json.RawMessage(`{"cniVersion":"1.1.0","name":"n"}`)})
	if err != nil {
		panic(err)
	}
	_, _ = conn.Write(msg)
	if rest, err := io.ReadAll(conn); len(rest) == 0 {
		println("refused", err)
		os.Exit(0)
	}
	os.Exit(1)
}

func TestStaleSocketIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close() // as after kill -9
	stop := serve(t, cni.Config{Endpoints: fake{}, Log: (&rig{TB: t}).log(), Socket: socket})
	_ = dial(t, socket).Close()
	stop()
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("socket after stop: %v", err)
	}
}

// TestExecutableIsSmall keeps the executable small, on disk and in memory: it runs once per container.
func TestExecutableIsSmall(t *testing.T) {
	info, err := os.Stat(binDir(t) + "/maneki-cni")
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 3<<20 {
		t.Errorf("%d bytes on disk", info.Size())
	}
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command(binDir(t) + "/maneki-cni")
	cmd.Env = []string{"CNI_COMMAND=STATUS", "CNI_PATH=/x"}
	cmd.Stdin = strings.NewReader((&rig{socket: dir + "/s", dir: dir}).conf(""))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	var req wire.Request
	if err := wire.Read(conn, &req); err != nil || req.Command != "STATUS" {
		t.Errorf("request %+v, %v", req, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var peak int
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			_, _ = fmt.Sscan(rest, &peak)
		}
	}
	// The peak counts mapped pages of the file, of which the kernel maps more or fewer around each fault: 3.4 to 4.9 MB
	// were seen. The bound catches an import that brings a runtime's worth of code along; bench/ reports the figure.
	if peak == 0 || peak > 7<<10 {
		t.Errorf("%d kB of memory", peak)
	}
	_ = conn.Close()
	if err := cmd.Wait(); err == nil {
		t.Error("an agent that does not answer was taken for one that is well")
	}
}
