package policy_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func gnp(name string) policy.ID { return policy.ID{Kind: "GlobalNetworkPolicy", Name: name} }

// any is an entity that asks nothing.
func anyone() policy.Entity { return policy.Entity{AnyPort: true} }

func rule(do policy.Action, edit func(*policy.Rule)) policy.Rule {
	r := policy.Rule{Do: do, Src: anyone(), Dst: anyone()}
	if edit != nil {
		edit(&r)
	}
	return r
}

func tcp(port uint16) func(*policy.Rule) {
	return func(r *policy.Rule) {
		r.Protocol, r.Dst.AnyPort, r.Dst.Ports = policy.ProtoTCP, false, []policy.PortRange{{From: port, To: port}}
	}
}

func numbered(rules ...policy.Rule) []policy.Rule {
	for i := range rules {
		rules[i].Index = i
		rules[i].Text = fmt.Sprintf("rule %d", i)
	}
	return rules
}

// web is a host with one workload and a handful of policies to choose from.
func web(tiers []policy.Tier, profiles ...string) *policy.State {
	s := &policy.State{
		Policies: map[policy.ID]*policy.Policy{},
		Sets: map[policy.SetID]*policy.Set{
			"s:fe": {ID: "s:fe", Kind: policy.Addresses, Selector: `app == "fe"`, Members: desired.NewMembers(desired.Member{Net: prefix("10.0.0.1/32")})},
			"n:web": {
				ID: "n:web", Kind: policy.AddressPorts, Selector: "port http", Members: desired.NewMembers(desired.Member{Net: prefix("10.0.0.2/32"), Proto: 6, Port: 8080}),
			},
		},
	}
	for _, p := range []*policy.Policy{
		{ID: gnp("allow-80"), Tier: "default", Ingress: numbered(rule(policy.Allow, tcp(80)))},
		{ID: gnp("allow-fe"), Tier: "default", Ingress: numbered(rule(policy.Allow, func(r *policy.Rule) { r.Src.Set = "s:fe" }))},
		{ID: gnp("not-fe"), Tier: "default", Ingress: numbered(rule(policy.Allow, func(r *policy.Rule) { r.Src.NotSet = "s:fe" }))},
		{ID: gnp("deny-80"), Tier: "default", Ingress: numbered(rule(policy.Log, nil), rule(policy.Deny, tcp(80)))},
		{ID: gnp("pass-80"), Tier: "first", Ingress: numbered(rule(policy.Pass, tcp(80)))},
		{ID: gnp("named"), Tier: "default", Ingress: numbered(rule(policy.Allow, func(r *policy.Rule) {
			r.Protocol, r.Dst.AnyPort, r.Dst.Named = policy.ProtoTCP, false, []policy.SetID{"n:web"}
		}))},
		{ID: gnp("nobody"), Tier: "default", Ingress: numbered(rule(policy.Allow, func(r *policy.Rule) { r.Src.Nets = []netip.Prefix{} }))},
		{ID: gnp("broken"), Tier: "default", Broken: "too much"},
		{ID: gnp("staged-deny"), Tier: "default", Staged: true, Ingress: numbered(rule(policy.Deny, nil))},
		{ID: gnp("icmp"), Tier: "default", Ingress: numbered(rule(policy.Allow, func(r *policy.Rule) {
			r.Family, r.Protocol, r.ICMP = 4, policy.ProtoICMP, &policy.ICMP{Type: 8}
		}))},
		{ID: policy.ID{Kind: "Profile", Name: "open"}, Ingress: numbered(rule(policy.Allow, nil)), Egress: numbered(rule(policy.Allow, nil))},
	} {
		s.Policies[p.ID] = p
	}
	ep := &policy.Endpoint{Key: desired.EndpointKey{Namespace: "default", Name: "web"}, Interface: "cali1", Addrs: desired.NewAddrSet(addr("10.0.0.2")), Normal: policy.Hook{Ingress: tiers}}
	for _, p := range profiles {
		ep.Profiles = append(ep.Profiles, policy.ID{Kind: "Profile", Name: p})
	}
	s.Endpoints = map[desired.EndpointKey]*policy.Endpoint{ep.Key: ep}
	return s
}

