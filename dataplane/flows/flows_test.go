package flows_test

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/manekinet/maneki/dataplane/flows"
	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/policy"
)

func ip4(proto byte, frag uint16, payload ...byte) []byte {
	b := make([]byte, 20, 20+len(payload))
	b[0], b[9] = 0x45, proto
	binary.BigEndian.PutUint16(b[6:], frag)
	copy(b[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	return append(b, payload...)
}

func ip6(next byte, payload ...byte) []byte {
	b := make([]byte, 40, 40+len(payload))
	b[0], b[6] = 0x60, next
	src, dst := netip.MustParseAddr("fd00::1").As16(), netip.MustParseAddr("fd00::2").As16()
	copy(b[8:], src[:])
	copy(b[24:], dst[:])
	return append(b, payload...)
}

func TestParsePacket(t *testing.T) {
	ports := []byte{0x9c, 0x40, 0, 80}
	tests := []struct {
		name string
		b    []byte
		want string
	}{
		{"tcp", ip4(6, 0, ports...), "10.0.0.1:40000 -> 10.0.0.2:80 tcp"},
		{"later fragment", ip4(6, 100, ports...), "10.0.0.1 -> 10.0.0.2:0 tcp"},
		{"cut", ip4(6, 0, 1, 2), "10.0.0.1 -> 10.0.0.2:0 tcp"},
		{"icmp", ip4(1, 0, 8, 0), "10.0.0.1 -> 10.0.0.2 icmp type 8 code 0"},
		{"gre", ip4(47, 0), "10.0.0.1 -> 10.0.0.2 protocol 47"},
		{"udp over IPv6", ip6(17, ports...), "[fd00::1]:40000 -> [fd00::2]:80 udp"},
		{"behind hop-by-hop", ip6(0, append([]byte{17, 0, 0, 0, 0, 0, 0, 0}, ports...)...), "[fd00::1]:40000 -> [fd00::2]:80 udp"},
		{"first fragment", ip6(44, append([]byte{17, 0, 0, 1, 0, 0, 0, 0}, ports...)...), "[fd00::1]:40000 -> [fd00::2]:80 udp"},
		{"later fragment 6", ip6(44, append([]byte{17, 0, 1, 0, 0, 0, 0, 0}, ports...)...), "fd00::1 -> [fd00::2]:0 udp"},
	}
	for _, tt := range tests {
		p, err := flows.ParsePacket(tt.b)
		if err != nil || p.String() != tt.want {
			t.Errorf("%s: %s, %v; want %s", tt.name, p, err, tt.want)
		}
	}
	for _, bad := range [][]byte{nil, {0x45}, {0x10, 0}, ip6(6)[:39]} {
		if p, err := flows.ParsePacket(bad); err == nil {
			t.Errorf("% x is read as %s", bad, p)
		}
	}
}

func FuzzParsePacket(f *testing.F) {
	f.Add(ip4(6, 0, 1, 2, 3, 4))
	f.Add(ip6(44, 17, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := flows.ParsePacket(b); err == nil && (!p.Src.IsValid() || p.Src.Is4() != p.Dst.Is4()) {
			t.Errorf("% x gives %s", b, p)
		}
	})
}

// pair is two namespaces joined by a veth, 10.1.1.1 and 10.1.1.2.
func pair(t *testing.T) (here, there *nstest.NS) {
	here, there = nstest.New(t), nstest.New(t)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1", PeerNamespace: netlink.NsFd(there.FD())}
	if err := here.Handle().LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	here.Command("ip", "addr", "add", "10.1.1.1/24", "dev", "v0")
	there.Command("ip", "addr", "add", "10.1.1.2/24", "dev", "v1")
	here.Up("v0")
	there.Up("v1")
	return here, there
}

func nameIn(ns *nstest.NS) func(int) string {
	return func(index int) string {
		l, err := ns.Handle().LinkByIndex(index)
		if err != nil {
			return ""
		}
		return l.Attrs().Name
	}
}

func TestReportsAndConnections(t *testing.T) {
	here, there := pair(t)
	here.Command("nft", `table inet t { chain in { type filter hook input priority 0; ct state new accept; }
		chain out { type filter hook output priority 0; ct state established accept; udp dport 53 log prefix "id1" group 77 drop; }; }`)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	reports, events, done := make(chan flows.Report, 10), make(chan flows.Event, 100), make(chan error, 2)
	go here.Do(func() {
		done <- flows.FollowReports(ctx, 77, nameIn(here), func(r flows.Report) { reports <- r }, func() {})
	})
	go here.Do(func() { done <- flows.FollowConnections(ctx, func(e flows.Event) { events <- e }) })
	var got flows.Report
	for range 50 { // until the followers are there
		here.Command("bash", "-c", "echo x > /dev/udp/10.1.1.2/53 || true")
		select {
		case got = <-reports:
		case <-time.After(100 * time.Millisecond):
			continue
		}
		break
	}
	if got.Label != "id1" || got.Out != "v0" || got.In != "" || got.Packet.DstPort != 53 || got.Packet.Dst.String() != "10.1.1.2" || time.Since(got.Time) > time.Minute {
		t.Fatalf("report %+v", got)
	}
	there.Command("ping", "-c", "1", "-W", "2", "10.1.1.1")
	found := false
	for !found {
		select {
		case e := <-events:
			found = e.Packet.Protocol == policy.ProtoICMP && e.Packet.Src.String() == "10.1.1.2" && !e.Ended
		case <-ctx.Done():
			t.Fatal("no event of the new connection")
		}
	}
	here.Do(func() { listAndEnd(t) })
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func listAndEnd(t *testing.T) {
	tracker, err := flows.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer tracker.Close()
	icmp := func() []flows.Connection {
		list, err := tracker.List()
		if err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(list, func(c flows.Connection) bool { return c.Packet.Protocol != policy.ProtoICMP })
	}
	list := icmp()
	if len(list) != 1 || !list[0].Replied || list[0].Reply.Src.String() != "10.1.1.1" {
		t.Fatalf("connections %+v", list)
	}
	if err := tracker.End(list); err != nil {
		t.Fatal(err)
	}
	if left := icmp(); len(left) != 0 {
		t.Errorf("%d connections left", len(left))
	}
	if err := tracker.End(list); err != nil {
		t.Errorf("ended twice: %v", err)
	}
}
