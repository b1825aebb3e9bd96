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
	best  int          // index in paths, -1 if none is usable
	hops  []netip.Addr // of all paths that are as good, if they are several
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

// Of yields every path of src, in no particular order.
func (t *Table) Of(src *Source) iter.Seq2[netip.Prefix, Path] {
	return func(yield func(netip.Prefix, Path) bool) {
		for p, d := range t.dests {
			if i := d.index(src); i >= 0 && !yield(p, d.paths[i]) {
				return
			}
		}
	}
}

// Put adds or replaces the path of path.Source to p and reports whether the best path to p, or a path that is
// as good, changed.
func (t *Table) Put(p netip.Prefix, path Path) bool {
	d := t.dests[p]
	if d == nil {
		d = &dest{best: -1}
		t.dests[p] = d
	}
	old, had := d.current()
	if i := d.index(path.Source); i >= 0 {
		d.paths[i].count(-1)
		d.paths[i] = path
	} else {
		d.paths = append(d.paths, path)
	}
	path.count(+1)
	return d.choose(old, had)
}

// Drop removes the path of src to p and reports what Put does.
func (t *Table) Drop(p netip.Prefix, src *Source) bool {
	d := t.dests[p]
	if d == nil {
		return false
	}
	i := d.index(src)
	if i < 0 {
		return false
	}
	return t.remove(p, d, i)
}

func (t *Table) remove(p netip.Prefix, d *dest, i int) bool {
	old, had := d.current()
	d.paths[i].count(-1)
	d.paths = append(d.paths[:i], d.paths[i+1:]...)
	if len(d.paths) == 0 {
		delete(t.dests, p)
		return had
	}
	return d.choose(old, had)
}

// Sweep removes the paths of src for which gone is true and returns the destinations whose best changed.
func (t *Table) Sweep(src *Source, gone func(netip.Prefix, Path) bool) []netip.Prefix {
	var changed []netip.Prefix
	if src.received == 0 {
		return nil
	}
	for p, d := range t.dests {
		if i := d.index(src); i >= 0 && gone(p, d.paths[i]) && t.remove(p, d, i) {
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
		i := d.index(src)
		if i < 0 {
			continue
		}
		if next := f(p, d.paths[i]); next != d.paths[i] && t.Put(p, next) {
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
		i := d.index(src)
		if i < 0 {
			continue
		}
		old, had := d.current()
		d.paths[i].count(-1)
		d.paths[i].Stale = true
		d.paths[i].count(+1)
		if d.choose(old, had) {
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

func (d *dest) index(src *Source) int {
	for i := range d.paths {
		if d.paths[i].Source == src {
			return i
		}
	}
	return -1
}

func (d *dest) current() (Path, bool) {
	if d.best < 0 {
		return Path{}, false
	}
	return d.paths[d.best], true
}

func (d *dest) choose(old Path, had bool) bool {
	before := d.hops
	d.best, d.hops = best(d.paths)
	now, has := d.current()
	return had != has || old != now || !slices.Equal(before, d.hops)
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
