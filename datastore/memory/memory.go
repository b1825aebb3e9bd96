// Package memory is a datastore in the memory of one process: what tests and
// simulations run on. It behaves as etcd does (one revision counter for the
// whole store, atomic transactions, watches from a revision that compaction can
// overtake) and forgets everything when the process ends.
package memory

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"sync"

	"github.com/manekinet/maneki/datastore"
)

// maxHistory is how many changes are kept for watches that start in the past
// or read slowly; older ones are compacted away.
const maxHistory = 1 << 16

// maxBatch bounds the events of one batch of a watch.
const maxBatch = 4096

// Store is a datastore.Store and datastore.Transactor. Use New.
type Store struct {
	mu        sync.Mutex
	items     map[string]item // by path
	paths     []string        // the keys of items, sorted
	rev       int64           // of the last change; 1 while there was none, as in etcd
	compacted int64           // changes up to this one are gone from history
	history   []change        // in order
	changed   chan struct{}   // closed at the next change, then replaced
	closed    chan struct{}
	isClosed  bool
	watches   sync.WaitGroup
}

type item struct {
	key   datastore.Key
	value []byte
	rev   int64
}

type change struct {
	typ  datastore.EventType
	path string
	item item
}

// New returns an empty store.
func New() *Store {
	return &Store{rev: 1, items: map[string]item{}, changed: make(chan struct{}), closed: make(chan struct{})}
}

// Get returns one entry or ErrNotFound.
func (s *Store) Get(ctx context.Context, key datastore.Key) (datastore.Entry, error) {
	path, err := datastore.Path(key)
	if err != nil {
		return datastore.Entry{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return datastore.Entry{}, fmt.Errorf("get %s: %w", key, err)
	}
	it, ok := s.items[path]
	if !ok {
		return datastore.Entry{}, fmt.Errorf("get %s: %w", key, datastore.ErrNotFound)
	}
	return it.entry(), nil
}

// List returns the entries of one query in the order of their paths.
func (s *Store) List(ctx context.Context, q datastore.Query) ([]datastore.Entry, datastore.Revision, error) {
	return s.Snapshot(ctx, q)
}

// Snapshot returns the entries of all queries at one revision.
func (s *Store) Snapshot(ctx context.Context, qs ...datastore.Query) ([]datastore.Entry, datastore.Revision, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return nil, "", fmt.Errorf("list %v: %w", qs, err)
	}
	var entries []datastore.Entry
	for _, q := range qs {
		ranges, err := datastore.Ranges(q)
		if err != nil {
			return nil, "", err
		}
		for _, r := range ranges {
			for i := sort.SearchStrings(s.paths, r.Start); i < len(s.paths) && s.paths[i] < r.End; i++ {
				if it := s.items[s.paths[i]]; q.Matches(it.key) {
					entries = append(entries, it.entry())
				}
			}
		}
	}
	return entries, revision(s.rev), nil
}

// Put writes one value.
func (s *Store) Put(ctx context.Context, key datastore.Key, value []byte, pre datastore.Precondition) (datastore.Revision, error) {
	rev, err := s.commit(ctx, []datastore.Op{{Key: key, Value: value, If: pre}})
	if err != nil {
		return "", fmt.Errorf("put %w", err)
	}
	return rev, nil
}

// Delete removes one key.
func (s *Store) Delete(ctx context.Context, key datastore.Key, pre datastore.Precondition) error {
	if _, err := s.commit(ctx, []datastore.Op{{Key: key, Delete: true, If: pre}}); err != nil {
		return fmt.Errorf("delete %w", err)
	}
	return nil
}

// Commit applies ops atomically.
func (s *Store) Commit(ctx context.Context, ops []datastore.Op) (datastore.Revision, error) {
	rev, err := s.commit(ctx, ops)
	if err != nil {
		return "", fmt.Errorf("commit %w", err)
	}
	return rev, nil
}

func (s *Store) commit(ctx context.Context, ops []datastore.Op) (datastore.Revision, error) {
	if err := datastore.CheckOps(ops); err != nil {
		return "", err
	}
	paths := make([]string, len(ops))
	for i, op := range ops {
		p, err := datastore.Path(op.Key)
		if err != nil {
			return "", err
		}
		paths[i] = p
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return "", fmt.Errorf("%s: %w", ops[0].Key, err)
	}
	writes := false
	for i, op := range ops {
		if err := op.Failure(revision(s.items[paths[i]].rev)); err != nil {
			return "", err
		}
		writes = writes || !op.Check
	}
	if writes {
		s.write(ops, paths)
	}
	return revision(s.rev), nil
}

func (s *Store) write(ops []datastore.Op, paths []string) {
	s.rev++
	for i, op := range ops {
		path := paths[i]
		if op.Check {
			continue
		}
		at, found := slices.BinarySearch(s.paths, path)
		if op.Delete {
			delete(s.items, path)
			s.paths = slices.Delete(s.paths, at, at+1)
			s.history = append(s.history, change{datastore.EventDelete, path, item{key: op.Key, rev: s.rev}})
			continue
		}
		if !found {
			s.paths = slices.Insert(s.paths, at, path)
		}
		it := item{key: op.Key, value: slices.Clone(op.Value), rev: s.rev}
		if it.value == nil {
			it.value = []byte{} // a stored empty value is not an absent one
		}
		s.items[path] = it
		s.history = append(s.history, change{datastore.EventPut, path, it})
	}
	if over := len(s.history) - maxHistory; over > maxHistory/4 {
		s.compactTo(s.history[over].item.rev)
	}
	s.wake()
}

func (s *Store) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Compact forgets the changes made so far: watches that have not delivered
// them, or start before now, end with ErrCompacted.
func (s *Store) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compactTo(s.rev)
	s.wake()
}

func (s *Store) compactTo(rev int64) {
	keep := sort.Search(len(s.history), func(i int) bool { return s.history[i].item.rev > rev })
	s.history = slices.Clone(s.history[keep:])
	s.compacted = max(s.compacted, rev)
}

// Close ends all watches and waits for them. Everything else fails from then on.
func (s *Store) Close() error {
	s.mu.Lock()
	if !s.isClosed {
		s.isClosed = true
		close(s.closed)
	}
	s.mu.Unlock()
	s.watches.Wait()
	return nil
}

// usable is called with the lock held.
func (s *Store) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.isClosed {
		return fmt.Errorf("%w: the store is closed", datastore.ErrUnavailable)
	}
	return nil
}

func (it item) entry() datastore.Entry {
	return datastore.Entry{Key: it.key, Value: slices.Clone(it.value), Rev: revision(it.rev)}
}

// revision is the text of a revision; a key that is not there has none.
func revision(rev int64) datastore.Revision {
	if rev == 0 {
		return ""
	}
	return datastore.Revision(strconv.FormatInt(rev, 10))
}

func parseRevision(r datastore.Revision) (int64, error) {
	n, err := strconv.ParseInt(string(r), 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("revision %q is not a number of this store", r)
	}
	return n, nil
}
