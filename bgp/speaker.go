// Package bgp is Maneki's BGP-4 speaker (RFC 4271). Its boundary is three whole sets: the sessions wanted
// and the prefixes to announce go in through Set, the best paths learnt come out of Best. Sessions are
// run by bgp/session, paths are chosen by bgp/rib, and what peers are sent is computed by bgp/export once
// per group of peers with the same policy.
package bgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
	"unique"

	"github.com/manekinet/maneki/bgp/bfd/monitor"
	"github.com/manekinet/maneki/bgp/export"
	"github.com/manekinet/maneki/bgp/filter"
	"github.com/manekinet/maneki/bgp/message"
	"github.com/manekinet/maneki/bgp/rib"
	"github.com/manekinet/maneki/bgp/session"
	"github.com/manekinet/maneki/desired"
)

// Defaults of Options.
const (
	defaultMaxPrefixes = 100_000
	defaultMaxPending  = 256
	defaultDeferral    = 15 * time.Second
)

// farewell is how long BFD goes on after the connections are closed. A neighbour that hears of the end of BFD
// first takes us for dead and drops our routes (FRR does, though RFC 5882 §4.3.1 would have it wait for the
// graceful restart that the closed connection begins); the two come by different sockets.
const farewell = 100 * time.Millisecond

// Options are fixed for the life of a Speaker. The zero value is usable.
type Options struct {
	// MaxPrefixesPerPeer ends the session of a peer that offers more (Cease, RFC 4486); 0 means 100000.
	MaxPrefixesPerPeer int
	// MaxPending bounds the connections in the handshake of all peers together; 0 means 256, or as many as
	// there are peers: all clients of a reflector that starts may dial at once.
	MaxPending int
	// RestartedRecently says that this process takes over from one whose routes the peers may still keep:
	// until Converged, OPENs carry the R bit and End-of-RIB is held back (RFC 4724 §4.1).
	RestartedRecently bool
	// Deferral is the longest time from Run to Converged, for peers that do not come up or do not send
	// End-of-RIB; 0 means 15 s. It should be less than the restart time announced.
	Deferral time.Duration
}

// Speaker is one BGP speaker. All methods may be called from any goroutine.
type Speaker struct {
	log     *slog.Logger
	opt     Options
	changed chan struct{}
	joined  sync.WaitGroup // everything Run has to wait for

	mu        sync.Mutex
	ctx       context.Context // nil until Run
	stopped   bool
	cfg       Config
	known     bool // Set has been called
	converged bool
	table     *rib.Table
	self      *rib.Source
	peers     map[netip.Addr]*peer
	passing   *export.Passing          // Config.PassOn
	chains    map[string]*filter.Chain // by Peer.Filters
	own       map[netip.Addr]bool      // addresses that are no next hop for others' routes
	groups    map[export.Policy]*updateGroup
	listeners map[netip.AddrPort]*listener
	retired   []retiree
	bfd       *monitor.Monitor
	sweep     *time.Timer // fires when a retiree's time is over
}

// updateGroup is a group with those to wake when it has something to send.
type updateGroup struct {
	*export.Group
	feeds map[*feed]struct{}
	dirty bool
}

// New returns a speaker without any configuration. It logs to log.
func New(log *slog.Logger, opts Options) *Speaker {
	opts.MaxPrefixesPerPeer = cmp.Or(opts.MaxPrefixesPerPeer, defaultMaxPrefixes)
	opts.Deferral = cmp.Or(opts.Deferral, defaultDeferral)
	sweep := time.NewTimer(time.Hour)
	sweep.Stop()
	s := &Speaker{
		sweep: sweep, log: log, opt: opts, changed: make(chan struct{}, 1),
		table: rib.New(), self: &rib.Source{Local: true, Internal: true},
		peers: make(map[netip.Addr]*peer), own: make(map[netip.Addr]bool),
		groups: make(map[export.Policy]*updateGroup), listeners: make(map[netip.AddrPort]*listener),
	}
	s.bfd = monitor.New(log, s.pathChanged)
	return s
}

// Set makes c the wanted state. It may be called at any time, also before Run, and repeatedly with equal
// values; only differences have an effect. A bad configuration is refused whole. If an address cannot be
// listened on (syscall.EADDRINUSE, for one) everything else is put in force and the error is returned;
// the next Set tries again. Set does not wait for sessions.
func (s *Speaker) Set(c Config) error {
	if err := c.validate(); err != nil {
		return err
	}
	c.Listen, c.Peers, c.Announce = slices.Clone(c.Listen), maps.Clone(c.Peers), maps.Clone(c.Announce)
	c.PassOn, c.Filters, c.Links = slices.Clone(c.PassOn), maps.Clone(c.Filters), maps.Clone(c.Links)
	c.Reach = slices.Clone(c.Reach)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return errors.New("set bgp configuration: the speaker has stopped")
	}
	old := s.cfg
	s.cfg, s.known = c, true
	s.self.ASN, s.self.ID = c.ASN, c.RouterID
	errListen := s.setListeners(c.Listen)
	s.setOwn()
	if !s.passing.Equal(c.PassOn) {
		s.passing = export.NewPassing(c.PassOn) // a new value: every peer gets a new group
	}
	s.setChains()
	s.setAnnounce(old.Announce, c.Announce)
	s.setPeers(c)
	if old.cluster() != c.cluster() || old.LocalPref != c.LocalPref || !sameReach(old.Reach, c.Reach) {
		s.recheck(slices.Collect(maps.Values(s.peers))...)
	}
	for _, p := range s.peers {
		p.regroup()
	}
	s.secureListeners()
	s.setBFD()
	s.checkConverged()
	s.wake()
	return errListen
}

