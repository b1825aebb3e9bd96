package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/autodetect"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
	"github.com/manekinet/maneki/resource"
)

func newAgent(t *testing.T, store datastore.Store, node, addr string) *Agent {
	t.Helper()
	dir := t.TempDir()
	o := Options{Node: node, Log: slog.New(slog.DiscardHandler), NodenameFile: dir + "/nodename", MTUFile: dir + "/mtu", Version: "v9"}
	o.Pool4 = PoolOptions{IPIP: api.EncapNever, VXLAN: api.EncapNever, NATOutgoing: true, NodeSelector: "all()"}
	o.Pool6 = PoolOptions{IPIP: api.EncapNever, VXLAN: api.EncapNever, NodeSelector: "all()"}
	if err := o.resolve(); err != nil {
		t.Fatal(err)
	}
	return &Agent{
		opts: o, store: store, objects: resource.New(store, o.Log),
		node: &nodeState{mtu: 1500, choice: [2]autodetect.Choice{{Prefix: netip.MustParsePrefix(addr), Interface: "eth0"}}},
	}
}

func TestRegister(t *testing.T) {
	ctx := context.Background()
	store := memory.New()
	a := newAgent(t, store, "n1", "10.0.0.1/24")
	a.opts.Labels = map[string]string{"rack": "a"}
	if err := a.register(ctx); err != nil {
		t.Fatal(err)
	}
	n, err := datastore.For[api.Node](store).Get(ctx, "", "n1")
	if err != nil || n.Spec.BGP.IPv4Address != "10.0.0.1/24" || n.Labels["rack"] != "a" || n.Spec.BGP.IPv6Address != "" {
		t.Fatalf("node %+v, %v", n, err)
	}
	p4, err := datastore.For[api.IPPool](store).Get(ctx, "", "default-ipv4-ippool")
	if err != nil || p4.Spec.CIDR != "192.168.0.0/16" || !p4.Spec.NATOutgoing || p4.Spec.BlockSize != 26 {
		t.Errorf("IPv4 pool %+v, %v", p4, err)
	}
	p6, err := datastore.For[api.IPPool](store).Get(ctx, "", "default-ipv6-ippool")
	if err != nil {
		t.Fatal(err)
	}
	if cidr := netip.MustParsePrefix(p6.Spec.CIDR); !netip.MustParsePrefix("fd00::/8").Overlaps(cidr) || cidr.Bits() != 48 || p6.Spec.NATOutgoing {
		t.Errorf("IPv6 pool %+v", p6.Spec)
	}
	if _, err := datastore.For[api.FelixConfiguration](store).Get(ctx, "", "default"); err != nil {
		t.Error(err)
	}
	info, err := datastore.For[api.ClusterInformation](store).Get(ctx, "", "default")
	if err != nil || len(info.Spec.ClusterGUID) != 32 {
		t.Errorf("cluster information %+v, %v", info, err)
	}
}

func TestRegisterAgainKeepsWhatOthersWrote(t *testing.T) {
	ctx := context.Background()
	store := memory.New()
	nodes := datastore.For[api.Node](store)
	if err := newAgent(t, store, "n1", "10.0.0.1/24").register(ctx); err != nil {
		t.Fatal(err)
	}
	first, err := nodes.Modify(ctx, "", "n1", func(n *api.Node) error {
		n.Spec.BGP.RouteReflectorClusterID = "1.1.1.1"
		n.Spec.Addresses = append(n.Spec.Addresses, api.NodeAddress{Address: "203.0.113.1", Type: "ExternalIP"})
		n.Labels = map[string]string{"typed": "by-hand"}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := datastore.For[api.IPPool](store).Delete(ctx, "", "default-ipv6-ippool", ""); err != nil {
		t.Fatal(err)
	}
	if err := newAgent(t, store, "n1", "10.0.0.2/24").register(ctx); err != nil {
		t.Fatal(err)
	}
	n, err := nodes.Get(ctx, "", "n1")
	if err != nil {
		t.Fatal(err)
	}
	if n.UID != first.UID || n.Spec.BGP.RouteReflectorClusterID != "1.1.1.1" || n.Labels["typed"] != "by-hand" ||
		n.Spec.BGP.IPv4Address != "10.0.0.2/24" || len(n.Spec.Addresses) != 2 {
		t.Errorf("node %+v", n)
	}
	if pools, _, _, err := datastore.For[api.IPPool](store).List(ctx, ""); err != nil || len(pools) != 1 {
		t.Errorf("a deleted default pool came back: %d pools, %v", len(pools), err)
	}
}

func TestRegisterRefusesAnotherNodesAddress(t *testing.T) {
	ctx := context.Background()
	store := memory.New()
	if err := newAgent(t, store, "n1", "10.0.0.1/24").register(ctx); err != nil {
		t.Fatal(err)
	}
	twin := newAgent(t, store, "n2", "10.0.0.1/16")
	err := twin.register(ctx)
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "belongs to node n1") {
		t.Fatalf("error %v", err)
	}
	if _, err := datastore.For[api.Node](store).Get(ctx, "", "n2"); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("the refused node was registered: %v", err)
	}
	twin.opts.SkipConflictCheck = true
	if err := twin.register(ctx); err != nil {
		t.Error(err)
	}
}
