package desired

import (
	"fmt"
	"net/netip"
)

// PathKey names a way to another host.
type PathKey struct {
	Node   string
	Device string // of the tunnel; empty for the underlay
	V6     bool   // the addresses asked are IPv6
}

// String is "h2" or "h2 by vxlan.calico".
func (k PathKey) String() string {
	if k.Device == "" {
		return k.Node
	}
	return fmt.Sprintf("%s by %s", k.Node, k.Device)
}

// Path is a way to another host that is to be measured.
type Path struct {
	PathKey
	Local, Remote netip.Addr // of the hosts, or of the two ends of the tunnel
	Limit         int        // bytes of the largest packet that should pass; 0 while that is not known
}

// PathFact is what was measured about a path. The zero value is that nobody has answered yet.
type PathFact struct {
	Answered bool // the last time
	MTU      int  // bytes of the largest packet that passed; 0 while nobody has answered
	Limit    int  // of the path when MTU was measured
	// NoChecksum: packets pass without a UDP checksum, and not with one.
	NoChecksum bool
}
