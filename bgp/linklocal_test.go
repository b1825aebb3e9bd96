package bgp

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// linkLocal gives both ends of the host's link a link-local address, fe80::1 and fe80::2, and returns those of
// the test and of the host, with the interface as the zone of each side.
func (h *host) linkLocal() (us, them netip.Addr) {
	h.t.Helper()
	a := &netlink.Addr{IPNet: netlink.NewIPNet(netip.MustParseAddr("fe80::1").AsSlice()), Flags: syscall.IFA_F_NODAD}
	a.Mask = []byte{255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0}
	if err := netlink.AddrAdd(h.link, a); err != nil {
		h.t.Fatal(err)
	}
	name := h.link.Attrs().Name
	h.run("ip", "addr", "add", "fe80::2/64", "nodad", "dev", h.peerName())
	return netip.MustParseAddr("fe80::1").WithZone(name), netip.MustParseAddr("fe80::2").WithZone(name)
}

// peerName is the name of the host's end of the link.
func (h *host) peerName() string { return strings.TrimSuffix(h.link.Attrs().Name, "a") + "b" }

// linkLocalNode is a speaker whose only peer is at the other end of the link.
func linkLocalNode(t *testing.T, h *host, us, them netip.Addr) *node {
	t.Helper()
	n := start(t, h.us, Options{})
	p := Peer{Name: "real", Type: TypeGlobal, Addr: them, ASN: 64999}
	n.cfg.Listen = append(n.cfg.Listen, netip.MustParseAddrPort("[::]:179"))
	n.cfg.Peers[p.Addr] = p
	n.announce("10.65.1.0/26", "fd65:1::/122")
	return n
}

// checkLinkLocal looks at both families on the one session.
func checkLinkLocal(t *testing.T, n *node, them netip.Addr) {
	t.Helper()
	eventually(t, "routes of both families", func() bool { return n.has("10.245.7.0/26") && n.has("fd45:7::/122") }, n)
	for _, prefix := range []string{"10.245.7.0/26", "fd45:7::/122"} {
		if hop := n.Best()[netip.MustParsePrefix(prefix)].NextHop; hop != them {
			t.Errorf("next hop of %s is %s, want %s", prefix, hop, them)
		}
	}
	if st := n.peer(them.String()); strings.Join(st.Families, " ") != "ipv4-unicast ipv6-unicast" {
		t.Errorf("families %v", st.Families)
	}
	// Others are never sent a next hop that only we can use.
	local := mesh("10.2.50.2")
	local.Local = netip.MustParseAddr("10.2.50.1")
	n.cfg.Peers[local.Addr] = local
	n.cfg.Listen = append(n.cfg.Listen, netip.AddrPortFrom(local.Local, 179))
	n.set()
	m := start(t, "10.2.50.2", Options{}, mesh("10.2.50.1"))
	eventually(t, "the route in the mesh", func() bool {
		return m.Best()[netip.MustParsePrefix("10.245.7.0/26")].NextHop == local.Local
	}, n, m)
}

const frrLinkLocal = `
hostname frr
log stdout
router bgp 64999
 bgp router-id 172.31.0.3
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor fe80::1 remote-as 64512
 neighbor fe80::1 interface %[1]s
 neighbor fe80::1 timers connect 1
 neighbor fe80::1 capability extended-nexthop
 address-family ipv4 unicast
  network 10.245.7.0/26
 exit-address-family
 address-family ipv6 unicast
  network fd45:7::/122
  neighbor fe80::1 activate
 exit-address-family
`

