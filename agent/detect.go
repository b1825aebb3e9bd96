package agent

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/autodetect"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/dataplane/links"
	"github.com/manekinet/maneki/desired"
)

// nodeState is what the agent knows of its own host.
type nodeState struct {
	mu     sync.Mutex
	choice [2]autodetect.Choice // IPv4, IPv6; invalid prefix where there is none
	mtu    int                  // of new workloads; that of the underlay until the pools are known
	label  map[string]string
}

// detectNode finds the host's addresses and says in the log what it chose and
// why. A host needs at least one; IPv6 is optional unless it was asked for.
func detectNode(o Options, h *netlink.Handle) (*nodeState, error) {
	all, err := links.List(h)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	found := detectable(all)
	s := &nodeState{label: maps.Clone(o.Labels)}
	for i, want := range []struct {
		family        autodetect.Family
		value, method string
	}{{4, o.IP, o.Method}, {6, o.IP6, o.Method6}} {
		c, err := choose(want.family, want.value, want.method, found)
		switch {
		case err == nil:
			s.choice[i] = c
		case want.family == 6 && want.method == "" && want.value == "autodetect":
			o.Log.Debug("no IPv6 address", "why", err)
		case want.family == 4 && want.method == "" && want.value == "autodetect":
			o.Log.Debug("no IPv4 address", "why", err)
		default:
			return nil, refuse(ErrBadOption, "%v", err)
		}
	}
	if !s.choice[0].Prefix.IsValid() && !s.choice[1].Prefix.IsValid() {
		_, err := choose(4, "autodetect", o.Method, found)
		if o.IP == "none" && o.IP6 == "none" {
			err = errors.New("both are none")
		}
		return nil, refuse(ErrBadOption, "this host has no address to be known by, name one with --ip or --ip6: %v", err)
	}
	s.mtu = links.HostMTU(all, regexp.MustCompile(desired.MTUPattern))
	return s, nil
}

func choose(family autodetect.Family, value, method string, found []autodetect.Interface) (autodetect.Choice, error) {
	switch value {
	case "none":
		return autodetect.Choice{}, nil
	case "autodetect":
		return autodetect.Detect(method, family, found, kernelSource)
	}
	if p, err := netip.ParsePrefix(value); err == nil {
		c, _ := autodetect.Match(p.Addr(), found)
		c.Prefix = p
		return c, nil
	}
	a, err := netip.ParseAddr(value)
	if err != nil {
		return autodetect.Choice{}, fmt.Errorf("address %q: %w", value, err)
	}
	c, _ := autodetect.Match(a, found)
	return c, nil
}

// kernelSource asks the kernel which address it would use towards dst; a UDP
// socket is connected, nothing is sent.
func kernelSource(dst netip.Addr) (netip.Addr, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 9)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

func (s *nodeState) addresses() [2]autodetect.Choice {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.choice
}

// primary is the IPv4 address, or the IPv6 address of a host without one.
func (s *nodeState) primary() netip.Addr {
	c := s.addresses()
	if c[0].Prefix.IsValid() {
		return c[0].Prefix.Addr()
	}
	return c[1].Prefix.Addr()
}

func (s *nodeState) adopt(fresh *nodeState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.choice = fresh.choice
}

func (s *nodeState) labels() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.label
}

func (s *nodeState) setLabels(l map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.label = maps.Clone(l)
}

// follow takes the workloads' MTU and the Node's labels from a new state.
func (s *nodeState) follow(state calc.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state.NodeKnown {
		s.label = state.Labels
	}
	if state.MTU > 0 {
		s.mtu = state.MTU
	}
}

// podMTU is the underlay's MTU less what the encapsulations in use put around a
// packet.
func (s *nodeState) podMTU() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mtu
}

func (s *nodeState) report() (v4, v6 agentapi.Address) {
	c := s.addresses()
	conv := func(c autodetect.Choice) agentapi.Address {
		return agentapi.Address{Prefix: c.Prefix, Interface: c.Interface, Reason: c.Reason}
	}
	return conv(c[0]), conv(c[1])
}

// logAddresses says which addresses were chosen and why.
func (a *Agent) logAddresses() {
	for i, c := range a.node.addresses() {
		family, value := []string{"IPv4", "IPv6"}[i], []string{a.opts.IP, a.opts.IP6}[i]
		switch {
		case !c.Prefix.IsValid():
			a.opts.Log.Info("No " + family + " address: this host takes no part in " + family)
		case value == "autodetect":
			a.opts.Log.Info(fmt.Sprintf("Using autodetected %s address on interface %s: %s", family, c.Interface, c.Prefix), "because", c.Reason)
		default:
			a.opts.Log.Info(fmt.Sprintf("Using %s address given: %s", family, c.Prefix), "interface", c.Interface)
		}
	}
}
