package session

import "github.com/manekinet/maneki/bgp/message"

// openconfirm is the state OpenConfirm: the peer's OPEN has been answered on one connection and the
// peer's answer to ours is awaited.
type openconfirm struct{}

func (openconfirm) name() string { return "OpenConfirm" }

func (openconfirm) run(f *fsm) (state, string) {
	f.open.Reset(handshakeTimeout)
	defer f.open.Stop()
	for {
		ev := f.next()
		if ev.kind == evMessage && ev.conn.confirmed {
			if ev.msg == message.TypeKeepalive {
				return established{conn: ev.conn}, "KEEPALIVE received"
			}
			f.refuseInConfirm(ev)
		} else if f.handshake(ev) {
			return nil, "stopped"
		}
		switch {
		case f.confirmed() != nil || f.reconsider():
		case len(f.conns) > 0:
			return opensent{}, "connection lost, another is waiting"
		default:
			f.failures++
			return f.retreat(), "connection lost"
		}
	}
}

// refuseInConfirm closes the answered connection on any message but KEEPALIVE.
func (f *fsm) refuseInConfirm(ev event) {
	if ev.msg == message.TypeNotification {
		if n := message.DecodeNotification(ev.body); !n.Collision() {
			f.note(n)
		}
		f.drop(ev.conn, nil)
		return
	}
	why := message.Unexpected(ev.msg, "OpenConfirm")
	f.note(why)
	f.drop(ev.conn, why)
}
