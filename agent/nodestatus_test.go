package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
	"github.com/manekinet/maneki/desired"
)

func createNodeStatus(t *testing.T, store datastore.Store, name, node string, seconds uint32, classes ...api.NodeStatusClass) {
	t.Helper()
	o := &api.CalicoNodeStatus{Spec: api.CalicoNodeStatusSpec{Node: node, Classes: classes, UpdatePeriodSeconds: &seconds}}
	o.Name = name
	o.Default()
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := datastore.For[api.CalicoNodeStatus](store).Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

// The objects that ask about this host are answered at once and then at their
// period; those of other hosts, and those with the period 0, never.
func TestNodeStatusIsKeptCurrent(t *testing.T) {
	store := memory.New()
	createNodeStatus(t, store, "early", "n1", 1, api.ClassAgent)
	createNodeStatus(t, store, "elsewhere", "n2", 1, api.ClassAgent)
	createNodeStatus(t, store, "never", "n1", 0, api.ClassAgent)
	var answers atomic.Int32
	r := &reporter{store: store, node: "n1", log: slog.New(slog.DiscardHandler), report: func(classes []api.NodeStatusClass) api.CalicoNodeStatusStatus {
		now := time.Unix(int64(answers.Add(1)), 0).UTC()
		out := api.CalicoNodeStatusStatus{LastUpdated: &now}
		if slices.Contains(classes, api.ClassBGP) {
			out.BGP.NumberEstablishedV4 = 7
		}
		return out
	}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.run(ctx) }()
	defer func() { cancel(); <-done }()
	get := func(name string) *api.CalicoNodeStatus {
		o, err := datastore.For[api.CalicoNodeStatus](store).Get(t.Context(), "", name)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	eventually := func(what string, holds func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not within 10 s: %s", what)
			}
		}
	}
	eventually("a first answer", func() bool { return get("early").Status.LastUpdated != nil })
	first := get("early").Status.LastUpdated
	eventually("a second answer", func() bool { return get("early").Status.LastUpdated.After(*first) })
	createNodeStatus(t, store, "late", "n1", 86400, api.ClassAgent)
	eventually("an answer to a new object", func() bool { return get("late").Status.LastUpdated != nil })
	if _, err := datastore.For[api.CalicoNodeStatus](store).Modify(ctx, "", "late", func(o *api.CalicoNodeStatus) error {
		o.Spec.Classes = []api.NodeStatusClass{api.ClassBGP}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	eventually("an answer to a changed object", func() bool { return get("late").Status.BGP.NumberEstablishedV4 == 7 })
	for _, name := range []string{"elsewhere", "never"} {
		if at := get(name).Status.LastUpdated; at != nil {
			t.Errorf("%s was answered at %s", name, at)
		}
	}
	if _, err := datastore.For[api.CalicoNodeStatus](store).Delete(ctx, "", "early", ""); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1200 * time.Millisecond)
	if _, err := datastore.For[api.CalicoNodeStatus](store).Get(ctx, "", "early"); err == nil {
		t.Error("a deleted object was written again")
	}
}

// What is reported is what Calico's own types say, with their words.
func TestNodeReport(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	at := time.Date(2026, 11, 28, 8, 0, 0, 0, time.Local)
	peers := []agentapi.BGPPeer{
		{Address: addr("172.18.0.12"), Type: string(bgp.TypeMesh), State: "Established", Since: at},
		{Address: addr("172.18.0.1"), Type: string(bgp.TypeGlobal), State: "Active", Since: at},
		{Address: addr("fd00::9"), Type: string(bgp.TypeNode), State: "Established", Since: at.AddDate(0, 0, -3)},
	}
	v := routeView{
		have: map[desired.RouteKey]desired.Route{
			desired.NewRouteKey(prefix("10.0.0.5/32")):  {Dev: "cali1", Proto: desired.ProtoEndpoint},
			desired.NewRouteKey(prefix("10.0.0.0/26")):  {Type: desired.Blackhole, Proto: desired.ProtoComputed},
			desired.NewRouteKey(prefix("10.0.0.64/26")): {Gateway: addr("172.18.0.12"), Dev: "eth0", Proto: desired.ProtoBGP},
		},
		direct: map[netip.Prefix]string{prefix("172.18.0.0/24"): "eth0"},
		peers:  []bgp.PeerStatus{{Peer: bgp.Peer{Addr: addr("172.18.0.12"), Type: bgp.TypeMesh}}, {Peer: bgp.Peer{Addr: addr("172.18.0.1"), Type: bgp.TypeGlobal}}},
		offers: []bgp.Route{
			{Prefix: prefix("10.0.0.64/26"), NextHop: addr("172.18.0.12"), Peer: addr("172.18.0.12"), Best: true},
			{Prefix: prefix("10.0.0.64/26"), NextHop: addr("172.18.0.1"), Peer: addr("172.18.0.1")},
			{Prefix: prefix("fd10::/64"), NextHop: addr("fd00::9"), Peer: addr("fd00::9"), Best: true},
		},
	}
	s := agentapi.Status{Version: "v1", BGP: "running", Started: at, IPv4: agentapi.Address{Prefix: prefix("172.18.0.11/24")}}
	got := api.CalicoNodeStatusStatus{Agent: daemonReport(s, addr("172.18.0.11"), at), BGP: sessionReport(peers, at), Routes: v.report()}
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	var theirs v3.CalicoNodeStatusStatus
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&theirs); err != nil {
		t.Fatalf("Calico's types cannot read %s: %v", text, err)
	}
	if a := theirs.Agent; a.BIRDV4.State != v3.BGPDaemonStateReady || a.BIRDV6.State != v3.BGPDaemonStateNotReady || a.BIRDV4.RouterID != "172.18.0.11" || a.BIRDV4.LastBootTime != "2026-11-28 08:00:00" {
		t.Errorf("agent %+v", a)
	}
	b := theirs.BGP
	if b.NumberEstablishedV4 != 1 || b.NumberNotEstablishedV4 != 1 || b.NumberEstablishedV6 != 1 || b.NumberNotEstablishedV6 != 0 {
		t.Errorf("counts %+v", b)
	}
	want4 := []v3.CalicoNodePeer{
		{PeerIP: "172.18.0.12", Type: v3.BGPPeerTypeNodeMesh, State: v3.BGPSessionStateEstablished, Since: "08:00:00"},
		{PeerIP: "172.18.0.1", Type: v3.BGPPeerTypeGlobalPeer, State: v3.BGPSessionStateActive, Since: "08:00:00"},
	}
	if !slices.Equal(b.PeersV4, want4) || len(b.PeersV6) != 1 || b.PeersV6[0].Type != v3.BGPPeerTypeNodePeer || b.PeersV6[0].Since != "2026-11-25" {
		t.Errorf("peers %+v %+v", b.PeersV4, b.PeersV6)
	}
	mesh := v3.CalicoNodeRouteLearnedFrom{SourceType: v3.RouteSourceTypeNodeMesh, PeerIP: "172.18.0.12"}
	wantRoutes := []v3.CalicoNodeRoute{
		{Type: v3.RouteTypeFIB, Destination: "10.0.0.0/26", Gateway: "N/A", Interface: "N/A", LearnedFrom: v3.CalicoNodeRouteLearnedFrom{SourceType: v3.RouteSourceTypeStatic}},
		{Type: v3.RouteTypeFIB, Destination: "10.0.0.5/32", Gateway: "N/A", Interface: "cali1", LearnedFrom: v3.CalicoNodeRouteLearnedFrom{SourceType: v3.RouteSourceTypeKernel}},
		{Type: v3.RouteTypeFIB, Destination: "10.0.0.64/26", Gateway: "172.18.0.12", Interface: "eth0", LearnedFrom: mesh},
		{Type: v3.RouteTypeRIB, Destination: "10.0.0.64/26", Gateway: "172.18.0.1", Interface: "eth0", LearnedFrom: v3.CalicoNodeRouteLearnedFrom{SourceType: v3.RouteSourceTypeBGPPeer, PeerIP: "172.18.0.1"}},
		{Type: v3.RouteTypeFIB, Destination: "172.18.0.0/24", Gateway: "N/A", Interface: "eth0", LearnedFrom: v3.CalicoNodeRouteLearnedFrom{SourceType: v3.RouteSourceTypeDirect}},
	}
	if !slices.Equal(theirs.Routes.RoutesV4, wantRoutes) {
		t.Errorf("routes %+v\nwant %+v", theirs.Routes.RoutesV4, wantRoutes)
	}
	if r := theirs.Routes.RoutesV6; len(r) != 1 || r[0].Type != v3.RouteTypeRIB || r[0].Gateway != "fd00::9" || r[0].Interface != "N/A" {
		t.Errorf("IPv6 routes %+v", r)
	}
}
