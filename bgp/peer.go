package bgp

import (
	"net/netip"
	"time"
	"unique"

	"github.com/manekinet/maneki/bgp/export"
	"github.com/manekinet/maneki/bgp/message"
	"github.com/manekinet/maneki/bgp/rib"
	"github.com/manekinet/maneki/bgp/session"
)

// peer is one configured peer: what joins its session with the table and its update group. All fields are
// guarded by the speaker's mutex.
type peer struct {
	speaker *Speaker
	cfg     Peer
	session *session.Session
	source  *rib.Source
	gone    bool // removed from the configuration
	flaps   uint64

	feed       *feed         // nil while there is no session
	base       export.Policy // what the session has negotiated
	local      netip.Addr
	families   message.Families // of the session
	ended      message.Families // families whose End-of-RIB has come
	peerRBit   bool             // the peer said that it has restarted
	advertised message.Restart  // the peer's graceful restart capability
	longLived  message.Families // of its long-lived one
}

var _ session.Handler = (*peer)(nil)

// Up implements session.Handler: the peer joins its update group.
func (p *peer) Up(info session.Info) session.Feed {
	s := p.speaker
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &feed{peer: p, wake: make(chan struct{}, 1), families: info.Session.Families}
	if p.gone {
		return f
	}
	p.source.ID = info.Open.ID
	p.local, p.families, p.ended = info.Local, info.Session.Families, 0
	p.peerRBit, p.advertised, p.longLived = info.Restart.Restarting, info.Restart, info.Open.LongLived.Families
	if !s.own[info.Local] {
		s.setOwn()
	}
	// RFC 4724 §4.2: what the peer did not preserve over its restart goes now, the rest at End-of-RIB.
	p.sweepStale(^info.Restart.Forwarding)
	p.feed = f
	p.base = export.Policy{
		Internal: info.Session.Internal, NextHop: info.Local,
		LongLived: info.Open.LongLived.Families != 0,
		Extended:  info.Session.ExtendedNextHop,
		Families:  info.Session.Families, FourOctetAS: info.Session.FourOctetAS, PathIDs: info.Session.PathsOut,
	}
	g := s.group(p.policy())
	f.group, f.member, f.initial = g, g.Join(p.source), g.Seq()
	g.feeds[f] = struct{}{}
	f.signal()
	s.checkConverged()
	s.wake()
	return f
}

// policy is what decides what the peer is sent on its session, by the configuration in force.
func (p *peer) policy() export.Policy {
	out := p.base
	out.LocalASN, out.Passing = p.speaker.cfg.local(p.cfg), p.speaker.passing
	out.Filter = p.speaker.chains[p.cfg.Filters]
	out.Self, out.Keep = p.cfg.NextHop == NextHopSelf, p.cfg.NextHop == NextHopKeep
	if out.Internal {
		out.Client, out.ClusterID = p.cfg.Client, p.speaker.cfg.cluster()
	}
	return out
}

// regroup moves the peer to the update group of its policy when that has changed; the session stays.
func (p *peer) regroup() {
	f := p.feed
	if f == nil || f.group.Policy() == p.policy() {
		return
	}
	old, g := f.group, p.speaker.group(p.policy())
	f.member.Move(g.Group)
	delete(old.feeds, f)
	p.speaker.disband(old)
	f.group, f.initial = g, g.Seq()
	g.feeds[f] = struct{}{}
	f.signal()
}

// group returns the update group of a policy, filling a new one from the table.
func (s *Speaker) group(policy export.Policy) *updateGroup {
	if g := s.groups[policy]; g != nil {
		return g
	}
	g := &updateGroup{Group: export.NewGroup(policy), feeds: make(map[*feed]struct{})}
	for prefix := range s.table.All() {
		g.Change(prefix, s.table.Offers(prefix))
	}
	s.groups[policy] = g
	return g
}

