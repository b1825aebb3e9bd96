package datastore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// casAttempts bounds every compare-and-swap loop.
const casAttempts = 100

// Item is one decoded value with its key and revision.
type Item[T any] struct {
	Key   Key
	Value T
	Rev   Revision
}

// GetJSON reads and decodes one plain value (an IPAM object), or ErrNotFound.
func GetJSON[T any](ctx context.Context, s Store, k Key) (T, Revision, error) {
	var v T
	e, err := s.Get(ctx, k)
	if err != nil {
		return v, "", err
	}
	v, err = DecodeJSON[T](e)
	return v, e.Rev, err
}

// ListJSON reads the values of one query in key order and the revision to watch
// from. Values that cannot be decoded are left out and reported one by one in
// problems.
func ListJSON[T any](ctx context.Context, s Store, q Query) (items []Item[T], rev Revision, problems []error, err error) {
	entries, rev, err := s.List(ctx, q)
	if err != nil {
		return nil, "", nil, err
	}
	for _, e := range entries {
		v, err := DecodeJSON[T](e)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		items = append(items, Item[T]{Key: e.Key, Value: v, Rev: e.Rev})
	}
	return items, rev, problems, nil
}

// DecodeJSON decodes a stored plain value. The empty value, which old releases
// stored for affinities and host markers, is the zero T for these kinds.
func DecodeJSON[T any](e Entry) (T, error) {
	var v T
	if len(e.Value) == 0 && (e.Key.Kind == KindBlockAffinity || e.Key.Kind == KindIPAMHost) {
		return v, nil
	}
	if err := json.Unmarshal(e.Value, &v); err != nil {
		return v, fmt.Errorf("decode %s: %w", e.Key, err)
	}
	return v, nil
}

// Update is the one compare-and-swap helper: it reads a value, lets fn decide
// what should be there, and writes that; if somebody else wrote meanwhile it
// starts again with the newer value, 100 times at most. fn gets nil if there is
// no value and returns nil for none; it may change and return what it was
// given. An error of fn ends it. Nothing is written when nothing changes.
func Update[T any](ctx context.Context, s Store, k Key, fn func(cur *T) (*T, error)) error {
	for attempt := 0; ; attempt++ {
		err := updateOnce(ctx, s, k, fn)
		var race raceError
		if !errors.As(err, &race) {
			return err
		}
		if attempt+1 == casAttempts {
			return fmt.Errorf("update %s: given up after %d attempts: %w", k, casAttempts, race.error)
		}
		if err := pause(ctx, attempt); err != nil {
			return err
		}
	}
}

// raceError marks a write that lost against another one, to tell it from an
// error of the caller's function.
type raceError struct{ error }

func updateOnce[T any](ctx context.Context, s Store, k Key, fn func(cur *T) (*T, error)) error {
	var cur *T
	e, err := s.Get(ctx, k)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return err
	default:
		v, err := DecodeJSON[T](e)
		if err != nil {
			return err
		}
		cur = &v
	}
	absent := cur == nil
	next, err := fn(cur)
	if err != nil {
		return err
	}
	err = store(ctx, s, k, next, e, absent)
	if isRace(err) {
		return raceError{err}
	}
	return err
}

// store writes next over the entry just read, or deletes it.
func store[T any](ctx context.Context, s Store, k Key, next *T, cur Entry, absent bool) error {
	if next == nil {
		if absent {
			return nil
		}
		return s.Delete(ctx, k, At(cur.Rev))
	}
	value, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("encode %s: %w", k, err)
	}
	if absent {
		_, err = s.Put(ctx, k, value, Absent())
		return err
	}
	if bytes.Equal(value, cur.Value) {
		return nil
	}
	_, err = s.Put(ctx, k, value, At(cur.Rev))
	return err
}

// isRace reports whether a conditional write failed because of another write.
func isRace(err error) bool {
	return errors.Is(err, ErrConflict) || errors.Is(err, ErrExists) || errors.Is(err, ErrNotFound)
}

// pause waits before attempt+1 of a compare-and-swap: a random time that grows
// to 50 ms, so that many writers of one key get through in turn.
func pause(ctx context.Context, attempt int) error {
	limit := min(time.Millisecond<<min(attempt, 6), 50*time.Millisecond)
	t := time.NewTimer(rand.N(limit))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
