package endpoint

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// NamespaceLibnetwork is where the endpoints of Docker containers live (spec/calico.md §8).
const NamespaceLibnetwork = "libnetwork"

// Annotations of the endpoints of Docker containers.
const (
	// AnnotationDockerNetwork is the ID of the Docker network that the endpoint belongs to.
	AnnotationDockerNetwork = "maneki.net/docker-network"
	// AnnotationDockerNetworkName is what its host's Docker calls that network.
	AnnotationDockerNetworkName = "maneki.net/docker-network-name"
	// AnnotationDockerNames are the container's names in the network, separated by commas, its own first.
	AnnotationDockerNames = "maneki.net/docker-names"
)

// portIfName is what Docker makes of the prefix "cali" inside the container.
const portIfName = "cali0"

// tempPrefix begins the name that the container's end has until the runtime takes it.
const tempPrefix = "temp"

// portNameLength is how much of a port's ID is in interface names (spec/calico.md §8).
const portNameLength = 11

// Port is an attachment whose container's end waits in the host's namespace for the runtime to move it, and whose
// addresses were assigned before, by another request (Docker's division of labour). Both ends are on the host, the
// host's up and with its routes in place, before the runtime hears of the pair.
type Port struct {
	ID      string // the runtime's ID of the endpoint: letters and digits, at least 11
	Network string // the name of the profile; created when it is not there
	Addrs   []netip.Addr

	// Internal: its containers reach each other and nothing else. A network is internal for all its containers or none.
	Internal bool

	MTU         int               // 0: the host's
	MAC         net.HardwareAddr  // nil: ee:ee:ee:ee:ee:ee
	Labels      map[string]string // of the WorkloadEndpoint
	Annotations map[string]string
}

// PortInfo is what the runtime must know of a port to put it into a container.
type PortInfo struct {
	Interface string // in the host's namespace
	MAC       net.HardwareAddr
	Addresses []netip.Prefix // IPv4 first
	Gateway4  netip.Addr     // invalid without an IPv4 address
	Gateway6  netip.Addr     // the same for IPv6
}

// portID is the ID under which journal and pending deletions know a port.
func portID(port string) ID {
	return ID{Network: OrchestratorLibnetwork, ContainerID: port, IfName: portIfName, Namespace: NamespaceLibnetwork, Port: port}
}

func tempName(port string) string { return tempPrefix + port[:portNameLength] }

// checkPortID reports an ID that names could not be made of.
func checkPortID(port string) error {
	ok := len(port) >= portNameLength && len(port) <= 128
	for _, c := range []byte(port) {
		ok = ok && (c >= '0' && c <= '9' || c >= 'a' && c <= 'z')
	}
	if !ok {
		return fmt.Errorf("%w: %w", ErrInvalid, &FieldError{"endpoint ID", port, "11 to 128 lower-case letters and digits"})
	}
	return nil
}

