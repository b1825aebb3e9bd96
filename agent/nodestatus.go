package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// reporter keeps the CalicoNodeStatus objects that ask about this host current
// (spec/calico.md §6.6): one that is new or changed at once, each other one at
// its own period. Such objects are for looking into a host and few; every agent
// follows all of them, as calico/node does.
type reporter struct {
	store  datastore.Store
	node   string
	log    *slog.Logger
	report func(classes []api.NodeStatusClass) api.CalicoNodeStatusStatus

	news chan datastore.Batch
	asks map[string]ask // by object; owned by keep
}

// ask is one object's question, and when it is answered next.
type ask struct {
	classes []api.NodeStatusClass
	period  time.Duration // 0: answered never
	due     time.Time
}

func newReporter(a *Agent) *reporter {
	return &reporter{store: a.store, node: a.opts.Node, log: a.opts.Log, report: a.nodeReport}
}

// run answers until ctx is done.
func (r *reporter) run(ctx context.Context) error {
	r.news, r.asks = make(chan datastore.Batch), map[string]ask{}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return datastore.Follow(ctx, r.store, func(b datastore.Batch) {
			select {
			case r.news <- b:
			case <-ctx.Done():
			}
		}, datastore.Query{Kind: "CalicoNodeStatus"})
	})
	g.Go(func() error { return r.keep(ctx) })
	return g.Wait()
}

func (r *reporter) keep(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case b := <-r.news:
			for _, e := range b.Events {
				r.fold(e, time.Now())
			}
		case <-timer.C:
		}
		for _, name := range r.due(time.Now()) {
			r.answer(ctx, name)
		}
		timer.Reset(r.next(time.Now()))
	}
}

// fold takes one change. The agent's own answers come back this way, too: as
// they change nothing of the question they are not news.
func (r *reporter) fold(e datastore.Event, now time.Time) {
	name := e.Entry.Key.Name
	if e.Type == datastore.EventDelete {
		delete(r.asks, name)
		return
	}
	o, err := datastore.For[api.CalicoNodeStatus](nil).Decode(e.Entry)
	if err != nil {
		r.log.Warn("cannot be used", "problem", err)
	}
	if err != nil || o.Spec.Node != r.node {
		delete(r.asks, name)
		return
	}
	fresh := ask{classes: o.Spec.Classes, due: now}
	if p := o.Spec.UpdatePeriodSeconds; p != nil {
		fresh.period = time.Duration(*p) * time.Second
	}
	if old, known := r.asks[name]; !known || old.period != fresh.period || !slices.Equal(old.classes, fresh.classes) {
		r.asks[name] = fresh
	}
}

// due returns the objects to be answered now.
func (r *reporter) due(now time.Time) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(r.asks)), func(name string) bool {
		a := r.asks[name]
		return a.period == 0 || a.due.After(now)
	})
}

// next is how long nothing is due.
func (r *reporter) next(now time.Time) time.Duration {
	wait := time.Hour
	for _, a := range r.asks {
		if a.period > 0 {
			wait = min(wait, max(a.due.Sub(now), time.Millisecond))
		}
	}
	return wait
}

// answer writes one report. What cannot be written is tried again a period
// later; that the datastore does not answer is reported elsewhere.
func (r *reporter) answer(ctx context.Context, name string) {
	a := r.asks[name]
	a.due = time.Now().Add(a.period)
	r.asks[name] = a
	_, err := datastore.For[api.CalicoNodeStatus](r.store).Modify(ctx, "", name, func(o *api.CalicoNodeStatus) error {
		o.Status = r.report(a.classes)
		return nil
	})
	if err != nil && ctx.Err() == nil && !errors.Is(err, datastore.ErrNotFound) && !errors.Is(err, datastore.ErrUnavailable) {
		r.log.Warn("CalicoNodeStatus could not be updated", "name", name, "err", err)
	}
}
