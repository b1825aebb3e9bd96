package filter

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/manekinet/maneki/bgp/message"
)

func attrs(communities string, pref uint32, path ...uint32) message.Attrs {
	standard, large, err := message.ParseCommunities(communities)
	if err != nil {
		panic(err)
	}
	a := message.Attrs{NextHop: netip.MustParseAddr("10.1.0.9"), Communities: standard, LargeCommunities: large, LocalPref: pref}
	for _, as := range slices.Backward(path) {
		a = a.Prepend(as)
	}
	return a
}

func cidr(s string, m Match, lengths ...int) Rule {
	r := Rule{CIDR: netip.MustParsePrefix(s), Match: m, Accept: true}
	if len(lengths) == 2 {
		r.Min, r.Max = lengths[0], lengths[1]
	}
	return r
}

func TestMatches(t *testing.T) {
	links := map[netip.Prefix]string{netip.MustParsePrefix("10.1.0.0/24"): "eth0", netip.MustParsePrefix("10.1.0.8/29"): "vlan.7"}
	plain := attrs("", 2147482623)
	for _, c := range []struct {
		name   string
		rule   Rule
		prefix string
		attrs  message.Attrs
		own    string // interface of an own route; "" for a learnt one
		want   bool
	}{
		{"no condition", Rule{}, "10.0.0.0/8", plain, "", true},
		{"equal", cidr("10.0.0.0/8", Equal), "10.0.0.0/8", plain, "", true},
		{"equal, longer", cidr("10.0.0.0/8", Equal), "10.0.0.0/9", plain, "", false},
		{"not equal", cidr("10.0.0.0/8", NotEqual), "10.0.0.0/9", plain, "", true},
		{"not equal, same", cidr("10.0.0.0/8", NotEqual), "10.0.0.0/8", plain, "", false},
		{"in", cidr("10.0.0.0/8", In), "10.0.0.0/26", plain, "", true},
		{"in, itself", cidr("10.0.0.0/8", In), "10.0.0.0/8", plain, "", true},
		{"in, shorter", cidr("10.0.0.0/8", In), "0.0.0.0/0", plain, "", false},
		{"in, lengths", cidr("10.0.0.0/8", In, 24, 28), "10.0.0.0/24", plain, "", true},
		{"in, too short", cidr("10.0.0.0/8", In, 24, 28), "10.0.0.0/23", plain, "", false},
		{"in, too long", cidr("10.0.0.0/8", In, 24, 28), "10.0.0.0/29", plain, "", false},
		{"not in", cidr("10.0.0.0/8", NotIn), "11.0.0.0/26", plain, "", true},
		{"not in, inside", cidr("10.0.0.0/8", NotIn), "10.0.0.0/26", plain, "", false},
		{"not in, inside with another length", cidr("10.0.0.0/8", NotIn, 24, 28), "10.0.0.0/29", plain, "", true},
		{"IPv6", cidr("fd00::/8", In, 0, 122), "fd00:1::/122", plain, "", true},
		{"IPv6, too long", cidr("fd00::/8", In, 0, 122), "fd00:1::/128", plain, "", false},
		{"remote, learnt", Rule{RemotePeers: true}, "10.0.0.0/8", plain, "", true},
		{"remote, own", Rule{RemotePeers: true}, "10.0.0.0/8", plain, "lo", false},
		{"interface by next hop", Rule{Interface: "vlan.7"}, "10.0.0.0/8", plain, "", true},
		{"interface, other", Rule{Interface: "eth0"}, "10.0.0.0/8", plain, "", false},
		{"interface, own", Rule{Interface: "cali*"}, "10.0.0.0/8", plain, "cali12", true},
		{"interface, wildcards", Rule{Interface: "*a*.7"}, "10.0.0.0/8", plain, "", true},
		{"interface, wildcards in vain", Rule{Interface: "*a*.8"}, "10.0.0.0/8", plain, "", false},
		{"internal", Rule{PeerType: InternalPeer}, "10.0.0.0/8", plain, "", true},
		{"external", Rule{PeerType: ExternalPeer}, "10.0.0.0/8", plain, "", false},
		{"community", Rule{Community: "1:2"}, "10.0.0.0/8", attrs("3:4 1:2", 0), "", true},
		{"community, none", Rule{Community: "1:2"}, "10.0.0.0/8", plain, "", false},
		{"community, across a boundary", Rule{Community: "4:1"}, "10.0.0.0/8", attrs("3:4 1:2", 0), "", false},
		{"large community", Rule{Community: "1:2:3"}, "10.0.0.0/8", attrs("1:2:3", 0), "", true},
		{"path", Rule{ASPathPrefix: []uint32{1, 2}}, "10.0.0.0/8", attrs("", 0, 1, 2, 3), "", true},
		{"path, other", Rule{ASPathPrefix: []uint32{2}}, "10.0.0.0/8", attrs("", 0, 1, 2, 3), "", false},
		{"path, shorter", Rule{ASPathPrefix: []uint32{1, 2}}, "10.0.0.0/8", attrs("", 0, 1), "", false},
		{"priority", Rule{Priority: 1024}, "10.0.0.0/8", plain, "", true},
		{"priority, other", Rule{Priority: 1023}, "10.0.0.0/8", plain, "", false},
		{"all must hold", Rule{Priority: 1024, Community: "1:2"}, "10.0.0.0/8", plain, "", false},
	} {
		c.rule.Accept = true
		p := netip.MustParsePrefix(c.prefix)
		f := Filter{Name: "f", Import4: []Rule{c.rule}}
		if p.Addr().Is6() {
			f = Filter{Name: "f", Import6: []Rule{c.rule}}
		}
		v, _, by := NewChain([]Filter{f}, links).Import(Route{Prefix: p, Attrs: c.attrs, Learnt: c.own == "", Interface: c.own, InternalPeer: true})
		if (v == Accept) != c.want || (by == "f") != c.want {
			t.Errorf("%s: %s by %q, want match %t", c.name, v, by, c.want)
		}
	}
}

