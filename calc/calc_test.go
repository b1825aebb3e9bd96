package calc_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/autodetect"
	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/desired"
)

var update = flag.Bool("update", false, "write what is computed into the golden files")

// scenario is the -- input -- of a golden file.
type scenario struct {
	Node       string                       `json:"node"`
	Objects    []json.RawMessage            `json:"objects"`    // v3 objects
	Affinity   map[string]string            `json:"affinity"`   // block -> state, of this node
	Affinities map[string]map[string]string `json:"affinities"` // of other nodes
	MTU        int                          `json:"mtu"`
	Blocks     []block                      `json:"blocks"`
	Links      []link                       `json:"links"`
	Learnt     []learnt                     `json:"learnt"`
	Underlay   []underlay                   `json:"underlay"` // routes of others
	Raw        []raw                        `json:"raw"`      // as somebody else may have stored it
	Options    bool                         `json:"options"`
}

type underlay struct {
	Dst    string `json:"dst"`
	Via    string `json:"via"` // empty: the destinations are neighbours
	Dev    string `json:"dev"`
	Metric uint32 `json:"metric"`
}

type raw struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Value     string `json:"value"`
}

type block struct {
	CIDR  string            `json:"cidr"`
	Owner string            `json:"owner"`
	Held  map[string]holder `json:"held"` // address -> holder
}

type holder struct {
	Node   string `json:"node"`
	Handle string `json:"handle"`
}

type link struct {
	Name  string   `json:"name"`
	Down  bool     `json:"down"`
	Addrs []string `json:"addrs"`
}

type learnt struct {
	Prefix  string `json:"prefix"`
	NextHop string `json:"nextHop"`
	Peer    string `json:"peer"`
	// NextHops are those of several paths that are equally good.
	NextHops []string `json:"nextHops"`
}

func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files (%v)", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var s scenario
			if err := yaml.UnmarshalStrict(ar.Files[0].Data, &s); err != nil {
				t.Fatal(err)
			}
			got := s.render(calc.New(calc.Options{Node: s.Node, InterfacePrefix: "cali"}).Apply(s.batch(t)))
			if *update {
				ar.Files = []txtar.File{ar.Files[0], {Name: "state", Data: []byte(got)}}
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(ar.Files[1].Data), got); diff != "" {
				t.Errorf("state (-want +got):\n%s", diff)
			}
			orders(t, s, got)
		})
	}
}

// orders checks that the state depends on what is known and not on the order,
// the batching or the repetition in which it became known.
func orders(t *testing.T, s scenario, want string) {
	whole := s.batch(t)
	rapid.Check(t, func(t *rapid.T) {
		events := append(slices.Clone(whole.Events), whole.Events...)
		rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1)).Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
		core := calc.New(calc.Options{Node: s.Node, InterfacePrefix: "cali"})
		if rapid.Bool().Draw(t, "links first") {
			core.Apply(calc.Batch{Links: whole.Links})
		}
		for len(events) > 0 {
			n := rapid.IntRange(1, len(events)).Draw(t, "batch")
			core.Apply(calc.Batch{Events: events[:n]})
			events = events[n:]
		}
		got := s.render(core.Apply(calc.Batch{Links: whole.Links, MTU: whole.MTU, Learnt: whole.Learnt, Underlay: whole.Underlay}))
		if got != want {
			t.Fatalf("another order gives\n%s\nwant\n%s", got, want)
		}
	})
}

