package session

import (
	"errors"
	"fmt"

	"github.com/manekinet/maneki/bgp/message"
)

// opensent is the state OpenSent: we have sent OPEN on at least one connection and have not answered the
// peer's OPEN on any.
type opensent struct{}

func (opensent) name() string { return "OpenSent" }

func (opensent) run(f *fsm) (state, string) {
	f.open.Reset(handshakeTimeout)
	defer f.open.Stop()
	for {
		ev := f.next()
		if f.handshake(ev) {
			return nil, "stopped"
		}
		if f.confirmed() != nil {
			return openconfirm{}, "OPEN received"
		}
		if len(f.conns) == 0 {
			f.failures++
			return f.retreat(), "no connection left"
		}
	}
}

// handshake handles an event of the states OpenSent and OpenConfirm, but for the KEEPALIVE that ends
// them. It returns true when the machine is to end.
func (f *fsm) handshake(ev event) (end bool) {
	switch ev.kind {
	case evShutdown:
		return true
	case evStop:
		f.dropAll(ev.fault)
		return true
	case evIncoming:
		f.takeIncoming(ev)
	case evDialed:
		f.takeDialled(ev)
	case evConnError:
		f.note(ev.err)
		f.drop(ev.conn, asFault(ev.err))
	case evOpenTimeout:
		f.note(message.HoldExpired())
		f.dropAll(message.HoldExpired())
	case evMessage:
		if f.goodOpen(ev) {
			f.decideOpen(ev.conn, f.s.Config())
		}
	}
	if f.confirmed() == nil {
		f.reconsider()
	}
	return false
}

// goodOpen reports whether the message is an OPEN we accept; anything else closes the connection.
func (f *fsm) goodOpen(ev event) bool {
	c := ev.conn
	if ev.msg == message.TypeNotification {
		n := message.DecodeNotification(ev.body)
		if !n.Collision() {
			f.note(n)
		}
		f.drop(c, nil)
		return false
	}
	o, err := f.checkOpen(ev)
	if err != nil {
		f.note(err)
		f.drop(c, asFault(err))
		return false
	}
	c.open = &o
	return true
}

func (f *fsm) checkOpen(ev event) (message.Open, error) {
	if ev.msg != message.TypeOpen || ev.conn.open != nil {
		return message.Open{}, message.Unexpected(ev.msg, "OpenSent")
	}
	o, err := message.DecodeOpen(ev.body)
	if err != nil {
		return o, err
	}
	cfg := f.s.Config()
	if err := o.CheckPeer(cfg.RemoteASN, cfg.LocalASN, cfg.RouterID); err != nil {
		return o, err
	}
	if o.Families&cfg.Families == 0 {
		return o, message.NoCommonFamily(fmt.Sprintf("no address family in common: peer offers %v, we %v", o.Families.Names(), cfg.Families.Names()))
	}
	return o, nil
}

// asFault returns the NOTIFICATION that an error calls for, nil if none.
func asFault(err error) *message.Error {
	var e *message.Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}
