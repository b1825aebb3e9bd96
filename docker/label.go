package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
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
	minBusy     = 6 * time.Millisecond
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
	n := newcomer{driver: driverLabels(q.driverOptions())}
	if waiting := s.waiting(ctx, w, q.Interface); len(waiting) > 0 {
		labels = endpointLabels(waiting[0].Labels)
		for _, c := range waiting[1:] {
			other := endpointLabels(c.Labels)
			maps.DeleteFunc(labels, func(k, v string) bool { o, ok := other[k]; return !ok || o != v })
		}
		if n.foreseen = len(waiting) == 1; n.foreseen { // its name
			annotations[endpoint.AnnotationDockerNames] = strings.Join(dnsNames(waiting[0], nil), ",")
		}
	}
	maps.Copy(labels, n.driver)
	s.expect(q.EndpointID, n)
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

// newcomer is an endpoint that has not got its container's labels and names yet.
type newcomer struct {
	until    time.Time         // for so long Docker is asked often; zero before it is joined
	driver   map[string]string // labels that came with the request
	foreseen bool              // it has the labels of the one container that it could be for
}

// expect notes an endpoint that is being created.
func (s *Server) expect(endpointID string, n newcomer) {
	s.newMu.Lock()
	defer s.newMu.Unlock()
	s.new[endpointID] = n
}

// expected is what is known of an endpoint without labels; ok is false when it has them, or is gone.
func (s *Server) expected(endpointID string) (n newcomer, ok bool) {
	s.newMu.Lock()
	defer s.newMu.Unlock()
	n, ok = s.new[endpointID]
	return n, ok
}

func (s *Server) settled(endpointID string) {
	s.newMu.Lock()
	defer s.newMu.Unlock()
	delete(s.new, endpointID)
}

// How often Docker is asked for the containers of new endpoints.
const (
	pollFirst  = 20 * time.Millisecond  // doubled each time
	pollLast   = 500 * time.Millisecond // where Docker tells of containers that start, always
	startPause = 2 * time.Millisecond   // for others that start at the same time
	// pollShare keeps the questions a small part of what dockerd does: a pause is at least this many times as long as the
	// answer before it took.
	pollShare = 4
)

// label has an endpoint labelled when Docker shows its container.
func (s *Server) label(endpointID string) {
	n, ok := s.expected(endpointID)
	n.foreseen = n.foreseen || !ok // created by an agent before this one: what came with the request is not known
	n.until = time.Now().Add(s.LabelTime)
	s.expect(endpointID, n)
	kick(s.newKick)
}

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// followStarts listens to Docker's events. While it cannot, Docker is asked more often.
func (s *Server) followStarts(ctx context.Context) error {
	const retry = time.Second
	for {
		err := s.engine.starts(ctx, func() { s.told.Store(true) }, func() { kick(s.started) })
		s.told.Store(false)
		s.Log.Debug("Docker does not tell of containers that start", "err", err)
		kick(s.newKick) // what was told in between is lost
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retry):
		}
	}
}

// labels gives new endpoints the labels and names of their containers. Docker shows them when they have started, so it is
// asked then, and again and again, for all that wait at once. What is not found in time is left to relabel.
func (s *Server) labels(ctx context.Context) error {
	wait := pollFirst           // until the next question, if nobody new comes
	var soonest, next time.Time // when Docker may be asked, and when it will be
	for {
		var tick <-chan time.Time
		waiting := s.waitForLabels()
		if waiting {
			tick = time.After(time.Until(next))
		}
		var pause time.Duration
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.started:
			pause = startPause
		case <-s.newKick:
			if pause = pollFirst; s.told.Load() {
				pause = pollLast
			}
			wait = pause
		case <-tick:
			start := time.Now()
			if s.labelNew(ctx) {
				wait = pollFirst
			}
			soonest = time.Now().Add(pollShare * time.Since(start))
			next = later(soonest, time.Now().Add(wait))
			wait = min(2*wait, pollLast)
			continue
		}
		if at := later(soonest, time.Now().Add(pause)); !waiting || at.Before(next) { // an earlier question stays
			next = at
		}
	}
}

func (s *Server) waitForLabels() bool {
	s.newMu.Lock()
	defer s.newMu.Unlock()
	for _, n := range s.new {
		if !n.until.IsZero() {
			return true
		}
	}
	return false
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
	for id, n := range waiting {
		if n.until.IsZero() {
			continue
		}
		why := err
		if c, ok := containers[id]; ok {
			found = true
			why = s.labelPort(ctx, c, id)
		} else if why == nil {
			why = errNoContainer
		}
		late := time.Now().After(n.until)
		if late && why != nil && ctx.Err() == nil {
			s.Log.Warn("container's labels not found in time; they are looked for again later", "endpoint", id, "err", why)
			s.unlabelled.Store(true)
		}
		if late || why == nil || errors.Is(why, datastore.ErrNotFound) { // gone already
			s.settled(id)
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

// identify gives an endpoint the labels of the container that it is in, before its program runs: Docker makes the
// container's first process before it connects it, and starts the program afterwards. Endpoints of containers that start
// at the same time have only what is common to them until then.
func (s *Server) identify(ctx context.Context, endpointID string, netns *os.File) error {
	n, ok := s.expected(endpointID)
	if !ok || n.foreseen {
		return nil
	}
	id, err := containerIn(netns)
	if err != nil || id == "" {
		return err
	}
	c, err := s.engine.container(ctx, id)
	if err != nil {
		return err
	}
	labels := endpointLabels(c.Labels)
	maps.Copy(labels, n.driver)
	names := strings.Join(dnsNames(c, nil), ",")
	return s.Endpoints.LabelPort(ctx, endpointID, labels, map[string]string{endpoint.AnnotationDockerNames: names})
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
