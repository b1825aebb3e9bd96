package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/endpoint"
)

// labelPrefix begins the container labels that Calico knows; they are endpoint labels without it.
const labelPrefix = "org.projectcalico.label."

var errNoContainer = errors.New("no container has the endpoint yet")

// How long foresee may take. Docker's list takes some milliseconds, more on a busy machine; a dockerd that starts does not
// answer at all.
const (
	foreseeTime = 500 * time.Millisecond
	minBusy     = 15 * time.Millisecond
	maxBusy     = 200 * time.Millisecond
	busyShare   = 4 // a container that is not described in this many times the list's time is being worked on
)

// foresee is what an endpoint's labels and annotations can be before its container starts, so that policy by label holds
// for the first packet. Docker does not tell its drivers for which container an endpoint is, and shows it in its API
// only when the container runs. But it locks the container meanwhile; so the containers that wait for an endpoint of this
// network and are locked are those that it can be for. What all of them have in common is certain: with one container
// started at a time that is everything. The rest follows in label.
//
// Labels given by --network name=...,driver-opt=org.projectcalico.label.KEY=VALUE come with the request.
func (s *Server) foresee(ctx context.Context, w network, q *endpointRequest) (labels, annotations map[string]string) {
	annotations = map[string]string{endpoint.AnnotationDockerNetwork: q.NetworkID}
	if w.Docker != "" {
		annotations[endpoint.AnnotationDockerNetworkName] = w.Docker
	}
	labels = map[string]string{}
	if waiting := s.waiting(ctx, w, q.Interface); len(waiting) > 0 {
		labels = endpointLabels(waiting[0].Labels)
		for _, c := range waiting[1:] {
			other := endpointLabels(c.Labels)
			maps.DeleteFunc(labels, func(k, v string) bool { o, ok := other[k]; return !ok || o != v })
		}
		if len(waiting) == 1 { // its name
			annotations[endpoint.AnnotationDockerNames] = strings.Join(dnsNames(waiting[0], nil), ",")
		}
	}
	maps.Copy(labels, driverLabels(q.driverOptions()))
	return labels, annotations
}

// driverLabels are the labels given as options of the driver.
func driverLabels(options map[string]string) map[string]string {
	given := maps.Clone(options)
	maps.DeleteFunc(given, func(k, _ string) bool { return !strings.HasPrefix(k, labelPrefix) })
	return endpointLabels(given)
}

// driverOptions are those options of a request that are text, as all driver-opts are.
func (q *endpointRequest) driverOptions() map[string]string {
	out := map[string]string{}
	for k, v := range q.Options {
		var text string
		if json.Unmarshal(v, &text) == nil {
			out[k] = text
		}
	}
	return out
}

// waiting are the containers that an endpoint being created can be for.
func (s *Server) waiting(ctx context.Context, w network, i *endpointInterface) []listed {
	ctx, cancel := context.WithTimeout(ctx, foreseeTime)
	defer cancel()
	start := time.Now()
	all, err := s.engine.containers(ctx, w.ID, w.Docker)
	if err != nil {
		s.Log.Debug("labels are not known before the container starts", "err", err)
		return nil
	}
	all = slices.DeleteFunc(all, func(c listed) bool { return !c.waitsFor(w, i) })
	if len(all) > maxProbes { // what all have in common is certain whoever it is
		return all
	}
	limit := min(max(busyShare*time.Since(start), minBusy), maxBusy)
	busy := make([]bool, len(all))
	var probes sync.WaitGroup
	for n, c := range all {
		probes.Go(func() { busy[n] = s.engine.busy(ctx, c.ID, limit) })
	}
	probes.Wait()
	var out []listed
	for n, c := range all {
		if busy[n] {
			out = append(out, c)
		}
	}
	return out
}

// maxProbes bounds the containers that Docker is asked about: when many start at once, each asks about all others.
const maxProbes = 4

