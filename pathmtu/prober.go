package pathmtu

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/manekinet/maneki/desired"
)

// DefaultPort is the UDP port of the probes.
const DefaultPort = 9097

const (
	// tries is how often silence is heard before it counts.
	tries = 3
	// patience is how long an answer may take.
	patience = 300 * time.Millisecond
	// While a size is looked for, silence is this many round trips, but not less than minPatience.
	roundTrips  = 10
	minPatience = 50 * time.Millisecond
	// smallest is the size that must pass for anything to be said: less than the
	// least MTU of IPv4 (RFC 791) that is in use, with room for every tunnel.
	smallest = 200
	// answersPerSecond bounds what this host sends because others ask.
	answersPerSecond = 500
	// readPause keeps a socket that only fails from keeping a processor busy.
	readPause = 10 * time.Millisecond
	// soonest is the part of the interval after which a path that did not answer is asked again for the first time.
	soonest = 20
	// patient is the part of the interval beyond which asking such a path again does not become rarer.
	patient = 6
	// parallel bounds how many hosts are asked at the same time.
	parallel = 8
)

// Options are fixed for the life of a Prober.
type Options struct {
	Port     uint16        // 0 means DefaultPort
	Interval time.Duration // between two looks at a path; 0 means a minute
	Log      *slog.Logger
	// Changed is told of all results when one has changed; it is never called
	// twice at the same time.
	Changed func(map[desired.PathKey]desired.PathFact)
}

// Prober measures paths while it runs.
type Prober struct {
	o       Options
	kick    chan struct{}
	waiting waiting

	mu       sync.Mutex
	paths    map[desired.PathKey]desired.Path
	senders  map[netip.Addr]bool
	stations map[place]*station
	results  map[desired.PathKey]desired.PathFact
	limit    limiter
}

// New returns a prober without paths.
func New(o Options) *Prober {
	if o.Port == 0 {
		o.Port = DefaultPort
	}
	if o.Interval == 0 {
		o.Interval = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Prober{o: o, kick: make(chan struct{}, 1), stations: map[place]*station{}, results: map[desired.PathKey]desired.PathFact{}}
}

// Set says which paths there are. New and changed ones are measured at once.
func (p *Prober) Set(paths []desired.Path) {
	next, senders := map[desired.PathKey]desired.Path{}, map[netip.Addr]bool{}
	for _, path := range paths {
		next[path.PathKey] = path
		senders[path.Remote] = true
	}
	p.mu.Lock()
	same := maps.Equal(next, p.paths)
	p.paths, p.senders = next, senders
	p.mu.Unlock()
	if !same {
		select {
		case p.kick <- struct{}{}:
		default:
		}
	}
}

// Results are what is known of all paths.
func (p *Prober) Results() map[desired.PathKey]desired.PathFact {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.results)
}

// Run measures until ctx is done. A path that did not answer is asked again sooner
// than one that did: a cable that was pulled is usually put back.
func (p *Prober) Run(ctx context.Context) error {
	defer p.closeAll()
	measured := map[desired.PathKey]desired.Path{} // as they were when they were last measured
	soon := p.o.Interval / soonest
	for {
		p.bind(ctx)
		p.round(ctx, measured)
		silent := p.silent()
		// A random part keeps the hosts of a cluster from asking all at the same time.
		pause := p.o.Interval/2 + rand.N(p.o.Interval)
		if len(silent) == 0 {
			soon = p.o.Interval / soonest
		}
		early := len(silent) > 0 && soon < pause
		if early {
			pause, soon = soon, min(2*soon, p.o.Interval/patient)
		}
		wait := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			wait.Stop()
			return ctx.Err()
		case <-p.kick:
			wait.Stop()
			// What changed is measured now, the rest when its time comes.
		case <-wait.C:
			if !early {
				clear(measured)
			}
			for _, key := range silent {
				delete(measured, key)
			}
		}
	}
}

// silent are the paths that did not answer when they were last asked.
func (p *Prober) silent() []desired.PathKey {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []desired.PathKey
	for key := range p.paths {
		if !p.results[key].Answered {
			out = append(out, key)
		}
	}
	return out
}