func (p *Port) check() error {
	if err := checkPortID(p.ID); err != nil {
		return err
	}
	s := Spec{ID: portID(p.ID), Addrs: p.Addrs, MTU: p.MTU, MAC: p.MAC}
	if err := s.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// endpoint builds the WorkloadEndpoint.
func (p *Port) endpoint(m *Manager) *api.WorkloadEndpoint {
	id := portID(p.ID)
	w := id.endpoint(m.Node, id.hostName(m.Prefix))
	labels := maps.Clone(p.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, w.Labels)
	w.Labels, w.Annotations = labels, maps.Clone(p.Annotations)
	s := Spec{Addrs: p.Addrs, MAC: p.MAC}
	w.Spec.MAC, w.Spec.Profiles = s.mac().String(), []string{p.Network}
	for _, a := range p.Addrs {
		w.Spec.IPNetworks = append(w.Spec.IPNetworks, netip.PrefixFrom(a, a.BitLen()).String())
	}
	return w
}

// AttachPort makes a port: the pair, the endpoint, the host's routes. When it fails all of it is undone. A port that
// is there already is made anew.
func (m *Manager) AttachPort(ctx context.Context, p Port) error {
	if err := p.check(); err != nil {
		return err
	}
	id := portID(p.ID)
	wep := p.endpoint(m)
	if err := wep.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	unlock, err := m.locks.lock(ctx, id.hostName(m.Prefix))
	if err != nil {
		return fmt.Errorf("attach port %s: %w", p.ID, err)
	}
	defer unlock()
	if err := m.attachPort(ctx, p, wep); err != nil {
		return fmt.Errorf("attach port %s: %w", p.ID, err)
	}
	return nil
}

func (m *Manager) attachPort(ctx context.Context, p Port, wep *api.WorkloadEndpoint) (err error) {
	if err := m.CheckReady(ctx); err != nil {
		return err
	}
	id := portID(p.ID)
	if err := m.deletePending(ctx, id); err != nil {
		return fmt.Errorf("delete the one before: %w", err)
	}
	if err := m.ensurePortProfile(ctx, &p); err != nil {
		return err
	}
	old, err := m.weps.Get(ctx, wep.Namespace, wep.Name)
	if errors.Is(err, datastore.ErrNotFound) {
		old, err = nil, nil
	}
	if err == nil {
		err = m.journal.begin(wep.Spec.InterfaceName, id)
	}
	if err != nil {
		return err
	}
	m.Step(StepJournal)
	defer func() {
		if err != nil {
			err = errors.Join(err, m.undoLate(ctx, id))
		}
	}()
	if err := m.createPort(ctx, id, wep, p.MTU); err != nil {
		return err
	}
	m.Step(StepPair)
	if err := m.store(ctx, wep, old); err != nil {
		return err
	}
	if err := m.Sink.Ensure(ctx, wep); err != nil {
		return fmt.Errorf("program the host: %w", err)
	}
	m.Step(StepRoutes)
	return m.journal.end(wep.Spec.InterfaceName)
}

// createPort makes the pair of a port. Interfaces of these names that nobody owns any more are removed first.
func (m *Manager) createPort(ctx context.Context, id ID, wep *api.WorkloadEndpoint, mtu int) error {
	addrs, err := addresses(wep)
	if err != nil {
		return err
	}
	if mtu == 0 && m.Config.MTU != nil {
		mtu = m.Config.MTU()
	}
	if mtu == 0 {
		mtu = defaultMTU
	}
	p := pair{hostName: wep.Spec.InterfaceName, ifName: tempName(id.Port), mac: parseMAC(wep.Spec.MAC), mtu: mtu, alias: id.alias()}
	p.v4, p.v6 = families(addrs)
	err = m.host.createPort(p)
	if !errors.Is(err, errNameTaken) {
		return err
	}
	if err := m.removeStale(ctx, p.hostName, wep); err != nil {
		return err
	}
	if err := m.host.removeLink(p.ifName); err != nil {
		return err
	}
	return m.host.createPort(p)
}

// createPort makes a pair with both ends in the host's namespace; the container's is down. The host's end has a random
// hardware address, as in Calico: the container's end moves to a namespace whose settings are the runtime's, where
// it makes its link-local address of its own hardware address, which must not be the gateway's.
func (h *host) createPort(p pair) (err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = p.ifName, p.mtu, p.mac
	veth := netlink.NewVeth(attrs)
	veth.PeerName = p.hostName
	err = h.with(func(nl *netlink.Handle) error { return nl.LinkAdd(veth) })
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%w: %s or %s on the host", errNameTaken, p.hostName, p.ifName)
	}
	if err != nil {
		return fmt.Errorf("create veth pair %s - %s: %w", p.hostName, p.ifName, err)
	}
	end, err := h.link(p.hostName)
	if err == nil {
		p.linkLocal = linkLocal(end.Attrs().HardwareAddr)
		err = h.bringUp(end.Attrs().Index, p)
	}
	if err != nil {
		return errors.Join(err, h.removeLink(p.hostName))
	}
	return nil
}

// linkLocal is the modified EUI-64 address of a hardware address (RFC 4291, appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	if len(mac) != 6 {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// OpenPort returns what the runtime needs to move the port into a container. A pair that is gone, as after a reboot, is
// made again.
func (m *Manager) OpenPort(ctx context.Context, port string) (PortInfo, error) {
	if err := checkPortID(port); err != nil {
		return PortInfo{}, err
	}
	id := portID(port)
	unlock, err := m.locks.lock(ctx, id.hostName(m.Prefix))
	if err != nil {
		return PortInfo{}, fmt.Errorf("open port %s: %w", port, err)
	}
	defer unlock()
	info, err := m.openPort(ctx, id)
	if err != nil {
		return PortInfo{}, fmt.Errorf("open port %s: %w", port, err)
	}
	return info, nil
}

