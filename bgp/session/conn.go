package session

import (
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/manekinet/maneki/bgp/message"
)

// conn is one TCP connection with the peer.
type conn struct {
	net.Conn
	outgoing  bool
	reader    *message.Reader
	open      *message.Open // the peer's OPEN, once it has come
	confirmed bool          // our KEEPALIVE was sent on it: state OpenConfirm
	dropped   bool          // closed by the machine; what it still delivers is void

	verdict chan verdict  // tells the reader what to do after each handshake message
	done    chan struct{} // closed when the reader has ended
	err     error         // why an established connection ended; valid after done

	session message.Session // set before the reader is told to establish
	hold    time.Duration
}

type verdict int

const (
	verdictClose     verdict = iota // stop reading
	verdictContinue                 // read the next handshake message
	verdictEstablish                // from here on handle UPDATEs
)

func newConn(nc net.Conn, outgoing bool) *conn {
	return &conn{
		Conn: nc, outgoing: outgoing, reader: message.NewReader(nc),
		verdict: make(chan verdict, 1), done: make(chan struct{}),
	}
}

// release lets a waiting reader go on.
func (c *conn) release(v verdict) {
	select {
	case c.verdict <- v:
	default:
	}
}

func (c *conn) localAddr() netip.Addr {
	if a, ok := c.LocalAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// read is the reading goroutine: the handshake, then, if the machine says so, the established session.
func (c *conn) read(f *fsm) {
	defer close(c.done)
	establish := false
	err := c.guard(f, func() (err error) {
		establish, err = c.handshake(f)
		return err
	})
	if establish {
		c.err = c.guard(f, func() error { return c.receive(f) })
		return
	}
	if err != nil {
		f.send(event{kind: evConnError, conn: c, err: err})
	}
}

// guard turns a panic into the error that ends this connection: one bad peer must not end the process.
func (c *conn) guard(f *fsm, body func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			f.s.opt.Log.Error("bgp reader panicked", "peer", f.s.opt.Config.Remote.Addr(), "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			err = message.Internal("internal fault while reading")
		}
	}()
	return body()
}

// handshake delivers one message at a time and waits for the machine's verdict, so that nothing is read
// ahead of the state.
func (c *conn) handshake(f *fsm) (establish bool, err error) {
	if err := c.SetReadDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return false, err
	}
	for {
		t, body, err := c.reader.Next()
		if err != nil {
			return false, err
		}
		f.s.in.Add(1)
		if !f.send(event{kind: evMessage, conn: c, msg: t, body: append([]byte(nil), body...)}) {
			return false, nil
		}
		select {
		case v := <-c.verdict:
			if v != verdictContinue {
				return v == verdictEstablish, nil
			}
		case <-f.ctx.Done():
			return false, nil
		}
	}
}

// receive reads the messages of an established session until it ends. The read deadline is the hold
// timer: it starts anew with each message, not with each octet (RFC 4271 §8.2.2).
func (c *conn) receive(f *fsm) error {
	for {
		if !c.reader.Buffered() {
			if err := c.SetReadDeadline(c.holdDeadline()); err != nil {
				return err
			}
		}
		t, body, err := c.reader.Next()
		if err != nil {
			return err
		}
		f.s.in.Add(1)
		if err := c.handle(f, t, body); err != nil {
			return err
		}
	}
}

func (c *conn) holdDeadline() time.Time {
	if c.hold == 0 {
		return time.Time{}
	}
	return time.Now().Add(c.hold)
}

func (c *conn) handle(f *fsm, t message.Type, body []byte) error {
	switch t {
	case message.TypeKeepalive:
		return nil
	case message.TypeUpdate:
		u, err := message.DecodeUpdate(body, c.session)
		if err != nil {
			return err
		}
		if u.Malformed != "" {
			f.s.opt.Log.Warn("bgp update treated as withdrawal", "peer", f.s.opt.Config.Remote.Addr(), "fault", u.Malformed, "routes", len(u.Withdrawn))
		}
		if e := f.s.opt.Handler.Update(u); e != nil {
			return e
		}
		return nil
	case message.TypeRouteRefresh:
		if fam, ok := message.DecodeRouteRefresh(body); ok {
			f.s.opt.Handler.Refresh(fam)
		}
		return nil
	case message.TypeNotification:
		return message.DecodeNotification(body)
	}
	return message.Unexpected(t, "Established")
}
