package bgp

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// hopsOf are the next hops that n has to a prefix, however many.
func hopsOf(n *node, prefix string) string {
	p, ok := n.Best()[netip.MustParsePrefix(prefix)]
	if hops := p.NextHops.String(); hops != "" || !ok {
		return hops
	}
	return p.NextHop.String()
}

// TestSeveralPathsOverAReflector (RFC 7911): two clients of a reflector, and the reflector itself, announce the same
// address. A third client has all of them, of two reflectors each once, and follows each as it comes and goes. A client
// that does not speak it has one.
func TestSeveralPathsOverAReflector(t *testing.T) {
	checkLeaks(t)
	const service, block = "203.0.113.7/32", "10.65.2.0/26"
	clients := func() []Peer {
		return []Peer{client("10.1.50.2"), client("10.1.50.3"), client("10.1.50.4"), client("10.1.50.9")}
	}
	rr1 := start(t, "10.1.50.1", Options{}, append(clients(), client("10.1.50.5"))...)
	rr2 := start(t, "10.1.50.5", Options{}, append(clients(), client("10.1.50.1"))...)
	c2 := start(t, "10.1.50.2", Options{}, mesh("10.1.50.1"), mesh("10.1.50.5"))
	c3 := start(t, "10.1.50.3", Options{}, mesh("10.1.50.1"), mesh("10.1.50.5"))
	c4 := start(t, "10.1.50.4", Options{}, mesh("10.1.50.1"), mesh("10.1.50.5"))
	old := swarm(t, "10.1.50.1", 64512, "10.1.50.9")
	all := []*node{rr1, rr2, c2, c3, c4}
	c2.announce(service, block)
	c3.announce(service)
	eventually(t, "two next hops over each reflector", func() bool {
		return hopsOf(c4, service) == "10.1.50.2,10.1.50.3" && hopsOf(c4, block) == "10.1.50.2" &&
			c4.peer("10.1.50.1").Received == 3 && c4.peer("10.1.50.5").Received == 3
	}, all...)
	// Each server hears of the other one, and not of itself.
	eventually(t, "the other one", func() bool { return c2.peer("10.1.50.1").Received == 1 && c3.peer("10.1.50.1").Received == 2 }, all...)
	if routes, err := rr1.Routes(ViewAdvertised, c4.addr); err != nil || len(routes) != 3 || routes[1].Prefix != routes[2].Prefix || routes[1].Best == routes[2].Best {
		t.Errorf("advertised: %+v, %v", routes, err)
	}
	eventually(t, "one path without the capability", func() bool { return len(old.Routes(0)) == 2 }, all...)

	rr1.announce(service)
	eventually(t, "the reflector's own, too", func() bool { return hopsOf(c4, service) == "10.1.50.1,10.1.50.2,10.1.50.3" }, all...)
	c2.withdraw(service)
	eventually(t, "without the first", func() bool { return hopsOf(c4, service) == "10.1.50.1,10.1.50.3" }, all...)
	c2.announce(service)
	rr1.withdraw(service)
	eventually(t, "the first again", func() bool { return hopsOf(c4, service) == "10.1.50.2,10.1.50.3" }, all...)
	c3.stop() // as at a restart: what it announced stays for a while
	eventually(t, "the session is over", func() bool {
		return rr1.peer("10.1.50.3").State != "Established" && rr2.peer("10.1.50.3").State != "Established"
	}, rr1, rr2, c2, c4)
	if got := hopsOf(c4, service); got != "10.1.50.2,10.1.50.3" {
		t.Errorf("while a server restarts the next hops are %s", got)
	}
	for _, rr := range []*node{rr1, rr2} {
		delete(rr.cfg.Peers, c3.addr)
		rr.set()
	}
	eventually(t, "one is left", func() bool {
		return hopsOf(c4, service) == "10.1.50.2" && c4.peer("10.1.50.1").Received == 2 && c4.peer("10.1.50.5").Received == 2
	}, rr1, rr2, c2, c4)
}

