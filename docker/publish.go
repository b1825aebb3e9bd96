package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/docker/resolver"
	"github.com/manekinet/maneki/endpoint"
)

// Ports for "any", as Docker's own driver chooses them.
const (
	anyPortFrom = 49153
	anyPortTo   = 65535
)

// hostPort is a port of this host.
type hostPort struct {
	proto string
	at    netip.Addr // unspecified: all addresses, of its family or, when it is the zero value, of both
	port  uint16
}

// collides reports that both cannot be published.
func (p hostPort) collides(o hostPort) bool {
	if p.proto != o.proto || p.port != o.port {
		return false
	}
	if !p.at.IsValid() || !o.at.IsValid() {
		return true
	}
	return p.at.Is4() == o.at.Is4() && (p.at == o.at || p.at.IsUnspecified() || o.at.IsUnspecified())
}

// programExternal publishes the ports of a container. It comes before the container's program starts. The ports stand in
// the endpoint, so that they hold whatever restarts.
func (s *Server) programExternal(ctx context.Context, q externalRequest) (none, error) {
	if err := errors.Join(checkID("network ID", q.NetworkID), checkID("endpoint ID", q.EndpointID)); err != nil {
		return none{}, err
	}
	if len(q.Options.PortMap) == 0 {
		return none{}, nil
	}
	w, err := s.describe(ctx, q.NetworkID)
	if err != nil {
		return none{}, err
	}
	if w.Internal { // as Docker's own driver
		s.Log.Warn("ports of an internal network are not published", "network", w.Name, "endpoint", q.EndpointID)
		return none{}, nil
	}
	s.publish.Lock() // two containers that start at once must not choose the same port
	defer s.publish.Unlock()
	taken, err := s.takenPorts(ctx, q.EndpointID)
	if err != nil {
		return none{}, err
	}
	var ports []api.EndpointPort
	for _, b := range q.Options.PortMap {
		p, err := choose(ctx, b, taken)
		if err != nil {
			return none{}, err
		}
		taken = append(taken, p)
		e := api.EndpointPort{Name: endpoint.PublishedPorts, Protocol: api.FromText(p.proto), Port: b.Port, HostPort: p.port}
		if p.at.IsValid() {
			e.HostIP = p.at.String()
		}
		ports = append(ports, e)
		s.Log.Info("port published", "endpoint", q.EndpointID, "protocol", p.proto, "host", net.JoinHostPort(e.HostIP, strconv.Itoa(int(p.port))), "container", b.Port)
	}
	return none{}, s.Endpoints.PublishPort(ctx, q.EndpointID, ports)
}

// revokeExternal takes the ports back. An endpoint that is gone has none.
func (s *Server) revokeExternal(ctx context.Context, q endpointRef) (none, error) {
	if err := checkID("endpoint ID", q.EndpointID); err != nil {
		return none{}, err
	}
	own, err := s.Endpoints.Ports(ctx)
	if err != nil {
		return none{}, err
	}
	for _, w := range own {
		if w.Spec.Endpoint != q.EndpointID || len(w.Spec.Ports) == 0 {
			continue
		}
		if err := s.Endpoints.PublishPort(ctx, q.EndpointID, nil); err != nil && !errors.Is(err, datastore.ErrNotFound) {
			return none{}, err
		}
	}
	return none{}, nil
}

// takenPorts are those that other endpoints of this host have.
func (s *Server) takenPorts(ctx context.Context, but string) ([]hostPort, error) {
	own, err := s.Endpoints.Ports(ctx)
	if err != nil {
		return nil, err
	}
	var taken []hostPort
	for _, w := range own {
		if w.Spec.Endpoint == but {
			continue
		}
		for _, p := range w.Spec.Ports {
			if p.HostPort != 0 {
				at, _ := netip.ParseAddr(p.HostIP) // none is all
				taken = append(taken, hostPort{p.Protocol.String(), at, p.HostPort})
			}
		}
	}
	return taken, nil
}

// choose finds the first port that a binding allows, that is not taken and at which nobody listens.
func choose(ctx context.Context, b portBinding, taken []hostPort) (hostPort, error) {
	p := hostPort{proto: map[int]string{syscall.IPPROTO_TCP: "TCP", syscall.IPPROTO_UDP: "UDP", 132: "SCTP"}[b.Proto]}
	if p.proto == "" {
		return p, fmt.Errorf("publish port %d: protocol %d is not TCP (6), UDP (17) or SCTP (132)", b.Port, b.Proto)
	}
	if b.HostIP != "" {
		var err error
		if p.at, err = netip.ParseAddr(b.HostIP); err != nil {
			return p, fmt.Errorf("publish port %d: host address %q is not an IP address", b.Port, b.HostIP)
		}
		if p.at.Is6() && p.at.IsLoopback() { // net/ipv6/ip6_output.c: a source of ::1 leaves by lo only; IPv4 has route_localnet
			return p, fmt.Errorf("publish port %d: the kernel never forwards what is sent to %s; allowed: 127.0.0.1 or an address of an interface", b.Port, p.at)
		}
	}
	from, to := int(b.HostPort), int(max(b.HostPort, b.HostPortEnd))
	if from == 0 {
		from, to = anyPortFrom, anyPortTo
	}
	why := errors.New("no port is free")
next:
	for n := from; n <= to; n++ {
		p.port = uint16(n)
		for _, t := range taken {
			if p.collides(t) {
				why = fmt.Errorf("port %d is already published by another container", n)
				continue next
			}
		}
		if why = listening(ctx, p); why == nil {
			return p, nil
		}
	}
	if to > from {
		return p, fmt.Errorf("publish port %d: all of %d-%d are taken; the last: %w", b.Port, from, to, why)
	}
	return p, fmt.Errorf("publish port %d: %w", b.Port, why)
}

// listening is an error when a process of this host has the port, or the host has not the address: what is sent there
// would never come to that process, or never be sent.
func listening(ctx context.Context, p hostPort) error {
	addr := net.JoinHostPort("", strconv.Itoa(int(p.port)))
	if p.at.IsValid() {
		addr = netip.AddrPortFrom(p.at, p.port).String()
	}
	var lc net.ListenConfig
	if p.port == resolver.DefaultAddr().Port() && !p.at.IsValid() {
		lc.Control = resolver.Share // our own listener is at an address that nobody publishes at
	}
	var err error
	switch p.proto {
	case "TCP":
		var l net.Listener
		if l, err = lc.Listen(ctx, "tcp", addr); err == nil {
			err = l.Close()
		}
	case "UDP":
		var l net.PacketConn
		if l, err = lc.ListenPacket(ctx, "udp", addr); err == nil {
			err = l.Close()
		}
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("port %d is in use by a process of this host", p.port)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s is no address of this host", p.at)
	}
	return err
}
