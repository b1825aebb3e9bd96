package render_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/dataplane/nft"
	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/policy/render"
)

// rig is a host between namespaces that can say anything: three workloads and the
// world outside. They have no addresses of their own, so that nobody answers.
type rig struct {
	t        testing.TB
	host     *nstest.NS
	ends     map[string]*end // "w1", "w2", "w3", "out"
	applier  *nft.Applier
	renderer *render.Renderer

	mu     sync.Mutex
	got    map[uint64][]string // cookie -> who got it
	cookie uint64
	raw    map[bool]int // sockets that send from the host, by IPv4
}

type end struct {
	ns    *nstest.NS
	send  int // packet socket
	index int
	mac   []byte // of the host's interface
}

// addresses of the rig, by family.
func workloadAddr(i int, v4 bool) netip.Addr {
	if v4 {
		return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00::%d", i))
}

func outAddr(i int, v4 bool) netip.Addr {
	if v4 {
		return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd01::%d", i))
}

func hostAddr(v4 bool) netip.Addr {
	if v4 {
		return netip.MustParseAddr("172.18.0.1")
	}
	return netip.MustParseAddr("fd18::1")
}

func newRig(t testing.TB) *rig { return newRigWith(t, render.Options{ReportGroup: 77}) }

func newRigWith(t testing.TB, o render.Options) *rig {
	r := &rig{
		t: t, host: nstest.New(t), ends: map[string]*end{}, got: map[uint64][]string{}, raw: map[bool]int{},
		renderer: render.New(o),
	}
	r.host.Do(func() {
		for _, path := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			must(t, os.WriteFile("/proc/sys/net/"+path, []byte("1"), 0o644))
		}
		for _, path := range []string{"ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter"} {
			must(t, os.WriteFile("/proc/sys/net/"+path, []byte("0"), 0o644))
		}
		a, err := nft.New()
		must(t, err)
		r.applier = a
	})
	t.Cleanup(func() { _ = r.applier.Close() })
	for i := 1; i <= 3; i++ {
		r.attach(fmt.Sprintf("w%d", i), fmt.Sprintf("cali%d", i))
		for _, v4 := range []bool{true, false} {
			r.route(fmt.Sprintf("cali%d", i), workloadAddr(i, v4))
		}
	}
	r.attach("out", "eth0")
	r.host.AddAddr("eth0", "172.18.0.1/24")
	r.host.AddAddr("eth0", "fd18::1/64")
	for i := 1; i <= 3; i++ {
		r.route("eth0", outAddr(i, true))
		r.route("eth0", outAddr(i, false))
	}
	r.host.Do(func() {
		// Checksums are left out.
		must(t, os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_checksum", []byte("0"), 0o644))
	})
	r.listenAtHost()
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// attach makes a namespace behind an interface of the host.
func (r *rig) attach(name, iface string) {
	e := &end{ns: nstest.New(r.t)}
	nstest.Veth(r.host, iface, e.ns, "eth0")
	link, err := r.host.Handle().LinkByName(iface)
	must(r.t, err)
	e.mac = link.Attrs().HardwareAddr
	inside, err := e.ns.Handle().LinkByName("eth0")
	must(r.t, err)
	e.index = inside.Attrs().Index
	e.ns.Do(func() {
		e.send, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		must(r.t, err)
		receive, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		must(r.t, err)
		r.listen(receive, name)
	})
	r.t.Cleanup(func() { _ = unix.Close(e.send) })
	r.ends[name] = e
}

func htons(n uint16) uint16 { return n<<8 | n>>8 }

// route leads an address to an interface whose other end has no address.
func (r *rig) route(iface string, a netip.Addr) {
	link, err := r.host.Handle().LinkByName(iface)
	must(r.t, err)
	family := unix.AF_INET6
	if a.Is4() {
		family = unix.AF_INET
	}
	must(r.t, r.host.Handle().RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: netlink.NewIPNet(a.AsSlice()), Scope: netlink.SCOPE_LINK}))
	must(r.t, r.host.Handle().NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, IP: a.AsSlice(), HardwareAddr: []byte{2, 0, 0, 0, 0, 1}, State: netlink.NUD_PERMANENT, Family: family,
	}))
}

// listen notes the cookies of the packets that a socket gets.
func (r *rig) listen(fd int, name string) {
	timeout := unix.NsecToTimeval((100 * time.Millisecond).Nanoseconds())
	must(r.t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
	must(r.t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for ctx.Err() == nil {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return
			}
			if at, ok := from.(*unix.SockaddrLinklayer); ok && at.Pkttype == unix.PACKET_OUTGOING || n < 8 {
				continue
			}
			r.mu.Lock()
			cookie := binary.BigEndian.Uint64(buf[n-8 : n])
			r.got[cookie] = append(r.got[cookie], name)
			r.mu.Unlock()
		}
	})
	r.t.Cleanup(func() {
		stop()
		wg.Wait()
		_ = unix.Close(fd)
	})
}

