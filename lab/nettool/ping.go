// Package nettool is the handful of network tools that a lab needs inside its
// namespaces and that a minimal machine does not have: ping, a listener that
// says who called, its client, and listings of addresses and routes. Their
// output has the form of the well-known tools.
package nettool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// PingOptions are the flags of ping.
type PingOptions struct {
	Count    int           // packets to send; 0 means until the context ends
	Interval time.Duration // between packets, at least 1 ms
	Wait     time.Duration // for the last answers
	Size     int           // bytes after the ICMP header, 0 to 65507
	Quiet    bool          // only the first line and the summary
	// DontFragment forbids fragmenting and makes a packet larger than the path
	// fail, as `ping -M do`.
	DontFragment bool
	Source       netip.Addr // zero: chosen by the kernel
}

// Check refuses options that make no sense.
func (o PingOptions) Check() error {
	switch {
	case o.Count < 0:
		return fmt.Errorf("count %d is not allowed, want 0 (no end) or more", o.Count)
	case o.Interval < time.Millisecond:
		return fmt.Errorf("interval %s is not allowed, want 1ms or more", o.Interval)
	case o.Wait <= 0:
		return fmt.Errorf("wait %s is not allowed, want more than 0", o.Wait)
	case o.Size < 0 || o.Size > 65507:
		return fmt.Errorf("size %d is not allowed, want 0 to 65507", o.Size)
	}
	return nil
}

// PingResult counts what came back.
type PingResult struct {
	Sent, Received, Duplicates int
	Min, Sum, Max              time.Duration
}

// Loss is the share of packets without an answer, in percent, rounded up, so
// that 0 means none at all.
func (r PingResult) Loss() int {
	if r.Sent == 0 {
		return 0
	}
	return int(math.Ceil(float64(r.Sent-r.Received) * 100 / float64(r.Sent)))
}

// pinger is one run of Ping.
type pinger struct {
	opts   PingOptions
	dst    netip.Addr
	family icmpFamily
	conn   *icmp.PacketConn
	id     int

	mu     sync.Mutex
	out    io.Writer
	sentAt map[int]time.Time // by sequence number; zero once answered
	result PingResult
	all    chan struct{} // closed when every packet has its answer
	closed bool
	ended  bool // nothing more is sent
}

// interruptWait bounds how long an interrupted ping waits for packets that are
// on their way.
const interruptWait = 200 * time.Millisecond

// icmpFamily is what differs between ICMP (RFC 792) and ICMPv6 (RFC 4443).
type icmpFamily struct {
	network, any   string
	protocol       int
	request, reply icmp.Type
}

func familyOf(a netip.Addr) icmpFamily {
	if a.Is4() {
		return icmpFamily{"ip4:icmp", "0.0.0.0", 1, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply}
	}
	return icmpFamily{"ip6:ipv6-icmp", "::", 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply}
}

// Ping sends echo requests to dst and writes what comes back to out. The time
// to live that it prints is the one of the received packet. It ends after
// opts.Count answers, after opts.Wait, or when ctx ends; the result is valid
// in every case, and also when sending failed.
func Ping(ctx context.Context, out io.Writer, dst netip.Addr, opts PingOptions) (PingResult, error) {
	if err := opts.Check(); err != nil {
		return PingResult{}, err
	}
	dst = dst.Unmap()
	p := &pinger{
		opts: opts, dst: dst, family: familyOf(dst), out: out,
		id: rand.IntN(1 << 16), sentAt: map[int]time.Time{}, all: make(chan struct{}),
	}
	if err := p.open(); err != nil {
		return PingResult{}, err
	}
	p.print(fmt.Sprintf("PING %s (%s): %d data bytes\n", dst, dst, opts.Size))
	var reader sync.WaitGroup
	reader.Go(p.read)
	p.send(ctx)
	p.await(ctx)
	err := p.conn.Close() // ends the reader
	reader.Wait()
	p.summary()
	return p.result, err
}

func (p *pinger) open() error {
	listen := p.family.any
	if p.opts.Source.IsValid() {
		listen = p.opts.Source.String()
	}
	conn, err := icmp.ListenPacket(p.family.network, listen)
	if err != nil {
		return fmt.Errorf("open raw socket: %w", err)
	}
	p.conn = conn
	if p.dst.Is4() {
		err = conn.IPv4PacketConn().SetControlMessage(ipv4.FlagTTL, true)
	} else {
		err = conn.IPv6PacketConn().SetControlMessage(ipv6.FlagHopLimit, true)
	}
	if err == nil && p.opts.DontFragment {
		err = p.dontFragment()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("prepare raw socket: %w", err), conn.Close())
	}
	return nil
}

