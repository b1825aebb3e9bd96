package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

func TestTwoSpeakers(t *testing.T) {
	checkLeaks(t)
	began := time.Now()
	a := start(t, "10.0.1.1", Options{}, mesh("10.0.1.2"))
	b := start(t, "10.0.1.2", Options{}, mesh("10.0.1.1"))
	a.announce("192.168.1.0/26")
	b.announce("192.168.2.0/26", "192.168.3.0/26")
	eventually(t, "both established", func() bool {
		return established(a, "10.0.1.2")() && established(b, "10.0.1.1")()
	}, a, b)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("cold session took %s, want well under the 5 s of a retry", took)
	}
	eventually(t, "routes both ways", func() bool { return len(a.Best()) == 2 && len(b.Best()) == 1 }, a, b)
	got := b.Best()[netip.MustParsePrefix("192.168.1.0/26")]
	want := Path{Prefix: netip.MustParsePrefix("192.168.1.0/26"), NextHop: a.addr, Peer: a.addr, PeerASN: 64512, LocalPref: 100}
	if got != want {
		t.Errorf("best = %+v, want %+v", got, want)
	}
	eventually(t, "converged", func() bool { return a.Converged() && b.Converged() }, a, b)
	st := a.peer("10.0.1.2")
	if st.Advertised != 1 || st.Received != 2 || st.Accepted != 2 || !st.EoR || st.RemoteID != routerID(b.addr) || st.HoldTime != 90*time.Second {
		t.Errorf("status = %+v", st)
	}
	b.withdraw("192.168.2.0/26")
	eventually(t, "withdrawn", func() bool { return !a.has("192.168.2.0/26") && a.has("192.168.3.0/26") }, a, b)
}

// TestPromptness measures the way of a new route from Set to the peer's Best: the budget is 3 ms (design §5).
func TestPromptness(t *testing.T) {
	a := start(t, "10.0.2.1", Options{}, mesh("10.0.2.2"))
	b := start(t, "10.0.2.2", Options{}, mesh("10.0.2.1"))
	eventually(t, "converged", func() bool { return a.Converged() && b.Converged() }, a, b)
	best := time.Hour
	for i := range 20 {
		time.Sleep(5 * time.Millisecond)
		p := fmt.Sprintf("192.168.%d.0/24", i)
		began := time.Now()
		a.announce(p)
		for !b.has(p) {
			select {
			case <-b.Changed():
			case <-time.After(5 * time.Second):
				t.Fatalf("%s did not arrive", p)
			}
		}
		best = min(best, time.Since(began))
	}
	t.Logf("fastest of 20: %s", best)
	if best > 3*time.Millisecond {
		t.Errorf("a route takes %s to the peer, want at most 3ms", best)
	}
}

func TestIPv6Session(t *testing.T) {
	a := start(t, "fd00::1", Options{}, mesh("fd00::2"))
	b := start(t, "fd00::2", Options{}, mesh("fd00::1"))
	a.announce("fd10:1::/64", "192.168.9.0/24")
	eventually(t, "IPv6 route", func() bool { return b.has("fd10:1::/64") }, a, b)
	if b.has("192.168.9.0/24") {
		t.Error("an IPv4 route went over the IPv6 session")
	}
	if hop := b.Best()[netip.MustParsePrefix("fd10:1::/64")].NextHop; hop != a.addr {
		t.Errorf("next hop %s, want %s", hop, a.addr)
	}
	eventually(t, "End-of-RIB", func() bool { return b.peer("fd00::1").EoR }, a, b)
	a.withdraw("fd10:1::/64")
	eventually(t, "withdrawn", func() bool { return len(b.Best()) == 0 }, a, b)
}

// TestMesh starts N speakers that all dial each other at once: the worst case for collisions.
func TestMesh(t *testing.T) {
	checkLeaks(t)
	const n = 8
	addr := func(i int) string { return fmt.Sprintf("10.0.3.%d", i+1) }
	var nodes []*node
	began := time.Now()
	for i := range n {
		var peers []Peer
		for j := range n {
			if j != i {
				peers = append(peers, mesh(addr(j)))
			}
		}
		nd := start(t, addr(i), Options{}, peers...)
		nd.announce(fmt.Sprintf("192.168.%d.0/24", i))
		nodes = append(nodes, nd)
	}
	eventually(t, "full mesh", func() bool {
		for _, nd := range nodes {
			if len(nd.Best()) != n-1 || !nd.Converged() {
				return false
			}
		}
		return true
	}, nodes...)
	t.Logf("mesh of %d complete after %s", n, time.Since(began))
	// Sessions must not have been won and lost again: one OPEN exchange each, no flap.
	time.Sleep(200 * time.Millisecond)
	for _, nd := range nodes {
		for _, st := range nd.Status() {
			if st.State != "Established" {
				t.Errorf("%s: %s is %s: %s", nd.addr, st.Peer.Addr, st.State, st.LastError)
			}
		}
	}
	nodes[0].stop()
	eventually(t, "stale routes of the stopped node", func() bool {
		p := nodes[1].Best()[netip.MustParsePrefix("192.168.0.0/24")]
		return p.Stale
	}, nodes...)
}

