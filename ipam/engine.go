package ipam

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/manekinet/maneki/datastore"
)

// run takes jobs to their end: it plans them on a working copy, commits that in
// one transaction, and starts again with newer data when somebody else wrote
// meanwhile. One job's failure never fails another: if the commit is refused
// for no reason that all share, each job goes on alone.
func (c *Client) run(ctx context.Context, k *cache, jobs []*job) {
	if len(jobs) > 1 && !c.txn {
		c.runEach(ctx, k, jobs)
		return
	}
	fresh := false // read the settings, whatever a watch says
	for attempt := range casAttempts {
		if err := pause(ctx, attempt); err != nil {
			failAll(jobs, err)
			return
		}
		l, planned := c.plan(ctx, k, jobs, fresh)
		if len(planned) == 0 {
			return
		}
		jobs = planned
		if l.empty() {
			succeedAll(jobs)
			return
		}
		verdict, err := c.attempt(ctx, l, jobs)
		switch verdict {
		case committed:
			succeedAll(jobs)
			return
		case divide:
			c.runEach(ctx, k, jobs)
			return
		case failed:
			failAll(jobs, err)
			return
		case again:
			fresh = true
		}
	}
	if len(jobs) > 1 {
		c.runEach(ctx, k, jobs)
		return
	}
	failAll(jobs, fmt.Errorf("given up after %d attempts: %w", casAttempts, datastore.ErrConflict))
}

func (c *Client) runEach(ctx context.Context, k *cache, jobs []*job) {
	for _, j := range jobs {
		c.run(ctx, k, []*job{j})
	}
}

func failAll(jobs []*job, err error) {
	for _, j := range jobs {
		j.fail(err)
	}
}

func succeedAll(jobs []*job) {
	for _, j := range jobs {
		j.succeed()
	}
}

// plan plans every job that is still wanted on one ledger and returns those
// that could be planned; the others are ended with their error.
func (c *Client) plan(ctx context.Context, k *cache, jobs []*job, fresh bool) (*ledger, []*job) {
	st := k.current()
	if st == nil || fresh {
		var err error
		if st, err = c.readSettings(ctx); err != nil {
			failAll(jobs, err)
			return nil, nil
		}
	}
	l := newLedger(c, k, st)
	var planned []*job
	for _, j := range jobs {
		j.readHandle = j.readHandle || !c.txn
		if err := j.ctx.Err(); err != nil {
			j.fail(err)
			continue
		}
		d := l.draft(j)
		if err := d.plan(ctx); err != nil {
			j.fail(err)
			continue
		}
		d.commit()
		planned = append(planned, j)
	}
	return l, planned
}

func (d *draft) plan(ctx context.Context) error {
	switch {
	case d.j.auto != nil:
		return d.planAuto(ctx)
	case d.j.addr != nil:
		return d.planAddr(ctx)
	case d.j.byHandle != "":
		return d.planHandle(ctx)
	}
	return d.planRelease(ctx)
}

// verdict is what follows from an attempt to commit.
type verdict uint8

const (
	committed verdict = iota
	again             // somebody else wrote: plan again
	divide            // one of the jobs is at fault: run them one by one
	failed
)

// attempt commits the ledger and judges the result.
func (c *Client) attempt(ctx context.Context, l *ledger, jobs []*job) (verdict, error) {
	ops, err := l.ops()
	if err != nil {
		return failed, err
	}
	alone := len(jobs) == 1
	if len(ops) > datastore.MaxOps && !alone {
		return divide, nil
	}
	if !c.txn || len(ops) > datastore.MaxOps {
		if !jobs[0].readHandle { // stepwise must know, not guess, what it replaces
			jobs[0].readHandle = true
			return again, nil
		}
		return c.stepwise(ctx, l, jobs[0])
	}
	rev, err := datastore.Commit(ctx, c.store, ops)
	switch {
	case err == nil:
		l.absorb(rev)
		return committed, nil
	case isRace(err):
		changed, rerr := c.refresh(ctx, l, jobs)
		switch {
		case rerr != nil:
			return failed, rerr
		case changed:
			return again, nil
		case !alone:
			return divide, nil
		}
		if err := c.callersFault(ctx, l.with); err != nil {
			return failed, err
		}
		return again, nil
	case errors.Is(err, datastore.ErrUnavailable) || ctx.Err() != nil:
		return c.resolve(ctx, l, jobs, err)
	case alone:
		return failed, err
	}
	return divide, nil
}

