package ctl

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"github.com/manekinet/maneki/datastore"
)

// overlay is a store whose writes stay in memory: what --dry-run and diff run a
// verb on, so that it meets the same rules as the real one.
type overlay struct {
	datastore.Store

	mu      sync.Mutex
	written map[datastore.Key]datastore.Entry // Value nil: deleted
	writes  int
}

func newOverlay(s datastore.Store) *overlay {
	return &overlay{Store: s, written: map[datastore.Key]datastore.Entry{}}
}

// Get returns what was written here, else what the store has.
func (o *overlay) Get(ctx context.Context, key datastore.Key) (datastore.Entry, error) {
	o.mu.Lock()
	e, ok := o.written[key]
	o.mu.Unlock()
	switch {
	case ok && e.Value == nil:
		return datastore.Entry{}, fmt.Errorf("get %s: %w", key, datastore.ErrNotFound)
	case ok:
		return e, nil
	}
	return o.Store.Get(ctx, key)
}

// List puts what was written here over what the store has.
func (o *overlay) List(ctx context.Context, q datastore.Query) ([]datastore.Entry, datastore.Revision, error) {
	entries, rev, err := o.Store.List(ctx, q)
	if err != nil {
		return nil, "", err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	entries = slices.DeleteFunc(slices.Clone(entries), func(e datastore.Entry) bool {
		_, ours := o.written[e.Key]
		return ours
	})
	for key, e := range o.written {
		if e.Value != nil && q.Matches(key) {
			entries = append(entries, e)
		}
	}
	paths := make(map[datastore.Key]string, len(entries))
	for _, e := range entries {
		if paths[e.Key], err = datastore.Path(e.Key); err != nil {
			return nil, "", err
		}
	}
	slices.SortFunc(entries, func(a, b datastore.Entry) int {
		switch p, q := paths[a.Key], paths[b.Key]; {
		case p < q:
			return -1
		case p > q:
			return 1
		}
		return 0
	})
	return entries, rev, nil
}

// Put keeps the value here.
func (o *overlay) Put(ctx context.Context, key datastore.Key, value []byte, pre datastore.Precondition) (datastore.Revision, error) {
	return o.Commit(ctx, []datastore.Op{{Key: key, Value: value, If: pre}})
}

// Delete hides the key.
func (o *overlay) Delete(ctx context.Context, key datastore.Key, pre datastore.Precondition) error {
	_, err := o.Commit(ctx, []datastore.Op{{Key: key, Delete: true, If: pre}})
	return err
}

// Commit checks every operation and then keeps them all here.
func (o *overlay) Commit(ctx context.Context, ops []datastore.Op) (datastore.Revision, error) {
	if err := datastore.CheckOps(ops); err != nil {
		return "", err
	}
	for _, op := range ops {
		if _, err := datastore.Path(op.Key); err != nil {
			return "", err
		}
		e, err := o.Get(ctx, op.Key)
		if err != nil && !isNotFound(err) {
			return "", err
		}
		if err := op.Failure(e.Rev); err != nil {
			return "", err
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.writes++
	rev := datastore.Revision("0" + strconv.Itoa(o.writes)) // no store issues a number with a zero in front
	for _, op := range ops {
		if op.Check {
			continue
		}
		o.written[op.Key] = datastore.Entry{Key: op.Key, Value: op.Value, Rev: rev}
	}
	return rev, nil
}
