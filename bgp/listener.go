package bgp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/manekinet/maneki/bgp/session"
)

// listener is one listening socket with the MD5 keys set on it.
type listener struct {
	*net.TCPListener
	passwords map[netip.Addr]string
	leastTTL  map[netip.Addr]uint8
}

// setListeners opens what is new, then closes what is no longer wanted.
func (s *Speaker) setListeners(want []netip.AddrPort) error {
	var errs []error
	for _, addr := range want {
		if s.listeners[addr] != nil {
			continue
		}
		tl, err := session.Listen(s.background(), addr)
		if err != nil {
			errs = append(errs, fmt.Errorf("listen for bgp on %s: %w", addr, err))
			continue
		}
		l := &listener{TCPListener: tl, passwords: make(map[netip.Addr]string)}
		s.listeners[addr] = l
		if s.ctx != nil {
			s.startListener(l)
		}
	}
	for addr, l := range s.listeners {
		if !slices.Contains(want, addr) {
			l.Close()
			delete(s.listeners, addr)
		}
	}
	return errors.Join(errs...)
}

// secureListeners brings passwords and TTL security of all listeners in line with the peers.
func (s *Speaker) secureListeners() {
	for addr, l := range s.listeners {
		s.setPasswords(addr, l)
		least := make(map[netip.Addr]uint8)
		for _, p := range s.peers {
			if p.cfg.TTLSecurity > 0 && p.cfg.Addr.Is4() == addr.Addr().Is4() {
				least[p.cfg.Addr] = session.LeastTTL(p.cfg.TTLSecurity)
			}
		}
		if maps.Equal(least, l.leastTTL) {
			continue
		}
		if err := session.SetTTLSecurity(l.TCPListener, least); err != nil {
			s.log.Error("bgp TTL security could not be set", "listen", addr, "error", err)
			continue
		}
		l.leastTTL = least
	}
}

// setPasswords brings the MD5 keys of a listener in line with the peers. A peer whose key cannot be set
// is not let in.
func (s *Speaker) setPasswords(addr netip.AddrPort, l *listener) {
	for peer := range l.passwords {
		if s.peers[peer] == nil || s.peers[peer].cfg.Password == "" {
			s.setPassword(l, peer, "")
		}
	}
	for _, p := range s.peers {
		if p.cfg.Password != l.passwords[p.cfg.Addr] && p.cfg.Addr.Is4() == addr.Addr().Is4() {
			s.setPassword(l, p.cfg.Addr, p.cfg.Password)
		}
	}
}

func (s *Speaker) setPassword(l *listener, peer netip.Addr, password string) {
	if err := session.SetPassword(l.TCPListener, peer, password); err != nil {
		s.log.Error("bgp password could not be set", "peer", peer, "listen", l.Addr(), "error", err)
		return
	}
	l.passwords[peer] = password
	if password == "" {
		delete(l.passwords, peer)
	}
}

func (s *Speaker) startListener(l *listener) {
	ctx := s.ctx
	s.joined.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // out of descriptors, or the peer was gone before we looked
				select {
				case <-time.After(10 * time.Millisecond):
					continue
				case <-ctx.Done():
					return
				}
			}
			s.admit(l, c)
		}
	})
}

// admit hands a connection to the session of its address, and closes it at once if there is none.
func (s *Speaker) admit(l *listener, c *net.TCPConn) {
	addr := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	s.mu.Lock()
	p := s.peers[addr]
	ok := p != nil && p.cfg.Password == l.passwords[addr] && l.secured(p.cfg) && !s.stopped
	pending, limit := 0, s.opt.MaxPending
	if limit == 0 {
		limit = max(defaultMaxPending, len(s.peers))
	}
	if ok { // a stranger is not worth counting for
		for _, o := range s.peers {
			pending += o.session.Handshakes()
		}
	}
	s.mu.Unlock()
	if !ok || pending >= limit {
		s.log.Debug("bgp connection refused", "from", addr, "known", p != nil, "pending", pending)
		c.Close()
		return
	}
	p.session.Accept(c)
}

// secured reports whether the TTL security that the peer needs is in force on the listener.
func (l *listener) secured(p Peer) bool {
	return p.TTLSecurity == 0 || l.leastTTL[p.Addr] == session.LeastTTL(p.TTLSecurity)
}

// background is the context sockets are opened in: that of Run, or none before it.
func (s *Speaker) background() context.Context {
	if s.ctx != nil {
		return s.ctx
	}
	return context.Background()
}