func (s scenario) batch(t *testing.T) calc.Batch {
	b := calc.Batch{MTU: s.MTU, Links: []autodetect.Interface{}, Learnt: map[netip.Prefix]bgp.Path{}}
	for i, raw := range s.Objects {
		o, err := api.DecodeStrict(raw)
		if err != nil {
			t.Fatalf("object %d: %v", i, err)
		}
		value, err := datastore.EncodeObject(o)
		if err != nil {
			t.Fatal(err)
		}
		b.Events = append(b.Events, put(datastore.ObjectKey(o), value))
	}
	for _, r := range s.Raw {
		b.Events = append(b.Events, put(datastore.Key{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}, []byte(r.Value)))
	}
	affinity := func(node, cidr, state string) {
		key := datastore.Key{Kind: datastore.KindBlockAffinity, Namespace: "host:" + node, Name: cidr}
		b.Events = append(b.Events, put(key, []byte(fmt.Sprintf(`{"state":%q,"deleted":false}`, state))))
	}
	for cidr, state := range s.Affinity {
		affinity(s.Node, cidr, state)
	}
	for node, states := range s.Affinities {
		for cidr, state := range states {
			affinity(node, cidr, state)
		}
	}
	for _, blk := range s.Blocks {
		b.Events = append(b.Events, blk.event(t))
	}
	for _, l := range s.Links {
		in := autodetect.Interface{Name: l.Name, Up: !l.Down}
		for _, a := range l.Addrs {
			in.Addrs = append(in.Addrs, netip.MustParsePrefix(a))
		}
		b.Links = append(b.Links, in)
	}
	for _, l := range s.Learnt {
		p := netip.MustParsePrefix(l.Prefix)
		var hops []netip.Addr
		for _, h := range l.NextHops {
			hops = append(hops, netip.MustParseAddr(h))
		}
		b.Learnt[p] = bgp.Path{Prefix: p, NextHop: netip.MustParseAddr(l.NextHop), Peer: netip.MustParseAddr(l.Peer), NextHops: desired.NewAddrSet(hops...)}
	}
	for _, u := range s.Underlay {
		hop := desired.NextHop{Dev: u.Dev}
		if u.Via != "" {
			hop.Gateway = netip.MustParseAddr(u.Via)
		}
		b.Underlay = append(b.Underlay, desired.Underlay{Dst: netip.MustParsePrefix(u.Dst), Priority: u.Metric, NextHops: desired.NewNextHops(hop)})
	}
	b.Underlay = desired.SortUnderlay(b.Underlay)
	return b
}

func (b block) event(t *testing.T) datastore.Event {
	cidr := netip.MustParsePrefix(b.CIDR)
	v := api.IPAMBlock{CIDR: b.CIDR, Allocations: make([]*int, 1<<(cidr.Addr().BitLen()-cidr.Bits()))}
	if b.Owner != "" {
		v.Affinity = &b.Owner
	}
	a := cidr.Addr()
	for i := range v.Allocations {
		if h, ok := b.Held[a.String()]; ok {
			index := len(v.Attributes)
			v.Allocations[i] = &index
			v.Attributes = append(v.Attributes, api.IPAMAttribute{HandleID: &h.Handle, Secondary: map[string]string{"node": h.Node}})
		}
		a = a.Next()
	}
	value, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return put(datastore.Key{Kind: datastore.KindIPAMBlock, Name: b.CIDR}, value)
}

func put(k datastore.Key, value []byte) datastore.Event {
	return datastore.Event{Type: datastore.EventPut, Entry: datastore.Entry{Key: k, Value: value, Rev: "7"}}
}