// leaveGroup ends the sending to the peer; the last member takes the group along.
func (p *peer) leaveGroup() {
	f := p.feed
	if f == nil {
		return
	}
	p.feed = nil
	f.member.Leave()
	delete(f.group.feeds, f)
	f.member = nil
	p.speaker.disband(f.group)
}

// disband forgets a group without members.
func (s *Speaker) disband(g *updateGroup) {
	if g.Members() == 0 {
		delete(s.groups, g.Policy())
	}
}

// Update implements session.Handler.
func (p *peer) Update(u message.Update) *message.Error {
	s := p.speaker
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.gone {
		return nil
	}
	for _, n := range u.Withdrawn {
		if s.table.Drop(n.Prefix, p.source, n.ID) {
			s.bestChanged(n.Prefix)
		}
	}
	for _, r := range u.Reach {
		p.learn(r)
	}
	if u.EndOfRIB != 0 {
		p.endOfRIB(u.EndOfRIB)
	}
	s.wake()
	if most := p.maxPrefixes(); p.source.Received() > most {
		return message.MaxPrefixes(most)
	}
	return nil
}

// maxPrefixes is how many prefixes the peer may offer.
func (p *peer) maxPrefixes() int {
	if p.cfg.MaxPrefixes > 0 {
		return p.cfg.MaxPrefixes
	}
	return p.speaker.opt.MaxPrefixesPerPeer
}

// learn puts announced routes into the table. It stops just past the limit of prefixes, so that one
// message cannot exceed it by much.
func (p *peer) learn(r message.Reach) {
	s := p.speaker
	raw, most := unique.Make(r.Attrs), p.maxPrefixes()
	for _, n := range r.Routes {
		if p.source.Received() > most {
			return
		}
		path := p.admit(n.Prefix, raw)
		path.ID = n.ID
		if s.table.Put(n.Prefix, path) {
			s.bestChanged(n.Prefix)
		}
	}
}

// endOfRIB ends the initial exchange of a family: what the peer did not announce again is gone
// (RFC 4724 §4.2).
func (p *peer) endOfRIB(families message.Families) {
	s := p.speaker
	p.ended |= families
	p.sweepStale(families)
	s.checkConverged()
	s.sweepRetired(time.Now())
	s.notify()
}

// sweepStale drops the stale routes of the families.
func (p *peer) sweepStale(families message.Families) {
	if p.source.Stale() == 0 {
		return
	}
	p.speaker.bestChanged(p.speaker.table.Sweep(p.source, func(prefix netip.Prefix, path rib.Path) bool {
		return path.Stale && families.Has(message.FamilyOf(prefix.Addr()))
	})...)
}

// Refresh implements session.Handler (RFC 2918).
func (p *peer) Refresh(message.Family) {
	p.speaker.mu.Lock()
	defer p.speaker.mu.Unlock()
	if p.feed != nil {
		p.feed.member.Restart()
		p.feed.signal()
	}
}

// Down implements session.Handler. Routes that were stale already go even if the others are retained:
// the peer has failed twice (RFC 4724 §4.2).
func (p *peer) Down(loss session.Loss) {
	s := p.speaker
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.gone {
		return // its routes are the speaker's affair: see removePeer
	}
	p.flaps++
	p.leaveGroup()
	keep := message.Families(0)
	if loss != session.LossDrop {
		keep = p.advertised.Families
	}
	s.bestChanged(s.table.Sweep(p.source, func(prefix netip.Prefix, path rib.Path) bool {
		return path.Stale || !keep.Has(message.FamilyOf(prefix.Addr()))
	})...)
	s.bestChanged(s.table.Update(p.source, func(_ netip.Prefix, path rib.Path) rib.Path {
		path.Stale, path.Demoted = true, loss == session.LossRetainLast
		return path
	})...)
	s.wake()
	s.notify()
}

