package session

import (
	"net/netip"

	"github.com/manekinet/maneki/bgp/message"
)

// Connection collision (RFC 4271 §6.8). Both ends dial, so two connections can exist at once, and both
// ends must keep the same one: that which the speaker with the higher identifier made ("the preferred
// one"). The RFC decides when an OPEN arrives on a connection while the other one is in OpenConfirm. Read
// literally that loses both connections when one end has already answered the connection that the other
// end is about to close. Therefore, in addition:
//
//   - an OPEN on the connection that is not preferred is left unanswered while the preferred one is still
//     waiting for its OPEN, and answered as soon as that one fails;
//   - once a connection has been answered with KEEPALIVE, a dial of ours still in flight is cancelled.
//
// So neither end can become Established on a connection that the other end is going to give up.

// decision is what to do with a connection whose OPEN has just been found good.
type decision int

const (
	answer decision = iota // send KEEPALIVE, close the others
	wait                   // hold the answer back until the preferred connection has spoken or failed
	refuse                 // close it: the preferred one has been answered
)

// localPreferred reports whether the connection dialled by this end is the preferred one. Equal
// identifiers, possible between different AS, are decided by AS number (RFC 6286 §2.3).
func localPreferred(localID, remoteID netip.Addr, localASN, remoteASN uint32) bool {
	if c := localID.Compare(remoteID); c != 0 {
		return c > 0
	}
	return localASN > remoteASN
}

// decide applies the rules above to connection c among all of the handshake.
func decide(c *conn, all []*conn, preferOutgoing bool) decision {
	if c.outgoing == preferOutgoing {
		return answer
	}
	for _, o := range all {
		if o == c || o.outgoing == c.outgoing {
			continue
		}
		if o.confirmed {
			return refuse
		}
		return wait
	}
	return answer
}

// decideOpen handles a good OPEN on c: it returns whether c has been answered.
func (f *fsm) decideOpen(c *conn, cfg Config) bool {
	prefer := localPreferred(cfg.RouterID, c.open.ID, cfg.LocalASN, cfg.RemoteASN)
	switch decide(c, f.conns, prefer) {
	case wait:
		return false
	case refuse:
		f.drop(c, message.Collision())
		return false
	}
	f.cancelDial()
	for i := len(f.conns) - 1; i >= 0; i-- {
		if o := f.conns[i]; o != c {
			f.drop(o, message.Collision())
		}
	}
	if err := f.write(c.Conn, message.Keepalive()); err != nil {
		f.note(err)
		f.drop(c, nil)
		return false
	}
	c.confirmed = true
	c.release(verdictContinue)
	return true
}

// takeDialled takes a completed dial into the handshake.
func (f *fsm) takeDialled(ev event) {
	f.dialing = false
	if ev.err != nil {
		f.failures++
		f.note(ev.err)
		return
	}
	f.greet(ev.net, true)
}

// takeIncoming takes a connection of the peer into the handshake. When ours has been answered already,
// only one that would be preferred to it can matter. A peer that connects again has given up its former
// connection; at most two are kept.
func (f *fsm) takeIncoming(ev event) {
	if c := f.confirmed(); c != nil && c.outgoing {
		cfg := f.s.Config()
		if localPreferred(cfg.RouterID, c.open.ID, cfg.LocalASN, cfg.RemoteASN) {
			ev.net.Close()
			return
		}
	}
	var accepted []*conn
	for _, c := range f.conns {
		if !c.outgoing {
			accepted = append(accepted, c)
		}
	}
	if len(accepted) > 1 {
		f.drop(accepted[0], nil)
	}
	f.greet(ev.net, false)
}

// confirmed returns the connection in OpenConfirm, if any.
func (f *fsm) confirmed() *conn {
	for _, c := range f.conns {
		if c.confirmed {
			return c
		}
	}
	return nil
}

// reconsider answers a connection that was waiting for a preferred one which has failed.
func (f *fsm) reconsider() bool {
	cfg := f.s.Config()
	for _, c := range append([]*conn(nil), f.conns...) {
		if c.open != nil && !c.confirmed && !c.dropped && f.decideOpen(c, cfg) {
			return true
		}
	}
	return false
}
