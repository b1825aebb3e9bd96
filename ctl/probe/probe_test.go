package probe

import (
	"compress/gzip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestKernel runs on the real kernel; what it must be able to do for any of
// these tests to run is asserted, and that nothing of it is left.
func TestKernel(t *testing.T) {
	before, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	results, err := Kernel()
	if err != nil {
		t.Fatalf("run the tests as root: %v", err)
	}
	byName := map[string]Result{}
	for _, r := range results {
		byName[r.Feature] = r
		t.Logf("%-16s %v", r.Feature, r.Err)
	}
	for _, name := range []string{"veth", "blackhole route", "proxy_arp", "ip_forward", "nftables", "nftables set", "nftables nat", "bridge", "vxlan", "bpf"} {
		if r, ok := byName[name]; !ok || !r.OK() {
			t.Errorf("%s: %v", name, r.Err)
		}
	}
	after, err := netlink.LinkList()
	if err != nil || len(after) != len(before) {
		t.Errorf("%d interfaces before, %d after, %v", len(before), len(after), err)
	}
}

// TestBatchReportsTheKernelsRefusal: a set without its table.
func TestBatchReportsTheKernelsRefusal(t *testing.T) {
	results := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			results <- err
			return
		}
		results <- addSet(nil)
	}()
	if err := <-results; err == nil || !Missing(err) {
		t.Errorf("a set in a table that is not there: %v", err)
	}
}

func write(t *testing.T, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(name, ".gz") {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z := gzip.NewWriter(f)
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestPresent(t *testing.T) {
	root := t.TempDir()
	write(t, root, "proc/modules", "ip_set 57344 2 xt_set,ip_set_hash_net, Live 0x0\nxt_set 20480 0 - Live 0x0\n")
	write(t, root, "lib/modules/6.1/modules.dep", "kernel/drivers/vfio/pci/vfio-pci.ko: kernel/drivers/vfio/vfio.ko\nkernel/net/netfilter/xt_u32.ko.xz:\n")
	write(t, root, "lib/modules/6.1/modules.builtin", "kernel/net/netfilter/xt_mark.ko\n")
	write(t, root, "proc/config.gz", "# CONFIG_IP_NF_IPTABLES is not set\nCONFIG_NF_CT_NETLINK=y\nCONFIG_NETFILTER_XT_MATCH_CONNTRACK=m\nCONFIG_IP6_NF_IPTABLES=n\n")
	check := func(f Files, want ...string) {
		t.Helper()
		present, err := f.Present()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range Modules() {
			if present[m.Name] {
				got = append(got, m.Name)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	check(Files{Root: root, Release: "6.1"}, "ip_set", "vfio-pci", "nf_conntrack_netlink", "xt_conntrack", "xt_mark", "xt_set", "xt_u32")
	check(Files{Root: root, Release: "6.2"}, "ip_set", "nf_conntrack_netlink", "xt_conntrack", "xt_set")
	write(t, root, "my.config", "CONFIG_BPF=y\n")
	check(Files{Root: root, Release: "6.2", Config: filepath.Join(root, "my.config")}, "ip_set", "xt_bpf", "xt_set")
	if _, err := (Files{Root: root, Config: filepath.Join(root, "none")}).Present(); err == nil {
		t.Error("a configuration that is not there was read")
	}
}
