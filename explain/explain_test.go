package explain_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/explain"
	"github.com/manekinet/maneki/policy"
)

var update = flag.Bool("update", false, "write the golden file")

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func np(name string) policy.ID {
	return policy.ID{Kind: "NetworkPolicy", Namespace: "default", Name: name}
}

func tcpFrom(do policy.Action, index int, set policy.SetID, port uint16) policy.Rule {
	r := policy.Rule{Index: index, Do: do, Protocol: policy.ProtoTCP, Src: policy.Entity{Set: set, AnyPort: true}, Dst: policy.Entity{Ports: []policy.PortRange{{From: port, To: port}}}}
	r.Text = strings.ToLower(do.String()) + fmt.Sprintf(" tcp from %s to port %d", map[policy.SetID]string{"s:fe": `app == "fe"`, "": "anyone"}[set], port)
	return r
}

// network is three workloads on two hosts: client and fe on h1, web on h2, where
// a policy lets only fe reach port 80.
func network() explain.Network {
	open := &policy.Policy{ID: policy.ID{Kind: "Profile", Name: "kns.default"}}
	all := policy.Rule{Do: policy.Allow, Src: policy.Entity{AnyPort: true}, Dst: policy.Entity{AnyPort: true}, Text: "allow all"}
	open.Ingress, open.Egress = []policy.Rule{all}, []policy.Rule{all}
	web := &policy.Policy{ID: np("web"), Tier: "default", Ingress: []policy.Rule{tcpFrom(policy.Allow, 0, "s:fe", 80)}}
	staged := &policy.Policy{ID: policy.ID{Kind: "StagedNetworkPolicy", Namespace: "default", Name: "closed"}, Tier: "default", Staged: true}
	hostPolicy := &policy.Policy{ID: policy.ID{Kind: "GlobalNetworkPolicy", Name: "host"}, Tier: "default", Ingress: []policy.Rule{tcpFrom(policy.Deny, 0, "", 9000)}}
	sets := map[policy.SetID]*policy.Set{"s:fe": {Kind: policy.Addresses, Selector: `app == "fe"`, Members: desired.NewMembers(desired.Member{Net: prefix("10.0.1.2/32")})}}
	profiles := []policy.ID{open.ID}
	workload := func(name, ip string, ingress ...policy.Tier) *policy.Endpoint {
		return &policy.Endpoint{
			Key: desired.EndpointKey{Namespace: "default", Name: name}, Interface: "cali" + name, Addrs: desired.NewAddrSet(addr(ip)),
			Normal: policy.Hook{Ingress: ingress}, Profiles: profiles,
		}
	}
	state := func(eps ...*policy.Endpoint) *policy.State {
		s := &policy.State{Endpoints: map[desired.EndpointKey]*policy.Endpoint{}, Policies: map[policy.ID]*policy.Policy{}, Sets: sets}
		for _, p := range []*policy.Policy{open, web, staged, hostPolicy} {
			s.Policies[p.ID] = p
		}
		for _, ep := range eps {
			s.Endpoints[ep.Key] = ep
		}
		return s
	}
	hep := &policy.Endpoint{
		Host: true, Key: desired.EndpointKey{Name: "h2-eth0"}, Interface: "eth0", Addrs: desired.NewAddrSet(addr("172.18.0.2")),
		Normal: policy.Hook{Ingress: []policy.Tier{{Name: "default", Policies: []policy.ID{hostPolicy.ID}}}}, Profiles: profiles,
	}
	tier := policy.Tier{Name: "default", Policies: []policy.ID{staged.ID, np("web")}, EndDeny: true, EndDenyStaged: true}
	return explain.Network{
		Hosts: map[string]*policy.State{
			"h1": state(workload("client", "10.0.1.1"), workload("fe", "10.0.1.2")),
			"h2": state(workload("web", "10.0.2.1", tier), hep),
		},
		NATOutgoing: []netip.Prefix{prefix("10.0.0.0/16")}, Pools: []netip.Prefix{prefix("10.0.0.0/16")},
		Addresses: map[string][]netip.Addr{"h1": {addr("172.18.0.1")}, "h2": {addr("172.18.0.2")}},
	}
}

