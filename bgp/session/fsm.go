package session

import (
	"context"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/manekinet/maneki/bgp/message"
)

// state is one state of RFC 4271 §8.2.2. run handles events until the machine leaves the state; it
// returns the next state, nil to end, and the reason in words.
type state interface {
	name() string
	run(f *fsm) (next state, reason string)
}

// fsm is what the machine's goroutine owns.
type fsm struct {
	s      *Session
	ctx    context.Context
	cancel context.CancelFunc
	events chan event
	wg     sync.WaitGroup // readers and dials

	conns    []*conn     // connections in the handshake, oldest first
	up       *conn       // the established connection
	unwatch  func() bool // takes the context's hand off up
	dialing  bool
	dials    uint64             // numbers the dials: results of cancelled ones are void
	undial   context.CancelFunc // ends the dial in flight
	failures int                // attempts in a row that led to no lasting session
	grace    time.Duration      // how long the peer's routes are kept when the session is lost (RFC 4724)
	long     time.Duration      // and after that, as long-lived ones (RFC 9494)

	feed                          Feed
	retry, open, keepalive, flush *time.Timer
	stale                         *time.Timer
}

type eventKind int

const (
	evShutdown  eventKind = iota // the context is done
	evStop                       // Stop was called: fault
	evIncoming                   // the peer connected: net
	evDialed                     // our dial ended: net or err
	evMessage                    // a handshake message on conn: kind, body
	evConnError                  // conn failed in the handshake: err
	evRetry                      // the connect retry timer fired
	evOpenTimeout
	evWake
	evFlush
	evKeepalive
	evPathDown   // PathDown was called: fault
	evReaderDone // the established connection ended
)

type event struct {
	kind  eventKind
	fault *message.Error
	net   net.Conn
	conn  *conn
	msg   message.Type
	body  []byte
	err   error
	dial  uint64 // number of the dial of an evDialed
}

func newFSM(ctx context.Context, s *Session) *fsm {
	f := &fsm{s: s, events: make(chan event)}
	f.ctx, f.cancel = context.WithCancel(ctx)
	for _, t := range []**time.Timer{&f.retry, &f.open, &f.keepalive, &f.flush, &f.stale} {
		*t = time.NewTimer(time.Hour)
		(*t).Stop()
	}
	return f
}

// close ends everything the machine started and waits for it.
func (f *fsm) close() {
	f.cancel()
	for _, c := range f.conns {
		c.Close()
	}
	if f.up != nil {
		f.up.Close()
	}
	for _, t := range []*time.Timer{f.retry, f.open, f.keepalive, f.flush, f.stale} {
		t.Stop()
	}
	f.wg.Wait()
	for {
		select {
		case c := <-f.s.incoming:
			c.Close()
			continue
		default:
		}
		return
	}
}

func (f *fsm) enter(st state) {
	f.s.setStatus(func(s *Status) {
		if s.State != st.name() {
			s.State, s.Since = st.name(), time.Now()
		}
	})
}

