package bgp

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/manekinet/maneki/bgp/message"
)

// wirePeer plays a peer octet by octet.
type wirePeer struct {
	t    *testing.T
	conn net.Conn
	r    *message.Reader
	open message.Open // what the speaker sent
}

// gracefulOpen is the OPEN of a peer with graceful restart.
func gracefulOpen(id string, restart message.Restart) message.Open {
	return message.Open{
		ASN: 64512, HoldTime: 90 * time.Second, ID: netip.MustParseAddr(id), Families: message.IPv4.Set(),
		RouteRefresh: true, FourOctetAS: true, Restart: restart,
	}
}

func preserved() message.Restart {
	return message.Restart{Supported: true, Time: 60 * time.Second, Families: message.IPv4.Set(), Forwarding: message.IPv4.Set()}
}

// connect makes a session from an address.
func connect(t *testing.T, from, to string, o message.Open) *wirePeer {
	t.Helper()
	w := &wirePeer{t: t, conn: raw(t, from, to)}
	w.r = message.NewReader(w.conn)
	if err := w.conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b, err := o.Encode()
	if err != nil {
		t.Fatal(err)
	}
	w.send(b)
	for {
		typ, body, err := w.r.Next()
		if err != nil {
			t.Fatal("handshake:", err)
		}
		switch typ {
		case message.TypeOpen:
			if w.open, err = message.DecodeOpen(body); err != nil {
				t.Fatal(err)
			}
			w.send(message.Keepalive())
		case message.TypeKeepalive:
			return w
		default:
			t.Fatalf("handshake: message type %d", typ)
		}
	}
}

func (w *wirePeer) send(b []byte) {
	w.t.Helper()
	if _, err := w.conn.Write(b); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wirePeer) announce(prefixes ...string) {
	w.t.Helper()
	var ps []netip.Prefix
	for _, p := range prefixes {
		ps = append(ps, netip.MustParsePrefix(p))
	}
	hop := w.conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr()
	msgs, err := message.AppendReach(nil, message.IPv4, message.Attrs{NextHop: hop, HasLocalPref: true, LocalPref: 100}, message.Form{FourOctetAS: true}, message.Plain(ps...))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, b := range msgs {
		w.send(b)
	}
}

// ended reports whether the speaker sends End-of-RIB within the time.
func (w *wirePeer) ended(limit time.Duration) bool {
	w.t.Helper()
	if err := w.conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		w.t.Fatal(err)
	}
	for {
		typ, body, err := w.r.Next()
		if err != nil {
			return false
		}
		if typ == message.TypeUpdate && len(body) == 4 {
			return true
		}
	}
}

func (n *node) stale(prefix string) bool { return n.Best()[netip.MustParsePrefix(prefix)].Stale }

// TestPeerFailsTwice: routes that are stale already when the peer fails again are dropped, those it had
// announced in between are kept (RFC 4724 §4.2).
func TestPeerFailsTwice(t *testing.T) {
	a := start(t, "10.2.1.1", Options{}, passive("10.2.1.2"))
	w := connect(t, "10.2.1.2", "10.2.1.1", gracefulOpen("2.2.2.2", preserved()))
	w.announce("192.168.1.0/24", "192.168.2.0/24")
	eventually(t, "routes", func() bool { return len(a.Best()) == 2 }, a)
	w.conn.Close()
	eventually(t, "stale", func() bool { return a.stale("192.168.1.0/24") && a.stale("192.168.2.0/24") }, a)
	w = connect(t, "10.2.1.2", "10.2.1.1", gracefulOpen("2.2.2.2", preserved()))
	w.announce("192.168.1.0/24")
	eventually(t, "one fresh", func() bool { return !a.stale("192.168.1.0/24") && a.stale("192.168.2.0/24") }, a)
	w.conn.Close() // before End-of-RIB
	eventually(t, "the old one dropped", func() bool { return a.stale("192.168.1.0/24") && !a.has("192.168.2.0/24") }, a)
}

// TestForwardingStateLost: a peer that comes back without the F bit, or without the capability, has lost
// its forwarding state.
func TestForwardingStateLost(t *testing.T) {
	a := start(t, "10.2.2.1", Options{}, passive("10.2.2.2"))
	lost := preserved()
	lost.Forwarding = 0
	for _, back := range []message.Restart{lost, {}} {
		w := connect(t, "10.2.2.2", "10.2.2.1", gracefulOpen("2.2.2.2", preserved()))
		w.announce("192.168.1.0/24")
		eventually(t, "route", func() bool { return a.has("192.168.1.0/24") }, a)
		w.conn.Close()
		eventually(t, "stale", func() bool { return a.stale("192.168.1.0/24") }, a)
		w = connect(t, "10.2.2.2", "10.2.2.1", gracefulOpen("2.2.2.2", back))
		eventually(t, "drop", func() bool { return !a.has("192.168.1.0/24") }, a)
		w.send((&message.Error{Code: 6, Subcode: 2}).Notification())
		w.conn.Close()
		eventually(t, "end", func() bool { return a.peer("10.2.2.2").State != "Established" }, a)
	}
}

