package bgp

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/manekinet/maneki/bgp/bgptest"
	"github.com/manekinet/maneki/bgp/message"
)

// swarm starts one simulated neighbour.
func swarm(t testing.TB, server string, asn uint32, local string, routes ...string) *bgptest.Swarm {
	t.Helper()
	c := bgptest.Client{Local: netip.MustParseAddr(local), RouterID: routerID(netip.MustParseAddr(local)), ASN: asn}
	for _, r := range routes {
		c.Routes = append(c.Routes, netip.MustParsePrefix(r))
	}
	s := bgptest.Start(context.Background(), bgptest.Options{Server: netip.AddrPortFrom(netip.MustParseAddr(server), 179), Clients: []bgptest.Client{c}})
	t.Cleanup(s.Close)
	return s
}

func TestStrangersAreClosed(t *testing.T) {
	a := start(t, "10.1.1.1", Options{}, mesh("10.1.1.2"))
	b := start(t, "10.1.1.2", Options{}, mesh("10.1.1.1"))
	eventually(t, "session", established(a, "10.1.1.2"), a, b)
	for i := range 200 {
		c := raw(t, fmt.Sprintf("10.1.2.%d", i+1), "10.1.1.1")
		if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || (err != io.EOF && !isReset(err)) {
			t.Fatalf("stranger %d: read %d octets, %v; want the connection closed without a word", i, n, err)
		}
	}
	if st := a.peer("10.1.1.2").State; st != "Established" {
		t.Errorf("the good session is %s", st)
	}
}

func isReset(err error) bool {
	ne, ok := err.(net.Error)
	return ok && !ne.Timeout()
}

func TestMaxPrefixes(t *testing.T) {
	a := start(t, "10.1.3.1", Options{MaxPrefixesPerPeer: 100}, mesh("10.1.3.2"), mesh("10.1.3.3"))
	good := swarm(t, "10.1.3.1", 64512, "10.1.3.3", "192.168.1.0/24")
	eventually(t, "good peer", func() bool { return a.has("192.168.1.0/24") }, a)
	var flood []string
	for i := range 1000 {
		flood = append(flood, fmt.Sprintf("172.16.%d.%d/32", i/250, i%250))
	}
	bad := swarm(t, "10.1.3.1", 64512, "10.1.3.2", flood...)
	eventually(t, "limit", func() bool { return a.peer("10.1.3.2").State == "Idle" }, a)
	if n := len(a.Best()); n != 1 || good.Established() != 1 {
		t.Errorf("%d routes, good session %d; want only the good peer's", n, good.Established())
	}
	if st := a.peer("10.1.3.2"); st.LastError != "peer sent more than 100 prefixes" {
		t.Errorf("reason %q", st.LastError)
	}
	eventually(t, "the peer is told", func() bool { return bad.Err(0) != nil }, a)
}

// TestRouteFlood: a peer offers more than the default limit. The session ends, all of its routes go, and neither the
// other peer nor the memory suffers.
func TestRouteFlood(t *testing.T) {
	a := start(t, "10.1.11.1", Options{}, passive("10.1.11.2"), mesh("10.1.11.3"))
	good := swarm(t, "10.1.11.1", 64512, "10.1.11.3", "192.168.1.0/24")
	eventually(t, "good peer", func() bool { return a.has("192.168.1.0/24") }, a)
	var flood []string
	for i := range defaultMaxPrefixes + 1 {
		flood = append(flood, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(16 + i>>16), byte(i >> 8), byte(i)}), 32).String())
	}
	before := inUse()
	began := time.Now()
	swarm(t, "10.1.11.1", 64512, "10.1.11.2", flood...)
	eventually(t, "limit", func() bool { return a.peer("10.1.11.2").State == "Idle" }, a)
	eventually(t, "withdrawal", func() bool { return len(a.Best()) == 1 }, a)
	t.Logf("%d routes refused and gone after %s", len(flood), time.Since(began).Round(time.Millisecond))
	if good.Established() != 1 || !a.has("192.168.1.0/24") {
		t.Error("the good session suffered")
	}
	flood = nil
	if grown := inUse() - before; grown > 64<<20 {
		t.Errorf("%d MiB more are in use afterwards", grown>>20)
	}
}

