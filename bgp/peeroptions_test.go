package bgp

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// torConf is a top-of-rack router: another AS, a password, TTL security, a default route for the host.
const torConf = `
router id 172.31.0.9;
protocol device { scan time 1; }
protocol static s4 { ipv4; route 0.0.0.0/0 blackhole; route 10.250.0.0/24 blackhole; route 10.251.0.0/24 blackhole { bgp_path.prepend(64512); }; }
protocol bgp tor {
  local %[2]s as 64999;
  neighbor %[1]s as 64600;
  password "tanuki"; ttl security on; direct;
  connect delay time 1; connect retry time 1; error wait time 1, 2;
  ipv4 { import all; export all; next hop self; };
}
`

// TestBIRDAsToR: an external session with a local AS of its own, password and TTL security. Both learn the
// other's routes with communities, a default route comes, and only what lies in PassOn is passed on.
func TestBIRDAsToR(t *testing.T) {
	h := newHost(t, 6)
	bird, birdc := need(t, "bird", "bird2"), need(t, "birdc", "bird2")
	sock := filepath.Join(h.dir, "bird.ctl")
	h.daemon(bird, "-f", "-c", h.write("tor.conf", fmt.Sprintf(torConf, h.us, h.them)), "-s", sock, "-P", filepath.Join(h.dir, "bird.pid"))
	show := func(cmd string) string {
		out, _ := h.command(append([]string{birdc, "-s", sock}, strings.Fields(cmd)...)...).CombinedOutput()
		return string(out)
	}
	p := realPeer(h.them)
	p.ASN, p.LocalASN, p.Password, p.TTLSecurity = 64999, 64600, "tanuki", 1
	n := start(t, h.us, Options{}, p, mesh("10.0.40.2"))
	n.cfg.Listen = append(n.cfg.Listen, netip.MustParseAddrPort("10.0.40.1:179"))
	inside := n.cfg.Peers[netip.MustParseAddr("10.0.40.2")]
	inside.Local = netip.MustParseAddr("10.0.40.1")
	n.cfg.Peers[inside.Addr] = inside
	n.cfg.PassOn = []netip.Prefix{netip.MustParsePrefix("10.250.0.0/16"), netip.MustParsePrefix("10.66.0.0/16")}
	n.cfg.LocalPref = 2147482623
	n.cfg.Announce[netip.MustParsePrefix("10.65.1.0/26")] = Announcement{Communities: "64512:100", LocalPref: 2147482623}
	n.set()
	m := start(t, "10.0.40.2", Options{}, mesh("10.0.40.1"))
	m.announce("10.66.1.0/26", "10.67.1.0/26")

	eventually(t, "the router's routes", func() bool { return n.has("0.0.0.0/0") && n.has("10.250.0.0/24") }, n)
	if got := n.Best()[netip.MustParsePrefix("0.0.0.0/0")]; got.LocalPref != 2147482623 || got.ASPath != "64999" {
		t.Errorf("default route %+v", got)
	}
	eventually(t, "our block in BIRD", func() bool { return strings.Contains(show("show route all for 10.65.1.1"), "10.65.1.0/26") }, n)
	r := show("show route all for 10.65.1.1")
	for _, want := range []string{"BGP.as_path: 64600", "BGP.community: (64512,100)", "BGP.next_hop: " + h.us} {
		if !strings.Contains(r, want) {
			t.Errorf("BIRD does not show %q:\n%s", want, r)
		}
	}
	eventually(t, "a mesh block in BIRD", func() bool { return strings.Contains(show("show route for 10.66.1.1"), "10.66.1.0/26") }, n)
	eventually(t, "an external route in the mesh", func() bool { return m.has("10.250.0.0/24") }, n, m)
	time.Sleep(50 * time.Millisecond)
	if m.has("0.0.0.0/0") || strings.Contains(show("show route for 10.67.1.1"), "10.67.1.0/26") {
		t.Error("a route outside PassOn was passed on")
	}
	if got := m.Best()[netip.MustParsePrefix("10.250.0.0/24")]; got.LocalPref != 2147482623 {
		t.Errorf("passed on with LOCAL_PREF %d", got.LocalPref)
	}
	if s := show("show protocols tor"); !strings.Contains(s, "Established") || n.peer(h.them).State != "Established" {
		t.Errorf("state here %s, at BIRD\n%s", n.peer(h.them).State, s)
	}
	if strings.Contains(fmt.Sprintf("%+v", n.Status()), "tanuki") {
		t.Error("the password is in the status")
	}
	// PassOn is live.
	n.cfg.PassOn = []netip.Prefix{netip.MustParsePrefix("10.67.0.0/16")}
	n.set()
	eventually(t, "the new set", func() bool {
		return strings.Contains(show("show route for 10.67.1.1"), "10.67.1.0/26") && !strings.Contains(show("show route for 10.66.1.1"), "10.66.1.0/26") && !m.has("10.250.0.0/24")
	}, n, m)
	// A wrong password: no session, and the reason does not tell the right one.
	p.Password, p.Local = "kitsune", n.addr
	n.cfg.Peers[p.Addr] = p
	n.set()
	eventually(t, "the reason", func() bool { return strings.Contains(n.peer(h.them).LastError, "passwords differ") }, n)
}