// listenAtHost opens raw sockets, which get what has passed the input hook.
func (r *rig) listenAtHost() {
	for _, proto := range protocols() {
		for v4, family := range map[bool]int{true: unix.AF_INET, false: unix.AF_INET6} {
			r.host.Do(func() {
				fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(proto))
				must(r.t, err)
				r.listen(fd, "host")
				if r.raw[v4] == 0 {
					r.raw[v4], err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
					must(r.t, err)
					r.t.Cleanup(func() { _ = unix.Close(r.raw[v4]) })
				}
			})
		}
	}
}

// protocols that the rig speaks; 100 has no ports and no tracker of its own.
func protocols() []uint8 {
	return []uint8{policy.ProtoICMP, policy.ProtoTCP, policy.ProtoUDP, policy.ProtoICMPv6, policy.ProtoSCTP, 100}
}

// apply brings the kernel to what the State says.
func (r *rig) apply(s *policy.State) render.Result {
	r.t.Helper()
	res := r.renderer.Render(s)
	r.put(res.NFT)
	return res
}

func (r *rig) put(want desired.NFT) {
	r.t.Helper()
	ctx := context.Background()
	have, err := r.applier.Dump(ctx)
	must(r.t, err)
	r.applier.Provide(want)
	puts, dels := differences(want, have)
	if errs := r.applier.Apply(ctx, puts, dels); len(errs) > 0 {
		r.t.Fatalf("apply: %v\n%s", errs, want)
	}
}

func differences(want desired.NFT, have map[desired.NFTKey]desired.NFTObject) (puts []nft.Entry, dels []desired.NFTKey) {
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
	return puts, dels
}

// send sends a packet from an end, or from the host itself, and returns its cookie.
func (r *rig) send(from string, p policy.Packet) uint64 {
	r.t.Helper()
	if p.Protocol == 100 { // has nothing by which two connections differ
		must(r.t, r.host.Handle().ConntrackTableFlush(netlink.ConntrackTable))
	}
	r.cookie++
	cookie := 0x1234567800000000 | r.cookie
	b := build(p, cookie)
	var err error
	if from == "host" {
		if p.Dst.Is4() {
			err = unix.Sendto(r.raw[true], b, 0, &unix.SockaddrInet4{Addr: p.Dst.As4()})
		} else {
			err = unix.Sendto(r.raw[false], b, 0, &unix.SockaddrInet6{Addr: p.Dst.As16()})
		}
		if errors.Is(err, unix.EPERM) {
			err = nil // denied on the spot
		}
	} else {
		e := r.ends[from]
		proto := uint16(unix.ETH_P_IPV6)
		if p.Dst.Is4() {
			proto = unix.ETH_P_IP
		}
		to := &unix.SockaddrLinklayer{Protocol: htons(proto), Ifindex: e.index, Halen: 6}
		copy(to.Addr[:], e.mac)
		err = unix.Sendto(e.send, b, 0, to)
	}
	if err != nil {
		r.t.Fatalf("send %s from %s: %v", p, from, err)
	}
	return cookie
}

// arrived waits until what is expected has arrived, and a little for what is not.
func (r *rig) arrived(expected []uint64) map[uint64][]string {
	deadline := time.Now().Add(10 * time.Second) // of a busy machine: what arrives does so at once
	for time.Now().Before(deadline) {
		r.mu.Lock()
		missing := false
		for _, c := range expected {
			missing = missing || len(r.got[c]) == 0
		}
		r.mu.Unlock()
		if !missing {
			break
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(3 * time.Millisecond)
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.got
	r.got = map[uint64][]string{}
	return got
}

// build is a packet whose last eight bytes are the cookie.
func build(p policy.Packet, cookie uint64) []byte {
	var l4 []byte
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.SrcPort), p.DstPort)
	switch p.Protocol {
	case policy.ProtoTCP:
		l4 = append(ports, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0x20, 0, 0, 0, 0, 0) // SYN
	case policy.ProtoUDP:
		l4 = append(ports, 0, 16, 0, 0)
	case policy.ProtoSCTP:
		l4 = append(ports, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 16, 0) // INIT; the cookie is streams and TSN
	case policy.ProtoICMP, policy.ProtoICMPv6:
		l4 = append([]byte{p.Type, p.Code, 0, 0}, ports...) // identifier and sequence number
	}
	l4 = binary.BigEndian.AppendUint64(l4, cookie)
	if p.Protocol == policy.ProtoICMP {
		binary.BigEndian.PutUint16(l4[2:], checksum(l4)) // the host's own ICMP looks at it
	}
	if p.Protocol == policy.ProtoICMPv6 {
		src, dst := p.Src.As16(), p.Dst.As16()
		pseudo := append(append(append([]byte{}, src[:]...), dst[:]...), 0, 0, 0, byte(len(l4)), 0, 0, 0, 58)
		binary.BigEndian.PutUint16(l4[2:], checksum(append(pseudo, l4...)))
	}
	if p.Dst.Is6() {
		b := []byte{0x60, 0, 0, 0, 0, byte(len(l4)), p.Protocol, 64}
		src, dst := p.Src.As16(), p.Dst.As16()
		return append(append(append(b, src[:]...), dst[:]...), l4...)
	}
	b := []byte{0x45, 0, 0, byte(20 + len(l4)), 0, 1, 0, 0, 64, p.Protocol, 0, 0}
	src, dst := p.Src.As4(), p.Dst.As4()
	b = append(append(b, src[:]...), dst[:]...)
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	return append(b, l4...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
