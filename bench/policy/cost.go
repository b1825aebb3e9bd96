package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/dataplane/nft"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/policy/render"
)

// subject is one way to filter.
type subject struct {
	name string
	set  func(t topology, a *nft.Applier) error
}

func subjects() []subject {
	out := []subject{{"no filter", func(topology, *nft.Applier) error { return nil }}}
	for _, n := range []int{0, 10, 1000, 10_000} {
		out = append(out, subject{fmt.Sprintf("maneki, %d rules", n), func(_ topology, a *nft.Applier) error { return install(a, listState(n)) }})
	}
	for _, n := range []int{100, 100_000} {
		out = append(out, subject{fmt.Sprintf("maneki, selector of %d", n), func(_ topology, a *nft.Applier) error { return install(a, setState(n)) }})
	}
	for _, n := range []int{10, 1000, 10_000} {
		out = append(out, subject{fmt.Sprintf("maneki, %d policies, a selector each", n), func(_ topology, a *nft.Applier) error { return install(a, manyState(n)) }})
	}
	out = append(out, subject{"maneki, 1000 policies, a port each", func(_ topology, a *nft.Applier) error { return install(a, portsState(1000)) }})
	for _, n := range []int{10, 1000, 10_000} {
		out = append(out, subject{fmt.Sprintf("nft linear, %d rules", n), func(t topology, _ *nft.Applier) error { return t.host.input(linear(n, false), "nft", "-f", "-") }})
	}
	out = append(out, subject{"nft linear, 10000 rules, ct first", func(t topology, _ *nft.Applier) error { return t.host.input(linear(10_000, true), "nft", "-f", "-") }})
	for _, n := range []int{100, 100_000} {
		out = append(out, subject{fmt.Sprintf("nft, one rule with a set of %d", n), func(t topology, _ *nft.Applier) error { return t.host.input(plainSet(n), "nft", "-f", "-") }})
	}
	for _, n := range []int{10, 1000, 10_000} {
		out = append(out, subject{fmt.Sprintf("iptables-legacy linear, %d rules", n), func(t topology, _ *nft.Applier) error {
			return t.host.input(legacy(n), "iptables-legacy-restore")
		}})
	}
	return out
}

// address is the i-th of those in lists; none of them is the client's.
func address(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)})
}

func linear(n int, ctFirst bool) string {
	var b strings.Builder
	b.WriteString("table ip bench {\nchain forward {\ntype filter hook forward priority 0; policy accept;\n")
	if ctFirst {
		b.WriteString("ct state established,related accept\n")
	}
	writeOthers(&b, nftOther, n-1)
	b.WriteString("ip saddr 10.0.0.0/24 accept\ndrop\n}\n}\n")
	return b.String()
}

// A rule about another client than the one that measures, for nft and for
// iptables-restore.
const (
	nftOther    = "ip saddr %s tcp dport 8000-8100 accept\n"
	legacyOther = "-A FORWARD -s %s/32 -p tcp -m tcp --dport 8000:8100 -j ACCEPT\n"
)

// writeOthers writes n rules that do not match.
func writeOthers(b *strings.Builder, rule string, n int) {
	for i := range n {
		fmt.Fprintf(b, rule, address(i))
	}
}

// plainSet is one rule that accepts the members of a set, of which the last is
// the client.
func plainSet(n int) string {
	var b strings.Builder
	b.WriteString("table ip bench {\nset members {\ntype ipv4_addr;\nelements = { ")
	for i := range n - 1 {
		fmt.Fprintf(&b, "%s, ", address(i))
	}
	b.WriteString("10.0.0.1 }\n}\nchain forward {\ntype filter hook forward priority 0; policy accept;\n")
	b.WriteString("ct state established,related accept\nip saddr @members accept\ndrop\n}\n}\n")
	return b.String()
}

func legacy(n int) string {
	var b strings.Builder
	b.WriteString("*filter\n:FORWARD ACCEPT [0:0]\n")
	writeOthers(&b, legacyOther, n-1)
	b.WriteString("-A FORWARD -s 10.0.0.0/24 -j ACCEPT\n-A FORWARD -j DROP\nCOMMIT\n")
	return b.String()
}

func gnp(name string) policy.ID { return policy.ID{Kind: "GlobalNetworkPolicy", Name: name} }

func anything(do policy.Action) policy.Rule {
	return policy.Rule{Do: do, Src: policy.Entity{AnyPort: true}, Dst: policy.Entity{AnyPort: true}}
}