func TestAllowedLocalAS(t *testing.T) {
	a := start(t, "10.0.41.1", Options{}, mesh("10.0.41.2"))
	b := start(t, "10.0.41.2", Options{}, mesh("10.0.41.1"), mesh("10.0.41.3"))
	c := start(t, "10.0.41.3", Options{}, mesh("10.0.41.2"))
	b.cfg.ASN = 64999
	set := func(n *node, addr string, asn uint32, allow uint8, hop NextHop) {
		p := mesh(addr)
		p.ASN, p.Local, p.AllowLocalAS, p.NextHop = asn, n.addr, allow, hop
		n.cfg.Peers[p.Addr] = p
	}
	for _, n := range []*node{a, c} {
		set(n, "10.0.41.2", 64999, 0, NextHopAuto)
		n.set()
	}
	set(b, "10.0.41.1", 64512, 0, NextHopAuto)
	set(b, "10.0.41.3", 64512, 0, NextHopAuto)
	b.set()
	a.announce("192.168.1.0/24")
	eventually(t, "the path with our own AS", func() bool { return c.peer("10.0.41.2").Received == 1 }, a, b, c)
	if c.has("192.168.1.0/24") {
		t.Error("a looped path is used")
	}
	set(c, "10.0.41.2", 64999, 1, NextHopAuto)
	c.set()
	eventually(t, "the allowed path", func() bool { return c.has("192.168.1.0/24") }, a, b, c)
	if hop := c.Best()[netip.MustParsePrefix("192.168.1.0/24")].NextHop; hop != b.addr {
		t.Errorf("next hop %s, want %s", hop, b.addr)
	}
	set(b, "10.0.41.3", 64512, 0, NextHopKeep)
	b.set()
	eventually(t, "the kept next hop", func() bool { return c.Best()[netip.MustParsePrefix("192.168.1.0/24")].NextHop == a.addr }, a, b, c)
}

// TestNextHopSelf: an internal peer is sent this speaker as the next hop of what it reflects, and again what it was.
func TestNextHopSelf(t *testing.T) {
	client := func(addr string, hop NextHop) Peer {
		p := mesh(addr)
		p.Client, p.NextHop = true, hop
		return p
	}
	r := start(t, "10.0.43.1", Options{}, client("10.0.43.2", NextHopAuto), client("10.0.43.3", NextHopSelf))
	a := start(t, "10.0.43.2", Options{}, mesh("10.0.43.1"))
	b := start(t, "10.0.43.3", Options{}, mesh("10.0.43.1"))
	a.announce("192.168.1.0/24")
	hop := func() netip.Addr { return b.Best()[netip.MustParsePrefix("192.168.1.0/24")].NextHop }
	eventually(t, "the reflector as next hop", func() bool { return hop() == r.addr }, r, a, b)
	p := client("10.0.43.3", NextHopAuto)
	p.Local = r.addr
	r.cfg.Peers[b.addr] = p
	r.set()
	eventually(t, "the original next hop", func() bool { return hop() == a.addr }, r, a, b)
}

