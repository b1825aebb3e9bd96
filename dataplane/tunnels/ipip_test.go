package tunnels_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/dataplane/tunnels"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/reconcile"
)

// rig is two hosts on two subnets with a router between them, and a workload behind each.
type rig struct {
	t                *testing.T
	a, b, router     *nstest.NS
	podA, podB       *nstest.NS
	tunnelA, tunnelB *tunnels.Applier
}

const (
	hostA, hostB = "172.18.0.2", "172.19.0.2"
	podA, podB   = "10.1.1.2", "10.1.2.2"
)

func prefixes(texts ...string) desired.NetSet {
	var nets []netip.Prefix
	for _, s := range texts {
		nets = append(nets, netip.MustParsePrefix(s))
	}
	return desired.NewNetSet(nets...)
}

// end is the tunnel of one host that knows the other.
func end(local, addr, other string) desired.Tunnel {
	return desired.Tunnel{
		Encap: desired.EncapIPIP, Local: netip.MustParseAddr(local), Uplinks: "eth0", Hosts: prefixes(other + "/32"),
		Addrs: desired.NewAddrSet(netip.MustParseAddr(addr)), MTU: 1480,
	}
}

func endA() desired.Tunnel { return end(hostA, "10.1.1.1", hostB) }
func endB() desired.Tunnel { return end(hostB, "10.1.2.1", hostA) }

func newRig(t *testing.T, clsact bool) *rig {
	r := &rig{t: t, a: nstest.New(t), b: nstest.New(t), router: nstest.New(t), podA: nstest.New(t), podB: nstest.New(t)}
	for _, h := range []struct {
		host, pod              *nstest.NS
		addr, via, inner, veth string
	}{{r.a, r.podA, hostA, "172.18.0.1", podA, "ra"}, {r.b, r.podB, hostB, "172.19.0.1", podB, "rb"}} {
		nstest.Veth(h.host, "eth0", r.router, h.veth)
		h.host.AddAddr("eth0", h.addr+"/24")
		r.router.AddAddr(h.veth, h.via+"/24")
		h.host.Command("ip", "route", "add", "default", "via", h.via)
		nstest.Veth(h.host, "cali1", h.pod, "eth0")
		h.pod.AddAddr("eth0", h.inner+"/32")
		h.pod.Command("ip", "route", "add", "169.254.1.1", "dev", "eth0")
		h.pod.Command("ip", "route", "add", "default", "via", "169.254.1.1")
		h.pod.Command("ip", "link", "set", "eth0", "mtu", "1480")
		h.host.AddAddr("cali1", "169.254.1.1/32")
		h.host.Command("ip", "route", "add", h.inner, "dev", "cali1")
		forward(h.host)
	}
	forward(r.router)
	r.tunnelA, r.tunnelB = r.applier(r.a, clsact), r.applier(r.b, clsact)
	r.put(r.a, r.tunnelA, endA())
	r.put(r.b, r.tunnelB, endB())
	r.a.Command("ip", "route", "add", "10.1.2.0/24", "via", hostB, "dev", "tunl0", "onlink")
	r.b.Command("ip", "route", "add", "10.1.1.0/24", "via", hostA, "dev", "tunl0", "onlink")
	return r
}

func forward(ns *nstest.NS) {
	ns.Do(func() {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			panic(err)
		}
	})
}

func (r *rig) applier(ns *nstest.NS, clsact bool) *tunnels.Applier {
	a := tunnels.New(ns.Handle(), desired.IPIPDevice)
	if clsact {
		a.UseClsact()
	}
	r.t.Cleanup(a.Close)
	return a
}

func (r *rig) put(ns *nstest.NS, a *tunnels.Applier, want desired.Tunnel) {
	r.t.Helper()
	ns.Do(func() {
		if err := a.Put(context.Background(), desired.IPIPDevice, want); err != nil {
			r.t.Fatal(err)
		}
		have, err := a.Dump(context.Background())
		if err != nil || have[desired.IPIPDevice] != want {
			r.t.Fatalf("have\n%+v\nwant\n%+v\n%v", have[desired.IPIPDevice], want, err)
		}
	})
}

