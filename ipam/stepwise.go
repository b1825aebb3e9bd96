package ipam

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/manekinet/maneki/datastore"
)

// stepwise does one job's commit where it cannot be one transaction, in an
// order in which a crash between two steps loses no address: an assignment
// counts in the handle first, so that whatever the block says next, releasing
// the handle finds it; a release changes the block first.
func (c *Client) stepwise(ctx context.Context, l *ledger, j *job) (verdict, error) {
	step := c.stepRelease
	if l.assigns {
		step = c.stepAssign
	}
	err := step(ctx, l, j)
	l.cache.forgetAll()
	for id := range l.readHandles {
		delete(l.cache.handles, id)
	}
	j.readHandle = true
	var with withError
	var half undoError
	switch {
	case err == nil:
		return committed, nil
	case errors.As(err, &half):
		return failed, fmt.Errorf("addresses may stay assigned until handle %s is released: %w", j.handle(), half.error)
	case errors.As(err, &with):
		return failed, with.error
	case isRace(err):
		return again, nil
	}
	return failed, err
}

// undoError marks an assignment that is neither done nor undone.
type undoError struct{ error }

// withError marks the failure of one of the caller's own writes.
type withError struct{ error }

func (c *Client) stepAssign(ctx context.Context, l *ledger, j *job) error {
	for _, id := range sortedKeys(l.handles) {
		op, needed, err := l.handleOp(id)
		if err != nil {
			return err
		}
		if needed {
			if _, err := c.write(ctx, op); err != nil {
				return err
			}
		}
	}
	var done []netip.Prefix
	for _, cidr := range sortedCIDRs(l.blocks) {
		op, err := l.blockOp(cidr)
		if err == nil {
			_, err = c.write(ctx, op)
		}
		if err != nil {
			// cidr too: a write whose answer was lost may have happened.
			return c.undo(ctx, l, j, append(done, cidr), err)
		}
		done = append(done, cidr)
	}
	if err := c.recount(ctx, l, j); err != nil {
		return c.undo(ctx, l, j, done, err)
	}
	for _, op := range j.with() {
		if _, err := c.write(ctx, op); err != nil {
			return c.undo(ctx, l, j, done, withError{err})
		}
	}
	return nil
}

// perBlock counts a job's planned addresses per block.
func (j *job) perBlock() counts {
	var n counts
	for _, a := range j.assigned {
		n = n.plus(a.Block.String(), 1)
	}
	return n
}

// recount makes sure that the handle still counts the blocks just written: a
// release of the handle may have deleted it between the two steps.
func (c *Client) recount(ctx context.Context, l *ledger, j *job) error {
	e, err := c.getHandle(ctx, j.handle())
	if err != nil {
		return fmt.Errorf("verify handle %s: %w", j.handle(), err)
	}
	if e.rev != "" {
		return nil
	}
	return c.adjust(ctx, j.handle(), j.perBlock(), 1)
}

// undo takes back the addresses of an assignment that failed half way, because
// of cause, which it returns: first in the blocks that were or may have been
// written, then in the handle. If that fails too it is an undoError: what is
// left is found by the handle.
func (c *Client) undo(ctx context.Context, l *ledger, j *job, done []netip.Prefix, cause error) error {
	for _, cidr := range done {
		seq := l.readBlocks[cidr].block.sequence
		err := c.rewrite(ctx, cidr, func(b *block) bool {
			var mine []int
			for _, a := range j.assigned {
				if a.Block == cidr && holds(b, a.Addr, j.handle(), seq) {
					o, _ := ordinalOf(cidr, a.Addr)
					mine = append(mine, o)
				}
			}
			b.release(mine, c.now(), 0)
			return len(mine) > 0
		})
		if err != nil {
			return undoError{errors.Join(cause, err)}
		}
	}
	if err := c.adjust(ctx, j.handle(), j.perBlock(), -1); err != nil {
		return undoError{errors.Join(cause, err)}
	}
	return cause
}

// stepRelease writes each block and then takes its addresses off the handles.
// What a handle loses is told by the difference the ledger planned.
func (c *Client) stepRelease(ctx context.Context, l *ledger, j *job) error {
	for _, cidr := range sortedCIDRs(l.blocks) {
		op, err := l.blockOp(cidr)
		if err != nil {
			return err
		}
		if _, err := c.write(ctx, op); err != nil {
			var maybe maybeError
			if !errors.As(err, &maybe) {
				return err
			}
			for _, id := range sortedKeys(l.handles) {
				if rerr := c.reconcile(ctx, id, cidr); rerr != nil {
					return rerr
				}
			}
			return maybe.error
		}
		for _, id := range sortedKeys(l.handles) {
			if gone := l.readHandles[id].counts[cidr.String()] - l.handles[id][cidr.String()]; gone > 0 {
				if err := c.adjust(ctx, id, counts{cidr.String(): gone}, -1); err != nil {
					return err
				}
			}
		}
	}
	if j.byHandle == "" {
		return nil
	}
	// Counters of blocks that held nothing of the handle's.
	left := counts{}.plusAll(l.readHandles[j.byHandle].counts, 1)
	for cidr := range l.blocks {
		delete(left, cidr.String())
	}
	return c.adjust(ctx, j.byHandle, left, -1)
}

