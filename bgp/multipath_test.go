package bgp

import (
	"net/netip"
	"testing"
	"time"
)

// TestMultipath: routes of two peers that are equally good have both next hops, as long as both are there.
func TestMultipath(t *testing.T) {
	a := start(t, "10.1.40.1", Options{}, mesh("10.1.40.2"), mesh("10.1.40.3"))
	b := start(t, "10.1.40.2", Options{}, mesh("10.1.40.1"))
	c := start(t, "10.1.40.3", Options{}, mesh("10.1.40.1"))
	b.announce("10.65.0.0/26", "10.66.0.0/26")
	c.announce("10.65.0.0/26")
	hops := func(prefix string) string { return a.Best()[netip.MustParsePrefix(prefix)].NextHops.String() }
	eventually(t, "two next hops", func() bool { return hops("10.65.0.0/26") == "10.1.40.2,10.1.40.3" && a.has("10.66.0.0/26") }, a, b, c)
	if got := hops("10.66.0.0/26"); got != "" {
		t.Errorf("one path has the next hops %s", got)
	}
	c.cfg.Announce[netip.MustParsePrefix("10.65.0.0/26")] = Announcement{LocalPref: 99}
	c.set()
	eventually(t, "one next hop", func() bool { return hops("10.65.0.0/26") == "" }, a, b, c)
	c.cfg.Announce[netip.MustParsePrefix("10.65.0.0/26")] = Announcement{}
	c.set()
	eventually(t, "two again", func() bool { return hops("10.65.0.0/26") == "10.1.40.2,10.1.40.3" }, a, b, c)
	b.withdraw("10.65.0.0/26")
	eventually(t, "the other one", func() bool {
		p := a.Best()[netip.MustParsePrefix("10.65.0.0/26")]
		return p.NextHop == c.addr && p.NextHops.String() == ""
	}, a, b, c)
}

// TestReach: a path whose next hop cannot be reached is the last choice, and that is live.
func TestReach(t *testing.T) {
	a := start(t, "10.1.41.1", Options{}, mesh("10.1.41.2"), mesh("10.1.41.3"))
	b := start(t, "10.1.41.2", Options{}, mesh("10.1.41.1"))
	c := start(t, "10.1.41.3", Options{}, mesh("10.1.41.1"))
	b.cfg.Announce[netip.MustParsePrefix("10.65.0.0/26")] = Announcement{LocalPref: 200}
	b.set()
	c.announce("10.65.0.0/26")
	from := func(n *node) func() bool {
		return func() bool { return a.Best()[netip.MustParsePrefix("10.65.0.0/26")].NextHop == n.addr }
	}
	eventually(t, "the preferred one", from(b), a, b, c)
	a.cfg.Reach = []netip.Prefix{netip.MustParsePrefix("10.1.41.3/32")}
	a.set()
	eventually(t, "the one that can be reached", from(c), a, b, c)
	if r, err := a.Routes(ViewReceived, b.addr); err != nil || len(r) != 1 || !r[0].Unreachable || r[0].Best {
		t.Errorf("%+v, %v", r, err)
	}
	c.withdraw("10.65.0.0/26")
	eventually(t, "the only one", from(b), a, b, c)
	c.announce("10.65.0.0/26")
	eventually(t, "the one that can be reached again", from(c), a, b, c)
	a.cfg.Reach = nil
	a.set()
	eventually(t, "the preferred one again", from(b), a, b, c)
}

// TestInterfaceOfPeerGoes: a session ends with the last interface on its peer's subnet, and its routes become the last
// choice.
func TestInterfaceOfPeerGoes(t *testing.T) {
	near := mesh("10.1.42.2")
	near.OnLink = true
	a := start(t, "10.1.42.1", Options{}, near, mesh("10.1.42.3"))
	b := start(t, "10.1.42.2", Options{}, mesh("10.1.42.1"))
	c := start(t, "10.1.42.3", Options{}, mesh("10.1.42.1"))
	b.cfg.Announce[netip.MustParsePrefix("10.65.0.0/26")] = Announcement{LocalPref: 200}
	b.set()
	c.announce("10.65.0.0/26")
	eventually(t, "the preferred one", func() bool { return a.Best()[netip.MustParsePrefix("10.65.0.0/26")].NextHop == b.addr }, a, b, c)
	up := a.peer("10.1.42.2").Since
	p := a.cfg.Peers[b.addr]
	p.OnLink = false
	a.cfg.Peers[b.addr] = p
	began := time.Now()
	a.set()
	eventually(t, "the other path", func() bool { return a.Best()[netip.MustParsePrefix("10.65.0.0/26")].NextHop == c.addr }, a, b, c)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("after %s", took)
	}
	eventually(t, "the session again", func() bool { return established(a, "10.1.42.2")() && a.peer("10.1.42.2").Since.After(up) }, a, b, c)
}