func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse)
}

// TestMaxPrefixesOfAPeer: the limit of one peer, lowered while its session is up, and in force with its next message.
func TestMaxPrefixesOfAPeer(t *testing.T) {
	a := start(t, "10.1.12.1", Options{}, mesh("10.1.12.2"))
	b := start(t, "10.1.12.2", Options{}, mesh("10.1.12.1"))
	b.announce("10.65.1.0/26", "10.65.2.0/26", "10.65.3.0/26")
	eventually(t, "routes", func() bool { return len(a.Best()) == 3 }, a, b)
	p := a.cfg.Peers[b.addr]
	p.MaxPrefixes = 3
	a.cfg.Peers[b.addr] = p
	a.set()
	b.announce("10.65.4.0/26")
	eventually(t, "limit", func() bool {
		return a.peer("10.1.12.2").LastError == "peer sent more than 3 prefixes" && len(a.Best()) == 0
	}, a, b)
}

func TestImportChecks(t *testing.T) {
	a := start(t, "10.1.4.1", Options{}, mesh("10.1.4.2"))
	s := swarm(t, "10.1.4.1", 64512, "10.1.4.2",
		"127.1.0.0/16", "169.254.7.0/24", "224.1.0.0/16", "0.0.0.0/8", "240.0.0.0/8", // never
		"0.0.0.0/0", "192.168.1.0/24") // these two
	eventually(t, "session and routes", func() bool { return a.peer("10.1.4.2").Received == 7 && s.Established() == 1 }, a)
	if best := a.Best(); len(best) != 2 || !a.has("0.0.0.0/0") || !a.has("192.168.1.0/24") {
		t.Errorf("best = %v", best)
	}
	if st := a.peer("10.1.4.2"); st.Accepted != 2 {
		t.Errorf("accepted %d, want 2", st.Accepted)
	}
}

func TestOwnNextHopIsRefused(t *testing.T) {
	a := start(t, "10.1.5.1", Options{}, mesh("10.1.5.2"))
	c := bgptest.Client{
		Local: netip.MustParseAddr("10.1.5.2"), RouterID: netip.MustParseAddr("2.2.2.2"), ASN: 64512,
		NextHop: a.addr, Routes: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")},
	}
	s := bgptest.Start(context.Background(), bgptest.Options{Server: netip.MustParseAddrPort("10.1.5.1:179"), Clients: []bgptest.Client{c}})
	t.Cleanup(s.Close)
	eventually(t, "route received", func() bool { return a.peer("10.1.5.2").Received == 1 }, a)
	if len(a.Best()) != 0 {
		t.Errorf("best = %v", a.Best())
	}
}

