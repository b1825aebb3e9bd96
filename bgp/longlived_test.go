package bgp

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/manekinet/maneki/bgp/message"
	"github.com/manekinet/maneki/bgp/rib"
)

func longLived(addr string, d time.Duration) Peer {
	p := realPeer(addr)
	p.RestartTime, p.LongLived = time.Second, d
	return p
}

// path is the best path as it is held, with what Best does not show.
func (n *node) path(prefix string) (rib.Path, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.table.Best(netip.MustParsePrefix(prefix))
}

// TestLongLivedBIRD kills BIRD: after its restart time of a second its routes stay for 4 s more, as the last
// choice, marked, and told only to peers that know what the mark means.
func TestLongLivedBIRD(t *testing.T) {
	h := newHost(t, 40)
	stop, _ := h.bird("graceful restart on; graceful restart time 1; long lived graceful restart on; long lived stale time 4;")
	n := start(t, h.us, Options{}, longLived(h.them, time.Hour))
	backup := second(t, n, 40, "10.244.8.0/26")
	knows, doesNot := mesh("10.2.41.2"), mesh("10.2.41.3")
	knows.LongLived = time.Hour
	for _, p := range []*Peer{&knows, &doesNot} {
		p.Local, p.Client = netip.MustParseAddr("10.2.41.1"), true
		n.cfg.Peers[p.Addr] = *p
	}
	n.cfg.Listen = append(n.cfg.Listen, netip.MustParseAddrPort("10.2.41.1:179"))
	n.set()
	them := mesh("10.2.41.1")
	them.LongLived = time.Hour
	a, b := start(t, "10.2.41.2", Options{}, them), start(t, "10.2.41.3", Options{}, mesh("10.2.41.1"))
	best := func(prefix string) netip.Addr { return n.Best()[netip.MustParsePrefix(prefix)].NextHop }
	eventually(t, "BIRD's routes everywhere", func() bool {
		return best("10.244.8.0/26").String() == h.them && a.has("10.244.7.0/26") && b.has("10.244.7.0/26") && n.peer(h.them).EoR
	}, n, a, b)
	began := time.Now()
	stop(syscall.SIGKILL)
	eventually(t, "stale", func() bool { return n.Best()[netip.MustParsePrefix("10.244.7.0/26")].Stale }, n)
	if hop := best("10.244.8.0/26"); hop.String() != h.them {
		t.Errorf("within the restart time the next hop is %s, want %s", hop, h.them)
	}
	eventually(t, "the other path after the restart time", func() bool { return best("10.244.8.0/26").String() == backup }, n)
	if took := time.Since(began); took < 900*time.Millisecond {
		t.Errorf("long-lived already after %s", took)
	}
	eventually(t, "no longer told to who does not know the mark", func() bool { return !b.has("10.244.7.0/26") }, n, b)
	mark := func(m *node) bool {
		p, ok := m.path("10.244.7.0/26")
		return ok && p.Attrs.Value().HasCommunity(message.LLGRStale) && p.Demoted
	}
	eventually(t, "told with the mark to who knows it", func() bool { return mark(a) }, n, a)
	if !mark(n) {
		t.Error("not marked")
	}
	eventually(t, "gone after the stale time", func() bool { return !n.has("10.244.7.0/26") && !a.has("10.244.7.0/26") }, n, a)
	if took := time.Since(began); took < 4500*time.Millisecond || took > 12*time.Second {
		t.Errorf("gone after %s, want 1 s and 4 s", took)
	}
}

// TestLongLivedComesBack: a peer that returns in the long-lived time finds its routes there, and they are whole again.
func TestLongLivedComesBack(t *testing.T) {
	h := newHost(t, 42)
	const extra = "graceful restart on; graceful restart time 1; long lived graceful restart on; long lived stale time 60;"
	stop, _ := h.bird(extra)
	n := start(t, h.us, Options{}, longLived(h.them, time.Hour))
	six := realPeer(strings.Replace(h.us6, "::1", "::2", 1)) // BIRD waits for both of its sessions before it says End-of-RIB
	n.cfg.Listen = append(n.cfg.Listen, netip.AddrPortFrom(netip.MustParseAddr(h.us6), 179))
	n.cfg.Peers[six.Addr] = six
	n.set()
	path := func() (stale, marked bool) {
		p, ok := n.path("10.244.7.0/26")
		if !ok {
			t.Fatal("the route is gone")
		}
		return p.Stale, p.Attrs.Value().HasCommunity(message.LLGRStale)
	}
	eventually(t, "End-of-RIB", func() bool { return n.has("10.244.7.0/26") && n.peer(h.them).EoR }, n)
	stop(syscall.SIGKILL)
	eventually(t, "long-lived", func() bool { stale, marked := path(); return stale && marked }, n)
	h.bird(extra, "-R")
	eventually(t, "whole again", func() bool { stale, marked := path(); return !stale && !marked }, n)
}

// TestLongLivedHelpers restarts our side: BIRD and FRR keep our routes beyond our restart time of a second.
func TestLongLivedHelpers(t *testing.T) {
	run := func(t *testing.T, h *host, route func() string, mark string) {
		n := start(t, h.us, Options{}, longLived(h.them, time.Minute))
		n.announce("10.65.1.0/26")
		eventually(t, "our route", func() bool { return strings.Contains(route(), h.us) && n.Converged() }, n)
		n.stop()
		eventually(t, "our route with the mark", func() bool { return strings.Contains(route(), mark) }, n)
	}
	t.Run("BIRD", func(t *testing.T) {
		h := newHost(t, 43)
		_, show := h.bird("graceful restart on; long lived graceful restart on; long lived stale time 60;")
		run(t, h, func() string { return show("show route all for 10.65.1.1") }, "(65535,6)")
	})
	t.Run("FRR", func(t *testing.T) {
		h := newHost(t, 44)
		conf := strings.Replace(fmt.Sprintf(frrConf, h.us, h.us6), " bgp graceful-restart\n", " bgp graceful-restart\n bgp long-lived-graceful-restart stale-time 60\n", 1)
		show := h.frr(conf)
		run(t, h, func() string { return show("show bgp ipv4 unicast 10.65.1.0/26") }, "llgr-stale")
	})
}

// TestNoLLGR: a route that asks not to be kept so goes after the restart time.
func TestNoLLGR(t *testing.T) {
	p := mesh("10.2.45.2")
	p.LongLived = time.Hour
	a := start(t, "10.2.45.1", Options{}, p)
	q := mesh("10.2.45.1")
	q.RestartTime, q.LongLived = time.Second, time.Hour
	b := start(t, "10.2.45.2", Options{}, q)
	b.cfg.Announce[netip.MustParsePrefix("10.65.1.0/26")] = Announcement{Communities: "65535:7"}
	b.announce("10.65.2.0/26")
	eventually(t, "both routes", func() bool { return a.has("10.65.1.0/26") && a.has("10.65.2.0/26") && a.peer("10.2.45.2").EoR }, a, b)
	b.stop()
	eventually(t, "one of them kept", func() bool { return !a.has("10.65.1.0/26") && a.has("10.65.2.0/26") }, a)
	if r, _ := a.Routes(ViewBest, netip.Addr{}); len(r) != 1 || r[0].Communities != "65535:6" {
		t.Errorf("%+v", r)
	}
}
