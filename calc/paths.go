package calc

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/desired"
)

// leastMTU is what IPv6 asks of every link (RFC 8200 §5); less is never given
// to workloads on the word of a measurement.
const leastMTU = 1280

// paths are the ways to other hosts that are worth measuring: the underlay, and
// each tunnel whose two ends have addresses. In the order of names.
func (c *Core) paths(t tunnelState) []desired.Path {
	self := c.nodes[c.opts.Node]
	if self == nil {
		return nil
	}
	var out []desired.Path
	for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
		if name == c.opts.Node {
			continue
		}
		for _, v4 := range []bool{true, false} {
			own, ok := c.nodeSubnet(self, v4)
			net, there := c.nodeSubnet(c.nodes[name], v4)
			if ok && there && c.linkOf(own.Addr()) != "" {
				out = append(out, desired.Path{PathKey: desired.PathKey{Node: name, V6: !v4}, Local: own.Addr(), Remote: net.Addr(), Limit: c.mtu})
			}
		}
		for _, d := range devices() {
			made, up := t.devices[d.name]
			addrs, other := made.Addrs.Addrs(), t.peers[d.name][name]
			if up && len(addrs) > 0 && other.addr.IsValid() && c.throughTunnel(d, other) {
				out = append(out, desired.Path{PathKey: desired.PathKey{Node: name, Device: d.name, V6: !d.v4}, Local: addrs[0], Remote: other.addr, Limit: made.MTU})
			}
		}
	}
	return out
}

// throughTunnel reports whether a packet that is sent by a device reaches another
// host: a VXLAN device knows all ends, an ipip device only those that routes lead
// to by it.
func (c *Core) throughTunnel(d device, other peer) bool {
	if d.encap == desired.EncapVXLAN || !c.sameSubnet(other.host) {
		return true
	}
	for _, pool := range c.pools {
		if c.mode(d, pool) == api.EncapAlways {
			return true
		}
	}
	return false
}

// pathMTU is the MTU of the underlay in bytes: what the interfaces say, or what
// the narrowest measured path lets through; 0 while the first is not known.
func (c *Core) pathMTU() int {
	mtu := c.mtu
	for key, f := range c.facts {
		if key.Device == "" && f.MTU > 0 && c.nodes[key.Node] != nil && f.MTU < f.Limit {
			mtu = min(mtu, f.MTU)
		}
	}
	// Tunnels over IPv6 have the largest header; a pool of IPv6 must keep its least MTU inside it.
	return max(mtu, min(c.mtu, leastMTU+int(desired.OverheadVXLAN6)))
}

// narrow gives routes without a tunnel the MTU of the path to their next hop,
// where that is smaller than the interface says: workloads with a larger one
// are then told what fits.
func (c *Core) narrow(rs desired.Routes) {
	narrow := map[netip.Addr]int{}
	for key, f := range c.facts {
		n := c.nodes[key.Node]
		if key.Device != "" || n == nil || f.MTU == 0 || f.MTU >= f.Limit {
			continue
		}
		if net, ok := c.nodeSubnet(n, !key.V6); ok {
			narrow[net.Addr()] = max(f.MTU, leastMTU)
		}
	}
	if len(narrow) == 0 {
		return
	}
	for key, r := range rs {
		if mtu, ok := narrow[r.Gateway]; ok && !r.Onlink { // onlink: by tunl0, whose own MTU decides
			r.MTU = mtu
			rs[key] = r
		}
	}
}

// noOffload reports whether checksums must be computed by the kernel on a
// tunnel device: a path has shown that somebody breaks them, or it is configured
// (featureDetectOverride of FelixConfiguration).
func (c *Core) noOffload(device string) bool {
	for key, f := range c.facts {
		if key.Device == device && f.NoChecksum {
			return true
		}
	}
	override := c.felixText(func(s *api.FelixConfigurationSpec) *string { return s.FeatureDetectOverride }, "")
	for pair := range strings.SplitSeq(override, ",") {
		if name, value, _ := strings.Cut(strings.TrimSpace(pair), "="); strings.EqualFold(name, "ChecksumOffloadBroken") {
			return strings.EqualFold(value, "true")
		}
	}
	return false
}