// ping sends from workload A to workload B and counts the answers.
func (r *rig) ping(n int, args ...string) (answers int, output string) {
	r.t.Helper()
	out, _ := r.podA.TryCommand("ping", append([]string{"-c", strconv.Itoa(n), "-i", "0.01", "-W", "1"}, append(args, podB)...)...)
	m := regexp.MustCompile(`(\d+) received`).FindStringSubmatch(out)
	if m == nil {
		return 0, out
	}
	answers, _ = strconv.Atoi(m[1])
	return answers, out
}

func (r *rig) mustPing() {
	r.t.Helper()
	if n, out := r.ping(3); n != 3 {
		r.t.Fatalf("%d of 3 answers\n%s\n%s\n%v", n, out, r.a.Command("ip", "-s", "link", "show", "tunl0"), r.counts(r.tunnelA))
	}
}

func (r *rig) counts(a *tunnels.Applier) map[string]uint64 {
	_, counts := a.IPIP()
	return counts
}

// capture runs tcpdump in a namespace until n lines have come, and gives what f caused.
func capture(t *testing.T, ns *nstest.NS, dev, filter string, n int, f func()) string {
	t.Helper()
	done := make(chan string, 1)
	go func() {
		out, _ := ns.TryCommand("timeout", "5", "tcpdump", "--immediate-mode", "-l", "-nn", "-v", "-i", dev, "-c", strconv.Itoa(n), filter)
		done <- out
	}()
	time.Sleep(700 * time.Millisecond) // tcpdump says that it listens on a stream that is read at its end
	f()
	return <-done
}

// hooks runs a test on both hooks.
func hooks(t *testing.T, f func(t *testing.T, clsact bool)) {
	for name, clsact := range map[string]bool{"tcx": false, "clsact": true} {
		t.Run(name, func(t *testing.T) { f(t, clsact) })
	}
}

func TestIPIPCarries(t *testing.T) {
	hooks(t, func(t *testing.T, clsact bool) {
		r := newRig(t, clsact)
		r.mustPing()
		if is, _ := r.tunnelA.IPIP(); is != map[bool]string{false: "programs (tcx)", true: "programs (clsact)"}[clsact] {
			t.Errorf("made by %s", is)
		}
		show := r.a.Command("ip", "addr", "show", "dev", "tunl0")
		for _, word := range []string{"NOARP,UP,LOWER_UP", "mtu 1480", "inet 10.1.1.1/32 scope global tunl0"} {
			if !strings.Contains(show, word) {
				t.Errorf("%q is missing in\n%s", word, show)
			}
		}
		if strings.Contains(show, "inet6") {
			t.Errorf("there is an IPv6 address:\n%s", show)
		}
		if loose := r.a.Command("sysctl", "-n", "net.ipv4.conf.tunl0.rp_filter"); strings.TrimSpace(loose) != "2" {
			t.Errorf("rp_filter of tunl0 is %s", loose)
		}
		// Counters and captures of the device are those of the packets inside, both ways.
		// A packet counts with the 14 bytes of a veth's header, which the kernel's own tunl0 has not.
		stats := r.a.Command("ip", "-s", "link", "show", "tunl0")
		if n := len(regexp.MustCompile(`(?m)^\s+294\s+3\s`).FindAllString(stats, -1)); n != 2 {
			t.Errorf("counters of three packets each way:\n%s", stats)
		}
		seen := capture(t, r.a, "tunl0", "icmp", 2, func() { r.ping(1) })
		if !strings.Contains(seen, "10.1.1.2 > 10.1.2.2: ICMP echo request") || !strings.Contains(seen, "10.1.2.2 > 10.1.1.2: ICMP echo reply") {
			t.Errorf("capture on tunl0:\n%s", seen)
		}
		wire := capture(t, r.router, "ra", "ip proto 4", 1, func() { r.ping(1) })
		for _, want := range []string{`flags \[DF\], proto IPIP \(4\), length 104`, `172.18.0.2 > 172.19.0.2: IP`, `10.1.1.2 > 10.1.2.2: ICMP echo request`} {
			if !regexp.MustCompile(want).MatchString(wire) {
				t.Errorf("%q is missing on the wire:\n%s", want, wire)
			}
		}
	})
}

