package pathmtu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// place is where a socket is bound.
type place struct {
	addr   netip.Addr
	device string // of a tunnel; empty for the underlay
}

// station is the sockets of one place.
type station struct {
	conn *net.UDPConn
	// plain sends without a UDP checksum; for the underlay, where nothing is done
	// without, it is conn.
	plain   *net.UDPConn
	readers sync.WaitGroup
}

func (s *station) close() {
	_ = s.conn.Close() // a UDP socket has nothing left to write
	_ = s.plain.Close()
	s.readers.Wait()
}

// open binds a socket; with plain it sends UDP without a checksum.
func open(ctx context.Context, p place, port uint16, plain bool) (*net.UDPConn, error) {
	var failed error
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		err := c.Control(func(fd uintptr) { failed = options(int(fd), p, plain) })
		return errors.Join(err, failed)
	}}
	network := "udp4"
	if p.addr.Is6() {
		network = "udp6"
	}
	conn, err := lc.ListenPacket(ctx, network, netip.AddrPortFrom(p.addr, port).String())
	if err != nil {
		return nil, fmt.Errorf("open probe socket on %s: %w", p.addr, err)
	}
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("open probe socket on %s: not UDP", p.addr), conn.Close())
	}
	return udp, nil
}

// options: DF is set and the path MTU that the kernel has learnt is not obeyed
// (PROBE), since that is what is to be found out.
func options(fd int, p place, plain bool) error {
	var err error
	set := func(level, name, value int) {
		if err == nil {
			err = unix.SetsockoptInt(fd, level, name, value)
		}
	}
	if p.addr.Is4() {
		set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	} else {
		set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		set(unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_RX, 1)
	}
	switch {
	case plain && p.addr.Is4():
		set(unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
	case plain:
		set(unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_TX, 1)
	}
	if err == nil && p.device != "" {
		err = unix.BindToDevice(fd, p.device)
	}
	return err
}

// headers are the bytes of IP and UDP before a message.
func headers(a netip.Addr) int {
	if a.Is4() {
		return 20 + 8
	}
	return 40 + 8
}

// waiting are the questions that have no answer yet.
type waiting struct {
	mu   sync.Mutex
	asks map[uint64]ask
}

type ask struct {
	from netip.Addr // who must answer
	got  chan struct{}
}

func (w *waiting) add(id uint64, from netip.Addr) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asks == nil {
		w.asks = map[uint64]ask{}
	}
	a := ask{from, make(chan struct{})}
	w.asks[id] = a
	return a.got
}

func (w *waiting) drop(id uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.asks, id)
}

func (w *waiting) answered(id uint64, from netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a, ok := w.asks[id]; ok && a.from == from {
		close(a.got)
		delete(w.asks, id)
	}
}

// limiter lets so many events pass in a second.
type limiter struct {
	second time.Time
	passed int
}

func (l *limiter) allow(now time.Time, perSecond int) bool {
	if s := now.Truncate(time.Second); s != l.second {
		l.second, l.passed = s, 0
	}
	l.passed++
	return l.passed <= perSecond
}
