package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/autodetect"
	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/dataplane/nft"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/policy/render"
)

// pipeline is the one goroutine that owns the calculation. Producers leave
// their news in a mailbox that conflates; each round takes all of it, computes
// once, and hands whole maps to the tables and the speaker.
type pipeline struct {
	core    *calc.Core
	tables  *tables
	speaker *bgp.Speaker
	opts    Options
	wake    chan struct{}
	secrets string // directory of passwords

	addressKick chan struct{} // an address or link changed
	onStore     func(error)   // told of every batch; set before run
	onEvents    func([]datastore.Event)
	onState     func(calc.State) // told of every state before it is published; set before run
	onPaths     func([]desired.Path)
	tunnelKick  chan struct{} // what the pools want of tunnels, or the MTU, may have changed
	policyKick  chan struct{} // the policies in force have changed

	autoHostKick chan struct{} // the automatic host endpoint is not as wanted

	synced chan struct{} // closed once a first full state is in the tables

	mu           sync.Mutex
	pending      calc.Batch
	assigned     map[string]netip.Addr // of tunnel devices, as told last
	inSync       bool                  // the datastore's snapshot is complete
	linked       bool                  // the host's interfaces are known
	isReady      bool
	state        calc.State
	bgpError     error
	configured   bgp.Config      // what the speaker was last given, but for its announcements
	reconfigured time.Time       // when that last changed
	waiters      []chan struct{} // closed when the next round has been published
}

// refusedInterval is how often what the kernel has refused is tried again although it has not changed.
const refusedInterval = 5 * time.Minute

func newPipeline(core *calc.Core, t *tables, s *bgp.Speaker, o Options) *pipeline {
	p := &pipeline{
		core: core, tables: t, speaker: s, opts: o, secrets: secretsDir,
		autoHostKick: make(chan struct{}, 1), wake: make(chan struct{}, 1), addressKick: make(chan struct{}, 1), tunnelKick: make(chan struct{}, 1), policyKick: make(chan struct{}, 1), synced: make(chan struct{}),
	}
	t.filter.OnRefusal(p.refused)
	return p
}

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// refused takes what the kernel would not have of the packet filter. It is called by the table that writes it.
func (p *pipeline) refused(list []nft.Refusal) {
	p.mu.Lock()
	for _, r := range list {
		p.pending.Refused = append(p.pending.Refused, calc.Refusal{Key: r.Key, Why: r.Err.Error()})
	}
	p.mu.Unlock()
	kick(p.wake)
}

// deliver takes what Follow says.
func (p *pipeline) deliver(b datastore.Batch) {
	p.mu.Lock()
	p.pending.Events = append(p.pending.Events, b.Events...)
	p.inSync = p.inSync || b.InSync
	p.mu.Unlock()
	p.onStore(b.Err)
	if p.onEvents != nil {
		p.onEvents(b.Events)
	}
	kick(p.wake)
}

func (p *pipeline) linksChanged(links []autodetect.Interface, mtu int) {
	p.mu.Lock()
	p.pending.Links, p.pending.MTU, p.linked = links, mtu, true
	p.mu.Unlock()
	kick(p.wake)
	kick(p.addressKick)
}

func (p *pipeline) underlayChanged(routes []desired.Underlay) {
	p.mu.Lock()
	p.pending.Underlay = routes
	p.mu.Unlock()
	kick(p.wake)
}

// pathsMeasured takes what the prober found out.
func (p *pipeline) pathsMeasured(facts map[desired.PathKey]desired.PathFact) {
	p.mu.Lock()
	p.pending.Paths = facts
	p.mu.Unlock()
	kick(p.wake)
}

// run computes until ctx is done.
func (p *pipeline) run(ctx context.Context) error {
	// Routes learnt by BGP stay until the speaker has heard its peers again.
	p.tables.routes.HoldDeletes(func(_ desired.RouteKey, r desired.Route) bool { return r.Proto == desired.ProtoBGP })
	secrets := time.NewTicker(secretsInterval)
	defer secrets.Stop()
	again := time.NewTicker(refusedInterval)
	defer again.Stop()
	converge := time.NewTicker(200 * time.Millisecond)
	defer converge.Stop()
	settle := time.NewTicker(settleTime)
	defer settle.Stop()
	held := true
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.wake:
			if p.round(ctx) {
				settle.Reset(settleTime)
			}
		case <-settle.C:
			p.settle(ctx)
		case <-p.speaker.Changed():
			p.mu.Lock()
			p.pending.Learnt = nonNil(p.speaker.Best())
			p.mu.Unlock()
			p.round(ctx)
		case <-again.C:
			p.mu.Lock()
			p.pending.TryAgain = true
			p.mu.Unlock()
			p.round(ctx)
		case <-secrets.C:
			p.rereadSecrets(ctx)
		case <-converge.C:
		}
		if held && p.settled() {
			p.tables.routes.HoldDeletes(nil)
			converge.Stop()
			held = false
		}
	}
}