// waitsFor reports that a container does not run and will have an endpoint of the network with that address.
func (c *listed) waitsFor(w network, i *endpointInterface) bool {
	if c.State == "running" || c.State == "paused" {
		return false
	}
	for name, n := range c.NetworkSettings.Networks {
		if name != w.Docker && n.NetworkID != w.ID || n.EndpointID != "" {
			continue
		}
		given := n.IPAMConfig == nil || n.IPAMConfig.IPv4Address == ""
		return given || strings.HasPrefix(i.Address, n.IPAMConfig.IPv4Address+"/")
	}
	return false
}

// pollShare keeps the questions after new containers a small part of what dockerd does: a pause is at least this many
// times as long as the answer before it took.
const pollShare = 4

// label has an endpoint labelled when Docker shows its container.
func (s *Server) label(endpointID string) {
	s.newMu.Lock()
	s.new[endpointID] = time.Now().Add(s.LabelTime)
	s.newMu.Unlock()
	select {
	case s.newKick <- struct{}{}:
	default:
	}
}

// labels gives new endpoints the labels and names of their containers. Docker shows them when they have started, so it is
// asked again and again, for all that wait at once. What is not found in time is left to relabel.
func (s *Server) labels(ctx context.Context) error {
	const first, last = 20 * time.Millisecond, 500 * time.Millisecond
	wait := first               // until the next question, if nobody new comes
	var soonest, next time.Time // when Docker may be asked, and when it will be
	for {
		var tick <-chan time.Time
		if s.waitForLabels() {
			tick = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.newKick:
			at := later(soonest, time.Now().Add(first))
			if wait = first; next.Before(time.Now()) || at.Before(next) { // an earlier question stays
				next = at
			}
			continue
		case <-tick:
		}
		start := time.Now()
		if s.labelNew(ctx) {
			wait = first
		}
		soonest = time.Now().Add(pollShare * time.Since(start))
		next = later(soonest, time.Now().Add(wait))
		wait = min(2*wait, last)
	}
}

