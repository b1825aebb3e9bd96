package pathmtu

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/desired"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func FuzzDecode(f *testing.F) {
	f.Add([]byte("mnkp"))
	f.Add(message{question, 1500, 7}.encode(1400))
	f.Add(message{answer, 1500, 1 << 63}.encode(0))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := decode(b)
		if !ok {
			return
		}
		if back, ok := decode(m.encode(len(b))); !ok || back != m || len(m.encode(len(b))) != len(b) {
			t.Errorf("%v becomes %v", m, back)
		}
	})
}

// host is a namespace with a prober in it.
type host struct {
	ns *nstest.NS
	p  *Prober

	mu    sync.Mutex
	facts map[desired.PathKey]desired.PathFact
}

func (h *host) fact(k desired.PathKey) desired.PathFact {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.facts[k]
}

// start runs a prober in the namespace. Its sockets must be opened by a thread
// that is there, so it is run by one.
func start(t *testing.T, ns *nstest.NS, paths ...desired.Path) *host {
	h := &host{ns: ns}
	h.p = New(Options{Interval: 200 * time.Millisecond, Changed: func(m map[desired.PathKey]desired.PathFact) {
		h.mu.Lock()
		h.facts = maps.Clone(m)
		h.mu.Unlock()
	}})
	h.p.Set(paths)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		var err error
		ns.Do(func() { err = h.p.Run(ctx) })
		done <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	return h
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); time.Since(start) < 20*time.Second; time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("never: " + what)
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func path(node, device, local, remote string, limit int) desired.Path {
	a := addr(local)
	return desired.Path{PathKey: desired.PathKey{Node: node, Device: device, V6: a.Is6()}, Local: a, Remote: addr(remote), Limit: limit}
}

