package render_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/policy/render"
)

var update = flag.Bool("update", false, "write the goldens anew")

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func nets(list ...string) []netip.Prefix {
	out := []netip.Prefix{}
	for _, s := range list {
		out = append(out, prefix(s))
	}
	return out
}

func ports(list ...uint16) []policy.PortRange {
	var out []policy.PortRange
	for i := 0; i < len(list); i += 2 {
		out = append(out, policy.PortRange{From: list[i], To: list[i+1]})
	}
	return out
}

// entity is one end that asks for nothing.
func entity() policy.Entity { return policy.Entity{AnyPort: true} }

func rule(do policy.Action, change ...func(*policy.Rule)) policy.Rule {
	r := policy.Rule{Do: do, Src: entity(), Dst: entity()}
	for _, c := range change {
		c(&r)
	}
	return r
}

func proto(n uint8) func(*policy.Rule) { return func(r *policy.Rule) { r.Protocol = n } }
func from(list ...string) func(*policy.Rule) {
	return func(r *policy.Rule) { r.Src.Nets = nets(list...) }
}
func fromSet(id policy.SetID) func(*policy.Rule) { return func(r *policy.Rule) { r.Src.Set = id } }
func to(list ...uint16) func(*policy.Rule) {
	return func(r *policy.Rule) { r.Dst.AnyPort, r.Dst.Ports = false, ports(list...) }
}

func numbered(rules ...policy.Rule) []policy.Rule {
	for i := range rules {
		rules[i].Index = i
	}
	return rules
}

func gnp(name string) policy.ID { return policy.ID{Kind: "GlobalNetworkPolicy", Name: name} }

func members(list ...string) *desired.Members {
	var out []desired.Member
	for _, s := range list {
		out = append(out, desired.Member{Net: prefix(s)})
	}
	return desired.NewMembers(out...)
}

// state is one workload and what applies to it.
func state(policies []*policy.Policy, ingress ...policy.Tier) *policy.State {
	s := &policy.State{
		Endpoints: map[desired.EndpointKey]*policy.Endpoint{}, Policies: map[policy.ID]*policy.Policy{}, Sets: map[policy.SetID]*policy.Set{},
		Options: policy.Options{InterfacePrefix: "cali"},
	}
	key := desired.EndpointKey{Namespace: "default", Name: "web"}
	s.Endpoints[key] = &policy.Endpoint{Key: key, Interface: "cali1", Normal: policy.Hook{Ingress: ingress}, Profiles: []policy.ID{{Kind: "Profile", Name: "kns.default"}}}
	allow := []policy.Rule{rule(policy.Allow)}
	s.Policies[policy.ID{Kind: "Profile", Name: "kns.default"}] = &policy.Policy{ID: policy.ID{Kind: "Profile", Name: "kns.default"}, Ingress: allow, Egress: allow}
	for _, p := range policies {
		s.Policies[p.ID] = p
	}
	return s
}

