package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/manekinet/maneki/datastore"
)

// leaderTimeout bounds the question after the reason of a timeout.
const leaderTimeout = 500 * time.Millisecond

// cause keeps what gRPC said about a failed attempt. The client throws it away
// when the deadline passes and leaves "context deadline exceeded", which does
// not tell a wrong certificate from a wrong address.
type cause struct {
	mu   sync.Mutex
	text string
}

type causeKey struct{}

func withCause(ctx context.Context) (context.Context, *cause) {
	c := &cause{}
	return context.WithValue(ctx, causeKey{}, c), c
}

func (c *cause) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text
}

// recordCause is a gRPC interceptor.
func recordCause(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, cc, opts...)
	if c, ok := ctx.Value(causeKey{}).(*cause); ok && err != nil {
		c.mu.Lock()
		c.text = status.Convert(err).Message()
		c.mu.Unlock()
	}
	return err
}

// classify turns an error of the client into one of the datastore's. ctx is the
// caller's context, whose end is not the cluster's fault.
func (s *Store) classify(ctx context.Context, err error, cause string) error {
	if ctx.Err() != nil {
		if cause != "" {
			return fmt.Errorf("%w (etcd at %s: %s)", ctx.Err(), s.where(), shorten(cause))
		}
		return ctx.Err()
	}
	if s.ctx.Err() != nil {
		return errClosed
	}
	for _, ours := range []error{datastore.ErrUnavailable, datastore.ErrCompacted, datastore.ErrDenied} {
		if errors.Is(err, ours) {
			return err
		}
	}
	switch answer(err) {
	case rpctypes.ErrCompacted, rpctypes.ErrFutureRev:
		return fmt.Errorf("%w (%w)", datastore.ErrCompacted, err)
	case rpctypes.ErrAuthFailed:
		return fmt.Errorf("%w: etcd at %s: user name or password is wrong", datastore.ErrDenied, s.where())
	case rpctypes.ErrUserEmpty:
		return fmt.Errorf("%w: etcd at %s wants a user name and password (ETCD_USERNAME, ETCD_PASSWORD)", datastore.ErrDenied, s.where())
	case rpctypes.ErrPermissionDenied:
		return fmt.Errorf("%w: etcd at %s: the user may not read and write below /calico/", datastore.ErrDenied, s.where())
	case rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthOldRevision, rpctypes.ErrRoleNotFound:
		return fmt.Errorf("%w: etcd at %s: %w", datastore.ErrDenied, s.where(), err)
	case rpctypes.ErrRequestTooLarge:
		return fmt.Errorf("etcd refuses a value of this size (its --max-request-bytes): %w", err)
	case rpctypes.ErrNoSpace:
		return fmt.Errorf("%w: etcd at %s has no space left (NOSPACE) and refuses writes: free or add space, then `maneki datastore defrag` and `maneki datastore disarm`", datastore.ErrUnavailable, s.where())
	case rpctypes.ErrNoLeader:
		return s.noLeader()
	case rpctypes.ErrTimeout, rpctypes.ErrTimeoutDueToLeaderFail, rpctypes.ErrTimeoutDueToConnectionLost:
		if s.leaderless() {
			return s.noLeader()
		}
	case rpctypes.ErrUnhealthy, rpctypes.ErrMemberNotEnoughStarted:
		return fmt.Errorf("%w: etcd at %s refuses to change its members now, because it would lose its majority or a member has just come or gone: %w", datastore.ErrUnavailable, s.where(), err)
	case rpctypes.ErrMemberNotFound:
		return fmt.Errorf("%w: etcd at %s has no such member", datastore.ErrNotFound, s.where())
	}
	if status.Code(err) == codes.ResourceExhausted {
		return fmt.Errorf("etcd refuses a request of this size: %w", err)
	}
	return s.unreachable(err, cause)
}

