// Package session runs one BGP session: the finite state machine of RFC 4271 §8, one file per state.
//
// A session is one goroutine for the machine, its timers and all writing, and one for each connection
// that reads. While no session is up there can be two connections, one dialled and one accepted; which
// one stays is decided in collision.go. The session knows nothing about routes: it hands decoded UPDATEs
// to a Handler and writes what a Feed gives it.
package session

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/manekinet/maneki/bgp/message"
)

// Defaults and bounds of the timers.
const (
	DefaultHoldTime    = 90 * time.Second  // RFC 4271 §10
	DefaultRestartTime = 120 * time.Second // BIRD's and Calico's default, spec/calico.md §6.1

	dialTimeout      = 5 * time.Second
	handshakeTimeout = 15 * time.Second       // a connection that is not Established by then is closed
	retryFirst       = 100 * time.Millisecond // first wait after a failed connection; doubles
	retryLast        = 5 * time.Second
	penalty          = 60 * time.Second       // wait after the peer exceeded its prefixes or hit a fault of ours
	stableAfter      = 5 * time.Second        // a session that lasted this long is not counted as a failure
	stalePathTime    = 360 * time.Second      // longest wait for End-of-RIB after a peer came back (RFC 4724 §4.2)
	minFlush         = 500 * time.Microsecond // least time between two batches of messages of one session
	sendHold         = 8 * time.Minute        // RFC 9687: least send hold time
	goodbye          = time.Second            // how long a NOTIFICATION may take to be written
)

// Config is what one session needs to know. Comparable.
type Config struct {
	Remote              netip.AddrPort
	Local               netip.Addr // source address, zero to let the kernel choose
	LocalASN, RemoteASN uint32
	RouterID            netip.Addr
	Families            message.Families // offered
	ExtendedNextHop     bool             // offered: routes of IPv4 with an IPv6 next hop (RFC 8950)
	Passive             bool
	HoldTime, Keepalive time.Duration // resolved; Keepalive 0 means a third of the negotiated hold time
	ConnectRetry        time.Duration // 0 means growing from retryFirst to retryLast
	RestartTime         time.Duration // announced to the peer (RFC 4724)
	LongLived           time.Duration // announced to the peer (RFC 9494), and the most that its routes are kept so; 0 for off
	Password            string        // TCP MD5 signature (RFC 2385)
	TTLSecurity         uint8         // hops, 0 for off (RFC 5082)
}

// Internal reports whether this is iBGP.
func (c Config) Internal() bool { return c.LocalASN == c.RemoteASN }

// NeedsReset reports whether going from c to next needs a new session. Timers and the passive flag take
// effect with the next one instead.
func (c Config) NeedsReset(next Config) bool {
	next.Passive, next.HoldTime, next.Keepalive = c.Passive, c.HoldTime, c.Keepalive
	next.ConnectRetry, next.RestartTime, next.LongLived = c.ConnectRetry, c.RestartTime, c.LongLived
	return c != next
}

// Info describes a session that has just been established.
type Info struct {
	Local    netip.Addr   // this end's address of the connection
	Open     message.Open // what the peer said
	Session  message.Session
	HoldTime time.Duration // negotiated
	Restart  message.Restart
}

// Handler receives what happens on a session. Calls never overlap, except that Update and Refresh are
// made by the reading goroutine between Up and Down.
type Handler interface {
	// Up starts a session and returns what is to be sent on it.
	Up(Info) Feed
	// Update delivers a message; an error ends the session with it as the NOTIFICATION.
	Update(message.Update) *message.Error
	// Refresh asks for all routes of a family again.
	Refresh(message.Family)
	// Down ends a session.
	Down(Loss)
	// LongLived says that the restart time is over and the stale routes are kept on, as RFC 9494 has it.
	LongLived()
	// Expired ends the keeping of stale routes.
	Expired()
	// Changed says that the session came up or went down, or that the reason why it is down is another one.
	// The steps of trying to connect are not worth waking anybody for.
	Changed()
}

// Loss says what becomes of the peer's routes when its session ends.
type Loss uint8

// The routes go at once; or they are kept as stale for the peer's restart time (RFC 4724 §4.2); or they are
// kept so, but as the last choice, because it is the path to the peer that has failed.
const (
	LossDrop Loss = iota
	LossRetain
	LossRetainLast
)

// Feed is the source of the messages to send. Wake is signalled when Next may have some; Next returns nil
// when there is nothing more.
type Feed interface {
	Wake() <-chan struct{}
	Next() ([][]byte, error)
}

