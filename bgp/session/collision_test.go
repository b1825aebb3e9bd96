package session

import (
	"net/netip"
	"testing"
	"time"

	"github.com/manekinet/maneki/bgp/message"
)

func TestLocalPreferred(t *testing.T) {
	low, high := netip.MustParseAddr("1.1.1.1"), netip.MustParseAddr("2.2.2.2")
	for _, c := range []struct {
		local, remote     netip.Addr
		localAS, remoteAS uint32
		want              bool
	}{
		{high, low, 1, 1, true},
		{low, high, 1, 1, false},
		{low, low, 2, 1, true},
		{low, low, 1, 2, false}, // RFC 6286
	} {
		if got := localPreferred(c.local, c.remote, c.localAS, c.remoteAS); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
		if localPreferred(c.local, c.remote, c.localAS, c.remoteAS) == localPreferred(c.remote, c.local, c.remoteAS, c.localAS) {
			t.Errorf("%+v: both ends prefer the same side's dial", c)
		}
	}
}

func TestDecide(t *testing.T) {
	open := &message.Open{}
	for _, c := range []struct {
		name           string
		outgoing       bool  // the connection whose OPEN has come
		other          *conn // the other one, nil if there is none
		preferOutgoing bool
		want           decision
	}{
		{"alone, preferred", true, nil, true, answer},
		{"alone, not preferred", false, nil, true, answer},
		{"preferred against a silent one", true, &conn{}, true, answer},
		{"preferred against an answered one", true, &conn{open: open, confirmed: true}, true, answer},
		{"not preferred, the preferred one is silent", false, &conn{outgoing: true}, true, wait},
		{"not preferred, the preferred one is answered", false, &conn{outgoing: true, open: open, confirmed: true}, true, refuse},
		{"accepted and preferred", false, &conn{outgoing: true}, false, answer},
		{"dialled and not preferred", true, &conn{}, false, wait},
		{"the peer connected twice", false, &conn{open: open, confirmed: true}, false, answer},
		{"the peer connected twice, not preferred", false, &conn{open: open, confirmed: true}, true, answer},
	} {
		in := &conn{outgoing: c.outgoing, open: open}
		all := []*conn{in}
		if c.other != nil {
			all = append(all, c.other)
		}
		if got := decide(in, all, c.preferOutgoing); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// TestBothEndsAgree runs through every order in which the two OPENs can arrive at both ends and checks
// that no end answers a connection that the other end refuses.
func TestBothEndsAgree(t *testing.T) {
	for _, lowFirst := range []bool{false, true} {
		for _, highFirst := range []bool{false, true} {
			// Connection 0 was dialled by the end with the lower identifier, 1 by the higher.
			answered := map[string]map[int]bool{"low": {}, "high": {}}
			ends := map[string][]*conn{"low": {{outgoing: true}, {}}, "high": {{}, {outgoing: true}}}
			for name, own := range map[string]bool{"low": lowFirst, "high": highFirst} {
				order := []int{0, 1}
				if own {
					order = []int{1, 0}
				}
				live := append([]*conn{}, ends[name]...)
				for _, i := range order {
					c := ends[name][i]
					c.open = &message.Open{}
					if decide(c, live, name == "high") == answer {
						c.confirmed = true
						answered[name][i] = true
						live = []*conn{c}
					}
				}
			}
			for name, a := range answered {
				if !a[1] || a[0] {
					t.Errorf("low first %v, high first %v: end %s answered %v, want only connection 1", lowFirst, highFirst, name, a)
				}
			}
		}
	}
}

func TestBackoff(t *testing.T) {
	last := time.Duration(0)
	for failures := range 30 {
		least, most := time.Hour, time.Duration(0)
		for range 200 {
			d := backoff(0, failures)
			least, most = min(least, d), max(most, d)
		}
		if least < 75*time.Millisecond || most > 6250*time.Millisecond {
			t.Fatalf("failures %d: %s to %s", failures, least, most)
		}
		if most < last*3/4 {
			t.Errorf("failures %d: waits shrink", failures)
		}
		if least == most {
			t.Errorf("failures %d: no jitter", failures)
		}
		last = most
	}
}

func TestNeedsReset(t *testing.T) {
	a := Config{Remote: netip.MustParseAddrPort("10.0.0.1:179"), LocalASN: 1, RemoteASN: 1, HoldTime: time.Minute}
	b := a
	b.HoldTime, b.Passive, b.ConnectRetry, b.RestartTime, b.Keepalive = 1, true, 2, 3, 4
	if a.NeedsReset(b) {
		t.Error("timers need a reset")
	}
	for name, change := range map[string]func(*Config){
		"password": func(c *Config) { c.Password = "x" }, "AS": func(c *Config) { c.RemoteASN = 2 },
		"router ID": func(c *Config) { c.RouterID = netip.MustParseAddr("1.1.1.1") }, "TTL": func(c *Config) { c.TTLSecurity = 1 },
		"source": func(c *Config) { c.Local = netip.MustParseAddr("10.0.0.2") },
	} {
		c := a
		change(&c)
		if !a.NeedsReset(c) {
			t.Errorf("%s needs no reset", name)
		}
	}
}