// round measures the paths that are not in measured as they are now.
func (p *Prober) round(ctx context.Context, measured map[desired.PathKey]desired.Path) {
	p.mu.Lock()
	paths := maps.Clone(p.paths)
	p.mu.Unlock()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for key, path := range paths {
		if measured[key] == path {
			continue
		}
		measured[key] = path
		g.Go(func() error {
			if r, ok := p.measure(ctx, path); ok {
				p.store(path, r)
			}
			return nil
		})
	}
	_ = g.Wait() // no function returns an error
	p.forget(paths)
}

// store keeps a result and tells of a change. Silence takes nothing back: what
// was measured stays true until something else is measured.
func (p *Prober) store(path desired.Path, r desired.PathFact) {
	p.mu.Lock()
	old := p.results[path.PathKey]
	if !r.Answered {
		r = desired.PathFact{MTU: old.MTU, Limit: old.Limit, NoChecksum: old.NoChecksum}
	}
	// A tunnel whose offload was turned off because of its checksums answers now; turned on it would not.
	r.NoChecksum = r.NoChecksum || old.NoChecksum
	p.results[path.PathKey] = r
	all := maps.Clone(p.results)
	p.mu.Unlock()
	if r != old {
		p.o.Log.Debug("path measured", "host", path.Node, "device", path.Device, "answered", r.Answered, "mtu", r.MTU, "noChecksum", r.NoChecksum)
		p.tell(all)
	}
}

func (p *Prober) tell(all map[desired.PathKey]desired.PathFact) {
	if p.o.Changed != nil {
		p.o.Changed(all)
	}
}

// forget drops results of paths that are no more.
func (p *Prober) forget(paths map[desired.PathKey]desired.Path) {
	p.mu.Lock()
	before := len(p.results)
	maps.DeleteFunc(p.results, func(k desired.PathKey, _ desired.PathFact) bool { _, there := paths[k]; return !there })
	all, gone := maps.Clone(p.results), before != len(p.results)
	p.mu.Unlock()
	if gone {
		p.tell(all)
	}
}

// measure finds out about one path; ok is false when it could not be tried.
func (p *Prober) measure(ctx context.Context, path desired.Path) (r desired.PathFact, ok bool) {
	s := p.stationOf(path)
	if s == nil || path.Limit <= smallest {
		return r, false
	}
	r.Limit = path.Limit
	switch {
	case p.passes(ctx, s.conn, path, path.Limit):
		r.Answered, r.MTU = true, path.Limit
	case p.passes(ctx, s.conn, path, smallest):
		r.Answered, r.MTU = true, p.bisect(ctx, s.conn, path)
	case path.Device != "" && p.onlyPlain(ctx, s, path):
		r.Answered, r.NoChecksum = true, true
	}
	return r, ctx.Err() == nil
}

// bisect finds the largest size that passes: smallest does and Limit does not.
// Silence is waited for as long as the path's own round trip makes sensible.
func (p *Prober) bisect(ctx context.Context, asker *net.UDPConn, path desired.Path) int {
	begin := time.Now()
	p.ask(ctx, asker, path, smallest, patience)
	wait := min(max(roundTrips*time.Since(begin), minPatience), patience)
	good, bad := smallest, path.Limit
	for bad-good > 1 && ctx.Err() == nil {
		if middle := (good + bad) / 2; p.tries(ctx, asker, path, middle, wait) {
			good = middle
		} else {
			bad = middle
		}
	}
	return good
}

// onlyPlain reports whether packets pass without a checksum that do not pass
// with one, both tried again so that a lost packet does not count.
func (p *Prober) onlyPlain(ctx context.Context, s *station, path desired.Path) bool {
	return p.passes(ctx, s.plain, path, smallest) && !p.passes(ctx, s.conn, path, smallest) && p.passes(ctx, s.plain, path, smallest)
}

// passes asks with a packet of a size until it is answered, or silence counts.
func (p *Prober) passes(ctx context.Context, asker *net.UDPConn, path desired.Path, size int) bool {
	return p.tries(ctx, asker, path, size, patience)
}

