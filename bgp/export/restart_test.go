package export

import (
	"net/netip"
	"testing"
	"unique"

	"github.com/manekinet/maneki/bgp/message"
	"github.com/manekinet/maneki/bgp/rib"
)

// TestRefreshKeepsWithdrawals: a member that asks for everything again must still be told of withdrawals
// that it had not been sent.
func TestRefreshKeepsWithdrawals(t *testing.T) {
	g := NewGroup(policy)
	p := netip.MustParsePrefix("192.168.1.0/24")
	path := rib.Path{Source: &rib.Source{Local: true}, Attrs: unique.Make(message.Attrs{})}
	m := g.Join(nil)
	g.Change(p, []rib.Path{path})
	if msgs, err := m.Next(); err != nil || len(msgs) != 1 {
		t.Fatal(msgs, err)
	}
	g.Change(p, nil)
	for i := range 1000 { // so many changes that the cached first chunk is given up
		other := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), 32)
		g.Change(other, []rib.Path{path})
	}
	m.Restart()
	withdrawn, routes := 0, map[netip.Prefix]bool{}
	for m.Pending() {
		msgs, err := m.Next()
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range msgs {
			u, err := message.DecodeUpdate(b[message.HeaderLen:], message.Session{FourOctetAS: true, Families: 3})
			if err != nil {
				t.Fatal(err)
			}
			withdrawn += len(u.Withdrawn)
			for _, r := range u.Reach {
				for _, n := range r.Routes {
					routes[n.Prefix] = true
				}
			}
		}
	}
	if withdrawn != 1 || len(routes) != 1000 {
		t.Errorf("%d withdrawals and %d routes, want 1 and 1000", withdrawn, len(routes))
	}
}
