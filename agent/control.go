package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/controller"
)

// control is this host's part in what is done once per cluster: the heartbeat,
// and the election of the one host whose controller works. Without anything to
// control neither touches the datastore.
type control struct {
	agent *Agent
	log   *slog.Logger
	kick  chan struct{} // the state may say something else of what is wanted

	mu    sync.Mutex
	state calc.Reflection
	role  bool // this host is a reflector
	seen  controller.LeaseRecord
}

func newControl(a *Agent) *control {
	return &control{agent: a, log: a.opts.Log.With("part", "controller"), kick: make(chan struct{}, 1)}
}

// readsPerSecond bounds how often all hosts together look at the lease.
const readsPerSecond = 20

// follow takes a new state; see pipeline.onState.
func (c *control) follow(state calc.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if tasksOf(c.state) != tasksOf(state.Reflection) {
		kick(c.kick)
	}
	c.state, c.role = state.Reflection, state.BGP.ClusterID.IsValid()
}

// tasks are what there is to control. The zero value is nothing.
type tasks struct{ reflection, garbage bool }

func tasksOf(s calc.Reflection) tasks { return tasks{s.Controlled, s.Garbage} }

func (c *control) wanted() tasks {
	c.mu.Lock()
	defer c.mu.Unlock()
	return tasksOf(c.state)
}

// run takes part while something is to be controlled, until ctx is done.
func (c *control) run(ctx context.Context) error {
	for {
		for now := c.wanted(); now != (tasks{}) && ctx.Err() == nil; now = c.wanted() {
			if err := c.takePart(ctx, now); err != nil && !errors.Is(err, context.Canceled) {
				c.log.Error("the controller failed", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.kick:
		}
	}
}

// takePart contends, and beats where that is needed, until something else is to be
// controlled.
func (c *control) takePart(ctx context.Context, now tasks) error {
	part, cancel := context.WithCancel(ctx)
	defer cancel()
	beater := &controller.Beater{Store: c.agent.store, Node: c.agent.opts.Node, Look: c.beat, Log: c.log}
	contender := &controller.Controller{
		Lease: &controller.Lease{
			Store: c.agent.store, Name: controller.LeaseName, Holder: c.agent.opts.Node, Version: c.agent.opts.Version,
			Poll: c.poll, Seen: c.note, Log: c.log,
		},
		Log: c.log,
	}
	g, part := errgroup.WithContext(part)
	if now.reflection {
		contender.Loops = append(contender.Loops, &controller.Reflection{Store: c.agent.store, Log: c.log})
		if c.agent.opts.BGP { // a host without sessions is not waited for
			g.Go(func() error { return beater.Run(part) })
		}
	}
	if now.garbage {
		contender.Loops = append(contender.Loops, &controller.Garbage{Store: c.agent.store, IPAM: c.agent.ipam, Log: c.log})
	}
	g.Go(func() error { return contender.Run(part) })
	g.Go(func() error {
		defer cancel()
		for c.wanted() == now {
			select {
			case <-part.Done():
				return part.Err()
			case <-c.kick:
			}
		}
		return nil
	})
	err := g.Wait()
	if ctx.Err() == nil && now.reflection && !c.wanted().reflection {
		c.note(controller.LeaseRecord{})
		err = errors.Join(err, beater.Forget(ctx))
	}
	return err
}

func (c *control) note(r controller.LeaseRecord) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = r
}

// poll is how often this host looks at the lease of another.
func (c *control) poll() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Duration(c.state.Hosts) * time.Second / readsPerSecond
}

// beat counts the sessions with the cluster's other hosts.
func (c *control) beat() (b controller.Beat, hosts int, reflector bool) {
	c.mu.Lock()
	state, role := c.state, c.role
	c.mu.Unlock()
	return countSessions(c.agent.speaker.Status(), state), state.Hosts, role
}

func countSessions(peers []bgp.PeerStatus, state calc.Reflection) controller.Beat {
	var b controller.Beat
	for _, p := range peers {
		if !p.Peer.Cluster {
			continue
		}
		b.Sessions++
		name := state.NodeOf[p.Peer.Addr]
		if p.State != established || !p.EoR {
			if !slices.Contains(b.Missing, name) && len(b.Missing) < controller.MaxMissing {
				b.Missing = append(b.Missing, name)
			}
			continue
		}
		b.Established++
		if p.Peer.Client {
			b.Clients++
		}
	}
	slices.Sort(b.Missing)
	return b
}

// report is what status says of the controller, nil when there is none.
func (c *control) report(state calc.Reflection) *agentapi.Reflection {
	if !state.Controlled {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &agentapi.Reflection{Mode: api.ReflectionManual, Leader: c.seen.Holder, Report: c.seen.Reports[controller.ReflectionName]}
	if state.Auto {
		r.Mode = api.ReflectionAuto
	}
	return r
}
