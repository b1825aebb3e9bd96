package bgp

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func client(addr string) Peer {
	p := mesh(addr)
	p.Type, p.Client, p.Cluster = TypeNode, true, true
	return p
}

func inCluster(addr string) Peer {
	p := mesh(addr)
	p.Cluster = true
	return p
}

func attrsOf(n *node, prefix string) (a struct {
	hop, originator netip.Addr
	clusters        string
},
) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if best, ok := n.table.Best(netip.MustParsePrefix(prefix)); ok {
		v := best.Attrs.Value()
		a.hop, a.originator, a.clusters = v.NextHop, v.OriginatorID, v.ClusterList
	}
	return a
}

// TestReflection: RFC 4456 §6. From a client to everybody, from a non-client to clients only.
func TestReflection(t *testing.T) {
	checkLeaks(t)
	rr := start(t, "10.0.30.1", Options{}, client("10.0.30.2"), client("10.0.30.3"), mesh("10.0.30.4"), mesh("10.0.30.5"))
	rr.cfg.ClusterID = netip.MustParseAddr("1.1.1.1")
	rr.set()
	var nodes []*node
	for i, addr := range []string{"10.0.30.2", "10.0.30.3", "10.0.30.4", "10.0.30.5"} {
		n := start(t, addr, Options{}, mesh("10.0.30.1"))
		n.announce(netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i + 2), 0}), 24).String())
		nodes = append(nodes, n)
	}
	c2, c3, n4, n5 := nodes[0], nodes[1], nodes[2], nodes[3]
	eventually(t, "clients have everything", func() bool { return len(c2.Best()) == 3 && len(c3.Best()) == 3 }, append(nodes, rr)...)
	eventually(t, "non-clients have the clients' routes", func() bool { return len(n4.Best()) == 2 && len(n5.Best()) == 2 }, append(nodes, rr)...)
	time.Sleep(20 * time.Millisecond)
	if n4.has("192.168.5.0/24") || n5.has("192.168.4.0/24") {
		t.Error("a non-client's route was passed on to a non-client")
	}
	got := attrsOf(c3, "192.168.2.0/24")
	if got.hop != c2.addr || got.originator != routerID(c2.addr) || got.clusters != "\x01\x01\x01\x01" {
		t.Errorf("reflected route has next hop %s, originator %s, cluster list %x", got.hop, got.originator, got.clusters)
	}
	if len(rr.Best()) != 4 {
		t.Errorf("the reflector has %d routes, want 4", len(rr.Best()))
	}
	c2.withdraw("192.168.2.0/24")
	eventually(t, "withdrawal everywhere", func() bool {
		return !rr.has("192.168.2.0/24") && !c3.has("192.168.2.0/24") && !n4.has("192.168.2.0/24") && !n5.has("192.168.2.0/24")
	}, append(nodes, rr)...)
}

// TestReflectorsDoNotLoop: two reflectors that are each other's client, and clients of both.
func TestReflectorsDoNotLoop(t *testing.T) {
	rr1 := start(t, "10.0.31.1", Options{}, client("10.0.31.2"), client("10.0.31.3"), client("10.0.31.4"))
	rr2 := start(t, "10.0.31.2", Options{}, client("10.0.31.1"), client("10.0.31.3"), client("10.0.31.4"))
	c3 := start(t, "10.0.31.3", Options{}, mesh("10.0.31.1"), mesh("10.0.31.2"))
	c4 := start(t, "10.0.31.4", Options{}, mesh("10.0.31.1"), mesh("10.0.31.2"))
	all := []*node{rr1, rr2, c3, c4}
	for range 5 {
		c3.announce("192.168.3.0/24")
		eventually(t, "route everywhere", func() bool {
			return rr1.has("192.168.3.0/24") && rr2.has("192.168.3.0/24") && c4.peer("10.0.31.1").Received == 1 && c4.peer("10.0.31.2").Received == 1
		}, all...)
		c3.withdraw("192.168.3.0/24")
		eventually(t, "route nowhere", func() bool {
			for _, n := range all {
				for _, st := range n.Status() {
					if st.Received != 0 {
						return false
					}
				}
			}
			return true
		}, all...)
	}
	if rr1.peer("10.0.31.2").Received != 0 {
		t.Error("a route circulates")
	}
}

// TestRolesChangeLive makes a member of a mesh a reflector and back. The sessions stay up, nobody loses a
// route, and what only reflection brought goes again.
func TestRolesChangeLive(t *testing.T) {
	rr := start(t, "10.0.32.1", Options{}, mesh("10.0.32.2"), mesh("10.0.32.3"))
	a := start(t, "10.0.32.2", Options{}, mesh("10.0.32.1"))
	b := start(t, "10.0.32.3", Options{}, mesh("10.0.32.1"))
	rr.announce("192.168.1.0/24")
	a.announce("192.168.2.0/24")
	b.announce("192.168.3.0/24")
	eventually(t, "mesh", func() bool { return len(rr.Best()) == 2 && a.has("192.168.1.0/24") && b.has("192.168.1.0/24") }, rr, a, b)
	since := rr.peer("10.0.32.2").Since
	for range 10 {
		for _, addr := range []string{"10.0.32.2", "10.0.32.3"} {
			rr.cfg.Peers[netip.MustParseAddr(addr)] = withLocal(client(addr), rr.addr)
		}
		rr.set()
		eventually(t, "reflection", func() bool { return a.has("192.168.3.0/24") && b.has("192.168.2.0/24") }, rr, a, b)
		for _, addr := range []string{"10.0.32.2", "10.0.32.3"} {
			rr.cfg.Peers[netip.MustParseAddr(addr)] = withLocal(mesh(addr), rr.addr)
		}
		rr.set()
		eventually(t, "end of reflection", func() bool { return len(a.Best()) == 1 && len(b.Best()) == 1 }, rr, a, b)
		if !a.has("192.168.1.0/24") || !b.has("192.168.1.0/24") || len(rr.Best()) != 2 {
			t.Fatal("a route was lost by the change of roles")
		}
	}
	if now := rr.peer("10.0.32.2"); now.Since != since || now.State != "Established" {
		t.Error("the change of roles reset the session")
	}
}

