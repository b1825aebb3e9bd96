// Package monitor runs the BFD sessions (RFC 5880) of a host over UDP: single hop (RFC 5881) and multihop
// (RFC 5883). What is wanted is set as a whole; changes of a session's state are told to a callback.
package monitor

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/manekinet/maneki/bgp/bfd"
)

// Config is one wanted session. Comparable.
type Config struct {
	Local    netip.Addr // source address; zero lets the kernel choose
	Multihop bool       // the neighbour is behind routers (RFC 5883)
	// LeastTTL refuses packets that arrive with a lower TTL or hop limit. A single hop session takes 255 only,
	// whatever is said here (RFC 5881 §5).
	LeastTTL uint8
	Timing   bfd.Timing
}

// leastTTL is the lowest TTL that a packet may arrive with.
func (c Config) leastTTL() uint8 {
	if c.Multihop {
		return c.LeastTTL
	}
	return 255
}

// Status is a snapshot of one session.
type Status struct {
	State     bfd.State
	Diag      bfd.Diag // of the last change
	Remote    bfd.State
	Since     time.Time
	Timing    bfd.Timing // as configured
	Interval  time.Duration
	Detection time.Duration // 0 until the neighbour was heard
	Multihop  bool
	Error     string // why no packets are sent, in words
}

// Change is a session's new state, told once per change.
type Change struct {
	Peer netip.Addr
	From bfd.State
	Status
}

// Failed reports whether the change means that the path, or the neighbour, has failed: the session was up
// and nobody took it down on purpose.
func (c Change) Failed() bool {
	return c.From == bfd.Up && c.State == bfd.Down && c.Remote != bfd.AdminDown
}

// Monitor is the sessions of a host. All methods may be called from any goroutine.
type Monitor struct {
	log     *slog.Logger
	changed func(Change)

	mu        sync.Mutex
	ctx       context.Context // nil until Run, and after it
	wanted    map[netip.Addr]Config
	sessions  map[netip.Addr]*session
	listeners map[listen]*listener
	numbers   map[uint32]*session // by our discriminator
	joined    sync.WaitGroup

	missing atomic.Bool // some listener could not be opened
}

// New returns a monitor without sessions. changed is called without any lock held, by one goroutine for
// each session.
func New(log *slog.Logger, changed func(Change)) *Monitor {
	return &Monitor{
		log: log, changed: changed, wanted: map[netip.Addr]Config{}, sessions: map[netip.Addr]*session{},
		listeners: map[listen]*listener{}, numbers: map[uint32]*session{},
	}
}

// Set makes exactly these sessions wanted, by the neighbour's address. A session whose addresses change is
// a new one; one that is not wanted any more tells its neighbour that it goes on purpose. Set does not wait.
func (m *Monitor) Set(want map[netip.Addr]Config) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if maps.Equal(m.wanted, want) {
		return
	}
	m.wanted = maps.Clone(want)
	m.apply()
}

// Run runs the sessions until ctx is done; then each neighbour is told that the session goes on purpose. All
// goroutines are gone on return.
func (m *Monitor) Run(ctx context.Context) {
	m.mu.Lock()
	m.ctx = ctx
	m.apply()
	m.mu.Unlock()
	<-ctx.Done()
	m.mu.Lock()
	m.ctx, m.wanted = nil, map[netip.Addr]Config{}
	m.stop()
	m.mu.Unlock()
	m.joined.Wait()
}

// stop ends all sessions and listeners.
func (m *Monitor) stop() {
	for _, s := range m.sessions {
		m.end(s)
	}
	for _, l := range m.listeners {
		l.close()
	}
	clear(m.listeners)
}

// apply brings sessions and listeners in line with what is wanted.
func (m *Monitor) apply() {
	if m.ctx == nil {
		return
	}
	for peer, s := range m.sessions {
		want, ok := m.wanted[peer]
		next := want
		next.Timing = s.cfg.Timing
		if ok && next == s.cfg { // at most the timing changes
			s.retime(want.Timing)
			continue
		}
		m.end(s)
	}
	m.listen()
	for peer, cfg := range m.wanted {
		if m.sessions[peer] == nil {
			m.begin(peer, cfg)
		}
	}
}

