// Package install puts the CNI executable and its network configuration in place on a host, and takes them away again
// ("maneki cni install"). The executable is carried inside the maneki binary, so that both are always of one version.
//
// Every file appears whole or not at all, under its final mode: the executable 0755 without set-user-ID bits or file
// capabilities, the configuration 0644. A runtime that reads the directory meanwhile sees the old file or the new one.
package install

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containernetworking/cni/pkg/utils"

	"github.com/manekinet/maneki/atomicfile"
	"github.com/manekinet/maneki/cni/wire"
)

// shims holds maneki-cni-<GOARCH>, if it was built, and a README.
//
//go:embed shim
var shims embed.FS

// Program is the executable's name, which is the "type" in network configurations.
const Program = "maneki-cni"

// ErrNoShim means that this binary was built without the executable.
var ErrNoShim = errors.New("this binary was built without " + Program + ": build it with 'make'")

// Options says what is installed where. The zero value is a host's usual layout.
type Options struct {
	BinDir   string // empty: /opt/cni/bin
	ConfDir  string // empty: /etc/cni/net.d
	Network  string // name of the network and, after "10-", of its file; empty: "maneki"
	MTU      int    // 0: the agent's choice
	IPv6     bool   // give containers an IPv6 address as well
	Socket   string // of the agent; empty: wire.DefaultSocket
	StateDir string // for deletions while the agent is down; empty: wire.DefaultStateDir

	// Executable is installed instead of the embedded one.
	Executable []byte
}

func (o Options) withDefaults() Options {
	o.BinDir, o.ConfDir = cmp.Or(o.BinDir, "/opt/cni/bin"), cmp.Or(o.ConfDir, "/etc/cni/net.d")
	o.Network = cmp.Or(o.Network, "maneki")
	return o
}

func (o Options) check() error {
	if err := utils.ValidateNetworkName(o.Network); err != nil {
		return fmt.Errorf("network %q: letters, digits, '_', '.' and '-', the first a letter or digit", o.Network)
	}
	if o.MTU != 0 && (o.MTU < 1280 || o.MTU > 65535) {
		return fmt.Errorf("mtu %d: 0 for the agent's choice, or 1280 to 65535", o.MTU)
	}
	for name, path := range map[string]string{
		"bin-dir": o.BinDir, "conf-dir": o.ConfDir, "socket": cmp.Or(o.Socket, "/"), "state-dir": cmp.Or(o.StateDir, "/"),
	} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%s %q: an absolute path", name, path)
		}
	}
	return nil
}

func (o Options) program() string { return filepath.Join(o.BinDir, Program) }
func (o Options) conflist() string {
	return filepath.Join(o.ConfDir, "10-"+o.Network+".conflist")
}

// Installed names the files of an installation.
type Installed struct{ Program, Conflist string }

// Install writes the executable, then the configuration that names it. Doing it again replaces both.
func Install(ctx context.Context, o Options) (Installed, error) {
	o = o.withDefaults()
	if err := o.check(); err != nil {
		return Installed{}, err
	}
	program := o.Executable
	if program == nil {
		var err error
		if program, err = Shim(); err != nil {
			return Installed{}, err
		}
	}
	conf, err := o.configuration()
	if err != nil {
		return Installed{}, err
	}
	for _, f := range []struct {
		path string
		data []byte
		mode fs.FileMode
	}{{o.program(), program, 0o755}, {o.conflist(), conf, 0o644}} {
		if err := ctx.Err(); err != nil {
			return Installed{}, err
		}
		if err := replaceFile(f.path, f.data, f.mode); err != nil {
			return Installed{}, fmt.Errorf("install %s: %w", f.path, err)
		}
	}
	return Installed{Program: o.program(), Conflist: o.conflist()}, nil
}

// Uninstall removes the configuration, then the executable unless another network's configuration in the same
// directory still names it. It returns what it removed; what is not there is no error.
func Uninstall(ctx context.Context, o Options) (removed []string, err error) {
	o = o.withDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	paths := []string{o.conflist()}
	used, err := o.usedElsewhere()
	if err != nil {
		return nil, err
	}
	if !used {
		paths = append(paths, o.program())
	}
	for _, path := range paths {
		switch err := os.Remove(path); {
		case err == nil:
			removed = append(removed, path)
		case !errors.Is(err, fs.ErrNotExist):
			return removed, fmt.Errorf("uninstall: %w", err)
		}
	}
	return removed, nil
}

// usedElsewhere reports whether a configuration other than ours names the executable.
func (o Options) usedElsewhere() (bool, error) {
	files, err := filepath.Glob(filepath.Join(o.ConfDir, "*.conf*"))
	if err != nil {
		return false, fmt.Errorf("uninstall: %w", err)
	}
	for _, f := range files {
		if f == o.conflist() {
			continue
		}
		data, err := os.ReadFile(f)
		if err != nil {
			return false, fmt.Errorf("uninstall: %w", err)
		}
		if bytes.Contains(data, []byte(`"`+Program+`"`)) {
			return true, nil
		}
	}
	return false, nil
}

// Shim is the embedded executable for this machine, or ErrNoShim.
func Shim() ([]byte, error) {
	data, err := shims.ReadFile("shim/" + Program + "-" + runtime.GOARCH)
	if err != nil || len(data) == 0 {
		return nil, ErrNoShim
	}
	return data, nil
}

// conflist is a network configuration list (CNI specification 1.1, section 1).
type conflist struct {
	CNIVersion  string   `json:"cniVersion"`
	CNIVersions []string `json:"cniVersions"`
	Name        string   `json:"name"`
	Plugins     []plugin `json:"plugins"`
}

type plugin struct {
	Type         string          `json:"type"`
	MTU          int             `json:"mtu,omitempty"`
	IPAM         *ipam           `json:"ipam,omitempty"`
	Socket       string          `json:"maneki_socket,omitempty"`
	StateDir     string          `json:"maneki_state_dir,omitempty"`
	SNAT         bool            `json:"snat,omitempty"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`
}

type ipam struct {
	Type       string `json:"type"`
	AssignIPv4 string `json:"assign_ipv4"`
	AssignIPv6 string `json:"assign_ipv6"`
}

// configuration is the content of the conflist. Runtimes with a CNI library from 1.2 on take the newest version of the
// list that they know, and so get STATUS and GC; older ones read cniVersion alone and refuse one that they do not know.
//
// The portmap plugin follows when it is installed beside ours, as in Calico's list: without it a runtime's port
// mappings would be ignored silently, and naming it where it is missing would fail every container.
func (o Options) configuration() ([]byte, error) {
	own := plugin{
		Type: Program, MTU: o.MTU,
		IPAM: &ipam{Type: "maneki-ipam", AssignIPv4: "true", AssignIPv6: fmt.Sprint(o.IPv6)},
	}
	if o.Socket != wire.DefaultSocket {
		own.Socket = o.Socket
	}
	if o.StateDir != wire.DefaultStateDir {
		own.StateDir = o.StateDir
	}
	list := conflist{CNIVersion: "1.0.0", CNIVersions: []string{"1.0.0", "1.1.0"}, Name: o.Network, Plugins: []plugin{own}}
	if _, err := os.Stat(filepath.Join(o.BinDir, "portmap")); err == nil {
		list.Plugins = append(list.Plugins, plugin{
			Type: "portmap", SNAT: true, Capabilities: map[string]bool{"portMappings": true},
		})
	}
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode network configuration: %w", err)
	}
	return append(data, '\n'), nil
}

// replaceFile writes data under path, making its directory where there is none.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, data, mode)
}
