package session

import (
	"time"

	"github.com/manekinet/maneki/bgp/message"
)

// idle is the state Idle: nothing is tried and nobody is let in until hold is over (RFC 4271 §8.2.2). With
// hold zero it is only the starting point.
type idle struct{ hold time.Duration }

func (idle) name() string { return "Idle" }

func (st idle) run(f *fsm) (state, string) {
	if st.hold == 0 {
		if f.s.Config().Passive {
			return active{}, "passive"
		}
		return connect{}, "start"
	}
	f.cancelDial()
	f.retry.Reset(st.hold)
	defer f.retry.Stop()
	for {
		switch ev := f.next(); ev.kind {
		case evShutdown, evStop:
			return nil, "stopped"
		case evRetry:
			return idle{}, "idle hold time is over"
		case evIncoming:
			_ = f.write(ev.net, message.Rejected("session is held down").Notification())
			ev.net.Close()
		}
	}
}
