package render

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/manekinet/maneki/desired"
)

const (
	// maxAtomHosts and maxAtomNets bound the sets that an index takes in: a larger one is asked by a look-up of its own.
	maxAtomHosts = 4096
	maxAtomNets  = 1024
	// maxHosts and maxNets bound an index: the smallest sets come first.
	maxHosts = 1 << 17
	maxNets  = 4096
)

// peers tells for every address in which of some atoms it is. Addresses that are in the same ones are a class, and have
// one chain. It outlives a rendering, so that a change costs what has changed.
//
// An atom that no rule asks any more stays for one rendering. A packet on its way sees the rules as they were, but the
// elements of a map as they are: an address that left its class in the same moment would be led to a chain that in the old
// rules does not ask what is just being removed. One rendering later the classes with and without the atom have asked the
// same for a while. A new atom needs no such care: the chains of its classes are new, and in the kernel before any element
// leads to them (dataplane/nft, change).
type peers struct {
	name     string
	used     uint64 // the last rendering that asked
	atoms    map[atomID]*atom
	classes  map[string]*class // by key
	hosts    map[netip.Addr]*host
	segments [2][]segment // of addresses that prefixes cover, sorted and disjoint; IPv4, IPv6
	elements [2]*desired.Elements
}

type atom struct {
	source  *desired.Members // as given
	members *desired.Members // its addresses and prefixes
	asked   uint64
}

// class is the addresses that are in the same atoms.
type class struct {
	key   string
	atoms []atomID // sorted
	chain string
	n     int // addresses and segments

	// its chain as rendered last, where few may match
	known bool
	end   desired.RuleID
	list  []*piece
	body  body
	id    desired.RulesID
}

// host is an address that is in atoms by itself.
type host struct {
	atoms []atomID // sorted
	class *class   // of these atoms and those whose prefixes cover it
}

// segment is addresses between two, both included.
type segment struct {
	from, to netip.Addr
	class    *class
}