// secure has a listener take the packets of its sessions' neighbours alone, so that others cannot fill its queue.
func (m *Monitor) secure(l *listener) {
	least := map[netip.Addr]uint8{}
	for peer, cfg := range m.wanted {
		if l.serves(peer, cfg) {
			least[peer] = cfg.leastTTL()
		}
	}
	if maps.Equal(least, l.least) {
		return
	}
	if err := l.accept(least); err != nil {
		m.log.Error("bfd packets of strangers cannot be kept away", "listen", l.listen, "error", err)
		return
	}
	l.least = least
}

func (m *Monitor) begin(peer netip.Addr, cfg Config) {
	number := rand.Uint32()
	for number == 0 || m.numbers[number] != nil {
		number = rand.Uint32()
	}
	s := newSession(m, peer, number, cfg)
	m.sessions[peer], m.numbers[number] = s, s
	m.joined.Go(s.run)
}

func (m *Monitor) end(s *session) {
	delete(m.sessions, s.peer)
	delete(m.numbers, s.number)
	close(s.stop)
}

// Status returns the state of the session with a neighbour; false when there is none.
func (m *Monitor) Status(peer netip.Addr) (Status, bool) {
	m.mu.Lock()
	s := m.sessions[peer]
	m.mu.Unlock()
	if s == nil {
		return Status{}, false
	}
	return s.snapshot(), true
}

// find selects the session of a packet (RFC 5880 §6.3): by our discriminator where the neighbour knows it,
// else by its address. In either case the packet must come from the neighbour's address and be of the
// session's kind.
func (m *Monitor) find(from netip.Addr, multihop bool, p bfd.Packet) *session {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sessions[from]
	if p.Yours != 0 {
		s = m.numbers[p.Yours]
	}
	if s == nil || s.peer != from || s.cfg.Multihop != multihop {
		return nil
	}
	return s
}

// wantListeners is where packets are to be received: on the local addresses of the sessions, or on all of a
// family if some session has none.
func (m *Monitor) wantListeners() map[listen]bool {
	want := map[listen]bool{}
	for peer, cfg := range m.wanted {
		l := listen{addr: cfg.Local, multihop: cfg.Multihop}
		if !l.addr.IsValid() {
			l.addr = netip.IPv4Unspecified()
			if peer.Is6() {
				l.addr = netip.IPv6Unspecified()
			}
		}
		want[l] = true
	}
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		for _, multihop := range []bool{false, true} {
			if !want[listen{any, multihop}] {
				continue
			}
			maps.DeleteFunc(want, func(l listen, _ bool) bool {
				return l.multihop == multihop && l.addr.Is4() == any.Is4() && l.addr != any
			})
		}
	}
	return want
}

// listen opens and closes listeners. One that cannot be opened is tried again with the next packet that a
// session sends.
func (m *Monitor) listen() {
	want := m.wantListeners()
	for at, l := range m.listeners {
		if !want[at] {
			l.close()
			delete(m.listeners, at)
		}
	}
	m.missing.Store(false)
	for _, at := range slices.SortedFunc(maps.Keys(want), listen.compare) {
		if m.listeners[at] != nil {
			continue
		}
		l, err := open(at)
		if err != nil {
			m.log.Debug("bfd cannot listen", "on", at, "error", err)
			m.missing.Store(true)
			continue
		}
		m.listeners[at] = l
		m.joined.Go(func() { l.receive(m) })
	}
	for _, l := range m.listeners {
		m.secure(l)
	}
}

// listening reports why packets of a session cannot be received, after another attempt.
func (m *Monitor) listening(s *session) error {
	if !m.missing.Load() {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx == nil {
		return nil
	}
	m.listen()
	for at := range m.listeners {
		if at.serves(s.peer, s.cfg) {
			return nil
		}
	}
	return fmt.Errorf("packets cannot be received on %s", s.cfg.Local)
}
