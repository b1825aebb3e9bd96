package bgp

import (
	"net/netip"

	"github.com/manekinet/maneki/bgp/bfd"
	"github.com/manekinet/maneki/bgp/bfd/monitor"
	"github.com/manekinet/maneki/bgp/message"
	"github.com/manekinet/maneki/bgp/session"
)

// setBFD has the paths watched to the peers that want it.
func (s *Speaker) setBFD() {
	want := make(map[netip.Addr]monitor.Config)
	for addr, p := range s.peers {
		b := p.cfg.BFD
		if b.Interval == 0 {
			continue
		}
		c := monitor.Config{Local: p.cfg.Local, Multihop: b.Multihop, Timing: bfd.Timing{Interval: b.Interval, Multiplier: b.Multiplier}}
		if p.cfg.TTLSecurity > 0 {
			c.LeastTTL = session.LeastTTL(p.cfg.TTLSecurity)
		}
		want[addr] = c
	}
	s.bfd.Set(want)
}

// pathChanged is told of every change of a BFD session. One that comes up has no effect: a session of BGP
// does not wait for it, so that BFD can be turned on at one end first.
func (s *Speaker) pathChanged(c monitor.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notify()
	p := s.peers[c.Peer]
	if s.stopped || p == nil || p.cfg.BFD.Interval == 0 {
		return
	}
	if c.Failed() {
		p.session.PathDown(message.BFDDown(c.Diag.String()))
	}
}

func bfdStatus(st monitor.Status) BFDStatus {
	out := BFDStatus{State: st.State.String(), Since: st.Since, Interval: st.Interval, Detection: st.Detection, Multihop: st.Multihop}
	switch {
	case st.State == bfd.Up:
	case st.Error != "":
		out.Reason = st.Error
	case st.Remote == bfd.AdminDown:
		out.Reason = "the neighbour has taken it down on purpose"
	case st.Detection == 0:
		out.Reason = "nothing has been heard yet"
	default:
		out.Reason = st.Diag.String()
	}
	return out
}