// TestIPIPBulk sends a stream whole, with segmentation offload and without: merged packets must stay right.
func TestIPIPBulk(t *testing.T) {
	hooks(t, func(t *testing.T, clsact bool) {
		r := newRig(t, clsact)
		for _, offload := range []string{"on", "off"} {
			for _, pod := range []*nstest.NS{r.podA, r.podB} {
				pod.Command("ethtool", "-K", "eth0", "tso", offload, "gso", offload, "gro", offload, "tx", offload)
			}
			for _, way := range []struct {
				from, to *nstest.NS
				addr     string
			}{{r.podA, r.podB, podB}, {r.podB, r.podA, podA}} {
				sent := make([]byte, 8<<20)
				_, _ = rand.Read(sent)
				if got := transfer(t, way.from, way.to, way.addr, sent); !bytes.Equal(got, sent) {
					t.Errorf("offload %s: %d bytes arrived of %d, or others", offload, len(got), len(sent))
				}
			}
		}
	})
}

func transfer(t *testing.T, from, to *nstest.NS, addr string, data []byte) []byte {
	t.Helper()
	var l net.Listener
	var c net.Conn
	var err error
	to.Do(func() { l, err = net.Listen("tcp4", addr+":0") })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan []byte, 1)
	go func() {
		s, err := l.Accept()
		if err != nil {
			got <- nil
			return
		}
		defer s.Close()
		_ = s.SetDeadline(time.Now().Add(20 * time.Second))
		all, _ := io.ReadAll(s)
		got <- all
	}()
	from.Do(func() { c, err = net.DialTimeout("tcp4", l.Addr().String(), 5*time.Second) })
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write(data); err != nil {
		t.Error(err)
	}
	_ = c.Close()
	return <-got
}

// TestIPIPFollowsARouteThatWasChanged: a packet is in tunl0 already when its route is led elsewhere. It goes there.
func TestIPIPFollowsARouteThatWasChanged(t *testing.T) {
	hooks(t, func(t *testing.T, clsact bool) {
		r := newRig(t, clsact)
		r.mustPing()
		r.router.Command("ip", "route", "add", "10.1.2.0/24", "via", hostB)
		r.a.Command("ip", "route", "replace", "10.1.2.0/24", "via", "172.18.0.1")
		// A socket that is bound to the device sends by it whatever the routes say.
		wire := capture(t, r.router, "ra", "src host 10.1.1.1", 1, func() { r.a.Command("ping", "-c", "1", "-W", "2", "-I", "tunl0", podB) })
		if !strings.Contains(wire, "10.1.1.1 > 10.1.2.2: ICMP echo request") || strings.Contains(wire, "IPIP") {
			t.Errorf("on the wire:\n%s", wire)
		}
		if counts := r.counts(r.tunnelA); counts["followed-route"] != 1 || counts["no-route"] != 0 {
			t.Errorf("counted %v", counts)
		}
		r.a.Command("ip", "route", "del", "default")
		r.a.Command("ip", "route", "del", "10.1.2.0/24")
		if out, err := r.a.TryCommand("ping", "-c", "1", "-W", "1", "-I", "tunl0", podB); err == nil {
			t.Errorf("there is no way, and yet:\n%s", out)
		}
		if counts := r.counts(r.tunnelA); counts["no-route"] != 1 {
			t.Errorf("counted %v", counts)
		}
	})
}

// TestIPIPStrangersAreNotHeard: a host that is not known gets nothing in, and is not sent to.
func TestIPIPStrangersAreNotHeard(t *testing.T) {
	r := newRig(t, false)
	stranger := endB()
	stranger.Hosts = prefixes("192.0.2.1/32")
	r.put(r.b, r.tunnelB, stranger)
	if n, out := r.ping(3); n != 0 || r.counts(r.tunnelB)["unknown-host"] < 3 {
		t.Errorf("taken from an unknown host (%v):\n%s", r.counts(r.tunnelB), out)
	}
	r.put(r.b, r.tunnelB, endB())
	r.mustPing()
	lonely := endA()
	lonely.Hosts = prefixes()
	r.put(r.a, r.tunnelA, lonely)
	if n, _ := r.ping(3); n != 0 || r.counts(r.tunnelA)["unknown-host"] < 3 {
		t.Errorf("sent to an unknown host: %v", r.counts(r.tunnelA))
	}
	// A whole network of hosts, as externalNodesList may name.
	wide := endA()
	wide.Hosts = prefixes("172.16.0.0/12")
	r.put(r.a, r.tunnelA, wide)
	r.mustPing()
}