// TestMalformed sends faulty messages on one session and watches another one.
func TestMalformed(t *testing.T) {
	a := start(t, "10.1.6.1", Options{}, mesh("10.1.6.2"), mesh("10.1.6.3"))
	good := swarm(t, "10.1.6.1", 64512, "10.1.6.3", "192.168.1.0/24")
	bad := swarm(t, "10.1.6.1", 64512, "10.1.6.2", "192.168.2.0/24", "192.168.3.0/24")
	ready := func() bool { return len(a.Best()) == 3 && bad.Established() == 1 }
	eventually(t, "routes", ready, a)
	marker := []byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255}
	msg := func(kind byte, body ...byte) []byte {
		return append(append(append([]byte{}, marker...), byte((19+len(body))>>8), byte(19+len(body)), kind), body...)
	}
	// Faults of an attribute: the route goes, the session stays (RFC 7606).
	update := msg(2, 0, 0, 0, 14, 0x40, 1, 1, 9, 0x40, 2, 0, 0x40, 3, 4, 10, 1, 6, 2, 24, 192, 168, 2)
	if err := bad.SendRaw(0, update); err != nil {
		t.Fatal(err)
	}
	eventually(t, "treat as withdraw", func() bool { return !a.has("192.168.2.0/24") && a.has("192.168.3.0/24") }, a)
	if bad.Established() != 1 {
		t.Fatal("a bad ORIGIN ended the session")
	}
	for name, b := range map[string][]byte{
		"bad marker":     append(make([]byte, 16), 0, 19, 4),
		"length 0":       append(append([]byte{}, marker...), 0, 0, 2),
		"length 65535":   append(append([]byte{}, marker...), 255, 255, 2),
		"unknown type":   msg(77),
		"open again":     msg(1, 4, 252, 0, 0, 90, 1, 1, 1, 1, 0),
		"withdraw > len": msg(2, 255, 255, 0, 0),
		"attrs > len":    msg(2, 0, 0, 255, 255),
		"prefix /77":     msg(2, 0, 0, 0, 0, 77, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
		"short mp reach": msg(2, 0, 0, 0, 5, 0x80, 14, 2, 0, 1),
	} {
		eventually(t, "bad peer is back before "+name, func() bool { return bad.Established() == 1 && a.peer("10.1.6.2").State == "Established" }, a)
		in := a.peer("10.1.6.2").Since
		if err := bad.SendRaw(0, b); err != nil {
			t.Fatal(name, err)
		}
		eventually(t, name+" ends the session", func() bool { return !a.peer("10.1.6.2").Since.Equal(in) }, a)
		if good.Established() != 1 || !a.has("192.168.1.0/24") {
			t.Fatalf("%s: the good session suffered", name)
		}
	}
}

// TestHandshakeFaults plays a peer that misbehaves before the session is up and checks the NOTIFICATION it
// gets (RFC 4271 §6.1-6.2, RFC 6608).
func TestHandshakeFaults(t *testing.T) {
	p := mesh("10.1.7.2")
	p.Passive = true
	a := start(t, "10.1.7.1", Options{}, p)
	open := func(change func(*message.Open)) []byte {
		o := message.Open{ASN: 64512, HoldTime: 90 * time.Second, ID: netip.MustParseAddr("2.2.2.2"), Families: message.IPv4.Set(), FourOctetAS: true}
		change(&o)
		b, err := o.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := open(func(*message.Open) {})
	for _, c := range []struct {
		name      string
		send      []byte
		code, sub uint8
	}{
		{"wrong AS", open(func(o *message.Open) { o.ASN = 65000 }), 2, 2},
		{"our router ID", open(func(o *message.Open) { o.ID = routerID(a.addr) }), 2, 3},
		{"hold time 1", open(func(o *message.Open) { o.HoldTime = time.Second }), 2, 6},
		{"no family in common", open(func(o *message.Open) { o.Families = message.IPv6.Set() }), 2, 7},
		{"keepalive first", message.Keepalive(), 5, 1},
		{"update first", message.EndOfRIB(message.IPv4), 5, 1},
		{"open twice", append(append([]byte{}, good...), good...), 5, 2},
		{"update instead of keepalive", append(append([]byte{}, good...), message.EndOfRIB(message.IPv4)...), 5, 2},
		{"bad marker", make([]byte, 19), 1, 1},
	} {
		conn := raw(t, "10.1.7.2", "10.1.7.1")
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(c.send); err != nil {
			t.Fatal(c.name, err)
		}
		if got := notification(t, c.name, conn); got.Code != c.code || got.Subcode != c.sub {
			t.Errorf("%s: told %d/%d (%s), want %d/%d", c.name, got.Code, got.Subcode, got, c.code, c.sub)
		}
		conn.Close()
	}
	s := swarm(t, "10.1.7.1", 64512, "10.1.7.2", "192.168.1.0/24")
	eventually(t, "a good session afterwards", func() bool { return s.Established() == 1 && a.has("192.168.1.0/24") }, a)
}

// notification reads until a NOTIFICATION comes.
func notification(t *testing.T, name string, c net.Conn) *message.NotificationError {
	t.Helper()
	r := message.NewReader(c)
	for {
		typ, body, err := r.Next()
		if err != nil {
			t.Fatalf("%s: %v instead of a NOTIFICATION", name, err)
		}
		if typ == message.TypeNotification {
			return message.DecodeNotification(body)
		}
	}
}

// TestIdlePeerConnections opens many connections from a configured address and says nothing on them.
func TestIdlePeerConnections(t *testing.T) {
	a := start(t, "10.1.8.1", Options{MaxPending: 8}, mesh("10.1.8.2"), mesh("10.1.8.3"))
	good := swarm(t, "10.1.8.1", 64512, "10.1.8.3", "192.168.1.0/24")
	eventually(t, "good session", func() bool { return good.Established() == 1 }, a)
	for range 200 {
		c := raw(t, "10.1.8.2", "10.1.8.1")
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, c) // ends with the deadline or the connection, both are fine
	}
	if a.peer("10.1.8.3").State != "Established" || !a.has("192.168.1.0/24") {
		t.Errorf("the good session is %s", a.peer("10.1.8.3").State)
	}
	if pending := a.peers[netip.MustParseAddr("10.1.8.2")].session.Handshakes(); pending > 3 {
		t.Errorf("%d connections of one peer are kept", pending)
	}
}

