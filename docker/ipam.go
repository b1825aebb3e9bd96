package docker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/ipam"
)

// Names that scripts may know (spec/calico.md §8).
const (
	localSpace  = "CalicoLocalAddressSpace"
	globalSpace = "CalicoGlobalAddressSpace"
	anyPool4    = "CalicoPoolIPv4" // any pool that selects this node
	anyPool6    = "CalicoPoolIPv6"
	noGateway4  = "0.0.0.0/0" // "the network has no gateway address"
	noGateway6  = "::/0"
	gatewayKey  = "com.docker.network.gateway"
	typeKey     = "RequestAddressType"
)

// optCreatePool, given as --ipam-opt, creates the pool of --subnet when there is none.
const optCreatePool = "maneki.create-pool"

// handlePrefix begins the handles of Docker's addresses. The rest is random: Docker says for whom an address is only
// after it has it. There is no dot in it, so that no CNI network's handles begin with it.
const handlePrefix = "libnetwork-"

// timeLayout is how allocations note their time, as package endpoint does (time.Time.String).
const timeLayout = "2006-01-02 15:04:05.999999999 -0700 MST"

func (s *Server) ipamCalls() map[string]call {
	return map[string]call{
		"IpamDriver.GetCapabilities":         fixed(ipamCapabilities{}),
		"IpamDriver.GetDefaultAddressSpaces": fixed(addressSpaces{localSpace, globalSpace}),
		"IpamDriver.RequestPool":             method(s.requestPool),
		"IpamDriver.ReleasePool":             fixed(none{}), // pools belong to whoever created them
		"IpamDriver.RequestAddress":          method(s.requestAddress),
		"IpamDriver.ReleaseAddress":          method(s.releaseAddress),
	}
}

// requestPool finds the pool of a new network. Its ID is its name.
func (s *Server) requestPool(ctx context.Context, q poolRequest) (a poolAnswer, err error) {
	gateway, all := noGateway4, poolAnswer{PoolID: anyPool4, Pool: noGateway4}
	if q.V6 {
		gateway, all = noGateway6, poolAnswer{PoolID: anyPool6, Pool: noGateway6}
	}
	create := false
	for k, v := range q.Options {
		if k != optCreatePool || v != "true" && v != "false" {
			return a, fmt.Errorf("--ipam-opt %s=%s is not known; allowed: %s=true", k, v, optCreatePool)
		}
		create = v == "true"
	}
	if q.SubPool != "" {
		return a, fmt.Errorf("--ip-range %s is not supported: make an IPPool of that size and name it by --subnet", q.SubPool)
	}
	if q.Pool == "" {
		a = all
	} else if a, err = s.namedPool(ctx, q.Pool, create); err != nil {
		return a, err
	}
	a.Data = map[string]string{gatewayKey: gateway}
	return a, nil
}

// namedPool is the pool with exactly the CIDR.
func (s *Server) namedPool(ctx context.Context, text string, create bool) (poolAnswer, error) {
	cidr, err := netip.ParsePrefix(text)
	if err != nil {
		return poolAnswer{}, fmt.Errorf("--subnet %q is not a CIDR", text)
	}
	cidr = cidr.Masked()
	pools, _, _, err := datastore.For[api.IPPool](s.Store).List(ctx, "")
	if err != nil {
		return poolAnswer{}, fmt.Errorf("list pools: %w", err)
	}
	var have []string
	for _, p := range pools {
		if c, ok := p.Prefix(); ok && c == cidr {
			return poolAnswer{PoolID: p.Name, Pool: cidr.String()}, nil
		}
		have = append(have, p.Spec.CIDR)
	}
	if !create {
		return poolAnswer{}, fmt.Errorf("--subnet %s is no IPPool; there are: %s; --ipam-opt %s=true creates it",
			cidr, strings.Join(have, ", "), optCreatePool)
	}
	// Manual: its addresses are for those who name it.
	p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: cidr.String(), NATOutgoing: cidr.Addr().Is4(), AssignmentMode: "Manual"}}
	p.Name = "docker-" + strings.NewReplacer(".", "-", ":", "-", "/", "-").Replace(strings.ReplaceAll(cidr.String(), "::/", "/"))
	if bits := cidr.Bits(); cidr.Addr().Is4() && bits > api.DefaultBlockSize4 || cidr.Addr().Is6() && bits > api.DefaultBlockSize6 {
		p.Spec.BlockSize = bits
	}
	if err := s.objects.Create(ctx, p); err != nil {
		return poolAnswer{}, fmt.Errorf("create pool: %w", err)
	}
	s.Log.Info("pool created for a Docker network", "pool", p.Name, "cidr", cidr)
	return poolAnswer{PoolID: p.Name, Pool: cidr.String()}, nil
}

