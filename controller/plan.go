package controller

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
)

// PeerName is the BGPPeer that Auto makes.
const PeerName = "maneki-route-reflection"

// ReflectorPeer is that BGPPeer: every node peers with every chosen reflector.
func ReflectorPeer() *api.BGPPeer {
	p := &api.BGPPeer{Spec: api.BGPPeerSpec{
		NodeSelector: "all()",
		PeerSelector: api.LabelRouteReflector + " == '" + api.ReflectorAuto + "'",
	}}
	p.Name = PeerName
	p.Annotations = map[string]string{api.AnnotationOwner: api.OwnerReflection}
	p.Default()
	return p
}

// Cluster is what a plan of route reflection is made from.
type Cluster struct {
	Settings  api.RouteReflection
	MeshOff   bool   // nodeToNodeMeshEnabled is false
	MeshOurs  bool   // and Auto turned it off
	MeshNote  bool   // Auto's note that it did is left although the mesh is on
	Hosts     []Host // with a BGP address, by name
	Peer      bool   // our BGPPeer is there as it should be
	PeerWrong bool   // it is there and is not as it should be
	Foreign   string // a BGPPeer that a person made, empty for none
}

// Host is one node.
type Host struct {
	Name      string
	Zone      string // value of the label that the reflectors are spread over
	ClusterID string
	Chosen    bool // our mark: label and cluster ID
	Marked    bool // our label without a cluster ID, or the other way round: half a mark
	Barred    bool // a person's label keeps it from being chosen
	OtherAS   bool // not in the cluster's AS
	Alive     bool
	Beat      Beat
}

// Change is one step. Steps are small and the next one is planned from what the
// cluster is then, so that a plan can stop anywhere and be taken up by another
// controller.
type Change struct {
	Promote    map[string]string // node -> cluster ID
	PutPeer    bool
	MeshOff    bool
	MeshOn     bool
	DeletePeer bool
	Demote     []string
}

// Nothing reports that there is nothing to do.
func (c Change) Nothing() bool {
	return len(c.Promote) == 0 && !c.PutPeer && !c.MeshOff && !c.MeshOn && !c.DeletePeer && len(c.Demote) == 0
}

// Plan says what to do next to come from the mesh to reflectors, back, or from a
// dead reflector to another one, and in words where the cluster stands. Sessions
// that are to carry the routes are up, by the hosts' own reports, before those
// that carried them so far go.
func (c *Cluster) Plan() (Change, string) {
	switch {
	case !c.Settings.Auto:
		return c.toMesh("Manual")
	case !c.active():
		if why := c.refusal(); why != "" {
			return Change{}, "does nothing: " + why
		}
		if len(c.Hosts) <= c.Settings.Threshold {
			return Change{}, fmt.Sprintf("mesh: %d hosts, reflectors beyond %d", len(c.Hosts), c.Settings.Threshold)
		}
	case len(c.Hosts) < c.Settings.Least():
		return c.toMesh(fmt.Sprintf("%d hosts, fewer than %d", len(c.Hosts), c.Settings.Least()))
	}
	return c.toReflectors()
}

// active reports that Auto has begun to change the cluster.
func (c *Cluster) active() bool {
	return c.MeshOurs || c.Peer || c.PeerWrong || slices.ContainsFunc(c.Hosts, func(h Host) bool { return h.Chosen || h.Marked })
}

// refusal says why Auto must not begin: a person has arranged the sessions.
func (c *Cluster) refusal() string {
	switch {
	case c.Foreign != "":
		return "BGPPeer " + c.Foreign + " exists"
	case c.MeshOff:
		return "nodeToNodeMeshEnabled is false already"
	}
	for _, h := range c.Hosts {
		switch {
		case h.ClusterID != "":
			return "node " + h.Name + " has a routeReflectorClusterID already"
		case h.OtherAS:
			return "node " + h.Name + " has an AS number of its own"
		}
	}
	return ""
}

// toReflectors leads to as many living reflectors as wanted, and no mesh.
func (c *Cluster) toReflectors() (Change, string) {
	want := c.Settings.Reflectors(len(c.Hosts))
	living, dead := c.chosen()
	if half := c.names(func(h Host) bool { return h.Marked }); len(half) > 0 {
		return Change{Demote: half}, "clears half marks of " + strings.Join(half, ", ")
	}
	if fresh := c.choose(living, want-len(living)); len(fresh) > 0 {
		return Change{Promote: c.clusterIDs(fresh)}, "chooses " + strings.Join(fresh, ", ")
	}
	if len(living) == 0 {
		return Change{}, "waits: no host that is alive can be a reflector"
	}
	if !c.Peer {
		return Change{PutPeer: true}, "joins all hosts to " + strings.Join(living, ", ")
	}
	if waiting := c.notReady(living); len(waiting) > 0 {
		return Change{}, "waits for the sessions of " + strings.Join(waiting, ", ")
	}
	switch {
	case !c.MeshOff:
		return Change{MeshOff: true}, "turns the mesh off"
	case len(dead) > 0:
		return Change{Demote: dead}, "replaces " + strings.Join(dead, ", ")
	case len(living) > want:
		extra := c.leastUseful(living)
		return Change{Demote: []string{extra}}, "has one reflector too many: " + extra
	}
	return Change{}, fmt.Sprintf("reflectors %s for %d hosts", strings.Join(living, ", "), len(c.Hosts))
}

