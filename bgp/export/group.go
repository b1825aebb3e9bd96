// Package export computes what is sent to peers. Peers for which the same policy gives the same messages
// form an update group; a group keeps its routes once, ordered by when they last changed, and packs each
// stretch of changes into messages once for all members that need it. A member is a position in that
// order, so memory is O(routes + members), and a member that reads slowly is sent only the newest state
// of what it missed.
//
// The package is pure and owned by one caller at a time, like rib.
package export

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"

	"github.com/manekinet/maneki/bgp/message"
	"github.com/manekinet/maneki/bgp/rib"
)

// Group is one update group.
type Group struct {
	policy  Policy
	routes  map[message.NLRI]*route
	highest map[netip.Prefix]uint32 // greatest path identifier announced, where that is not 1
	live    ring                    // announced routes, oldest change first
	dead    ring                    // withdrawn routes that some member may still have, oldest first
	seq     uint64
	members int
	// at counts the holders of each position: members, and the cached first chunk. Packed chunks and the
	// memory of withdrawn routes are let go when nobody holds a position that needs them.
	at     map[uint64]int
	chunks map[uint64]*chunk
}

// route is one exported route, or the memory that it was withdrawn.
type route struct {
	nlri       message.NLRI
	attrs      rib.Attrs
	from       *rib.Source
	live       bool
	seq        uint64 // when it last changed
	next, prev *route
}

// ring is a doubly linked list in ascending order of seq.
type ring struct {
	head route // sentinel
	len  int
}

func (r *ring) init() { r.head.next, r.head.prev = &r.head, &r.head }

func (r *ring) push(e *route) {
	e.next, e.prev = &r.head, r.head.prev
	e.prev.next, r.head.prev = e, e
	r.len++
}

func (r *ring) remove(e *route) {
	e.prev.next, e.next.prev = e.next, e.prev
	r.len--
}

// after returns the first element that changed after pos; it is the sentinel if there is none.
func (r *ring) after(pos uint64) *route {
	if pos == 0 {
		return r.head.next
	}
	e := &r.head
	for e.prev != &r.head && e.prev.seq > pos {
		e = e.prev
	}
	return e
}

// Member is one peer's place in its group.
type Member struct {
	group  *Group
	source *rib.Source
	pos    uint64
	again  bool // everything is to be sent again once the member is up to date
	// had is what the member may hold from another group; what this one has not is withdrawn first.
	had map[message.NLRI]bool
}

// NewGroup returns an empty group; feed it the table with Change.
func NewGroup(p Policy) *Group {
	g := &Group{policy: p, routes: make(map[message.NLRI]*route), highest: make(map[netip.Prefix]uint32), at: make(map[uint64]int), chunks: make(map[uint64]*chunk)}
	g.live.init()
	g.dead.init()
	return g
}

// Policy returns what the group's members have in common.
func (g *Group) Policy() Policy { return g.policy }

// Advertised is how many routes the group announces.
func (g *Group) Advertised() int { return g.live.len }

// Members is how many members the group has.
func (g *Group) Members() int { return g.members }

// Join adds a member that has been sent nothing. source is what the peer's own routes carry.
func (g *Group) Join(source *rib.Source) *Member {
	g.members++
	g.at[0]++
	return &Member{group: g, source: source}
}

// Sent is a route as a member was sent it.
type Sent struct {
	Attrs rib.Attrs
	From  *rib.Source
	ID    uint32 // path identifier, 0 where there are none
}

// Announced yields what the member has been sent and what is still in force, in the order of sending.
func (m *Member) Announced() iter.Seq2[netip.Prefix, Sent] {
	return func(yield func(netip.Prefix, Sent) bool) {
		for r := m.group.live.head.next; r != &m.group.live.head && r.seq <= m.pos; r = r.next {
			if (r.from == nil || r.from != m.source) && !yield(r.nlri.Prefix, Sent{Attrs: r.attrs, From: r.from, ID: r.nlri.ID}) {
				return
			}
		}
	}
}

// Leave removes the member.
func (m *Member) Leave() {
	m.group.members--
	m.group.release(m.pos)
	m.group.prune()
}

// Move takes the member to another group while its peer keeps its session: the peer is sent all that the
// new group has, and withdrawals of what only the old one had.
func (m *Member) Move(to *Group) {
	if m.had == nil {
		m.had = make(map[message.NLRI]bool, len(m.group.routes))
	}
	for nlri := range m.group.routes {
		m.had[nlri] = true
	}
	m.Leave()
	to.members++
	to.at[0]++
	m.group, m.pos, m.again = to, 0, false
}

