package agent

import (
	"context"
	"errors"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/datastore"
)

// autoHostRetry is when a write that failed is tried again.
const autoHostRetry = 5 * time.Second

// keepAutoHost keeps this host's automatic host endpoint as the configuration
// wants it. Calico has a controller for all hosts do that; each host knows its
// own best.
func (a *Agent) keepAutoHost(ctx context.Context) error {
	return every(ctx, autoHostRetry, a.pipe.autoHostKick, func() {
		a.pipe.mu.Lock()
		want, known := a.pipe.state.AutoHost, a.pipe.inSync
		a.pipe.mu.Unlock()
		if !known || !want.Stale {
			return
		}
		if err := a.writeAutoHost(ctx, want); err != nil && ctx.Err() == nil {
			a.opts.Log.Warn("the host endpoint of this host could not be brought up to date; it is tried again", "name", want.Name, "err", err)
		}
	})
}

func (a *Agent) writeAutoHost(ctx context.Context, want calc.AutoHost) error {
	hosts := datastore.For[api.HostEndpoint](a.store)
	if want.Want == nil {
		_, err := hosts.Delete(ctx, "", want.Name, "")
		if errors.Is(err, datastore.ErrNotFound) {
			return nil
		}
		return err
	}
	_, err := hosts.Modify(ctx, "", want.Name, func(h *api.HostEndpoint) error {
		h.Labels, h.Spec = want.Want.Labels, want.Want.Spec
		return nil
	})
	if !errors.Is(err, datastore.ErrNotFound) {
		return err
	}
	fresh := *want.Want
	if err = hosts.Create(ctx, &fresh); errors.Is(err, datastore.ErrExists) {
		return nil // its news will come
	}
	return err
}
