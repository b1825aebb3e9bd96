package bfd

import (
	"math/rand/v2"
	"time"
)

// slow is the least interval between packets while a session is not up (RFC 5880 §6.8.3).
const slow = time.Second

// Timing is how often packets are sent and expected, and how many may be missing.
type Timing struct {
	Interval   time.Duration // of packets, both ways; whole microseconds
	Multiplier uint8         // packets that may be missing before the session is down
}

// DefaultTiming notices a dead neighbour within 300 ms.
func DefaultTiming() Timing { return Timing{Interval: 100 * time.Millisecond, Multiplier: 3} }

// Machine is one session. Its methods take the present time and return the packets to be sent now. It is
// owned by one goroutine.
type Machine struct {
	local uint32
	want  Timing
	rand  *rand.Rand

	state State
	diag  Diag

	// What the neighbour said last (RFC 5880 §6.8.1).
	remote           uint32
	remoteState      State
	remoteMinRx      time.Duration
	remoteMinTx      time.Duration
	remoteMultiplier uint8
	remoteDemand     bool

	// While a change of timing is polled for, packets go at the shorter interval and are expected at the
	// longer one (RFC 5880 §6.8.3).
	polling bool
	before  Timing
	nextTx  time.Time
	expires time.Time // end of the detection time, zero while it does not run
}

// New returns a session in state Down whose first packet is due at now. local is its discriminator, unique
// on this host and not zero; r gives the jitter.
func New(now time.Time, local uint32, t Timing, r *rand.Rand) *Machine {
	// RFC 5880 §6.8.1: RemoteMinRxInterval starts as 1.
	return &Machine{local: local, want: t, before: t, rand: r, state: Down, remoteState: Down, remoteMinRx: time.Microsecond, nextTx: now}
}

// State returns the session's state.
func (m *Machine) State() State { return m.state }

// Diag says why the state last changed.
func (m *Machine) Diag() Diag { return m.diag }

// RemoteState is the state in the neighbour's last packet; AdminDown says that a session which is down was
// taken down on purpose and tells nothing about the path (RFC 5880 §6.8.16).
func (m *Machine) RemoteState() State { return m.remoteState }

// Interval is the time between two packets that are sent, without jitter.
func (m *Machine) Interval() time.Duration {
	own := m.want.Interval
	if m.polling {
		own = min(own, m.before.Interval)
	}
	if m.state != Up {
		own = max(own, slow)
	}
	return max(own, m.remoteMinRx)
}

// DetectionTime is how long nothing may be heard (RFC 5880 §6.8.4); 0 before the first packet.
func (m *Machine) DetectionTime() time.Duration {
	expected := m.want.Interval
	if m.polling {
		expected = max(expected, m.before.Interval)
	}
	return time.Duration(m.remoteMultiplier) * max(expected, m.remoteMinTx)
}

// Deadline is when Advance has something to do.
func (m *Machine) Deadline() time.Time {
	at := m.nextTx
	if m.silent() {
		at = time.Time{}
	}
	if !m.expires.IsZero() && (at.IsZero() || m.expires.Before(at)) {
		at = m.expires
	}
	return at
}

// Expired reports whether the detection time is over.
func (m *Machine) Expired(now time.Time) bool { return !m.expires.IsZero() && !now.Before(m.expires) }

// silent reports whether periodic packets must not be sent (RFC 5880 §6.8.7): the neighbour wants none, or
// it has asked for them on demand only.
func (m *Machine) silent() bool {
	if m.remoteMinRx == 0 {
		return true
	}
	return m.remoteDemand && m.state == Up && m.remoteState == Up && !m.polling
}

// Advance lets the time pass until now.
func (m *Machine) Advance(now time.Time) []Packet {
	var out []Packet
	if m.Expired(now) {
		m.expires = time.Time{}
		m.remote = 0
		if m.state == Init || m.state == Up {
			m.change(Down, DetectionTimeExpired)
			return append(out, m.send(now))
		}
	}
	if !m.silent() && !now.Before(m.nextTx) {
		out = append(out, m.send(now))
	}
	return out
}

// Receive takes a packet of the neighbour (RFC 5880 §6.8.6, from the selection of the session on).
func (m *Machine) Receive(now time.Time, p Packet) []Packet {
	if m.state == AdminDown || (p.Yours != 0 && p.Yours != m.local) {
		return nil
	}
	before, oldMinRx := m.state, m.remoteMinRx
	m.remote, m.remoteState, m.remoteDemand = p.Mine, p.State, p.Demand
	m.remoteMinRx, m.remoteMinTx, m.remoteMultiplier = p.RequiredMinRx, p.DesiredMinTx, p.Multiplier
	if p.Final && m.polling {
		m.polling, m.before = false, m.want
	}
	m.react(p.State)
	m.expires = now.Add(m.DetectionTime())
	switch {
	case p.Poll: // answered at once, whatever the interval
		reply := m.send(now)
		reply.Poll, reply.Final = false, true
		return []Packet{reply}
	case m.state != before:
		// RFC 5880 §6.8.7: what differs from the last packet should not wait for the next one.
		return []Packet{m.send(now)}
	case m.remoteMinRx < oldMinRx:
		m.schedule(now)
	}
	return nil
}

// react is the state machine of RFC 5880 §6.8.6.
func (m *Machine) react(remote State) {
	switch {
	case remote == AdminDown:
		if m.state != Down {
			m.change(Down, NeighborSignaledDown)
		}
	case m.state == Down && remote == Down:
		m.change(Init, m.diag)
	case m.state == Down && remote == Init, m.state == Init && remote >= Init:
		m.change(Up, NoDiagnostic)
	case m.state == Up && remote == Down:
		m.change(Down, NeighborSignaledDown)
	}
}

func (m *Machine) change(to State, why Diag) {
	m.state, m.diag = to, why
	// The interval goes from slow to what is wanted, which the neighbour has to be asked to confirm.
	m.polling = to == Up
	m.before = m.want
}

// Retime changes the intervals of a session. A session that is up asks its neighbour first.
func (m *Machine) Retime(now time.Time, t Timing) {
	if t == m.want {
		return
	}
	if m.state == Up {
		m.before, m.polling = m.want, true
	}
	m.want = t
	m.nextTx = now
}

// Shut takes the session down on purpose for good and returns the packet that says so.
func (m *Machine) Shut(now time.Time) Packet {
	m.change(AdminDown, AdministrativelyDown)
	m.expires = time.Time{}
	return m.send(now)
}

// send is the next packet, after which the following one is scheduled.
func (m *Machine) send(now time.Time) Packet {
	m.schedule(now)
	minTx := m.want.Interval
	if m.state != Up {
		minTx = max(minTx, slow)
	}
	return Packet{
		State: m.state, Diag: m.diag, Poll: m.polling, Multiplier: m.want.Multiplier, Mine: m.local, Yours: m.remote,
		DesiredMinTx: minTx, RequiredMinRx: m.want.Interval,
	}
}

// schedule applies jitter of up to a quarter, so that many sessions do not send in step; with a multiplier
// of 1 the interval is at most 90 % (RFC 5880 §6.8.7).
func (m *Machine) schedule(now time.Time) {
	d := m.Interval()
	low, high := d*3/4, d
	if m.want.Multiplier == 1 {
		high = d * 9 / 10
	}
	m.nextTx = now.Add(low + time.Duration(m.rand.Int64N(int64(high-low)+1)))
}