// answer is the error that the server answered with, if it is one. For the end of
// a watch old servers wrap its text.
func answer(err error) error {
	known := rpctypes.Error(err)
	for _, e := range []error{rpctypes.ErrPermissionDenied, rpctypes.ErrInvalidAuthToken} {
		if strings.HasSuffix(err.Error(), e.Error()) {
			return e
		}
	}
	return known
}

// unreachable says why no answer came.
func (s *Store) unreachable(err error, cause string) error {
	if cause == "" {
		cause = err.Error()
	}
	if s.tls != nil && s.tlsHint(cause) == "" {
		cause = cmp.Or(s.tls.alerts.within(s.timeout), cause)
	}
	if hint := s.tlsHint(cause); hint != "" {
		return fmt.Errorf("%w: etcd at %s: %s (%s)", datastore.ErrDenied, s.where(), hint, shorten(cause))
	}
	hint := s.schemeHint(cause)
	cause = shorten(cause)
	if errors.Is(err, context.DeadlineExceeded) && strings.Contains(cause, "context deadline exceeded") {
		if s.leaderless() {
			return s.noLeader()
		}
		cause = fmt.Sprintf("no answer within %s", s.timeout)
	}
	return fmt.Errorf("%w: etcd at %s: %s%s", datastore.ErrUnavailable, s.where(), cause, hint)
}

// noLeader is what a minority says of itself.
func (s *Store) noLeader() error {
	return fmt.Errorf("%w: etcd at %s has no leader: fewer than half of its members reach each other, nothing can be written until they do", datastore.ErrUnavailable, s.where())
}

// leaderless asks the members that answer whether they know a leader; a request
// that needs one only runs into its timeout.
func (s *Store) leaderless() bool {
	if s.led != nil {
		return !s.led()
	}
	c, err := s.current()
	if c == nil || err != nil {
		return false
	}
	for _, u := range s.Endpoints() {
		ctx, cancel := context.WithTimeout(s.ctx, leaderTimeout)
		st, err := c.Status(ctx, u)
		cancel()
		if err == nil {
			return st.Leader == 0
		}
	}
	return false
}

// schemeHint names the other scheme when the connection was closed in the way
// of a server that expects it.
func (s *Store) schemeHint(cause string) string {
	switch {
	case s.tls != nil && (strings.Contains(cause, "handshake failed: EOF") || strings.Contains(cause, "handshake failed: read")):
		return " (closed in the TLS handshake: if the server is without TLS, write http://)"
	case s.tls == nil && strings.Contains(cause, "server preface"):
		return " (closed before it spoke etcd's protocol: if the server wants TLS, write https://)"
	}
	return ""
}

func (s *Store) where() string { return strings.Join(s.Endpoints(), ", ") }

// tlsHint says in words what is wrong between the two certificates; it is empty
// when the cause has nothing to do with TLS.
func (s *Store) tlsHint(cause string) string {
	has := func(part string) bool { return strings.Contains(cause, part) }
	switch {
	case s.tls == nil:
		return ""
	case has("signed by unknown authority"):
		return "the server's certificate is not signed by " + s.tls.ca
	case has("remote error: tls:"):
		return "the server does not accept us: " + s.tls.identity()
	case has("etcd client certificate"):
		return "our certificate cannot be read"
	case has("first record does not look like a TLS handshake"):
		return "the server does not speak TLS on this port, try http://"
	case has("x509:"), has("tls:"):
		return "the server's certificate is not valid for us"
	}
	return ""
}

// shorten strips gRPC's nested prefixes from a cause.
func shorten(cause string) string {
	for _, prefix := range []string{
		"latest balancer error: ", "last connection error: ", "connection error: ", "desc = ", "transport: ",
		"Error while dialing: ", "authentication handshake failed: ",
	} {
		if i := strings.Index(cause, prefix); i >= 0 {
			cause = cause[i+len(prefix):]
		}
	}
	return strings.Trim(cause, `"`)
}