func goldens() map[string]*policy.State {
	out := map[string]*policy.State{}
	out["profile"] = state(nil)

	web := &policy.Policy{ID: gnp("web"), Tier: "default", Ingress: numbered(
		rule(policy.Allow, proto(6), fromSet("s:fe"), to(80, 80, 8080, 8090)),
		rule(policy.Deny, from("10.9.0.0/16", "fd09::/16", "192.0.2.1/32")),
		rule(policy.Log, proto(17)),
		rule(policy.Allow, proto(1), func(r *policy.Rule) { r.Family, r.ICMP = 4, &policy.ICMP{Type: 8} }),
		rule(policy.Allow, proto(6), func(r *policy.Rule) {
			r.Dst.AnyPort, r.Dst.Named, r.Dst.Ports = false, []policy.SetID{"n:6:http:x"}, ports(443, 443)
		}),
	)}
	tiers := state([]*policy.Policy{
		web,
		{ID: gnp("first"), Tier: "security", Ingress: numbered(rule(policy.Pass, from("10.0.0.0/8")), rule(policy.Deny, proto(132)))},
		{ID: gnp("broken"), Tier: "default", Broken: "ingress[0]: no such thing"},
		{ID: gnp("staged"), Tier: "default", Staged: true, Ingress: numbered(rule(policy.Deny))},
	}, policy.Tier{Name: "security", Policies: []policy.ID{gnp("first")}, EndDeny: true},
		policy.Tier{Name: "default", Policies: []policy.ID{gnp("staged"), gnp("web"), gnp("broken")}, EndDeny: true})
	tiers.Sets["s:fe"] = &policy.Set{ID: "s:fe", Kind: policy.Addresses, Members: members("10.0.0.2/32", "fd00::2/128")}
	tiers.Sets["n:6:http:x"] = &policy.Set{ID: "n:6:http:x", Kind: policy.AddressPorts, Members: desired.NewMembers(desired.Member{Net: prefix("10.0.0.1/32"), Proto: 6, Port: 8000})}
	tiers.Options.Reject = true
	out["tiers"] = tiers

	var rules []policy.Rule
	for _, net := range []string{"10.1.0.1/32", "10.1.0.2/32", "fd00::9/128", "10.1.0.1/32", "10.1.0.3/32"} {
		rules = append(rules, rule(policy.Allow, proto(6), from(net), to(80, 80)))
	}
	rules[4].Do = policy.Deny
	for _, net := range []string{"10.2.0.0/16", "10.2.3.0/24", "10.3.0.0/16", "fd00::/16", "10.0.0.0/8"} {
		rules = append(rules, rule(policy.Deny, from(net)))
	}
	out["folded"] = state([]*policy.Policy{{ID: gnp("list"), Tier: "default", Ingress: numbered(rules...)}},
		policy.Tier{Name: "default", Policies: []policy.ID{gnp("list")}, EndDeny: true})

	var many []*policy.Policy
	order := policy.Tier{Name: "default", EndDeny: true}
	indexed := state(nil)
	for i := range 16 {
		id, set := gnp(fmt.Sprintf("p%02d", i)), policy.SetID(fmt.Sprintf("s:%d", i))
		r := rule(policy.Allow, proto(6), fromSet(set), to(80, 80))
		switch {
		case i == 3:
			r = rule(policy.Deny, from("10.1.0.0/16"))
		case i == 5:
			r = rule(policy.Allow, proto(1))
		default:
			indexed.Sets[set] = &policy.Set{ID: set, Kind: policy.Addresses, Members: members(fmt.Sprintf("10.1.0.%d/32", i/2), "192.0.2.0/28")}
		}
		many = append(many, &policy.Policy{ID: id, Tier: "default", Ingress: numbered(r)})
		order.Policies = append(order.Policies, id)
	}
	sets := indexed.Sets
	indexed = state(many, order)
	indexed.Sets = sets
	out["indexed"] = indexed

	host := state(nil)
	tier := []policy.Tier{{Name: "default", Policies: []policy.ID{gnp("host")}, EndDeny: true}}
	pre := []policy.Tier{{Name: "default", Policies: []policy.ID{gnp("pre")}}}
	host.Policies[gnp("host")] = &policy.Policy{ID: gnp("host"), Tier: "default", Ingress: numbered(rule(policy.Allow, proto(17))), Egress: numbered(rule(policy.Allow))}
	host.Policies[gnp("pre")] = &policy.Policy{ID: gnp("pre"), Tier: "default", Ingress: numbered(rule(policy.Allow, proto(6), to(80, 80)), rule(policy.Deny, from("192.0.2.0/24")))}
	host.Endpoints[desired.EndpointKey{Name: "eth0"}] = &policy.Endpoint{
		Key: desired.EndpointKey{Name: "eth0"}, Host: true, Interface: "eth0", Normal: policy.Hook{Ingress: tier, Egress: tier},
		Forward: policy.Hook{Ingress: tier}, PreDNAT: policy.Hook{Ingress: pre}, Untracked: policy.Hook{Ingress: pre, Egress: tier},
	}
	host.Endpoints[desired.EndpointKey{Name: "all"}] = &policy.Endpoint{Key: desired.EndpointKey{Name: "all"}, Host: true, Interface: "*"}
	host.Options.FailsafeInbound = []policy.Failsafe{{Protocol: 6, Port: 22}, {Protocol: 17, Port: 68, Net: prefix("10.0.0.0/8")}}
	host.Options.FailsafeOutbound = []policy.Failsafe{{Protocol: 17, Port: 53}}
	host.Options.VXLANPort = 4789
	out["host"] = host
	return out
}

func TestGolden(t *testing.T) {
	for name, s := range goldens() {
		t.Run(name, func(t *testing.T) {
			got := render.New(render.Options{ReportGroup: 77}).Render(s).NFT.String()
			file := filepath.Join("testdata", name+".nft")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}