// render prints a state the way the tools of the field would.
func (in scenario) render(s calc.State) string {
	var b strings.Builder
	section := func(name string, lines []string) {
		if len(lines) > 0 {
			sort.Strings(lines)
			fmt.Fprintf(&b, "%s\n  %s\n", name, strings.Join(lines, "\n  "))
		}
	}
	section("routes", strings.Split(strings.TrimSpace(s.Routes.String()), "\n"))
	section("tunnels", textLines(s.Tunnels.String()))
	section("neighbours", textLines(s.Neighbours.String()))
	section("fdb", textLines(s.FDB.String()))
	// Without tunnels and NAT it is the same everywhere.
	if _, nat := s.NFT.Objects[desired.NFTKey{Kind: desired.NFTChain, Name: "nat_postrouting"}]; nat || len(s.Tunnels) > 0 {
		fmt.Fprint(&b, withoutPolicy(s.NFT.String()))
	}
	var lines []string
	if s.MTU != 0 {
		section("mtu of workloads", []string{fmt.Sprint(s.MTU)})
	}
	for k, e := range s.Endpoints {
		lines = append(lines, fmt.Sprintf("%s %s %s", k, e.Interface, e.Addrs))
	}
	section("endpoints", lines)
	if s.BGP.ASN != 0 {
		section("speaker", []string{fmt.Sprintf("as %d id %s listen %v%s", s.BGP.ASN, s.BGP.RouterID, s.BGP.Listen, reflector(s.BGP))})
	}
	lines = nil
	for _, p := range s.BGP.Peers {
		mode := "dials"
		if p.Passive {
			mode = "waits"
		}
		mode += options(p)
		if secret := s.Secrets[p.Addr]; secret != (calc.Secret{}) {
			mode += " password " + secret.Name + "/" + secret.Key
		}
		lines = append(lines, fmt.Sprintf("%s port %d as %d (%s) from %s %s [%s]", p.Addr, p.Port, p.ASN, p.Type, p.Local, mode, p.Name))
	}
	section("peers", lines)
	lines = nil
	for p, a := range s.BGP.Announce {
		if a.LocalPref != 1<<31-1-1024 {
			lines = append(lines, fmt.Sprintf("%s has LOCAL_PREF %d", p, a.LocalPref))
		}
		lines = append(lines, strings.TrimSpace(p.String()+" "+a.Communities))
	}
	section("announces", lines)
	lines = nil
	for _, f := range s.BGP.Filters {
		lines = append(lines, fmt.Sprintf("%+v", f))
	}
	section("filters", lines)
	policies := len(s.Policy.Policies) > 0
	for _, e := range s.Policy.Endpoints {
		policies = policies || e.Host
	}
	if policies {
		fmt.Fprintf(&b, "policy\n  %s\n", strings.ReplaceAll(strings.TrimSpace(s.Policy.String()), "\n", "\n  "))
	}
	if s.AutoHost.Stale {
		section("automatic host endpoint", []string{fmt.Sprintf("%s wanted: %v", s.AutoHost.Name, s.AutoHost.Want != nil)})
	}
	if in.Options {
		section("policy options", []string{fmt.Sprintf("%+v", s.Policy.Options)})
	}
	section("problems", s.Problems)
	return b.String()
}

// withoutPolicy leaves out what package policy/render makes, which has goldens of its own.
func withoutPolicy(table string) string {
	own := regexp.MustCompile(`^\t((set|map|chain) published|set (all_|masq_|network_)|chain (raw_|nat_|filter_))`)
	var b strings.Builder
	keep := true
	for line := range strings.Lines(table) {
		if strings.HasPrefix(line, "\tset ") || strings.HasPrefix(line, "\tmap ") || strings.HasPrefix(line, "\tchain ") {
			keep = own.MatchString(line)
		}
		if keep || line == "}\n" {
			b.WriteString(line)
		}
	}
	return b.String()
}

func textLines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSpace(text), "\n")
}

// options are a session's settings that are not the default.
func options(p bgp.Peer) string {
	out := ""
	for _, o := range []struct {
		set  bool
		text string
	}{
		{p.Client, "client"},
		{p.LocalASN != 0, fmt.Sprintf("local as %d", p.LocalASN)},
		{p.AllowLocalAS != 0, fmt.Sprintf("allows own as %d times", p.AllowLocalAS)},
		{p.TTLSecurity != 0, fmt.Sprintf("within %d hops", p.TTLSecurity)},
		{p.Keepalive != 0, fmt.Sprintf("keepalive %s hold %s", p.Keepalive, p.HoldTime)},
		{p.RestartTime != 0, fmt.Sprintf("restart %s", p.RestartTime)},
		{p.Filters != "", "filters " + p.Filters},
		{p.NextHop == bgp.NextHopSelf, "next hop self"},
		{p.NextHop == bgp.NextHopKeep, "next hop keep"},
		{p.BFD.Interval != 0, fmt.Sprintf("bfd %d x %s", p.BFD.Multiplier, p.BFD.Interval)},
		{p.BFD.Multihop, "multihop"},
		{p.LongLived != 0, fmt.Sprintf("long-lived %s", p.LongLived)},
		{p.MaxPrefixes != 0, fmt.Sprintf("at most %d prefixes", p.MaxPrefixes)},
	} {
		if o.set {
			out += " " + o.text
		}
	}
	return out
}

