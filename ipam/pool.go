package ipam

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go4.org/netipx"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/selector"
)

// ErrNoQualifiedPool is returned when no pool may serve a request.
var ErrNoQualifiedPool = errors.New("no configured Calico pools")

// pool is an IPPool with its texts parsed.
type pool struct {
	name      string
	cidr      netip.Prefix
	blockBits int
	spec      api.IPPoolSpec
	leaving   bool // being deleted
	rev       datastore.Revision
	node      *selector.Selector
	namespace *selector.Selector
}

// parsePool reads an IPPool as stored.
func parsePool(p *api.IPPool) (pool, error) {
	cidr, err := netip.ParsePrefix(p.Spec.CIDR)
	if err != nil {
		return pool{}, fmt.Errorf("read IPPool %s: cidr %q is not a prefix", p.Name, p.Spec.CIDR)
	}
	out := pool{
		name: p.Name, cidr: cidr.Masked(), blockBits: p.Spec.BlockSize, spec: p.Spec,
		leaving: p.DeletionTimestamp != nil, rev: datastore.Revision(p.ResourceVersion),
	}
	width := cidr.Addr().BitLen()
	if out.blockBits == 0 {
		out.blockBits = width - 6
	}
	if out.blockBits < width-maxHostBits || out.blockBits > width || out.blockBits < cidr.Bits() {
		return pool{}, fmt.Errorf("read IPPool %s: blockSize %d is not in %d-%d or shorter than the pool's /%d",
			p.Name, out.blockBits, width-maxHostBits, width, cidr.Bits())
	}
	if out.node, err = selector.Parse(p.Spec.NodeSelector); err != nil {
		return pool{}, fmt.Errorf("read IPPool %s: nodeSelector: %w", p.Name, err)
	}
	if out.namespace, err = selector.Parse(p.Spec.NamespaceSelector); err != nil {
		return pool{}, fmt.Errorf("read IPPool %s: namespaceSelector: %w", p.Name, err)
	}
	return out, nil
}

func (p pool) enabled() bool { return !p.spec.Disabled && !p.leaving }

// allows reports whether addresses may be used for use. A pool that says
// nothing has the default of spec/calico.md §1.4, workloads and tunnels.
func (p pool) allows(use api.IPPoolUse) bool {
	if len(p.spec.AllowedUses) == 0 {
		return use == api.UseWorkload || use == api.UseTunnel
	}
	return slices.Contains(p.spec.AllowedUses, use)
}

// automatic reports whether the pool serves requests that do not name it.
func (p pool) automatic() bool {
	return p.spec.AssignmentMode == "" || p.spec.AssignmentMode == "Automatic"
}

// blockOf is the block of the pool that holds a.
func (p pool) blockOf(a netip.Addr) netip.Prefix {
	return netip.PrefixFrom(a, p.blockBits).Masked()
}

// holds reports whether cidr is a block of this pool: inside, of its size.
func (p pool) holds(cidr netip.Prefix) bool {
	return cidr.Bits() == p.blockBits && p.cidr.Contains(cidr.Addr())
}

// settings is everything but blocks, affinities and handles that a decision
// depends on. It is never changed in place.
type settings struct {
	config    api.IPAMConfig
	configRev datastore.Revision // empty: not stored, the defaults hold
	pools     []pool             // in name order
	reserved  *netipx.IPSet
	ranges    []netipx.IPRange // of reserved, in order
	mark      string           // changes whenever a pool does
}

func newSettings(config api.IPAMConfig, configRev datastore.Revision, pools []pool, reserved *netipx.IPSet) *settings {
	slices.SortFunc(pools, func(a, b pool) int { return cmp.Compare(a.name, b.name) })
	var mark strings.Builder
	for _, p := range pools {
		fmt.Fprintf(&mark, "%s@%s ", p.name, p.rev)
	}
	return &settings{config: config, configRev: configRev, pools: pools, reserved: reserved, ranges: reserved.Ranges(), mark: mark.String()}
}

// poolQuery is what decides which pools a request may use.
type poolQuery struct {
	family          int
	named           []string // names or CIDRs; empty: by selectors
	use             api.IPPoolUse
	host            string
	nodeLabels      map[string]string
	namespaceLabels map[string]string
}

// eligible lists the pools for a request (spec/calico.md §3): those named, in
// the order named and whatever their selectors say, or else the automatic ones
// whose selectors match, in name order; then those that allow the use.
func (s *settings) eligible(q poolQuery) ([]pool, error) {
	var found []pool
	if len(q.named) > 0 {
		for _, n := range q.named {
			p, ok := s.named(n, q.family)
			if !ok {
				return nil, fmt.Errorf("the given pool (%s) does not exist, or is not enabled: %w", n, ErrNoQualifiedPool)
			}
			found = append(found, p)
		}
	} else {
		for _, p := range s.pools {
			if p.enabled() && familyOf(p.cidr.Addr()) == q.family && p.automatic() &&
				p.node.Match(q.nodeLabels) && p.namespace.Match(q.namespaceLabels) {
				found = append(found, p)
			}
		}
	}
	found = slices.DeleteFunc(found, func(p pool) bool { return !p.allows(q.use) })
	if len(found) == 0 {
		return nil, fmt.Errorf("%w for node %s (IPv%d, use %s)", ErrNoQualifiedPool, q.host, q.family, q.use)
	}
	return found, nil
}

// named finds an enabled pool of the family by name or CIDR.
func (s *settings) named(n string, family int) (pool, bool) {
	cidr, err := netip.ParsePrefix(n)
	for _, p := range s.pools {
		same := p.name == n || err == nil && p.cidr == cidr.Masked()
		if same && p.enabled() && familyOf(p.cidr.Addr()) == family {
			return p, true
		}
	}
	return pool{}, false
}

// containing finds the pool, enabled or not, that holds a.
func (s *settings) containing(a netip.Addr) (pool, bool) {
	for _, p := range s.pools {
		if p.cidr.Contains(a) {
			return p, true
		}
	}
	return pool{}, false
}

// selects reports whether some pool holds cidr and selects a node with these
// labels, whatever the pool may be used for at the moment.
func (s *settings) selects(cidr netip.Prefix, nodeLabels map[string]string) bool {
	p, ok := s.containing(cidr.Addr())
	return ok && p.node.Match(nodeLabels)
}

// blockLimit is the number of blocks of one family that a host may own: the
// smaller of the request's and the cluster's limit, 20 when neither is set.
func (s *settings) blockLimit(requested int) int {
	global := s.config.MaxBlocksPerHost
	switch {
	case requested == 0 && global == 0:
		return 20
	case requested == 0:
		return global
	case global == 0:
		return requested
	}
	return min(requested, global)
}

// covered tells whether a reservation covers a block entirely, and its last
// address.
func (s *settings) covered(block netip.Prefix) (last netip.Addr, ok bool) {
	at, found := slices.BinarySearchFunc(s.ranges, block.Addr(), func(r netipx.IPRange, a netip.Addr) int {
		switch {
		case r.To().Less(a):
			return -1
		case a.Less(r.From()):
			return 1
		}
		return 0
	})
	if !found || s.ranges[at].To().Less(netipx.PrefixLastIP(block)) {
		return netip.Addr{}, false
	}
	return s.ranges[at].To(), true
}

// cooldown is how long a released address waits.
func (s *settings) cooldown() time.Duration {
	return time.Duration(s.config.IPCooldownSeconds) * time.Second
}