func TestFRROverLinkLocal(t *testing.T) {
	h := newHost(t, 30)
	us, them := h.linkLocal()
	f := h.daemons(fmt.Sprintf(frrLinkLocal, h.peerName()), "zebra", "bgpd")
	n := linkLocalNode(t, h, us, them)
	checkLinkLocal(t, n, them)
	eventually(t, "our IPv4 route in FRR", func() bool {
		r := f.show("bgpd", "show bgp ipv4 unicast 10.65.1.0/26")
		return strings.Contains(r, "fe80::1") && strings.Contains(r, "best")
	}, n)
	eventually(t, "our IPv6 route in FRR", func() bool {
		return strings.Contains(f.show("bgpd", "show bgp ipv6 unicast fd65:1::/122"), "fe80::1")
	}, n)
	eventually(t, "FRR's kernel route", func() bool {
		return strings.Contains(h.run("ip", "route", "show", "10.65.1.0/26"), "via inet6 fe80::1 dev "+h.peerName())
	}, n)
	n.withdraw("10.65.1.0/26")
	eventually(t, "withdrawal in FRR", func() bool {
		return strings.Contains(f.show("bgpd", "show bgp ipv4 unicast 10.65.1.0/26"), "not in table")
	}, n)
}

const birdLinkLocal = `
router id 172.31.0.2;
protocol device { scan time 1; }
protocol kernel k4 { ipv4 { export all; }; }
protocol kernel k6 { ipv6 { export all; }; }
protocol static s4 { ipv4; route 10.245.7.0/26 blackhole; }
protocol static s6 { ipv6; route fd45:7::/122 blackhole; }
protocol bfd { interface "*" { interval 100 ms; multiplier 3; }; }
protocol bgp m {
  local fe80::2 as 64999;
  neighbor fe80::1%%'%[1]s' as 64512;
  connect delay time 1; connect retry time 1; error wait time 1, 2;
  bfd on;
  ipv4 { import all; export all; extended next hop on; };
  ipv6 { import all; export all; };
}
`

func TestBIRDOverLinkLocal(t *testing.T) {
	h := newHost(t, 31)
	us, them := h.linkLocal()
	show := h.birdWith(fmt.Sprintf(birdLinkLocal, h.peerName()))
	n := linkLocalNode(t, h, us, them)
	n.cfg.Peers[them] = withBFD(n.cfg.Peers[them], watched)
	n.set()
	checkLinkLocal(t, n, them)
	eventually(t, "BFD up", bfdUp(n, them.String()), n)
	eventually(t, "our routes in BIRD", func() bool {
		return strings.Contains(show("show route for 10.65.1.1"), "via fe80::1 on "+h.peerName()) &&
			strings.Contains(show("show route for fd65:1::1"), "via fe80::1 on "+h.peerName())
	}, n)
	n.withdraw("10.65.1.0/26")
	eventually(t, "withdrawal in BIRD", func() bool { return !strings.Contains(show("show route for 10.65.1.1"), "10.65.1.0/26") }, n)
}

// TestNoExtendedNextHop has a peer that takes no IPv6 next hops for IPv4: it gets the routes of IPv6 alone.
func TestNoExtendedNextHop(t *testing.T) {
	h := newHost(t, 32)
	us, them := h.linkLocal()
	show := h.birdWith(strings.Replace(fmt.Sprintf(birdLinkLocal, h.peerName()), "extended next hop on;", "", 1))
	n := linkLocalNode(t, h, us, them)
	eventually(t, "our IPv6 route in BIRD", func() bool { return strings.Contains(show("show route for fd65:1::1"), "via fe80::1") }, n)
	eventually(t, "BIRD's IPv6 route", func() bool { return n.has("fd45:7::/122") }, n)
	// BIRD has an IPv4 address on the link and names that one.
	eventually(t, "BIRD's IPv4 route", func() bool { return n.Best()[netip.MustParsePrefix("10.245.7.0/26")].NextHop.String() == h.them }, n)
	if r := show("show route for 10.65.1.1"); strings.Contains(r, "10.65.1.0/26") || n.peer(them.String()).State != "Established" {
		t.Errorf("an IPv4 route without an IPv4 next hop, session %s: %s", n.peer(them.String()).State, r)
	}
}
