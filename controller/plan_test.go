package controller

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/manekinet/maneki/api"
)

// model is a cluster whose hosts follow the datastore late and whose sessions
// come up when both ends want them. It is the specification of what a plan may
// do: at no time do two hosts that are alive lose their last path.
type model struct {
	settings api.RouteReflection
	store    objects
	hosts    map[string]*modelHost
	wanted   map[[2]string]int  // by names in order: for so many ticks
	up       map[[2]string]bool // sessions
	slow     int                // ticks that a session takes to come up
}

// objects are what the datastore says; a value.
type objects struct {
	cluster map[string]string // node -> cluster ID
	nodes   map[string]bool
	peer    bool
	meshOff bool
	note    bool
}

func (o objects) clone() objects {
	o.cluster, o.nodes = maps.Clone(o.cluster), maps.Clone(o.nodes)
	return o
}

type modelHost struct {
	zone    string
	alive   bool
	settled int // ticks since it came to life
	view    objects
}

func newModel(hosts int) *model {
	m := &model{
		settings: api.RouteReflection{Auto: true, Threshold: 8, Count: 2},
		store:    objects{cluster: map[string]string{}, nodes: map[string]bool{}},
		hosts:    map[string]*modelHost{}, up: map[[2]string]bool{}, wanted: map[[2]string]int{}, slow: 1,
	}
	for i := range hosts {
		m.join(fmt.Sprintf("h%02d", i), fmt.Sprintf("z%d", i%3))
	}
	return m
}

func (m *model) join(name, zone string) {
	m.store.nodes[name] = true
	m.hosts[name] = &modelHost{zone: zone, alive: true, view: m.store.clone()}
}

// wants is the rule of calc for one pair, in one host's view.
func (o objects) wants(a, b string) bool {
	if !o.nodes[a] || !o.nodes[b] {
		return false
	}
	byPeer := o.peer && (o.cluster[a] != "" || o.cluster[b] != "")
	inMesh := func(n string) bool { return o.cluster[n] == "" || !o.peer }
	return byPeer || (!o.meshOff && inMesh(a) && inMesh(b))
}

// tick lets some hosts see the datastore as it is and then settles the sessions.
func (m *model) tick(sees func(name string) bool) {
	for _, name := range m.names() {
		if h := m.hosts[name]; h.alive && sees(name) {
			h.view = m.store.clone()
		}
	}
	next, wanted := map[[2]string]bool{}, map[[2]string]int{}
	names := m.names()
	for i, a := range names {
		for _, b := range names[i+1:] {
			ha, hb := m.hosts[a], m.hosts[b]
			if ha.alive && hb.alive && ha.view.wants(a, b) && hb.view.wants(a, b) {
				pair := [2]string{a, b}
				wanted[pair] = m.wanted[pair] + 1
				next[pair] = m.up[pair] || wanted[pair] >= m.slow
			}
		}
	}
	m.up, m.wanted = next, wanted
	for _, h := range m.hosts {
		h.settled++
	}
}

func (m *model) names() []string { return slices.Sorted(maps.Keys(m.hosts)) }

func (m *model) linked(a, b string) bool {
	if a > b {
		a, b = b, a
	}
	return m.up[[2]string{a, b}]
}

// lost returns two living hosts without a path between them: neither a session
// nor a reflector, or two that reflect to each other, in between.
func (m *model) lost() string {
	reflects := func(n string) bool { return m.hosts[n].view.cluster[n] != "" }
	for _, a := range m.names() {
		reach := map[string]bool{a: true}
		for _, b := range m.names() {
			reach[b] = reach[b] || m.linked(a, b)
		}
		for range 2 { // through one reflector, or through two
			for _, r := range m.names() {
				if r != a && reach[r] && reflects(r) {
					for _, b := range m.names() {
						reach[b] = reach[b] || m.linked(r, b)
					}
				}
			}
		}
		for _, b := range m.names() {
			old := func(n string) bool { return m.hosts[n].alive && m.hosts[n].settled > 8+m.slow }
			if old(a) && old(b) && !reach[b] {
				return a + " and " + b
			}
		}
	}
	return ""
}