// frrReflector makes FRR a reflector for one host, or a client of one.
const frrReflector = `
hostname frr
log stdout
router bgp 64512
 bgp router-id 172.31.0.7
 bgp cluster-id 2.2.2.2
 no bgp network import-check
 neighbor %[1]s remote-as 64512
 neighbor %[1]s timers connect 1
 neighbor %[3]s remote-as 64512
 neighbor %[3]s timers connect 1
 address-family ipv4 unicast
  network 10.245.7.0/26
  %[2]sneighbor %[1]s route-reflector-client
  neighbor %[3]s route-reflector-client
 exit-address-family
`

// TestFRRReflects: two of our hosts are clients of FRR; then FRR is a client of ours.
func TestFRRReflects(t *testing.T) {
	for i, clients := range []bool{true, false} {
		t.Run(fmt.Sprintf("FRR is the reflector: %t", clients), func(t *testing.T) {
			h := newHost(t, 7+i)
			second := strings.TrimSuffix(h.us, "1") + "3"
			h.addr(second + "/24")
			no := ""
			if !clients {
				no = "no "
			}
			show := h.frr(fmt.Sprintf(frrReflector, h.us, no, second))
			p, q := realPeer(h.them), realPeer(h.them)
			p.Client = !clients
			a := start(t, h.us, Options{}, p)
			a.announce("10.245.1.0/26")
			if clients {
				b := start(t, second, Options{}, q)
				b.announce("10.245.2.0/26")
				eventually(t, "reflected both ways", func() bool { return a.has("10.245.2.0/26") && b.has("10.245.1.0/26") && a.has("10.245.7.0/26") }, a, b)
				got := attrsOf(a, "10.245.2.0/26")
				if got.hop.String() != second || got.clusters != "\x02\x02\x02\x02" || got.originator != routerID(b.addr) {
					t.Errorf("%+v", got)
				}
				return
			}
			a.cfg.Listen = append(a.cfg.Listen, netip.MustParseAddrPort(fmt.Sprintf("10.0.42.%d:179", i)))
			c := mesh("10.0.42.9")
			c.Local = netip.MustParseAddr(fmt.Sprintf("10.0.42.%d", i))
			a.cfg.Peers[c.Addr] = c
			a.cfg.ClusterID = netip.MustParseAddr("3.3.3.3")
			a.set()
			b := start(t, "10.0.42.9", Options{}, mesh(c.Local.String()))
			b.announce("10.245.2.0/26")
			eventually(t, "FRR's route beyond the reflector", func() bool { return b.has("10.245.7.0/26") }, a, b)
			eventually(t, "a reflected route in FRR", func() bool {
				r := show("show bgp ipv4 unicast 10.245.2.0/26")
				return strings.Contains(r, "Originator: "+routerID(b.addr).String()) && strings.Contains(r, "Cluster list: 3.3.3.3")
			}, a, b)
		})
	}
}

// addr gives the test's own end of the host's link another address.
func (h *host) addr(prefix string) {
	h.t.Helper()
	a, err := netlink.ParseAddr(prefix)
	if err == nil {
		err = netlink.AddrAdd(h.link, a)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// frr runs bgpd in the host and returns a way to ask it.
func (h *host) frr(conf string) (show func(string) string) {
	h.t.Helper()
	const bgpd = "/usr/lib/frr/bgpd"
	if _, err := os.Stat(bgpd); err != nil {
		h.t.Fatalf("%s is missing: install the Debian package frr", bgpd)
	}
	vtysh := need(h.t, "vtysh", "frr")
	file := h.write("bgpd.conf", conf)
	if err := os.Chmod(h.dir, 0o777); err != nil {
		h.t.Fatal(err)
	}
	stop := h.daemon(bgpd, "-f", file, "-i", filepath.Join(h.dir, "bgpd.pid"), "--vty_socket", h.dir, "-z", filepath.Join(h.dir, "zserv.api"), "-n", "-S", "-Z", "-l", "0.0.0.0")
	h.t.Cleanup(func() { stop(syscall.SIGKILL) })
	return func(cmd string) string {
		out, _ := h.command(vtysh, "--vty_socket", h.dir, "-d", "bgpd", "-c", cmd).CombinedOutput()
		return string(out)
	}
}