// Options are a session's surroundings.
type Options struct {
	Config     Config
	Handler    Handler
	Restarting func() bool // whether the R bit is to be set (RFC 4724 §3)
	Log        *slog.Logger
}

// Status is a snapshot for operators.
type Status struct {
	State                   string // Idle, Connect, Active, OpenSent, OpenConfirm, Established
	Since                   time.Time
	LastError               string // why there is no session, in words; "" while there is one
	RemoteID                netip.Addr
	HoldTime                time.Duration
	Families                message.Families
	MessagesIn, MessagesOut uint64
}

// Session is one configured session. Make it with New and give it a goroutine with Run.
type Session struct {
	opt      Options
	incoming chan net.Conn
	stop     chan *message.Error
	path     chan *message.Error // the path to the peer has failed
	in, out  atomic.Uint64

	handshakes atomic.Int32

	mu     sync.Mutex
	cfg    Config
	status Status
	live   net.Conn // the established connection
	ending bool     // Stop was called: a peer that does not read must not hold us up
}

// New returns a session in state Idle.
func New(opt Options) *Session {
	return &Session{
		opt: opt, cfg: opt.Config,
		incoming: make(chan net.Conn, 1),
		stop:     make(chan *message.Error, 1),
		path:     make(chan *message.Error, 1),
		status:   Status{State: "Idle", Since: time.Now()},
	}
}

// Config returns the configuration now in force.
func (s *Session) Config() Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg
}

// Reconfigure puts changes in force that need no new session; see Config.NeedsReset.
func (s *Session) Reconfigure(c Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg = c
}

// Status returns the state of the session.
func (s *Session) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	st.MessagesIn, st.MessagesOut = s.in.Load(), s.out.Load()
	return st
}

// Accept hands over a connection that the peer made. It is closed if the session cannot take it now.
func (s *Session) Accept(c net.Conn) {
	select {
	case s.incoming <- c:
	default:
		c.Close()
	}
}

// Handshakes is how many connections are not yet established; at most three per session.
func (s *Session) Handshakes() int { return int(s.handshakes.Load()) }

// PathDown ends the established session, if there is one, because the path to the peer has failed. Between two ends that speak graceful restart it ends without a NOTIFICATION and the routes are
// kept as the last choice: BFD of ours shares the fate of the process, so that the peer may only be
// restarting (RFC 5882 §4.3.2). It does not wait.
func (s *Session) PathDown(why *message.Error) {
	select {
	case s.path <- why:
	default:
	}
}

// Stop ends Run; an established session is closed with why as its NOTIFICATION. With nil it is closed
// without one, so that the peer keeps our routes (RFC 4724 §4.2).
func (s *Session) Stop(why *message.Error) {
	select {
	case s.stop <- why:
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
	if s.live != nil {
		_ = s.live.SetWriteDeadline(time.Now().Add(goodbye)) // fails only on a connection already closed
	}
}

// limitWrite gives the next write on the established connection its deadline.
func (s *Session) limitWrite(c net.Conn, d time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		d = goodbye
	}
	return c.SetWriteDeadline(time.Now().Add(d))
}

// Run runs the state machine until ctx is done, which closes connections without a NOTIFICATION so that
// the peer keeps our routes (RFC 4724 §4.2), or Stop is called. All its goroutines are gone on return.
func (s *Session) Run(ctx context.Context) {
	f := newFSM(ctx, s)
	defer f.close()
	for st := state(idle{}); st != nil; {
		f.enter(st)
		st = f.step(st)
	}
}

func (s *Session) setStatus(change func(*Status)) {
	s.mu.Lock()
	old := s.status
	change(&s.status)
	now := s.status
	s.mu.Unlock()
	up := func(st Status) bool { return st.State == established{}.name() }
	if up(old) != up(now) || old.LastError != now.LastError {
		s.opt.Handler.Changed()
	}
}

func (s *Session) setLive(c net.Conn) {
	s.mu.Lock()
	s.live = c
	s.mu.Unlock()
}

// backoff is the wait before the next dial after so many failures in a row, with jitter of a quarter so
// that two ends or many peers do not stay in step.
func backoff(fixed time.Duration, failures int) time.Duration {
	d := fixed
	if d == 0 {
		d = min(retryFirst<<min(max(failures-1, 0), 10), retryLast)
	}
	return d - d/4 + time.Duration(rand.Int64N(int64(d/2)+1))
}