// requestAddress assigns an address, a given one or any.
func (s *Server) requestAddress(ctx context.Context, q addressRequest) (addressAnswer, error) {
	if q.Options[typeKey] == gatewayKey {
		return addressAnswer{}, errors.New("--gateway is not supported: a container's gateway is 169.254.1.1 on every network")
	}
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails (crypto/rand)
	handle := handlePrefix + hex.EncodeToString(random[:])
	attrs := map[string]string{"node": s.Node, "timestamp": time.Now().UTC().Format(timeLayout)}
	var addr netip.Addr
	var err error
	if q.Address != "" {
		addr, err = s.assignIP(ctx, q, handle, attrs)
	} else {
		addr, err = s.assignAny(ctx, q.PoolID, handle, attrs)
	}
	if err != nil {
		return addressAnswer{}, err
	}
	return addressAnswer{Address: netip.PrefixFrom(addr, addr.BitLen()).String()}, nil
}

func (s *Server) assignIP(ctx context.Context, q addressRequest, handle string, attrs map[string]string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(q.Address)
	if err != nil {
		return addr, fmt.Errorf("address %q is not an IP address", q.Address)
	}
	if q.PoolID != anyPool4 && q.PoolID != anyPool6 {
		p, err := datastore.For[api.IPPool](s.Store).Get(ctx, "", q.PoolID)
		if err != nil {
			return addr, fmt.Errorf("pool %s: %w", q.PoolID, err)
		}
		if cidr, ok := p.Prefix(); !ok || !cidr.Contains(addr) {
			return addr, fmt.Errorf("address %s is not in pool %s (%s)", addr, q.PoolID, p.Spec.CIDR)
		}
	}
	_, err = s.IPAM.AssignIP(ctx, ipam.AssignRequest{Addr: addr, Host: s.Node, Handle: handle, Attrs: attrs, Use: api.UseWorkload})
	if err != nil {
		err = errors.Join(err, s.forget(ctx, handle, err))
	}
	return addr, err
}

func (s *Server) assignAny(ctx context.Context, pool, handle string, attrs map[string]string) (netip.Addr, error) {
	r := ipam.Request{Host: s.Node, Handle: handle, Attrs: attrs}
	if s.NodeLabels != nil {
		r.NodeLabels = s.NodeLabels()
	}
	switch pool {
	case anyPool4:
		r.Num4 = 1
	case anyPool6:
		r.Num6 = 1
	default:
		p, err := datastore.For[api.IPPool](s.Store).Get(ctx, "", pool)
		if err != nil {
			return netip.Addr{}, fmt.Errorf("pool %s: %w", pool, err)
		}
		if p.Family() == 6 {
			r.Num6, r.Pools6 = 1, []string{pool}
		} else {
			r.Num4, r.Pools4 = 1, []string{pool}
		}
	}
	got, err := s.IPAM.AutoAssign(ctx, r)
	if err != nil {
		return netip.Addr{}, errors.Join(fmt.Errorf("assign an address of pool %s: %w", pool, err), s.forget(ctx, handle, err))
	}
	return got[0].Addr, nil
}

// forget gives back what an assignment that ended without an answer may have taken. What cannot be given back now is
// found by collect.
func (s *Server) forget(ctx context.Context, handle string, why error) error {
	if !errors.Is(why, datastore.ErrUnavailable) {
		return nil
	}
	_, err := s.IPAM.ReleaseByHandle(ctx, handle)
	return err
}

