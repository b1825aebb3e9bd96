package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// ReflectionName is the loop's name in reports.
const ReflectionName = "route-reflection"

const (
	lookInterval = 2 * time.Second // between two looks at the heartbeats
	// settle is the least time between two changes: the hosts follow objects of
	// different kinds independently, so that one change could overtake another.
	settle = 3 * time.Second
)

// Reflection chooses the route reflectors of a cluster that asks for it (the
// annotation maneki.net/route-reflection of BGPConfiguration default). What it
// decides is written as ordinary objects: the label maneki.net/route-reflector
// and routeReflectorClusterID on Nodes, one BGPPeer, and nodeToNodeMeshEnabled.
type Reflection struct {
	Store datastore.Store
	Log   *slog.Logger
	// Look and Settle are the intervals; 0: the defaults.
	Look, Settle time.Duration

	nodes   map[string]*api.Node
	peers   map[string]*api.BGPPeer
	config  *api.BGPConfiguration
	synced  bool
	beats   census
	changed time.Time // when something was last changed
}

var _ Loop = (*Reflection)(nil)

// Name implements Loop.
func (r *Reflection) Name() string { return ReflectionName }

// Run implements Loop.
func (r *Reflection) Run(ctx context.Context, report func(string)) error {
	r.nodes, r.peers, r.config, r.synced = map[string]*api.Node{}, map[string]*api.BGPPeer{}, nil, false
	r.beats, r.changed = census{}, time.Time{}
	if r.Look == 0 {
		r.Look, r.Settle = lookInterval, settle
	}
	news := make(chan datastore.Batch)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return datastore.Follow(ctx, r.Store, func(b datastore.Batch) {
			select {
			case news <- b:
			case <-ctx.Done():
			}
		}, datastore.Query{Kind: "Node"}, datastore.Query{Kind: "BGPPeer"}, datastore.Query{Kind: "BGPConfiguration"})
	})
	g.Go(func() error { return r.steps(ctx, news, report) })
	return g.Wait()
}

func (r *Reflection) steps(ctx context.Context, news <-chan datastore.Batch, report func(string)) error {
	t := time.NewTicker(r.Look)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case b := <-news:
			r.synced = r.synced || b.InSync
			for _, e := range b.Events {
				r.fold(e)
			}
		case <-t.C:
			r.step(ctx, report)
		}
	}
}

// fold takes one change. An object that cannot be read counts as absent; the
// agents name it.
func (r *Reflection) fold(e datastore.Event) {
	name := e.Entry.Key.Name
	gone := e.Type == datastore.EventDelete
	switch e.Entry.Key.Kind {
	case "Node":
		delete(r.nodes, name)
		if n, err := datastore.For[api.Node](nil).Decode(e.Entry); !gone && err == nil {
			r.nodes[name] = n
		}
	case "BGPPeer":
		delete(r.peers, name)
		if p, err := datastore.For[api.BGPPeer](nil).Decode(e.Entry); !gone && err == nil {
			r.peers[name] = p
		}
	case "BGPConfiguration":
		if name != "default" {
			return
		}
		r.config = nil
		if c, err := datastore.For[api.BGPConfiguration](nil).Decode(e.Entry); !gone && err == nil {
			r.config = c
		}
	}
}

// step looks, plans, and does what is planned.
func (r *Reflection) step(ctx context.Context, report func(string)) {
	if !r.synced {
		return
	}
	entries, _, err := r.Store.List(ctx, datastore.Query{Kind: datastore.KindHeartbeat})
	if err != nil {
		return // the agent reports that the datastore does not answer
	}
	now := time.Now()
	r.beats.look(entries, now)
	if now.Sub(r.changed) < r.Settle {
		return
	}
	cluster := r.cluster(now)
	change, text := cluster.Plan()
	if cluster.Settings.Auto && r.awaited(cluster, now) {
		report("waits for the hosts' heartbeats")
		return
	}
	report(text)
	if change.Nothing() {
		r.bury(ctx, entries)
		return
	}
	if err := r.apply(ctx, change); err != nil && ctx.Err() == nil {
		report(text + ": " + err.Error())
	}
	r.changed = time.Now()
}

