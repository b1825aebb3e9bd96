package trace

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/api"
)

// Here is the world as one host sees it: itself and its own workloads by
// looking, everything else as the datastore says it should be. There is no
// channel between hosts by which another one could be looked at.
type Here struct {
	Cluster *Cluster
	Self    string       // this host's Node
	Running bool         // its agent
	Ends    []netip.Addr // of the trace; the routes towards them are computed

	views map[string]*View
}

// Close gives back the views.
func (w *Here) Close() {
	for _, v := range w.views {
		v.Close()
	}
}

// Agent implements World.
func (w *Here) Agent(host string) string {
	switch {
	case host != w.Self:
		return ""
	case w.Running:
		return AgentRuns
	}
	return AgentGone
}

// View implements World.
func (w *Here) View(name string) (*View, error) {
	if v := w.views[name]; v != nil {
		return v, nil
	}
	v, err := w.look(name)
	if err != nil {
		return nil, err
	}
	if w.views == nil {
		w.views = map[string]*View{}
	}
	w.views[name] = v
	return v, nil
}

func (w *Here) look(name string) (*View, error) {
	if name == w.Self {
		return Look(name, Host)
	}
	if w.Cluster.nodes[name] != nil {
		return w.expected(name, nil)
	}
	wep := w.Cluster.workload(func(e *api.WorkloadEndpoint) bool { return display(e) == name })
	switch {
	case wep == nil:
		return nil, fmt.Errorf("nothing is known of %s", name)
	case wep.Spec.Node != w.Self:
		return w.remoteWorkload(wep), nil
	}
	path, dev, err := peerNamespace(wep.Spec.InterfaceName)
	if err != nil {
		return nil, err
	}
	var v *View
	err = InNamespace(path, func() (err error) {
		v, err = Look(name, Container)
		return err
	})
	if err == nil && dev != endpointDevice(wep) {
		err = fmt.Errorf("the other end of %s is called %s, not %s", wep.Spec.InterfaceName, dev, endpointDevice(wep))
	}
	return v, err
}

func endpointDevice(w *api.WorkloadEndpoint) string {
	if w.Spec.Endpoint == "" {
		return "eth0"
	}
	return w.Spec.Endpoint
}

// remoteWorkload is a container of another host as its attachment makes it.
func (w *Here) remoteWorkload(e *api.WorkloadEndpoint) *View {
	dev := endpointDevice(e)
	link := Link{Name: dev, Type: "veth", Up: true, Carrier: true}
	for _, text := range e.Spec.IPNetworks {
		if p, err := netip.ParsePrefix(text); err == nil {
			link.Addrs = append(link.Addrs, p)
		}
	}
	v := &View{Name: display(e), Kind: Container, Seen: Datastore, Links: []Link{link}}
	for _, gateway := range []string{"169.254.1.1", "fe80::ecee:eeff:feee:eeee"} {
		a := netip.MustParseAddr(gateway)
		v.Routes = append(v.Routes, Route{
			Dst: netip.PrefixFrom(a, 0).Masked(), Type: Unicast, Gateway: a, Dev: dev, Table: tableMain,
			Line: "default via " + gateway + " dev " + dev,
		})
	}
	return v
}

// expected is a host with the routes towards both ends of the trace.
func (w *Here) expected(name string, real []Link) (*View, error) {
	var v *View
	for _, a := range w.Ends {
		one, err := w.Cluster.View(name, real, a)
		if err != nil {
			return nil, err
		}
		if v == nil {
			v = one
			continue
		}
		for _, r := range one.Routes {
			if !slices.Contains(v.Routes, r) {
				v.Routes = append(v.Routes, r)
			}
		}
	}
	if v == nil {
		return nil, errors.New("the trace has no ends")
	}
	return v, nil
}

// Wanted implements World.
func (w *Here) Wanted(at *View, dst netip.Addr) *View {
	if w.Cluster == nil {
		return nil
	}
	v, err := w.Cluster.View(at.Name, at.Links, dst)
	if err != nil {
		return nil
	}
	return v
}

// Across implements World.
func (w *Here) Across(from *View, out Link, next, dst netip.Addr) (Crossing, error) {
	if from.Kind == Container {
		wep := w.Cluster.workload(func(e *api.WorkloadEndpoint) bool { return display(e) == from.Name })
		if wep == nil {
			return Crossing{}, fmt.Errorf("the datastore has no workload %s", from.Name)
		}
		return Crossing{To: wep.Spec.Node, Dev: wep.Spec.InterfaceName}, nil
	}
	if wep := w.Cluster.workload(func(e *api.WorkloadEndpoint) bool {
		return e.Spec.Node == from.Name && e.Spec.InterfaceName == out.Name
	}); wep != nil {
		return Crossing{To: display(wep), Dev: endpointDevice(wep)}, nil
	}
	if node, dev := w.holder(next); node != "" {
		return Crossing{To: node, Dev: dev}, nil
	}
	// By a router: it must know the hosts; of the containers' network it need not know.
	if node, dev := w.holder(dst); node != "" {
		return Crossing{Router: next, To: node, Dev: dev}, nil
	}
	return Crossing{}, nil
}

// holder finds the host that has an address on its underlay.
func (w *Here) holder(a netip.Addr) (node, dev string) {
	for name, n := range w.Cluster.nodes {
		for _, family := range []int{4, 6} {
			if p, ok := n.BGPAddr(family); !ok || p.Addr() != a {
				continue
			}
			v, err := w.View(name)
			if err != nil {
				return name, ""
			}
			l, _ := v.Owner(a)
			return name, l.Name
		}
	}
	return "", ""
}

// peerNamespace finds the other end of a veth of the calling thread's namespace:
// the namespace's path and the interface's name.
func peerNamespace(ifname string) (path, dev string, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return "", "", fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	l, err := h.LinkByName(ifname)
	if err != nil {
		return "", "", fmt.Errorf("interface %s of this host: %w", ifname, err)
	}
	id := l.Attrs().NetNsID
	if l.Type() != "veth" || id < 0 {
		return "", "", fmt.Errorf("interface %s of this host has no other end in another namespace", ifname)
	}
	path, err = namespaceWithID(h, id)
	if err != nil {
		return "", "", fmt.Errorf("find the other end of %s: %w", ifname, err)
	}
	err = InNamespace(path, func() error {
		in, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer in.Close()
		peer, err := in.LinkByIndex(l.Attrs().ParentIndex)
		if err == nil {
			dev = peer.Attrs().Name
		}
		return err
	})
	if err != nil {
		return "", "", fmt.Errorf("find the other end of %s: %w", ifname, err)
	}
	return path, dev, nil
}

// namespaceWithID looks for a process, or a mounted name, whose network
// namespace has this id in ours.
func namespaceWithID(h *netlink.Handle, id int) (string, error) {
	named, _ := filepath.Glob("/run/netns/*")
	for _, path := range named {
		if f, err := os.Open(path); err == nil {
			got, err := h.GetNetNsIdByFd(int(f.Fd()))
			_ = f.Close() // only read
			if err == nil && got == id {
				return path, nil
			}
		}
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return "", fmt.Errorf("list processes: %w", err)
	}
	seen := map[string]bool{} // namespaces, by their inode
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		path := fmt.Sprintf("/proc/%d/ns/net", pid)
		ns, err := os.Readlink(path)
		if err != nil || seen[ns] {
			continue
		}
		seen[ns] = true
		if got, err := h.GetNetNsIdByPid(pid); err == nil && got == id {
			return path, nil
		}
	}
	return "", errors.New("no process and no name in /run/netns has its namespace")
}