func newPeers(name string) *peers {
	return &peers{name: name, atoms: map[atomID]*atom{}, classes: map[string]*class{}, hosts: map[netip.Addr]*host{}}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// update brings the index to the atoms wanted with their members. now counts renderings.
func (x *peers) update(now uint64, want map[atomID]*desired.Members) {
	c := peerChange{plus: map[netip.Addr][]atomID{}, minus: map[netip.Addr][]atomID{}}
	for id, source := range want {
		a := x.atoms[id]
		if a == nil {
			a = &atom{}
			x.atoms[id] = a
		}
		a.asked = now
		if a.source == source && source != nil || source.Digest() == a.source.Digest() {
			a.source = source
			continue
		}
		next := addressesOf(source)
		add, del := next.Since(a.members)
		c.note(id, add, del)
		a.source, a.members = source, next
	}
	for id, a := range x.atoms {
		if a.asked+1 < now {
			c.note(id, nil, slices.Collect(a.members.All()))
			delete(x.atoms, id)
		}
	}
	x.apply(c)
}

// addressesOf are a set's addresses, without protocols and ports.
func addressesOf(m *desired.Members) *desired.Members {
	for e := range m.All() {
		if e.Proto == 0 {
			return m // members of a set are all of one kind
		}
		break
	}
	var list []desired.Member
	for e := range m.All() {
		list = append(list, desired.Member{Net: e.Net})
	}
	return desired.NewMembers(list...)
}

// peerChange is what becomes of addresses; nets says that prefixes come or go.
type peerChange struct {
	plus, minus map[netip.Addr][]atomID
	nets        bool
}

func (c *peerChange) note(id atomID, add, del []desired.Member) {
	each := func(list []desired.Member, into map[netip.Addr][]atomID) {
		for _, m := range list {
			if !m.Net.IsSingleIP() {
				c.nets = true
				continue
			}
			into[m.Net.Addr()] = append(into[m.Net.Addr()], id)
		}
	}
	each(add, c.plus)
	each(del, c.minus)
}

func (x *peers) apply(c peerChange) {
	out := [2]elementChange{}
	if c.nets {
		x.divide()
	}
	touched := make(map[netip.Addr]struct{}, len(c.plus)+len(c.minus))
	for _, m := range []map[netip.Addr][]atomID{c.plus, c.minus} {
		for a := range m {
			touched[a] = struct{}{}
		}
	}
	for a := range touched {
		h := x.hosts[a]
		if h == nil {
			h = &host{}
			x.hosts[a] = h
		}
		h.atoms = without(union(h.atoms, c.plus[a]), c.minus[a])
		x.classify(a, h, &out)
	}
	if c.nets {
		for a, h := range x.hosts {
			x.classify(a, h, &out)
		}
	}
	for i := range out {
		if len(out[i].add)+len(out[i].del) > 0 {
			x.elements[i] = x.elements[i].Change(out[i].add, out[i].del)
		}
	}
	for key, c := range x.classes {
		if c.n == 0 {
			delete(x.classes, key)
		}
	}
}

type elementChange struct{ add, del []desired.Element }

// classify puts an address into its class and notes what changes in the map. One that is in no atom leaves the index.
func (x *peers) classify(a netip.Addr, h *host, out *[2]elementChange) {
	i := family(a)
	var next *class
	if len(h.atoms) > 0 {
		next = x.class(union(h.atoms, x.covering(a)))
	} else {
		delete(x.hosts, a)
	}
	if next == h.class {
		return
	}
	if h.class != nil {
		h.class.n--
		out[i].del = append(out[i].del, hostElement(a, h.class))
	}
	if next != nil {
		next.n++
		out[i].add = append(out[i].add, hostElement(a, next))
	}
	h.class = next
}

func hostsType(v4 bool) desired.SetType {
	t := desired.HostSetType(v4)
	t.Verdicts = true
	return t
}

func hostElement(a netip.Addr, c *class) desired.Element {
	return hostsType(a.Is4()).Element(desired.Verdict{Do: desired.Goto, Chain: c.chain}, desired.AddrPart(netip.PrefixFrom(a, a.BitLen())))
}

// class is the class of the addresses in these atoms, which are sorted.
func (x *peers) class(atoms []atomID) *class {
	var b strings.Builder
	for _, id := range atoms {
		b.WriteString(string(id))
		b.WriteByte(0)
	}
	key := b.String()
	c := x.classes[key]
	if c == nil {
		c = &class{key: key, atoms: atoms, chain: "peers-" + hash(x.name+"\x00"+key)}
		x.classes[key] = c
	}
	return c
}

// covering are the atoms whose prefixes cover an address.
func (x *peers) covering(a netip.Addr) []atomID {
	list := x.segments[family(a)]
	i, found := slices.BinarySearchFunc(list, a, func(s segment, a netip.Addr) int { return s.from.Compare(a) })
	if !found {
		i--
	}
	if i < 0 || list[i].to.Less(a) {
		return nil
	}
	return list[i].class.atoms
}

// divide makes the segments anew.
func (x *peers) divide() {
	var spans [2][]span[netip.Addr, atomID]
	for id, a := range x.atoms {
		for m := range a.members.All() {
			if m.Net.IsSingleIP() {
				continue
			}
			i := family(m.Net.Addr())
			spans[i] = append(spans[i], span[netip.Addr, atomID]{from: m.Net.Addr(), to: lastOf(m.Net), what: id})
		}
	}
	for i := range x.segments {
		for _, s := range x.segments[i] {
			s.class.n--
		}
		x.segments[i] = nil
		sweep(spans[i], netip.Addr.Compare, netip.Addr.Next, netip.Addr.Prev, func(from, to netip.Addr, what []atomID) {
			c := x.class(union(nil, what))
			c.n++
			x.segments[i] = append(x.segments[i], segment{from, to, c})
		})
	}
}

// union of a sorted list and one that need not be; without is the difference.
func union(sorted, more []atomID) []atomID {
	if len(more) == 0 {
		return sorted
	}
	out := slices.Concat(sorted, more)
	slices.Sort(out)
	return slices.Compact(out)
}

func without(sorted, less []atomID) []atomID {
	if len(less) == 0 {
		return sorted
	}
	return slices.DeleteFunc(slices.Clone(sorted), func(id atomID) bool { return slices.Contains(less, id) })
}
