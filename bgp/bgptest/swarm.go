// Package bgptest simulates many small BGP neighbours in one process, for tests and benchmarks of a
// speaker. A simulated neighbour dials, keeps its session up, announces what it is told and counts what
// it hears; it has no table and chooses nothing.
package bgptest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/manekinet/maneki/bgp/message"
)

// Client is one simulated neighbour.
type Client struct {
	Local    netip.Addr // address to dial from; it must be on this host
	RouterID netip.Addr // IPv4 form, unique
	ASN      uint32
	Routes   []netip.Prefix // announced when the session is up, all of one family
	NextHop  netip.Addr     // of Routes; zero means Local
}

// Options describe a swarm.
type Options struct {
	Server   netip.AddrPort // the speaker under test
	HoldTime time.Duration  // offered; 0 means 90 s
	Clients  []Client
	Retry    time.Duration // after the first failure, doubling up to a second; 0 means 50 ms
	// Count, if not nil, makes the clients count the routes that they hear instead of keeping them, which
	// is what thousands of clients in one process can afford.
	Count *Count
}

// Swarm is a set of running clients.
type Swarm struct {
	opt    Options
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	muted   bool
	changed chan struct{} // closed and replaced on every change
	members []*member
	full    int          // members that hold all, with Options.Count
	last    atomic.Int64 // when a member last heard something new, in Unix nanoseconds, with Options.Count
}

type member struct {
	client Client
	swarm  *Swarm

	// guarded by the swarm's mutex
	conn    net.Conn
	server  uint32 // AS of the speaker under test
	ended   bool
	routes  map[netip.Prefix]netip.Addr
	lastErr error
	flapped bool // by Flap: dials again at once

	tally tally // with Options.Count
}

// Start starts all clients at once. Close ends them.
func Start(ctx context.Context, opt Options) *Swarm {
	if opt.HoldTime == 0 {
		opt.HoldTime = 90 * time.Second
	}
	if opt.Retry == 0 {
		opt.Retry = 50 * time.Millisecond
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &Swarm{opt: opt, cancel: cancel, changed: make(chan struct{})}
	for i, c := range opt.Clients {
		if !c.NextHop.IsValid() {
			c.NextHop = c.Local
		}
		m := &member{client: c, swarm: s, routes: make(map[netip.Prefix]netip.Addr)}
		if opt.Count != nil {
			m.tally = opt.Count.tally(i, len(opt.Clients))
		}
		s.members = append(s.members, m)
	}
	for _, m := range s.members {
		s.wg.Go(func() { m.run(ctx) })
	}
	s.wg.Go(func() { s.keepalives(ctx) })
	return s
}

// Close closes all connections without a NOTIFICATION and waits for the clients to end.
func (s *Swarm) Close() {
	s.cancel()
	s.wg.Wait()
}

// Established is how many clients have a session.
func (s *Swarm) Established() int {
	return s.count(func(m *member) bool { return m.conn != nil })
}

// Ended is how many clients have received End-of-RIB on their session.
func (s *Swarm) Ended() int { return s.count(func(m *member) bool { return m.ended }) }

// Holding is how many clients have received at least n routes.
func (s *Swarm) Holding(n int) int {
	return s.count(func(m *member) bool { return len(m.routes) >= n })
}

func (s *Swarm) count(f func(*member) bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, m := range s.members {
		if f(m) {
			n++
		}
	}
	return n
}

// Routes is what client i has heard: prefix to next hop.
func (s *Swarm) Routes(i int) map[netip.Prefix]netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[netip.Prefix]netip.Addr, len(s.members[i].routes))
	for k, v := range s.members[i].routes {
		out[k] = v
	}
	return out
}

// Err is why client i last lost its session or failed to get one.
func (s *Swarm) Err(i int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.members[i].lastErr
}

// Wait returns when done is true, or with the error of ctx. done is asked again whenever anything changed.
func (s *Swarm) Wait(ctx context.Context, done func() bool) error {
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if done() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// touch wakes Wait; the mutex is held.
func (s *Swarm) touch() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Mute ends the sending of keepalives: the clients look dead while their connections stay open.
func (s *Swarm) Mute() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.muted = true
}

// Announce makes client i announce further prefixes.
func (s *Swarm) Announce(i int, prefixes ...netip.Prefix) error {
	return s.send(i, prefixes, func(m *member, f message.Family) ([][]byte, error) {
		return message.AppendReach(nil, f, m.attrs(), message.Form{FourOctetAS: true}, message.Plain(prefixes...))
	})
}

// Withdraw makes client i withdraw prefixes.
func (s *Swarm) Withdraw(i int, prefixes ...netip.Prefix) error {
	return s.send(i, prefixes, func(_ *member, f message.Family) ([][]byte, error) {
		return message.AppendWithdraw(nil, f, false, message.Plain(prefixes...))
	})
}

// SendRaw makes client i write octets as they are, for tests with malformed messages.
func (s *Swarm) SendRaw(i int, b []byte) error {
	s.mu.Lock()
	c := s.members[i].conn
	s.mu.Unlock()
	if c == nil {
		return errors.New("client has no session")
	}
	_, err := c.Write(b)
	return err
}

func (s *Swarm) send(i int, prefixes []netip.Prefix, build func(*member, message.Family) ([][]byte, error)) error {
	if len(prefixes) == 0 {
		return nil
	}
	msgs, err := build(s.members[i], message.FamilyOf(prefixes[0].Addr()))
	if err != nil {
		return err
	}
	for _, b := range msgs {
		if err := s.SendRaw(i, b); err != nil {
			return err
		}
	}
	return nil
}

