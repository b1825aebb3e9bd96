package bgp

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestRouteViews(t *testing.T) {
	rr := start(t, "10.0.46.1", Options{}, client("10.0.46.2"), client("10.0.46.3"))
	a := start(t, "10.0.46.2", Options{}, mesh("10.0.46.1"))
	b := start(t, "10.0.46.3", Options{}, mesh("10.0.46.1"))
	own, as, bs := netip.MustParsePrefix("192.168.1.0/24"), netip.MustParsePrefix("192.168.2.0/24"), netip.MustParsePrefix("192.168.3.0/24")
	rr.cfg.Announce[own] = Announcement{Communities: "1:2 3:4:5"}
	rr.set()
	a.announce(as.String())
	b.announce(bs.String())
	eventually(t, "reflection", func() bool { return a.has(bs.String()) && b.has(as.String()) && a.has(own.String()) }, rr, a, b)
	view := func(n *node, v View, peer netip.Addr) []Route {
		t.Helper()
		out, err := n.Routes(v, peer)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	mine := Route{Prefix: own, LocalPref: 100, Communities: "1:2 3:4:5", Best: true}
	learnt := func(p netip.Prefix, n *node) Route {
		return Route{Prefix: p, NextHop: n.addr, Peer: n.addr, LocalPref: 100, Best: true}
	}
	sent := learnt(bs, b)
	sent.Originator, sent.Clusters = routerID(b.addr), []netip.Addr{routerID(rr.addr)}
	mineSent := mine
	mineSent.NextHop = rr.addr
	for _, c := range []struct {
		name      string
		got, want []Route
	}{
		{"best", view(rr, ViewBest, netip.Addr{}), []Route{mine, learnt(as, a), learnt(bs, b)}},
		{"received", view(rr, ViewReceived, a.addr), []Route{learnt(as, a)}},
		{"advertised", view(rr, ViewAdvertised, a.addr), []Route{mineSent, sent}},
	} {
		if diff := cmp.Diff(c.want, c.got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
	for _, bad := range []struct {
		view View
		peer string
	}{{ViewReceived, "10.0.46.9"}, {ViewAdvertised, "10.0.46.9"}, {"all", "10.0.46.2"}} {
		if _, err := rr.Routes(bad.view, netip.MustParseAddr(bad.peer)); err == nil {
			t.Errorf("no error for view %s of %s", bad.view, bad.peer)
		}
	}
}