// TestIPIPCongestion follows RFC 6040: the outer header carries the inner one's ECN bits, and a mark set on the way
// arrives, or the packet is dropped where its sender could not know what the mark means.
func TestIPIPCongestion(t *testing.T) {
	r := newRig(t, false)
	const ect0, dscp = 2, 0xb8
	wire := capture(t, r.router, "ra", "ip proto 4", 1, func() { r.ping(1, "-Q", strconv.Itoa(dscp|ect0)) })
	if n := strings.Count(wire, "tos 0xba,ECT(0)"); n != 2 {
		t.Errorf("TOS of both headers:\n%s", wire)
	}
	mark := func(ecn string) {
		r.router.Command("nft", "add table ip t; flush table ip t; add chain ip t f { type filter hook forward priority 0; }; add rule ip t f ip protocol 4 ip ecn set "+ecn)
	}
	mark("ce")
	got := capture(t, r.podB, "eth0", "icmp[icmptype] = 8", 1, func() { r.ping(1, "-Q", strconv.Itoa(dscp|ect0)) })
	if !strings.Contains(got, "tos 0xbb,CE") {
		t.Errorf("a congestion mark got lost:\n%s", got)
	}
	if strings.Contains(got, "bad cksum") {
		t.Errorf("bad checksum after marking:\n%s", got)
	}
	if n, _ := r.ping(3, "-Q", "0"); n != 0 || r.counts(r.tunnelB)["congestion"] != 3 {
		t.Errorf("%d marked packets of a sender without ECN came through, counts %v", n, r.counts(r.tunnelB))
	}
	mark("ect1")
	got = capture(t, r.podB, "eth0", "icmp[icmptype] = 8", 1, func() { r.ping(1, "-Q", strconv.Itoa(ect0)) })
	if !strings.Contains(got, "ECT(1)") {
		t.Errorf("ECT(1) set on the way:\n%s", got)
	}
}

// TestIPIPErrorsReachTheSender: what a router says about an outer packet, the sender of the inner one is told (RFC 2003 §4).
func TestIPIPErrorsReachTheSender(t *testing.T) {
	r := newRig(t, false)
	r.mustPing()
	r.router.Command("ip", "link", "set", "rb", "mtu", "1400")
	_, out := r.ping(2, "-M", "do", "-s", "1400")
	if !regexp.MustCompile(`(?i)from 172\.18\.0\.1 .*frag needed.*mtu = 1380`).MatchString(out) {
		t.Errorf("path MTU of 1400 less 20:\n%s", out)
	}
	if route := r.podA.Command("ip", "route", "get", podB); !strings.Contains(route, "mtu 1380") {
		t.Errorf("the sender has not learnt it: %s", route)
	}
	if n, out := r.ping(2, "-M", "do", "-s", "1352"); n != 2 {
		t.Errorf("what just fits:\n%s", out)
	}
	sent := make([]byte, 1<<20)
	_, _ = rand.Read(sent)
	if got := transfer(t, r.podA, r.podB, podB, sent); !bytes.Equal(got, sent) {
		t.Error("a stream does not adapt to the path MTU")
	}

	r.router.Command("ip", "link", "set", "rb", "mtu", "1500")
	r.router.Command("ip", "route", "add", "unreachable", hostB)
	_, out = r.ping(2)
	if !strings.Contains(out, "From 172.18.0.1 icmp_seq=1 Destination Host Unreachable") {
		t.Errorf("host unreachable:\n%s", out)
	}
	if r.counts(r.tunnelA)["relayed-error"] == 0 {
		t.Errorf("counts %v", r.counts(r.tunnelA))
	}
}

// TestIPIPAnswersWhatDoesNotFit: the underlay takes less than tunl0 promises, and the sender is told (RFC 1191).
func TestIPIPAnswersWhatDoesNotFit(t *testing.T) {
	hooks(t, func(t *testing.T, clsact bool) {
		r := newRig(t, clsact)
		r.a.Command("ip", "link", "set", "eth0", "mtu", "1400")
		_, out := r.ping(2, "-M", "do", "-s", "1400")
		if !regexp.MustCompile(`(?i)from 10\.1\.2\.2 .*frag needed.*mtu = 1380`).MatchString(out) {
			t.Errorf("underlay of 1400 less 20:\n%s", out)
		}
		if n, out := r.ping(2, "-M", "do", "-s", "1352"); n != 2 {
			t.Errorf("what just fits:\n%s", out)
		}
		r.podA.Command("ip", "route", "flush", "cache") // forget the size
		before := r.counts(r.tunnelA)["too-big"]
		if _, out := r.ping(1, "-M", "dont", "-s", "1400"); strings.Contains(strings.ToLower(out), "frag needed") || r.counts(r.tunnelA)["too-big"] != before+1 {
			t.Errorf("a packet that may be fragmented is only counted: %v\n%s", r.counts(r.tunnelA), out)
		}
		sent := make([]byte, 4<<20)
		_, _ = rand.Read(sent)
		if got := transfer(t, r.podA, r.podB, podB, sent); !bytes.Equal(got, sent) {
			t.Error("a stream of merged packets does not adapt")
		}
	})
}