func allowFrom(i int, net netip.Prefix) policy.Rule {
	r := anything(policy.Allow)
	r.Index, r.Protocol, r.Src.Nets = i, policy.ProtoTCP, []netip.Prefix{net}
	r.Dst.AnyPort, r.Dst.Ports = false, []policy.PortRange{{From: 8000, To: 8000}}
	return r
}

// workloads are client and server, the server's ingress with these policies.
func workloads(policies ...*policy.Policy) *policy.State {
	allow := policy.ID{Kind: "Profile", Name: "allow"}
	s := &policy.State{
		Endpoints: map[desired.EndpointKey]*policy.Endpoint{}, Sets: map[policy.SetID]*policy.Set{},
		Policies: map[policy.ID]*policy.Policy{allow: {ID: allow, Ingress: []policy.Rule{anything(policy.Allow)}, Egress: []policy.Rule{anything(policy.Allow)}}},
		Options:  policy.Options{InterfacePrefix: "cali"},
	}
	tier := policy.Tier{Name: "default", EndDeny: true}
	for _, p := range policies {
		p.Tier = "default"
		s.Policies[p.ID] = p
		tier.Policies = append(tier.Policies, p.ID)
	}
	for i, name := range []string{"client", "server"} {
		ep := &policy.Endpoint{Key: desired.EndpointKey{Namespace: "default", Name: name}, Interface: fmt.Sprintf("cali%d", i+1), Profiles: []policy.ID{allow}}
		if name == "server" && len(policies) > 0 {
			ep.Normal.Ingress = []policy.Tier{tier}
		}
		s.Endpoints[ep.Key] = ep
	}
	return s
}

// listState is n rules in one policy, of which the last matches the client.
func listState(n int) *policy.State {
	if n == 0 {
		return workloads()
	}
	var rules []policy.Rule
	for i := range n - 1 {
		rules = append(rules, allowFrom(i, netip.PrefixFrom(address(i), 32)))
	}
	return workloads(&policy.Policy{ID: gnp("list"), Ingress: append(rules, allowFrom(n-1, netip.MustParsePrefix("10.0.0.1/32")))})
}

// setState is one rule about a selector with n members.
func setState(n int) *policy.State {
	var list []desired.Member
	for i := range n - 1 {
		list = append(list, desired.Member{Net: netip.PrefixFrom(address(i), 32)})
	}
	list = append(list, desired.Member{Net: netip.MustParsePrefix("10.0.0.1/32")})
	r := anything(policy.Allow)
	r.Src.Set = "s:bench"
	s := workloads(&policy.Policy{ID: gnp("selector"), Ingress: []policy.Rule{r}})
	s.Sets["s:bench"] = &policy.Set{ID: "s:bench", Kind: policy.Addresses, Members: desired.NewMembers(list...)}
	return s
}

// manyState is n policies on the server, each with a selector of its own; the
// last matches.
func manyState(n int) *policy.State {
	var list []*policy.Policy
	sets := map[policy.SetID]*policy.Set{}
	for i := range n {
		r := anything(policy.Allow)
		r.Src.Set = policy.SetID(fmt.Sprintf("s:%d", i))
		net := netip.PrefixFrom(address(i), 32)
		if i == n-1 {
			net = netip.MustParsePrefix("10.0.0.1/32")
		}
		sets[r.Src.Set] = &policy.Set{ID: r.Src.Set, Kind: policy.Addresses, Members: desired.NewMembers(desired.Member{Net: net})}
		list = append(list, &policy.Policy{ID: gnp(fmt.Sprintf("p%04d", i)), Ingress: []policy.Rule{r}})
	}
	s := workloads(list...)
	s.Sets = sets
	return s
}

// portsState is n policies on the server that name the same 10 000 peers, each
// with a port of its own; the last matches.
func portsState(n int) *policy.State {
	s := setState(10_000)
	members := s.Sets["s:bench"]
	var list []*policy.Policy
	for i := range n {
		r := anything(policy.Allow)
		r.Src.Set, r.Protocol, r.Dst.AnyPort = "s:bench", policy.ProtoTCP, false
		r.Dst.Ports = []policy.PortRange{{From: uint16(port - n + 1 + i), To: uint16(port - n + 1 + i)}}
		list = append(list, &policy.Policy{ID: gnp(fmt.Sprintf("p%04d", i)), Ingress: []policy.Rule{r}})
	}
	s = workloads(list...)
	s.Sets["s:bench"] = members
	return s
}

// install replaces the table by what a state renders to.
func install(a *nft.Applier, s *policy.State) error {
	return put(a, render.New(render.Options{ReportGroup: policy.ReportGroup}).Render(s).NFT)
}

