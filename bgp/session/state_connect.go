package session

// connect is the state Connect: a dial is in flight.
type connect struct{}

func (connect) name() string { return "Connect" }

func (connect) run(f *fsm) (state, string) {
	if !f.dialing {
		f.dial()
	}
	for {
		switch ev := f.next(); ev.kind {
		case evShutdown, evStop:
			return nil, "stopped"
		case evDialed:
			f.takeDialled(ev)
			if len(f.conns) > 0 {
				return opensent{}, "connected"
			}
			return active{}, "dial failed"
		case evIncoming:
			f.takeIncoming(ev) // the dial goes on: see collision.go
			if len(f.conns) > 0 {
				return opensent{}, "peer connected"
			}
		}
	}
}
