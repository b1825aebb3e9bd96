// Package rib is the speaker's routing information base (RFC 4271 §3.2): per destination the paths that
// the sources offer, and the best of them. Adj-RIBs-In and Loc-RIB are one table; equal attributes are
// held once. It is pure and owned by one caller at a time: no goroutine, no lock, no clock.
package rib

import (
	"iter"
	"net/netip"
	"slices"
	"unique"

	"github.com/manekinet/maneki/bgp/message"
)

// Attrs is a shared set of path attributes.
type Attrs = unique.Handle[message.Attrs]

// Source is one origin of paths: this speaker itself or one session with a peer.
type Source struct {
	Addr     netip.Addr // the peer's address; zero for this speaker itself
	ASN      uint32
	ID       netip.Addr // router ID from the peer's OPEN
	Internal bool       // iBGP
	Local    bool       // this speaker's own announcements
	Client   bool       // a route reflection client: its routes go to all internal peers (RFC 4456 §6)
	// Retired sources have no session any more and get none: the last choice, kept until others have taken
	// over. See Table.Retire.
	Retired bool

	received, accepted, stale int
}

// Received is how many prefixes the source offers, and Accepted how many of them take part in selection.
func (s *Source) Received() int { return s.received }

// Accepted is how many of the source's prefixes passed the checks of import.
func (s *Source) Accepted() int { return s.accepted }

// Stale is how many of the source's prefixes are kept from before its restart (RFC 4724 §4.2).
func (s *Source) Stale() int { return s.stale }

// Path is one way to a destination.
type Path struct {
	Source *Source
	Attrs  Attrs
	Raw    Attrs // as received, before the import rules; zero for own announcements
	// ID is the source's identifier of the path (RFC 7911), 0 where it has none: a source has one path to a
	// destination for each.
	ID uint32
	// Index tells the paths to one destination apart, from 1; the table gives it, for the path's life.
	Index uint32
	// Interface of an own announcement, for filters; that of a learnt path follows from its next hop.
	Interface string
	Stale     bool // kept while the peer restarts (RFC 4724)
	Barred    bool // refused by import: remembered, never chosen
	// Unreachable says that no route leads to the next hop: any path for which one does is preferred.
	Unreachable bool
	Demoted     bool // the last choice: the path to the peer has failed, and it may only be restarting
}

// Table holds the destinations.
type Table struct{ dests map[netip.Prefix]*dest }

type dest struct {
	paths []Path
	choice
}

// New returns an empty table.
func New() *Table { return &Table{dests: make(map[netip.Prefix]*dest)} }

// Len is the number of destinations with at least one path.
func (t *Table) Len() int { return len(t.dests) }

// Best returns the best path to p.
func (t *Table) Best(p netip.Prefix) (Path, bool) {
	d := t.dests[p]
	if d == nil || d.best < 0 {
		return Path{}, false
	}
	return d.paths[d.best], true
}

// Hops returns the next hops of all paths to p that are as good as the best one, in order; nil unless they
// are at least two. They must not be written to.
func (t *Table) Hops(p netip.Prefix) []netip.Addr {
	if d := t.dests[p]; d != nil {
		return d.hops
	}
	return nil
}

// All yields every destination that has a best path, in no particular order.
func (t *Table) All() iter.Seq2[netip.Prefix, Path] {
	return func(yield func(netip.Prefix, Path) bool) {
		for p, d := range t.dests {
			if d.best >= 0 && !yield(p, d.paths[d.best]) {
				return
			}
		}
	}
}

// Offers returns the paths to p that a peer which takes several is sent (RFC 7911): the best one first, then those
// that are as good and have another next hop. It is empty when there is no best path.
func (t *Table) Offers(p netip.Prefix) []Path {
	d := t.dests[p]
	if d == nil || d.best < 0 {
		return nil
	}
	out := make([]Path, 0, max(1, len(d.offers)))
	out = append(out, d.paths[d.best])
	for _, i := range d.offers {
		if i != d.best {
			out = append(out, d.paths[i])
		}
	}
	return out
}

// Of yields every path of src, in no particular order.
func (t *Table) Of(src *Source) iter.Seq2[netip.Prefix, Path] {
	return func(yield func(netip.Prefix, Path) bool) {
		for p, d := range t.dests {
			for i := range d.paths {
				if d.paths[i].Source == src && !yield(p, d.paths[i]) {
					return
				}
			}
		}
	}
}

