package controller

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// LeaseName is the lease under which all loops of a cluster run.
const LeaseName = "controller"

// Loop is one thing that is done once per cluster. Run works until ctx is done
// and says in words, whenever that changes, what it does.
type Loop interface {
	Name() string
	Run(ctx context.Context, report func(string)) error
}

// Controller runs loops while this host holds the lease.
type Controller struct {
	Lease *Lease
	Loops []Loop
	Log   *slog.Logger

	mu      sync.Mutex
	reports map[string]string
}

// restart is the wait before a loop that failed runs again.
const restart = 10 * time.Second

// Run takes part in the election, and works when this host is elected, until ctx
// is done.
func (c *Controller) Run(ctx context.Context) error {
	return c.Lease.Run(ctx, c.work, func() map[string]string {
		c.mu.Lock()
		defer c.mu.Unlock()
		return maps.Clone(c.reports)
	})
}

func (c *Controller) work(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range c.Loops {
		g.Go(func() error {
			for {
				err := l.Run(ctx, func(text string) { c.report(l.Name(), text) })
				if ctx.Err() != nil {
					return ctx.Err()
				}
				c.Log.Error("loop of the controller failed; it starts again", "loop", l.Name(), "err", err)
				sleep(ctx, restart)
			}
		})
	}
	return g.Wait()
}

func (c *Controller) report(loop, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reports == nil {
		c.reports = map[string]string{}
	}
	if c.reports[loop] != text {
		c.reports[loop] = text
		c.Log.Info(text, "loop", loop)
	}
}
