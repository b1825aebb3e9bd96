package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

// errNotKept is the error of an object that is not what was just written: the target changes what it is given, or
// somebody else writes the same object. Without back-off the two would chase each other.
var errNotKept = errors.New("was written but is not there as written")

// maxDirtyInterval bounds how far slow listings stretch the interval between them, and so the time to repair.
const maxDirtyInterval = time.Second

// loop is what only the goroutine of Run knows.
type loop[K comparable, V comparable] struct {
	t *Table[K, V]

	nextResync  time.Time
	nextDump    time.Time // a listing that Dirty asks for comes no sooner
	unsure      bool      // a write failed: list again before believing what is remembered
	dumpFails   int
	unconfirmed map[K]struct{} // written since the last listing
	strikes     map[K]int      // listings in a row that did not show what had been written
	drifted     map[K]struct{} // found changed by somebody else, not repaired yet
}

func newLoop[K comparable, V comparable](t *Table[K, V]) *loop[K, V] {
	return &loop[K, V]{t: t, unconfirmed: map[K]struct{}{}, strikes: map[K]int{}, drifted: map[K]struct{}{}}
}

// plan is the work of one pass.
type plan[K comparable, V comparable] struct {
	puts []Entry[K, V]
	dels []K
}

// pass lists if that is due, applies what differs, and returns how long nothing needs to be done.
func (l *loop[K, V]) pass(ctx context.Context) time.Duration {
	if l.dumpDue(time.Now()) {
		l.dump(ctx)
	}
	if ctx.Err() != nil {
		return time.Hour
	}
	if p, ok := l.plan(time.Now()); ok {
		l.apply(ctx, p)
	}
	l.t.notify(time.Now())
	// Never at once: a mistake in the arithmetic below must not become a busy loop.
	return max(time.Millisecond, time.Until(l.next()))
}

func (l *loop[K, V]) dumpDue(now time.Time) bool {
	l.t.mu.Lock()
	defer l.t.mu.Unlock()
	switch {
	case now.Before(l.nextDump):
		return false
	case l.t.have == nil, l.t.dirty, l.unsure, l.dumpFails > 0:
		return true
	}
	return l.t.opts.Resync > 0 && !now.Before(l.nextResync)
}

// dump lists what is there. An error leaves what is remembered.
func (l *loop[K, V]) dump(ctx context.Context) {
	t := l.t
	t.mu.Lock()
	event := t.dirty
	t.dirty, t.listing = false, true // events that arrive during the listing ask for another one
	t.mu.Unlock()

	begin := time.Now()
	got, err := t.applier.Dump(ctx)
	now := time.Now()

	t.mu.Lock()
	defer t.mu.Unlock()
	t.listing = false
	if ctx.Err() != nil {
		return
	}
	t.status.dumps++
	if err != nil {
		l.dumpFails++
		err = fmt.Errorf("list %s: %w", t.opts.Name, err)
		if l.dumpFails == 1 {
			t.opts.Logger.Warn("listing failed, trying again", "table", t.opts.Name, "error", err)
		}
		t.status.dumpErr = err
		t.status.fail(err, now)
		t.dirty = t.dirty || event
		l.nextDump = now.Add(l.backoff(l.dumpFails))
		return
	}
	if got == nil {
		got = map[K]V{}
	}
	l.compare(got, now)
	t.have, t.status.dumpErr, l.dumpFails, l.unsure = got, nil, 0, false
	l.nextResync = now.Add(jitter(t.opts.Resync))
	l.nextDump = now.Add(max(t.opts.DirtyInterval, min(10*now.Sub(begin), maxDirtyInterval)))
	if event {
		t.retryNow()
	}
}

// compare finds what somebody else has changed since the last listing, and which writes were not kept. Table.mu is
// held.
func (l *loop[K, V]) compare(got map[K]V, now time.Time) {
	t := l.t
	for k := range l.unconfirmed {
		g, there := got[k]
		h, expected := t.have[k]
		if there == expected && g == h {
			delete(l.strikes, k)
			if t.failed[k].unkept {
				delete(t.failed, k)
			}
			continue
		}
		l.strikes[k]++
		if l.strikes[k] == 1 {
			continue // somebody was quick to change it: repair it like anything else
		}
		f := failure{err: fmt.Errorf("%s %v: %w", t.opts.Name, k, errNotKept), attempts: l.strikes[k] - 1, unkept: true}
		f.retryAt = now.Add(l.backoff(f.attempts))
		t.failed[k] = f
		t.status.fail(f.err, now)
	}
	clear(l.unconfirmed)
	if t.have == nil {
		return
	}
	missing, changed, foreign := Diff(t.have, got)
	for _, m := range []map[K]V{missing, changed, foreign} {
		for k := range m {
			l.drifted[k] = struct{}{}
		}
	}
}