func reflector(c bgp.Config) string {
	if !c.ClusterID.IsValid() {
		return ""
	}
	return " reflects for cluster " + c.ClusterID.String()
}

func endpointEvent(t *testing.T, wep *api.WorkloadEndpoint, rev string) datastore.Event {
	value, err := datastore.EncodeObject(wep)
	if err != nil {
		t.Fatal(err)
	}
	e := put(datastore.ObjectKey(wep), value)
	e.Entry.Rev = datastore.Revision(rev)
	return e
}

func newEndpoint(rev string) *api.WorkloadEndpoint {
	w := &api.WorkloadEndpoint{}
	w.Kind, w.APIVersion, w.Name, w.Namespace = "WorkloadEndpoint", api.GroupVersion, "n1-cni-c1-eth0", "default"
	w.ResourceVersion = rev
	w.Spec = api.WorkloadEndpointSpec{
		Orchestrator: "cni", Node: "n1", ContainerID: "c1", Endpoint: "eth0", InterfaceName: "cali123",
		IPNetworks: []string{"10.0.0.1/32"},
	}
	return w
}

// TestOldNewsDoesNotUndoALocalChange: the watch brings what the agent itself
// wrote a moment ago, and what was there before it.
func TestOldNewsDoesNotUndoALocalChange(t *testing.T) {
	key := desired.EndpointKey{Namespace: "default", Name: "n1-cni-c1-eth0"}
	core := calc.New(calc.Options{Node: "n1", InterfacePrefix: "cali"})
	present := func(s calc.State) bool { return s.Endpoints[key].Addrs.String() == "10.0.0.1" }

	w := newEndpoint("20")
	if !present(core.Apply(calc.Batch{Local: []calc.LocalChange{{Key: key, Endpoint: w}}})) {
		t.Fatal("a local change has no effect")
	}
	del := datastore.Event{Type: datastore.EventDelete, Entry: datastore.Entry{Key: datastore.ObjectKey(w), Rev: "15"}}
	if !present(core.Apply(calc.Batch{Events: []datastore.Event{del}})) {
		t.Fatal("the deletion of an earlier endpoint of that name took the new one away")
	}
	if !present(core.Apply(calc.Batch{Events: []datastore.Event{endpointEvent(t, w, "20")}})) {
		t.Fatal("the watch's own news of the endpoint took it away")
	}
	if present(core.Apply(calc.Batch{Local: []calc.LocalChange{{Key: key}}})) {
		t.Fatal("a local removal has no effect")
	}
	if present(core.Apply(calc.Batch{Events: []datastore.Event{endpointEvent(t, w, "20")}})) {
		t.Fatal("old news brought a removed endpoint back")
	}
	del.Entry.Rev = "25"
	core.Apply(calc.Batch{Events: []datastore.Event{del}})
	if s := core.Apply(calc.Batch{Events: []datastore.Event{endpointEvent(t, w, "30")}}); present(s) || len(s.Problems) != 1 {
		t.Fatalf("somebody else's endpoint with an address that IPAM has not assigned is served; problems %q", s.Problems)
	}
}

// TestRefusedRoutesAreNamedWithinBounds: a peer cannot fill the status with its routes.
func TestRefusedRoutesAreNamedWithinBounds(t *testing.T) {
	core := calc.New(calc.Options{Node: "n1", InterfacePrefix: "cali"})
	learnt := map[netip.Prefix]bgp.Path{}
	for i := range 50_000 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), 32)
		learnt[p] = bgp.Path{Prefix: p, NextHop: netip.MustParseAddr("10.9.9.9"), Peer: netip.MustParseAddr("10.0.0.2")}
	}
	s := core.Apply(calc.Batch{Links: []autodetect.Interface{}, Learnt: learnt})
	if n := len(s.Problems); n != 21 || s.Problems[20] != "BGP routes from 10.0.0.2: 49980 more are not used, for such reasons" {
		t.Fatalf("%d problems, the last %q", n, s.Problems[n-1])
	}
}