func put(a *nft.Applier, want desired.NFT) error {
	have, err := a.Dump(context.Background())
	if err != nil {
		return err
	}
	a.Provide(want)
	var puts []nft.Entry
	var dels []desired.NFTKey
	for k, o := range want.Objects {
		if h, ok := have[k]; !ok || h != o {
			puts = append(puts, nft.Entry{Key: k, Value: o})
		}
	}
	for k := range have {
		if _, ok := want.Objects[k]; !ok {
			dels = append(dels, k)
		}
	}
	for _, err := range a.Apply(context.Background(), puts, dels) {
		return err
	}
	return nil
}

func clear(t topology, a *nft.Applier) error {
	return errors.Join(put(a, desired.NFT{}), t.host.run("nft", "flush", "ruleset"), t.host.input("*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n", "iptables-legacy-restore"))
}

type result struct{ rr, crr, gbit []float64 }

func cost(rounds int, d time.Duration, only *regexp.Regexp) error {
	t, err := newTopology()
	if err != nil {
		return err
	}
	var a *nft.Applier
	if err := t.host.do(func() (err error) { a, err = nft.New(); return err }); err != nil {
		return err
	}
	defer a.Close()
	stop, err := serve(t)
	if err != nil {
		return err
	}
	defer stop()
	list, results := subjects(), map[string]*result{}
	list = slices.DeleteFunc(list, func(s subject) bool { return !only.MatchString(s.name) })
	for range rounds {
		for _, s := range list {
			if err := clear(t, a); err != nil {
				return err
			}
			if err := s.set(t, a); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if results[s.name] == nil {
				results[s.name] = &result{}
			}
			if err := measure(t, d, results[s.name]); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	fmt.Println("| filter | round trip p50, us | new connections per second | one stream, Gbit/s |")
	fmt.Println("|---|---|---|---|")
	for _, s := range list {
		r := results[s.name]
		fmt.Printf("| %s | %.1f | %.0f | %.1f |\n", s.name, median(r.rr), median(r.crr), median(r.gbit))
	}
	return nil
}

const port = 8000

// serve echoes small messages, and swallows streams that begin with 's'.
func serve(t topology) (stop func(), err error) {
	var l net.Listener
	err = t.server.do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf("10.0.0.2:%d", port))
		return err
	})
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 64<<10)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if buf[0] == 's' {
						_, _ = io.Copy(io.Discard, c)
						return
					}
					if _, err := c.Write(buf[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return func() { _ = l.Close() }, nil
}

func dial(t topology) (c *net.TCPConn, err error) {
	err = t.client.do(func() error {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("10.0.0.2:%d", port), 3*time.Second)
		if err == nil {
			c = conn.(*net.TCPConn)
		}
		return err
	})
	return c, err
}

func measure(t topology, d time.Duration, r *result) error {
	c, err := dial(t)
	if err != nil {
		return err
	}
	var times []time.Duration
	buf := make([]byte, 64)
	for end := time.Now().Add(d); time.Now().Before(end); {
		begin := time.Now()
		if _, err := c.Write(buf); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return err
		}
		times = append(times, time.Since(begin))
	}
	_ = c.Close()
	r.rr = append(r.rr, float64(percentile(times, 0.5).Nanoseconds())/1000)
	n, err := connections(t, d)
	if err != nil {
		return err
	}
	r.crr = append(r.crr, float64(n)/d.Seconds())
	if c, err = dial(t); err != nil {
		return err
	}
	defer c.Close()
	chunk := make([]byte, 256<<10)
	chunk[0] = 's'
	sent := 0
	for end := time.Now().Add(d); time.Now().Before(end); {
		n, err := c.Write(chunk)
		if err != nil {
			return err
		}
		sent += n
	}
	r.gbit = append(r.gbit, float64(sent)*8/d.Seconds()/1e9)
	return nil
}

// connections opens connections, one byte each way and a reset, by two workers.
func connections(t topology, d time.Duration) (int, error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	total, failed := 0, error(nil)
	for range 2 {
		wg.Go(func() {
			n := 0
			err := t.client.do(func() error {
				for end := time.Now().Add(d); time.Now().Before(end); n++ {
					if err := connectOnce(); err != nil {
						return err
					}
				}
				return nil
			})
			mu.Lock()
			total, failed = total+n, errors.Join(failed, err)
			mu.Unlock()
		})
	}
	wg.Wait()
	return total, failed
}

// connectOnce uses plain system calls: the thread's namespace is that of the
// socket, and the runtime's poller is none of what is measured.
func connectOnce() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{10, 0, 0, 2}, Port: port}); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	b := []byte{0}
	if _, err := unix.Write(fd, b); err != nil {
		return err
	}
	_, err = unix.Read(fd, b)
	return err
}