// TestSeveralPathsWithBIRD: BIRD as a client of our reflector, with "add paths" and then without it, and a path of
// BIRD's own.
func TestSeveralPathsWithBIRD(t *testing.T) {
	h := newHost(t, 45)
	conf := func(paths string) string {
		return fmt.Sprintf(`
router id %[2]s;
protocol device { }
protocol static hops { ipv4; route 10.1.51.0/24 via %[1]s; }
protocol static own { ipv4; route 203.0.113.7/32 blackhole; route 10.66.0.0/26 blackhole; }
protocol bgp reflector {
  local %[2]s as 64512; neighbor %[1]s as 64512; multihop; connect delay time 1; connect retry time 1; error wait time 1, 1;
  ipv4 { import all; export where proto = "own"; gateway recursive; next hop self; %[3]s };
}
`, h.us, h.them, paths)
	}
	rr := start(t, h.us, Options{}, client(h.them), client("10.1.51.2"), client("10.1.51.3"))
	c2 := start(t, "10.1.51.2", Options{}, mesh(h.us))
	c3 := start(t, "10.1.51.3", Options{}, mesh(h.us))
	c2.announce("203.0.113.7/32")
	c3.announce("203.0.113.7/32")
	stop, show := h.birdRuns(conf("add paths on;"))
	paths := func() int { return strings.Count(show("show route for 203.0.113.7 protocol reflector"), "via "+h.us) }
	eventually(t, "BIRD has both paths, and we have BIRD's", func() bool {
		return paths() == 2 && strings.Contains(hopsOf(rr, "203.0.113.7/32"), h.them) && c2.peer(h.us).Received == 3 && c3.peer(h.us).Received == 3
	}, rr, c2, c3)
	c3.withdraw("203.0.113.7/32")
	eventually(t, "one path is withdrawn", func() bool { return paths() == 1 }, rr, c2)
	c3.announce("203.0.113.7/32")
	eventually(t, "and comes back", func() bool { return paths() == 2 }, rr, c2, c3)
	stop(9)
	_, show = h.birdRuns(conf(""))
	eventually(t, "one path without add paths", func() bool { return paths() == 1 && rr.peer(h.them).State == "Established" }, rr, c2, c3)
	time.Sleep(100 * time.Millisecond)
	if n := paths(); n != 1 {
		t.Errorf("%d paths", n)
	}
}

// TestSeveralPathsWithFRR: FRR as the reflector of three hosts, told to send all paths to one of them.
func TestSeveralPathsWithFRR(t *testing.T) {
	h := newHost(t, 46)
	h.run("ip", "route", "add", "10.1.52.0/24", "via", h.us)
	show := h.frr(`
hostname frr
log stdout
router bgp 64512
 bgp router-id 172.31.46.2
 coalesce-time 50
 neighbor 10.1.52.2 remote-as 64512
 neighbor 10.1.52.2 timers connect 1
 neighbor 10.1.52.3 remote-as 64512
 neighbor 10.1.52.3 timers connect 1
 neighbor 10.1.52.4 remote-as 64512
 neighbor 10.1.52.4 timers connect 1
 address-family ipv4 unicast
  neighbor 10.1.52.2 route-reflector-client
  neighbor 10.1.52.3 route-reflector-client
  neighbor 10.1.52.4 route-reflector-client
  neighbor 10.1.52.4 addpath-tx-all-paths
 exit-address-family
`)
	var nodes []*node
	for _, addr := range []string{"10.1.52.2", "10.1.52.3", "10.1.52.4"} {
		nodes = append(nodes, start(t, addr, Options{}, realPeer(h.them)))
	}
	nodes[0].announce("203.0.113.7/32")
	nodes[1].announce("203.0.113.7/32")
	c4 := nodes[2]
	hops := func(want string) func() bool { return func() bool { return hopsOf(c4, "203.0.113.7/32") == want } }
	eventually(t, "both paths by FRR", hops("10.1.52.2,10.1.52.3"), nodes...)
	if out := show("show bgp neighbors 10.1.52.4"); !strings.Contains(out, "AddPath") {
		t.Errorf("FRR says nothing of AddPath:\n%s", out)
	}
	nodes[0].withdraw("203.0.113.7/32")
	eventually(t, "the other one", hops("10.1.52.3"), nodes...)
	nodes[0].announce("203.0.113.7/32")
	eventually(t, "both again", hops("10.1.52.2,10.1.52.3"), nodes...)
}