// TestIPIPFragments: the programs cannot put an outer packet together; it goes to the stack, and is counted.
func TestIPIPFragments(t *testing.T) {
	r := newRig(t, false)
	r.router.Command("nft", "add table ip t; add chain ip t f { type filter hook forward priority 0; }; add rule ip t f ip protocol 4 @nh,48,16 set 0x2000")
	if n, _ := r.ping(2); n != 0 || r.counts(r.tunnelB)["fragment"] != 2 {
		t.Errorf("%d answers, counts %v", n, r.counts(r.tunnelB))
	}
}

// TestIPIPHeals: whatever somebody does to the device, its other end, the programs or their maps, it is back within a second.
func TestIPIPHeals(t *testing.T) {
	hooks(t, func(t *testing.T, clsact bool) {
		r := newRig(t, clsact)
		table := reconcile.NewTable(r.tunnelA, reconcile.Options[string]{Name: "tunnels"})
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error, 2)
		want := desired.Tunnels{desired.IPIPDevice: endA()}
		go func() { r.a.Do(func() { done <- table.Run(ctx) }) }()
		go func() { r.a.Do(func() { done <- r.tunnelA.Watch(ctx, table.Dirty) }) }()
		defer func() { stop(); <-done; <-done }()
		table.Set(want)
		route := func() {
			_, _ = r.a.TryCommand("ip", "route", "replace", "10.1.2.0/24", "via", hostB, "dev", "tunl0", "onlink")
		}
		for _, harm := range r.harms(clsact) {
			time.Sleep(20 * time.Millisecond)
			before := table.Status().Healed
			harm.do()
			start := time.Now()
			for table.Status().Healed == before && time.Since(start) < 2*time.Second {
				time.Sleep(5 * time.Millisecond)
				if harm.told {
					table.Dirty() // as the agent does when the kernel tells of a link or an address
				}
			}
			took := time.Since(start)
			route()
			if n, out := r.ping(2); n != 2 || took > 3*time.Second {
				t.Errorf("%s: after %s\n%s\n%+v", harm.what, took, out, table.Status())
			}
			t.Logf("%s: %s", harm.what, took.Round(time.Millisecond))
		}
	})
}

type harm struct {
	what string
	told bool // the kernel tells of it
	do   func()
}

func (r *rig) harms(clsact bool) []harm {
	ip := func(args string) harm {
		return harm{"ip " + args, true, func() { r.a.Command("ip", strings.Fields(args)...) }}
	}
	out := []harm{
		ip("link del tunl0"), ip("link set tunl0 down"), ip("link set tunl0-wire down"), ip("link set tunl0 mtu 1300"),
		ip("link set tunl0 address 66:00:00:00:00:99"), ip("link set tunl0-wire address 66:00:00:00:00:99"),
		ip("link set tunl0 arp on"), ip("addr flush dev tunl0"), ip("addr add 10.9.0.1/24 dev tunl0"),
		{"map of hosts emptied", false, func() { eachMap(r.t, "maneki_hosts", func(m *ebpf.Map) { empty(r.t, m) }) }},
		{"map of hosts with a stranger", false, func() {
			eachMap(r.t, "maneki_hosts", func(m *ebpf.Map) {
				if err := m.Put([8]byte{32, 0, 0, 0, 6, 6, 6, 6}, uint32(1)); err != nil {
					r.t.Error(err)
				}
			})
		}},
		{"configuration zeroed", false, func() {
			eachMap(r.t, "maneki_config", func(m *ebpf.Map) {
				if err := m.Put(uint32(0), make([]byte, m.ValueSize())); err != nil {
					r.t.Error(err)
				}
			})
		}},
	}
	for _, dev := range []string{"eth0", "tunl0-wire"} {
		out = append(out, harm{"program detached from " + dev, false, func() {
			if clsact {
				r.a.Command("tc", "filter", "del", "dev", dev, "ingress")
				return
			}
			r.detach(dev)
		}})
	}
	if clsact {
		out = append(out, harm{"qdisc deleted", false, func() { r.a.Command("tc", "qdisc", "del", "dev", "eth0", "clsact") }})
	}
	return out
}

