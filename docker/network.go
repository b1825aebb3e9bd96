package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/endpoint"
)

// Names of what Docker says of a network.
const (
	optionsKey = "com.docker.network.generic" // what -o says
	ipv6Key    = "com.docker.network.enable_ipv6"
	internal   = "com.docker.network.internal"
)

// annotationNetworkID is what Calico notes on the pool of a network (spec/calico.md §8).
const annotationNetworkID = "org.projectcalico.label.network.ID"

func (s *Server) networkCalls() map[string]call {
	return map[string]call{
		"NetworkDriver.GetCapabilities":  early(s.capabilities),
		"NetworkDriver.CreateNetwork":    method(s.createNetwork),
		"NetworkDriver.DeleteNetwork":    method(s.deleteNetwork),
		"NetworkDriver.CreateEndpoint":   method(s.createEndpoint),
		"NetworkDriver.DeleteEndpoint":   method(s.deleteEndpoint),
		"NetworkDriver.Join":             method(s.join),
		"NetworkDriver.Leave":            method(s.leave),
		"NetworkDriver.EndpointOperInfo": fixed(operInfo{Value: map[string]string{}}),
		// The cluster is found through the datastore, not by Docker.
		"NetworkDriver.DiscoverNew":    fixed(none{}),
		"NetworkDriver.DiscoverDelete": fixed(none{}),

		"NetworkDriver.ProgramExternalConnectivity": method(s.programExternal),
		"NetworkDriver.RevokeExternalConnectivity":  method(s.revokeExternal),
	}
}

func (s *Server) capabilities(ctx context.Context) (networkCapabilities, error) {
	scope := s.Scope
	if scope == ScopeAuto {
		scope = ScopeLocal
		if hasClusterStore(peer(ctx)) {
			scope = ScopeGlobal
		}
	}
	return networkCapabilities{Scope: scope, ConnectivityScope: ScopeGlobal}, nil
}

// checkID refuses an ID that could not be a file's name.
func checkID(what, id string) error {
	ok := len(id) >= 12 && len(id) <= 128
	for _, c := range []byte(id) {
		ok = ok && (c >= '0' && c <= '9' || c >= 'a' && c <= 'z')
	}
	if !ok {
		return fmt.Errorf("%s %q: 12 to 128 lower-case letters and digits are allowed", what, id)
	}
	return nil
}

// createNetwork checks a network and remembers it.
func (s *Server) createNetwork(ctx context.Context, q networkRequest) (none, error) {
	if err := checkID("network ID", q.NetworkID); err != nil {
		return none{}, err
	}
	w := network{ID: q.NetworkID}
	for k, v := range q.Options {
		switch k {
		case ipv6Key:
		case internal:
			if err := json.Unmarshal(v, &w.Internal); err != nil {
				return none{}, fmt.Errorf("option %s is %s, not true or false", k, v)
			}
		case optionsKey:
			options := map[string]string{}
			if err := json.Unmarshal(v, &options); err != nil {
				return none{}, fmt.Errorf("options %s cannot be read: %w", v, err)
			}
			if err := w.set(options); err != nil {
				return none{}, err
			}
		default:
			return none{}, fmt.Errorf("Calico driver does not support the flag %s", strings.TrimPrefix(k, "com.docker.network.")) //nolint:staticcheck // Calico's words
		}
	}
	for _, d := range append(q.IPv4Data, q.IPv6Data...) {
		if d.Gateway != noGateway4 && d.Gateway != noGateway6 {
			return none{}, fmt.Errorf("a network of this driver needs --ipam-driver maneki-ipam (or calico-ipam); Docker's gave it the gateway %s", d.Gateway)
		}
		for name, text := range d.AuxAddresses {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return none{}, fmt.Errorf("--aux-address %s=%s is not an address", name, text)
			}
			w.Reserved = append(w.Reserved, p.Addr())
		}
		if err := s.annotate(ctx, d.Pool, q.NetworkID); err != nil {
			return none{}, err
		}
		w.addPool(d.Pool)
	}
	if err := s.networks.put(w); err != nil {
		return none{}, err
	}
	s.Log.Info("Docker network created", "network", q.NetworkID, "name", w.Name)
	return none{}, nil
}

