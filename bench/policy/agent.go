package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/datastore"
)

// real measures a whole agent on the host that this runs on: containers attached
// by the CNI plugin, objects written to the datastore, packets that probe.
type real struct {
	ctx   context.Context
	store datastore.Store
	pods  *pods
	probe *probe
	agent *process
}

const (
	realPods     = 100
	realPolicies = 1000
)

// withAgent is the whole measurement. The agent must be a client of a datastore
// elsewhere, because it is killed and started again.
func withAgent(agentPID int, etcd, shim string, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	store, err := config.Open(ctx, config.Config{Type: "etcdv3", EtcdEndpoints: []string{etcd}}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer store.Close()
	agent, err := adopt(agentPID)
	if err != nil {
		return err
	}
	defer agent.end()
	p, err := attachAll(shim, realPods)
	if err != nil {
		return err
	}
	defer p.detachAll()
	r := &real{ctx: ctx, store: store, pods: p, agent: agent}
	if r.probe, err = newProbe(p.list[0].space, p.list[1].space, p.list[0].addr, p.list[1].addr); err != nil {
		return err
	}
	defer r.probe.close()
	return errors.Join(r.measure(n), r.clean())
}

func (r *real) measure(n int) error {
	// The network's profile lets its members reach each other; this leaves it to policy.
	if err := r.apply(closed()); err != nil {
		return err
	}
	if err := r.probe.until(false); err != nil {
		return err
	}
	fmt.Printf("| on %d containers, one policy more or less among | from the write: p50 ms | p99 ms | from its acknowledgement: p50 ms | p99 ms | agent's CPU ms a change |\n|---|---|---|---|---|---|\n", realPods)
	made := 0
	for _, others := range []int{0, 100, realPolicies} {
		for ; made < others; made++ {
			if err := r.apply(other(made)); err != nil {
				return err
			}
		}
		if err := r.settled(others + 1); err != nil {
			return err
		}
		if err := r.changes(others, n); err != nil {
			return err
		}
	}
	fmt.Println()
	if err := r.size(); err != nil {
		return err
	}
	if err := r.starts(5); err != nil {
		return err
	}
	return r.moves(n)
}

func toIngress(name, selector string, rules ...api.Rule) *api.GlobalNetworkPolicy {
	p := &api.GlobalNetworkPolicy{}
	p.Name = name
	p.Spec.Selector, p.Spec.Types, p.Spec.Ingress = selector, []api.PolicyType{"Ingress"}, rules
	p.Default()
	return p
}

// closed has nothing to allow: what no other policy allows is denied.
func closed() *api.GlobalNetworkPolicy { return toIngress("bench-closed", "has(bench)") }

func protocol(name string) *api.IntOrString {
	v := api.FromText(name)
	return &v
}

// other is a policy of all containers with a selector and a port of its own; it
// has nothing to do with the probe.
func other(i int) *api.GlobalNetworkPolicy {
	r := api.Rule{Action: "Allow", Protocol: protocol("TCP")}
	r.Source.Selector = fmt.Sprintf("bench == 'pod-%d'", i%realPods)
	r.Destination.Ports = []api.IntOrString{api.FromInt(10_000 + i)}
	return toIngress(fmt.Sprintf("bench-%04d", i), "has(bench)", r)
}

// opening is the one that lets the probe through.
func opening() *api.GlobalNetworkPolicy {
	r := api.Rule{Action: "Allow", Protocol: protocol("UDP")}
	r.Destination.Ports = []api.IntOrString{api.FromInt(9000)}
	return toIngress("bench-0500-opening", "has(bench)", r)
}

func (r *real) apply(o api.Object) error { return datastore.ApplyObject(r.ctx, r.store, o) }

func (r *real) remove(o api.Object) error {
	return r.store.Delete(r.ctx, datastore.ObjectKey(o), datastore.Always())
}

// settled waits until the agent has that many policies in force.
func (r *real) settled(policies int) error {
	for r.ctx.Err() == nil {
		s, err := agentapi.NewClient("").Status(r.ctx)
		if err == nil && s.Policy.Policies == policies && s.Ready && inSync(s, "nftables") {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("wait for %d policies: %w", policies, r.ctx.Err())
}

func inSync(s *agentapi.Status, table string) bool {
	for _, t := range s.Tables {
		if t.Name == table {
			return t.Wanted == t.Present && t.Failed == 0
		}
	}
	return false
}

// change makes one write and waits for the packet that is judged anew. Both times
// end with that packet: they begin with the call, and with its acknowledgement.
func (r *real) change(write func() error, passes bool) (whole, acked time.Duration, err error) {
	begin := time.Now()
	answered := make(chan time.Time, 1)
	failed := make(chan error, 1)
	go func() {
		err := write()
		answered <- time.Now()
		failed <- err
	}()
	at, err := r.probe.when(passes)
	if err = errors.Join(err, <-failed); err != nil {
		return 0, 0, err
	}
	return at.Sub(begin), max(0, at.Sub(<-answered)), nil
}

// pause lets the agent come to rest, so that each change is met by an idle one.
const pause = 20 * time.Millisecond

func (r *real) changes(others, n int) error {
	var whole, acked []time.Duration
	used, err := r.agent.cpu()
	if err != nil {
		return err
	}
	for i := range n {
		write := func() error { return r.apply(opening()) }
		if i%2 == 1 {
			write = func() error { return r.remove(opening()) }
		}
		w, a, err := r.change(write, i%2 == 0)
		if err != nil {
			return fmt.Errorf("change %d among %d: %w", i, others, err)
		}
		whole, acked = append(whole, w), append(acked, a)
		time.Sleep(pause)
	}
	now, err := r.agent.cpu()
	fmt.Printf("| %d policies | %.2f | %.2f | %.2f | %.2f | %.1f |\n", others, ms(percentile(whole, 0.5)), ms(percentile(whole, 0.99)),
		ms(percentile(acked, 0.5)), ms(percentile(acked, 0.99)), ms(now-used)/float64(n))
	return err
}

// size is what the agent takes with everything in force and nothing to do.
func (r *real) size() error {
	time.Sleep(5 * time.Second)
	before, err := r.agent.cpu()
	if err != nil {
		return err
	}
	const idle = 20 * time.Second
	time.Sleep(idle)
	after, err := r.agent.cpu()
	if err != nil {
		return err
	}
	rss, err := r.agent.rss()
	fmt.Printf("%d policies on each of %d containers: the agent has %.1f MiB resident and uses %.2f %% of a core when idle.\n\n",
		realPolicies, realPods, rss, 100*float64(after-before)/float64(idle))
	return err
}

// starts kills the agent and starts it again: with the rules still in the
// kernel until it is ready, and without them until the first packet is denied.
func (r *real) starts(n int) error {
	var ready, enforced []time.Duration
	for range n {
		for _, cold := range []bool{false, true} {
			if err := r.agent.kill(); err != nil {
				return err
			}
			if cold {
				if err := r.pods.host("nft", "delete", "table", "inet", "maneki"); err != nil {
					return err
				}
				if err := r.probe.until(true); err != nil {
					return fmt.Errorf("without rules: %w", err)
				}
			}
			begin := time.Now()
			if err := r.agent.start(); err != nil {
				return err
			}
			if cold {
				at, err := r.probe.when(false)
				if err != nil {
					return fmt.Errorf("after a start: %w", err)
				}
				enforced = append(enforced, at.Sub(begin))
			}
			if err := r.ready(); err != nil {
				return err
			}
			if !cold {
				ready = append(ready, time.Since(begin))
			}
			if err := r.settled(realPolicies + 1); err != nil {
				return err
			}
		}
	}
	fmt.Printf("A start with these, of %d: until ready, with the rules still in the kernel, %.0f ms (median), %.0f ms (longest); until the first packet is denied, from an empty kernel, %.0f ms, %.0f ms.\n\n",
		n, ms(percentile(ready, 0.5)), ms(percentile(ready, 1)), ms(percentile(enforced, 0.5)), ms(percentile(enforced, 1)))
	return nil
}

func (r *real) ready() error {
	for r.ctx.Err() == nil {
		if s, err := agentapi.NewClient("").Status(r.ctx); err == nil && s.Ready {
			return nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return fmt.Errorf("wait for the agent: %w", r.ctx.Err())
}

// networks of one object: etcd takes 1.5 MiB at once.
const perSet = 10_000

// moves lets a selector have 100 000 members, and the probe's sender become one
// of them and cease to be.
func (r *real) moves(n int) error {
	for i := range 10 {
		s := &api.GlobalNetworkSet{}
		s.Name, s.Labels = fmt.Sprintf("bench-%d", i), map[string]string{"feed": "bench"}
		for k := range perSet {
			s.Spec.Nets = append(s.Spec.Nets, netip.PrefixFrom(address(i*perSet+k), 32).String())
		}
		if err := r.apply(s); err != nil {
			return err
		}
	}
	allow := api.Rule{Action: "Allow"}
	allow.Source.Selector = "feed == 'bench'"
	if err := r.apply(toIngress("bench-feed", "has(bench)", allow)); err != nil {
		return err
	}
	if err := r.settled(realPolicies + 2); err != nil {
		return err
	}
	one := &api.GlobalNetworkSet{}
	one.Name, one.Labels = "bench-one", map[string]string{"feed": "bench"}
	one.Spec.Nets = []string{netip.PrefixFrom(r.pods.list[0].addr, 32).String()}
	var whole, acked []time.Duration
	for i := range n {
		write := func() error { return r.apply(one) }
		if i%2 == 1 {
			write = func() error { return r.remove(one) }
		}
		w, a, err := r.change(write, i%2 == 0)
		if err != nil {
			return fmt.Errorf("move %d: %w", i, err)
		}
		whole, acked = append(whole, w), append(acked, a)
		time.Sleep(pause)
	}
	rss, err := r.agent.rss()
	fmt.Printf("One address more or less among 100 000: from the write %.2f ms (p50), %.2f ms (p99), from its acknowledgement %.2f ms, %.2f ms; the agent then has %.1f MiB resident.\n",
		ms(percentile(whole, 0.5)), ms(percentile(whole, 0.99)), ms(percentile(acked, 0.5)), ms(percentile(acked, 0.99)), rss)
	return err
}

// clean removes what was written.
func (r *real) clean() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	for _, kind := range []string{"GlobalNetworkPolicy", "GlobalNetworkSet"} {
		list, _, err := r.store.List(ctx, datastore.Query{Kind: kind})
		if err != nil {
			return err
		}
		for _, e := range list {
			if strings.HasPrefix(strings.TrimPrefix(e.Key.Name, "default."), "bench-") {
				errs = append(errs, r.store.Delete(ctx, e.Key, datastore.Always()))
			}
		}
	}
	return errors.Join(errs...)
}

// logFile is where an agent that this program has started writes.
func logFile() (*os.File, error) {
	return os.OpenFile("/var/log/bench-agent.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}
