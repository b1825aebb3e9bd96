package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/bgp/message"
)

// DefaultPort is the BGP port.
const DefaultPort = 179

// gtsmTTL is the TTL every BGP packet leaves with, so that a receiver can tell how far it came
// (RFC 5082).
const gtsmTTL = 255

// Listen opens a listening socket on exactly addr. Multipath TCP is off: it excludes MD5 signatures.
func Listen(ctx context.Context, addr netip.AddrPort) (*net.TCPListener, error) {
	lc := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) error {
		return control(c, func(fd int) error { return setTTL(fd, addr.Addr()) })
	}}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, network(addr.Addr()), addr.String())
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// SetPassword makes l require TCP MD5 signatures (RFC 2385) with this password from peer; "" requires
// none again.
func SetPassword(l *net.TCPListener, peer netip.Addr, password string) error {
	c, err := l.SyscallConn()
	if err != nil {
		return err
	}
	return control(c, func(fd int) error { return setMD5(fd, peer, password) })
}

// network pins the family: an IPv6 socket must not take IPv4 peers under mapped addresses.
func network(a netip.Addr) string {
	if a.Unmap().Is4() {
		return "tcp4"
	}
	return "tcp6"
}

func dial(ctx context.Context, cfg Config) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) error {
		return control(c, func(fd int) error { return dialOptions(fd, cfg) })
	}}
	if cfg.Local.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(cfg.Local, 0))
	}
	return d.DialContext(ctx, network(cfg.Remote.Addr()), cfg.Remote.String())
}

func dialOptions(fd int, cfg Config) error {
	if cfg.Password != "" {
		if err := setMD5(fd, cfg.Remote.Addr(), cfg.Password); err != nil {
			return err
		}
	}
	if err := setTTL(fd, cfg.Remote.Addr()); err != nil {
		return err
	}
	return setMinTTL(fd, cfg)
}

// acceptOptions sets what an accepted connection does not inherit from the listener.
func acceptOptions(nc net.Conn, cfg Config) error {
	tc, ok := nc.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("connection is %T, want TCP", nc)
	}
	c, err := tc.SyscallConn()
	if err != nil {
		return err
	}
	return control(c, func(fd int) error { return setMinTTL(fd, cfg) })
}

func control(c syscall.RawConn, f func(fd int) error) error {
	var inner error
	if err := c.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

func setTTL(fd int, family netip.Addr) error {
	if family.Unmap().Is4() {
		return os.NewSyscallError("set IP_TTL", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, gtsmTTL))
	}
	return os.NewSyscallError("set IPV6_UNICAST_HOPS", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, gtsmTTL))
}

// setMinTTL drops packets from farther away than the configured hops: one hop means TTL 255 on arrival.
func setMinTTL(fd int, cfg Config) error {
	if cfg.TTLSecurity == 0 {
		return nil
	}
	least := int(LeastTTL(cfg.TTLSecurity))
	if cfg.Remote.Addr().Unmap().Is4() {
		return os.NewSyscallError("set IP_MINTTL", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MINTTL, least))
	}
	return os.NewSyscallError("set IPV6_MINHOPCOUNT", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT, least))
}

func setMD5(fd int, peer netip.Addr, password string) error {
	var sig unix.TCPMD5Sig
	if len(password) > len(sig.Key) {
		return fmt.Errorf("password has %d octets, at most %d are allowed", len(password), len(sig.Key))
	}
	peer = peer.Unmap()
	if peer.Is4() {
		sig.Addr.Family = unix.AF_INET
		a := peer.As4()
		copy(sig.Addr.Data[2:], a[:]) // struct sockaddr_in: port, address
	} else {
		sig.Addr.Family = unix.AF_INET6
		a := peer.As16()
		copy(sig.Addr.Data[6:], a[:]) // struct sockaddr_in6: port, flow, address
	}
	sig.Keylen = uint16(copy(sig.Key[:], password))
	err := unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, &sig)
	if errors.Is(err, unix.ENOENT) && password == "" {
		return nil // there was none
	}
	return os.NewSyscallError("set TCP_MD5SIG", err)
}

// words says in an operator's words why there is no session.
func words(err error, cfg Config) string {
	var fault *message.Error
	var told *message.NotificationError
	switch {
	case errors.As(err, &told):
		return told.Error()
	case errors.As(err, &fault):
		return fault.Text
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ENETUNREACH):
		return "no route to peer"
	case errors.Is(err, syscall.EHOSTUNREACH):
		return "no route to peer: host unreachable"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Sprintf("source address %s is not on this host", cfg.Local)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return silence(cfg)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.EPIPE):
		return "peer closed the connection"
	}
	return err.Error()
}

// silence says what it can mean that a peer does not answer. The kernel drops packets whose signature or
// TTL is wrong, so that neither is told from a peer that is down.
func silence(cfg Config) string {
	causes := []string{"it is down"}
	if cfg.Password != "" {
		causes = append(causes, "the passwords differ")
	}
	if cfg.TTLSecurity != 0 {
		causes = append(causes, fmt.Sprintf("it is more than %d hops away or does not use TTL security", cfg.TTLSecurity))
	}
	if len(causes) == 1 {
		return "no answer from peer"
	}
	return "no answer from peer: " + strings.Join(causes[:len(causes)-1], ", ") + ", or " + causes[len(causes)-1]
}
