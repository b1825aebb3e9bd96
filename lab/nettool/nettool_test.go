package nettool_test

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/lab/nettool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// threeHops is a - r - b: a can reach b through a router.
func threeHops(t *testing.T) (a, r, b *nstest.NS) {
	t.Helper()
	a, r, b = nstest.New(t), nstest.New(t), nstest.New(t)
	for _, ns := range []*nstest.NS{a, r, b} {
		ns.Command("sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad; echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
	}
	// Both ends of a veth must not have the same index: the kernel would report
	// their carrier up to a second later.
	nstest.Veth(r, "spare0", r, "spare1")
	nstest.Veth(a, "eth0", r, "left")
	nstest.Veth(b, "eth0", r, "right")
	for _, c := range []struct {
		ns   *nstest.NS
		args string
	}{
		{a, "addr add 10.1.0.2/24 dev eth0"},
		{a, "addr add fd01::2/64 dev eth0 nodad"},
		{r, "addr add 10.1.0.1/24 dev left"},
		{r, "addr add fd01::1/64 dev left nodad"},
		{r, "addr add 10.2.0.1/24 dev right"},
		{r, "addr add fd02::1/64 dev right nodad"},
		{b, "addr add 10.2.0.2/24 dev eth0"},
		{b, "addr add fd02::2/64 dev eth0 nodad"},
		{a, "link set eth0 up"},
		{r, "link set left up"},
		{r, "link set right up"},
		{b, "link set eth0 up"},
		{a, "route add default via 10.1.0.1"},
		{a, "-6 route add default via fd01::1"},
		{b, "route add default via 10.2.0.1"},
		{b, "-6 route add default via fd02::1"},
	} {
		c.ns.Command("ip", strings.Fields(c.args)...)
	}
	return a, r, b
}

// do runs f in the namespace and wants it to succeed.
func do(t *testing.T, ns *nstest.NS, f func() error) {
	t.Helper()
	var err error
	ns.Do(func() { err = f() })
	if err != nil {
		t.Error(err)
	}
}

func options(n int) nettool.PingOptions {
	return nettool.PingOptions{Count: n, Interval: 10 * time.Millisecond, Wait: 2 * time.Second, Size: 56}
}

func TestPing(t *testing.T) {
	a, r, _ := threeHops(t)
	r.Command("ip", "route", "add", "unreachable", "10.9.0.0/24")
	r.Command("ip", "link", "set", "right", "mtu", "1400")
	big := options(1)
	big.Size, big.Wait, big.DontFragment = 1440, 100*time.Millisecond, true
	quiet := options(3)
	quiet.Quiet = true
	for _, tt := range []struct {
		name, to string
		opts     nettool.PingOptions
		received int
		want     string // a pattern
	}{
		{"across a router", "10.2.0.2", options(3), 3, `^PING 10.2.0.2 \(10.2.0.2\): 56 data bytes
64 bytes from 10.2.0.2: seq=0 ttl=63 time=\d+\.\d{3} ms
64 bytes from 10.2.0.2: seq=1 ttl=63 time=\d+\.\d{3} ms
64 bytes from 10.2.0.2: seq=2 ttl=63 time=\d+\.\d{3} ms

--- 10.2.0.2 ping statistics ---
3 packets transmitted, 3 packets received, 0% packet loss
round-trip min/avg/max = \S+/\S+/\S+ ms
$`},
		{"neighbour", "10.1.0.1", options(1), 1, ` seq=0 ttl=64 `},
		{"ipv6", "fd02::2", options(2), 2, `64 bytes from fd02::2: seq=1 ttl=63 time=`},
		{"quiet", "10.2.0.2", quiet, 3, `^PING .*\n\n--- 10.2.0.2 ping statistics ---\n3 packets transmitted, 3 packets received, 0% packet loss\n`},
		{"unreachable", "10.9.0.1", options(1), 0, `From 10.1.0.1: seq=0 Destination Host Unreachable\n\n.*\n1 packets transmitted, 0 packets received, 100% packet loss\n$`},
		{"too big", "10.2.0.2", big, 0, `From 10.1.0.1: seq=0 Frag needed and DF set`},
		{"too big ipv6", "fd02::2", big, 0, `From fd01::1: seq=0 Packet too big \(mtu 1400\)`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.received == 0 {
				tt.opts.Wait = 300 * time.Millisecond
			}
			var out strings.Builder
			var got nettool.PingResult
			do(t, a, func() error {
				var err error
				got, err = nettool.Ping(t.Context(), &out, netip.MustParseAddr(tt.to), tt.opts)
				return err
			})
			if got.Received != tt.received || got.Sent != tt.opts.Count {
				t.Errorf("sent %d, received %d; want %d, %d", got.Sent, got.Received, tt.opts.Count, tt.received)
			}
			if !regexp.MustCompile(tt.want).MatchString(out.String()) {
				t.Errorf("output does not match %s:\n%s", tt.want, out.String())
			}
		})
	}
}