// leftovers encodes the withdrawals that a move left to do. It belongs right before the first chunk: what
// that does not have is not live in the group now.
func (m *Member) leftovers() ([][]byte, error) {
	gone := make(map[message.Family][]message.NLRI)
	for nlri := range m.had {
		if r := m.group.routes[nlri]; r == nil || !r.live || r.from == m.source {
			f := message.FamilyOf(nlri.Prefix.Addr())
			gone[f] = append(gone[f], nlri)
		}
	}
	m.had = nil
	var out [][]byte
	for _, f := range message.AllFamilies() {
		slices.SortFunc(gone[f], func(a, b message.NLRI) int { return cmp.Or(a.Prefix.Compare(b.Prefix), cmp.Compare(a.ID, b.ID)) })
		var err error
		if out, err = message.AppendWithdraw(out, f, m.group.policy.PathIDs.Has(f), gone[f]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Restart makes the member be sent everything again (ROUTE-REFRESH, RFC 2918). What it has still to be told
// comes first: the withdrawals in it are not part of "everything".
func (m *Member) Restart() { m.again = true }

// Pending reports whether there is something to send.
func (m *Member) Pending() bool { return m.again || m.had != nil || m.pos < m.group.seq }

// Seq numbers the latest change; Behind tells whether the member has still to be sent changes up to seq.
func (g *Group) Seq() uint64 { return g.seq }

// Behind reports whether changes up to seq are still to be sent to the member.
func (m *Member) Behind(seq uint64) bool { return m.pos < seq }

func (m *Member) move(to uint64) {
	from := m.pos
	m.group.at[to]++
	m.pos = to
	m.group.release(from)
}

// Change tells the group the paths that are now to be announced to p, as Table.Offers gives them: the best one, or,
// to members that take several, all. It reports whether members have something new to send.
func (g *Group) Change(p netip.Prefix, offers []rib.Path) bool {
	if !g.policy.PathIDs.Has(message.FamilyOf(p.Addr())) {
		var best Sent
		ok := false
		if len(offers) > 0 {
			best.From = offers[0].Source
			best.Attrs, ok = g.policy.Apply(p, offers[0])
		}
		return g.change(p, best, ok)
	}
	wanted, highest := g.several(p, offers)
	news, last := false, uint32(0)
	for id := uint32(1); id <= highest; id++ {
		s, ok := wanted[id]
		s.ID = id
		news = g.change(p, s, ok) || news
		if ok {
			last = id
		}
	}
	delete(g.highest, p)
	if last > 1 {
		g.highest[p] = last
	}
	return news
}

// several applies the policy to several paths to p: by identifier, which is the table's small number of each, those
// that still have a next hop of their own. highest is the greatest identifier to look at.
func (g *Group) several(p netip.Prefix, offers []rib.Path) (wanted map[uint32]Sent, highest uint32) {
	wanted, highest = make(map[uint32]Sent, len(offers)), max(g.highest[p], 1)
	hops := make([]netip.Addr, 0, len(offers))
	for _, o := range offers {
		attrs, ok := g.policy.Apply(p, o)
		if !ok || slices.Contains(hops, attrs.Value().NextHop) {
			continue
		}
		hops = append(hops, attrs.Value().NextHop)
		wanted[o.Index] = Sent{Attrs: attrs, From: o.Source}
		highest = max(highest, o.Index)
	}
	return wanted, highest
}

// change is Change for one path; ok says whether there is to be one.
func (g *Group) change(p netip.Prefix, s Sent, ok bool) bool {
	nlri := message.NLRI{Prefix: p, ID: s.ID}
	r := g.routes[nlri]
	switch {
	case r == nil && !ok:
		return false
	case r == nil:
		r = &route{nlri: nlri}
		g.routes[nlri] = r
	case r.live == ok && (!ok || (r.attrs == s.Attrs && r.from == s.From)):
		return false
	case r.live:
		g.live.remove(r)
	default:
		g.dead.remove(r)
	}
	g.seq++
	r.live, r.attrs, r.from, r.seq = ok, s.Attrs, s.From, g.seq
	if ok {
		g.live.push(r)
	} else {
		g.dead.push(r)
		g.prune()
	}
	return true
}

// Next returns the next messages for the member and moves it past them. It returns nil when there is
// nothing to send. The messages are shared: they must not be written to.
func (m *Member) Next() ([][]byte, error) {
	var out [][]byte
	if m.had != nil {
		var err error
		if out, err = m.leftovers(); err != nil {
			return nil, err
		}
	}
	if m.pos == m.group.seq && m.again {
		m.again = false
		m.move(0)
	}
	if m.pos == m.group.seq {
		return out, nil
	}
	c, err := m.group.chunkAt(m.pos)
	if err != nil {
		return nil, err
	}
	out = slices.Grow(out, len(c.messages))
	for _, msg := range c.messages {
		switch {
		case msg.from == nil || msg.from != m.source:
			out = append(out, msg.update)
		case msg.withdraw != nil:
			out = append(out, msg.withdraw...)
		}
	}
	m.move(c.to)
	m.group.prune()
	return out, nil
}

// chunkAt returns the packed changes after pos, computed once for all members there.
func (g *Group) chunkAt(pos uint64) (*chunk, error) {
	if pos == 0 && g.firstStale() {
		g.dropFirst()
	}
	if c := g.chunks[pos]; c != nil {
		return c, nil
	}
	c, err := g.pack(pos)
	if err != nil {
		return nil, err
	}
	g.chunks[pos] = c
	if pos == 0 {
		g.at[c.to]++
	}
	return c, nil
}

// firstStale reports whether the cached first chunk has been overtaken by so many changes that replaying
// them after it would cost a new member more than packing anew.
func (g *Group) firstStale() bool {
	c := g.chunks[0]
	return c != nil && g.seq-c.packed > uint64(max(64, g.live.len/4))
}

func (g *Group) dropFirst() {
	c := g.chunks[0]
	delete(g.chunks, 0)
	g.release(c.to)
}

// release takes one holder away from pos. The first chunk stays cached for those who join later.
func (g *Group) release(pos uint64) {
	if g.at[pos]--; g.at[pos] > 0 {
		return
	}
	delete(g.at, pos)
	if pos != 0 {
		delete(g.chunks, pos)
	}
}

// prune forgets the withdrawn routes that every member has been told of. Who is at the start needs none:
// it is given live routes only.
func (g *Group) prune() {
	if g.firstStale() {
		g.dropFirst()
	}
	if g.dead.len == 0 {
		return
	}
	low := g.seq
	for pos := range g.at {
		if pos > 0 {
			low = min(low, pos)
		}
	}
	for r := g.dead.head.next; r != &g.dead.head && r.seq <= low; r = g.dead.head.next {
		g.dead.remove(r)
		delete(g.routes, r.nlri)
	}
}
