package monitor

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/manekinet/maneki/bgp/bfd"
)

const (
	// recheck is how long a session waits after its detection time before it believes that nothing came. A timer
	// that was served late says that this process stood still; then packets are waiting, and as much time more is
	// given to read them, within bounds.
	recheck     = 5 * time.Millisecond
	recheckMost = 100 * time.Millisecond
	// queue is how many received packets may wait for a session; more say nothing new.
	queue = 8
	// farewells is how often the neighbour is told that the session goes on purpose: a packet may be lost.
	farewells = 3
)

// session is one session with its goroutine.
type session struct {
	monitor *Monitor
	peer    netip.Addr
	number  uint32
	in      chan bfd.Packet
	timing  chan bfd.Timing
	stop    chan struct{}
	cfg     Config     // as it was made; the timing in force is
	want    bfd.Timing // guarded by the monitor's mutex

	// Owned by run.
	machine *bfd.Machine
	conn    *net.UDPConn

	mu     sync.Mutex
	status Status
}

func newSession(m *Monitor, peer netip.Addr, number uint32, cfg Config) *session {
	now := time.Now()
	return &session{
		monitor: m, peer: peer, number: number, cfg: cfg, want: cfg.Timing,
		in: make(chan bfd.Packet, queue), timing: make(chan bfd.Timing, 1), stop: make(chan struct{}),
		machine: bfd.New(now, number, cfg.Timing, rand.New(rand.NewPCG(rand.Uint64(), uint64(number)))),
		status:  Status{State: bfd.Down, Remote: bfd.Down, Since: now, Timing: cfg.Timing, Multihop: cfg.Multihop},
	}
}

// retime hands a change of timing to the session; the newest counts. The monitor's mutex is held.
func (s *session) retime(t bfd.Timing) {
	if t == s.want {
		return
	}
	s.want = t
	select {
	case <-s.timing:
	default:
	}
	s.timing <- t
}

// deliver hands over a received packet; it never waits.
func (s *session) deliver(p bfd.Packet) {
	select {
	case s.in <- p:
	default:
	}
}

func (s *session) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer s.close()
	expiring := false
	for {
		var out []bfd.Packet
		select {
		case <-s.stop:
			for range farewells {
				s.send(s.machine.Shut(time.Now()))
			}
			return
		case p := <-s.in:
			out = s.machine.Receive(time.Now(), p)
			expiring = false
		case t := <-s.timing:
			s.machine.Retime(time.Now(), t)
		case <-timer.C:
			now := time.Now()
			if s.machine.Expired(now) && !expiring {
				expiring = true
				timer.Reset(min(recheck+now.Sub(s.machine.Deadline()), recheckMost))
				continue
			}
			expiring = false
			out = s.machine.Advance(now)
		}
		for _, p := range out {
			s.send(p)
		}
		s.report()
		timer.Reset(time.Until(s.deadline()))
	}
}

// deadline is that of the machine; one that has nothing to do waits for packets.
func (s *session) deadline() time.Time {
	if at := s.machine.Deadline(); !at.IsZero() {
		return at
	}
	return time.Now().Add(time.Minute)
}

// report updates the status and tells about a new state.
func (s *session) report() {
	s.mu.Lock()
	from := s.status.State
	st := &s.status
	if st.State != s.machine.State() {
		st.State, st.Since = s.machine.State(), time.Now()
	}
	st.Diag, st.Remote = s.machine.Diag(), s.machine.RemoteState()
	st.Interval, st.Detection = s.machine.Interval(), s.machine.DetectionTime()
	now := s.status
	s.mu.Unlock()
	if from != now.State {
		s.monitor.log.Debug("bfd state", "peer", s.peer, "from", from, "to", now.State, "reason", now.Diag)
		s.monitor.changed(Change{Peer: s.peer, From: from, Status: now})
	}
}

func (s *session) snapshot() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// send writes one packet. What hinders it is told in the status only: if it lasts, the neighbour notices.
func (s *session) send(p bfd.Packet) {
	err := s.monitor.listening(s)
	if s.conn == nil && err == nil {
		s.conn, err = openSource(s.cfg, s.peer)
	}
	if err == nil {
		port := uint16(bfd.PortSingleHop)
		if s.cfg.Multihop {
			port = bfd.PortMultihop
		}
		_, err = s.conn.WriteToUDPAddrPort(p.Encode(), netip.AddrPortFrom(s.peer, port))
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	s.mu.Lock()
	s.status.Error = text
	s.status.Timing = bfd.Timing{Interval: p.RequiredMinRx, Multiplier: p.Multiplier}
	s.mu.Unlock()
}

func (s *session) close() {
	if s.conn != nil {
		s.conn.Close()
	}
}