// TestNotificationEndsGrace: after a NOTIFICATION nothing is kept.
func TestNotificationEndsGrace(t *testing.T) {
	a := start(t, "10.2.3.1", Options{}, passive("10.2.3.2"))
	w := connect(t, "10.2.3.2", "10.2.3.1", gracefulOpen("2.2.2.2", preserved()))
	w.announce("192.168.1.0/24")
	eventually(t, "route", func() bool { return a.has("192.168.1.0/24") }, a)
	w.send((&message.Error{Code: 6, Subcode: 2}).Notification())
	eventually(t, "drop", func() bool { return len(a.Best()) == 0 }, a)
	if got := a.peer("10.2.3.2").LastError; got != "peer closed the session: administrative shutdown" {
		t.Errorf("reason %q", got)
	}
}

// TestPeerConnectsAnew: a peer with graceful restart that connects while its old connection seems alive has
// restarted (RFC 4724 §5); one without it is refused (RFC 4271 §6.8).
func TestPeerConnectsAnew(t *testing.T) {
	a := start(t, "10.2.4.1", Options{}, passive("10.2.4.2"), passive("10.2.4.3"))
	connect(t, "10.2.4.2", "10.2.4.1", gracefulOpen("2.2.2.2", preserved())).announce("192.168.1.0/24")
	eventually(t, "route", func() bool { return a.has("192.168.1.0/24") }, a)
	w := connect(t, "10.2.4.2", "10.2.4.1", gracefulOpen("2.2.2.2", preserved()))
	eventually(t, "stale", func() bool { return a.stale("192.168.1.0/24") && a.peer("10.2.4.2").State == "Established" }, a)
	w.announce("192.168.1.0/24")
	w.send(message.EndOfRIB(message.IPv4))
	eventually(t, "fresh", func() bool { return a.has("192.168.1.0/24") && !a.stale("192.168.1.0/24") }, a)

	first := connect(t, "10.2.4.3", "10.2.4.1", gracefulOpen("3.3.3.3", message.Restart{}))
	first.announce("192.168.3.0/24")
	eventually(t, "route of the other peer", func() bool { return a.has("192.168.3.0/24") }, a)
	second := raw(t, "10.2.4.3", "10.2.4.1")
	if got := notification(t, "second connection", second); !got.Collision() {
		t.Errorf("second connection: %v, want a collision", got)
	}
	if st := a.peer("10.2.4.3"); st.State != "Established" || !a.has("192.168.3.0/24") {
		t.Errorf("the first session is %s", st.State)
	}
}

// TestRestartingSpeaker: after a restart of ours OPEN carries the R bit and End-of-RIB waits for the routes
// of the peers or the deferral time (RFC 4724 §4.1); a peer that has itself restarted is not waited for.
func TestRestartingSpeaker(t *testing.T) {
	a := start(t, "10.2.5.1", Options{RestartedRecently: true, Deferral: 700 * time.Millisecond}, passive("10.2.5.2"), passive("10.2.5.3"))
	a.announce("192.168.9.0/24")
	w := connect(t, "10.2.5.2", "10.2.5.1", gracefulOpen("2.2.2.2", preserved()))
	if !w.open.Restart.Restarting || w.open.Restart.Forwarding != message.IPv4.Set() || w.open.Restart.Time != 120*time.Second {
		t.Errorf("our restart capability: %+v", w.open.Restart)
	}
	w.send(message.EndOfRIB(message.IPv4))
	if w.ended(300 * time.Millisecond) {
		t.Error("End-of-RIB was sent although a peer is missing")
	}
	if a.Converged() {
		t.Error("converged although a peer is missing")
	}
	if err := w.conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if !w.ended(2 * time.Second) {
		t.Error("no End-of-RIB after the deferral time")
	}

	b := start(t, "10.2.6.1", Options{RestartedRecently: true}, passive("10.2.6.2"))
	both := preserved()
	both.Restarting = true
	v := connect(t, "10.2.6.2", "10.2.6.1", gracefulOpen("2.2.2.2", both))
	if !v.ended(2*time.Second) || !b.Converged() {
		t.Error("two restarting speakers wait for each other")
	}
}

func passive(addr string) Peer {
	p := mesh(addr)
	p.Passive = true
	return p
}
