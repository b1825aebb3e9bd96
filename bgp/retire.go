package bgp

import (
	"net/netip"
	"time"

	"github.com/manekinet/maneki/bgp/rib"
)

// A change of the configuration that ends one session and starts another, from the mesh to a reflector or
// to another AS, must not leave a destination without a path in between: make before break. The routes of
// a session that is no longer wanted are retired: the last choice, but there, until the sessions that are
// wanted have delivered theirs.
const (
	lingerLeast = 2 * time.Second  // for a reflector that learns of the change a moment after us
	lingerMost  = 30 * time.Second // for sessions that do not come up
)

// retiree is a source whose session is over for good.
type retiree struct {
	source *rib.Source
	addr   netip.Addr
	since  time.Time
}

// retire keeps the routes of a peer that is being stopped.
func (s *Speaker) retire(p *peer) {
	if p.source.Received() == 0 {
		return
	}
	s.bestChanged(s.table.Retire(p.source)...)
	s.retired = append(s.retired, retiree{source: p.source, addr: p.cfg.Addr, since: time.Now()})
	s.sweep.Reset(lingerLeast)
}

// endRetirement is called when the time of a retiree may be over.
func (s *Speaker) endRetirement() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweepRetired(time.Now())
	s.wake()
}

// sweepRetired drops the routes of retired sources that have been replaced, or waited for long enough.
func (s *Speaker) sweepRetired(now time.Time) {
	if len(s.retired) == 0 {
		return
	}
	replaced := true
	for _, p := range s.peers {
		replaced = replaced && p.feed != nil && p.ended&p.families == p.families
	}
	left := s.retired[:0]
	next := lingerMost
	for _, r := range s.retired {
		age := now.Sub(r.since)
		if age >= lingerMost || (replaced && age >= lingerLeast) {
			s.log.Debug("bgp retired routes dropped", "peer", r.addr, "routes", r.source.Received(), "after", age.Round(time.Millisecond))
			s.bestChanged(s.table.Sweep(r.source, func(netip.Prefix, rib.Path) bool { return true })...)
			continue
		}
		left = append(left, r)
		if age < lingerLeast {
			next = min(next, lingerLeast-age)
		} else {
			next = min(next, lingerMost-age)
		}
	}
	s.retired = left
	if len(left) > 0 {
		s.sweep.Reset(next)
	}
}
