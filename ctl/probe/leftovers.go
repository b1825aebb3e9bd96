package probe

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// The networks whose leftovers are known.
const (
	calico  = "Calico"
	flannel = "flannel"
)

// Leftover is something that a container network put on this machine.
type Leftover struct {
	Of   string // "Calico" or "flannel"
	What string // "interface tunl0"
	Keep string // why Clean leaves it alone; empty: it removes it
}

// Cleaned is what became of a leftover.
type Cleaned struct {
	Leftover
	Err error // it could not be removed
}

// object is a leftover with the way to remove it. Objects are removed in the
// order in which they are found: what refers to something before that.
type object struct {
	Leftover
	remove func() error // nil: Keep says why
}

// machine is what is looked at: the network namespace of the calling thread and
// the files below root.
type machine struct {
	root   string
	handle *netlink.Handle
	ours   bool            // Maneki has been here: names that it shares with Calico may be its own
	runs   map[string]bool // networks that a process serves at the moment
}

// Leftovers lists what Calico and flannel have put on this machine, or use now.
// root is "" for the machine itself. It only reads.
func Leftovers(root string) ([]Leftover, error) {
	objects, done, err := find(root)
	defer done()
	out := make([]Leftover, 0, len(objects))
	for _, o := range objects {
		out = append(out, o.Leftover)
	}
	return out, err
}

// Clean removes what Leftovers lists without a reason to keep it. It goes on
// when something cannot be removed.
func Clean(root string) ([]Cleaned, error) {
	objects, done, err := find(root)
	defer done()
	if err != nil {
		return nil, err
	}
	out := make([]Cleaned, 0, len(objects))
	for _, o := range objects {
		c := Cleaned{Leftover: o.Leftover}
		if o.remove != nil && o.Keep == "" {
			c.Err = o.remove()
		}
		out = append(out, c)
	}
	return out, nil
}

// find lists everything with the way to remove it. done is to be called when
// nothing will be removed any more.
func find(root string) (objects []object, done func(), err error) {
	m := &machine{root: root, runs: map[string]bool{}}
	if m.handle, err = netlink.NewHandle(netlinkFamilies()...); err != nil {
		return nil, func() {}, fmt.Errorf("open netlink: %w", err)
	}
	m.ours = m.maneki()
	processes := m.processes()
	var failed []error
	for _, look := range []func() ([]object, error){m.rules, m.routes, m.nftables, m.interfaces, m.sets} {
		found, err := look()
		objects, failed = append(objects, found...), append(failed, err)
	}
	for i := range objects {
		if o := &objects[i]; m.runs[o.Of] && o.Keep == "" {
			o.Keep = o.Of + " runs on this host: stop it first"
		}
	}
	objects = append(objects, files(root)...)
	return append(objects, processes...), m.handle.Close, errors.Join(failed...)
}

// maneki reports whether an agent runs or has run here.
func (m *machine) maneki() bool {
	for _, path := range []string{"/var/lib/maneki/*", "/run/maneki/agent.lock"} {
		if found, err := filepath.Glob(filepath.Join("/", m.root, path)); err == nil && len(found) > 0 {
			return true
		}
	}
	return false
}

// keepShared is why an object stays whose name Maneki uses as well.
func (m *machine) keepShared() string {
	if m.ours {
		return "Maneki uses this name too, and removes it itself when no pool asks for it"
	}
	return ""
}

func files(root string) (found []object) {
	for _, t := range []struct{ of, name string }{
		{calico, "/etc/cni/net.d/10-calico.conflist"},
		{calico, "/etc/cni/net.d/calico-kubeconfig"},
		{calico, "/opt/cni/bin/calico"},
		{calico, "/opt/cni/bin/calico-ipam"},
		{calico, "/var/lib/calico"},
		{calico, "/var/run/calico"},
		{calico, "/etc/calico"},
		{flannel, "/etc/cni/net.d/10-flannel.conflist"},
		{flannel, "/opt/cni/bin/flannel"},
		{flannel, subnetFile},
		{flannel, "/var/lib/cni/flannel"},
		{flannel, "/var/lib/cni/networks/cbr0"},
		{flannel, "/etc/kube-flannel/net-conf.json"},
	} {
		if _, err := os.Lstat(filepath.Join("/", root, t.name)); err == nil {
			found = append(found, object{Leftover: Leftover{t.of, "file " + t.name, "files are not removed"}})
		}
	}
	return found
}

// processes finds those that serve a network in this network namespace.
func (m *machine) processes() (found []object) {
	owner := map[string]string{
		"calico-node": calico, "calico-felix": calico, "bird": calico, "bird6": calico, "confd": calico,
		"calico-typha": calico, "flanneld": flannel,
	}
	here, _ := os.Readlink("/proc/thread-self/ns/net") // empty: nothing is left out
	names, _ := filepath.Glob(filepath.Join("/", m.root, "proc/[0-9]*/comm"))
	for _, path := range names {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		comm := strings.TrimSpace(string(text))
		of := owner[comm]
		if of == "" {
			continue
		}
		if there, err := os.Readlink(filepath.Join(filepath.Dir(path), "ns/net")); err == nil && here != "" && there != here {
			continue // of another network, such as a container's
		}
		m.runs[of] = true
		what := fmt.Sprintf("process %s (%s)", comm, filepath.Base(filepath.Dir(path)))
		found = append(found, object{Leftover: Leftover{of, what, "processes are not stopped"}})
	}
	return found
}

// subnetFile is where flanneld says which network is its own
// (spec/flannel.md §7).
const subnetFile = "/run/flannel/subnet.env"

// flannelNetworks reads them; none when flanneld has left no file.
func flannelNetworks(root string) []string {
	f, err := os.Open(filepath.Join("/", root, subnetFile))
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []string
	for s := bufio.NewScanner(f); s.Scan(); {
		for _, name := range []string{"FLANNEL_NETWORK=", "FLANNEL_IPV6_NETWORK="} {
			if value, ok := strings.CutPrefix(s.Text(), name); ok {
				out = append(out, strings.Split(value, ",")...)
			}
		}
	}
	return slices.DeleteFunc(out, func(s string) bool { return s == "" })
}