func tier(name string, deny bool, policies ...string) policy.Tier {
	t := policy.Tier{Name: name, EndDeny: deny, EndDenyStaged: deny}
	for _, p := range policies {
		t.Policies = append(t.Policies, gnp(p))
	}
	return t
}

func packet(src string, proto uint8, port uint16) policy.Packet {
	return policy.Packet{Src: addr(src), Dst: addr("10.0.0.2"), Protocol: proto, SrcPort: 40000, DstPort: port, Type: 8}
}

func verdictText(t policy.Trace) string {
	word := map[bool]string{true: "allow", false: "deny"}[t.Allowed]
	v := t.Verdict
	switch v.Reason {
	case policy.ByRule:
		return fmt.Sprintf("%s %s %d", word, v.Policy.Name, v.Rule)
	case policy.ByTierEnd:
		return word + " end of " + v.Tier
	case policy.ByBrokenPolicy:
		return word + " broken " + v.Policy.Name
	case policy.ByNoProfile:
		return word + " no profile"
	case policy.ByNoPolicy:
		return word + " no policy"
	case policy.ByFailsafe:
		return word + " failsafe"
	}
	return fmt.Sprintf("%s reason %d", word, v.Reason)
}

func TestEvaluate(t *testing.T) {
	tests := []struct {
		name     string
		tiers    []policy.Tier
		profiles []string
		packet   policy.Packet
		want     string
	}{
		{"nothing applies: profile", nil, []string{"open"}, packet("10.0.0.1", 6, 80), "allow open 0"},
		{"a profile that does not exist", nil, []string{"gone"}, packet("10.0.0.1", 6, 80), "deny no profile"},
		{"a rule allows", []policy.Tier{tier("default", true, "allow-80")}, []string{"open"}, packet("10.0.0.1", 6, 80), "allow allow-80 0"},
		{"end of tier", []policy.Tier{tier("default", true, "allow-80")}, []string{"open"}, packet("10.0.0.1", 6, 81), "deny end of default"},
		{"end of tier passes", []policy.Tier{tier("default", false, "allow-80")}, []string{"open"}, packet("10.0.0.1", 6, 81), "allow open 0"},
		{"order of policies", []policy.Tier{tier("default", true, "deny-80", "allow-80")}, nil, packet("10.0.0.1", 6, 80), "deny deny-80 1"},
		{"pass leaves the tier", []policy.Tier{tier("first", true, "pass-80", "broken"), tier("default", true, "allow-80")}, nil, packet("10.0.0.1", 6, 80), "allow allow-80 0"},
		{"pass to the profiles", []policy.Tier{tier("first", true, "pass-80")}, []string{"open"}, packet("10.0.0.1", 6, 80), "allow open 0"},
		{"no pass, end", []policy.Tier{tier("first", true, "pass-80"), tier("default", true, "allow-80")}, nil, packet("10.0.0.1", 6, 81), "deny end of first"},
		{"selected", []policy.Tier{tier("default", true, "allow-fe")}, nil, packet("10.0.0.1", 17, 53), "allow allow-fe 0"},
		{"not selected", []policy.Tier{tier("default", true, "allow-fe")}, nil, packet("10.0.0.9", 17, 53), "deny end of default"},
		{"left out", []policy.Tier{tier("default", true, "not-fe")}, nil, packet("10.0.0.1", 17, 53), "deny end of default"},
		{"named port", []policy.Tier{tier("default", true, "named")}, nil, packet("10.0.0.9", 6, 8080), "allow named 0"},
		{"named port, other protocol", []policy.Tier{tier("default", true, "named")}, nil, packet("10.0.0.9", 17, 8080), "deny end of default"},
		{"an empty list matches nobody", []policy.Tier{tier("default", true, "nobody")}, nil, packet("10.0.0.1", 6, 80), "deny end of default"},
		{"broken denies", []policy.Tier{tier("default", true, "broken", "allow-80")}, nil, packet("10.0.0.1", 6, 80), "deny broken broken"},
		{"staged decides nothing", []policy.Tier{tier("default", true, "staged-deny", "allow-80")}, nil, packet("10.0.0.1", 6, 80), "allow allow-80 0"},
		{"icmp", []policy.Tier{tier("default", true, "icmp")}, nil, packet("10.0.0.1", 1, 0), "allow icmp 0"},
		{"icmp rule, tcp packet", []policy.Tier{tier("default", true, "icmp")}, nil, packet("10.0.0.1", 6, 8), "deny end of default"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := web(tt.tiers, tt.profiles...).Evaluate(desired.EndpointKey{Namespace: "default", Name: "web"}, policy.PlaceNormal, policy.Ingress, tt.packet)
			if err != nil || verdictText(got) != tt.want {
				t.Errorf("%s, %v; want %s", verdictText(got), err, tt.want)
			}
		})
	}
}