// LongLived implements session.Handler (RFC 9494 §4.2): what may be kept is marked, so that everybody prefers
// any other path.
func (p *peer) LongLived() {
	s := p.speaker
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.gone {
		return
	}
	families := p.longLived
	s.bestChanged(s.table.Sweep(p.source, func(prefix netip.Prefix, path rib.Path) bool {
		return path.Stale && (!families.Has(message.FamilyOf(prefix.Addr())) || path.Attrs.Value().HasCommunity(message.NoLLGR))
	})...)
	s.bestChanged(s.table.Update(p.source, func(_ netip.Prefix, path rib.Path) rib.Path {
		path.Attrs = unique.Make(path.Attrs.Value().WithCommunity(message.LLGRStale))
		path.Raw = unique.Make(path.Raw.Value().WithCommunity(message.LLGRStale))
		path.Demoted = true
		return path
	})...)
	if n := p.source.Stale(); n > 0 {
		s.log.Warn("bgp stale routes are kept on as the last choice", "peer", p.cfg.Addr, "routes", n)
	}
	s.wake()
}

// Expired implements session.Handler: the restart time, or the longest wait for End-of-RIB, is over.
func (p *peer) Expired() {
	s := p.speaker
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.gone {
		return
	}
	if n := p.source.Stale(); n > 0 {
		s.log.Warn("bgp stale routes dropped", "peer", p.cfg.Addr, "routes", n)
	}
	p.sweepStale(message.IPv4.Set() | message.IPv6.Set())
	s.wake()
}

// Changed implements session.Handler.
func (p *peer) Changed() { p.speaker.notify() }

// restarting is asked by the session when it sends OPEN.
func (p *peer) restarting() bool {
	p.speaker.mu.Lock()
	defer p.speaker.mu.Unlock()
	return p.speaker.restarting()
}

// complete reports whether the peer need not be waited for any more after a start.
func (p *peer) complete() bool {
	return p.feed != nil && (p.peerRBit || p.ended&p.families == p.families)
}

func (p *peer) status() PeerStatus {
	st := p.session.Status()
	cfg := p.cfg
	cfg.Password = ""
	out := PeerStatus{
		Peer: cfg, State: st.State, Since: st.Since, LastError: st.LastError,
		Received: p.source.Received(), Accepted: p.source.Accepted(),
		RestartingPeer: p.source.Stale() > 0, RemoteID: st.RemoteID, HoldTime: st.HoldTime,
		MessagesIn: st.MessagesIn, MessagesOut: st.MessagesOut, Flaps: p.flaps,
	}
	if out.LastError == "" && st.State == "Active" && cfg.Passive {
		out.LastError = "waiting for the peer to connect"
	}
	if st, ok := p.speaker.bfd.Status(p.cfg.Addr); ok {
		out.BFD = bfdStatus(st)
	}
	if f := p.feed; f != nil {
		out.Families = p.families.Names()
		out.EoR = p.ended&p.families == p.families
		if !f.member.Behind(f.initial) {
			out.Advertised = f.group.Advertised()
		}
	}
	return out
}

// feed is a session's sending side: its place in the update group and the End-of-RIB still owed.
type feed struct {
	peer     *peer
	wake     chan struct{}
	families message.Families
	group    *updateGroup
	member   *export.Member // nil once the peer has left
	initial  uint64         // the group's last change when the peer joined
	ended    bool           // End-of-RIB has been sent
}

var _ session.Feed = (*feed)(nil)

func (f *feed) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Wake implements session.Feed.
func (f *feed) Wake() <-chan struct{} { return f.wake }

// Next implements session.Feed. End-of-RIB follows the routes that there were when the session came up;
// after a restart of ours it waits until we have converged (RFC 4724 §4.1).
func (f *feed) Next() ([][]byte, error) {
	s := f.peer.speaker
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.member == nil {
		return nil, nil
	}
	msgs, err := f.member.Next()
	if err != nil || f.ended || f.member.Behind(f.initial) || s.restarting() {
		return msgs, err
	}
	f.ended = true
	for _, fam := range message.AllFamilies() {
		if f.families.Has(fam) {
			msgs = append(msgs, message.EndOfRIB(fam))
		}
	}
	return msgs, nil
}