// Run runs the sessions until ctx is done. It then closes all connections without a NOTIFICATION, so that
// the neighbours keep our routes for the restart time (RFC 4724), waits for everything it started and
// returns nil. It can be called once.
func (s *Speaker) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.ctx != nil {
		s.mu.Unlock()
		return errors.New("run bgp speaker: it runs already or has stopped")
	}
	s.ctx = ctx
	for _, l := range s.listeners {
		s.startListener(l)
	}
	for _, p := range s.peers {
		s.startPeer(p)
	}
	watch, stopWatch := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWatch()
	var watched sync.WaitGroup
	watched.Go(func() { s.bfd.Run(watch) })
	s.mu.Unlock()

	deferral := time.NewTimer(s.opt.Deferral)
	defer deferral.Stop()
	defer s.sweep.Stop()
	for ctx.Err() == nil {
		select {
		case <-deferral.C:
			s.endDeferral()
		case <-s.sweep.C:
			s.endRetirement()
		case <-ctx.Done():
		}
	}
	s.mu.Lock()
	s.stopped = true
	for _, l := range s.listeners {
		l.Close()
	}
	watching := false
	for _, p := range s.peers {
		watching = watching || p.cfg.BFD.Interval > 0
	}
	s.mu.Unlock()
	s.joined.Wait()
	if watching {
		time.Sleep(farewell) // the connections are closed; who stops the speaker waits for it in any case
	}
	stopWatch()
	watched.Wait()
	return nil
}

// Changed is signalled when Best has changed, a session came up or went down, or the reason why one is down
// is another one. It has capacity one: a reader that
// was busy gets one signal for everything that happened meanwhile.
func (s *Speaker) Changed() <-chan struct{} { return s.changed }

// Best returns the best paths learnt from peers, without own announcements.
func (s *Speaker) Best() map[netip.Prefix]Path {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[netip.Prefix]Path, s.table.Len())
	paths := make(map[rib.Attrs]string)
	for prefix, p := range s.table.All() {
		if p.Source.Local {
			continue
		}
		a := p.Attrs.Value()
		asPath, ok := paths[p.Attrs]
		if !ok {
			asPath = a.PathString()
			paths[p.Attrs] = asPath
		}
		out[prefix] = Path{
			Prefix: prefix, NextHop: a.NextHop, Peer: p.Source.Addr, PeerASN: p.Source.ASN,
			LocalPref: a.LocalPref, MED: a.MED, ASPath: asPath, Stale: p.Stale,
			NextHops: desired.NewAddrSet(s.table.Hops(prefix)...),
		}
	}
	return out
}

// Status returns the state of every configured peer, in the order of their addresses.
func (s *Speaker) Status() []PeerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]PeerStatus, 0, len(s.peers))
	for _, p := range s.peers {
		out = append(out, p.status())
	}
	slices.SortFunc(out, func(a, b PeerStatus) int { return a.Peer.Addr.Compare(b.Peer.Addr) })
	return out
}

// Converged reports whether the picture after a start is complete (RFC 4724 §4.1): every configured peer
// has sent End-of-RIB for the families of its session or is itself restarting, or Options.Deferral has
// passed since Run. Once true it stays true. Until then routes left in the kernel by an earlier process
// must not be taken away.
func (s *Speaker) Converged() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.converged
}

// checkConverged looks whether the last peer waited for has become complete.
func (s *Speaker) checkConverged() {
	if s.converged || !s.known || s.ctx == nil {
		return
	}
	for _, p := range s.peers {
		if !p.complete() {
			return
		}
	}
	s.setConverged("every peer sent its routes")
}

func (s *Speaker) setConverged(why string) {
	s.converged = true
	s.log.Info("bgp converged", "reason", why, "peers", len(s.peers), "routes", s.table.Len())
	for _, g := range s.groups {
		g.dirty = true // the End-of-RIB held back until now can go
	}
	s.wake()
	s.notify()
}

func (s *Speaker) endDeferral() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.converged {
		return
	}
	var missing []string
	for _, p := range s.peers {
		if !p.complete() {
			missing = append(missing, p.cfg.String())
		}
	}
	slices.Sort(missing)
	s.setConverged(fmt.Sprintf("deferral time is over without %v", missing))
}