// retryNow ends the back-off of failed objects: what they lacked (an interface, a route to the gateway) may be what
// the event was about. Objects that were not kept are no such case. Table.mu is held.
func (t *Table[K, V]) retryNow() {
	for k, f := range t.failed {
		if !f.unkept {
			f.retryAt = time.Time{}
			t.failed[k] = f
		}
	}
}

// plan compares wanted and present, leaving out what is on hold or waits for its next attempt.
func (l *loop[K, V]) plan(now time.Time) (p plan[K, V], ok bool) {
	t := l.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.want == nil || t.have == nil {
		return p, false
	}
	adds, changes, dels := Diff(t.want, t.have)
	open := make(map[K]struct{}, len(t.failed))
	due := func(k K) bool {
		f, failed := t.failed[k]
		if failed {
			open[k] = struct{}{}
		}
		return !failed || !now.Before(f.retryAt)
	}
	maps.Copy(adds, changes)
	puts := keysIf(adds, func(k K, _ V) bool { return due(k) })
	for _, k := range t.sorted(puts) {
		p.puts = append(p.puts, Entry[K, V]{k, adds[k]})
	}
	p.dels = t.sorted(keysIf(dels, func(k K, v V) bool { return !t.held(k, v) && due(k) }))

	settled := func(k K) bool {
		_, put := adds[k]
		_, del := dels[k]
		return !put && !del
	}
	maps.DeleteFunc(l.drifted, func(k K, _ struct{}) bool { return settled(k) })
	maps.DeleteFunc(l.strikes, func(k K, _ int) bool { return settled(k) && !l.written(k) })
	for k, f := range t.failed {
		// No longer asked for. What was not kept stays until a listing confirms it.
		if _, stillOpen := open[k]; !stillOpen && !(f.unkept && l.written(k)) {
			delete(t.failed, k)
		}
	}
	return p, true
}

func (l *loop[K, V]) written(k K) bool {
	_, ok := l.unconfirmed[k]
	return ok
}

func (t *Table[K, V]) held(k K, v V) bool { return t.hold != nil && t.hold(k, v) }

func keysIf[K comparable, V comparable](m map[K]V, keep func(K, V) bool) []K {
	keys := make([]K, 0, len(m))
	for k, v := range m {
		if keep(k, v) {
			keys = append(keys, k)
		}
	}
	return keys
}

// apply puts, then deletes: what replaces an object is there before the object goes.
func (l *loop[K, V]) apply(ctx context.Context, p plan[K, V]) {
	if len(p.puts)+len(p.dels) == 0 {
		return
	}
	var r report
	if batch, ok := l.t.applier.(BatchApplier[K, V]); ok {
		l.applyBatch(ctx, batch, p, &r)
	} else {
		l.applySingly(ctx, p, &r)
	}
	r.log(l.t.opts.Logger, l.t.opts.Name)
}

func (l *loop[K, V]) applySingly(ctx context.Context, p plan[K, V], r *report) {
	for _, e := range p.puts {
		if ctx.Err() != nil {
			return
		}
		if l.stillWanted(e) {
			l.put(e, l.t.applier.Put(ctx, e.Key, e.Value), r)
		}
	}
	if len(p.dels) > 0 {
		l.t.notify(time.Now()) // whoever waits for a put need not wait for the deletions
	}
	for _, k := range p.dels {
		if ctx.Err() != nil {
			return
		}
		if l.stillUnwanted(k) {
			l.deleted(k, l.t.applier.Delete(ctx, k), r)
		}
	}
}

func (l *loop[K, V]) applyBatch(ctx context.Context, batch BatchApplier[K, V], p plan[K, V], r *report) {
	p.puts = slices.DeleteFunc(p.puts, func(e Entry[K, V]) bool { return !l.stillWanted(e) })
	p.dels = slices.DeleteFunc(p.dels, func(k K) bool { return !l.stillUnwanted(k) })
	errs := batch.Apply(ctx, p.puts, p.dels)
	if ctx.Err() != nil {
		return
	}
	for _, e := range p.puts {
		l.put(e, errs[e.Key], r)
	}
	for _, k := range p.dels {
		l.deleted(k, errs[k], r)
	}
}