// awaited reports that hosts may begin to beat any moment: before that nothing
// is known about who is alive.
func (r *Reflection) awaited(c *Cluster, now time.Time) bool {
	return slices.ContainsFunc(c.Hosts, func(h Host) bool { return r.beats.waiting(h.Name, len(c.Hosts), now) })
}

// cluster is what the plan is made from.
func (r *Reflection) cluster(now time.Time) *Cluster {
	settings, err := r.config.RouteReflection()
	if err != nil {
		r.Log.Debug("settings cannot be used", "err", err) // named by every agent
	}
	c := &Cluster{Settings: settings}
	if r.config != nil {
		mesh := r.config.Spec.NodeToNodeMeshEnabled
		_, ours := r.config.Annotations[api.AnnotationReflectionMesh]
		c.MeshOff = mesh != nil && !*mesh
		c.MeshOurs, c.MeshNote = c.MeshOff && ours, !c.MeshOff && ours
	}
	for _, name := range slices.Sorted(maps.Keys(r.peers)) {
		switch p := r.peers[name]; {
		case !ownPeer(p):
			c.Foreign = name
		case p.Name == PeerName && p.Spec.NodeSelector == ReflectorPeer().Spec.NodeSelector && p.Spec.PeerSelector == ReflectorPeer().Spec.PeerSelector:
			c.Peer = true
		default:
			c.PeerWrong = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.nodes)) {
		if h, ok := r.host(r.nodes[name], settings, now); ok {
			c.Hosts = append(c.Hosts, h)
		}
	}
	return c
}

func ownPeer(p *api.BGPPeer) bool {
	return p.Annotations[api.AnnotationOwner] == api.OwnerReflection
}

func (r *Reflection) host(n *api.Node, settings api.RouteReflection, now time.Time) (Host, bool) {
	b := n.Spec.BGP
	if b == nil || (b.IPv4Address == "" && b.IPv6Address == "") {
		return Host{}, false
	}
	mark, marked := n.Labels[api.LabelRouteReflector]
	ours := mark == api.ReflectorAuto
	h := Host{
		Name: n.Name, Zone: n.Labels[settings.Spread], ClusterID: b.RouteReflectorClusterID,
		Chosen: ours && b.RouteReflectorClusterID != "", Marked: ours && b.RouteReflectorClusterID == "", Barred: marked && !ours,
	}
	if b.ASNumber != nil {
		cluster := api.ASNumber(api.DefaultASNumber)
		if r.config != nil && r.config.Spec.ASNumber != nil {
			cluster = *r.config.Spec.ASNumber
		}
		h.OtherAS = *b.ASNumber != cluster
	}
	h.Beat, h.Alive = r.beats.alive(n.Name, now)
	return h, true
}

// apply does one change.
func (r *Reflection) apply(ctx context.Context, c Change) error {
	var errs []error
	for _, node := range slices.Sorted(maps.Keys(c.Promote)) {
		errs = append(errs, r.promote(ctx, node, c.Promote[node]))
	}
	if c.PutPeer {
		errs = append(errs, r.putPeer(ctx))
	}
	if c.MeshOff || c.MeshOn {
		errs = append(errs, r.mesh(ctx, c.MeshOn))
	}
	if c.DeletePeer {
		errs = append(errs, r.deletePeers(ctx))
	}
	for _, node := range c.Demote {
		errs = append(errs, r.demote(ctx, node))
	}
	return errors.Join(errs...)
}

// errChanged means that a person changed an object since it was looked at: the
// next plan takes that into account.
var errChanged = errors.New("it has been changed meanwhile")