// reconcile makes a handle count what one block holds, after a release of which
// nobody knows whether it changed the block.
func (c *Client) reconcile(ctx context.Context, id string, cidr netip.Prefix) error {
	b, err := c.getBlock(ctx, cidr)
	if err != nil {
		return err
	}
	held := 0
	if b.block != nil {
		held = len(b.block.ordinalsOfHandle(id))
	}
	h, err := c.getHandle(ctx, id)
	if err != nil {
		return err
	}
	return c.adjust(ctx, id, counts{cidr.String(): h.counts[cidr.String()] - held}, -1)
}

// adjust adds delta times sign to a handle's counters and deletes a handle that
// counts nothing.
func (c *Client) adjust(ctx context.Context, id string, delta counts, sign int) error {
	for attempt := range casAttempts {
		if err := pause(ctx, attempt); err != nil {
			return err
		}
		e, err := c.getHandle(ctx, id)
		if err != nil {
			return err
		}
		next := e.counts.plusAll(delta, sign)
		op := datastore.Op{Key: handleKey(id), If: datastore.At(e.rev)}
		switch {
		case e.rev == "" && len(next) == 0, len(delta) == 0 && len(next) > 0:
			return nil
		case e.rev == "":
			op.If = datastore.Absent()
		}
		if len(next) == 0 {
			op.Delete = true
		} else if op.Value, err = next.encode(); err != nil {
			return err
		}
		if _, err = c.write(ctx, op); !isRace(err) {
			return err
		}
	}
	return fmt.Errorf("count in handle %s: given up after %d attempts: %w", id, casAttempts, datastore.ErrConflict)
}

// rewrite changes one block by compare-and-swap; change reports whether there
// is anything to write.
func (c *Client) rewrite(ctx context.Context, cidr netip.Prefix, change func(*block) bool) error {
	for attempt := range casAttempts {
		if err := pause(ctx, attempt); err != nil {
			return err
		}
		e, err := c.getBlock(ctx, cidr)
		if err != nil || e.block == nil {
			return err
		}
		l := newLedger(c, newCache(""), nil)
		l.supply(cidr, e)
		b := e.block.clone()
		if !change(b) {
			return nil
		}
		l.blocks[cidr] = b
		op, err := l.blockOp(cidr)
		if err != nil {
			return err
		}
		if _, err = c.write(ctx, op); !isRace(err) {
			return err
		}
	}
	return fmt.Errorf("write block %s: given up after %d attempts: %w", cidr, casAttempts, datastore.ErrConflict)
}

// write does one operation and, when its answer is lost, finds out by reading
// whether it happened. It is repeated only under the precondition it had, so it
// happens once at most. An error that is neither ErrUnavailable nor a maybeError
// means that it did not happen.
func (c *Client) write(ctx context.Context, op datastore.Op) (datastore.Revision, error) {
	var lost error
	for try := 0; ; try++ {
		rev, err := c.writeOnce(ctx, op)
		switch {
		case errors.Is(err, datastore.ErrUnavailable) && try < maxFinds:
			lost = err
		case lost != nil && isRace(err):
			return c.lookFor(ctx, op, lost, err)
		default:
			return rev, err
		}
		if serr := backOff(ctx, try); serr != nil {
			return "", err
		}
	}
}

// maybeError is a refused write that may have happened before somebody else
// wrote.
type maybeError struct{ error }

func (e maybeError) Unwrap() error { return e.error }

// lookFor decides whether an operation whose answer was lost happened, after
// its repetition was refused: it did if what it would have left is there.
func (c *Client) lookFor(ctx context.Context, op datastore.Op, lost, refused error) (datastore.Revision, error) {
	for try := range maxFinds {
		e, err := c.store.Get(ctx, op.Key)
		switch {
		case errors.Is(err, datastore.ErrNotFound):
			if op.Delete {
				return "", nil
			}
			return "", refused
		case err == nil:
			if !op.Delete && bytes.Equal(e.Value, op.Value) {
				return e.Rev, nil
			}
			return "", maybeError{refused}
		}
		if serr := backOff(ctx, try); serr != nil {
			break
		}
	}
	return "", fmt.Errorf("the outcome of a write is unknown: %w", lost)
}

func (c *Client) writeOnce(ctx context.Context, op datastore.Op) (datastore.Revision, error) {
	switch {
	case op.Delete:
		return "", c.store.Delete(ctx, op.Key, op.If)
	case op.Check:
		return datastore.Commit(ctx, onlyVerbs{c.store}, []datastore.Op{op})
	}
	return c.store.Put(ctx, op.Key, op.Value, op.If)
}

// onlyVerbs hides that a store has transactions.
type onlyVerbs struct{ datastore.Store }