func TestStagedPoliciesSayWhatTheyWouldDo(t *testing.T) {
	s := web([]policy.Tier{{Name: "default", Policies: []policy.ID{gnp("staged-deny")}, EndDenyStaged: true}}, "open")
	got, err := s.Evaluate(desired.EndpointKey{Namespace: "default", Name: "web"}, policy.PlaceNormal, policy.Ingress, packet("10.0.0.1", 6, 80))
	if err != nil {
		t.Fatal(err)
	}
	if !got.Allowed || got.Staged == nil || verdictText(*got.Staged) != "deny staged-deny 0" {
		t.Errorf("%s, staged %+v", verdictText(got), got.Staged)
	}
}

func TestHostEndpoint(t *testing.T) {
	s := web(nil)
	s.Options.FailsafeInbound = []policy.Failsafe{{Protocol: 6, Port: 22}, {Protocol: 6, Port: 2379, Net: prefix("10.9.0.0/16")}}
	ep := &policy.Endpoint{Host: true, Interface: "*", Normal: policy.Hook{Ingress: []policy.Tier{tier("default", true, "deny-80")}}, PreDNAT: policy.Hook{Ingress: []policy.Tier{tier("default", false, "allow-80")}}}
	for _, tt := range []struct {
		place  policy.Place
		packet policy.Packet
		want   string
	}{
		{policy.PlaceNormal, packet("10.0.0.1", 6, 22), "allow failsafe"},
		{policy.PlaceNormal, packet("10.9.0.1", 6, 2379), "allow failsafe"},
		{policy.PlaceNormal, packet("10.8.0.1", 6, 2379), "deny end of default"},
		{policy.PlaceNormal, packet("10.0.0.1", 6, 80), "deny deny-80 1"},
		{policy.PlaceForward, packet("10.0.0.1", 6, 80), "allow no policy"},
		{policy.PlacePreDNAT, packet("10.0.0.1", 6, 81), "allow no policy"},
	} {
		if got := verdictText(s.EvaluateAt(ep, tt.place, policy.Ingress, tt.packet)); got != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.place, tt.packet, got, tt.want)
		}
	}
}

func TestMismatchesSpeak(t *testing.T) {
	s := web(nil)
	r := rule(policy.Allow, func(r *policy.Rule) {
		r.Protocol, r.Src.Set, r.Dst.AnyPort = policy.ProtoTCP, "s:fe", false
		r.Dst.Ports, r.Dst.Named = []policy.PortRange{{From: 80, To: 80}, {From: 8000, To: 8010}}, []policy.SetID{"n:web"}
		r.Dst.NotNets = []netip.Prefix{prefix("10.0.0.0/24")}
	})
	var lines []string
	for _, m := range s.Mismatches(&r, packet("10.0.0.9", 17, 53)) {
		lines = append(lines, m.Text)
	}
	want := `the protocol is udp, not tcp
source 10.0.0.9 is not selected by app == "fe"
destination 10.0.0.2 is in 10.0.0.0/24, which the rule leaves out
destination port 53 is not 80, 8000:8010, port http`
	if diff := cmp.Diff(want, strings.Join(lines, "\n")); diff != "" {
		t.Error(diff)
	}
}

func TestParseProtocol(t *testing.T) {
	for s, want := range map[string]uint8{"tcp": 6, "TCP": 6, "47": 47, "UDPLite": 136} {
		if got, err := policy.ParseProtocol(s); err != nil || got != want {
			t.Errorf("%s: %d %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0", "256", "tpc"} {
		if _, err := policy.ParseProtocol(s); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}