func TestIBGPIsNotPassedOn(t *testing.T) {
	a := start(t, "10.0.4.1", Options{}, mesh("10.0.4.2"))
	b := start(t, "10.0.4.2", Options{}, mesh("10.0.4.1"), mesh("10.0.4.3"))
	c := start(t, "10.0.4.3", Options{}, mesh("10.0.4.2"))
	a.announce("192.168.1.0/24")
	b.announce("192.168.2.0/24")
	eventually(t, "b's route at c", func() bool { return c.has("192.168.2.0/24") && b.has("192.168.1.0/24") }, a, b, c)
	time.Sleep(50 * time.Millisecond)
	if c.has("192.168.1.0/24") {
		t.Error("an internal route was passed on to an internal peer")
	}
}

func TestEBGP(t *testing.T) {
	ext := func(addr string, asn uint32) Peer { p := mesh(addr); p.ASN, p.Type = asn, TypeGlobal; return p }
	a := start(t, "10.0.5.1", Options{}, ext("10.0.5.2", 64512))
	a.cfg.ASN = 4200000001 // needs four octets
	b := start(t, "10.0.5.2", Options{}, ext("10.0.5.1", 4200000001), mesh("10.0.5.3"))
	c := start(t, "10.0.5.3", Options{}, mesh("10.0.5.2"))
	a.cfg.Announce[netip.MustParsePrefix("192.168.1.0/24")] = Announcement{MED: 7, LocalPref: 400, Communities: "64512:1 1:2:3"}
	a.cfg.Announce[netip.MustParsePrefix("0.0.0.0/0")] = Announcement{Communities: "65535:65282"} // NO_ADVERTISE
	a.set()
	b.announce("192.168.2.0/24")
	eventually(t, "route passed on", func() bool { return c.has("192.168.1.0/24") && b.has("0.0.0.0/0") && a.has("192.168.2.0/24") }, a, b, c)
	if got, want := c.Best()[netip.MustParsePrefix("192.168.1.0/24")], (Path{
		Prefix:  netip.MustParsePrefix("192.168.1.0/24"),
		NextHop: a.addr, Peer: b.addr, PeerASN: 64512, LocalPref: 100, MED: 7, ASPath: "4200000001",
	}); got != want {
		t.Errorf("at c: %+v, want %+v", got, want)
	}
	if c.has("0.0.0.0/0") {
		t.Error("NO_ADVERTISE was not honoured")
	}
	if got := a.Best()[netip.MustParsePrefix("192.168.2.0/24")]; got.ASPath != "64512" || got.NextHop != b.addr {
		t.Errorf("at a: %+v", got)
	}
}

func TestPeerRemoval(t *testing.T) {
	a := start(t, "10.0.6.1", Options{}, mesh("10.0.6.2"))
	b := start(t, "10.0.6.2", Options{}, mesh("10.0.6.1"))
	a.announce("192.168.1.0/24")
	b.announce("192.168.2.0/24")
	eventually(t, "routes", func() bool { return a.has("192.168.2.0/24") && b.has("192.168.1.0/24") }, a, b)
	clear(a.cfg.Peers)
	a.set()
	if len(a.Best()) != 0 {
		t.Errorf("routes of a removed peer are kept: %v", a.Best())
	}
	eventually(t, "b to drop the routes", func() bool { return len(b.Best()) == 0 }, a, b)
	// Connections from a are now strangers to b's eyes too, but b still wants the session.
	eventually(t, "b to say why", func() bool { return b.peer("10.0.6.1").LastError != "" }, a, b)
}

func TestWrongAS(t *testing.T) {
	wrong := mesh("10.0.7.2")
	wrong.ASN = 65000
	a := start(t, "10.0.7.1", Options{}, wrong)
	b := start(t, "10.0.7.2", Options{}, mesh("10.0.7.1"))
	eventually(t, "the reason in words", func() bool {
		return a.peer("10.0.7.2").LastError == "wrong AS: peer says 64512, configured 65000" &&
			b.peer("10.0.7.1").LastError != ""
	}, a, b)
}

