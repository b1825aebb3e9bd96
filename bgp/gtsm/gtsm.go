// Package gtsm is the generalized TTL security mechanism (RFC 5082) in front of a socket: a filter that looks at the
// source and at the TTL, or hop limit, of each packet before it takes room in the receive queue.
package gtsm

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// MaxPeers bounds the peers in one filter; the kernel takes 4096 instructions.
const MaxPeers = 400

// TTL is what packets leave with.
const TTL = 255

const (
	netHeader = 0xfff00000 // SKF_NET_OFF: offsets count from the IP header
	passAll   = 0xffffffff
)

// LeastTTL is the lowest TTL that a peer at most hops away can arrive with.
func LeastTTL(hops uint8) uint8 { return uint8(TTL + 1 - int(hops)) }

// Attach makes the socket drop packets from the peers in least that arrive with a lower TTL; least maps peers of the
// socket's family to the lowest value allowed. Packets from others pass if others is set, and are dropped if not. Peers
// beyond MaxPeers count as others, who then always pass.
func Attach(c syscall.RawConn, least map[netip.Addr]uint8, others bool) error {
	program := filter(least, others || len(least) > MaxPeers)
	return control(c, func(fd int) error {
		return os.NewSyscallError("set SO_ATTACH_FILTER",
			unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
				&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}))
	})
}

// Detach lets all packets pass again.
func Detach(c syscall.RawConn) error {
	return control(c, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); !errors.Is(err, unix.ENOENT) {
			return os.NewSyscallError("set SO_DETACH_FILTER", err)
		}
		return nil
	})
}

func control(c syscall.RawConn, f func(fd int) error) error {
	var inner error
	if err := c.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// filter is the classic BPF program: for each peer, compare the source; if it is the peer's, the TTL decides.
func filter(least map[netip.Addr]uint8, others bool) []unix.SockFilter {
	var p []unix.SockFilter
	op := func(code uint16, jt, jf uint8, k uint32) {
		p = append(p, unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k})
	}
	n := 0
	for peer, ttl := range least {
		if n++; n > MaxPeers {
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
	rest := uint32(0)
	if others {
		rest = passAll
	}
	op(unix.BPF_RET|unix.BPF_K, 0, 0, rest)
	return p
}
