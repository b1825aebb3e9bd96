package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
	"github.com/manekinet/maneki/datastore/memory"
)

// tester is what testing.T and rapid.T have in common.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// must fails the test on an error.
func must(t tester, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("unexpected: %v", err)
	}
}

// newStore is a memory store with the pools given as "name cidr [blockSize]".
func newStore(t tester, pools ...string) *memory.Store {
	t.Helper()
	s := memory.New()
	for _, text := range pools {
		createPool(t, s, text, nil)
	}
	return s
}

func createPool(t tester, s datastore.Store, text string, edit func(*api.IPPoolSpec)) {
	t.Helper()
	p := &api.IPPool{}
	f := strings.Fields(text)
	p.Name, p.Spec.CIDR = f[0], f[1]
	if len(f) > 2 {
		if _, err := fmt.Sscan(f[2], &p.Spec.BlockSize); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	p.Default()
	if edit != nil {
		edit(&p.Spec)
	}
	must(t, datastore.For[api.IPPool](s).Create(context.Background(), p))
}

func modifyPool(t tester, s datastore.Store, name string, edit func(*api.IPPoolSpec)) {
	t.Helper()
	_, err := datastore.For[api.IPPool](s).Modify(context.Background(), "", name, func(p *api.IPPool) error {
		edit(&p.Spec)
		return nil
	})
	must(t, err)
}

func reserve(t tester, s datastore.Store, cidrs ...string) {
	t.Helper()
	r := &api.IPReservation{Spec: api.IPReservationSpec{ReservedCIDRs: cidrs}}
	r.Name = fmt.Sprintf("r%d", len(cidrs))
	must(t, datastore.For[api.IPReservation](s).Create(context.Background(), r))
}

// putBlock stores a block as it is.
func putBlock(t tester, s datastore.Store, b *block) {
	t.Helper()
	data, err := b.encode()
	must(t, err)
	_, err = s.Put(context.Background(), blockKey(b.cidr), data, datastore.Always())
	must(t, err)
}

func putAffinity(t tester, s datastore.Store, owner, cidr, value string) {
	t.Helper()
	_, err := s.Put(context.Background(), affinityKey(owner, prefix(cidr)), []byte(value), datastore.Always())
	must(t, err)
}

// dump is every stored key with what matters of its value, for goldens:
// "affinity host:a 10.0.0.0/30 confirmed", "block 10.0.0.0/30 host:a h1=1",
// "handle h1 10.0.0.0/30=1".
func dump(t tester, s datastore.Store) string {
	t.Helper()
	ctx := context.Background()
	var out strings.Builder
	c := New(s, Options{})
	entries, _, err := s.List(ctx, datastore.Query{Kind: datastore.KindBlockAffinity})
	must(t, err)
	for _, e := range entries {
		v, err := datastore.DecodeJSON[api.BlockAffinity](e)
		must(t, err)
		fmt.Fprintf(&out, "affinity %s %s %s\n", e.Key.Namespace, e.Key.Name, newAffinityEntry(v, e.Rev).state)
	}
	blocks, corrupt, err := c.listBlocks(ctx)
	must(t, err)
	for _, cidr := range sortedCIDRs(corrupt) {
		fmt.Fprintf(&out, "block %s corrupt\n", cidr)
	}
	for _, cidr := range sortedCIDRs(blocks) {
		b := blocks[cidr].block
		n := map[string]int{}
		for o := range b.alloc {
			if a := b.owner(o); a != nil {
				n[handleOf(a)]++
			}
		}
		fmt.Fprintf(&out, "block %s %s", cidr, b.affinity)
		for _, h := range sortedKeys(n) {
			fmt.Fprintf(&out, " %s=%d", h, n[h])
		}
		out.WriteString("\n")
	}
	all := handles(t, s)
	for _, id := range sortedKeys(all) {
		h := all[id]
		fmt.Fprintf(&out, "handle %s", id)
		for _, b := range sortedKeys(h) {
			fmt.Fprintf(&out, " %s=%d", b, h[b])
		}
		out.WriteString("\n")
	}
	return out.String()
}

func handles(t tester, s datastore.Store) map[string]counts {
	t.Helper()
	entries, _, err := s.List(context.Background(), datastore.Query{Kind: datastore.KindIPAMHandle})
	must(t, err)
	out := map[string]counts{}
	for _, e := range entries {
		h, err := decodeHandle(e.Key.Name, e.Value)
		must(t, err)
		out[e.Key.Name] = h
	}
	return out
}

// checkAllocations verifies that every block can be read, that none is left
// that nobody needs, and that what handles count is what blocks hold. It returns
// who holds which address.
func checkAllocations(t tester, s datastore.Store) map[netip.Addr]string {
	t.Helper()
	blocks, corrupt, err := New(s, Options{}).listBlocks(context.Background())
	must(t, err)
	if len(corrupt) > 0 {
		t.Fatalf("corrupt blocks: %v", corrupt)
	}
	held := map[netip.Addr]string{}
	want := map[string]counts{}
	for cidr, e := range blocks {
		for o := range e.block.alloc {
			if a := e.block.owner(o); a != nil {
				h := handleOf(a)
				held[addrAt(cidr, o)] = h
				want[h] = want[h].plus(cidr.String(), 1)
			}
		}
		if e.block.affinity == "" && e.block.idle() {
			t.Errorf("block %s is empty and nobody's, but was not deleted", cidr)
		}
	}
	got := handles(t, s)
	for _, h := range append(sortedKeys(got), sortedKeys(want)...) {
		if fmt.Sprint(got[h]) != fmt.Sprint(want[h]) {
			t.Errorf("handle %s counts %v, blocks hold %v", h, got[h], want[h])
		}
	}
	return held
}

// checkStore verifies what must hold whenever nobody is at work and nobody
// crashed: what checkAllocations says, and that a confirmed affinity has its
// block and an owned block its affinity.
func checkStore(t tester, s datastore.Store) map[netip.Addr]string {
	t.Helper()
	ctx := context.Background()
	blocks, _, err := New(s, Options{}).listBlocks(ctx)
	must(t, err)
	entries, _, err := s.List(ctx, datastore.Query{Kind: datastore.KindBlockAffinity})
	must(t, err)
	claims := map[string]bool{}
	for _, e := range entries {
		v, err := datastore.DecodeJSON[api.BlockAffinity](e)
		must(t, err)
		if b := blocks[prefix(e.Key.Name)].block; v.State == api.AffinityConfirmed && (b == nil || b.affinity != e.Key.Namespace) {
			t.Errorf("%s is confirmed, but the block is %+v", e.Key, b)
		}
		claims[e.Key.Namespace+" "+e.Key.Name] = true
	}
	for cidr, e := range blocks {
		if o := e.block.affinity; o != "" && !claims[o+" "+cidr.String()] {
			t.Errorf("block %s belongs to %s, which has no affinity", cidr, o)
		}
	}
	return checkAllocations(t, s)
}

// calls counts what reaches a store, by verb.
type calls struct {
	writes, reads atomic.Int64
}

func (n *calls) hook(c datastoretest.Call) datastoretest.Fault {
	switch c.Verb {
	case datastoretest.Commit, datastoretest.Put, datastoretest.Delete:
		n.writes.Add(1)
	case datastoretest.Get, datastoretest.List:
		n.reads.Add(1)
	case datastoretest.Watch, datastoretest.Event:
	}
	return datastoretest.Fault{}
}

func (n *calls) take() (writes, reads int64) { return n.writes.Swap(0), n.reads.Swap(0) }

// addrsOf are the addresses of assignments as text.
func addrsOf(as []Assignment) string {
	var out []string
	for _, a := range as {
		out = append(out, a.Addr.String())
	}
	return strings.Join(out, " ")
}

// firstBlock is the block of an empty pool that a host claims first.
func firstBlock(pool string, bits int, host string) netip.Prefix {
	for b := range newWalk(prefix(pool), bits, host, at(0)).blocks(uncovered) {
		return b
	}
	return netip.Prefix{}
}