// restarting is whether OPENs carry the R bit and End-of-RIB is held back.
func (s *Speaker) restarting() bool { return s.opt.RestartedRecently && !s.converged }

func (s *Speaker) notify() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// setOwn recomputes the own addresses and repeats the import checks if they have changed.
func (s *Speaker) setOwn() {
	own := make(map[netip.Addr]bool)
	for _, l := range s.cfg.Listen {
		own[l.Addr()] = true
	}
	for _, p := range s.peers {
		own[p.local] = true
	}
	for _, p := range s.cfg.Peers {
		own[p.Local] = true
	}
	delete(own, netip.Addr{})
	if maps.Equal(own, s.own) {
		return
	}
	s.own = own
	s.recheck(slices.Collect(maps.Values(s.peers))...)
}

// recheck repeats the import checks of what peers offer.
func (s *Speaker) recheck(peers ...*peer) {
	for _, p := range peers {
		s.bestChanged(s.table.Update(p.source, func(prefix netip.Prefix, path rib.Path) rib.Path {
			next := p.admit(prefix, path.Raw)
			next.Stale, next.Demoted = path.Stale, next.Demoted || (path.Stale && path.Demoted)
			return next
		})...)
	}
}

func (s *Speaker) setAnnounce(old, want map[netip.Prefix]Announcement) {
	for prefix, a := range want {
		if was, ok := old[prefix]; ok && was == a {
			continue
		}
		if s.table.Put(prefix, rib.Path{Source: s.self, Attrs: unique.Make(a.attrs()), Interface: a.Interface}) {
			s.bestChanged(prefix)
		}
	}
	for prefix := range old {
		if _, ok := want[prefix]; !ok && s.table.Drop(prefix, s.self, 0) {
			s.bestChanged(prefix)
		}
	}
}

func (s *Speaker) setPeers(c Config) {
	for addr, p := range s.peers {
		if _, ok := c.Peers[addr]; !ok {
			s.removePeer(p)
		}
	}
	for addr, want := range c.Peers {
		next := c.session(want)
		if p := s.peers[addr]; p != nil {
			if !p.session.Config().NeedsReset(next) {
				p.session.Reconfigure(next)
				p.reconfigure(want)
				continue
			}
			s.retire(p)
			s.stopPeer(p, nil) // it comes back at once: a restart in the sense of RFC 4724
			s.addPeer(want, next)
			s.peers[addr].flaps = p.flaps
			if p.families != 0 {
				s.peers[addr].flaps++
			}
			continue
		}
		s.addPeer(want, next)
	}
}

func (s *Speaker) addPeer(cfg Peer, sc session.Config) {
	p := &peer{speaker: s, cfg: cfg, source: &rib.Source{Addr: cfg.Addr, ASN: cfg.ASN, Internal: sc.Internal(), Client: cfg.Client}}
	p.session = session.New(session.Options{Config: sc, Handler: p, Restarting: p.restarting, Log: s.log})
	s.peers[cfg.Addr] = p
	if s.ctx != nil {
		s.startPeer(p)
	}
}

func (s *Speaker) startPeer(p *peer) {
	ctx := s.ctx
	s.joined.Go(func() { p.session.Run(ctx) })
}

// reconfigure puts in force what needs no new session.
func (p *peer) reconfigure(want Peer) {
	if p.cfg == want {
		return
	}
	if p.cfg.OnLink && !want.OnLink {
		p.session.PathDown(message.LinkDown())
	}
	p.cfg = want
	if p.source.Client != want.Client {
		p.source.Client = want.Client
		p.speaker.bestChanged(p.speaker.table.Chosen(p.source)...)
	}
	p.speaker.recheck(p)
}

// removePeer ends a peering for good. Only a host of the cluster has its routes retired: when an operator
// takes a router out, they are to go at once.
func (s *Speaker) removePeer(p *peer) {
	if p.cfg.Cluster {
		s.retire(p)
		s.stopPeer(p, nil)
		return
	}
	s.bestChanged(s.table.Sweep(p.source, func(netip.Prefix, rib.Path) bool { return true })...)
	s.stopPeer(p, message.Deconfigured())
}

// stopPeer forgets a peer; its session ends in the background.
func (s *Speaker) stopPeer(p *peer, why *message.Error) {
	p.gone = true
	delete(s.peers, p.cfg.Addr)
	p.leaveGroup()
	p.session.Stop(why)
	s.notify()
}

// bestChanged passes changes of best paths on to the update groups and to the reader of Best.
func (s *Speaker) bestChanged(prefixes ...netip.Prefix) {
	for _, prefix := range prefixes {
		offers := s.table.Offers(prefix)
		for _, g := range s.groups {
			if g.Change(prefix, offers) {
				g.dirty = true
			}
		}
	}
	if len(prefixes) > 0 {
		s.notify()
	}
}

// wake tells the members of groups that have something new.
func (s *Speaker) wake() {
	for _, g := range s.groups {
		if !g.dirty {
			continue
		}
		g.dirty = false
		for f := range g.feeds {
			f.signal()
		}
	}
}
