package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"github.com/manekinet/maneki/bgp/message"
)

// Every way in which a session fails has its reason in words.
func TestReasons(t *testing.T) {
	dialled := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	wrongAS := message.Open{ASN: 65000}.CheckPeer(64512, 64512, netip.MustParseAddr("1.1.1.1"))
	for _, c := range []struct {
		err  error
		cfg  Config
		want string
	}{
		{wrongAS, Config{}, "wrong AS: peer says 65000, configured 64512"},
		{message.DecodeNotification([]byte{2, 2}), Config{}, "peer closed the session: wrong AS number"},
		{message.DecodeNotification([]byte{6, 2}), Config{}, "peer closed the session: administrative shutdown"},
		{message.DecodeNotification([]byte{4, 0}), Config{}, "peer closed the session: hold timer expired"},
		{message.HoldExpired(), Config{}, "hold timer expired"},
		{dialled(syscall.ECONNREFUSED), Config{}, "connection refused"},
		{dialled(syscall.ENETUNREACH), Config{}, "no route to peer"},
		{dialled(syscall.EHOSTUNREACH), Config{}, "no route to peer: host unreachable"},
		{dialled(syscall.EADDRNOTAVAIL), Config{Local: netip.MustParseAddr("10.0.0.1")}, "source address 10.0.0.1 is not on this host"},
		{dialled(syscall.ETIMEDOUT), Config{}, "no answer from peer"},
		{fmt.Errorf("dial: %w", os.ErrDeadlineExceeded), Config{Password: "x"}, "no answer from peer: it is down, or the passwords differ"},
		{context.DeadlineExceeded, Config{TTLSecurity: 1}, "no answer from peer: it is down, or it is more than 1 hops away or does not use TTL security"},
		{context.DeadlineExceeded, Config{TTLSecurity: 2, Password: "x"}, "no answer from peer: it is down, the passwords differ, or it is more than 2 hops away or does not use TTL security"},
		{fmt.Errorf("read: %w", io.EOF), Config{}, "peer closed the connection"},
		{syscall.ECONNRESET, Config{}, "peer closed the connection"},
		{errors.New("what nobody foresaw"), Config{}, "what nobody foresaw"},
	} {
		if got := words(c.err, c.cfg); got != c.want {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}