// detach takes off all tcx programs of an interface.
func (r *rig) detach(dev string) {
	l, err := r.a.Handle().LinkByName(dev)
	if err != nil {
		r.t.Fatal(err)
	}
	r.a.Do(func() {
		found, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: ebpf.AttachTCXIngress})
		if err != nil || len(found.Programs) != 1 {
			r.t.Fatalf("programs of %s: %v, %v", dev, found, err)
		}
		p, err := ebpf.NewProgramFromID(found.Programs[0].ID)
		if err != nil {
			r.t.Fatal(err)
		}
		defer p.Close()
		if err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: l.Attrs().Index, Program: p, Attach: ebpf.AttachTCXIngress}); err != nil {
			r.t.Fatal(err)
		}
	})
}

// eachMap calls f for the maps of a name that this test's programs use: those of the first host.
func eachMap(t *testing.T, name string, f func(*ebpf.Map)) {
	t.Helper()
	own := map[ebpf.MapID]bool{}
	for id, err := ebpf.ProgramID(0), error(nil); ; {
		if id, err = ebpf.ProgramGetNextID(id); err != nil {
			break
		}
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue
		}
		if info, err := p.Info(); err == nil && strings.HasPrefix(info.Name, "maneki_") {
			ids, _ := info.MapIDs()
			for _, m := range ids {
				own[m] = true
			}
		}
		p.Close()
	}
	for id := range own {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue
		}
		if info, err := m.Info(); err == nil && info.Name == name && holds(m, name) {
			f(m)
		}
		m.Close()
	}
}

// holds tells the first host's maps from those of the other, and of any other process on the machine.
func holds(m *ebpf.Map, name string) bool {
	if name == "maneki_hosts" {
		var v uint32
		return m.Lookup(append([]byte{32, 0, 0, 0}, netip.MustParseAddr(hostB).AsSlice()...), &v) == nil
	}
	v := make([]byte, m.ValueSize())
	return m.Lookup(uint32(0), &v) == nil && bytes.Equal(v[:4], netip.MustParseAddr(hostA).AsSlice())
}

func empty(t *testing.T, m *ebpf.Map) {
	var k [8]byte
	var v uint32
	for it := m.Iterate(); it.Next(&k, &v); {
		if err := m.Delete(k); err != nil {
			t.Error(err)
		}
	}
}

// TestIPIPOutlivesTheProcess: the agent goes and another comes, in the middle of a stream of packets, and none is lost.
func TestIPIPOutlivesTheProcess(t *testing.T) {
	hooks(t, func(t *testing.T, clsact bool) {
		r := newRig(t, clsact)
		r.mustPing()
		const packets = 150
		lost := make(chan string, 1)
		go func() {
			n, out := r.ping(packets)
			if n == packets {
				out = ""
			}
			lost <- out
		}()
		for range 5 {
			time.Sleep(200 * time.Millisecond)
			r.tunnelA.Close()
			time.Sleep(50 * time.Millisecond)
			r.tunnelA = r.applier(r.a, clsact)
			r.a.Do(func() {
				if have, err := r.tunnelA.Dump(context.Background()); err != nil || have[desired.IPIPDevice].Broken == "" {
					t.Errorf("a new process takes the old one's programs for its own: %+v, %v", have, err)
				}
			})
			r.put(r.a, r.tunnelA, endA())
		}
		if out := <-lost; out != "" {
			t.Errorf("lost packets:\n%s", out)
		}
	})
}

