package datastore

import (
	"context"
	"errors"
	"fmt"
)

// MaxOps is how many operations one Commit may hold; it is etcd's default
// (--max-txn-ops).
const MaxOps = 128

// Commit applies ops. On a Transactor that is atomic. On another store they
// happen one after the other in the given order, stopping at the first failure:
// order them so that every prefix is a state that can be recovered from. An Op
// with Check is then a read, and what it saw may be stale when the next
// operation happens. The revision is that of the last write.
func Commit(ctx context.Context, s Store, ops []Op) (Revision, error) {
	if t, ok := s.(Transactor); ok {
		return t.Commit(ctx, ops)
	}
	if err := CheckOps(ops); err != nil {
		return "", err
	}
	var last Revision
	for _, op := range ops {
		rev, err := applyOp(ctx, s, op)
		if err != nil {
			return last, err
		}
		if rev != "" {
			last = rev
		}
	}
	return last, nil
}

// CheckOps reports what no backend can execute: no operation or more than
// MaxOps, two for one key, contradictory fields. Backends call it first.
func CheckOps(ops []Op) error {
	if len(ops) == 0 || len(ops) > MaxOps {
		return fmt.Errorf("commit of %d operations: 1 to %d are allowed", len(ops), MaxOps)
	}
	seen := make(map[Key]bool, len(ops))
	for _, op := range ops {
		switch {
		case seen[op.Key]:
			return fmt.Errorf("commit: two operations for %s", op.Key)
		case op.Delete && op.Check:
			return fmt.Errorf("commit: both delete and check of %s", op.Key)
		case op.Delete && op.If.IsAbsent():
			return fmt.Errorf("commit: delete of %s on condition that it is absent", op.Key)
		case (op.Delete || op.Check) && op.Value != nil:
			return fmt.Errorf("commit: a value to delete or check %s", op.Key)
		}
		seen[op.Key] = true
	}
	return nil
}

// Failure says which error the operation meets when the stored revision of its
// key is rev, empty for a key that is not there. It is nil when the operation
// can happen. Backends share it so that they agree.
func (op Op) Failure(rev Revision) error {
	want, at := op.If.Revision()
	switch {
	case op.If.IsAbsent() && rev != "":
		return fmt.Errorf("%s: %w", op.Key, ErrExists)
	case (at || op.Delete) && rev == "":
		return fmt.Errorf("%s: %w", op.Key, ErrNotFound)
	case at && rev != want:
		return fmt.Errorf("%s: %w: revision is %s, not %s", op.Key, ErrConflict, rev, want)
	}
	return nil
}

func applyOp(ctx context.Context, s Store, op Op) (Revision, error) {
	switch {
	case op.Delete:
		return "", s.Delete(ctx, op.Key, op.If)
	case !op.Check:
		return s.Put(ctx, op.Key, op.Value, op.If)
	}
	e, err := s.Get(ctx, op.Key)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return "", err
	}
	return "", op.Failure(e.Rev)
}