// releaseAddress gives an address back, if it is one of Docker's on this host: dockerd may be late, and the address
// somebody else's by now.
func (s *Server) releaseAddress(ctx context.Context, q addressRef) (none, error) {
	addr, err := netip.ParseAddr(q.Address)
	if err != nil {
		return none{}, fmt.Errorf("address %q is not an IP address", q.Address)
	}
	if addr.IsUnspecified() { // the gateway that there is not
		return none{}, nil
	}
	a, err := s.IPAM.Client().Lookup(ctx, addr)
	if errors.Is(err, ipam.ErrNotAssigned) {
		return none{}, nil
	}
	if err != nil {
		return none{}, err
	}
	// Calico's plugin assigned without handles.
	if a.Handle != "" && !strings.HasPrefix(a.Handle, handlePrefix) || a.Node != "" && a.Node != s.Node {
		s.Log.Warn("address is not Docker's on this host: it is not released", "address", addr, "handle", a.Handle, "node", a.Node)
		return none{}, nil
	}
	if err := s.loadPorts(ctx); err != nil {
		return none{}, err
	}
	if port := s.ports.of(addr); port != "" { // Docker deletes the endpoint first, if it remembers it
		s.Log.Info("detach an endpoint whose address Docker gives back", "endpoint", port, "address", addr)
		if _, err := s.deleteEndpoint(ctx, endpointRef{EndpointID: port}); err != nil {
			return none{}, err
		}
	}
	return none{}, s.release(ctx, a)
}

// release gives back exactly this allocation.
func (s *Server) release(ctx context.Context, a ipam.Allocation) error {
	_, err := s.IPAM.ReleaseExactly(ctx, ipam.ReleaseOptions{Addr: a.Addr, Handle: a.Handle, Sequence: a.Sequence})
	if err != nil && !errors.Is(err, ipam.ErrStale) {
		return fmt.Errorf("release address %s: %w", a.Addr, err)
	}
	return nil
}

// collectAge is how old something unused must be before it is taken for forgotten: dockerd asks for the endpoint right
// after it has the address, and retries for 15 s (spec/docker-kubernetes.md §1.3).
const collectAge = 2 * time.Minute

// collect gives back, again and again, what Docker asked for and then forgot: dockerd or the agent was killed in between,
// or the datastore did not answer.
func (s *Server) collect(ctx context.Context) error {
	select {
	case <-s.opened:
	case <-ctx.Done():
		return ctx.Err()
	}
	tick := time.NewTicker(s.Collect)
	defer tick.Stop()
	labels := time.NewTicker(s.LabelTime)
	defer labels.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-labels.C:
			if !s.unlabelled.Load() {
				continue
			}
			if err := s.relabel(ctx); err != nil && ctx.Err() == nil {
				s.Log.Debug("labels could not be looked for", "err", err)
			}
		case now := <-tick.C:
			before := now.Add(-collectAge)
			err := errors.Join(s.collectPorts(ctx, before), s.collectAddresses(ctx, before), s.relabel(ctx))
			if err != nil && ctx.Err() == nil {
				s.Log.Warn("what Docker forgot could not be looked for", "err", err)
			}
		}
	}
}

// collectPorts detaches the ports made before the given time that are in no container and that Docker does not know: the
// container was removed while the agent did not run. While Docker does not answer nothing is detached.
func (s *Server) collectPorts(ctx context.Context, before time.Time) error {
	idle, err := s.Endpoints.IdlePorts(ctx, before)
	if err != nil || len(idle) == 0 {
		return err
	}
	all, err := s.engine.containers(ctx)
	if err != nil {
		return err
	}
	known := byEndpoint(all)
	var errs []error
	for _, port := range idle {
		if _, ok := known[port]; !ok {
			s.Log.Info("detach an endpoint that Docker does not know any more", "endpoint", port)
			_, err := s.deleteEndpoint(ctx, endpointRef{EndpointID: port})
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// collectAddresses releases the addresses assigned before the given time that are neither a port's nor a network's own. The
// order of reading matters: an address seen first that is in use has its endpoint by then.
func (s *Server) collectAddresses(ctx context.Context, before time.Time) error {
	blocks, _, err := s.IPAM.Client().Blocks(ctx)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	var old []ipam.Allocation
	for _, b := range blocks {
		for _, a := range b.Allocations {
			t, err := time.Parse(timeLayout, a.Attrs["timestamp"])
			if a.Node == s.Node && strings.HasPrefix(a.Handle, handlePrefix) && err == nil && t.Before(before) {
				old = append(old, a)
			}
		}
	}
	if len(old) == 0 {
		return nil
	}
	used, err := s.Endpoints.PortAddresses(ctx)
	if err != nil {
		return err
	}
	reserved, err := s.networks.reserved()
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range old {
		if used[a.Addr] != "" || reserved[a.Addr] {
			continue
		}
		s.Log.Info("release an address that Docker asked for and does not use", "address", a.Addr)
		errs = append(errs, s.release(ctx, a))
	}
	return errors.Join(errs...)
}
