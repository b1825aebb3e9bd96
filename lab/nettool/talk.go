package nettool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// ListenOptions are the flags of listen.
type ListenOptions struct {
	Address netip.AddrPort // an invalid address means every address, both families
	UDP     bool
	Count   int // connections (datagrams) to answer; 0 means until the context ends
}

const (
	talkDeadline   = 5 * time.Second
	maxConnections = 64
)

func (o ListenOptions) text() string {
	if o.Address.Addr().IsValid() {
		return o.Address.String()
	}
	return fmt.Sprintf(":%d", o.Address.Port())
}

// Listen waits for TCP connections or UDP datagrams, writes
// "connection from ADDRESS" for each and answers with that address: what the
// client learns is the source address that arrived here.
func Listen(ctx context.Context, out io.Writer, o ListenOptions) error {
	if o.Count < 0 {
		return fmt.Errorf("count %d is not allowed, want 0 (no end) or more", o.Count)
	}
	out = &lockedWriter{w: out}
	if o.UDP {
		return listenUDP(ctx, out, o)
	}
	return listenTCP(ctx, out, o)
}

// lockedWriter keeps lines of concurrent connections whole.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func listenTCP(ctx context.Context, out io.Writer, o ListenOptions) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", o.text())
	if err != nil {
		return fmt.Errorf("listen on %s: %w", o.text(), err)
	}
	_, _ = fmt.Fprintf(out, "listening on %s/tcp\n", ln.Addr())
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var group errgroup.Group
	group.SetLimit(maxConnections)
	for n := 0; o.Count == 0 || n < o.Count; n++ {
		conn, err := ln.Accept()
		if err != nil {
			break // closed by ctx, or out of descriptors
		}
		group.Go(func() error { answerTCP(out, conn); return nil })
	}
	err = group.Wait()
	if cerr := ln.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
		err = errors.Join(err, cerr)
	}
	return err
}

func answerTCP(out io.Writer, conn net.Conn) {
	defer conn.Close()
	peer := peerOf(conn.RemoteAddr())
	_, _ = fmt.Fprintf(out, "connection from %s\n", peer)
	_ = conn.SetDeadline(time.Now().Add(talkDeadline))
	_, _ = fmt.Fprintf(conn, "%s\n", peer)
}

func peerOf(a net.Addr) string {
	if ap, err := netip.ParseAddrPort(a.String()); err == nil {
		return ap.Addr().Unmap().String()
	}
	return a.String()
}

func listenUDP(ctx context.Context, out io.Writer, o ListenOptions) error {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp", o.text())
	if err != nil {
		return fmt.Errorf("listen on %s: %w", o.text(), err)
	}
	_, _ = fmt.Fprintf(out, "listening on %s/udp\n", pc.LocalAddr())
	stop := context.AfterFunc(ctx, func() { _ = pc.Close() })
	defer stop()
	defer pc.Close()
	buf := make([]byte, 1<<16)
	for n := 0; o.Count == 0 || n < o.Count; n++ {
		_, from, err := pc.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("receive: %w", err)
		}
		peer := peerOf(from)
		_, _ = fmt.Fprintf(out, "connection from %s\n", peer)
		if _, err := pc.WriteTo([]byte(peer+"\n"), from); err != nil {
			_, _ = fmt.Fprintf(out, "answer to %s: %s\n", peer, reason(err))
		}
	}
	return nil
}

// ConnectOptions are the flags of connect.
type ConnectOptions struct {
	UDP  bool
	Wait time.Duration // for the connection and the answer
}

// Connect calls a listener and returns its answer without the line end.
func Connect(ctx context.Context, to netip.AddrPort, o ConnectOptions) (string, error) {
	if o.Wait <= 0 {
		return "", fmt.Errorf("wait %s is not allowed, want more than 0", o.Wait)
	}
	network := "tcp"
	if o.UDP {
		network = "udp"
	}
	ctx, cancel := context.WithTimeout(ctx, o.Wait)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, to.String())
	if err != nil {
		return "", fmt.Errorf("connect to %s/%s: %s", to, network, netReason(err))
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	if o.UDP {
		if _, err := conn.Write([]byte("?\n")); err != nil {
			return "", fmt.Errorf("send to %s/udp: %s", to, netReason(err))
		}
		buf := make([]byte, 512)
		n, err := conn.Read(buf)
		if err != nil {
			return "", fmt.Errorf("wait for the answer of %s/udp: %s", to, netReason(err))
		}
		return strings.TrimSpace(string(buf[:n])), nil
	}
	answer, err := io.ReadAll(io.LimitReader(conn, 512))
	if err != nil {
		return "", fmt.Errorf("wait for the answer of %s/tcp: %s", to, netReason(err))
	}
	return strings.TrimSpace(string(answer)), nil
}

// netReason is short: "Connection refused", "timed out".
func netReason(err error) string {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "timed out"
	}
	return reason(err)
}