func TestReasonsOnTheWire(t *testing.T) {
	far := mesh("192.0.2.1") // the namespace has no default route
	waits := mesh("10.0.7.9")
	waits.Passive = true
	a := start(t, "10.0.7.5", Options{}, far, waits)
	eventually(t, "no route", func() bool { return a.peer("192.0.2.1").LastError == "no route to peer" }, a)
	eventually(t, "waiting", func() bool { return a.peer("10.0.7.9").LastError == "waiting for the peer to connect" }, a)
}

func TestMD5(t *testing.T) {
	secret := func(addr, password string) Peer { p := mesh(addr); p.Password = password; return p }
	a := start(t, "10.0.8.1", Options{}, secret("10.0.8.2", "tanuki"), secret("10.0.8.3", "tanuki"))
	b := start(t, "10.0.8.2", Options{}, secret("10.0.8.1", "tanuki"))
	c := start(t, "10.0.8.3", Options{}, secret("10.0.8.1", "kitsune"))
	eventually(t, "session with the right password", established(a, "10.0.8.2"), a, b)
	time.Sleep(300 * time.Millisecond)
	if st := a.peer("10.0.8.3"); st.State == "Established" || c.peer("10.0.8.1").State == "Established" {
		t.Error("session with a wrong password")
	}
	if why := c.peer("10.0.8.1").LastError; why != "" && why != "no answer from peer: it is down, or the passwords differ" {
		t.Errorf("reason %q", why)
	}
	if a.peer("10.0.8.2").Peer.Password != "" {
		t.Error("Status gives the password away")
	}
	c.cfg.Peers[a.addr] = func() Peer { p := c.cfg.Peers[a.addr]; p.Password = "tanuki"; return p }()
	c.set()
	eventually(t, "session after the password was put right", established(c, "10.0.8.1"), a, c)
}

func TestTTLSecurity(t *testing.T) {
	near := func(addr string) Peer { p := mesh(addr); p.TTLSecurity = 1; return p }
	a := start(t, "10.0.9.1", Options{}, near("10.0.9.2"), near("10.0.9.3"))
	b := start(t, "10.0.9.2", Options{}, near("10.0.9.1"))
	eventually(t, "session at TTL 255", established(a, "10.0.9.2"), a, b)
	// What comes with the usual TTL of 64 seems to be from far away and is dropped.
	far := swarm(t, "10.0.9.1", 64512, "10.0.9.3", "192.168.1.0/24")
	time.Sleep(500 * time.Millisecond)
	if far.Established() != 0 || a.peer("10.0.9.3").State == "Established" || len(a.Best()) != 0 {
		t.Errorf("a distant peer got a session: %s", a.peer("10.0.9.3").State)
	}
	c := start(t, "fd00::6", Options{}, near("fd00::7"), near("fd00::8"))
	d := start(t, "fd00::7", Options{}, near("fd00::6"))
	eventually(t, "IPv6 session at hop limit 255", established(c, "fd00::7"), c, d)
	far6 := swarm(t, "fd00::6", 64512, "fd00::8", "fd10::/64")
	time.Sleep(300 * time.Millisecond)
	if far6.Established() != 0 || c.peer("fd00::8").State == "Established" || len(c.Best()) != 0 {
		t.Errorf("a distant IPv6 peer got a session: %s", c.peer("fd00::8").State)
	}
}

func TestGracefulRestart(t *testing.T) {
	checkLeaks(t)
	a := start(t, "10.0.10.1", Options{}, mesh("10.0.10.2"))
	b := start(t, "10.0.10.2", Options{}, mesh("10.0.10.1"))
	a.announce("192.168.1.0/24", "192.168.2.0/24")
	eventually(t, "routes", func() bool { return len(b.Best()) == 2 }, a, b)
	a.stop()
	eventually(t, "stale", func() bool { return b.Best()[netip.MustParsePrefix("192.168.1.0/24")].Stale }, b)
	if st := b.peer("10.0.10.1"); !st.RestartingPeer || len(b.Best()) != 2 {
		t.Errorf("status = %+v, best %v", st, b.Best())
	}
	gone := make(chan struct{})
	go func() { // the routes must be there at every moment of the restart
		defer close(gone)
		for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Microsecond) {
			if !b.has("192.168.1.0/24") {
				t.Error("route was away during the restart")
				return
			}
			if p := b.Best()[netip.MustParsePrefix("192.168.1.0/24")]; !p.Stale && !b.has("192.168.2.0/24") {
				return
			}
		}
	}()
	a2 := start(t, "10.0.10.1", Options{RestartedRecently: true}, mesh("10.0.10.2"))
	a2.announce("192.168.1.0/24") // the other one is gone
	eventually(t, "sweep at End-of-RIB", func() bool {
		return !b.Best()[netip.MustParsePrefix("192.168.1.0/24")].Stale && !b.has("192.168.2.0/24")
	}, a2, b)
	<-gone
	eventually(t, "converged", a2.Converged, a2, b)
}

