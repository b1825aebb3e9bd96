package session

// active is the state Active: waiting for the peer to connect, and for the time of the next dial.
type active struct{}

func (active) name() string { return "Active" }

func (active) run(f *fsm) (state, string) {
	f.retry.Reset(backoff(f.s.Config().ConnectRetry, f.failures))
	defer f.retry.Stop()
	for {
		switch ev := f.next(); ev.kind {
		case evShutdown, evStop:
			return nil, "stopped"
		case evRetry:
			cfg := f.s.Config()
			if !cfg.Passive {
				return connect{}, "connect retry timer"
			}
			f.retry.Reset(backoff(retryLast, 0)) // the flag may be changed meanwhile
		case evIncoming:
			f.takeIncoming(ev)
			if len(f.conns) > 0 {
				return opensent{}, "peer connected"
			}
		}
	}
}