// settled reports that learnt routes which nobody announces may go: the state
// is complete, and the speaker knows what its peers have.
func (p *pipeline) settled() bool {
	select {
	case <-p.synced:
		return !p.opts.BGP || p.speaker.Converged()
	default:
		return false
	}
}

func nonNil(m map[netip.Prefix]bgp.Path) map[netip.Prefix]bgp.Path {
	if m == nil {
		return map[netip.Prefix]bgp.Path{}
	}
	return m
}

// settleTime is how long after a change of a pool's encapsulation other hosts are given to follow it.
const settleTime = 30 * time.Second

// settle ends the wait for hosts that do not say that they have followed a change of a pool.
func (p *pipeline) settle(ctx context.Context) {
	p.mu.Lock()
	waiting := p.state.Settling > 0
	p.pending.Settled = waiting
	p.mu.Unlock()
	if waiting {
		p.round(ctx)
	}
}

// round takes the mailbox, computes and publishes. Before the datastore's
// snapshot is complete and the host's interfaces are known it only folds:
// nothing may be written from half a state. It reports whether the encapsulation
// of a pool has begun to change.
func (p *pipeline) round(ctx context.Context) (changing bool) {
	p.mu.Lock()
	batch, complete, waiters, before := p.pending, p.inSync && p.linked, p.waiters, p.state.Settling
	p.pending, p.waiters = calc.Batch{}, nil
	p.mu.Unlock()

	state := p.core.Apply(batch)
	if !complete {
		p.mu.Lock()
		p.waiters = append(waiters, p.waiters...)
		p.mu.Unlock()
		return false
	}
	err := p.program(ctx, &state)
	p.publish(state, err)
	for _, w := range waiters {
		close(w)
	}
	select {
	case <-p.synced:
	default:
		close(p.synced)
	}
	return state.Settling > before
}

// program hands the state on; while the datastore is locked nothing changes.
func (p *pipeline) program(ctx context.Context, state *calc.State) error {
	if state.Locked {
		return nil
	}
	p.tables.sysctls.Set(state.Sysctls)
	p.tables.filter.Provide(state.NFT)
	p.tables.nft.Set(state.NFT.Objects)
	p.tables.setTunnels(ctx, *state)
	p.tables.routes.Set(state.Routes)
	if !p.opts.BGP {
		return nil
	}
	cfg, missing := withPasswords(p.secrets, state.BGP, state.Secrets)
	state.Problems = append(state.Problems, missing...)
	p.noteConfig(cfg)
	return p.speaker.Set(cfg)
}

// noteConfig keeps the time of the last change of sessions, filters or roles.
func (p *pipeline) noteConfig(cfg bgp.Config) {
	cfg.Announce = nil
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reconfigured.IsZero() || !reflect.DeepEqual(cfg, p.configured) {
		p.configured, p.reconfigured = cfg, time.Now()
	}
}

// rereadSecrets puts passwords in force that were changed on the disk.
func (p *pipeline) rereadSecrets(ctx context.Context) {
	p.mu.Lock()
	uses := len(p.state.Secrets) > 0
	p.mu.Unlock()
	if uses {
		p.round(ctx)
	}
}

func (p *pipeline) publish(state calc.State, bgpErr error) {
	p.onState(state)
	p.onPaths(state.Paths)
	p.tables.setMTUPattern(state.MTUPattern)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, text := range state.Problems {
		if !slices.Contains(p.state.Problems, text) {
			p.opts.Log.Warn("cannot be used", "problem", text)
		}
	}
	if bgpErr != nil && (p.bgpError == nil || p.bgpError.Error() != bgpErr.Error()) {
		remedy := ""
		if errors.Is(bgpErr, syscall.EADDRINUSE) {
			remedy = "another BGP daemon holds the port"
		}
		p.opts.Log.Error("BGP cannot run as configured", "err", bgpErr, "remedy", remedy)
	}
	if p.state.Use != state.Use || p.state.MTU != state.MTU {
		defer kick(p.tunnelKick)
	}
	if p.state.Policy != state.Policy {
		defer kick(p.policyKick)
	}
	if state.AutoHost.Stale {
		defer kick(p.autoHostKick)
	}
	p.state, p.bgpError = state, bgpErr
}