// stillWanted and stillUnwanted look again at the moment of writing: Set may have been called since the plan was made.
func (l *loop[K, V]) stillWanted(e Entry[K, V]) bool {
	l.t.mu.Lock()
	defer l.t.mu.Unlock()
	w, ok := l.t.want[e.Key]
	return ok && w == e.Value
}

func (l *loop[K, V]) stillUnwanted(k K) bool {
	l.t.mu.Lock()
	defer l.t.mu.Unlock()
	_, wanted := l.t.want[k]
	return !wanted && !l.t.held(k, l.t.have[k])
}

// put records the outcome of one Put.
func (l *loop[K, V]) put(e Entry[K, V], err error, r *report) {
	l.t.mu.Lock()
	defer l.t.mu.Unlock()
	if err != nil {
		l.failed(e.Key, fmt.Errorf("put %s %v: %w", l.t.opts.Name, e.Key, err), r)
		return
	}
	l.t.have[e.Key] = e.Value
	l.t.status.applied++
	r.puts++
	l.succeeded(e.Key, r)
}

// deleted records the outcome of one Delete.
func (l *loop[K, V]) deleted(k K, err error, r *report) {
	l.t.mu.Lock()
	defer l.t.mu.Unlock()
	if err != nil {
		l.failed(k, fmt.Errorf("delete %s %v: %w", l.t.opts.Name, k, err), r)
		return
	}
	delete(l.t.have, k)
	l.t.status.deleted++
	r.dels++
	l.succeeded(k, r)
}

func (l *loop[K, V]) succeeded(k K, r *report) {
	l.unconfirmed[k] = struct{}{}
	if _, ok := l.drifted[k]; ok {
		delete(l.drifted, k)
		l.t.status.healed++
		r.healed++
	}
	switch f, ok := l.t.failed[k]; {
	case ok && f.unkept:
		l.unsure = true // only a listing can tell whether it is kept this time
	case ok:
		delete(l.t.failed, k)
	}
}

func (l *loop[K, V]) failed(k K, err error, r *report) {
	now := time.Now()
	f := l.t.failed[k]
	f.err = err
	f.attempts++
	f.retryAt = now.Add(l.backoff(f.attempts))
	l.t.failed[k] = f
	l.t.status.fail(err, now)
	l.unsure = true
	r.fail(err, f.attempts == 1)
}

// next is when something is to be done without being asked.
func (l *loop[K, V]) next() time.Time {
	t := l.t
	t.mu.Lock()
	defer t.mu.Unlock()
	at := time.Now().Add(time.Hour)
	if t.opts.Resync > 0 && l.nextResync.Before(at) && l.dumpFails == 0 && t.have != nil {
		at = l.nextResync
	}
	if (t.have == nil || t.dirty || l.unsure || l.dumpFails > 0) && l.nextDump.Before(at) {
		at = l.nextDump
	}
	if t.want != nil && t.have != nil {
		for k, f := range t.failed {
			if l.written(k) {
				continue // waits for a listing, not for another attempt
			}
			if f.retryAt.Before(at) {
				at = f.retryAt
			}
		}
	}
	return at
}

// backoff is the wait after the given number of failed attempts in a row.
func (l *loop[K, V]) backoff(attempts int) time.Duration {
	d := l.t.opts.RetryMin << min(attempts-1, 20)
	return jitter(min(max(d, l.t.opts.RetryMin), l.t.opts.RetryMax))
}

// jitter is d plus or minus a tenth, so that the tables and hosts of a network do not beat in time.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return d
	}
	return d - d/10 + time.Duration(rand.Int64N(int64(d/5)+1))
}

// notify wakes whoever waits, and notes the time when everything is as wanted.
func (t *Table[K, V]) notify(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for w := range t.watchers {
		close(w)
	}
	clear(t.watchers)
	if t.want == nil || t.have == nil || len(t.failed) > 0 || t.status.dumpErr != nil {
		return
	}
	if _, ok := t.missing(); ok {
		t.status.lastSync = now
	}
}
