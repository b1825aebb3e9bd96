package datastoretest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/manekinet/maneki/datastore"
)

// Consumer is a datastore.Follow consumer that keeps what it was told and
// notices what it must not be told. Its zero value is ready to use.
type Consumer struct {
	mu       sync.Mutex
	view     *view
	inSync   bool
	lost     int   // batches with an error
	lastErr  error // of the latest batch; nil after a recovery
	protocol error // first breach of Follow's promises
}

// Deliver is the function to give to Follow.
func (c *Consumer) Deliver(b datastore.Batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view == nil {
		c.view = newView()
	}
	err := c.view.apply(b.Events)
	switch {
	case err != nil:
	case c.inSync && !b.InSync:
		err = errors.New("in sync, then not")
	case b.Err != nil && len(b.Events) > 0:
		err = errors.New("events beside an error")
	}
	if c.protocol == nil {
		c.protocol = err
	}
	c.inSync, c.lastErr = b.InSync, b.Err
	if b.Err != nil {
		c.lost++
	}
}

// Lost is how often the connection was reported lost, and the error of the
// latest batch, which is nil after a recovery.
func (c *Consumer) Lost() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost, c.lastErr
}

// WaitFor waits until the consumer is in sync, connected, and holds exactly what
// the queries select in s. The error says what differs, or which promise of
// Follow was broken.
func (c *Consumer) WaitFor(ctx context.Context, s datastore.Store, qs ...datastore.Query) error {
	var diff string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		want := newView()
		for _, q := range qs {
			es, _, err := s.List(ctx, q)
			if err != nil {
				return err
			}
			want.load(es)
		}
		var err error
		if diff, err = c.compare(want); err != nil || diff == "" {
			return err
		}
	}
	return fmt.Errorf("not followed in %s: %s", patience, diff)
}

func (c *Consumer) compare(want *view) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.protocol != nil:
		return "", c.protocol
	case !c.inSync || c.lastErr != nil:
		return fmt.Sprintf("in sync %v, error %v", c.inSync, c.lastErr), nil
	}
	return cmp.Diff(want.values, c.view.values) + cmp.Diff(want.revs, c.view.revs), nil
}
