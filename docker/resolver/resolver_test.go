package resolver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/docker/resolver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// put is an endpoint as the datastore tells of it.
func put(id, node, profile, network, names string, addrs ...string) datastore.Event {
	w := &api.WorkloadEndpoint{}
	w.Annotations = map[string]string{"maneki.net/docker-names": names, "maneki.net/docker-network-name": network}
	w.Spec.Node, w.Spec.Profiles = node, []string{profile}
	for _, a := range addrs {
		addr := netip.MustParseAddr(a)
		w.Spec.IPNetworks = append(w.Spec.IPNetworks, netip.PrefixFrom(addr, addr.BitLen()).String())
	}
	value, err := json.Marshal(w)
	if err != nil {
		panic(err)
	}
	return datastore.Event{Entry: datastore.Entry{Key: key(id), Value: value}}
}

func key(id string) datastore.Key {
	return datastore.Key{Kind: "WorkloadEndpoint", Namespace: "libnetwork", Name: id}
}

func gone(id string) datastore.Event {
	return datastore.Event{Type: datastore.EventDelete, Entry: datastore.Entry{Key: key(id)}}
}

func TestLookup(t *testing.T) {
	d := resolver.NewDirectory("h1")
	other := put("cni", "h1", "net", "", "x", "10.0.0.99")
	other.Entry.Key.Namespace = "default"
	d.Apply([]datastore.Event{
		put("a", "h1", "shop", "net1", "Web1,www,aaaaaaaaaaaa", "10.0.0.1", "fd00::1"),
		put("b", "h2", "shop", "othername", "web2,www,my.name", "10.0.1.2"),
		put("c", "h2", "db", "db", "web2", "10.0.1.3"),
		put("d", "h1", "my-net-52a0ad", "My_Net", "lone", "10.0.0.4"),
		other,
	})
	const asker = "10.0.0.1"
	for _, tt := range []struct {
		name, who, want string
		ours            bool
	}{
		{"web2.shop", asker, "10.0.1.2", true},
		{"web2", asker, "10.0.1.2", true},
		{"web2.db", asker, "10.0.1.3", true},
		{"web1.shop", asker, "10.0.0.1 fd00::1", true},
		{"www.shop", asker, "10.0.0.1 10.0.1.2 fd00::1", true},
		{"www", "10.0.1.2", "10.0.0.1 10.0.1.2 fd00::1", true},
		{"aaaaaaaaaaaa.net1", asker, "10.0.0.1 fd00::1", true},
		{"my.name.shop", asker, "10.0.1.2", true},
		{"my.name", asker, "10.0.1.2", true},
		{"lone.my_net", asker, "10.0.0.4", true},
		{"web2", "10.0.0.4", "", true},
		{"nosuch.shop", asker, "", true},
		{"nosuch.db", asker, "", false},
		{"x.net", asker, "", false},
		{"debian.org", asker, "", false},
		{"", asker, "", true},
		{".", asker, "", false},
		{"web2.", asker, "", false},
	} {
		addrs, ours := d.Lookup(tt.name, netip.MustParseAddr(tt.who))
		if got := words(addrs); got != tt.want || ours != tt.ours {
			t.Errorf("%s asks for %q: %s, %t; want %s, %t", tt.who, tt.name, got, ours, tt.want, tt.ours)
		}
	}
	for a, want := range map[string]bool{"10.0.0.1": true, "fd00::1": true, "10.0.1.2": false, "10.0.0.99": false, "192.0.2.1": false} {
		if got := d.Serves(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s is served: %t", a, got)
		}
	}
	if got := d.Name(netip.MustParseAddr("10.0.1.2")); got != "web2.shop" {
		t.Error(got)
	}
}

func words(addrs []netip.Addr) string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// Whatever came and went, the directory is as if only what is there had come.
func TestDirectoryForgets(t *testing.T) {
	word := rapid.SampledFrom([]string{"a", "b", "a.b", "c"})
	rapid.Check(t, func(t *rapid.T) {
		d, now := resolver.NewDirectory("h1"), map[string]datastore.Event{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			id := word.Draw(t, "id")
			e := gone(id)
			if delete(now, id); rapid.Bool().Draw(t, "put") {
				e = put(id, "h1", word.Draw(t, "profile"), word.Draw(t, "network"), word.Draw(t, "name")+","+word.Draw(t, "alias"), "10.0.0."+fmt.Sprint(len(id)+int(id[0])))
				now[id] = e
			}
			d.Apply([]datastore.Event{e})
		}
		fresh := resolver.NewDirectory("h1")
		for _, e := range now {
			fresh.Apply([]datastore.Event{e})
		}
		for _, n := range []string{"a.a", "a.b", "b.a", "a.b.c", "c.a.b", "c", "b"} {
			for _, who := range []string{"10.0.0.98", "10.0.0.99"} {
				got, _ := d.Lookup(n, netip.MustParseAddr(who))
				want, _ := fresh.Lookup(n, netip.MustParseAddr(who))
				if words(got) != words(want) {
					t.Fatalf("%s: %s, want %s", n, words(got), words(want))
				}
			}
		}
	})
}

// Addresses of the loopback network that only this test uses. Port 53 is the only one that resolv.conf knows.
const (
	serverAddr   = "127.77.0.2:53"
	upstreamAddr = "127.77.0.3:53"
)

