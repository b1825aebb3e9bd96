package bgptest

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// Count says how clients count the routes that they hear: of IPv4, and sent in the fields of RFC 4271 rather
// than in MP_REACH_NLRI. Client i announces the prefixes numbered i*Each to (i+1)*Each-1.
type Count struct {
	Each   int                           // prefixes of each client
	Number func(prefix netip.Prefix) int // of a prefix; -1 for one that is not counted
}

// tally is what one client has heard. It belongs to the client's reading goroutine; only full, under the
// swarm's mutex, is for others.
type tally struct {
	number    func(netip.Prefix) int
	own, each int      // numbers of the client's own prefixes
	bits      []uint64 // by number
	held      int
	want      int
	full      bool
}

func (c *Count) tally(client, clients int) tally {
	total := clients * c.Each
	return tally{number: c.Number, own: client * c.Each, each: c.Each, bits: make([]uint64, (total+63)/64), want: total - c.Each}
}

// Full is how many clients hold the prefixes of all others; with Options.Count.
func (s *Swarm) Full() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full
}

// LastChange is when a client last heard of a route that it did not have or had to give one up; with
// Options.Count.
func (s *Swarm) LastChange() time.Time { return time.Unix(0, s.last.Load()) }

// Held is the least number of others' prefixes that a client holds, and which client; with Options.Count, and
// while nothing changes.
func (s *Swarm) Held() (least, client int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	least = -1
	for i, m := range s.members {
		if least < 0 || m.tally.held < least {
			least, client = m.tally.held, i
		}
	}
	return least, client
}

// Flap closes the connection of client i, which dials again at once.
func (s *Swarm) Flap(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.members[i]; m.conn != nil {
		m.flapped = true
		m.conn.Close()
	}
}

// counts takes an UPDATE if the client only counts, and reports whether it did.
func (m *member) counts(body []byte) bool {
	t := &m.tally
	if t.number == nil {
		return false
	}
	before := t.held
	withdrawn, reach, ok := splitUpdate(body)
	if !ok {
		return false
	}
	changed := t.mark(withdrawn, false)
	changed = t.mark(reach, true) || changed
	if changed {
		m.swarm.last.Store(time.Now().UnixNano())
	}
	if (before == t.want) != (t.held == t.want) {
		m.setFull(t.held == t.want)
	}
	return true
}

func (m *member) setFull(full bool) {
	s := m.swarm
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.tally.full == full {
		return
	}
	m.tally.full = full
	if full {
		s.full++
	} else {
		s.full--
	}
	s.touch()
}

// forget is the end of the client's session; the swarm's mutex is held.
func (m *member) forget() {
	if m.tally.number == nil {
		return
	}
	clear(m.tally.bits)
	m.tally.held = 0
	if m.tally.full {
		m.tally.full = false
		m.swarm.full--
	}
	m.swarm.last.Store(time.Now().UnixNano())
}

// splitUpdate returns the withdrawn and the reachable prefixes of an UPDATE as they are on the wire (RFC 4271
// §4.3).
func splitUpdate(body []byte) (withdrawn, reach []byte, ok bool) {
	for range 2 {
		if len(body) < 2 {
			return nil, nil, false
		}
		n := int(binary.BigEndian.Uint16(body))
		if len(body) < 2+n {
			return nil, nil, false
		}
		if withdrawn == nil {
			withdrawn = body[2 : 2+n : 2+n]
		}
		body = body[2+n:]
	}
	return withdrawn, body, true
}

// mark counts the prefixes of a field in or out and reports whether any was news.
func (t *tally) mark(field []byte, there bool) bool {
	changed := false
	for len(field) > 0 {
		bits := int(field[0])
		n := (bits + 7) / 8
		if bits > 32 || len(field) < 1+n {
			return changed
		}
		var a [4]byte
		copy(a[:], field[1:1+n])
		field = field[1+n:]
		i := t.number(netip.PrefixFrom(netip.AddrFrom4(a), bits))
		if i < 0 || (i >= t.own && i < t.own+t.each) || i/64 >= len(t.bits) {
			continue
		}
		word, bit := &t.bits[i/64], uint64(1)<<(i%64)
		if (*word&bit != 0) == there {
			continue
		}
		*word ^= bit
		changed = true
		if there {
			t.held++
		} else {
			t.held--
		}
	}
	return changed
}
