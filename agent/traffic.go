package agent

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/dataplane/flows"
	"github.com/manekinet/maneki/explain"
	"github.com/manekinet/maneki/policy"
)

const (
	// maxStreams bounds the followers of denied packets and of connections together.
	maxStreams = 8
	// streamQueue is how many lines a follower may be behind before it loses some.
	streamQueue = 1024
	// heartbeat keeps a stream's deadline in the future and finds followers that are gone.
	heartbeat = 10 * time.Second
)

// streams counts the followers.
type streams struct {
	mu   sync.Mutex
	open int
}

func (s *streams) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open >= maxStreams {
		return false
	}
	s.open++
	return true
}

func (s *streams) leave() {
	s.mu.Lock()
	s.open--
	s.mu.Unlock()
}

// sink is a stream of lines to one follower. What produces lines never waits
// for the follower.
type sink[T agentapi.Drop | agentapi.Flow] struct {
	lines chan T
	lost  chan struct{} // capacity one: lines were lost
}

func newSink[T agentapi.Drop | agentapi.Flow]() *sink[T] {
	return &sink[T]{lines: make(chan T, streamQueue), lost: make(chan struct{}, 1)}
}

func (s *sink[T]) put(v T) {
	select {
	case s.lines <- v:
	default:
		kick(s.lost)
	}
}

// serve writes lines until ctx is done, the producer is done, or the follower
// is gone. lost, if not nil, is written when lines were lost.
func (s *sink[T]) serve(ctx context.Context, w http.ResponseWriter, done <-chan error, lost *T) error {
	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	write := func(v *T) error {
		if err := control.SetWriteDeadline(time.Now().Add(2 * heartbeat)); err != nil {
			return err
		}
		if v == nil {
			if _, err := w.Write([]byte("\n")); err != nil {
				return err
			}
		} else if err := json.NewEncoder(w).Encode(v); err != nil {
			return err
		}
		if len(s.lines) > 0 {
			return nil
		}
		return control.Flush()
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	if err := write(nil); err != nil { // says that following has begun
		return err
	}
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case v := <-s.lines:
			err = write(&v)
		case <-s.lost:
			if lost != nil {
				err = write(lost)
			}
		case <-beat.C:
			err = write(nil)
		case err = <-done:
			return s.drain(write, err)
		}
		if err != nil {
			return err
		}
	}
}

// drain writes what the producer left.
func (s *sink[T]) drain(write func(*T) error, err error) error {
	for {
		select {
		case v := <-s.lines:
			if werr := write(&v); werr != nil {
				return werr
			}
		default:
			return err
		}
	}
}

// follow runs a producer and a stream of it for one request.
func follow[T agentapi.Drop | agentapi.Flow](a *Agent, w http.ResponseWriter, r *http.Request, produce func(ctx context.Context, s *sink[T]) error, lost *T) {
	if !a.streams.enter() {
		http.Error(w, "too many followers at once: end another one", http.StatusTooManyRequests)
		return
	}
	defer a.streams.leave()
	ctx, cancel := context.WithCancel(r.Context())
	s, done := newSink[T](), make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { done <- produce(ctx, s) })
	if err := s.serve(ctx, w, done, lost); err != nil {
		a.opts.Log.Debug("a stream has ended", "path", r.URL.Path, "err", err)
	}
	cancel()
	wg.Wait()
}

// serveDrops streams the packets that this host denies. The kernel makes the
// reports only while somebody follows.
func (a *Agent) serveDrops(w http.ResponseWriter, r *http.Request) {
	lost := &agentapi.Drop{Lost: true}
	follow(a, w, r, func(ctx context.Context, s *sink[agentapi.Drop]) error {
		got := func(rep flows.Report) { s.put(a.drop(rep)) }
		listen := func(ctx context.Context, got func(flows.Report), lost func()) error {
			return flows.FollowReports(ctx, policy.ReportGroup, a.tables.interfaceName, got, lost)
		}
		return a.reports.follow(ctx, listen, got, func() { kick(s.lost) })
	}, lost)
}

func (a *Agent) drop(r flows.Report) agentapi.Drop {
	d := agentapi.Drop{Time: r.Time, Packet: packetDocument(r.Packet), In: r.In, Out: r.Out}
	state, filter := a.pipe.policy()
	var label policy.Label
	known := false
	if filter != nil {
		label, known = filter.Labels[r.Label]
	}
	if !known {
		d.Verdict = agentapi.Verdict{Because: "by a rule that has been replaced since"}
		return d
	}
	v := label.For(state, r.Packet, r.In, r.Out)
	d.Verdict = verdictDocument(state, v, false)
	if t, err := state.Evaluate(v.Endpoint, label.Place, v.Direction, r.Packet); err == nil && t.Staged != nil && t.Staged.Allowed {
		would := verdictDocument(state, t.Staged.Verdict, true)
		d.Staged = &would
	}
	return d
}