func TestStaleRoutesExpire(t *testing.T) {
	p := mesh("10.0.11.2")
	p.RestartTime = time.Second
	a := start(t, "10.0.11.1", Options{}, p)
	b := start(t, "10.0.11.2", Options{}, mesh("10.0.11.1"))
	a.announce("192.168.1.0/24")
	eventually(t, "route", func() bool { return b.has("192.168.1.0/24") }, a, b)
	a.stop()
	eventually(t, "stale", func() bool { return b.Best()[netip.MustParsePrefix("192.168.1.0/24")].Stale }, b)
	within(t, 3*time.Second, "end of the restart time", func() bool { return len(b.Best()) == 0 }, b)
}

func TestHoldTimer(t *testing.T) {
	p := mesh("10.0.12.2")
	p.HoldTime = 3 * time.Second
	a := start(t, "10.0.12.1", Options{}, p)
	mute := swarm(t, "10.0.12.1", 64512, "10.0.12.2", "192.168.1.0/24")
	eventually(t, "route", func() bool { return a.has("192.168.1.0/24") }, a)
	mute.Mute()
	within(t, 6*time.Second, "hold timer", func() bool { return !a.has("192.168.1.0/24") }, a)
	eventually(t, "reason", func() bool { return a.peer("10.0.12.2").LastError == "hold timer expired" || mute.Established() == 1 }, a)
}

func TestConvergedWithoutPeer(t *testing.T) {
	a := start(t, "10.0.13.1", Options{Deferral: 300 * time.Millisecond}, mesh("10.0.13.2"))
	time.Sleep(100 * time.Millisecond)
	if a.Converged() {
		t.Fatal("converged before the deferral time although the peer is away")
	}
	eventually(t, "deferral", a.Converged, a)
	eventually(t, "reason", func() bool { return a.peer("10.0.13.2").LastError == "connection refused" }, a)
}

func TestListenTaken(t *testing.T) {
	start(t, "10.0.14.1", Options{})
	second := New(quiet(), Options{})
	err := second.Set(Config{RouterID: netip.MustParseAddr("1.1.1.1"), ASN: 64512, Listen: []netip.AddrPort{netip.MustParseAddrPort("10.0.14.1:179")}})
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("err = %v, want EADDRINUSE", err)
	}
}

func TestTimersChangeWithoutReset(t *testing.T) {
	a := start(t, "10.0.15.1", Options{}, mesh("10.0.15.2"))
	b := start(t, "10.0.15.2", Options{}, mesh("10.0.15.1"))
	eventually(t, "session", func() bool { return established(a, "10.0.15.2")() && established(b, "10.0.15.1")() }, a, b)
	since := a.peer("10.0.15.2").Since
	p := a.cfg.Peers[b.addr]
	p.Name, p.HoldTime, p.Type, p.Passive = "renamed", 30*time.Second, TypeNode, true
	a.cfg.Peers[b.addr] = p
	a.set()
	time.Sleep(50 * time.Millisecond)
	if st := a.peer("10.0.15.2"); st.State != "Established" || !st.Since.Equal(since) || st.Peer.Name != "renamed" || st.Peer.Type != TypeNode {
		t.Errorf("status = %+v", st)
	}
}

// TestFlap is the "cable pulled and put back" of design §5: from a lost session to all routes again.
func TestFlap(t *testing.T) {
	a := start(t, "10.0.16.1", Options{}, mesh("10.0.16.2"))
	b := start(t, "10.0.16.2", Options{}, mesh("10.0.16.1"))
	a.announce("192.168.1.0/24")
	eventually(t, "route", func() bool { return b.has("192.168.1.0/24") }, a, b)
	b.stop()
	b = start(t, "10.0.16.2", Options{}, mesh("10.0.16.1"))
	began := time.Now()
	eventually(t, "route again", func() bool { return b.has("192.168.1.0/24") }, a, b)
	if n := a.peer("10.0.16.2").Flaps; n != 1 {
		t.Errorf("%d flaps are counted, want 1", n)
	}
	t.Logf("full again %s after the restart", time.Since(began))
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
}
