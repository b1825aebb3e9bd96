package install_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/manekinet/maneki/cni/cnicmd"
	"github.com/manekinet/maneki/cni/install"
)

func options(t *testing.T) install.Options {
	root := t.TempDir()
	return install.Options{BinDir: filepath.Join(root, "bin"), ConfDir: filepath.Join(root, "net.d"), Executable: []byte("#!program")}
}

func TestInstallAndUninstall(t *testing.T) {
	o := options(t)
	for range 2 { // the second replaces the first
		done, err := install.Install(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		for path, mode := range map[string]os.FileMode{done.Program: 0o755, done.Conflist: 0o644} {
			if info, err := os.Stat(path); err != nil || info.Mode() != mode {
				t.Errorf("%s: mode %v, want %v: %v", path, info.Mode(), mode, err)
			}
		}
	}
	want := `{
  "cniVersion": "1.0.0",
  "cniVersions": [
    "1.0.0",
    "1.1.0"
  ],
  "name": "maneki",
  "plugins": [
    {
      "type": "maneki-cni",
      "ipam": {
        "type": "maneki-ipam",
        "assign_ipv4": "true",
        "assign_ipv6": "false"
      }
    }
  ]
}
`
	path := filepath.Join(o.ConfDir, "10-maneki.conflist")
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%v\n%s", err, got)
	}
	if list, err := libcni.ConfListFromFile(path); err != nil || list.CNIVersion != "1.1.0" {
		t.Errorf("a new runtime reads %+v, %v", list, err)
	}
	removed, err := install.Uninstall(t.Context(), o)
	if err != nil || len(removed) != 2 {
		t.Errorf("removed %v, %v", removed, err)
	}
	for _, dir := range []string{o.BinDir, o.ConfDir} {
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%s still holds %v", dir, left)
		}
	}
	if removed, err := install.Uninstall(t.Context(), o); err != nil || len(removed) != 0 {
		t.Errorf("second uninstall: %v, %v", removed, err)
	}
}

func TestOptionsAndPortmap(t *testing.T) {
	o := options(t)
	o.Network, o.MTU, o.IPv6, o.Socket, o.StateDir = "net1", 1400, true, "/run/x.sock", "/var/lib/x"
	if err := os.MkdirAll(o.BinDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(o.BinDir, "portmap"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	done, err := install.Install(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	data, _ := os.ReadFile(done.Conflist)
	for _, want := range []string{
		`"name": "net1"`, `"mtu": 1400`, `"assign_ipv6": "true"`, `"maneki_socket": "/run/x.sock"`, `"maneki_state_dir": "/var/lib/x"`,
		`"type": "portmap"`, `"portMappings": true`,
	} {
		if !strings.Contains(string(data), want) {
			t.Errorf("configuration lacks %s:\n%s", want, data)
		}
	}
}

func TestProgramOfAnotherNetworkStays(t *testing.T) {
	a := options(t)
	b := a
	b.Network = "second"
	for _, o := range []install.Options{a, b} {
		if _, err := install.Install(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := install.Uninstall(t.Context(), a)
	if err != nil || len(removed) != 1 || filepath.Base(removed[0]) != "10-maneki.conflist" {
		t.Errorf("removed %v, %v", removed, err)
	}
}

func TestBadOptions(t *testing.T) {
	for want, change := range map[string]func(*install.Options){
		"network":  func(o *install.Options) { o.Network = "../x" },
		"mtu 12":   func(o *install.Options) { o.MTU = 12 },
		"bin-dir":  func(o *install.Options) { o.BinDir = "bin" },
		"socket":   func(o *install.Options) { o.Socket = "s" },
		"conf-dir": func(o *install.Options) { o.ConfDir = "./x" },
	} {
		o := options(t)
		bin := o.BinDir
		change(&o)
		if _, err := install.Install(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
		if _, err := os.Stat(bin); !os.IsNotExist(err) {
			t.Errorf("%s: something was installed", want)
		}
	}
}

// TestCommand runs the verb, with the embedded executable if this binary has one.
func TestCommand(t *testing.T) {
	root := t.TempDir()
	var out bytes.Buffer
	c := cnicmd.Command()
	c.SetOut(&out)
	c.SetErr(&out)
	c.SilenceUsage = true
	c.SetArgs([]string{"install", "--bin-dir", root + "/bin", "--conf-dir", root + "/net.d", "--ipv6"})
	err := c.ExecuteContext(t.Context())
	shim, shimErr := install.Shim()
	if shimErr != nil {
		if !errors.Is(err, install.ErrNoShim) || !strings.Contains(err.Error(), "make") {
			t.Errorf("without the executable: %v", err)
		}
		if _, err := os.Stat(root + "/net.d"); !os.IsNotExist(err) {
			t.Error("a configuration was installed without its program")
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(root + "/bin/maneki-cni"); err != nil || !bytes.Equal(got, shim) {
		t.Errorf("installed program differs: %v", err)
	}
	if want := "Installed " + root + "/bin/maneki-cni\nInstalled " + root + "/net.d/10-maneki.conflist\n"; out.String() != want {
		t.Errorf("output %q", out.String())
	}
}