func party(n explain.Network, name string) explain.Party {
	if a, err := netip.ParseAddr(name); err == nil {
		return explain.Party{Kind: explain.Outside, Name: name, Addr: a}
	}
	if list, ok := n.Addresses[name]; ok {
		return explain.Party{Kind: explain.Host, Name: name, Node: name, Addr: list[0]}
	}
	for node, s := range n.Hosts {
		for key, ep := range s.Endpoints {
			if key.Name == name {
				return explain.Party{Kind: explain.Workload, Name: key.String(), Node: node, Key: key, Addr: ep.Addrs.Addrs()[0]}
			}
		}
	}
	panic(name)
}

func ask(t *testing.T, n explain.Network, from, to string, port uint16) explain.Answer {
	t.Helper()
	a, b := party(n, from), party(n, to)
	answer, err := explain.Explain(n, a, b, policy.Packet{Src: a.Addr, Dst: b.Addr, Protocol: policy.ProtoTCP, SrcPort: 40000, DstPort: port})
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestGolden(t *testing.T) {
	n := network()
	var b strings.Builder
	for _, q := range []struct {
		from, to string
		port     uint16
	}{
		{"client", "web", 80},
		{"fe", "web", 80},
		{"fe", "web", 81},
		{"client", "fe", 80},
		{"client", "h1", 22},
		{"client", "h2", 9000},
		{"client", "203.0.113.9", 443},
		{"h1", "h2", 9000},
		{"h2", "web", 80},
		{"203.0.113.9", "web", 80},
	} {
		fmt.Fprintf(&b, "$ explain %s %s tcp/%d\n%s\n", q.from, q.to, q.port, ask(t, n, q.from, q.to, q.port).Text(n))
	}
	const file = "testdata/explain.txt"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("run with -update if this is wanted:\n%s", diff)
	}
}

// TestEveryAnswerCanBeTurned: between workloads there is always a change that
// turns the answer, and what is said about it names a rule or an addition.
func TestEveryAnswerCanBeTurned(t *testing.T) {
	n := network()
	rapid.Check(t, func(rt *rapid.T) {
		from := rapid.SampledFrom([]string{"client", "fe"}).Draw(rt, "from")
		port := rapid.SampledFrom([]uint16{80, 81, 22}).Draw(rt, "port")
		a := ask(t, n, from, "web", port)
		if a.Change == nil || a.Change.Text == "" {
			rt.Fatalf("%s to web, port %d: no change is known:\n%s", from, port, a.Text(n))
		}
		if a.Decision() == nil {
			rt.Fatalf("no stage decided:\n%s", a.Text(n))
		}
	})
}

func TestUnknownHost(t *testing.T) {
	n := network()
	from, to := party(n, "client"), party(n, "web")
	delete(n.Hosts, "h2")
	if _, err := explain.Explain(n, from, to, policy.Packet{Src: from.Addr, Dst: to.Addr, Protocol: 6}); err == nil || !strings.Contains(err.Error(), "h2") {
		t.Errorf("error %v", err)
	}
}

func TestGraph(t *testing.T) {
	g := explain.NewGraph(network().Hosts, desired.EndpointKey.String)
	for what, got := range map[string]string{"dot": g.DOT(), "svg": g.SVG()} {
		for _, want := range []string{"allow tcp 80", "NetworkPolicy(default/web)", "default/client", "deny tcp 9000"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s has no %q:\n%s", what, want, got)
			}
		}
	}
	if dot := g.DOT(); !strings.Contains(dot, `"app == \"fe\""`) || strings.Count(dot, "{") != strings.Count(dot, "}") {
		t.Errorf("DOT is not well formed:\n%s", dot)
	}
}

func TestShow(t *testing.T) {
	s := network().Hosts["h2"]
	web := s.Endpoints[desired.EndpointKey{Namespace: "default", Name: "web"}]
	got := explain.Show(s, web, "default/web", map[explain.HitKey]explain.Hits{
		{Direction: policy.Ingress, Tier: "default", Policy: np("web").String(), Rule: 0}: {Packets: 3, Bytes: 180},
		{Direction: policy.Ingress, Tier: "default", Rule: -1}:                            {Packets: 1, Bytes: 60},
	})
	want := `workload default/web, interface caliweb, 10.0.2.1

ingress
  tier default
    StagedNetworkPolicy(default/closed) (staged: decides nothing)
    NetworkPolicy(default/web)
      1. allow tcp from app == "fe" to port 80  [3 packets, 180 bytes]
    end: what no policy of the tier matched is denied  [1 packets, 60 bytes]
  profiles, where no tier decided
    Profile(kns.default)
      1. allow all
    end: what no profile matched is denied

egress
  profiles, where no tier decided
    Profile(kns.default)
      1. allow all
    end: what no profile matched is denied
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