// toMesh leads back to the mesh: it comes first, then the sessions to the
// reflectors lose their reason, and their roles go last.
func (c *Cluster) toMesh(why string) (Change, string) {
	marked := c.names(func(h Host) bool { return h.Chosen || h.Marked })
	peer := c.Peer || c.PeerWrong
	switch {
	case c.MeshOurs, c.MeshNote:
		return Change{MeshOn: true}, why + ": turns the mesh on"
	case peer && !c.MeshOff && len(c.meshMissing()) > 0:
		return Change{}, why + ": waits for the mesh of " + strings.Join(abridge(c.meshMissing()), ", ")
	case peer:
		return Change{DeletePeer: true}, why + ": ends the sessions with the reflectors"
	case len(marked) > 0:
		return Change{Demote: marked}, why + ": ends the roles of " + strings.Join(marked, ", ")
	}
	return Change{}, "mesh: " + why
}

func (c *Cluster) names(f func(Host) bool) []string {
	var out []string
	for _, h := range c.Hosts {
		if f(h) {
			out = append(out, h.Name)
		}
	}
	return out
}

// chosen are the reflectors, those that are alive and those that are not.
func (c *Cluster) chosen() (living, dead []string) {
	return c.names(func(h Host) bool { return h.Chosen && h.Alive }), c.names(func(h Host) bool { return h.Chosen && !h.Alive })
}

// choose picks n further reflectors among the living hosts, each time in the zone
// that has the fewest.
func (c *Cluster) choose(living []string, n int) []string {
	inZone := map[string]int{}
	for _, h := range c.Hosts {
		if slices.Contains(living, h.Name) {
			inZone[h.Zone]++
		}
	}
	var out []string
	for range max(n, 0) {
		best := -1
		for i, h := range c.Hosts {
			able := h.Alive && h.ClusterID == "" && !h.Chosen && !h.Barred && !h.OtherAS && !slices.Contains(out, h.Name)
			if able && (best < 0 || inZone[h.Zone] < inZone[c.Hosts[best].Zone]) {
				best = i
			}
		}
		if best < 0 {
			break
		}
		inZone[c.Hosts[best].Zone]++
		out = append(out, c.Hosts[best].Name)
	}
	return out
}

// leastUseful is the reflector to do without: the last by name of the zone that
// has the most.
func (c *Cluster) leastUseful(living []string) string {
	inZone, zone := map[string]int{}, map[string]string{}
	for _, h := range c.Hosts {
		if slices.Contains(living, h.Name) {
			inZone[h.Zone]++
			zone[h.Name] = h.Zone
		}
	}
	worst := living[len(living)-1]
	for _, name := range living {
		if inZone[zone[name]] > inZone[zone[worst]] {
			worst = name
		}
	}
	return worst
}

// clusterIDs gives each new reflector a cluster ID of its own: reflectors of one
// cluster do not pass each other's clients on (RFC 4456 §8), so that two hosts
// which have each lost another reflector would lose one another.
func (c *Cluster) clusterIDs(names []string) map[string]string {
	taken := map[string]bool{}
	for _, h := range c.Hosts {
		taken[h.ClusterID] = true
	}
	out := map[string]string{}
	id := netip.AddrFrom4([4]byte{244, 0, 0, 0})
	for _, name := range names {
		for id = id.Next(); taken[id.String()]; id = id.Next() {
		}
		out[name] = id.String()
	}
	return out
}

// notReady are the reflectors that do not reflect to every living host yet.
func (c *Cluster) notReady(living []string) []string {
	return c.names(func(h Host) bool {
		return slices.Contains(living, h.Name) && !(h.Beat.Clients == h.Beat.Established && c.complete(h))
	})
}

// meshMissing are the living hosts whose mesh is not complete yet.
func (c *Cluster) meshMissing() []string {
	return c.names(func(h Host) bool { return h.Alive && !c.complete(h) })
}

// complete reports that a host wants a session with every other one, and has all
// but those to hosts that are not alive.
func (c *Cluster) complete(h Host) bool {
	if h.Beat.Sessions < len(c.Hosts)-1 || len(h.Beat.Missing) >= MaxMissing {
		return false
	}
	living := c.names(func(o Host) bool { return o.Alive })
	return !slices.ContainsFunc(h.Beat.Missing, func(name string) bool {
		_, found := slices.BinarySearch(living, name)
		return found
	})
}

// abridge keeps a report to one line.
func abridge(names []string) []string {
	if len(names) > 3 {
		return append(slices.Clone(names[:3]), fmt.Sprintf("%d more", len(names)-3))
	}
	return names
}