func (s *Server) waitForLabels() bool {
	s.newMu.Lock()
	defer s.newMu.Unlock()
	return len(s.new) > 0
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// labelNew asks Docker once and labels those of the new endpoints that it shows; found is false when there was none.
func (s *Server) labelNew(ctx context.Context) (found bool) {
	all, err := s.engine.containers(ctx)
	containers := byEndpoint(all)
	s.newMu.Lock()
	waiting := maps.Clone(s.new)
	s.newMu.Unlock()
	for id, deadline := range waiting {
		why := err
		if c, ok := containers[id]; ok {
			found = true
			why = s.labelPort(ctx, c, id)
		} else if why == nil {
			why = errNoContainer
		}
		late := time.Now().After(deadline)
		if late && why != nil && ctx.Err() == nil {
			s.Log.Warn("container's labels not found in time; they are looked for again later", "endpoint", id, "err", why)
			s.unlabelled.Store(true)
		}
		if late || why == nil || errors.Is(why, datastore.ErrNotFound) { // gone already
			s.newMu.Lock()
			delete(s.new, id)
			s.newMu.Unlock()
		}
	}
	return found
}

func byEndpoint(all []listed) map[string]listed {
	out := map[string]listed{}
	for _, c := range all {
		for _, n := range c.NetworkSettings.Networks {
			if n.EndpointID != "" {
				out[n.EndpointID] = c
			}
		}
	}
	return out
}

// labelPort gives an endpoint what its container has.
func (s *Server) labelPort(ctx context.Context, c listed, endpointID string) error {
	m, err := s.engine.membership(ctx, c.ID, endpointID)
	if err != nil {
		return err
	}
	labels := endpointLabels(c.Labels)
	maps.Copy(labels, driverLabels(m.DriverOpts))
	names := strings.Join(dnsNames(c, append(m.Aliases, m.DNSNames...)), ",")
	return s.Endpoints.LabelPort(ctx, endpointID, labels, map[string]string{endpoint.AnnotationDockerNames: names})
}

// relabel looks at all endpoints of this host whose container's labels or name are not what Docker says: Docker did not
// answer in time, which it does not before it has restarted all its containers; or the agent was killed; or the
// container was renamed.
func (s *Server) relabel(ctx context.Context) error {
	own, err := s.Endpoints.Ports(ctx)
	if err != nil || len(own) == 0 {
		return err
	}
	all, err := s.engine.containers(ctx)
	if err != nil {
		return err
	}
	containers := byEndpoint(all)
	var errs []error
	s.unlabelled.Store(false)
	for _, w := range own {
		c, ok := containers[w.Spec.Endpoint]
		if !ok && w.Annotations[endpoint.AnnotationDockerNames] == "" {
			s.unlabelled.Store(true)
		}
		if !ok || labelled(w, c) {
			continue
		}
		if err := s.labelPort(ctx, c, w.Spec.Endpoint); err != nil && !errors.Is(err, datastore.ErrNotFound) {
			errs = append(errs, fmt.Errorf("label endpoint %s: %w", w.Spec.Endpoint, err))
		}
	}
	return errors.Join(errs...)
}

// labelled reports that an endpoint has the labels of its container, and that its own name is the container's. Aliases
// never change.
func labelled(w *api.WorkloadEndpoint, c listed) bool {
	for k, v := range endpointLabels(c.Labels) {
		if have, ok := w.Labels[k]; !ok || have != v && !strings.HasPrefix(k, "projectcalico.org/") {
			return false
		}
	}
	names := strings.Split(w.Annotations[endpoint.AnnotationDockerNames], ",")
	return slices.Equal(names[:min(1, len(names))], dnsNames(c, nil)[:1])
}

// dnsNames are the names by which a container is found, as in Docker's own name service: its own, its aliases and the
// head of its ID, in lower case.
func dnsNames(c listed, aliases []string) []string {
	var names []string
	add := func(name string) {
		name = strings.ToLower(strings.TrimPrefix(name, "/"))
		if name != "" && !strings.ContainsAny(name, "/, ") && !slices.Contains(names, name) && len(names) < maxNames {
			names = append(names, name)
		}
	}
	for _, n := range c.Names {
		add(n)
	}
	for _, n := range aliases {
		add(n)
	}
	add(c.ID[:min(12, len(c.ID))])
	return names
}

// maxNames bounds the names of one container.
const maxNames = 64

// endpointLabels are the labels of a container as an endpoint can have them: those with Calico's prefix without it,
// which win, and all others. Docker allows any text; what is no label by Kubernetes' rules is made one, and loses
// against one that is.
func endpointLabels(labels map[string]string) map[string]string {
	out := map[string]string{}
	for _, calico := range []bool{false, true} {
		for _, exact := range []bool{false, true} {
			for _, k := range slices.Sorted(maps.Keys(labels)) {
				short, ok := strings.CutPrefix(k, labelPrefix)
				if ok != calico || api.ValidLabelKey(short) != exact {
					continue
				}
				if key := labelKey(short); key != "" {
					out[key] = labelWord(labels[k])
				}
			}
		}
	}
	return out
}

// labelKey makes a label's key; empty when nothing of it can be one.
func labelKey(s string) string {
	if api.ValidLabelKey(s) {
		return s
	}
	if prefix, name, ok := strings.Cut(s, "/"); ok && api.ValidLabelKey(prefix+"/x") && labelWord(name) != "" {
		return prefix + "/" + labelWord(name)
	}
	return labelWord(s)
}

// labelWord makes a label's value: what is no letter, digit, '-', '_' or '.' becomes '_', the ends are cut until they are
// letters or digits, and 63 characters remain.
func labelWord(s string) string {
	if api.ValidLabelValue(s) {
		return s
	}
	word := strings.Map(func(c rune) rune {
		if c < 128 && (isAlnum(byte(c)) || c >= 'A' && c <= 'Z' || strings.ContainsRune("-_.", c)) {
			return c
		}
		return '_'
	}, s)
	word = strings.TrimLeft(word, "-_.")
	return strings.TrimRight(word[:min(len(word), 63)], "-_.")
}
