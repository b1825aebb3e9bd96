package config

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/manekinet/maneki/datastore"
)

// reachTime bounds Reach.
const reachTime = 2 * time.Second

// Reach finds out within two seconds whether anybody listens where c says. It
// returns as soon as one endpoint takes a connection, or all have refused. The
// error is datastore.ErrUnavailable and names every endpoint once. An agent, which
// waits for its datastore, has no use for it.
func Reach(ctx context.Context, c Config) error {
	endpoints, err := c.endpoints(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	type attempt struct {
		endpoint int
		err      error
	}
	attempts := make(chan attempt, len(endpoints)) // so that none waits for us
	for i, e := range endpoints {
		go func() { attempts <- attempt{i, dial(ctx, e)} }()
	}
	reasons := make([]string, len(endpoints))
	reached := false
	for range endpoints {
		a := <-attempts
		if a.err == nil {
			reached = true
			cancel() // the others need not go on
		} else {
			reasons[a.endpoint] = reason(a.err)
		}
	}
	if reached || len(endpoints) == 0 {
		return nil
	}
	return fmt.Errorf("%w: etcd at %s", datastore.ErrUnavailable, perReason(endpoints, reasons))
}

// dial opens and closes one connection.
func dial(ctx context.Context, endpoint string) error {
	network, address := "tcp", endpoint
	if u, err := url.Parse(endpoint); err == nil && u.Host != "" {
		address = u.Host
	}
	if scheme, path, ok := strings.Cut(endpoint, ":"); ok && strings.HasPrefix(scheme, "unix") {
		network, address = "unix", strings.TrimPrefix(path, "//")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// reason is an error without the address, which is named beside it.
func reason(err error) string {
	var resolve *net.DNSError
	var number syscall.Errno
	var timeout net.Error
	switch {
	case errors.As(err, &number):
		return number.Error()
	case errors.As(err, &resolve):
		return resolve.Err
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Sprintf("no answer within %s", reachTime)
	}
	return err.Error()
}

// perReason lists the endpoints with what was wrong, those with the same reason
// together.
func perReason(endpoints, reasons []string) string {
	var parts []string
	var seen []string
	for _, r := range reasons {
		if slices.Contains(seen, r) {
			continue
		}
		seen = append(seen, r)
		var with []string
		for i := range endpoints {
			if reasons[i] == r {
				with = append(with, endpoints[i])
			}
		}
		parts = append(parts, strings.Join(with, ", ")+": "+r)
	}
	return strings.Join(parts, "; ")
}