// serve starts a name server whose one local endpoint is 127.0.0.1, from where the test asks.
func serve(t *testing.T, servers ...string) {
	t.Helper()
	d := resolver.NewDirectory("h1")
	d.Apply([]datastore.Event{
		put("me", "h1", "shop", "", "me", "127.0.0.1"), put("b", "h2", "shop", "", "web2", "10.0.1.2", "fd00::2"),
		put("far", "h2", "shop", "", "far", "127.0.0.5"),
	})
	many := []datastore.Event{}
	for i := range 200 {
		many = append(many, put(fmt.Sprint("m", i), "h2", "shop", "", "many", fmt.Sprintf("10.9.0.%d", i)))
	}
	d.Apply(many)
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	text := ""
	for _, s := range servers {
		text += "nameserver " + s + "\n"
	}
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s, err := resolver.Listen(ctx, resolver.Config{
		Directory: d, Addr: netip.MustParseAddrPort(serverAddr), ResolvConf: conf, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("serve: %v", err)
		}
	})
}

func ask(t *testing.T, network, from, name string, kind uint16) (*dns.Msg, error) {
	t.Helper()
	local := net.Addr(&net.UDPAddr{IP: net.ParseIP(from)})
	if network == "tcp" {
		local = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	c := dns.Client{Net: network, Timeout: 5 * time.Second, Dialer: &net.Dialer{LocalAddr: local}}
	a, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, kind), serverAddr)
	return a, err
}

func TestServer(t *testing.T) {
	upstream := &dns.Server{Addr: upstreamAddr, Net: "udp", Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		a.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 1}, Txt: []string{"upstream"}}}
		_ = w.WriteMsg(a)
	})}
	started := make(chan struct{})
	upstream.NotifyStartedFunc = func() { close(started) }
	ended := make(chan error, 1)
	go func() { ended <- upstream.ListenAndServe() }()
	<-started
	t.Cleanup(func() { _ = upstream.Shutdown(); <-ended })
	serve(t, "127.77.0.2", "127.77.0.4", "127.77.0.3") // itself, nobody, the one that answers

	const me = "127.0.0.1"
	for _, tt := range []struct {
		network, from, name string
		kind                uint16
		rcode               int
		want                string
	}{
		{"udp", me, "web2.shop.", dns.TypeA, dns.RcodeSuccess, "10.0.1.2"},
		{"tcp", me, "WEB2.Shop.", dns.TypeAAAA, dns.RcodeSuccess, "fd00::2"},
		{"udp", me, "web2.", dns.TypeA, dns.RcodeSuccess, "10.0.1.2"},
		{"udp", me, "web2.shop.", dns.TypeMX, dns.RcodeSuccess, ""},
		{"udp", me, "nosuch.shop.", dns.TypeA, dns.RcodeNameError, ""},
		{"udp", me, "2.1.0.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, "web2.shop."},
		{"udp", me, "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, dns.RcodeSuccess, "web2.shop."},
		{"udp", me, "debian.org.", dns.TypeTXT, dns.RcodeSuccess, "upstream"},
		{"udp", "127.0.0.5", "web2.shop.", dns.TypeA, dns.RcodeRefused, ""}, // a container of another host
		{"tcp", "127.0.0.6", "debian.org.", dns.TypeA, dns.RcodeRefused, ""},
	} {
		a, err := ask(t, tt.network, tt.from, tt.name, tt.kind)
		if err != nil {
			t.Errorf("%+v: %v", tt, err)
			continue
		}
		if got := answers(a); a.Rcode != tt.rcode || got != tt.want {
			t.Errorf("%+v: %s %q", tt, dns.RcodeToString[a.Rcode], got)
		}
	}
	// Too much for a datagram: the rest is to be asked for by TCP.
	short, err := ask(t, "udp", me, "many.shop.", dns.TypeA)
	if err != nil || !short.Truncated { // the asker takes no more than 512 bytes
		t.Errorf("truncated %t, %v", short.Truncated, err)
	}
	whole, err := ask(t, "tcp", me, "many.shop.", dns.TypeA)
	if err != nil || len(whole.Answer) != 200 {
		t.Errorf("%d answers, %v", len(whole.Answer), err)
	}
}

func answers(a *dns.Msg) string {
	var out []string
	for _, rr := range a.Answer {
		fields := strings.Fields(rr.String())
		out = append(out, strings.Trim(fields[len(fields)-1], `"`))
	}
	return strings.Join(out, " ")
}

func TestNoUpstream(t *testing.T) {
	serve(t)
	a, err := ask(t, "udp", "127.0.0.1", "debian.org.", dns.TypeA)
	if err != nil || a.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v, %v", a, err)
	}
}

// What is no question at all ends nothing.
func TestRubbish(t *testing.T) {
	serve(t)
	c, err := net.Dial("udp", serverAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, text := range []string{"", "x", strings.Repeat("\x00", 12), strings.Repeat("\xff", 600), "\x12\x34\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01"} {
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if a, err := ask(t, "udp", "127.0.0.1", "web2.shop.", dns.TypeA); err != nil || answers(a) != "10.0.1.2" {
		t.Errorf("%v, %v", a, err)
	}
}
