package bgp

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestValidate(t *testing.T) {
	addr := netip.MustParseAddr("10.0.0.2")
	good := func() Config {
		return Config{
			RouterID: netip.MustParseAddr("1.1.1.1"), ASN: 64512, Listen: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:179")},
			Peers:    map[netip.Addr]Peer{addr: mesh("10.0.0.2")},
			Announce: map[netip.Prefix]Announcement{netip.MustParsePrefix("192.168.0.0/24"): {Communities: "1:1 1:2:3"}},
		}
	}
	peer := func(change func(*Peer)) func(*Config) {
		return func(c *Config) { p := c.Peers[addr]; change(&p); c.Peers[addr] = p }
	}
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string // part of the error; "" if it is good
	}{
		{"good", func(*Config) {}, ""},
		{"empty", func(c *Config) { *c = Config{} }, ""},
		{"no router ID", func(c *Config) { c.RouterID = netip.Addr{} }, "routerID"},
		{"IPv6 router ID", func(c *Config) { c.RouterID = netip.MustParseAddr("fd00::1") }, `routerID "fd00::1": want an IPv4 address`},
		{"no AS", func(c *Config) { c.ASN = 0 }, "asn 0"},
		{"listen twice", func(c *Config) { c.Listen = append(c.Listen, c.Listen[0]) }, "listen 10.0.0.1:179: duplicate"},
		{"listen port 0", func(c *Config) { c.Listen[0] = netip.MustParseAddrPort("10.0.0.1:0") }, "listen"},
		{"key and address differ", peer(func(p *Peer) { p.Addr = netip.MustParseAddr("10.0.0.3") }), "addr"},
		{"peer is us", func(c *Config) { c.Listen[0] = netip.AddrPortFrom(addr, 179) }, "own address"},
		{"peer is our source", peer(func(p *Peer) { p.Local = addr }), "own address"},
		{"source of the other family", peer(func(p *Peer) { p.Local = netip.MustParseAddr("fd00::1") }), "local fd00::1"},
		{"peer without AS", peer(func(p *Peer) { p.ASN = 0 }), "asn 0"},
		{"unknown type", peer(func(p *Peer) { p.Type = "friend" }), `type "friend"`},
		{"hold time 2s", peer(func(p *Peer) { p.HoldTime = 2 * time.Second }), "holdTime 2s: want 3s to 65535s"},
		{"keepalive beyond hold", peer(func(p *Peer) { p.Keepalive = time.Minute }), "keepalive 1m0s"},
		{"restart time", peer(func(p *Peer) { p.RestartTime = 2 * time.Hour }), "restartTime 2h0m0s"},
		{"password", peer(func(p *Peer) { p.Password = strings.Repeat("tanuki", 14) }), "password: has 84 octets"},
		{"host bits", func(c *Config) { c.Announce[netip.MustParsePrefix("10.1.1.1/24")] = Announcement{} }, "10.1.1.1/24: want a prefix without host bits, such as 10.1.1.0/24"},
		{"next hop family", func(c *Config) {
			c.Announce[netip.MustParsePrefix("fd00::/64")] = Announcement{NextHop: addr}
		}, "nextHop 10.0.0.2"},
		{"community", func(c *Config) {
			c.Announce[netip.MustParsePrefix("10.1.1.0/24")] = Announcement{Communities: "1:70000"}
		}, `"1:70000"`},
	} {
		cfg := good()
		c.change(&cfg)
		err := cfg.validate()
		if c.want == "" && err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "tanuki") {
			t.Errorf("%s: the error gives the password away", c.name)
		}
	}
}

// TestBadSetChangesNothing: a refused configuration leaves the one in force alone.
func TestBadSetChangesNothing(t *testing.T) {
	a := start(t, "10.4.1.1", Options{}, mesh("10.4.1.2"))
	b := start(t, "10.4.1.2", Options{}, mesh("10.4.1.1"))
	a.announce("192.168.1.0/24")
	eventually(t, "route", func() bool { return b.has("192.168.1.0/24") }, a, b)
	bad := a.cfg
	bad.Announce = maps.Clone(a.cfg.Announce)
	delete(bad.Announce, netip.MustParsePrefix("192.168.1.0/24"))
	bad.ASN = 0
	if err := a.Set(bad); err == nil {
		t.Fatal("a configuration without AS was accepted")
	}
	time.Sleep(20 * time.Millisecond)
	if !b.has("192.168.1.0/24") || a.peer("10.4.1.2").State != "Established" {
		t.Error("a refused configuration had an effect")
	}
	before := a.peer("10.4.1.2").MessagesOut
	for range 50 {
		a.set() // equal values: nothing to do
	}
	time.Sleep(20 * time.Millisecond)
	if after := a.peer("10.4.1.2").MessagesOut; after != before {
		t.Errorf("setting equal values sent %d messages", after-before)
	}
}

// TestListenerComesAndGoes: listeners follow the configuration, and one that failed is tried again.
func TestListenerComesAndGoes(t *testing.T) {
	a := start(t, "10.4.2.1", Options{}, mesh("10.4.2.2"))
	b := New(quiet(), Options{})
	cfg := Config{Listen: slices.Clone(a.cfg.Listen)}
	if err := b.Set(cfg); err == nil {
		t.Fatal("two listeners on one address")
	}
	a.cfg.Listen = nil
	a.set()
	if err := b.Set(cfg); err != nil {
		t.Fatalf("after the address became free: %v", err)
	}
	if err := b.Set(Config{}); err != nil {
		t.Fatal(err)
	}
	a.cfg.Listen = cfg.Listen
	a.set()
}

func TestSetAfterRun(t *testing.T) {
	a := start(t, "10.4.3.1", Options{})
	a.stop()
	if err := a.Set(a.cfg); err == nil {
		t.Error("a stopped speaker took a configuration")
	}
	if err := a.Run(t.Context()); err == nil {
		t.Error("a stopped speaker ran again")
	}
}

// TestASChange: a new AS number of ours sets all sessions up anew.
func TestASChange(t *testing.T) {
	ext := mesh("10.4.4.2")
	a := start(t, "10.4.4.1", Options{}, ext)
	bp := mesh("10.4.4.1")
	b := start(t, "10.4.4.2", Options{}, bp)
	eventually(t, "iBGP", established(a, "10.4.4.2"), a, b)
	b.announce("192.168.1.0/24")
	a.cfg.ASN = 65001
	a.set()
	bp.ASN, bp.Local = 65001, b.addr
	b.cfg.Peers[bp.Addr] = bp
	b.set()
	eventually(t, "eBGP", func() bool { return a.Best()[netip.MustParsePrefix("192.168.1.0/24")].ASPath == "64512" }, a, b)
}

func TestErrorsAreJoined(t *testing.T) {
	a := New(quiet(), Options{})
	err := a.Set(Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:179"), netip.MustParseAddrPort("203.0.113.2:179")}})
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) || len(joined.Unwrap()) != 2 {
		t.Errorf("err = %v, want one for each address", err)
	}
}
