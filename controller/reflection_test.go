package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
)

// world is a datastore with hosts whose agents beat as the objects want it.
type world struct {
	t     *testing.T
	store datastore.Store

	mu    sync.Mutex
	dead  map[string]bool
	beats uint64
	said  []string
}

func newWorld(t *testing.T, hosts int) *world {
	w := &world{t: t, store: memory.New(), dead: map[string]bool{}}
	for i := range hosts {
		n := &api.Node{}
		n.Name = fmt.Sprintf("h%02d", i)
		n.Labels = map[string]string{"topology.kubernetes.io/zone": string(rune('a' + i%2)), "own": "label"}
		n.Spec.BGP = &api.NodeBGPSpec{IPv4Address: fmt.Sprintf("10.0.0.%d/24", i+1)}
		n.Default()
		w.must(datastore.For[api.Node](w.store).Create(t.Context(), n))
	}
	c := &api.BGPConfiguration{}
	c.Name = "default"
	c.Default()
	w.must(datastore.For[api.BGPConfiguration](w.store).Create(t.Context(), c))
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) annotate(key, value string) {
	w.t.Helper()
	_, err := datastore.For[api.BGPConfiguration](w.store).Modify(w.t.Context(), "", "default", func(c *api.BGPConfiguration) error {
		if c.Annotations == nil {
			c.Annotations = map[string]string{}
		}
		c.Annotations[key] = value
		if value == "" {
			delete(c.Annotations, key)
		}
		return nil
	})
	w.must(err)
}

// beat writes the heartbeats of all living hosts: their sessions are as wanted.
func (w *world) beat(ctx context.Context) {
	nodes, _, _, err := datastore.For[api.Node](w.store).List(ctx, "")
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.beats++
	for _, n := range nodes {
		if w.dead[n.Name] {
			continue
		}
		b := Beat{Count: w.beats, Every: 0.02, Sessions: len(nodes) - 1}
		for _, other := range nodes {
			if w.dead[other.Name] {
				b.Missing = append(b.Missing, other.Name)
			} else if other.Name != n.Name {
				b.Established++
			}
		}
		if n.Spec.BGP.RouteReflectorClusterID != "" {
			b.Clients = b.Established
		}
		value, _ := json.Marshal(b)
		_, _ = w.store.Put(ctx, heartbeatKey(n.Name), value, datastore.Always())
	}
}

// run starts the loop and the hosts.
func (w *world) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for sleep(ctx, 5*time.Millisecond) {
			w.beat(ctx)
		}
	})
	r := &Reflection{Store: w.store, Log: slog.New(slog.DiscardHandler), Look: 10 * time.Millisecond, Settle: 20 * time.Millisecond}
	wg.Go(func() {
		_ = r.Run(ctx, func(text string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.said) == 0 || w.said[len(w.said)-1] != text {
				w.said = append(w.said, text)
			}
		})
	})
	w.t.Cleanup(func() { cancel(); wg.Wait() })
}

func (w *world) wait(text string) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		w.mu.Lock()
		said := slices.Clone(w.said)
		w.mu.Unlock()
		if len(said) > 0 && said[len(said)-1] == text {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("not within 20 s: %q; said %q", text, said)
		}
	}
}

// objects are all v3 objects as stored, without what every write changes.
func (w *world) objects() map[string]string {
	out := map[string]string{}
	for _, kind := range []string{"Node", "BGPPeer", "BGPConfiguration"} {
		entries, _, err := w.store.List(w.t.Context(), datastore.Query{Kind: kind})
		w.must(err)
		for _, e := range entries {
			out[e.Key.String()] = strings.ReplaceAll(string(e.Value), `"annotations":{},`, "")
		}
	}
	return out
}

// What is written is ordinary objects, and going back leaves the datastore as it
// was.
func TestReflectionLeavesNothingBehind(t *testing.T) {
	w := newWorld(t, 12)
	before := w.objects()
	w.annotate(api.AnnotationReflectionThreshold, "8")
	w.annotate(api.AnnotationRouteReflection, api.ReflectionAuto)
	w.run()
	w.wait("reflectors h00, h01 for 12 hosts")
	n, err := datastore.For[api.Node](w.store).Get(t.Context(), "", "h01")
	w.must(err)
	if n.Spec.BGP.RouteReflectorClusterID != "244.0.0.2" || n.Labels[api.LabelRouteReflector] != "auto" || n.Labels["own"] != "label" {
		t.Errorf("reflector %+v %v", n.Spec.BGP, n.Labels)
	}
	p, err := datastore.For[api.BGPPeer](w.store).Get(t.Context(), "", PeerName)
	w.must(err)
	w.must(p.Validate())
	c, err := datastore.For[api.BGPConfiguration](w.store).Get(t.Context(), "", "default")
	w.must(err)
	if c.Spec.NodeToNodeMeshEnabled == nil || *c.Spec.NodeToNodeMeshEnabled || c.Annotations[api.AnnotationReflectionMesh] != "unset" {
		t.Errorf("configuration %+v %v", c.Spec, c.Annotations)
	}

	w.mu.Lock()
	w.dead["h00"] = true
	w.mu.Unlock()
	w.wait("reflectors h01, h02 for 12 hosts")

	w.annotate(api.AnnotationRouteReflection, "")
	w.wait("mesh: Manual")
	w.annotate(api.AnnotationReflectionThreshold, "")
	if diff := cmp.Diff(before, w.objects()); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
}

// A person's peers, before and after, are not touched.
func TestReflectionRespectsPeers(t *testing.T) {
	w := newWorld(t, 12)
	tor := &api.BGPPeer{Spec: api.BGPPeerSpec{PeerIP: "10.0.0.254", ASNumber: 64999}}
	tor.Name = "tor"
	tor.Default()
	w.must(datastore.For[api.BGPPeer](w.store).Create(t.Context(), tor))
	w.annotate(api.AnnotationReflectionThreshold, "8")
	w.annotate(api.AnnotationRouteReflection, api.ReflectionAuto)
	before := w.objects()
	w.run()
	w.wait("does nothing: BGPPeer tor exists")
	if diff := cmp.Diff(before, w.objects()); diff != "" {
		t.Errorf("changed:\n%s", diff)
	}
	_, err := datastore.For[api.BGPPeer](w.store).Delete(t.Context(), "", "tor", "")
	w.must(err)
	w.wait("reflectors h00, h01 for 12 hosts")
	tor.ResourceVersion, tor.UID, tor.CreationTimestamp = "", "", nil
	w.must(datastore.For[api.BGPPeer](w.store).Create(t.Context(), tor))
	w.annotate(api.AnnotationRouteReflection, api.ReflectionManual)
	w.wait("mesh: Manual")
	if _, err := datastore.For[api.BGPPeer](w.store).Get(t.Context(), "", "tor"); err != nil {
		t.Error(err)
	}
}