func (m *Manager) openPort(ctx context.Context, id ID) (PortInfo, error) {
	own := id.endpoint(m.Node, id.hostName(m.Prefix))
	wep, err := m.weps.Get(ctx, own.Namespace, own.Name)
	if err != nil {
		return PortInfo{}, err
	}
	info := PortInfo{Interface: tempName(id.Port), MAC: parseMAC(wep.Spec.MAC)}
	if info.Addresses, err = addresses(wep); err != nil {
		return PortInfo{}, err
	}
	alias, err := m.host.alias(wep.Spec.InterfaceName)
	if err != nil {
		return PortInfo{}, err
	}
	if _, err := m.host.link(info.Interface); notFound(err) || alias != id.alias() {
		if err := m.createPort(ctx, id, wep, 0); err != nil {
			return PortInfo{}, err
		}
		if err := m.Sink.Ensure(ctx, wep); err != nil {
			return PortInfo{}, fmt.Errorf("program the host: %w", err)
		}
	} else if err != nil {
		return PortInfo{}, err
	}
	end, err := m.host.link(wep.Spec.InterfaceName)
	if err != nil {
		return PortInfo{}, err
	}
	v4, v6 := families(info.Addresses)
	if v4 {
		info.Gateway4 = gateway4
	}
	if v6 {
		info.Gateway6 = linkLocal(end.Attrs().HardwareAddr)
	}
	return info, nil
}

// SettlePort gives the container, which the runtime has put the port into, permanent neighbour entries for its
// gateways: the host answers ARP for 169.254.1.1 only where it has a default route.
func (m *Manager) SettlePort(_ context.Context, port string, netns *os.File) error {
	if err := checkPortID(port); err != nil {
		return err
	}
	if err := checkNetns(netns, m.host.id); err != nil {
		return fmt.Errorf("settle port %s: %w", port, err)
	}
	end, err := m.host.link(portID(port).hostName(m.Prefix))
	if err != nil {
		return fmt.Errorf("settle port %s: %w", port, err)
	}
	var nl *netlink.Handle
	err = visit(netns, m.host.home, func() (err error) {
		nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("settle port %s: open netlink in container: %w", port, err)
	}
	defer nl.Close()
	// The kernel gives each end the other's index as its parent. Indexes of two namespaces may be equal, so the
	// other end is asked too.
	inside, err := nl.LinkByIndex(end.Attrs().ParentIndex)
	if err != nil || inside.Attrs().ParentIndex != end.Attrs().Index {
		return fmt.Errorf("settle port %s: %w: it is not in this container", port, ErrBroken)
	}
	// A change of the hardware address, which the runtime sets before it sets the link up, would remove the entries.
	if inside.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("settle port %s: %w: it is down in the container", port, ErrBroken)
	}
	for _, gw := range []netip.Addr{gateway4, linkLocal(end.Attrs().HardwareAddr)} {
		n := &netlink.Neigh{LinkIndex: inside.Attrs().Index, State: netlink.NUD_PERMANENT, IP: gw.AsSlice(), HardwareAddr: end.Attrs().HardwareAddr}
		if err := nl.NeighSet(n); err != nil && gw.Is4() { // IPv6 may be switched off in the container
			return fmt.Errorf("settle port %s: add neighbour %s: %w", port, gw, err)
		}
	}
	return nil
}

// ClosePort removes the pair of a port, wherever its container's end is, and the host's routes; the endpoint stays. It is no error when it is
// not there.
func (m *Manager) ClosePort(ctx context.Context, port string) error {
	if err := checkPortID(port); err != nil {
		return err
	}
	id := portID(port)
	unlock, err := m.locks.lock(ctx, id.hostName(m.Prefix))
	if err != nil {
		return fmt.Errorf("close port %s: %w", port, err)
	}
	defer unlock()
	// Routes first: while they are wanted, their table would try to put them on an interface that is no more.
	own := id.endpoint(m.Node, id.hostName(m.Prefix))
	if err = m.Sink.Remove(ctx, own.Namespace, own.Name); err == nil {
		err = m.host.removeIf(id.hostName(m.Prefix), id.alias())
	}
	if err != nil {
		return fmt.Errorf("close port %s: %w", port, err)
	}
	return nil
}

// DetachPort removes a port with its endpoint; the addresses stay assigned. Like Detach it succeeds without the
// datastore and finishes later.
func (m *Manager) DetachPort(ctx context.Context, port string) error {
	if err := checkPortID(port); err != nil {
		return err
	}
	return m.Detach(ctx, portID(port))
}

// errUnchanged ends a change that would change nothing.
var errUnchanged = errors.New("unchanged")

