package uml

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/dataplane/tunnels"
	"github.com/manekinet/maneki/desired"
)

// boot is the life of the guest's first process. It does not return.
func boot(m *testing.M) {
	os.Args = os.Args[:1] // which the kernel fills with what it does not know
	folder, ok := setUp()
	if ok && m.Run() == 0 {
		_ = os.WriteFile(filepath.Join(folder, fileDone), nil, 0o600)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	os.Exit(1)
}

// writable is where the shared folder is mounted: the root is read only.
const writable = "/run/shared"

func setUp() (folder string, ok bool) {
	if os.Getenv("PATH") == "" {
		_ = os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
	}
	steps := []func() error{
		func() error { return unix.Mount("proc", "/proc", "proc", 0, "") },
		func() error { return unix.Mount("sysfs", "/sys", "sysfs", 0, "") },
		func() error { return unix.Mount("tmpfs", "/run", "tmpfs", 0, "") },
		func() error { return os.Mkdir(writable, 0o700) },
		func() error { return unix.Mount("none", writable, "hostfs", 0, os.Getenv(envFolder)) },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			fmt.Printf("guest: step %d: %v\n", i, err)
			return writable, false
		}
	}
	return writable, true
}

// load inserts a module and is content if it is built in.
func load(t *testing.T, modules ...string) {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	root := "/usr/lib/uml/modules/" + unix.ByteSliceToString(u.Release[:]) + "/kernel/"
	for _, m := range modules {
		f, err := os.Open(root + m + ".ko")
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			t.Fatalf("load module %s: %v", m, err)
		}
	}
}

// guest makes a host out of this machine and does from here what TestKernels does from there.
func guest(t *testing.T) {
	variant := tunnels.Implementation(os.Getenv(envVariant))
	load(t, "drivers/net/veth")
	if variant == tunnels.Kernel {
		load(t, "net/ipv4/tunnel4", "net/ipv4/ip_tunnel", "net/ipv4/ipip")
	} else {
		load(t, "net/sched/sch_ingress", "net/sched/cls_bpf")
	}
	ns := nstest.Current(t)
	ns.Command("ip", "link", "set", "vec0", "name", "eth0")
	ns.Up("lo")
	ns.AddAddr("eth0", there+"/24")
	ns.Up("eth0")
	a, pod := host(t, ns, tunnelEnd(there, tunnelThere, here), podThere, "10.1.1.0/24")
	want := map[tunnels.Implementation]string{tunnels.Kernel: "kernel", tunnels.Programs: "programs (clsact)"}[variant]
	if is, _ := a.IPIP(); is != want {
		t.Fatalf("the tunnel is made by %q, want %q", is, want)
	}
	stopEcho := echo(t, pod, podThere)
	defer stopEcho()
	pod.Command("ping", "-c", "3", "-i", "0.1", "-W", "2", podHere)
	exchange(t, pod, podHere)
	fmt.Println(ready)
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(writable, fileStop)); err == nil {
			break
		}
	}
	mend(t, ns, a, variant)
}

// mend harms the device and has it repaired; then it is given back.
func mend(t *testing.T, ns *nstest.NS, a *tunnels.Applier, variant tunnels.Implementation) {
	ctx := context.Background()
	wish := tunnelEnd(there, tunnelThere, here)
	for _, harm := range []string{"link set tunl0 down", "link set tunl0 mtu 1300", "addr flush dev tunl0", "addr add 10.9.0.1/32 dev tunl0"} {
		ns.Command("ip", strings.Fields(harm)...)
		if have, err := a.Dump(ctx); err != nil || have[desired.IPIPDevice] == wish {
			t.Errorf("%s is not seen: %+v, %v", harm, have, err)
		}
		if err := a.Put(ctx, desired.IPIPDevice, wish); err != nil {
			t.Error(err)
		}
		if have, err := a.Dump(ctx); err != nil || have[desired.IPIPDevice] != wish {
			t.Errorf("%s is not repaired: %+v, %v", harm, have, err)
		}
	}
	if err := errors.Join(a.Delete(ctx, desired.IPIPDevice), a.Delete(ctx, desired.IPIPDevice)); err != nil {
		t.Error(err)
	}
	if have, err := a.Dump(ctx); err != nil || len(have) != 0 {
		t.Errorf("after deletion: %+v, %v", have, err)
	}
	left, err := ns.TryCommand("ip", "addr", "show", "dev", "tunl0")
	if variant == tunnels.Kernel && (err != nil || regexp.MustCompile(`inet |[<,]UP|alias`).MatchString(left)) || variant == tunnels.Programs && err == nil {
		t.Errorf("left over: %v\n%s", err, left)
	}
}