func packetDocument(p policy.Packet) agentapi.Packet {
	return agentapi.Packet{
		Source: p.Src, Destination: p.Dst, Protocol: p.Protocol, SourcePort: p.SrcPort, DestinationPort: p.DstPort, Type: p.Type, Code: p.Code,
	}
}

func verdictDocument(s *policy.State, v policy.Verdict, allowed bool) agentapi.Verdict {
	d := agentapi.Verdict{Allowed: allowed, Direction: v.Direction.String(), Tier: v.Tier, Because: explain.Reason(s, v)}
	if v.Endpoint.Name != "" {
		d.Endpoint = v.Endpoint.String()
		if v.Endpoint.Namespace == "" {
			d.Endpoint = v.Endpoint.Name
		}
	}
	if v.Policy != (policy.ID{}) {
		d.Policy = v.Policy.String()
	}
	if v.Reason == policy.ByRule {
		d.Rule = &v.Rule
	}
	return d
}

// serveFlows streams the connections of this host's workloads: those that there
// are, and with ?follow=1 those that begin and end.
func (a *Agent) serveFlows(w http.ResponseWriter, r *http.Request) {
	on := r.URL.Query().Get("follow") != ""
	follow(a, w, r, func(ctx context.Context, s *sink[agentapi.Flow]) error {
		var j judge
		if err := a.listFlows(ctx, &j, s); err != nil || !on {
			return err
		}
		return flows.FollowConnections(ctx, func(e flows.Event) {
			if f, ours := a.flow(&j, e.Connection); ours {
				f.Ended = e.Ended
				s.put(f)
			}
		})
	}, nil)
}

func (a *Agent) listFlows(ctx context.Context, j *judge, s *sink[agentapi.Flow]) error {
	tracker, err := flows.Open()
	if err != nil {
		return err
	}
	defer tracker.Close()
	list, err := tracker.List()
	if err != nil {
		return err
	}
	for _, c := range list {
		f, ours := a.flow(j, c)
		if !ours {
			continue
		}
		select {
		case s.lines <- f:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// flow describes a connection of a local workload; ours is false for all others.
func (a *Agent) flow(j *judge, c flows.Connection) (f agentapi.Flow, ours bool) {
	state, _ := a.pipe.policy()
	t, staged, ours := j.of(state, c)
	if !ours {
		return f, false
	}
	f = agentapi.Flow{
		Time: time.Now(), Packet: packetDocument(c.Packet), Verdict: verdictDocument(state, t.Verdict, t.Allowed),
		Packets: c.Packets, Bytes: c.Bytes, Replied: c.Replied,
	}
	if staged.Allowed != t.Allowed {
		would := verdictDocument(state, staged.Verdict, staged.Allowed)
		f.Staged = &would
	}
	return f, true
}

// judge says what policies say of connections. It remembers whose address is
// whose as long as the state stays the same; it belongs to one goroutine.
type judge struct {
	state     *policy.State
	workloads map[netip.Addr]*policy.Endpoint
}

// of asks the policies of a state: the answer of the first local end that denies
// the connection, else of the last that was asked; and the same as if the staged
// policies were in force. ours is false where neither end is a local workload.
func (j *judge) of(s *policy.State, c flows.Connection) (t, staged policy.Trace, ours bool) {
	if s == nil {
		return t, staged, false
	}
	if j.state != s {
		j.state, j.workloads = s, workloadsOf(s)
	}
	p := c.Packet // as the ends see it: the answers tell where DNAT has led it
	p.Dst = c.Reply.Src
	if policy.HasPorts(p.Protocol) {
		p.DstPort = c.Reply.SrcPort
	}
	if !p.Src.IsValid() || !p.Dst.IsValid() || p.Src.Is4() != p.Dst.Is4() {
		return t, staged, false
	}
	for _, end := range []struct {
		at netip.Addr
		d  policy.Direction
	}{{p.Src, policy.Egress}, {p.Dst, policy.Ingress}} {
		ep := j.workloads[end.at]
		if ep == nil {
			continue
		}
		here := s.EvaluateAt(ep, policy.PlaceNormal, end.d, p)
		would := here
		if here.Staged != nil {
			would = *here.Staged
		}
		if !ours || t.Allowed {
			t = here
		}
		if !ours || staged.Allowed {
			staged = would
		}
		ours = true
	}
	return t, staged, ours
}

func workloadsOf(s *policy.State) map[netip.Addr]*policy.Endpoint {
	out := map[netip.Addr]*policy.Endpoint{}
	for _, ep := range s.Endpoints {
		if ep.Host {
			continue
		}
		for _, a := range ep.Addrs.Addrs() {
			out[a] = ep
		}
	}
	return out
}
