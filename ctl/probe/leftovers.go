package probe

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Leftover is something that a container network put on this machine.
type Leftover struct {
	Of   string // "Calico" or "flannel"
	What string // "interface tunl0"
}

// trace is a file, process or interface by which a network is known.
type trace struct{ of, name string }

// Leftovers lists what Calico and flannel have put on this machine, or use now.
// root is "" for the machine itself. It only reads. What the agent of this host
// made for itself cannot be told apart from what Calico made.
func Leftovers(root string) ([]Leftover, error) {
	found := files(root)
	found = append(found, processes(root)...)
	links, err := interfaces()
	if err != nil {
		return nil, err
	}
	found = append(found, links...)
	routes, err := birdRoutes()
	return append(found, routes...), err
}

func files(root string) (found []Leftover) {
	for _, t := range []trace{
		{"Calico", "/etc/cni/net.d/10-calico.conflist"},
		{"Calico", "/etc/cni/net.d/calico-kubeconfig"},
		{"Calico", "/opt/cni/bin/calico"},
		{"Calico", "/opt/cni/bin/calico-ipam"},
		{"Calico", "/var/lib/calico"},
		{"Calico", "/var/run/calico"},
		{"Calico", "/etc/calico"},
		{"flannel", "/etc/cni/net.d/10-flannel.conflist"},
		{"flannel", "/opt/cni/bin/flannel"},
		{"flannel", "/run/flannel/subnet.env"},
		{"flannel", "/var/lib/cni/flannel"},
		{"flannel", "/var/lib/cni/networks/cbr0"},
		{"flannel", "/etc/kube-flannel/net-conf.json"},
	} {
		if _, err := os.Lstat(filepath.Join("/", root, t.name)); err == nil {
			found = append(found, Leftover{t.of, "file " + t.name})
		}
	}
	return found
}

func processes(root string) (found []Leftover) {
	owner := map[string]string{
		"calico-node": "Calico", "calico-felix": "Calico", "bird": "Calico", "bird6": "Calico", "confd": "Calico",
		"calico-typha": "Calico", "flanneld": "flannel",
	}
	names, _ := filepath.Glob(filepath.Join("/", root, "proc/[0-9]*/comm"))
	for _, path := range names {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		comm := strings.TrimSpace(string(text))
		if of := owner[comm]; of != "" {
			found = append(found, Leftover{of, fmt.Sprintf("process %s (%s)", comm, filepath.Base(filepath.Dir(path)))})
		}
	}
	return found
}

func interfaces() ([]Leftover, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return ofInterfaces(names), nil
}

// ofInterfaces finds the interfaces that Calico or flannel named.
func ofInterfaces(names []string) (found []Leftover) {
	workloads := 0
	for _, name := range names {
		of := ""
		switch {
		case slices.Contains([]string{"tunl0", "vxlan.calico", "vxlan-v6.calico", "wireguard.cali", "wg-v6.cali", "bpfin.cali", "bpfout.cali"}, name):
			of = "Calico"
		case strings.HasPrefix(name, "cali"):
			workloads++
		case name == "cni0", strings.HasPrefix(name, "flannel"):
			of = "flannel"
		}
		if of != "" {
			found = append(found, Leftover{of, "interface " + name})
		}
	}
	if workloads > 0 {
		found = append(found, Leftover{"Calico", fmt.Sprintf("%d interfaces of workloads (cali...)", workloads)})
	}
	return found
}

// routeProtocolBird is what BIRD marks its routes with.
const routeProtocolBird = unix.RTPROT_BIRD

func birdRoutes() ([]Leftover, error) {
	total := 0
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: routeProtocolBird}, netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		total += len(routes)
	}
	if total == 0 {
		return nil, nil
	}
	return []Leftover{{"Calico", fmt.Sprintf("%d routes (proto bird)", total)}}, nil
}