// TestPeerThatDoesNotRead fills the socket of a peer and then removes it, and then stops: neither may wait.
func TestPeerThatDoesNotRead(t *testing.T) {
	checkLeaks(t)
	a := start(t, "10.1.9.1", Options{}, mesh("10.1.9.2"), mesh("10.1.9.3"))
	for i := range 60_000 { // each with attributes, and so a message, of its own
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
		a.cfg.Announce[p] = Announcement{MED: uint32(i + 1), Communities: "1:1 1:2 1:3 1:4 1:5 1:6 1:7 1:8 1:9 1:10 1:11 1:12"}
	}
	a.set()
	for _, from := range []string{"10.1.9.2", "10.1.9.3"} {
		deaf(t, from, "10.1.9.1")
	}
	eventually(t, "sessions", established(a, "10.1.9.2", "10.1.9.3"), a)
	stuck := func() bool {
		out := a.peer("10.1.9.2").MessagesOut
		time.Sleep(100 * time.Millisecond)
		return a.peer("10.1.9.2").MessagesOut == out
	}
	eventually(t, "the sockets to be full", stuck, a)
	if out := a.peer("10.1.9.2").MessagesOut; out > 60_000 {
		t.Fatalf("all %d messages fitted into the sockets: the test proves nothing", out)
	}
	began := time.Now()
	delete(a.cfg.Peers, netip.MustParseAddr("10.1.9.2"))
	a.set()
	a.stop()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("stopping took %s", took)
	}
}

// deaf brings up a session and then reads no more.
func deaf(t *testing.T, from, to string) {
	t.Helper()
	c := raw(t, from, to)
	open, err := message.Open{ASN: 64512, HoldTime: 0, ID: netip.MustParseAddr(from), Families: message.IPv4.Set(), FourOctetAS: true}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(append(open, message.Keepalive()...)); err != nil {
		t.Fatal(err)
	}
}

// TestMutatedPeer connects some hundred times from a configured address and sends a good conversation with
// a few octets changed, cut or repeated. Nothing may panic, and the other session and its routes stay.
func TestMutatedPeer(t *testing.T) {
	var panics panicCounter
	a := startLogging(t, slog.New(slog.NewTextHandler(&panics, nil)), "10.1.10.1", Options{}, passive("10.1.10.2"), passive("10.1.10.3"))
	good := swarm(t, "10.1.10.1", 64512, "10.1.10.3", "192.168.1.0/24")
	eventually(t, "good session", func() bool { return good.Established() == 1 && a.has("192.168.1.0/24") }, a)
	rnd := rand.New(rand.NewPCG(20, 26))
	stream := conversation(t)
	for i := range 400 {
		in := bytes.Clone(stream)
		for range rnd.IntN(4) {
			in[rnd.IntN(len(in))] = byte(rnd.Uint32())
		}
		in = in[:len(in)-rnd.IntN(len(in)/2)]
		c := raw(t, "10.1.10.2", "10.1.10.1")
		if err := c.SetDeadline(time.Now().Add(3 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(in) // the speaker may close at any octet
		_, _ = io.Copy(io.Discard, c)
		c.Close()
		if good.Established() != 1 || !a.has("192.168.1.0/24") {
			t.Fatalf("conversation %d: the good session suffered", i)
		}
	}
	if panics.n.Load() > 0 {
		t.Errorf("%d panics", panics.n.Load())
	}
}

// panicCounter is a log's output that counts the lines reporting a panic.
type panicCounter struct{ n atomic.Int32 }

func (p *panicCounter) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("panicked")) {
		p.n.Add(1)
	}
	return len(b), nil
}

