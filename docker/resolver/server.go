package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// DefaultAddr is where containers find the name server: the address of their gateway.
func DefaultAddr() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{169, 254, 1, 1}), 53)
}

// DefaultResolvConf names the host's own name servers.
const DefaultResolvConf = "/etc/resolv.conf"

// Bounds.
const (
	atOnce       = 256             // questions being answered; what is more is dropped, and asked again
	connections  = 64              // by TCP
	idleTime     = 5 * time.Second // of a TCP connection
	upstreamTime = 2 * time.Second // for one name server
	maxUpstreams = 3               // as in resolv.conf(5)
	ttl          = 5               // seconds for which an answer may be kept: containers come and go
)

// Config is what a Server is made of. Directory and Log must be set.
type Config struct {
	Directory  *Directory
	Log        *slog.Logger
	Addr       netip.AddrPort // zero: DefaultAddr
	ResolvConf string         // empty: DefaultResolvConf
}

// Server answers questions. Listen makes one.
type Server struct {
	Config
	udp   net.PacketConn
	tcp   net.Listener
	slots chan struct{}
}

// Listen opens the sockets. The address need not be the host's yet.
func Listen(ctx context.Context, c Config) (*Server, error) {
	if !c.Addr.IsValid() {
		c.Addr = DefaultAddr()
	}
	if c.ResolvConf == "" {
		c.ResolvConf = DefaultResolvConf
	}
	lc := net.ListenConfig{Control: freebind}
	udp, err := lc.ListenPacket(ctx, "udp", c.Addr.String())
	if err != nil {
		return nil, fmt.Errorf("listen for names: %w", err)
	}
	tcp, err := lc.Listen(ctx, "tcp", c.Addr.String())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for names: %w", err), udp.Close())
	}
	return &Server{Config: c, udp: udp, tcp: netutil.LimitListener(tcp, connections), slots: make(chan struct{}, atOnce)}, nil
}

// freebind lets a socket be bound before the routes table has made the address the host's (ip(7)).
func freebind(network, addr string, conn syscall.RawConn) (err error) {
	ctlErr := conn.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) })
	return errors.Join(err, ctlErr, Share(network, addr, conn))
}

// Share lets a socket be bound beside the name server's (SO_REUSEPORT of socket(7)), for net.ListenConfig.
func Share(_, _ string, conn syscall.RawConn) (err error) {
	ctlErr := conn.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	return errors.Join(err, ctlErr)
}

// Close gives up a Server that was never served.
func (s *Server) Close() error { return errors.Join(s.udp.Close(), s.tcp.Close()) }

// Serve answers until ctx ends and returns the context's error.
func (s *Server) Serve(ctx context.Context) error {
	idle := func() time.Duration { return idleTime }
	servers := []*dns.Server{
		{PacketConn: s.udp, Handler: s},
		{Listener: s.tcp, Handler: s, ReadTimeout: idleTime, WriteTimeout: idleTime, IdleTimeout: idle, MaxTCPQueries: 128},
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, server := range servers {
		g.Go(server.ActivateAndServe)
	}
	g.Go(func() error {
		<-ctx.Done()
		// Nobody waits for the end of the other's: closing what they read from ends both.
		_ = s.Close()
		return ctx.Err()
	})
	err := g.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// ServeDNS answers one question.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	defer func() {
		if r := recover(); r != nil { // one bad question never ends the agent
			s.Log.Error("a question for a name ended in a panic", "panic", r)
		}
	}()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return
	}
	who := source(w.RemoteAddr())
	if len(q.Question) != 1 || q.Response || !s.Directory.Serves(who) {
		reply(w, new(dns.Msg).SetRcode(q, dns.RcodeRefused))
		return
	}
	if a := s.answer(q, who); a != nil {
		fit(w, q, a)
		reply(w, a)
		return
	}
	a, err := s.forward(q, w.RemoteAddr().Network())
	if err != nil {
		s.Log.Debug("name not resolved", "name", q.Question[0].Name, "err", err)
		a = new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	}
	reply(w, a)
}

// reply ignores an error: whoever asked is gone, or asks again.
func reply(w dns.ResponseWriter, a *dns.Msg) { _ = w.WriteMsg(a) }

func source(a net.Addr) netip.Addr {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr().Unmap()
}

// fit keeps an answer by UDP within what the asker takes (RFC 1035 §4.2.1, RFC 6891 §6.2.3).
func fit(w dns.ResponseWriter, q, a *dns.Msg) {
	size := dns.MaxMsgSize
	if w.RemoteAddr().Network() == "udp" {
		size = dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = max(size, min(int(o.UDPSize()), 1232))
		}
	}
	a.Truncate(size)
}

// answer is what the directory knows; nil for a name that is none of ours.
func (s *Server) answer(q *dns.Msg, who netip.Addr) *dns.Msg {
	question := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name, "."))
	head := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: ttl}
	a := new(dns.Msg).SetReply(q)
	a.Authoritative, a.RecursionAvailable = true, true
	if question.Qtype == dns.TypePTR {
		addr, ok := fromArpa(name)
		target := s.Directory.Name(addr)
		if !ok || target == "" {
			return nil
		}
		a.Answer = []dns.RR{&dns.PTR{Hdr: head, Ptr: dns.Fqdn(target)}}
		return a
	}
	addrs, ours := s.Directory.Lookup(name, who)
	if !ours {
		return nil
	}
	if len(addrs) == 0 {
		a.Rcode = dns.RcodeNameError
	}
	for _, addr := range addrs {
		switch {
		case addr.Is4() && question.Qtype == dns.TypeA:
			a.Answer = append(a.Answer, &dns.A{Hdr: head, A: addr.AsSlice()})
		case addr.Is6() && question.Qtype == dns.TypeAAAA:
			a.Answer = append(a.Answer, &dns.AAAA{Hdr: head, AAAA: addr.AsSlice()})
		}
	}
	return a
}

// fromArpa reads the name of a reverse question (RFC 1035 §3.5, RFC 3596 §2.5).
func fromArpa(name string) (netip.Addr, bool) {
	if text, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		w := strings.Split(text, ".")
		if len(w) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(w[3] + "." + w[2] + "." + w[1] + "." + w[0])
		return a, err == nil
	}
	text, ok := strings.CutSuffix(name, ".ip6.arpa")
	nibbles := strings.Split(text, ".")
	if !ok || len(nibbles) != 32 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := range nibbles {
		if i > 0 && i%4 == 0 {
			b.WriteByte(':')
		}
		b.WriteString(nibbles[31-i])
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}

// forward asks the host's name servers, one after the other.
func (s *Server) forward(q *dns.Msg, network string) (*dns.Msg, error) {
	conf, err := dns.ClientConfigFromFile(s.ResolvConf)
	if err != nil {
		return nil, fmt.Errorf("read the host's name servers: %w", err)
	}
	c := dns.Client{Net: network, Timeout: upstreamTime}
	errs := []error{errors.New("no name server of the host answers")}
	for _, server := range conf.Servers[:min(len(conf.Servers), maxUpstreams)] {
		if server == s.Addr.Addr().String() {
			continue // that is us
		}
		a, _, err := c.Exchange(q, net.JoinHostPort(server, conf.Port))
		if err == nil {
			return a, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
