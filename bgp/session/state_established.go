package session

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"github.com/manekinet/maneki/bgp/message"
)

// established is the state Established: routes are exchanged on conn.
type established struct{ conn *conn }

func (established) name() string { return "Established" }

// run is the writing half of the session; conn.receive is the reading half.
func (st established) run(f *fsm) (state, string) {
	c := st.conn
	began := time.Now()
	interval := f.bringUp(c)
	w := writer{f: f, conn: c, interval: interval, hold: c.hold}
	f.keepalive.Reset(w.untilKeepalive())
	defer f.keepalive.Stop()
	defer f.flush.Stop()
	for {
		ev := f.next()
		var err error
		switch ev.kind {
		case evShutdown:
			f.up.Close() // without a NOTIFICATION: the peer is to keep our routes
			f.leave(nil, LossRetain)
			return nil, "stopped"
		case evStop:
			f.leave(ev.fault, LossDrop)
			return nil, "stopped"
		case evWake, evFlush:
			err = w.flush(ev.kind == evFlush)
		case evKeepalive:
			err = w.keepalive()
		case evReaderDone:
			return f.lost(c.err, began)
		case evPathDown:
			return f.pathDown(ev.fault, began)
		default:
			if f.newcomer(ev, c) {
				return openconfirm{}, "peer restarted"
			}
		}
		if err != nil {
			// Why the peer is gone is better known to the reader: it sees a NOTIFICATION sent before the end.
			c.Close()
			<-c.done
			return f.lost(errors.Join(c.err, err), began)
		}
	}
}

// bringUp starts the session on c and returns the keepalive interval.
func (f *fsm) bringUp(c *conn) time.Duration {
	for i := len(f.conns) - 1; i >= 0; i-- {
		if o := f.conns[i]; o != c {
			f.drop(o, message.Collision())
		}
	}
	cfg := f.s.Config()
	f.conns, f.up = nil, c
	c.hold = min(cfg.HoldTime, c.open.HoldTime)
	interval := cfg.Keepalive
	if third := c.hold / 3; interval == 0 || interval > third {
		interval = third
	}
	c.session = message.Session{Internal: cfg.Internal(), FourOctetAS: c.open.FourOctetAS, Families: cfg.Families & c.open.Families}
	c.session.ExtendedNextHop, c.session.Zone = cfg.ExtendedNextHop && c.open.ExtendedNextHop, cfg.Remote.Addr().Zone()
	c.session.PathsIn, c.session.PathsOut = addPath(cfg).With(c.open.AddPath)
	f.s.setLive(c.Conn)
	f.unwatch = context.AfterFunc(f.ctx, func() { c.Close() }) // ends a blocked write
	f.grace, f.long = 0, 0
	if r := c.open.Restart; r.Supported && r.Families != 0 {
		f.grace = r.Time
		f.long = min(cfg.LongLived, c.open.LongLived.Time)
	}
	f.stale.Reset(stalePathTime)
	f.feed = f.s.opt.Handler.Up(Info{Local: c.localAddr(), Open: *c.open, Session: c.session, HoldTime: c.hold, Restart: c.open.Restart})
	f.s.setStatus(func(s *Status) {
		s.LastError, s.RemoteID, s.HoldTime, s.Families = "", c.open.ID, c.hold, c.session.Families
	})
	f.s.opt.Log.Info("bgp session established", "peer", cfg.Remote.Addr(), "as", cfg.RemoteASN, "id", c.open.ID, "hold", c.hold, "families", c.session.Families.Names())
	c.release(verdictEstablish)
	return interval
}

// leave ends the established session, if there is one: why is sent as a NOTIFICATION, and what is to become
// of the peer's routes is told to the handler; they cannot be kept without a restart time.
func (f *fsm) leave(why *message.Error, loss Loss) {
	if f.up == nil {
		return
	}
	c := f.up
	if why != nil {
		_ = f.write(c.Conn, why.Notification()) // the peer may be gone already
	}
	f.unwatch()
	c.Close()
	<-c.done
	f.up = nil
	f.s.setLive(nil)
	f.stale.Stop()
	if !f.keeps() {
		loss = LossDrop
	}
	f.s.opt.Handler.Down(loss)
	switch {
	case loss == LossDrop:
	case f.grace > 0:
		f.stale.Reset(f.grace)
	default:
		f.expire()
	}
}

// keeps reports whether the peer's routes can be kept when the session is lost.
func (f *fsm) keeps() bool { return f.grace > 0 || f.long > 0 }

// lost ends the session after its connection did, and chooses what comes next.
func (f *fsm) lost(err error, began time.Time) (state, string) {
	why := asFault(err)
	if errors.Is(err, os.ErrDeadlineExceeded) && why == nil {
		why = message.HoldExpired()
		err = why
	}
	var told *message.NotificationError
	f.note(err)
	f.s.opt.Log.Warn("bgp session lost", "peer", f.s.opt.Config.Remote.Addr(), "reason", f.s.Status().LastError, "after", time.Since(began).Round(time.Millisecond))
	// A NOTIFICATION ends graceful restart (RFC 4724 §4.2), but not one that only says that the peer goes on
	// with its other connection.
	loss := LossDrop
	if why == nil && (!errors.As(err, &told) || told.Collision()) {
		loss = LossRetain
	}
	f.leave(why, loss)
	f.failures++
	if time.Since(began) > stableAfter {
		f.failures = 0
	}
	switch {
	case why != nil && why.Cease():
		f.dropAll(why)
		return idle{hold: penalty}, why.Text
	case len(f.conns) > 0:
		return opensent{}, "session lost, peer is connecting"
	case f.failures > 0 || f.s.Config().Passive:
		return active{}, "session lost"
	}
	return connect{}, "session lost"
}