func withLocal(p Peer, local netip.Addr) Peer { p.Local = local; return p }

// TestMeshToReflector goes from a mesh to a reflector and another AS at once, each node at its own time.
// No node is without a path to any other for a moment.
func TestMeshToReflector(t *testing.T) {
	checkLeaks(t)
	addrs := []string{"10.0.33.1", "10.0.33.2", "10.0.33.3", "10.0.33.4"}
	var nodes []*node
	prefix := func(i int) string {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i), 0}), 24).String()
	}
	for i, addr := range addrs {
		var peers []Peer
		for _, other := range addrs {
			if other != addr {
				peers = append(peers, inCluster(other))
			}
		}
		n := start(t, addr, Options{}, peers...)
		n.announce(prefix(i))
		nodes = append(nodes, n)
	}
	full := func() bool {
		for i, n := range nodes {
			for j := range nodes {
				if i != j && !n.has(prefix(j)) {
					return false
				}
			}
		}
		return true
	}
	eventually(t, "mesh", full, nodes...)
	eventually(t, "End-of-RIB", func() bool {
		for _, n := range nodes {
			for _, st := range n.Status() {
				if !st.EoR {
					return false
				}
			}
		}
		return true
	}, nodes...)
	watch := func(d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if !full() {
				for _, n := range nodes {
					t.Logf("%s: %v", n.addr, n.Best())
				}
				t.Fatal("a route was lost on the way")
			}
		}
	}
	change := func(asn uint32, meshToo bool) {
		for i, n := range nodes {
			n.cfg.ASN = asn
			clear(n.cfg.Peers)
			for j, other := range addrs {
				p := inCluster(other)
				p.ASN, p.Local = asn, n.addr
				switch {
				case i == j:
					continue
				case i == 0:
					p.Client, p.Type = true, TypeNode
				case j == 0:
					p.Type = TypeNode
				case !meshToo:
					continue
				}
				n.cfg.Peers[p.Addr] = p
			}
			n.set()
			watch(30 * time.Millisecond)
		}
	}
	change(64512, true)
	change(63400, false)
	eventually(t, "N-1 sessions", func() bool {
		for _, n := range nodes[1:] {
			if len(n.Status()) != 1 || n.peer(addrs[0]).State != "Established" {
				return false
			}
		}
		return established(nodes[0], addrs[1:]...)()
	}, nodes...)
	watch(lingerLeast + 500*time.Millisecond)
	for _, n := range nodes {
		for p, path := range n.Best() {
			if path.Stale {
				t.Errorf("%s: %s is stale after the change", n.addr, p)
			}
		}
	}
}

// TestRetiredRoutesGo: a host that is taken out of the cluster is forgotten.
func TestRetiredRoutesGo(t *testing.T) {
	a := start(t, "10.0.34.1", Options{}, inCluster("10.0.34.2"))
	b := start(t, "10.0.34.2", Options{}, inCluster("10.0.34.1"))
	b.announce("192.168.2.0/24")
	eventually(t, "route", func() bool { return a.has("192.168.2.0/24") }, a, b)
	began := time.Now()
	clear(a.cfg.Peers)
	a.set()
	if !a.has("192.168.2.0/24") {
		t.Error("the routes of a removed host went at once")
	}
	eventually(t, "retirement", func() bool { return !a.has("192.168.2.0/24") }, a, b)
	if took := time.Since(began); took < lingerLeast || took > lingerLeast+4*time.Second {
		t.Errorf("retired routes were kept for %s, want %s", took, lingerLeast)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.table.Len() != 0 || len(a.retired) != 0 {
		t.Errorf("%d routes and %d retirees are left", a.table.Len(), len(a.retired))
	}
}

// A client without graceful restart that closes its session and dials again at once is let in at once: it
// need not wait until the end of its old connection has been seen.
func TestClientFlaps(t *testing.T) {
	p := mesh("10.2.60.2")
	p.Passive = true
	a := start(t, "10.2.60.1", Options{}, p)
	sw := swarm(t, "10.2.60.1", 64512, "10.2.60.2", "192.168.1.0/24")
	eventually(t, "route", func() bool { return a.has("192.168.1.0/24") }, a)
	refused := 0
	for range 20 {
		before := a.peer("10.2.60.2").Flaps
		sw.Flap(0)
		eventually(t, "the session again", func() bool {
			return a.peer("10.2.60.2").Flaps > before && established(a, "10.2.60.2")() && a.has("192.168.1.0/24")
		}, a)
		if err := sw.Err(0); err != nil && strings.Contains(err.Error(), "collision") {
			refused++
		}
	}
	if refused > 4 { // where the reader is not scheduled for a while
		t.Errorf("%d of 20 times the client was refused first", refused)
	}
}