// TestMeasuresWhatPasses: the whole size, a smaller one behind a narrow switch,
// the whole one again; both families; silence changes nothing.
func TestMeasuresWhatPasses(t *testing.T) {
	for _, f := range []struct{ name, a, b, bits string }{
		{"IPv4", "172.18.0.1", "172.18.0.2", "/24"},
		{"IPv6", "fd18::1", "fd18::2", "/64"},
	} {
		t.Run(f.name, func(t *testing.T) {
			a, b, sw := nstest.New(t), nstest.New(t), nstest.New(t)
			nstest.Veth(a, "eth0", sw, "porta")
			nstest.Veth(b, "eth0", sw, "portb")
			sw.Command("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
			sw.Command("ip", "link", "set", "porta", "master", "br0")
			sw.Command("ip", "link", "set", "portb", "master", "br0")
			sw.Up("br0")
			a.AddAddr("eth0", f.a+f.bits)
			b.AddAddr("eth0", f.b+f.bits)
			ha := start(t, a, path("b", "", f.a, f.b, 1500))
			start(t, b, path("a", "", f.b, f.a, 1500))
			key := desired.PathKey{Node: "b", V6: addr(f.a).Is6()}
			eventually(t, "1500 pass", func() bool { return ha.fact(key) == desired.PathFact{Answered: true, MTU: 1500, Limit: 1500} })
			sw.Command("ip", "link", "set", "portb", "mtu", "1400")
			eventually(t, "1400 pass", func() bool { return ha.fact(key) == desired.PathFact{Answered: true, MTU: 1400, Limit: 1500} })
			sw.Command("ip", "link", "set", "portb", "down")
			eventually(t, "silence", func() bool { return ha.fact(key) == desired.PathFact{MTU: 1400, Limit: 1500} })
			sw.Command("ip", "link", "set", "portb", "up", "mtu", "1500")
			eventually(t, "1500 pass again", func() bool { return ha.fact(key) == desired.PathFact{Answered: true, MTU: 1500, Limit: 1500} })
		})
	}
}

// TestStrangersGetNoAnswer: a host that is not on the list, and packets that are
// no probes, are not answered; an answer is small.
func TestStrangersGetNoAnswer(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	nstest.Veth(a, "eth0", b, "eth0")
	a.AddAddr("eth0", "172.18.0.1/24")
	a.AddAddr("eth0", "172.18.0.9/24")
	b.AddAddr("eth0", "172.18.0.2/24")
	hb := start(t, b, path("a", "", "172.18.0.2", "172.18.0.1", 1500))
	ask := func(from string, text []byte) int {
		var n int
		a.Do(func() {
			conn, err := open(t.Context(), place{addr: addr(from)}, 0, false)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.WriteToUDPAddrPort(text, netip.AddrPortFrom(addr("172.18.0.2"), DefaultPort)); err != nil {
				t.Fatal(err)
			}
			if err := conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			n, _, _ = conn.ReadFromUDPAddrPort(make([]byte, 2000)) // a timeout is 0 bytes
		})
		return n
	}
	good := message{question, 1028, 1}.encode(1000)
	eventually(t, "an answer", func() bool { return ask("172.18.0.1", good) > 0 })
	if n := ask("172.18.0.1", good); n != messageSize {
		t.Errorf("an answer of %d bytes, want %d", n, messageSize)
	}
	for name, try := range map[string]struct {
		from string
		text []byte
	}{
		"stranger":      {"172.18.0.9", good},
		"wrong size":    {"172.18.0.1", message{question, 1500, 1}.encode(1000)},
		"no probe":      {"172.18.0.1", []byte(strings.Repeat("x", 100))},
		"short":         {"172.18.0.1", good[:10]},
		"unasked":       {"172.18.0.1", message{answer, 1028, 1}.encode(1000)},
		"other version": {"172.18.0.1", append(append([]byte("mnkp"), 9), good[5:]...)},
	} {
		if n := ask(try.from, try.text); n != 0 {
			t.Errorf("%s: an answer of %d bytes", name, n)
		}
	}
	_ = hb
}

// TestBrokenChecksumOffload: between the hosts is a card that completes the outer
// UDP checksum and leaves the inner one as the kernel gave it, half done. Only
// packets without an inner checksum pass; with offload turned off all do.
func TestBrokenChecksumOffload(t *testing.T) {
	a, b, wire := nstest.New(t), nstest.New(t), nstest.New(t)
	nstest.Veth(a, "eth0", wire, "a")
	nstest.Veth(b, "eth0", wire, "b")
	for i, h := range []*nstest.NS{a, b} {
		me, other := []string{"1", "2"}[i], []string{"2", "1"}[i]
		h.AddAddr("eth0", "172.18.0."+me+"/24")
		for _, line := range []string{
			"ip link add vxlan.calico address 66:00:00:00:00:0" + me + " type vxlan id 4096 dstport 4789 local 172.18.0." + me + " dev eth0 nolearning udpcsum",
			"ip link set vxlan.calico up mtu 1450",
			"ip addr add 10.0." + me + ".0/32 dev vxlan.calico",
			"ip neigh add 10.0." + other + ".0 lladdr 66:00:00:00:00:0" + other + " dev vxlan.calico nud permanent",
			"bridge fdb add 66:00:00:00:00:0" + other + " dst 172.18.0." + other + " dev vxlan.calico",
			"ip route add 10.0." + other + ".0/32 dev vxlan.calico",
		} {
			w := strings.Fields(line)
			h.Command(w[0], w[1:]...)
		}
	}
	card(t, wire, "a", "b")
	ha := start(t, a, path("b", "vxlan.calico", "10.0.1.0", "10.0.2.0", 1450))
	start(t, b, path("a", "vxlan.calico", "10.0.2.0", "10.0.1.0", 1450))
	key := desired.PathKey{Node: "b", Device: "vxlan.calico"}
	eventually(t, "broken checksums are seen", func() bool { return ha.fact(key).NoChecksum })
	a.Command("ethtool", "-K", "vxlan.calico", "tx-checksum-ip-generic", "off")
	eventually(t, "all sizes pass without offload", func() bool {
		return ha.fact(key) == desired.PathFact{Answered: true, MTU: 1450, Limit: 1450, NoChecksum: true}
	})
}

// card carries frames between two interfaces by packet sockets, by which they
// lose the note that their checksum is still to be completed, until the test
// ends. Outer UDP checksums of VXLAN packets are set to 0, which is "none".
func card(t *testing.T, ns *nstest.NS, left, right string) {
	socket := func(name string) (fd int) {
		ns.Do(func() {
			l, err := ns.Handle().LinkByName(name)
			if err != nil {
				t.Fatal(err)
			}
			fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			wait := unix.NsecToTimeval(int64(50 * time.Millisecond))
			err = errors.Join(
				unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
				netlink.SetPromiscOn(l),
				unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: l.Attrs().Index}),
			)
			if err != nil {
				t.Fatal(err)
			}
		})
		return fd
	}
	a, b := socket(left), socket(right)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, way := range [][2]int{{a, b}, {b, a}} {
		wg.Go(func() {
			buf := make([]byte, 1<<16)
			for ctx.Err() == nil {
				n, from, err := unix.Recvfrom(way[0], buf, 0)
				if ll, ok := from.(*unix.SockaddrLinklayer); err != nil || !ok || ll.Pkttype == unix.PACKET_OUTGOING {
					continue
				}
				complete(buf[:n])
				_ = unix.Send(way[1], buf[:n], 0) // a lost frame is a lost frame
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if err := errors.Join(unix.Close(a), unix.Close(b)); err != nil {
			t.Error(err)
		}
	})
}

func complete(frame []byte) {
	const ip, udp = 14, 14 + 20
	if len(frame) > udp+8 && frame[12] == 8 && frame[13] == 0 && frame[ip+9] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(frame[udp+2:]) == 4789 {
		frame[udp+6], frame[udp+7] = 0, 0
	}
}