func (p *pinger) dontFragment() error {
	level, option, value := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	var under net.PacketConn
	if p.dst.Is4() {
		under = p.conn.IPv4PacketConn().PacketConn
	} else {
		level, option, value = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
		under = p.conn.IPv6PacketConn().PacketConn
	}
	ip, ok := under.(*net.IPConn)
	if !ok {
		return errors.New("no access to the socket")
	}
	sys, err := ip.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = sys.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), level, option, value) })
	return errors.Join(err, serr)
}

func (p *pinger) print(text string) { _, _ = io.WriteString(p.out, text) }

// send sends the requests, one per interval.
func (p *pinger) send(ctx context.Context) {
	tick := time.NewTicker(p.opts.Interval)
	defer tick.Stop()
	for seq := 0; p.opts.Count == 0 || seq < p.opts.Count; seq++ {
		p.sendOne(seq)
		if p.opts.Count != 0 && seq == p.opts.Count-1 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (p *pinger) sendOne(seq int) {
	body := make([]byte, p.opts.Size)
	if len(body) >= 8 {
		binary.BigEndian.PutUint64(body, uint64(time.Now().UnixNano()))
	}
	m := icmp.Message{Type: p.family.request, Body: &icmp.Echo{ID: p.id, Seq: seq & 0xffff, Data: body}}
	packet, err := m.Marshal(nil) // the kernel fills in the ICMPv6 checksum
	if err == nil {
		p.mu.Lock()
		p.sentAt[seq&0xffff] = time.Now()
		p.result.Sent++
		p.mu.Unlock()
		_, err = p.conn.WriteTo(packet, &net.IPAddr{IP: p.dst.AsSlice()})
	}
	if err != nil {
		p.mu.Lock()
		p.print(fmt.Sprintf("ping: sendto: %s\n", reason(err)))
		p.mu.Unlock()
	}
}

// reason is the kernel's word for an error, as other tools print it.
func reason(err error) string {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	text := errno.Error()
	return strings.ToUpper(text[:1]) + text[1:]
}

// await waits for the answers to the last packets. After an interruption it
// waits for those that are on their way only, so that the packet sent last does
// not count as lost.
func (p *pinger) await(ctx context.Context) {
	wait := p.opts.Wait
	interrupted := ctx.Err() != nil
	if interrupted {
		wait = min(wait, interruptWait)
	}
	p.mu.Lock()
	p.ended = true
	p.checkAll()
	p.mu.Unlock()
	last := time.NewTimer(wait)
	defer last.Stop()
	if interrupted {
		select {
		case <-p.all:
		case <-last.C:
		}
		return
	}
	select {
	case <-p.all:
	case <-ctx.Done():
	case <-last.C:
	}
}

// checkAll closes p.all when nothing more can come; p.mu is held.
func (p *pinger) checkAll() {
	if p.ended && p.result.Received >= p.result.Sent && !p.closed {
		p.closed = true
		close(p.all)
	}
}

// read handles packets until the socket is closed.
func (p *pinger) read() {
	buf := make([]byte, 1<<16)
	for {
		n, ttl, from, err := p.receive(buf)
		now := time.Now()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an asynchronous error, such as the queue's; the summary shows the loss
		}
		p.handle(buf[:n], ttl, from, now)
	}
}

func (p *pinger) receive(buf []byte) (n, ttl int, from string, err error) {
	var peer net.Addr
	if p.dst.Is4() {
		var cm *ipv4.ControlMessage
		n, cm, peer, err = p.conn.IPv4PacketConn().ReadFrom(buf)
		if cm != nil {
			ttl = cm.TTL
		}
	} else {
		var cm *ipv6.ControlMessage
		n, cm, peer, err = p.conn.IPv6PacketConn().ReadFrom(buf)
		if cm != nil {
			ttl = cm.HopLimit
		}
	}
	if peer != nil {
		from = peer.String()
	}
	return n, ttl, from, err
}

func (p *pinger) handle(packet []byte, ttl int, from string, now time.Time) {
	m, err := icmp.ParseMessage(p.family.protocol, packet)
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch body := m.Body.(type) {
	case *icmp.Echo:
		if m.Type == p.family.reply && body.ID == p.id {
			p.answered(body.Seq, len(packet), ttl, from, now)
		}
	case *icmp.DstUnreach:
		p.failed(body.Data, from, unreachable(p.dst.Is4(), m.Code))
	case *icmp.TimeExceeded:
		p.failed(body.Data, from, "Time to live exceeded")
	case *icmp.PacketTooBig:
		p.failed(body.Data, from, fmt.Sprintf("Packet too big (mtu %d)", body.MTU))
	}
}

func (p *pinger) answered(seq, size, ttl int, from string, now time.Time) {
	at, known := p.sentAt[seq]
	if !known {
		return
	}
	note := ""
	if at.IsZero() {
		p.result.Duplicates++
		note = " (DUP!)"
	} else {
		rtt := now.Sub(at)
		p.sentAt[seq] = time.Time{}
		p.count(rtt)
		note = fmt.Sprintf(" time=%s ms", millis(rtt))
	}
	if !p.opts.Quiet {
		p.print(fmt.Sprintf("%d bytes from %s: seq=%d ttl=%d%s\n", size, from, seq, ttl, note))
	}
	p.checkAll()
}

func (p *pinger) count(rtt time.Duration) {
	if p.result.Received == 0 || rtt < p.result.Min {
		p.result.Min = rtt
	}
	p.result.Max = max(p.result.Max, rtt)
	p.result.Sum += rtt
	p.result.Received++
}

// failed prints an ICMP error if the packet it quotes is one of ours.
func (p *pinger) failed(quoted []byte, from, text string) {
	header := ipv6.HeaderLen
	if p.dst.Is4() {
		if len(quoted) < 1 {
			return
		}
		header = int(quoted[0]&0x0f) * 4
	}
	if len(quoted) < header+8 || int(binary.BigEndian.Uint16(quoted[header+4:])) != p.id {
		return
	}
	if !p.opts.Quiet {
		p.print(fmt.Sprintf("From %s: seq=%d %s\n", from, binary.BigEndian.Uint16(quoted[header+6:]), text))
	}
}

// unreachable names the codes of RFC 792 and RFC 1812, RFC 4443.
func unreachable(v4 bool, code int) string {
	names := []string{
		"Destination Net Unreachable", "Destination Host Unreachable", "Destination Protocol Unreachable",
		"Destination Port Unreachable", "Frag needed and DF set",
	}
	if !v4 {
		names = []string{
			"No route to destination", "Administratively prohibited", "Beyond scope of source address",
			"Address unreachable", "Port unreachable",
		}
	}
	if code >= 0 && code < len(names) {
		return names[code]
	}
	if v4 && (code == 9 || code == 10 || code == 13) {
		return "Packet filtered"
	}
	return fmt.Sprintf("Destination unreachable (code %d)", code)
}

func millis(d time.Duration) string { return fmt.Sprintf("%.3f", float64(d.Nanoseconds())/1e6) }

func (p *pinger) summary() {
	p.print(fmt.Sprintf("\n--- %s ping statistics ---\n", p.dst))
	p.print(fmt.Sprintf("%s\n", p.result))
	if p.result.Received > 0 {
		avg := p.result.Sum / time.Duration(p.result.Received)
		p.print(fmt.Sprintf("round-trip min/avg/max = %s/%s/%s ms\n", millis(p.result.Min), millis(avg), millis(p.result.Max)))
	}
}

// String is the line "3 packets transmitted, 3 packets received, 0% packet loss".
func (r PingResult) String() string {
	dup := ""
	if r.Duplicates > 0 {
		dup = fmt.Sprintf("%d duplicates, ", r.Duplicates)
	}
	return fmt.Sprintf("%d packets transmitted, %d packets received, %s%d%% packet loss", r.Sent, r.Received, dup, r.Loss())
}

// ParseTarget reads an address, or a name of /etc/hosts.
func ParseTarget(text string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return a, nil
	}
	raw, err := os.ReadFile("/etc/hosts")
	if err == nil {
		for line := range strings.Lines(string(raw)) {
			fields := strings.Fields(line)
			for i := 1; i < len(fields); i++ {
				if a, err := netip.ParseAddr(fields[0]); err == nil && fields[i] == text {
					return a, nil
				}
			}
		}
	}
	return netip.Addr{}, fmt.Errorf("%q is neither an IP address nor a name in /etc/hosts", text)
}