// policy is what is enforced, and what it has been rendered to. Both are nil
// before the first state.
func (p *pipeline) policy() (*policy.State, *render.Result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state.Policy, p.state.Filter
}

// Ensure makes an endpoint that was just written effective: it returns once
// its policy and its routes are in the kernel. It implements endpoint.Sink.
func (p *pipeline) Ensure(ctx context.Context, wep *api.WorkloadEndpoint) error {
	key := desired.EndpointKey{Namespace: wep.Namespace, Name: wep.Name}
	if err := p.change(ctx, calc.LocalChange{Key: key, Endpoint: wep}); err != nil {
		return err
	}
	p.waitProfiles(ctx, wep)
	want, err := endpointRoutes(wep)
	if err != nil {
		return err
	}
	if err := p.tables.routes.Wait(ctx, want); err != nil {
		return fmt.Errorf("route endpoint %s: %w", key, err)
	}
	if err := p.tables.nft.WaitKeys(ctx, render.Dispatch()...); err != nil {
		return fmt.Errorf("enforce policy on endpoint %s: %w", key, err)
	}
	return nil
}

// Remove makes the removal of an endpoint effective. It implements endpoint.Sink.
func (p *pipeline) Remove(ctx context.Context, namespace, name string) error {
	key := desired.EndpointKey{Namespace: namespace, Name: name}
	p.mu.Lock()
	old, known := p.state.Endpoints[key]
	p.mu.Unlock()
	if err := p.change(ctx, calc.LocalChange{Key: key}); err != nil {
		return err
	}
	if !known {
		return nil
	}
	var gone []desired.RouteKey
	for _, a := range old.Addrs.Addrs() {
		gone = append(gone, desired.NewRouteKey(netip.PrefixFrom(a, a.BitLen())))
	}
	return p.tables.routes.WaitGone(ctx, gone...)
}

// change puts one local change into the mailbox and waits for the round that
// takes it.
func (p *pipeline) change(ctx context.Context, l calc.LocalChange) error {
	return p.put(ctx, func(b *calc.Batch) { b.Local = append(b.Local, l) })
}

// assign has a tunnel device given an address; an invalid one takes it away.
func (p *pipeline) assign(ctx context.Context, device string, addr netip.Addr) error {
	return p.put(ctx, func(b *calc.Batch) {
		if p.assigned == nil {
			p.assigned = map[string]netip.Addr{}
		}
		p.assigned[device] = addr
		b.Assigned = maps.Clone(p.assigned)
	})
}

// put adds something to the mailbox and waits for the round that takes it.
func (p *pipeline) put(ctx context.Context, add func(*calc.Batch)) error {
	done := make(chan struct{})
	p.mu.Lock()
	add(&p.pending)
	p.waiters = append(p.waiters, done)
	p.mu.Unlock()
	kick(p.wake)
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the calculation: %w", ctx.Err())
	}
}

func endpointRoutes(wep *api.WorkloadEndpoint) (desired.Routes, error) {
	want := desired.Routes{}
	for _, text := range wep.Spec.IPNetworks {
		net, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("endpoint %s/%s: ipNetworks %q is not a prefix", wep.Namespace, wep.Name, text)
		}
		want.Add(desired.NewRouteKey(net), calc.WorkloadRoute(wep.Spec.InterfaceName))
	}
	return want, nil
}

// waitInSync returns once the datastore's and the kernel's state are known and
// the tables have been given a first full state and applied it.
func (p *pipeline) waitInSync(ctx context.Context) error {
	select {
	case <-p.synced:
	case <-ctx.Done():
		return ctx.Err()
	}
	return every(ctx, 5*time.Millisecond, nil, func() {}, func() bool {
		return p.tables.routes.Status().Started && p.tables.sysctls.Status().Started
	})
}

func (p *pipeline) ready() {
	p.mu.Lock()
	p.isReady = true
	p.mu.Unlock()
}

// every calls f at each interval and each kick until ctx is done, or until one
// of the conditions holds.
func every(ctx context.Context, interval time.Duration, kicks <-chan struct{}, f func(), until ...func() bool) error {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		f()
		for _, cond := range until {
			if cond() {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-kicks:
		case <-t.C:
		}
	}
}