func (m *model) cluster() *Cluster {
	c := &Cluster{Settings: m.settings, MeshOff: m.store.meshOff, MeshOurs: m.store.meshOff && m.store.note, Peer: m.store.peer}
	for _, name := range m.names() {
		h := m.hosts[name]
		id := m.store.cluster[name]
		host := Host{Name: name, Zone: h.zone, ClusterID: id, Chosen: id != "", Alive: h.alive}
		for _, other := range m.names() {
			if other == name || !h.view.wants(name, other) {
				continue
			}
			host.Beat.Sessions++
			if !m.linked(name, other) {
				host.Beat.Missing = append(host.Beat.Missing, other)
			} else {
				host.Beat.Established++
				if h.view.cluster[name] != "" {
					host.Beat.Clients++
				}
			}
		}
		c.Hosts = append(c.Hosts, host)
	}
	return c
}

func (m *model) apply(c Change) {
	maps.Copy(m.store.cluster, c.Promote)
	m.store.peer = (m.store.peer || c.PutPeer) && !c.DeletePeer
	if c.MeshOff || c.MeshOn {
		m.store.meshOff, m.store.note = c.MeshOff, c.MeshOff
	}
	for _, n := range c.Demote {
		delete(m.store.cluster, n)
	}
}

// run plans and ticks until there is nothing to do.
func (m *model) run(t interface {
	Helper()
	Fatalf(string, ...any)
}, sees func(string) bool, during func(step int),
) string {
	t.Helper()
	for quiet, steps := 0, 0; ; steps++ {
		during(steps)
		change, text := m.cluster().Plan()
		m.apply(change)
		for range 2 {
			m.tick(sees)
			if pair := m.lost(); pair != "" {
				t.Fatalf("%s have lost each other after %q", pair, text)
			}
		}
		if change.Nothing() && !strings.Contains(text, "waits") {
			if quiet++; quiet > 3 {
				return text
			}
		} else {
			quiet = 0
		}
		if steps > 200 {
			t.Fatalf("no end: %s", text)
		}
	}
}

func (m *model) sessions() int {
	n := 0
	for _, up := range m.up {
		if up {
			n++
		}
	}
	return n
}

func (m *model) living() int {
	return len(slices.DeleteFunc(m.names(), func(n string) bool { return !m.hosts[n].alive }))
}

func always(string) bool { return true }

// The life of a cluster: it grows past the threshold, a reflector dies and comes
// back, it shrinks.
func TestPlanOfALife(t *testing.T) {
	m := newModel(8)
	if got := m.run(t, always, func(int) {}); got != "mesh: 8 hosts, reflectors beyond 8" {
		t.Fatalf("at the threshold: %s", got)
	}
	for i := 8; i < 12; i++ {
		m.join(fmt.Sprintf("h%02d", i), fmt.Sprintf("z%d", i%3))
	}
	if got := m.run(t, always, func(int) {}); got != "reflectors h00, h01 for 12 hosts" {
		t.Fatalf("beyond the threshold: %s", got)
	}
	if m.sessions() != 10+10+1 || !m.store.meshOff {
		t.Errorf("%d sessions, want 21", m.sessions())
	}
	if a, b := m.store.cluster["h00"], m.store.cluster["h01"]; a == b {
		t.Errorf("both reflectors are of cluster %s", a)
	}
	m.hosts["h00"].alive = false
	if got := m.run(t, always, func(int) {}); got != "reflectors h01, h02 for 12 hosts" {
		t.Fatalf("after a death: %s", got)
	}
	m.hosts["h00"].alive, m.hosts["h00"].settled = true, 0
	if got := m.run(t, always, func(int) {}); got != "reflectors h01, h02 for 12 hosts" {
		t.Fatalf("after its return: %s", got)
	}
	for i := 5; i < 12; i++ {
		name := fmt.Sprintf("h%02d", i)
		delete(m.hosts, name)
		delete(m.store.nodes, name)
	}
	if got := m.run(t, always, func(int) {}); got != "mesh: 5 hosts, reflectors beyond 8" || len(m.store.cluster) != 0 || m.store.peer || m.store.meshOff || m.sessions() != 10 {
		t.Fatalf("below the threshold: %s, %+v, %d sessions", got, m.store, m.sessions())
	}
}