// annotate notes the network on the pool that it was given by name, as Calico does; id empty removes the note.
func (s *Server) annotate(ctx context.Context, cidr, id string) error {
	want, err := netip.ParsePrefix(cidr)
	if err != nil {
		return fmt.Errorf("pool %q is not a CIDR", cidr)
	}
	if want.Bits() == 0 {
		return nil
	}
	pools := datastore.For[api.IPPool](s.Store)
	all, _, _, err := pools.List(ctx, "")
	if err != nil {
		return fmt.Errorf("list pools: %w", err)
	}
	for _, p := range all {
		if c, ok := p.Prefix(); !ok || c != want.Masked() {
			continue
		}
		_, err := pools.Modify(ctx, "", p.Name, func(p *api.IPPool) error {
			if p.Annotations == nil {
				p.Annotations = map[string]string{}
			}
			p.Annotations[annotationNetworkID] = id
			return nil
		})
		if err != nil {
			return fmt.Errorf("annotate pool %s: %w", p.Name, err)
		}
	}
	return nil
}

// deleteNetwork forgets a network. Its profile stays: policy may refer to it, and other hosts may use it.
func (s *Server) deleteNetwork(ctx context.Context, q networkRef) (none, error) {
	if err := checkID("network ID", q.NetworkID); err != nil {
		return none{}, err
	}
	pools := datastore.For[api.IPPool](s.Store)
	all, _, _, err := pools.List(ctx, "")
	if err != nil {
		return none{}, fmt.Errorf("list pools: %w", err)
	}
	for _, p := range all {
		if p.Annotations[annotationNetworkID] != q.NetworkID {
			continue
		}
		_, err := pools.Modify(ctx, "", p.Name, func(p *api.IPPool) error {
			if p.Annotations[annotationNetworkID] == q.NetworkID {
				delete(p.Annotations, annotationNetworkID)
			}
			return nil
		})
		if err != nil && !errors.Is(err, datastore.ErrNotFound) {
			return none{}, fmt.Errorf("annotate pool %s: %w", p.Name, err)
		}
	}
	if err := s.leavePools(ctx, q.NetworkID); err != nil {
		return none{}, err
	}
	return none{}, s.networks.remove(q.NetworkID)
}

// createEndpoint makes the port of a container that is about to start.
func (s *Server) createEndpoint(ctx context.Context, q endpointRequest) (a endpointAnswer, err error) {
	if err := errors.Join(checkID("network ID", q.NetworkID), checkID("endpoint ID", q.EndpointID)); err != nil {
		return a, err
	}
	if q.Interface == nil {
		return a, errors.New("interface is missing: the addresses must come from maneki-ipam or calico-ipam")
	}
	p := endpoint.Port{ID: q.EndpointID}
	for _, text := range []string{q.Interface.Address, q.Interface.AddressIPv6} {
		if text == "" {
			continue
		}
		addr, err := netip.ParsePrefix(text)
		if err != nil || !addr.IsSingleIP() {
			return a, fmt.Errorf("address %q is not a single one: it must come from maneki-ipam or calico-ipam", text)
		}
		if err := s.own(ctx, addr.Addr()); err != nil {
			return a, err
		}
		p.Addrs = append(p.Addrs, addr.Addr())
	}
	if q.Interface.MacAddress != "" {
		if p.MAC, err = net.ParseMAC(q.Interface.MacAddress); err != nil {
			return a, fmt.Errorf("--mac-address: %w", err)
		}
	} else {
		a.Interface.MacAddress = containerMAC
	}
	w, err := s.describe(ctx, q.NetworkID)
	if err != nil {
		return a, err
	}
	p.Network, p.MTU, p.Internal = profileName(w.Name), w.MTU, w.Internal
	if err := s.loadPorts(ctx); err != nil {
		return a, err
	}
	p.Labels, p.Annotations = s.foresee(ctx, w, &q)
	if err := s.Endpoints.AttachPort(ctx, p); err != nil {
		s.settled(p.ID)
		return a, err
	}
	s.ports.add(p.ID, p.Addrs)
	return a, nil
}

func (s *Server) loadPorts(ctx context.Context) error {
	return s.ports.load(func() (map[netip.Addr]string, error) { return s.Endpoints.PortAddresses(ctx) })
}