// TestIPIPLeavesNothing: deleted, the device and every program are gone, also from an interface that was an uplink once.
func TestIPIPLeavesNothing(t *testing.T) {
	hooks(t, func(t *testing.T, clsact bool) {
		ctx := context.Background()
		r := newRig(t, clsact)
		r.a.Command("ip", "link", "add", "eth1", "type", "bridge")
		r.a.Up("eth1")
		two := endA()
		two.Uplinks = "eth0,eth1"
		r.put(r.a, r.tunnelA, two)
		r.tunnelA.Close()
		next := r.applier(r.a, clsact) // which never heard of eth1
		r.put(r.a, next, endA())
		programs := func(dev string) (n int) {
			if clsact {
				return strings.Count(r.a.Command("tc", "filter", "show", "dev", dev, "ingress"), "maneki_decap")
			}
			l, err := r.a.Handle().LinkByName(dev)
			if err != nil {
				t.Fatal(err)
			}
			r.a.Do(func() {
				found, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: ebpf.AttachTCXIngress})
				if err != nil {
					t.Fatal(err)
				}
				n = len(found.Programs)
			})
			return n
		}
		if programs("eth0") == 0 || programs("eth1") != 0 {
			t.Errorf("programs on eth0: %d, on eth1: %d", programs("eth0"), programs("eth1"))
		}
		r.a.Do(func() {
			if err := errors.Join(next.Delete(ctx, desired.IPIPDevice), next.Delete(ctx, desired.IPIPDevice)); err != nil {
				t.Error(err)
			}
			if have, err := next.Dump(ctx); err != nil || len(have) != 0 {
				t.Errorf("after deletion: %v, %v", have, err)
			}
		})
		if out := r.a.Command("ip", "link"); strings.Contains(out, "tunl0") || programs("eth0") != 0 {
			t.Errorf("left over, %d programs:\n%s", programs("eth0"), out)
		}
	})
}

func TestAForeignTunl0Stays(t *testing.T) {
	ctx := context.Background()
	for _, make := range []string{"type bridge", "type vxlan id 5 dstport 4789", "type veth peer name other"} {
		t.Run(make, func(t *testing.T) {
			ns := host(t)
			ns.Command("ip", strings.Fields("link add tunl0 "+make)...)
			a := tunnels.New(ns.Handle(), desired.IPIPDevice)
			defer a.Close()
			ns.Do(func() {
				if err := a.Put(ctx, desired.IPIPDevice, endA()); !errors.Is(err, tunnels.ErrForeign) {
					t.Errorf("put: %v", err)
				}
				if have, err := a.Dump(ctx); err != nil || len(have) != 0 {
					t.Errorf("dump: %v, %v", have, err)
				}
				if err := a.Delete(ctx, desired.IPIPDevice); err != nil {
					t.Error(err)
				}
			})
			if show := ns.Command("ip", "-d", "link", "show", "tunl0"); !strings.Contains(show, strings.Fields(make)[1]) {
				t.Errorf("it is gone: %s", show)
			}
		})
	}
}

// TestIPIPMalformed: outer packets of a known host with nothing sensible inside go no further, and those for another
// address or from nobody known are the stack's.
func TestIPIPMalformed(t *testing.T) {
	r := newRig(t, false)
	src, dst := netip.MustParseAddr(hostB), netip.MustParseAddr(hostA)
	inner := ipv4(netip.MustParseAddr(podB), netip.MustParseAddr(podA), 1, []byte{8, 0, 0, 0, 0, 0, 0, 0})
	six := append([]byte{0x60}, inner[1:]...)
	dead := append([]byte{}, inner...)
	dead[8] = 0 // TTL
	for what, c := range map[string]struct {
		packet []byte
		reason string
	}{
		"no inner header":          {ipv4(src, dst, 4, []byte{0x45, 0, 0}), "malformed"},
		"nothing inside":           {ipv4(src, dst, 4, nil), "malformed"},
		"IPv6 inside":              {ipv4(src, dst, 4, six), "malformed"},
		"inner TTL 0":              {ipv4(src, dst, 4, dead), "malformed"},
		"from a stranger":          {ipv4(netip.MustParseAddr("172.19.0.66"), dst, 4, inner), "unknown-host"},
		"ICMP error about nothing": {ipv4(src, dst, 1, []byte{3, 4, 0, 0, 0, 0, 5, 0, 0x45}), ""},
		"ICMP error about another's packet": {ipv4(src, dst, 1, append([]byte{3, 4, 0, 0, 0, 0, 5, 0},
			ipv4(netip.MustParseAddr("192.0.2.7"), src, 4, inner)...)), ""},
	} {
		before := r.counts(r.tunnelA)
		send(t, r.router, c.packet, dst)
		deadline := time.Now().Add(time.Second)
		after := r.counts(r.tunnelA)
		for ; c.reason != "" && after[c.reason] == before[c.reason] && time.Now().Before(deadline); after = r.counts(r.tunnelA) {
			time.Sleep(5 * time.Millisecond)
		}
		for reason, n := range after {
			want := before[reason]
			if reason == c.reason {
				want++
			}
			if n != want {
				t.Errorf("%s: %s was counted %d times", what, reason, n-before[reason])
			}
		}
	}
	r.mustPing()
}