// Whatever happens to the hosts, and however late each of them follows, no two
// living hosts lose each other, as long as no two reflectors die at once.
func TestPlanLosesNobody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(rapid.IntRange(5, 12).Draw(t, "hosts"))
		m.settings.Count = rapid.IntRange(2, 3).Draw(t, "count")
		late := map[string]int{} // ticks for which a host does not follow
		sees := func(name string) bool {
			if late[name] > 0 {
				late[name]--
				return false
			}
			return true
		}
		for range rapid.IntRange(1, 12).Draw(t, "events") {
			for _, n := range m.names() {
				late[n] = rapid.IntRange(0, 4).Draw(t, "late "+n)
			}
			switch rapid.IntRange(0, 4).Draw(t, "event") {
			case 0:
				m.join(fmt.Sprintf("h%02d", 20+len(m.hosts)), rapid.SampledFrom([]string{"z0", "z1", ""}).Draw(t, "zone"))
			case 1: // one host dies at a time, once the cluster is at rest
				m.hosts[rapid.SampledFrom(m.names()).Draw(t, "dies")].alive = false
			case 2:
				for _, h := range m.hosts {
					if !h.alive {
						h.alive, h.settled = true, 0
					}
				}
			case 3:
				if name := rapid.SampledFrom(m.names()).Draw(t, "leaves"); m.store.cluster[name] == "" && len(m.hosts) > 3 {
					delete(m.hosts, name)
					delete(m.store.nodes, name)
				}
			case 4:
				m.settings.Auto = !m.settings.Auto
			}
			if m.living() < 3 {
				for _, h := range m.hosts {
					if !h.alive {
						h.alive, h.settled = true, 0
					}
				}
			}
			m.slow = rapid.IntRange(1, 8).Draw(t, "slow")
			// In the middle of a change a host may die, and come back again.
			dies, returns := rapid.IntRange(0, 6).Draw(t, "dies at step"), rapid.IntRange(1, 6).Draw(t, "is away for")
			victims := m.names()
			if len(m.store.cluster) > 0 && rapid.Bool().Draw(t, "a reflector") {
				victims = slices.Sorted(maps.Keys(m.store.cluster))
			}
			victim := rapid.SampledFrom(victims).Draw(t, "victim")
			text := m.run(t, sees, func(step int) {
				h := m.hosts[victim]
				switch {
				case step == dies && len(m.names()) == m.living():
					h.alive = false
				case step == dies+returns && !h.alive && dies+returns > 0:
					h.alive, h.settled = true, 0
				}
			})
			switch on := m.settings.Auto && len(m.hosts) > m.settings.Threshold; {
			case on && (!m.store.meshOff || !m.store.peer):
				t.Fatalf("%d hosts and no reflectors: %s", len(m.hosts), text)
			case !m.settings.Auto && (m.store.meshOff || m.store.peer || len(m.store.cluster) > 0):
				t.Fatalf("Manual, and %+v is left: %s", m.store, text)
			}
		}
	})
}

// Reflectors are spread over the zones, and not chosen where they must not be.
func TestChoice(t *testing.T) {
	c := &Cluster{Settings: api.RouteReflection{Auto: true, Threshold: 4, Count: 3}}
	for i, zone := range []string{"a", "a", "a", "b", "c", "c"} {
		c.Hosts = append(c.Hosts, Host{Name: fmt.Sprintf("h%d", i), Zone: zone, Alive: true})
	}
	c.Hosts[0].Barred = true // by a person
	c.Hosts[1].Alive = false
	c.Hosts[3].OtherAS = false
	change, _ := c.Plan()
	if got := slices.Sorted(maps.Keys(change.Promote)); !slices.Equal(got, []string{"h2", "h3", "h4"}) {
		t.Errorf("chosen %v", got)
	}
	ids := slices.Sorted(maps.Values(change.Promote))
	if !slices.Equal(ids, []string{"244.0.0.1", "244.0.0.2", "244.0.0.3"}) {
		t.Errorf("cluster IDs %v", ids)
	}
}

// Where a person has arranged the sessions Auto does nothing and says why.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		change func(*Cluster)
		want   string
	}{
		{func(c *Cluster) { c.Foreign = "tor" }, "does nothing: BGPPeer tor exists"},
		{func(c *Cluster) { c.MeshOff = true }, "does nothing: nodeToNodeMeshEnabled is false already"},
		{func(c *Cluster) { c.Hosts[3].ClusterID = "1.1.1.1" }, "does nothing: node h3 has a routeReflectorClusterID already"},
		{func(c *Cluster) { c.Hosts[4].OtherAS = true }, "does nothing: node h4 has an AS number of its own"},
	} {
		cluster := &Cluster{Settings: api.RouteReflection{Auto: true, Threshold: 4}}
		for i := range 6 {
			cluster.Hosts = append(cluster.Hosts, Host{Name: fmt.Sprintf("h%d", i), Alive: true})
		}
		c.change(cluster)
		if change, text := cluster.Plan(); !change.Nothing() || text != c.want {
			t.Errorf("%q, %+v, want %q", text, change, c.want)
		}
	}
}
