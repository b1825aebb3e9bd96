package monitor

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/bgp/bfd"
	"github.com/manekinet/maneki/bgp/gtsm"
)

const (
	sendTTL = gtsm.TTL // RFC 5881 §5: the receiver can tell that nothing is between
	tos     = 0xc0     // class selector 6: network control, as routing protocols are marked
	// receiveBuffer holds what a thousand sessions receive while the process stands still for some hundred
	// milliseconds, in octets as the kernel counts them.
	receiveBuffer = 8 << 20
	// attempts bounds the search for a free source port.
	attempts = 32
)

// listen is where packets are received.
type listen struct {
	addr     netip.Addr
	multihop bool
}

// String is "10.0.0.1:3784".
func (l listen) String() string { return netip.AddrPortFrom(l.addr, l.port()).String() }

func (l listen) port() uint16 {
	if l.multihop {
		return bfd.PortMultihop
	}
	return bfd.PortSingleHop
}

func (l listen) compare(o listen) int {
	return cmp.Or(l.addr.Compare(o.addr), cmp.Compare(l.port(), o.port()))
}

// serves reports whether the packets of a session arrive here.
func (l listen) serves(peer netip.Addr, cfg Config) bool {
	return l.multihop == cfg.Multihop && l.addr.Is4() == peer.Is4() && (l.addr == cfg.Local || l.addr.IsUnspecified())
}

// listener is one receiving socket.
type listener struct {
	listen
	conn  *net.UDPConn
	least map[netip.Addr]uint8 // the neighbours whose packets are taken, and the lowest TTL of each
}

func network(a netip.Addr) string {
	if a.Is4() {
		return "udp4"
	}
	return "udp6"
}

// open makes a socket that tells the TTL, or hop limit, of what it receives.
func open(at listen) (*listener, error) {
	level, option := unix.IPPROTO_IP, unix.IP_RECVTTL
	if at.addr.Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT
	}
	conn, err := bind(netip.AddrPortFrom(at.addr, at.port()), func(fd int) error {
		// Only root may go beyond net.core.rmem_max, and only the agent has to.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
		}
		return os.NewSyscallError("have the TTL told", unix.SetsockoptInt(fd, level, option, 1))
	})
	if err != nil {
		return nil, err
	}
	return &listener{listen: at, conn: conn}, nil
}

// openSource makes the socket that a session sends from: RFC 5881 §4 wants a source port of its own for each
// session, from the dynamic range.
func openSource(cfg Config, peer netip.Addr) (*net.UDPConn, error) {
	local := cfg.Local
	if !local.IsValid() {
		local = netip.IPv4Unspecified()
		if peer.Is6() {
			local = netip.IPv6Unspecified()
		}
	}
	var err error
	for range attempts {
		port := bfd.FirstSourcePort + rand.IntN(bfd.LastSourcePort-bfd.FirstSourcePort+1)
		var conn *net.UDPConn
		if conn, err = bind(netip.AddrPortFrom(local, uint16(port)), sourceOptions(local)); !errors.Is(err, unix.EADDRINUSE) {
			return conn, err
		}
	}
	return nil, err
}

func sourceOptions(local netip.Addr) func(fd int) error {
	ttl, class, level := unix.IP_TTL, unix.IP_TOS, unix.IPPROTO_IP
	if local.Is6() {
		ttl, class, level = unix.IPV6_UNICAST_HOPS, unix.IPV6_TCLASS, unix.IPPROTO_IPV6
	}
	return func(fd int) error {
		return errors.Join(
			os.NewSyscallError("set the TTL", unix.SetsockoptInt(fd, level, ttl, sendTTL)),
			os.NewSyscallError("set the traffic class", unix.SetsockoptInt(fd, level, class, tos)))
	}
}

func bind(at netip.AddrPort, options func(fd int) error) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var inner error
		if err := c.Control(func(fd uintptr) { inner = options(int(fd)) }); err != nil {
			return err
		}
		return inner
	}}
	conn, err := lc.ListenPacket(context.Background(), network(at.Addr()), at.String())
	if err != nil {
		return nil, fmt.Errorf("open bfd socket on %s: %w", at, err)
	}
	return conn.(*net.UDPConn), nil
}

// accept takes packets of these neighbours only.
func (l *listener) accept(least map[netip.Addr]uint8) error {
	c, err := l.conn.SyscallConn()
	if err != nil {
		return err
	}
	return gtsm.Attach(c, least, false)
}

func (l *listener) close() { l.conn.Close() }

// receive hands packets to their sessions until the socket is closed. What no session wants is dropped
// without an answer.
func (l *listener) receive(m *Monitor) {
	buf, oob := make([]byte, 512), make([]byte, 128)
	for {
		n, k, _, from, err := l.conn.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond) // an ICMP error, or no memory: nothing that ends the sessions
			continue
		}
		p, err := bfd.Decode(buf[:n])
		if err != nil {
			continue
		}
		s := m.find(from.Addr().Unmap(), l.multihop, p)
		if s == nil || ttlOf(oob[:k]) < int(s.cfg.leastTTL()) {
			continue
		}
		s.deliver(p)
	}
}

// ttlOf reads the TTL or hop limit from the control messages; -1 when there is none.
func ttlOf(oob []byte) int {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return -1
		}
		v4 := h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TTL
		v6 := h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_HOPLIMIT
		if (v4 || v6) && len(data) >= 4 {
			return int(binary.NativeEndian.Uint32(data))
		}
		oob = rest
	}
	return -1
}