// ipv4 is a packet as a raw socket takes it; the kernel fills in checksum and length.
func ipv4(src, dst netip.Addr, protocol byte, payload []byte) []byte {
	b := []byte{0x45, 0, byte((20 + len(payload)) >> 8), byte(20 + len(payload)), 0, 1, 0, 0, 64, protocol, 0, 0}
	b = append(append(append(b, src.AsSlice()...), dst.AsSlice()...), payload...)
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	sum = sum&0xffff + sum>>16
	sum = ^(sum&0xffff + sum>>16)
	b[10], b[11] = byte(sum>>8), byte(sum)
	return b
}

func send(t *testing.T, ns *nstest.NS, packet []byte, to netip.Addr) {
	t.Helper()
	ns.Do(func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err == nil {
			err = unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: to.As4()})
			_ = unix.Close(fd)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
}

// TestIPIPOverAFabric: the host's address is on its loopback, and two cables lead to the router, of which the outer packets
// take both.
func TestIPIPOverAFabric(t *testing.T) {
	r := newRig(t, false)
	nstest.Veth(r.a, "eth1", r.router, "ra2")
	r.a.AddAddr("eth1", "172.20.0.2/24")
	r.router.AddAddr("ra2", "172.20.0.1/24")
	r.a.AddAddr("lo", "192.0.2.1/32")
	r.a.Command("ip", "route", "replace", "default", "src", "192.0.2.1", "nexthop", "via", "172.18.0.1", "nexthop", "via", "172.20.0.1")
	r.router.Command("ip", "route", "add", "192.0.2.1", "nexthop", "via", hostA, "nexthop", "via", "172.20.0.2")
	want := endA()
	want.Local, want.Uplinks = netip.MustParseAddr("192.0.2.1"), "eth0,eth1,lo"
	r.put(r.a, r.tunnelA, want)
	other := endB()
	other.Hosts = prefixes("192.0.2.1/32")
	r.put(r.b, r.tunnelB, other)
	r.b.Command("ip", "route", "replace", "10.1.1.0/24", "via", "192.0.2.1", "dev", "tunl0", "onlink")
	r.mustPing()
	for _, way := range []string{"ra", "ra2"} { // the router's answer takes one; both must lead in
		r.router.Command("ip", "route", "replace", "192.0.2.1", "via", map[string]string{"ra": hostA, "ra2": "172.20.0.2"}[way], "dev", way)
		r.mustPing()
	}
}

// TestIPIPNeedsEthernet: the programs would read packets of another kind at the wrong place.
func TestIPIPNeedsEthernet(t *testing.T) {
	r := newRig(t, false)
	r.a.Command("ip", "tuntap", "add", "eth7", "mode", "tun")
	both := endA()
	both.Uplinks = "eth0,eth7"
	r.put(r.a, r.tunnelA, both)
	r.mustPing()
	only := endA()
	only.Uplinks = "eth7"
	r.a.Do(func() {
		err := r.tunnelA.Put(context.Background(), desired.IPIPDevice, only)
		if err == nil || !strings.Contains(err.Error(), "no underlay with Ethernet headers, which IPIP by programs needs: eth7 (none)") {
			t.Errorf("put: %v", err)
		}
	})
}

// TestIPIPThousandHosts: what one host's change costs among a thousand.
func TestIPIPThousandHosts(t *testing.T) {
	r := newRig(t, false)
	many := func(n int) desired.Tunnel {
		want := endA()
		nets := want.Hosts.Prefixes()
		for i := range n {
			nets = append(nets, netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.1/32", 100+i/250, i%250)))
		}
		want.Hosts = desired.NewNetSet(nets...)
		return want
	}
	r.put(r.a, r.tunnelA, many(1000))
	r.put(r.a, r.tunnelA, many(1001))
	r.mustPing()
	r.put(r.a, r.tunnelA, endA())
	r.mustPing()
}
