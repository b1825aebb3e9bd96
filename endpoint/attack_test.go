package endpoint_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/dataplane/nstest"
)

// TestRouterAdvertisementIsIgnored: a container that plays router does not get the host's traffic (CVE-2020-13597).
func TestRouterAdvertisementIsIgnored(t *testing.T) {
	for _, dual := range []bool{true, false} {
		r := newRig(t)
		container := nstest.New(t)
		s := spec(t, container, "c1")
		s.IPv6 = dual
		r.attach(s)
		container.AddAddr("eth0", "fe80::bad/64")
		before := r.host.Command("ip", "-6", "route")
		advertise(t, container)
		if after := r.host.Command("ip", "-6", "route"); after != before {
			t.Errorf("dual=%v: the host's routes changed:\n%s", dual, after)
		}
		// The same packet does change them where the host listens.
		r.host.Command("sysctl", "-qw", "net.ipv6.conf.calic1.accept_ra=2")
		advertise(t, container)
		if after := r.host.Command("ip", "-6", "route"); !strings.Contains(after, "proto ra") {
			t.Errorf("dual=%v: the advertisement was not understood, the test proves nothing:\n%s", dual, after)
		}
	}
}

// advertise sends a router advertisement (RFC 4861 §4.2): I am a router for half an hour, 2001:db8:bad::/64 is here.
func advertise(t *testing.T, from *nstest.NS) {
	t.Helper()
	from.Do(func() {
		conn, err := icmp.ListenPacket("ip6:ipv6-icmp", "fe80::bad%eth0")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.IPv6PacketConn().SetMulticastHopLimit(255); err != nil {
			t.Fatal(err)
		}
		body := []byte{64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0}
		prefix := netip.MustParseAddr("2001:db8:bad::").As16()
		msg := icmp.Message{Type: ipv6.ICMPTypeRouterAdvertisement, Body: &icmp.RawBody{Data: append(body, prefix[:]...)}}
		data, err := msg.Marshal(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.WriteTo(data, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: "eth0"}); err != nil {
			t.Fatal(err)
		}
	})
	time.Sleep(50 * time.Millisecond) // the kernel takes the packet in at once; no notification says that it did not act
}

// TestForgedNeighbours: what a container says about others' addresses changes nothing for them (spec/faults.md row 24).
func TestForgedNeighbours(t *testing.T) {
	r := newRig(t)
	attacker, victim := nstest.New(t), nstest.New(t)
	r.attach(spec(t, attacker, "aaaa"))
	v := r.attach(spec(t, victim, "bbbb")).Addresses[0].Addr()
	ping(t, r.host, v)
	attacker.AddAddr("eth0", v.String()+"/32")
	gratuitousARP(t, attacker, v)
	// Without strict reverse path filtering the kernel notes the sender on the attacker's own interface, where no route
	// leads; what counts is the victim's.
	if got := r.host.Command("ip", "neigh", "show", "dev", "calibbbb", "to", v.String()); !strings.Contains(got, "ee:ee:ee:ee:ee:ee") {
		t.Errorf("the victim's neighbour entry: %s", got)
	}
	out := r.host.Command("ip", "route", "get", v.String())
	if !strings.Contains(out, "dev calibbbb") {
		t.Errorf("the victim is reached by %s", out)
	}
	ping(t, r.host, v)
}

// gratuitousARP announces addr as the container's own, by request and by reply (RFC 826, RFC 5227).
func gratuitousARP(t *testing.T, from *nstest.NS, addr netip.Addr) {
	t.Helper()
	link, err := from.Handle().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	a4, mac := addr.As4(), link.Attrs().HardwareAddr
	from.Do(func() {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		for _, operation := range []byte{1, 2} {
			frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...)
			frame = append(frame, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation)
			frame = append(append(frame, mac...), a4[:]...)
			frame = append(append(frame, mac...), a4[:]...)
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}); err != nil {
				t.Fatal(err)
			}
		}
	})
	time.Sleep(50 * time.Millisecond) // as in advertise
}