func (r *Reflection) promote(ctx context.Context, node, clusterID string) error {
	_, err := datastore.For[api.Node](r.Store).Modify(ctx, "", node, func(n *api.Node) error {
		if n.Spec.BGP == nil || n.Spec.BGP.RouteReflectorClusterID != "" {
			return errChanged
		}
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[api.LabelRouteReflector] = api.ReflectorAuto
		n.Spec.BGP.RouteReflectorClusterID = clusterID
		return nil
	})
	if err != nil {
		return fmt.Errorf("make node %s a reflector: %w", node, err)
	}
	return nil
}

func (r *Reflection) demote(ctx context.Context, node string) error {
	_, err := datastore.For[api.Node](r.Store).Modify(ctx, "", node, func(n *api.Node) error {
		if n.Labels[api.LabelRouteReflector] != api.ReflectorAuto {
			return errChanged
		}
		delete(n.Labels, api.LabelRouteReflector)
		if n.Spec.BGP != nil {
			n.Spec.BGP.RouteReflectorClusterID = ""
		}
		return nil
	})
	if err != nil && !errors.Is(err, datastore.ErrNotFound) {
		return fmt.Errorf("end the role of node %s: %w", node, err)
	}
	return nil
}

func (r *Reflection) putPeer(ctx context.Context) error {
	peers := datastore.For[api.BGPPeer](r.Store)
	_, err := peers.Modify(ctx, "", PeerName, func(p *api.BGPPeer) error {
		if !ownPeer(p) {
			return errChanged
		}
		p.Spec = ReflectorPeer().Spec
		return nil
	})
	if errors.Is(err, datastore.ErrNotFound) {
		err = peers.Create(ctx, ReflectorPeer())
	}
	if err != nil {
		return fmt.Errorf("write BGPPeer %s: %w", PeerName, err)
	}
	return nil
}

// deletePeers deletes what is marked as ours, and no other version of it than
// was looked at.
func (r *Reflection) deletePeers(ctx context.Context) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(r.peers)) {
		p := r.peers[name]
		if !ownPeer(p) {
			continue
		}
		_, err := datastore.For[api.BGPPeer](r.Store).Delete(ctx, "", name, datastore.Revision(p.ResourceVersion))
		if err != nil && !errors.Is(err, datastore.ErrNotFound) {
			errs = append(errs, fmt.Errorf("delete BGPPeer %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// mesh turns the mesh off, noting what it was, or puts back what it was.
func (r *Reflection) mesh(ctx context.Context, on bool) error {
	_, err := datastore.For[api.BGPConfiguration](r.Store).Modify(ctx, "", "default", func(c *api.BGPConfiguration) error {
		was, ours := c.Annotations[api.AnnotationReflectionMesh]
		enabled := c.Spec.NodeToNodeMeshEnabled
		switch {
		case on && !ours, !on && c.Annotations[api.AnnotationRouteReflection] != api.ReflectionAuto:
			return errChanged
		case on && enabled != nil && *enabled: // a person was faster
			delete(c.Annotations, api.AnnotationReflectionMesh)
		case on:
			delete(c.Annotations, api.AnnotationReflectionMesh)
			c.Spec.NodeToNodeMeshEnabled = nil
			if was == "true" {
				c.Spec.NodeToNodeMeshEnabled = &on
			}
		default:
			c.Annotations[api.AnnotationReflectionMesh] = "unset"
			if enabled != nil {
				c.Annotations[api.AnnotationReflectionMesh] = "true"
			}
			off := false
			c.Spec.NodeToNodeMeshEnabled = &off
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("set nodeToNodeMeshEnabled: %w", err)
	}
	return nil
}

// bury removes the heartbeats of nodes that are no more.
func (r *Reflection) bury(ctx context.Context, entries []datastore.Entry) {
	for _, e := range entries {
		if r.nodes[e.Key.Name] != nil {
			continue
		}
		err := r.Store.Delete(ctx, e.Key, datastore.At(e.Rev))
		if err != nil && ctx.Err() == nil {
			r.Log.Debug("heartbeat of a node that is gone could not be removed", "node", e.Key.Name, "err", err)
		}
	}
}
