package export

import (
	"github.com/manekinet/maneki/bgp/message"
	"github.com/manekinet/maneki/bgp/rib"
)

// chunkRoutes bounds how many routes are packed at once, and so the memory and the time of one chunk.
const chunkRoutes = 4096

// chunk is the packed changes after one position up to another.
type chunk struct {
	to       uint64
	packed   uint64 // the group's seq when it was made
	messages []packet
}

// packet is one encoded UPDATE. A member that is itself the source of the routes must not get them back;
// it is sent withdraw instead, because another path to them may have been sent to it before. withdraw is
// empty when nothing can have been.
type packet struct {
	from     *rib.Source
	update   []byte
	withdraw [][]byte
}

// bucket collects the prefixes that can share messages.
type bucket struct {
	family message.Family
	attrs  rib.Attrs
	from   *rib.Source
}

// pack computes the chunk that starts after pos: the oldest chunkRoutes changes, withdrawals first.
func (g *Group) pack(pos uint64) (*chunk, error) {
	c := &chunk{to: g.seq, packed: g.seq}
	withdrawn := make(map[message.Family][]message.NLRI)
	reach := make(map[bucket][]message.NLRI)
	var order []bucket
	live, dead := g.live.after(pos), g.dead.after(pos)
	if pos == 0 {
		dead = &g.dead.head
	}
	for n := 0; live != &g.live.head || dead != &g.dead.head; n++ {
		if n == chunkRoutes {
			c.to = min(seqOr(live, &g.live.head), seqOr(dead, &g.dead.head)) - 1
			break
		}
		if dead != &g.dead.head && (live == &g.live.head || dead.seq < live.seq) {
			f := message.FamilyOf(dead.nlri.Prefix.Addr())
			withdrawn[f] = append(withdrawn[f], dead.nlri)
			dead = dead.next
			continue
		}
		b := bucket{family: message.FamilyOf(live.nlri.Prefix.Addr()), attrs: live.attrs, from: live.from}
		if reach[b] == nil {
			order = append(order, b)
		}
		reach[b] = append(reach[b], live.nlri)
		live = live.next
	}
	return c, c.encode(g.policy, withdrawn, order, reach, pos > 0)
}

func seqOr(r, sentinel *route) uint64 {
	if r == sentinel {
		return ^uint64(0)
	}
	return r.seq
}

func (c *chunk) encode(p Policy, withdrawn map[message.Family][]message.NLRI, order []bucket, reach map[bucket][]message.NLRI, seen bool) error {
	for _, f := range message.AllFamilies() {
		bufs, err := message.AppendWithdraw(nil, f, p.PathIDs.Has(f), withdrawn[f])
		if err != nil {
			return err
		}
		for _, b := range bufs {
			c.messages = append(c.messages, packet{update: b})
		}
	}
	for _, k := range order {
		bufs, err := message.AppendReach(nil, k.family, k.attrs.Value(), message.Form{FourOctetAS: p.FourOctetAS, PathIDs: p.PathIDs.Has(k.family)}, reach[k])
		if err != nil {
			return err
		}
		first := len(c.messages)
		for _, b := range bufs {
			c.messages = append(c.messages, packet{from: k.from, update: b})
		}
		if seen && k.from != nil && !k.from.Local && len(bufs) > 0 {
			if c.messages[first].withdraw, err = message.AppendWithdraw(nil, k.family, p.PathIDs.Has(k.family), reach[k]); err != nil {
				return err
			}
		}
	}
	return nil
}
