package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/manekinet/maneki/dataplane/flows"
)

// terminatePatience bounds how long the end of forbidden connections waits for
// the new rules to be in the kernel. Ended earlier, a connection would begin
// again under the old ones.
const terminatePatience = 5 * time.Second

// terminateFlows ends the connections that the policies in force forbid, after
// every change of policy, where the operator wants that
// (maneki.net/flow-termination). The rules alone let a connection go on that was
// allowed when it began, as Calico's do.
func (a *Agent) terminateFlows(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.pipe.policyKick:
		}
		state, _ := a.pipe.policy()
		if state == nil || !state.Options.TerminateFlows {
			continue
		}
		ended, err := a.endForbidden(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			a.opts.Log.Warn("connections that are forbidden now could not all be ended", "ended", ended, "err", err)
		case ended > 0:
			a.opts.Log.Info("ended connections that are forbidden now", "connections", ended)
		}
	}
}

func (a *Agent) endForbidden(ctx context.Context) (int, error) {
	wait, cancel := context.WithTimeout(ctx, terminatePatience)
	defer cancel()
	if err := a.tables.nft.WaitSynced(wait); err != nil {
		return 0, err
	}
	tracker, err := flows.Open()
	if err != nil {
		return 0, err
	}
	defer tracker.Close()
	list, err := tracker.List()
	if err != nil {
		return 0, err
	}
	var j judge
	var forbidden []flows.Connection
	state, _ := a.pipe.policy()
	for _, c := range list {
		if t, _, ours := j.of(state, c); ours && !t.Allowed {
			forbidden = append(forbidden, c)
		}
	}
	if err := tracker.End(forbidden); err != nil {
		return 0, fmt.Errorf("%d connections: %w", len(forbidden), err)
	}
	return len(forbidden), nil
}