// attrs are the attributes of the client's routes; to an external speaker it puts its AS in front.
func (m *member) attrs() message.Attrs {
	a := message.Attrs{NextHop: m.client.NextHop, LocalPref: message.DefaultLocalPref, HasLocalPref: true}
	m.swarm.mu.Lock()
	defer m.swarm.mu.Unlock()
	if m.server != m.client.ASN {
		a.HasLocalPref = false
		a = a.Prepend(m.client.ASN)
	}
	return a
}

// keepalives keeps every session up from one goroutine.
func (s *Swarm) keepalives(ctx context.Context) {
	t := time.NewTicker(s.opt.HoldTime / 3)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			s.mu.Lock()
			for _, m := range s.members {
				if m.conn != nil && !s.muted {
					_, _ = m.conn.Write(message.Keepalive()) // a broken one is seen by its reader
				}
			}
			s.mu.Unlock()
		}
	}
}

// dialTimeout ends a dial that is not answered. A listener whose queue is full drops the SYN, and the kernel sends it
// again after 1, 3, 7, 15 and 31 s: a new dial is sooner.
const dialTimeout = time.Second

// run dials until ctx is done.
func (m *member) run(ctx context.Context) {
	const longest = time.Second
	for wait := m.swarm.opt.Retry; ctx.Err() == nil; {
		err := m.session(ctx)
		m.swarm.mu.Lock()
		was, flapped := m.conn != nil, m.flapped
		m.flapped = false
		m.conn, m.ended, m.lastErr = nil, false, err
		clear(m.routes)
		m.forget()
		m.swarm.touch()
		m.swarm.mu.Unlock()
		if flapped {
			continue
		}
		if was {
			wait = m.swarm.opt.Retry
		}
		select {
		case <-time.After(wait):
			wait = min(2*wait, longest)
		case <-ctx.Done():
		}
	}
}

func (m *member) session(ctx context.Context) error {
	d := net.Dialer{Timeout: dialTimeout, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(m.client.Local, 0))}
	c, err := d.DialContext(ctx, "tcp", m.swarm.opt.Server.String())
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	r := message.NewReader(c)
	open, err := m.handshake(c, r)
	if err != nil {
		return err
	}
	if err := m.greet(c); err != nil {
		return err
	}
	m.swarm.mu.Lock()
	m.conn = c
	m.swarm.touch()
	m.swarm.mu.Unlock()
	return m.listen(r, message.Session{Internal: open.ASN == m.client.ASN, FourOctetAS: open.FourOctetAS, Families: open.Families})
}

func (m *member) handshake(c net.Conn, r *message.Reader) (message.Open, error) {
	fam := message.FamilyOf(m.client.Local).Set()
	b, err := message.Open{
		ASN: m.client.ASN, HoldTime: m.swarm.opt.HoldTime, ID: m.client.RouterID, Families: fam,
		RouteRefresh: true, FourOctetAS: true,
	}.Encode()
	if err != nil {
		return message.Open{}, err
	}
	if _, err := c.Write(b); err != nil {
		return message.Open{}, err
	}
	var open message.Open
	for {
		t, body, err := r.Next()
		if err != nil {
			return open, err
		}
		switch t {
		case message.TypeOpen:
			if open, err = message.DecodeOpen(body); err != nil {
				return open, err
			}
			m.swarm.mu.Lock()
			m.server = open.ASN
			m.swarm.mu.Unlock()
			if _, err := c.Write(message.Keepalive()); err != nil {
				return open, err
			}
		case message.TypeKeepalive:
			return open, nil
		case message.TypeNotification:
			return open, message.DecodeNotification(body)
		default:
			return open, fmt.Errorf("unexpected message type %d", t)
		}
	}
}

// greet sends the client's routes and End-of-RIB.
func (m *member) greet(c net.Conn) error {
	var msgs [][]byte
	fam := message.FamilyOf(m.client.Local)
	if rs := m.client.Routes; len(rs) > 0 {
		var err error
		if msgs, err = message.AppendReach(nil, message.FamilyOf(rs[0].Addr()), m.attrs(), message.Form{FourOctetAS: true}, message.Plain(rs...)); err != nil {
			return err
		}
	}
	bufs := net.Buffers(append(msgs, message.EndOfRIB(fam)))
	_, err := bufs.WriteTo(c)
	return err
}

// listen counts what comes until the connection ends.
func (m *member) listen(r *message.Reader, s message.Session) error {
	for {
		t, body, err := r.Next()
		if err != nil {
			return err
		}
		switch t {
		case message.TypeNotification:
			return message.DecodeNotification(body)
		case message.TypeUpdate:
			if m.counts(body) {
				continue
			}
			u, err := message.DecodeUpdate(body, s)
			if err != nil {
				return err
			}
			m.hear(u)
		}
	}
}

func (m *member) hear(u message.Update) {
	m.swarm.mu.Lock()
	defer m.swarm.mu.Unlock()
	for _, n := range u.Withdrawn {
		delete(m.routes, n.Prefix)
	}
	for _, r := range u.Reach {
		for _, n := range r.Routes {
			m.routes[n.Prefix] = r.Attrs.NextHop
		}
	}
	m.ended = m.ended || u.EndOfRIB != 0
	m.swarm.touch()
}
