package resource

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
	"github.com/manekinet/maneki/ipam"
)

// cluster is two nodes with everything that can belong to a node. It returns
// the addresses of each: two endpoints (one allocated without naming the node,
// as Calico's Docker plugin does) and a tunnel.
func cluster(t *testing.T, c *Client) map[string][]netip.Addr {
	t.Helper()
	ctx := t.Context()
	must(t, c.Create(ctx, newPool("p1", "10.65.0.0/16")))
	addrs := map[string][]netip.Addr{}
	for _, node := range []string{"n1", "n10"} {
		must(t, c.Create(ctx, newNode(node)))
		for _, handle := range []string{"c1-" + node, "", "ipip-tunnel-addr-" + node} {
			unnamed := handle == ""
			if unnamed {
				handle = "docker-" + node
			}
			got, err := c.ipam.AutoAssign(ctx, ipam.Request{Host: node, Handle: handle, Num4: 1})
			must(t, err)
			addrs[node] = append(addrs[node], got[0].Addr)
			if unnamed {
				forgetNode(t, c, got[0])
			}
		}
		for i, a := range addrs[node][:2] {
			must(t, c.Create(ctx, newEndpoint(node, []string{"c1", "c2"}[i], a.String())))
		}
		felix, bgp := &api.FelixConfiguration{}, &api.BGPConfiguration{}
		felix.Name, bgp.Name = "node."+node, "node."+node
		must(t, errors.Join(c.Create(ctx, felix), c.Create(ctx, bgp)))
		peer := &api.BGPPeer{Spec: api.BGPPeerSpec{Node: node, PeerIP: "192.0.2.1", ASNumber: 64999}}
		peer.Name = "peer-of-" + node
		must(t, c.Create(ctx, peer))
	}
	global := &api.BGPPeer{Spec: api.BGPPeerSpec{PeerIP: "192.0.2.2", ASNumber: 64999}}
	global.Name = "global"
	must(t, c.Create(ctx, global))
	return addrs
}

// forgetNode removes the attributes of an allocation from its block.
func forgetNode(t *testing.T, c *Client, a ipam.Assignment) {
	t.Helper()
	key := datastore.Key{Kind: datastore.KindIPAMBlock, Name: a.Block.String()}
	must(t, datastore.Update(t.Context(), c.store, key, func(b *api.IPAMBlock) (*api.IPAMBlock, error) {
		ordinal := int(a.Addr.As4()[3] - a.Block.Addr().As4()[3])
		b.Attributes[*b.Allocations[ordinal]].Secondary = nil
		return b, nil
	}))
}

func TestNodeDelete(t *testing.T) {
	c, s := newClient(t)
	ctx := t.Context()
	addrs := cluster(t, c)
	// An endpoint that claims an address of the other node does not free it.
	must(t, c.Create(ctx, newEndpoint("n1", "thief", addrs["n10"][0].String())))

	must(t, c.Delete(ctx, newNode("n1")))
	for _, a := range addrs["n1"] {
		if got, err := c.ipam.Lookup(ctx, a); !errors.Is(err, ipam.ErrNotAssigned) {
			t.Errorf("%s of the deleted node: %+v, %v", a, got, err)
		}
	}
	for _, a := range addrs["n10"] {
		if _, err := c.ipam.Lookup(ctx, a); err != nil {
			t.Errorf("%s of the other node: %v", a, err)
		}
	}
	for kind, want := range map[string][]string{
		"Node":                   {"n10"},
		"WorkloadEndpoint":       {"default/n10-cni-c1-eth0", "default/n10-cni-c2-eth0"},
		"BGPPeer":                {"global", "peer-of-n10"},
		"FelixConfiguration":     {"node.n10"},
		"BGPConfiguration":       {"node.n10"},
		datastore.KindIPAMHandle: {"c1-n10", "docker-n10", "ipip-tunnel-addr-n10"},
		"IPPool":                 {"p1"},
	} {
		if got := names(t, s, kind); !slices.Equal(got, want) {
			t.Errorf("%s left: %v, want %v", kind, got, want)
		}
	}
	claims, _, err := s.List(ctx, datastore.Query{Kind: datastore.KindBlockAffinity})
	must(t, err)
	for _, e := range claims {
		if e.Key.Namespace != "host:n10" {
			t.Errorf("claim left: %v", e.Key)
		}
	}
	if len(claims) == 0 {
		t.Error("the other node lost its claims")
	}
	wantText(t, c.Delete(ctx, newNode("n1")), "resource does not exist: Node(n1) with error: <nil>")
}

// failingStore fails the n-th write and every one after it.
type failingStore struct {
	*memory.Store
	left int
}

var errCut = errors.New("cut off")

func (f *failingStore) spend() error {
	if f.left--; f.left < 0 {
		return errCut
	}
	return nil
}

func (f *failingStore) Put(ctx context.Context, key datastore.Key, value []byte, pre datastore.Precondition) (datastore.Revision, error) {
	if err := f.spend(); err != nil {
		return "", err
	}
	return f.Store.Put(ctx, key, value, pre)
}

func (f *failingStore) Delete(ctx context.Context, key datastore.Key, pre datastore.Precondition) error {
	if err := f.spend(); err != nil {
		return err
	}
	return f.Store.Delete(ctx, key, pre)
}

func (f *failingStore) Commit(ctx context.Context, ops []datastore.Op) (datastore.Revision, error) {
	if err := f.spend(); err != nil {
		return "", err
	}
	return f.Store.Commit(ctx, ops)
}

// A deletion that is cut off at any write can be repeated, and then leaves
// nothing: the node itself goes last.
func TestNodeDeleteInterrupted(t *testing.T) {
	for writes := 0; ; writes++ {
		c, s := newClient(t)
		cluster(t, c)
		cut := &failingStore{Store: s, left: writes}
		broken := New(cut, nil)
		err := broken.Delete(t.Context(), newNode("n1"))
		if err == nil {
			if writes < 10 {
				t.Fatalf("only %d writes", writes)
			}
			return
		}
		if !errors.Is(err, errCut) {
			t.Fatalf("after %d writes: %v", writes, err)
		}
		if err := c.Delete(t.Context(), newNode("n1")); err != nil {
			t.Fatalf("repeated after %d writes: %v", writes, err)
		}
		for _, kind := range []string{"Node", "WorkloadEndpoint", "BGPPeer", "FelixConfiguration", "BGPConfiguration", datastore.KindIPAMHandle} {
			for _, name := range names(t, s, kind) {
				if name != "global" && !slices.Contains([]string{"n10", "default/n10-cni-c1-eth0", "default/n10-cni-c2-eth0", "peer-of-n10", "node.n10", "c1-n10", "docker-n10", "ipip-tunnel-addr-n10"}, name) {
					t.Errorf("after %d writes and a repetition: %s(%s) is left", writes, kind, name)
				}
			}
		}
		if writes > 200 {
			t.Fatal("deletion never ends")
		}
	}
}