// Put adds or replaces the path of path.Source with path.ID to p and reports whether the best path to p, or a path
// that is as good, changed.
func (t *Table) Put(p netip.Prefix, path Path) bool {
	d := t.dests[p]
	if d == nil {
		d = &dest{choice: choice{best: -1}}
		t.dests[p] = d
	}
	old := d.chosen()
	if i := d.index(path.Source, path.ID); i >= 0 {
		path.Index = d.paths[i].Index
		d.paths[i].count(-1)
		d.paths[i] = path
	} else {
		path.Index = d.free()
		d.paths = append(d.paths, path)
	}
	path.count(+1)
	return d.choose(old)
}

// Drop removes the path of src with its identifier to p and reports what Put does.
func (t *Table) Drop(p netip.Prefix, src *Source, id uint32) bool {
	d := t.dests[p]
	if d == nil {
		return false
	}
	i := d.index(src, id)
	if i < 0 {
		return false
	}
	return t.remove(p, d, i)
}

func (t *Table) remove(p netip.Prefix, d *dest, i int) bool {
	old := d.chosen()
	d.paths[i].count(-1)
	d.paths = append(d.paths[:i], d.paths[i+1:]...)
	if len(d.paths) == 0 {
		delete(t.dests, p)
		return old.best != Path{}
	}
	return d.choose(old)
}

// Sweep removes the paths of src for which gone is true and returns the destinations whose best changed.
func (t *Table) Sweep(src *Source, gone func(netip.Prefix, Path) bool) []netip.Prefix {
	var changed []netip.Prefix
	if src.received == 0 {
		return nil
	}
	for p, d := range t.dests {
		news := false
		for i := len(d.paths) - 1; i >= 0; i-- {
			if d.paths[i].Source == src && gone(p, d.paths[i]) {
				news = t.remove(p, d, i) || news
			}
		}
		if news {
			changed = append(changed, p)
		}
	}
	return changed
}

// Update rewrites the paths of src with f and returns the destinations whose best changed. It marks
// stale, and repeats the checks of import when what they depend on has changed.
func (t *Table) Update(src *Source, f func(netip.Prefix, Path) Path) []netip.Prefix {
	var changed []netip.Prefix
	if src.received == 0 {
		return nil
	}
	for p, d := range t.dests {
		news := false
		for i := range d.paths {
			was := d.paths[i]
			if was.Source != src {
				continue
			}
			next := f(p, was)
			next.ID, next.Index = was.ID, was.Index
			if next != was {
				news = t.Put(p, next) || news
			}
		}
		if news {
			changed = append(changed, p)
		}
	}
	return changed
}

// Retire makes the paths of src stale and the last choice of their destinations, and returns those whose
// best path changed.
func (t *Table) Retire(src *Source) []netip.Prefix {
	var changed []netip.Prefix
	src.Retired = true
	if src.received == 0 {
		return nil
	}
	for p, d := range t.dests {
		old, mine := d.chosen(), false
		for i := range d.paths {
			if d.paths[i].Source == src {
				mine = true
				d.paths[i].count(-1)
				d.paths[i].Stale = true
				d.paths[i].count(+1)
			}
		}
		if mine && d.choose(old) {
			changed = append(changed, p)
		}
	}
	return changed
}

// Chosen returns the destinations whose best path is one of src.
func (t *Table) Chosen(src *Source) []netip.Prefix {
	var out []netip.Prefix
	for p, d := range t.dests {
		if d.best >= 0 && d.paths[d.best].Source == src {
			out = append(out, p)
		}
	}
	return out
}

func (d *dest) index(src *Source, id uint32) int {
	for i := range d.paths {
		if d.paths[i].Source == src && d.paths[i].ID == id {
			return i
		}
	}
	return -1
}

// free is the lowest index that no path has.
func (d *dest) free() uint32 {
	for n := uint32(1); ; n++ {
		if !slices.ContainsFunc(d.paths, func(p Path) bool { return p.Index == n }) {
			return n
		}
	}
}

// outcome is what was chosen, to be compared after a change: the zero Path when nothing was.
type outcome struct {
	best   Path
	hops   []netip.Addr
	offers []Path
}

func (d *dest) chosen() outcome {
	out := outcome{hops: d.hops}
	if d.best >= 0 {
		out.best = d.paths[d.best]
	}
	for _, i := range d.offers {
		out.offers = append(out.offers, d.paths[i])
	}
	return out
}

func (d *dest) choose(old outcome) bool {
	d.choice = best(d.paths)
	now := d.chosen()
	return old.best != now.best || !slices.Equal(old.hops, now.hops) || !slices.Equal(old.offers, now.offers)
}

func (p Path) count(n int) {
	p.Source.received += n
	if !p.Barred {
		p.Source.accepted += n
	}
	if p.Stale {
		p.Source.stale += n
	}
}