func TestPingWithoutARoute(t *testing.T) {
	ns := nstest.New(t)
	var out strings.Builder
	opts := options(1)
	opts.Wait = 10 * time.Millisecond
	do(t, ns, func() error {
		_, err := nettool.Ping(t.Context(), &out, netip.MustParseAddr("10.1.1.2"), opts)
		return err
	})
	if !strings.Contains(out.String(), "ping: sendto: Network is unreachable\n") {
		t.Errorf("output:\n%s", out.String())
	}
}

// TestPingUntilInterrupted: without a count it goes on until the context ends,
// and then still tells what it counted.
func TestPingUntilInterrupted(t *testing.T) {
	a, _, _ := threeHops(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var got nettool.PingResult
	do(t, a, func() error {
		var err error
		got, err = nettool.Ping(ctx, io.Discard, netip.MustParseAddr("10.2.0.2"), options(0))
		return err
	})
	if got.Sent < 5 || got.Received < got.Sent-1 {
		t.Errorf("sent %d, received %d", got.Sent, got.Received)
	}
}

func TestBadOptions(t *testing.T) {
	for _, change := range []func(*nettool.PingOptions){
		func(o *nettool.PingOptions) { o.Count = -1 },
		func(o *nettool.PingOptions) { o.Interval = 0 },
		func(o *nettool.PingOptions) { o.Wait = 0 },
		func(o *nettool.PingOptions) { o.Size = 65508 },
	} {
		o := options(1)
		change(&o)
		if _, err := nettool.Ping(t.Context(), io.Discard, netip.MustParseAddr("127.0.0.1"), o); err == nil || !strings.Contains(err.Error(), "is not allowed, want") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestLoss(t *testing.T) {
	for _, tt := range []struct{ sent, received, want int }{{0, 0, 0}, {3, 3, 0}, {3, 0, 100}, {1000, 999, 1}, {2, 1, 50}} {
		if got := (nettool.PingResult{Sent: tt.sent, Received: tt.received}).Loss(); got != tt.want {
			t.Errorf("%d of %d: %d%% loss, want %d%%", tt.received, tt.sent, got, tt.want)
		}
	}
}

// lines collects output and tells when a listener listens.
type lines struct {
	mu    sync.Mutex
	text  strings.Builder
	ready chan struct{}
	once  sync.Once
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if strings.HasPrefix(string(b), "listening") {
		l.once.Do(func() { close(l.ready) })
	}
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestListenAndConnect(t *testing.T) {
	a, r, b := threeHops(t)
	for _, tt := range []struct {
		name, server string
		client       *nstest.NS
		udp          bool
		want         string
	}{
		{"tcp", "10.2.0.2:8080", a, false, "10.1.0.2"},
		{"udp", "10.2.0.2:8080", a, true, "10.1.0.2"},
		{"tcp ipv6", "[fd02::2]:8080", a, false, "fd01::2"},
		{"udp ipv6", "[fd02::2]:8080", a, true, "fd01::2"},
		{"tcp from the router", "10.2.0.2:8080", r, false, "10.2.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := &lines{ready: make(chan struct{})}
			var server sync.WaitGroup
			o := nettool.ListenOptions{Address: netip.AddrPortFrom(netip.Addr{}, 8080), UDP: tt.udp, Count: 1}
			server.Go(func() { do(t, b, func() error { return nettool.Listen(t.Context(), out, o) }) })
			<-out.ready
			var seen string
			do(t, tt.client, func() error {
				var err error
				seen, err = nettool.Connect(t.Context(), netip.MustParseAddrPort(tt.server), nettool.ConnectOptions{UDP: tt.udp, Wait: 3 * time.Second})
				return err
			})
			server.Wait()
			if seen != tt.want || !strings.HasSuffix(out.String(), "\nconnection from "+tt.want+"\n") {
				t.Errorf("the client was told %q, the server printed %q; want %s", seen, out.String(), tt.want)
			}
		})
	}
}

func TestConnectFails(t *testing.T) {
	a, r, _ := threeHops(t)
	r.Command("ip", "route", "add", "blackhole", "10.9.0.0/24")
	for to, want := range map[string]string{
		"10.2.0.2:1": "connect to 10.2.0.2:1/tcp: Connection refused",
		"10.9.0.1:1": "connect to 10.9.0.1:1/tcp: timed out",
	} {
		var err error
		do(t, a, func() error {
			_, err = nettool.Connect(t.Context(), netip.MustParseAddrPort(to), nettool.ConnectOptions{Wait: 300 * time.Millisecond})
			return nil
		})
		if err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestListenEndsWithItsContext(t *testing.T) {
	ns := nstest.New(t)
	for _, udp := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		out := &lines{ready: make(chan struct{})}
		var server sync.WaitGroup
		server.Go(func() {
			do(t, ns, func() error {
				return nettool.Listen(ctx, out, nettool.ListenOptions{Address: netip.MustParseAddrPort("127.0.0.1:0"), UDP: udp})
			})
		})
		<-out.ready
		cancel()
		server.Wait()
	}
}

// TestRoutesLikeIP compares our listing with that of iproute2.
func TestRoutesLikeIP(t *testing.T) {
	a, r, _ := threeHops(t)
	for _, args := range []string{
		"route add blackhole 192.168.36.192/26 proto 80",
		"route add 192.168.57.64/26 via 10.2.0.2 dev right proto 80",
		"route add 192.168.36.192/32 dev left scope link",
		"route add unreachable 10.7.0.0/16 metric 7",
		"route add 10.8.0.0/16 via 10.2.0.2 mtu 1400",
		"route add 10.99.0.1 via 10.77.0.1 dev right onlink",
		"route add 10.6.0.0/16 nexthop via 10.2.0.2 weight 2 nexthop via 10.1.0.2",
	} {
		r.Command("ip", strings.Fields(args)...)
	}
	for _, ns := range []*nstest.NS{a, r} {
		var ours strings.Builder
		do(t, ns, func() error { return nettool.Routes(&ours, false) })
		theirs := ns.Command("ip", "route", "show")
		if diff := cmp.Diff(normal(theirs), normal(ours.String())); diff != "" {
			t.Errorf("(-ip route +ours):\n%s", diff)
		}
	}
	var v6 strings.Builder
	do(t, a, func() error { return nettool.Routes(&v6, true) })
	if !strings.HasPrefix(v6.String(), "default via fd01::1 dev eth0") {
		t.Errorf("IPv6 routes:\n%s", v6.String())
	}
}

// normal sorts routes and takes out iproute2's blanks at the end of lines.
func normal(text string) []string {
	var list []string
	for line := range strings.Lines(strings.ReplaceAll(text, "\n\t", " ")) {
		list = append(list, strings.Join(strings.Fields(line), " "))
	}
	slices.Sort(list)
	return list
}

func TestAddresses(t *testing.T) {
	a, _, _ := threeHops(t)
	a.Command("ip", "link", "set", "eth0", "address", "ee:ee:ee:ee:ee:ee")
	var out strings.Builder
	do(t, a, func() error { return nettool.Addresses(&out, "eth0") })
	want := `^\d+: eth0@if\d+: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 state UP
    link/ether ee:ee:ee:ee:ee:ee
    inet 10.1.0.2/24 scope global eth0
    inet6 fd01::2/64 scope global
    inet6 fe80::\S+/64 scope link
$`
	if !regexp.MustCompile(want).MatchString(out.String()) {
		t.Errorf("output:\n%swant\n%s", out.String(), want)
	}
	var err error
	do(t, a, func() error { err = nettool.Addresses(io.Discard, "eth9"); return nil })
	if fmt.Sprint(err) != `there is no interface "eth9"` {
		t.Error(err)
	}
}
