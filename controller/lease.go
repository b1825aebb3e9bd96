// Package controller holds the loops that run once per cluster rather than once
// per host: they live in every agent, and a lease in the datastore lets exactly
// one of them work.
//
// The lease and the heartbeats are plain values under compare-and-swap; nobody
// compares clocks. Who waits looks whether a value still changes and measures by
// its own clock how long it has not (the scheme of Kubernetes' leader election).
package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/manekinet/maneki/datastore"
)

// LeaseDuration is how long a lease outlives its last renewal. The holder renews
// it three times as often, and stops working when two thirds have passed without
// one, which is before anybody else may take it.
const LeaseDuration = 15 * time.Second

// goodbye bounds the release of a lease at a stop.
const goodbye = 2 * time.Second

// LeaseRecord is the stored value of a lease.
type LeaseRecord struct {
	Holder   string            `json:"holder"`            // the node; empty: released
	Duration float64           `json:"durationSeconds"`   // after which an unchanged lease may be taken
	Renewals uint64            `json:"renewals"`          // by this holder; makes every renewal a change
	Terms    uint64            `json:"terms"`             // how often the lease changed hands
	Reports  map[string]string `json:"reports,omitempty"` // what each loop last did, in words
	Version  string            `json:"version,omitempty"` // of the holder's program
}

// Lease is one host's part in the election for one lease.
type Lease struct {
	Store    datastore.Store
	Name     string        // of the lease
	Holder   string        // this host's Node
	Version  string        // of this program, for the record
	Duration time.Duration // 0: LeaseDuration
	// Poll is how often this host looks at a lease that another one holds; nil: a
	// third of Duration. A large cluster looks more rarely, so that the datastore
	// sees the same number of reads.
	Poll func() time.Duration
	// Seen, if not nil, is told of every record that is read or written.
	Seen func(LeaseRecord)
	Log  *slog.Logger

	rev   datastore.Revision // of the record last seen or written
	since time.Time          // when rev was first seen here
}

// Run takes the lease whenever it is free and calls work while it is held, whose
// context ends when it is lost. It returns when ctx is done. reports is asked for
// what the loops did at each renewal.
func (l *Lease) Run(ctx context.Context, work func(context.Context) error, reports func() map[string]string) error {
	if l.Duration == 0 {
		l.Duration = LeaseDuration
	}
	for ctx.Err() == nil {
		record, held, err := l.try(ctx)
		if err != nil && ctx.Err() == nil {
			l.Log.Debug("lease cannot be read", "lease", l.Name, "err", err)
		}
		if held {
			l.Log.Info("leads", "lease", l.Name, "term", record.Terms)
			if err := l.lead(ctx, record, work, reports); err != nil && ctx.Err() == nil {
				l.Log.Warn("no longer leads", "lease", l.Name, "err", err)
			}
		}
		sleep(ctx, l.poll())
	}
	return ctx.Err()
}

func (l *Lease) key() datastore.Key {
	return datastore.Key{Kind: datastore.KindLease, Name: l.Name}
}

// poll is the next wait, with a quarter of jitter to either side.
func (l *Lease) poll() time.Duration {
	d := l.Duration / 3
	if l.Poll != nil {
		d = max(l.Poll(), d)
	}
	return d - d/4 + rand.N(d/2+1)
}

// try looks at the lease and takes it if it is free: absent, released, our own
// from before a restart, or unchanged for its duration.
func (l *Lease) try(ctx context.Context) (LeaseRecord, bool, error) {
	asked := time.Now()
	e, err := l.Store.Get(ctx, l.key())
	if errors.Is(err, datastore.ErrNotFound) {
		return l.take(ctx, LeaseRecord{}, datastore.Absent())
	}
	if err != nil {
		l.rev = "" // how long it is unchanged is not known any more
		return LeaseRecord{}, false, err
	}
	if e.Rev != l.rev {
		l.rev, l.since = e.Rev, time.Now()
	}
	var r LeaseRecord
	if err := json.Unmarshal(e.Value, &r); err != nil {
		r = LeaseRecord{} // nobody can hold what is no record
	}
	if l.Seen != nil {
		l.Seen(r)
	}
	patience := max(time.Duration(r.Duration*float64(time.Second)), l.Duration)
	if r.Holder != "" && r.Holder != l.Holder && asked.Sub(l.since) < patience {
		return r, false, nil
	}
	return l.take(ctx, r, datastore.At(e.Rev))
}

func (l *Lease) take(ctx context.Context, old LeaseRecord, pre datastore.Precondition) (LeaseRecord, bool, error) {
	r := LeaseRecord{Holder: l.Holder, Duration: l.Duration.Seconds(), Terms: old.Terms + 1, Reports: old.Reports, Version: l.Version}
	if err := l.put(ctx, r, pre); err != nil {
		return r, false, err
	}
	return r, true, nil
}

func (l *Lease) put(ctx context.Context, r LeaseRecord, pre datastore.Precondition) error {
	value, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode lease %s: %w", l.Name, err)
	}
	rev, err := l.Store.Put(ctx, l.key(), value, pre)
	if err != nil {
		return err
	}
	l.rev, l.since = rev, time.Now()
	if l.Seen != nil {
		l.Seen(r)
	}
	return nil
}

// lead works until ctx is done or the lease is lost, and waits for the end of
// the work. A lease that is not lost is released, so that the next one need not
// wait for it to run out.
func (l *Lease) lead(ctx context.Context, r LeaseRecord, work func(context.Context) error, reports func() map[string]string) error {
	g, working := errgroup.WithContext(ctx)
	g.Go(func() error { return work(working) })
	g.Go(func() error { return l.renew(working, &r, reports) })
	err := g.Wait()
	if errors.Is(err, errLost) {
		return err
	}
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
	defer cancel()
	r.Holder = ""
	if e := l.put(bye, r, datastore.At(l.rev)); e != nil {
		l.Log.Debug("lease was not released", "lease", l.Name, "err", e)
	}
	return err
}

// errLost means that the lease may be another one's by now.
var errLost = errors.New("the lease was not renewed in time, or taken")

// renew keeps the lease. It returns an error when somebody else has it, or could
// have it soon because it was not renewed for two thirds of its duration.
func (l *Lease) renew(ctx context.Context, r *LeaseRecord, reports func() map[string]string) error {
	last := time.Now()
	for {
		if !sleep(ctx, l.Duration/3) {
			return ctx.Err()
		}
		asked, end := time.Now(), last.Add(l.Duration*2/3)
		next := *r
		next.Renewals++
		next.Reports = reports()
		attempt, cancel := context.WithDeadline(ctx, end)
		err := l.put(attempt, next, datastore.At(l.rev))
		cancel()
		switch {
		case err == nil:
			*r, last = next, asked
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, datastore.ErrConflict), errors.Is(err, datastore.ErrNotFound), !time.Now().Before(end.Add(-l.Duration / 10)):
			return fmt.Errorf("%w: %w", errLost, err)
		}
	}
}

// sleep waits and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