// step runs one state. A panic ends the connections of this session and nothing else.
func (f *fsm) step(st state) (next state) {
	defer func() {
		if r := recover(); r != nil {
			f.s.opt.Log.Error("bgp session panicked", "peer", f.s.opt.Config.Remote.Addr(), "state", st.name(), "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			f.dropAll(nil)
			f.leave(message.Internal("internal fault"), LossDrop)
			next = idle{hold: penalty}
		}
	}()
	next, reason := st.run(f)
	to := "end"
	if next != nil {
		to = next.name()
	}
	f.s.opt.Log.Debug("bgp state", "peer", f.s.opt.Config.Remote.Addr(), "from", st.name(), "to", to, "reason", reason)
	return next
}

// next waits for the next event. Events of connections that were dropped meanwhile are passed over, and
// the end of a peer's restart time is the same in every state.
func (f *fsm) next() event {
	for {
		f.s.handshakes.Store(int32(len(f.conns)))
		var wake <-chan struct{}
		var done <-chan struct{}
		if f.up != nil {
			wake, done = f.feed.Wake(), f.up.done
		}
		select {
		case <-f.ctx.Done():
			return event{kind: evShutdown}
		case why := <-f.s.stop:
			return event{kind: evStop, fault: why}
		case c := <-f.s.incoming:
			return event{kind: evIncoming, net: c}
		case why := <-f.s.path:
			return event{kind: evPathDown, fault: why}
		case ev := <-f.events:
			switch {
			case ev.kind == evDialed && ev.dial != f.dials:
				if ev.net != nil {
					ev.net.Close()
				}
			case ev.conn == nil || !ev.conn.dropped:
				return ev
			}
		case <-f.stale.C:
			f.expire()
		case <-f.retry.C:
			return event{kind: evRetry}
		case <-f.open.C:
			return event{kind: evOpenTimeout}
		case <-f.keepalive.C:
			return event{kind: evKeepalive}
		case <-f.flush.C:
			return event{kind: evFlush}
		case <-wake:
			return event{kind: evWake}
		case <-done:
			return event{kind: evReaderDone}
		}
	}
}

// expire ends the keeping of stale routes, or begins the long-lived part of it. While a session is up it is the
// wait for End-of-RIB that is over.
func (f *fsm) expire() {
	if f.up == nil && f.long > 0 {
		f.s.opt.Handler.LongLived()
		f.stale.Reset(f.long)
		f.long = 0
		return
	}
	f.s.opt.Handler.Expired()
}

// send delivers an event from a helper goroutine, unless the machine is ending.
func (f *fsm) send(ev event) bool {
	select {
	case f.events <- ev:
		return true
	case <-f.ctx.Done():
		return false
	}
}

// dial starts a connection attempt; its end is an evDialed.
func (f *fsm) dial() {
	f.dialing = true
	f.dials++
	n, cfg := f.dials, f.s.Config()
	ctx, cancel := context.WithCancel(f.ctx)
	f.undial = cancel
	f.wg.Go(func() {
		defer cancel()
		c, err := dial(ctx, cfg)
		if !f.send(event{kind: evDialed, net: c, err: err, dial: n}) && c != nil {
			c.Close()
		}
	})
}

// cancelDial ends the dial in flight as soon as another connection has been answered. A peer that sees us
// connect while the session is up would take it for a restart of ours (RFC 4724 §5).
func (f *fsm) cancelDial() {
	if f.dialing {
		f.undial()
		f.dialing = false
		f.dials++
	}
}

// greet takes a new connection into the handshake: it sends OPEN and starts reading.
func (f *fsm) greet(nc net.Conn, outgoing bool) {
	cfg := f.s.Config()
	if !outgoing {
		if err := acceptOptions(nc, cfg); err != nil {
			f.note(fmt.Errorf("set socket options: %w", err))
			nc.Close()
			return
		}
	}
	b, err := f.openMessage(cfg).Encode()
	if err == nil {
		err = f.write(nc, b)
	}
	if err != nil {
		f.note(err)
		nc.Close()
		return
	}
	c := newConn(nc, outgoing)
	f.conns = append(f.conns, c)
	f.wg.Go(func() { c.read(f) })
}

func (f *fsm) openMessage(cfg Config) message.Open {
	long := message.LongLived{Time: cfg.LongLived, Families: cfg.Families}
	if cfg.LongLived == 0 {
		long = message.LongLived{}
	}
	return message.Open{
		LongLived: long,
		ASN:       cfg.LocalASN, HoldTime: cfg.HoldTime, ID: cfg.RouterID, Families: cfg.Families,
		RouteRefresh: true, FourOctetAS: true, ExtendedNextHop: cfg.ExtendedNextHop, AddPath: addPath(cfg),
		Restart: message.Restart{
			Supported: true, Restarting: f.s.opt.Restarting(), Time: cfg.RestartTime,
			Families: cfg.Families, Forwarding: cfg.Families,
		},
	}
}

// addPath is what this end offers: several paths in both directions.
func addPath(cfg Config) message.AddPath {
	return message.AddPath{Receive: cfg.Families, Send: cfg.Families}
}

// write sends handshake messages and notifications, which always fit into the socket's buffer.
func (f *fsm) write(nc net.Conn, b []byte) error {
	if err := nc.SetWriteDeadline(time.Now().Add(goodbye)); err != nil {
		return err
	}
	if _, err := nc.Write(b); err != nil {
		return err
	}
	f.s.out.Add(1)
	return nil
}

// drop closes a connection of the handshake, saying why if there is something to say.
func (f *fsm) drop(c *conn, why *message.Error) {
	c.dropped = true
	if why != nil {
		_ = f.write(c.Conn, why.Notification()) // the peer may be gone already
	}
	c.Close()
	c.release(verdictClose)
	for i, o := range f.conns {
		if o == c {
			f.conns = append(f.conns[:i], f.conns[i+1:]...)
			return
		}
	}
}

func (f *fsm) dropAll(why *message.Error) {
	for len(f.conns) > 0 {
		f.drop(f.conns[0], why)
	}
}

// note records why there is no session.
func (f *fsm) note(err error) {
	f.s.setStatus(func(s *Status) { s.LastError = words(err, f.s.cfg) })
}

// retreat chooses where to go when the last connection of the handshake is gone.
func (f *fsm) retreat() state {
	if f.dialing {
		return connect{}
	}
	return active{}
}
