package session

import (
	"net"
	"net/netip"

	"github.com/manekinet/maneki/bgp/gtsm"
)

// SetTTLSecurity makes l drop packets from the peers in least that arrive with a lower TTL or hop limit (RFC 5082).
// IP_MINTTL can be set on an accepted connection only, and by then a distant sender may have placed a whole handshake of
// octets in the receive queue. Accepted connections inherit the filter. least maps peers of the listener's family to the
// lowest value allowed; empty removes it.
func SetTTLSecurity(l *net.TCPListener, least map[netip.Addr]uint8) error {
	c, err := l.SyscallConn()
	if err != nil {
		return err
	}
	if len(least) == 0 {
		return gtsm.Detach(c)
	}
	return gtsm.Attach(c, least, true)
}

// LeastTTL is the lowest TTL that a peer at most hops away can arrive with.
func LeastTTL(hops uint8) uint8 { return gtsm.LeastTTL(hops) }