// callersFault finds the operation among the caller's own whose precondition
// does not hold.
func (c *Client) callersFault(ctx context.Context, with []datastore.Op) error {
	for _, op := range with {
		e, err := c.store.Get(ctx, op.Key)
		if err != nil && !errors.Is(err, datastore.ErrNotFound) {
			return err
		}
		if err := op.Failure(e.Rev); err != nil {
			return err
		}
	}
	return nil
}

// refresh reads again what a refused commit was based on, and reports whether
// any of it had changed. The guess that a handle is not there is looked into
// only for a job that runs alone.
func (c *Client) refresh(ctx context.Context, l *ledger, jobs []*job) (bool, error) {
	changed := false
	for _, cidr := range sortedCIDRs(l.readBlocks) {
		e, err := c.getBlock(ctx, cidr)
		var corrupt corruptError
		if err != nil && !errors.As(err, &corrupt) {
			return false, err
		}
		if err != nil || e.rev != l.readBlocks[cidr].rev {
			changed = true
			l.cache.rememberBlock(cidr, e)
		}
	}
	st, err := c.readSettings(ctx)
	if err != nil {
		return false, err
	}
	changed = changed || st.mark != l.st.mark || st.configRev != l.st.configRev
	if len(jobs) > 1 {
		return changed, nil
	}
	for _, id := range sortedKeys(l.readHandles) {
		e, err := c.getHandle(ctx, id)
		if err != nil {
			return false, err
		}
		if e.rev != l.readHandles[id].rev {
			changed = true
		}
		l.cache.rememberHandle(id, e)
	}
	jobs[0].readHandle = true
	return changed, nil
}

// resolve finds out what became of a commit whose answer was lost. It reads a
// block that the commit would have changed: an address assigned by it carries
// the handle and the sequence number planned here, which no other writer of the
// same revision can have left. When nothing of it is there the jobs are planned
// again: the new commit has the same preconditions, so the lost one cannot
// happen after it.
func (c *Client) resolve(ctx context.Context, l *ledger, jobs []*job, lost error) (verdict, error) {
	for id := range l.readHandles {
		delete(l.cache.handles, id)
	}
	for _, j := range jobs {
		j.readHandle = true
	}
	for _, j := range jobs {
		if len(j.assigned) == 0 {
			continue
		}
		found, err := c.find(ctx, l, j)
		if err != nil {
			l.cache.forgetAll()
			return failed, fmt.Errorf("the outcome of a write is unknown: %w", errors.Join(lost, err))
		}
		l.cache.forgetAll()
		if found {
			return committed, nil
		}
		return again, nil
	}
	l.cache.forgetAll()
	return again, nil // releases are idempotent, and pinned to what they found
}

// maxFinds is how often reading is tried before an outcome stays unknown.
const maxFinds = 12

// find reports whether a job's first address is in the store as planned.
func (c *Client) find(ctx context.Context, l *ledger, j *job) (bool, error) {
	a := j.assigned[0]
	var err error
	for try := range maxFinds {
		var e blockEntry
		if e, err = c.getBlock(ctx, a.Block); err == nil {
			return holds(e.block, a.Addr, j.handle(), l.readBlocks[a.Block].block.sequence), nil
		}
		if serr := backOff(ctx, try); serr != nil {
			break
		}
	}
	return false, err
}

// holds reports whether handle holds a since sequence number seq.
func holds(b *block, a netip.Addr, handle string, seq uint64) bool {
	if b == nil {
		return false
	}
	o, ok := ordinalOf(b.cidr, a)
	if !ok {
		return false
	}
	owner := b.owner(o)
	return owner != nil && handleOf(owner) == handle && b.seqOf[o] == seq
}

// backOff waits before the next try of a store that did not answer: a random
// time that grows to a second.
func backOff(ctx context.Context, try int) error {
	return sleep(ctx, jitter(min(5*time.Millisecond<<min(try, 8), time.Second)))
}

// jitter is a random time up to limit.
func jitter(limit time.Duration) time.Duration { return rand.N(limit) + 1 }

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