// conversation is all that a good peer says: OPEN, KEEPALIVE, routes of every kind, End-of-RIB.
func conversation(t *testing.T) []byte {
	t.Helper()
	b, err := gracefulOpen("2.2.2.2", preserved()).Encode()
	if err != nil {
		t.Fatal(err)
	}
	msgs := [][]byte{b, message.Keepalive()}
	attrs := message.Attrs{
		NextHop: netip.MustParseAddr("10.1.10.2"), HasLocalPref: true, LocalPref: 100, HasMED: true, MED: 1,
		Communities: "abcdefgh", LargeCommunities: "abcdefghijkl", OriginatorID: netip.MustParseAddr("9.9.9.9"), ClusterList: "abcd",
	}
	attrs = attrs.Prepend(65001).Prepend(65002)
	if msgs, err = message.AppendReach(msgs, message.IPv4, attrs, message.Form{FourOctetAS: true}, message.Plain(netip.MustParsePrefix("172.16.0.0/24"), netip.MustParsePrefix("0.0.0.0/0"))); err != nil {
		t.Fatal(err)
	}
	if msgs, err = message.AppendWithdraw(msgs, message.IPv4, false, message.Plain(netip.MustParsePrefix("172.16.0.0/24"))); err != nil {
		t.Fatal(err)
	}
	return bytes.Join(append(msgs, message.EndOfRIB(message.IPv4), message.Keepalive()), nil)
}

// TestConnectionFlood: thousands of connections from addresses that are no peers, many at a time, some kept open and
// silent. A session stays up, and a new peer gets one at once.
func TestConnectionFlood(t *testing.T) {
	a := start(t, "10.1.13.1", Options{}, mesh("10.1.13.2"), mesh("10.1.13.3"))
	good := swarm(t, "10.1.13.1", 64512, "10.1.13.3", "192.168.1.0/24")
	eventually(t, "good session", func() bool { return good.Established() == 1 && a.has("192.168.1.0/24") }, a)
	since := a.peer("10.1.13.3").Since
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var dialled atomic.Int32
	for w := range 16 {
		wg.Go(func() {
			var d net.Dialer
			for i := 0; ctx.Err() == nil; i++ {
				d.LocalAddr = &net.TCPAddr{IP: net.IPv4(10, 1, 14, byte(w*15+i%15+1))}
				if c, err := d.DialContext(ctx, "tcp", "10.1.13.1:179"); err == nil {
					dialled.Add(1)
					_, _ = c.Write([]byte("GET / HTTP/1.0"))
					c.Close()
				}
			}
		})
	}
	eventually(t, "the flood", func() bool { return dialled.Load() > 1000 }, a)
	began := time.Now()
	late := swarm(t, "10.1.13.1", 64512, "10.1.13.2", "192.168.2.0/24")
	eventually(t, "a new peer in the flood", func() bool { return late.Established() == 1 && a.has("192.168.2.0/24") }, a)
	took := time.Since(began)
	cancel()
	wg.Wait()
	t.Logf("%d connections; a new peer had its session after %s", dialled.Load(), took.Round(time.Millisecond))
	if took > 5*time.Second || !a.peer("10.1.13.3").Since.Equal(since) {
		t.Errorf("new peer after %s; the good session is up since %s, was since %s", took, a.peer("10.1.13.3").Since, since)
	}
}