// containerMAC is every container's hardware address unless --mac-address says another.
const containerMAC = "ee:ee:ee:ee:ee:ee"

// own checks that an address was assigned to Docker on this host.
func (s *Server) own(ctx context.Context, addr netip.Addr) error {
	held, err := s.IPAM.Client().Lookup(ctx, addr)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(held.Handle, handlePrefix) || held.Node != s.Node {
		return fmt.Errorf("address %s is not assigned to Docker on this host", addr)
	}
	return nil
}

func (s *Server) deleteEndpoint(ctx context.Context, q endpointRef) (none, error) {
	s.ports.remove(q.EndpointID)
	s.settled(q.EndpointID)
	return none{}, s.Endpoints.DetachPort(ctx, q.EndpointID)
}

// join tells dockerd which interface to put into the container, and how.
func (s *Server) join(ctx context.Context, q joinRequest) (joinAnswer, error) {
	if err := errors.Join(checkID("network ID", q.NetworkID), checkID("endpoint ID", q.EndpointID)); err != nil {
		return joinAnswer{}, err
	}
	info, err := s.Endpoints.OpenPort(ctx, q.EndpointID)
	if err != nil {
		return joinAnswer{}, err
	}
	// The gateway service is Docker's bridge that would give the container a second way out.
	a := joinAnswer{InterfaceName: interfaceName{SrcName: info.Interface, DstPrefix: "cali"}, DisableGatewayService: true}
	if info.Gateway4.IsValid() {
		a.Gateway = info.Gateway4.String()
		// The gateway is in no subnet of the container's, so it has to be told that it is on the link.
		a.StaticRoutes = []staticRoute{{Destination: netip.PrefixFrom(info.Gateway4, 32).String(), RouteType: routeOnLink}}
	}
	if info.Gateway6.IsValid() {
		a.GatewayIPv6 = info.Gateway6.String()
	}
	dockerd := peer(ctx)
	s.background.Go(func() { s.settle(q.EndpointID, q.SandboxKey, dockerd) })
	s.label(q.EndpointID)
	return a, nil
}

// leave removes the interface, which dockerd has moved back, or whose container is gone.
func (s *Server) leave(ctx context.Context, q endpointRef) (none, error) {
	return none{}, s.Endpoints.ClosePort(ctx, q.EndpointID)
}

// openSandbox opens a container's namespace by its path as dockerd, a process, sees it. An agent that runs in a container
// itself, among the host's processes, sees other files than dockerd.
func openSandbox(path string, dockerd int) (*os.File, error) {
	f, err := os.Open(path)
	if err == nil {
		return f, nil
	}
	if dockerd <= 0 {
		return nil, err
	}
	root, rootErr := os.Open(fmt.Sprintf("/proc/%d/root", dockerd))
	if rootErr != nil {
		return nil, errors.Join(err, rootErr)
	}
	defer root.Close()
	// /var/run is a link to /run, which must be dockerd's and not ours.
	fd, inErr := unix.Openat2(int(root.Fd()), path, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if inErr != nil {
		return nil, errors.Join(err, fmt.Errorf("open %s as dockerd sees it: %w", path, inErr))
	}
	return os.NewFile(uintptr(fd), path), nil
}

// settle completes the container's side when dockerd has moved the interface into it, of which it does not tell: the
// namespace gets its path only when the container's first process exists. An agent that does not see the path leaves it
// at that; the container then asks for its gateway by ARP.
func (s *Server) settle(endpointID, sandbox string, dockerd int) {
	ctx, cancel := context.WithTimeout(s.life, s.LabelTime)
	defer cancel()
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	var err error
	for {
		select {
		case <-ctx.Done():
			s.Log.Debug("container's gateway is left to ARP", "endpoint", endpointID, "err", err)
			return
		case <-tick.C:
		}
		var netns *os.File
		if netns, err = openSandbox(sandbox, dockerd); err != nil {
			continue
		}
		if err = s.Endpoints.SettlePort(ctx, endpointID, netns); err == nil {
			if err := s.identify(ctx, endpointID, netns); err != nil {
				s.Log.Debug("container is not known before it starts", "endpoint", endpointID, "err", err)
			}
			_ = netns.Close()
			return
		}
		_ = netns.Close()
	}
}
