package bgp

import (
	"context"
	"errors"
	"fmt"
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

// setPasswords brings the MD5 keys of all listeners in line with the peers. A peer whose key cannot be
// set is not let in.
func (s *Speaker) setPasswords() {
	for addr, l := range s.listeners {
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
	ok := p != nil && p.cfg.Password == l.passwords[addr] && !s.stopped
	pending := 0
	for _, o := range s.peers {
		pending += o.session.Handshakes()
	}
	s.mu.Unlock()
	if !ok || pending >= s.opt.MaxPending {
		s.log.Debug("bgp connection refused", "from", addr, "known", p != nil, "pending", pending)
		c.Close()
		return
	}
	p.session.Accept(c)
}

// background is the context sockets are opened in: that of Run, or none before it.
func (s *Speaker) background() context.Context {
	if s.ctx != nil {
		return s.ctx
	}
	return context.Background()
}
