package render

import (
	"net/netip"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

// gateway is the address that every workload has as its gateway.
func gateway() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254, 1, 1}), 32) }

// failsafes accept what no policy of a host endpoint may stop. Before connection
// tracking the answers have to be accepted by their own ports: to take one
// direction of a connection out of connection tracking would break it.
func (b *builder) failsafes(place policy.Place, d policy.Direction) []desired.Rule {
	list, answers := b.s.Options.FailsafeInbound, b.s.Options.FailsafeOutbound
	if d == policy.Egress {
		list, answers = answers, list
	}
	var out []desired.Rule
	for _, f := range list {
		out = append(out, failsafe(f, d, desired.DstPort))
	}
	if place == policy.PlaceUntracked {
		for _, f := range answers {
			out = append(out, failsafe(f, d, desired.SrcPort))
		}
	}
	return out
}

func failsafe(f policy.Failsafe, d policy.Direction, port func(from, to uint16) desired.Match) desired.Rule {
	var m []desired.Match
	switch {
	case !f.Net.IsValid():
	case d == policy.Egress:
		m = append(m, desired.DstNet(f.Net))
	default:
		m = append(m, desired.SrcNet(f.Net))
	}
	return desired.Rule{Match: append(m, desired.Proto(f.Protocol), port(f.Port, f.Port)), Do: desired.Accept}
}

// tunnels accept the packets of tunnels between hosts, which are taken from known
// hosts only by other rules: what is inside them has policies of its own.
func (b *builder) tunnels(place policy.Place) []desired.Rule {
	if place != policy.PlaceNormal {
		return nil
	}
	var out []desired.Rule
	if p := b.s.Options.VXLANPort; p != 0 {
		out = append(out, desired.Rule{Match: []desired.Match{desired.UDPPort(p)}, Do: desired.Accept})
	}
	if b.s.Options.IPIP {
		out = append(out, desired.Rule{Match: []desired.Match{desired.Proto(protocolIPIP)}, Do: desired.Accept})
	}
	return out
}

const protocolIPIP = 4
