package render_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/explain"
	"github.com/manekinet/maneki/policy"
)

// TestExplanationsMeetThePackets: random policies and random packets, to
// containers, to their host, to the name server on their gateway's address, and
// outside: explain says of each what the kernel does with it.
func TestExplanationsMeetThePackets(t *testing.T) {
	r := newRig(t)
	r.host.AddAddr("eth0", "169.254.1.1/32")
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t)
		if hep := s.Endpoints[desired.EndpointKey{Name: "hep"}]; hep != nil {
			hep.Addrs = desired.NewAddrSet(hostAddr(true), hostAddr(false))
		}
		res := r.apply(s)
		net := explain.Network{Hosts: map[string]*policy.State{"h": s}, Addresses: map[string][]netip.Addr{"h": {hostAddr(true), hostAddr(false)}}}
		var ways []way
		var cookies, expected []uint64
		var answers []explain.Answer
		for range 24 {
			n++
			w := drawExplained(t, n)
			answer, err := explain.Explain(net, partyAt(s, w.from, w.p.Src), partyAt(s, w.to, w.p.Dst), w.p)
			if err != nil {
				continue // a workload that is not known
			}
			ways, answers = append(ways, w), append(answers, answer)
			cookies = append(cookies, r.send(w.from, w.p))
			if answer.Allowed {
				expected = append(expected, cookies[len(cookies)-1])
			}
		}
		got := r.arrived(expected)
		for i, w := range ways {
			if arrived := slices.Contains(got[cookies[i]], w.to); arrived != answers[i].Allowed {
				t.Fatalf("%s from %s to %s: arrived is %v, but\n%s\n%s", w.p, w.from, w.to, arrived, answers[i].Text(net), res.NFT)
			}
		}
	})
}

// drawExplained is drawWay, and now and then what a container sends to its own
// host in particular.
func drawExplained(t *rapid.T, n int) way {
	w := drawWay(t, n)
	from := fmt.Sprintf("w%d", rapid.IntRange(1, 3).Draw(t, "special from"))
	switch rapid.IntRange(0, 7).Draw(t, "special") {
	case 0: // the name server
		w = way{from: from, to: "host", p: policy.Packet{
			Src: workloadAddr(int(from[1]-'0'), true), Dst: policy.Gateway(), Protocol: rapid.SampledFrom([]uint8{6, 17, 132}).Draw(t, "special protocol"),
			SrcPort: uint16(1024 + n%60000), DstPort: rapid.SampledFrom([]uint16{53, 54}).Draw(t, "special port"),
		}}
	case 1: // neighbour discovery, or nearly
		w = way{from: from, to: "host", p: policy.Packet{
			Src: workloadAddr(int(from[1]-'0'), false), Dst: hostAddr(false), Protocol: policy.ProtoICMPv6,
			// The other types cannot begin a connection (nf_conntrack_icmpv6_new).
			Type: rapid.SampledFrom([]uint8{128, 130, 131, 132, 133, 134, 135, 136, 139}).Draw(t, "special type"), SrcPort: uint16(n),
		}}
	}
	return w
}

func partyAt(s *policy.State, place string, a netip.Addr) explain.Party {
	switch place {
	case "out":
		return explain.Party{Kind: explain.Outside, Name: a.String(), Addr: a}
	case "host":
		if a == policy.Gateway() {
			return explain.Party{Kind: explain.Outside, Name: a.String(), Addr: a}
		}
		return explain.Party{Kind: explain.Host, Name: "h", Node: "h", Addr: a}
	}
	key := desired.EndpointKey{Namespace: "default", Name: place}
	return explain.Party{Kind: explain.Workload, Name: place, Node: "h", Key: key, Addr: a}
}