// pathDown ends the session because the path has failed.
func (f *fsm) pathDown(why *message.Error, began time.Time) (state, string) {
	f.note(why)
	f.s.opt.Log.Warn("bgp session lost", "peer", f.s.opt.Config.Remote.Addr(), "reason", why.Text, "after", time.Since(began).Round(time.Millisecond))
	if f.keeps() {
		f.leave(nil, LossRetainLast)
	} else {
		f.leave(why, LossDrop)
	}
	f.failures++
	return active{}, why.Text
}

// newcomer handles connections that the peer makes while the session is up. A peer that speaks graceful
// restart and connects anew has restarted: when its OPEN is good, the old connection counts as lost
// (RFC 4724 §5). Otherwise the established session stays (RFC 4271 §6.8). It returns true when the
// newcomer has taken over.
func (f *fsm) newcomer(ev event, old *conn) bool {
	switch ev.kind {
	case evIncoming:
		if !f.keeps() {
			f.refuseOrRequeue(ev.net, old)
			return false
		}
		f.dropAll(nil)
		f.greet(ev.net, false)
	case evConnError:
		f.drop(ev.conn, asFault(ev.err))
	case evMessage:
		if !f.goodOpen(ev) {
			return false
		}
		f.s.opt.Log.Info("bgp peer restarted", "peer", f.s.opt.Config.Remote.Addr())
		f.leave(nil, LossRetain)
		f.decideOpen(ev.conn, f.s.Config())
		return true
	}
	return false
}

// eofPatience is how long a newcomer waits for the end of the connection before it. A peer that closes its
// connection and dials anew is often accepted before the reader of the old connection has seen its end.
const eofPatience = 20 * time.Millisecond

// refuseOrRequeue hands a newcomer back to be taken up after the old connection, if that one is about to end,
// and else refuses it.
func (f *fsm) refuseOrRequeue(nc net.Conn, old *conn) {
	t := time.NewTimer(eofPatience)
	defer t.Stop()
	select {
	case <-old.done:
		f.s.Accept(nc)
	case <-t.C:
		_ = f.write(nc, message.Collision().Notification())
		nc.Close()
	case <-f.ctx.Done():
		nc.Close()
	}
}

// writer sends the feed's messages and the keepalives.
type writer struct {
	f         *fsm
	conn      *conn
	interval  time.Duration // of keepalives, 0 for none
	hold      time.Duration
	lastWrite time.Time
	lastFlush time.Time
}

// flush writes everything that the feed has. Batches keep a small distance, so that a burst of changes
// becomes few messages while a single change goes out at once.
func (w *writer) flush(due bool) error {
	if ahead := minFlush - time.Since(w.lastFlush); ahead > 0 && !due {
		w.f.flush.Reset(ahead)
		return nil
	}
	for {
		msgs, err := w.f.feed.Next()
		if err != nil {
			w.f.s.opt.Log.Error("bgp export failed", "peer", w.f.s.opt.Config.Remote.Addr(), "error", err)
			return message.Internal("routes could not be encoded")
		}
		if msgs == nil {
			w.lastFlush = time.Now()
			return nil
		}
		if err := w.write(msgs); err != nil {
			return err
		}
	}
}

func (w *writer) write(msgs [][]byte) error {
	if len(msgs) == 0 {
		return nil
	}
	if err := w.f.s.limitWrite(w.conn.Conn, max(sendHold, 2*w.hold)); err != nil {
		return err
	}
	n := len(msgs)
	bufs := net.Buffers(append([][]byte(nil), msgs...)) // WriteTo consumes the slice, which is shared
	if _, err := bufs.WriteTo(w.conn.Conn); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	w.f.s.out.Add(uint64(n))
	w.lastWrite = time.Now()
	return nil
}

// keepalive sends a KEEPALIVE if nothing else was sent within the interval.
func (w *writer) keepalive() error {
	if w.interval > 0 && time.Since(w.lastWrite) >= w.interval*3/4 {
		if err := w.write([][]byte{message.Keepalive()}); err != nil {
			return err
		}
	}
	w.f.keepalive.Reset(w.untilKeepalive())
	return nil
}

// untilKeepalive is the time to the next check, jittered as RFC 4271 §10 asks.
func (w *writer) untilKeepalive() time.Duration {
	if w.interval == 0 {
		return time.Hour
	}
	d := w.interval - w.interval/4 + time.Duration(rand.Int64N(int64(w.interval/4)+1))
	if since := time.Since(w.lastWrite); since < d {
		d -= since
	}
	return max(d, 10*time.Millisecond)
}