func TestOperations(t *testing.T) {
	rule := Rule{Accept: true, Operations: []Operation{
		{AddCommunity: "1:2"},
		{AddCommunity: "1:2"},
		{AddCommunity: "7:8:9"},
		{PrependASPath: []uint32{5, 6}},
		{SetPriority: 512},
	}}
	_, got, _ := NewChain([]Filter{{Export4: []Rule{rule}}}, nil).Export(Route{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Attrs: attrs("3:4", 100, 9)})
	want := attrs("3:4 1:2 7:8:9", 2147483135, 5, 6, 9)
	want.HasLocalPref = true
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestOrder(t *testing.T) {
	reject := Rule{CIDR: netip.MustParsePrefix("10.1.0.0/16"), Match: In}
	tens := cidr("10.0.0.0/8", In)
	a := Filter{Name: "a", Import4: []Rule{reject}}
	b := Filter{Name: "b", Import4: []Rule{tens}, Export4: []Rule{{}}}
	for _, c := range []struct {
		chain  []Filter
		prefix string
		want   string
	}{
		{[]Filter{a, b}, "10.1.0.0/24", "reject a"},
		{[]Filter{b, a}, "10.1.0.0/24", "accept b"},
		{[]Filter{a, b}, "10.2.0.0/24", "accept b"},
		{[]Filter{a, b}, "192.168.0.0/24", "no match "},
		{[]Filter{{Name: "gone", Missing: true}, b}, "10.2.0.0/24", "reject gone"},
		{[]Filter{b, {Name: "gone", Missing: true}}, "192.168.0.0/24", "reject gone"},
		{nil, "10.1.0.0/24", "no match "},
		{[]Filter{b}, "fd00::/64", "no match "},
	} {
		v, _, by := NewChain(c.chain, nil).Import(Route{Prefix: netip.MustParsePrefix(c.prefix)})
		if got := fmt.Sprintf("%s %s", v, by); got != c.want {
			t.Errorf("%s: %q, want %q", c.prefix, got, c.want)
		}
	}
}

// TestGlob compares with a matcher that tries everything.
func TestGlob(t *testing.T) {
	var slow func(p, s string) bool
	slow = func(p, s string) bool {
		switch {
		case p == "":
			return s == ""
		case p[0] == '*':
			return slow(p[1:], s) || (s != "" && slow(p, s[1:]))
		}
		return s != "" && s[0] == p[0] && slow(p[1:], s[1:])
	}
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.StringOfN(rapid.SampledFrom([]rune("ab*")), 0, 8, -1).Draw(t, "pattern")
		s := rapid.StringOfN(rapid.SampledFrom([]rune("ab")), 0, 8, -1).Draw(t, "name")
		if glob(p, s) != slow(p, s) {
			t.Fatalf("glob(%q, %q) = %t", p, s, glob(p, s))
		}
	})
}