func (p *Prober) tries(ctx context.Context, asker *net.UDPConn, path desired.Path, size int, wait time.Duration) bool {
	for range tries {
		if ctx.Err() != nil {
			return false
		}
		if p.ask(ctx, asker, path, size, wait) {
			return true
		}
	}
	return false
}

func (p *Prober) ask(ctx context.Context, asker *net.UDPConn, path desired.Path, size int, patience time.Duration) bool {
	id := rand.Uint64()
	got := p.waiting.add(id, path.Remote)
	defer p.waiting.drop(id)
	text := message{question, size, id}.encode(size - headers(path.Remote))
	if _, err := asker.WriteToUDPAddrPort(text, netip.AddrPortFrom(path.Remote, p.o.Port)); err != nil {
		// Among others EMSGSIZE, where the interface itself takes no more.
		p.o.Log.Debug("probe not sent", "to", path.Remote, "size", size, "err", err)
	}
	wait := time.NewTimer(patience)
	defer wait.Stop()
	select {
	case <-got:
		return true
	case <-wait.C:
	case <-ctx.Done():
	}
	return false
}

func (p *Prober) stationOf(path desired.Path) *station {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stations[place{path.Local, path.Device}]
}

// bind opens the sockets that the paths need and closes the others. A tunnel
// device that was made anew has another index, which its socket notices by an
// error when it is used; so those are always opened anew.
func (p *Prober) bind(ctx context.Context) {
	p.mu.Lock()
	want := map[place]bool{}
	for _, path := range p.paths {
		want[place{path.Local, path.Device}] = true
	}
	var old []*station
	for at, s := range p.stations {
		if !want[at] || at.device != "" {
			old = append(old, s)
			delete(p.stations, at)
		}
	}
	p.mu.Unlock()
	for _, s := range old {
		s.close()
	}
	for at := range want {
		p.mu.Lock()
		there := p.stations[at] != nil
		p.mu.Unlock()
		if there {
			continue
		}
		s, err := p.station(ctx, at)
		if err != nil {
			p.o.Log.Debug("paths from this address cannot be measured", "err", err)
			continue
		}
		p.mu.Lock()
		p.stations[at] = s
		p.mu.Unlock()
	}
}

// station opens the sockets of a place and reads from them until they are
// closed. Answers through a tunnel carry no checksum: each end tries its own
// direction.
func (p *Prober) station(ctx context.Context, at place) (*station, error) {
	conn, err := open(ctx, at, p.o.Port, false)
	if err != nil {
		return nil, err
	}
	s := &station{conn: conn, plain: conn}
	if at.device != "" {
		if s.plain, err = open(ctx, at, 0, true); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		s.readers.Go(func() { p.read(s, s.plain) })
	}
	s.readers.Go(func() { p.read(s, s.conn) })
	return s, nil
}

func (p *Prober) closeAll() {
	p.mu.Lock()
	stations := p.stations
	p.stations = map[place]*station{}
	p.mu.Unlock()
	for _, s := range stations {
		s.close()
	}
}

// read takes what comes by a socket until it is closed.
func (p *Prober) read(s *station, conn *net.UDPConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // an ICMP error of an earlier packet, or the device is gone
			time.Sleep(readPause)
		default:
			p.take(s, buf[:n], from)
		}
	}
}

// take handles one packet. Strangers get no answer.
func (p *Prober) take(s *station, text []byte, from netip.AddrPort) {
	m, ok := decode(text)
	if !ok {
		return
	}
	addr := from.Addr().Unmap()
	if m.kind == answer {
		p.waiting.answered(m.id, addr)
		return
	}
	p.mu.Lock()
	known := p.senders[addr] && p.limit.allow(time.Now(), answersPerSecond)
	p.mu.Unlock()
	if !known || len(text)+headers(addr) != m.size {
		return
	}
	_, _ = s.plain.WriteToUDPAddrPort(message{answer, m.size, m.id}.encode(messageSize), from) // lost is as good as not sent
}
