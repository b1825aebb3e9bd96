package docker

import (
	"context"
	"crypto/sha1" //nolint:gosec // names, not a secret
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/endpoint"
)

// Options of networks, given by -o.
const (
	// optNetwork names the network for the cluster. Networks of that name on several hosts are one, whatever Docker calls
	// them.
	optNetwork = "maneki.network"
	// optMTU is Docker's own word for the containers' MTU.
	optMTU = "com.docker.network.driver.mtu"
)

// annotationName, on a pool, is the name of the network that took it by --subnet: networks that take the same pool on
// other hosts are that network, unless -o maneki.network says otherwise.
const annotationName = "maneki.net/docker-network-name"

// The bounds of optMTU: what IPv6 works over (RFC 8200 §5), and what fits into a length of 16 bits.
const (
	minMTU = 1280
	maxMTU = 65535
)

// set reads the options of -o.
func (w *network) set(options map[string]string) error {
	for k, v := range options {
		switch k {
		case optNetwork:
			if v == "" || profileName(v) != v {
				return fmt.Errorf("-o %s=%s: up to %d lower-case letters, digits, '-' and '.' are allowed", k, v, maxProfileName)
			}
			w.Name = v
		case optMTU:
			n, err := strconv.Atoi(v)
			if err != nil || n < minMTU || n > maxMTU {
				return fmt.Errorf("-o %s=%s: %d to %d is allowed", k, v, minMTU, maxMTU)
			}
			w.MTU = n
		case optCreatePool:
			return fmt.Errorf("-o %s comes too late: Docker asks for the pool before it says this; write --ipam-opt %s=%s", k, k, v)
		default:
			return fmt.Errorf("-o %s is not known; allowed: %s=NAME, %s=NUMBER", k, optNetwork, optMTU)
		}
	}
	return nil
}

// addPool notes a pool that --subnet named.
func (w *network) addPool(cidr string) {
	if p, err := netip.ParsePrefix(cidr); err == nil && p.Bits() > 0 && !slices.Contains(w.Pools, p.Masked()) {
		w.Pools = append(w.Pools, p.Masked())
	}
}

// describe says what is known of a network. CreateNetwork came before Docker knew the name, or to another host; so Docker
// is asked, once. A network that has no name at all is known by its ID, until Docker answers.
func (s *Server) describe(ctx context.Context, id string) (network, error) {
	w, known, err := s.networks.get(id)
	if err != nil || w.Name != "" && w.Docker != "" {
		return w, err
	}
	d, err := s.engine.network(ctx, id)
	if err != nil || d.Name == "" {
		if w.Name == "" {
			s.Log.Warn("Docker does not say the network's name", "network", id, "err", err)
			w.Name = s.nameByEndpoints(ctx, id)
		}
		return w, nil
	}
	w.Docker = d.Name
	if !known {
		w.Internal = d.Internal
		if err := w.set(d.Options); err != nil { // of another driver's time
			s.Log.Warn("an option of the network is not known", "network", id, "err", err)
		}
		for _, c := range d.IPAM.Config {
			w.addPool(c.Subnet)
		}
	}
	if w.Name == "" {
		if w.Name, err = s.joinPools(ctx, w.Pools, d.Name); err != nil {
			return w, err
		}
	}
	return w, s.networks.put(w)
}

// nameByEndpoints is the name that containers of the network already have, or one made of its ID.
func (s *Server) nameByEndpoints(ctx context.Context, id string) string {
	name := "docker-" + id[:12]
	all, _, _, err := datastore.For[api.WorkloadEndpoint](s.Store).List(ctx, endpoint.NamespaceLibnetwork)
	if err != nil {
		return name
	}
	for _, e := range all {
		if e.Annotations[endpoint.AnnotationDockerNetwork] == id && len(e.Spec.Profiles) == 1 && e.Spec.Profiles[0] != name {
			return e.Spec.Profiles[0]
		}
	}
	return name
}

// joinPools is the name of the network whose pools these are; the first to come gives them its own.
func (s *Server) joinPools(ctx context.Context, cidrs []netip.Prefix, own string) (string, error) {
	pools := datastore.For[api.IPPool](s.Store)
	all, _, _, err := pools.List(ctx, "")
	if err != nil {
		return "", fmt.Errorf("list pools: %w", err)
	}
	for _, p := range all {
		if c, ok := p.Prefix(); !ok || !slices.Contains(cidrs, c) {
			continue
		}
		p, err = pools.Modify(ctx, "", p.Name, func(p *api.IPPool) error {
			if p.Annotations == nil {
				p.Annotations = map[string]string{}
			}
			if p.Annotations[annotationName] == "" {
				p.Annotations[annotationName] = own
			}
			return nil
		})
		if err != nil {
			return "", fmt.Errorf("annotate pool: %w", err)
		}
		own = p.Annotations[annotationName]
	}
	return own, nil
}

// leavePools takes a deleted network's name from its pools, if no container of any host has it.
func (s *Server) leavePools(ctx context.Context, id string) error {
	w, _, err := s.networks.get(id)
	if err != nil || len(w.Pools) == 0 || w.Name == "" {
		return err
	}
	members, _, _, err := datastore.For[api.WorkloadEndpoint](s.Store).List(ctx, endpoint.NamespaceLibnetwork)
	if err != nil {
		return fmt.Errorf("list endpoints: %w", err)
	}
	for _, e := range members {
		if slices.Contains(e.Spec.Profiles, profileName(w.Name)) {
			return nil
		}
	}
	pools := datastore.For[api.IPPool](s.Store)
	all, _, _, err := pools.List(ctx, "")
	if err != nil {
		return fmt.Errorf("list pools: %w", err)
	}
	for _, p := range all {
		if c, ok := p.Prefix(); !ok || !slices.Contains(w.Pools, c) || p.Annotations[annotationName] != w.Name {
			continue
		}
		_, err := pools.Modify(ctx, "", p.Name, func(p *api.IPPool) error {
			delete(p.Annotations, annotationName)
			return nil
		})
		if err != nil && !errors.Is(err, datastore.ErrNotFound) {
			return fmt.Errorf("annotate pool %s: %w", p.Name, err)
		}
	}
	return nil
}

// maxProfileName leaves room: a profile's name is a label's key as well, of at most 63 characters.
const maxProfileName = 56

// profileName makes a name that a profile may have. A name that had to be changed gets a mark, so that two names do
// not become one.
func profileName(name string) string {
	clean := []byte(strings.ToLower(name))
	for i, c := range clean {
		// A dot separates parts that begin and end with a letter or a digit.
		dot := c == '.' && i > 0 && isAlnum(clean[i-1]) && i+1 < len(clean) && isAlnum(clean[i+1])
		if !isAlnum(c) && !dot {
			clean[i] = '-'
		}
	}
	fit := func(n int) string { return strings.Trim(string(clean[:min(len(clean), n)]), "-.") }
	if all := fit(maxProfileName); all == name && name != "" {
		return name
	}
	sum := sha1.Sum([]byte(name)) //nolint:gosec // as above
	return strings.TrimPrefix(fit(maxProfileName-7)+"-"+hex.EncodeToString(sum[:3]), "-")
}

func isAlnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
