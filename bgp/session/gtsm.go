package session

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// The generalized TTL security mechanism (RFC 5082) on a listening socket. IP_MINTTL can be set on an
// accepted connection only, and by then a distant sender may have placed a whole handshake of octets in
// the receive queue. A socket filter on the listener looks at each packet, the SYN included, by source.
// Accepted connections inherit it.

// maxFiltered bounds the peers in one filter; the kernel takes 4096 instructions.
const maxFiltered = 400

const (
	netHeader = 0xfff00000 // SKF_NET_OFF: offsets count from the IP header
	passAll   = 0xffffffff
)

// SetTTLSecurity makes l drop packets from the peers in least that arrive with a lower TTL or hop limit.
// least maps peers of the listener's family to the lowest value allowed; empty removes the filter.
func SetTTLSecurity(l *net.TCPListener, least map[netip.Addr]uint8) error {
	c, err := l.SyscallConn()
	if err != nil {
		return err
	}
	return control(c, func(fd int) error {
		if len(least) == 0 {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != unix.ENOENT {
				return os.NewSyscallError("set SO_DETACH_FILTER", err)
			}
			return nil
		}
		program := ttlFilter(least)
		return os.NewSyscallError("set SO_ATTACH_FILTER",
			unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
				&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}))
	})
}

// LeastTTL is the lowest TTL that a peer at most hops away can arrive with.
func LeastTTL(hops uint8) uint8 { return uint8(gtsmTTL + 1 - int(hops)) }

// ttlFilter is the classic BPF program: for each peer, compare the source; if it is the peer's, the TTL
// decides. Peers beyond maxFiltered are left to IP_MINTTL of the accepted connection.
func ttlFilter(least map[netip.Addr]uint8) []unix.SockFilter {
	var p []unix.SockFilter
	op := func(code uint16, jt, jf uint8, k uint32) {
		p = append(p, unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k})
	}
	n := 0
	for peer, ttl := range least {
		if n++; n > maxFiltered {
			break
		}
		source, limit, words := uint32(12), uint32(8), peer.AsSlice() // of the IPv4 header
		if peer.Is6() {
			source, limit = 8, 7
		}
		left := uint8(2*len(words)/4) + 4 // instructions of this peer, to be skipped on a mismatch
		for i := 0; i < len(words); i += 4 {
			op(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, netHeader+source+uint32(i))
			left -= 2
			op(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, left, binary.BigEndian.Uint32(words[i:]))
		}
		op(unix.BPF_LD|unix.BPF_B|unix.BPF_ABS, 0, 0, netHeader+limit)
		op(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, 1, 0, uint32(ttl))
		op(unix.BPF_RET|unix.BPF_K, 0, 0, 0)
		op(unix.BPF_RET|unix.BPF_K, 0, 0, passAll)
	}
	op(unix.BPF_RET|unix.BPF_K, 0, 0, passAll)
	return p
}