// LabelPort replaces the labels of a port's endpoint, keeping those that storage adds, and adds annotations.
func (m *Manager) LabelPort(ctx context.Context, port string, labels, annotations map[string]string) error {
	if err := checkPortID(port); err != nil {
		return err
	}
	id := portID(port)
	own := id.endpoint(m.Node, id.hostName(m.Prefix))
	_, err := m.weps.Modify(ctx, own.Namespace, own.Name, func(w *api.WorkloadEndpoint) error {
		before := w.Labels
		w.Labels = maps.Clone(labels)
		if w.Annotations == nil {
			w.Annotations = map[string]string{}
		}
		notes := maps.Clone(w.Annotations)
		maps.Copy(w.Annotations, annotations)
		w.Default()
		if maps.Equal(before, w.Labels) && maps.Equal(notes, w.Annotations) {
			return errUnchanged
		}
		return w.Validate()
	})
	if err != nil && !errors.Is(err, errUnchanged) {
		return fmt.Errorf("label port %s: %w", port, err)
	}
	return nil
}

// PublishPort replaces the ports at which the host serves a port's endpoint at its own addresses (HostPort), and puts that
// into effect; the profile PublishedPorts lets everybody in to those of that name. None takes them all back. Ports
// without a HostPort stay.
func (m *Manager) PublishPort(ctx context.Context, port string, published []api.EndpointPort) error {
	if err := checkPortID(port); err != nil {
		return err
	}
	id := portID(port)
	unlock, err := m.locks.lock(ctx, id.hostName(m.Prefix))
	if err != nil {
		return fmt.Errorf("publish port %s: %w", port, err)
	}
	defer unlock()
	if len(published) > 0 {
		if err := m.ensureProfile(ctx, publishedProfile()); err != nil {
			return fmt.Errorf("publish port %s: %w", port, err)
		}
	}
	own := id.endpoint(m.Node, id.hostName(m.Prefix))
	w, err := m.weps.Modify(ctx, own.Namespace, own.Name, func(w *api.WorkloadEndpoint) error {
		w.Spec.Ports = slices.DeleteFunc(w.Spec.Ports, func(p api.EndpointPort) bool { return p.HostPort != 0 })
		w.Spec.Ports = append(w.Spec.Ports, published...)
		w.Spec.Profiles = slices.DeleteFunc(w.Spec.Profiles, func(p string) bool { return p == PublishedPorts })
		if len(published) > 0 {
			w.Spec.Profiles = append(w.Spec.Profiles, PublishedPorts)
		}
		return w.Validate()
	})
	if err == nil {
		err = m.Sink.Ensure(ctx, w)
	}
	if err != nil {
		return fmt.Errorf("publish port %s: %w", port, err)
	}
	return nil
}

// IdlePorts are the ports of this node whose endpoint was stored before the given time and whose pair is not in a
// container: it is gone, or both ends are on the host.
func (m *Manager) IdlePorts(ctx context.Context, before time.Time) ([]string, error) {
	ports, err := m.Ports(ctx)
	if err != nil {
		return nil, err
	}
	var idle []string
	for _, w := range ports {
		port := w.Spec.Endpoint
		if checkPortID(port) != nil || w.CreationTimestamp == nil || !w.CreationTimestamp.Before(before) {
			continue
		}
		alias, err := m.host.alias(w.Spec.InterfaceName)
		if err != nil {
			return nil, err
		}
		_, waiting := m.host.link(tempName(port))
		if alias == missing || alias == portID(port).alias() && waiting == nil {
			idle = append(idle, port)
		}
	}
	return idle, nil
}

// PortAddresses are the addresses of all ports of this node, each with its port.
func (m *Manager) PortAddresses(ctx context.Context) (map[netip.Addr]string, error) {
	ports, err := m.Ports(ctx)
	if err != nil {
		return nil, err
	}
	used := map[netip.Addr]string{}
	for _, w := range ports {
		addrs, err := addresses(w)
		if err != nil {
			return nil, err
		}
		for _, p := range addrs {
			used[p.Addr()] = w.Spec.Endpoint
		}
	}
	return used, nil
}

// Ports lists the endpoints of the ports of this node. One that cannot be read is an error: whoever took it for absent would free what
// it uses.
func (m *Manager) Ports(ctx context.Context) ([]*api.WorkloadEndpoint, error) {
	all, _, problems, err := m.weps.List(ctx, NamespaceLibnetwork)
	if err == nil {
		err = errors.Join(problems...)
	}
	if err != nil {
		return nil, fmt.Errorf("list endpoints: %w", err)
	}
	return slices.DeleteFunc(all, func(w *api.WorkloadEndpoint) bool {
		return w.Spec.Node != m.Node || w.Spec.Orchestrator != OrchestratorLibnetwork
	}), nil
}
