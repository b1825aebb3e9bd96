package agent

import (
	"slices"
	"strconv"
	"strings"

	"github.com/manekinet/maneki/api"
)

// felix reads the FELIX_ variables about policy: they come before every
// FelixConfiguration (spec/calico.md §5.7). nil: none is set.
func (e *env) felix() *api.FelixConfigurationSpec {
	s := &api.FelixConfigurationSpec{
		DefaultEndpointToHostAction: e.oneOf("FELIX_DEFAULTENDPOINTTOHOSTACTION", "Drop", "Accept", "Return"),
		IptablesFilterDenyAction:    e.oneOf("FELIX_IPTABLESFILTERDENYACTION", "Drop", "Reject"),
		NftablesFilterDenyAction:    e.oneOf("FELIX_NFTABLESFILTERDENYACTION", "Drop", "Reject"),
		FailsafeInboundHostPorts:    e.ports("FELIX_FAILSAFEINBOUNDHOSTPORTS"),
		FailsafeOutboundHostPorts:   e.ports("FELIX_FAILSAFEOUTBOUNDHOSTPORTS"),
	}
	set := s.DefaultEndpointToHostAction != nil || s.IptablesFilterDenyAction != nil || s.NftablesFilterDenyAction != nil ||
		s.FailsafeInboundHostPorts != nil || s.FailsafeOutboundHostPorts != nil
	if v := e.get("FELIX_LOGPREFIX"); v != "" {
		s.LogPrefix, set = &v, true
	}
	if e.get("FELIX_DISABLECONNTRACKINVALIDCHECK") != "" {
		v := e.boolean("FELIX_DISABLECONNTRACKINVALIDCHECK", false)
		s.DisableConntrackInvalidCheck, set = &v, true
	}
	if !set {
		return nil
	}
	return s
}

// oneOf is a word in any case.
func (e *env) oneOf(name string, allowed ...string) *string {
	v := e.get(name)
	if v == "" {
		return nil
	}
	i := slices.IndexFunc(allowed, func(a string) bool { return strings.EqualFold(a, v) })
	if i < 0 {
		e.bad(name, v, strings.Join(allowed, ", "))
		return nil
	}
	return &allowed[i]
}

// ports reads Felix's form of failsafe ports: "none", or "tcp:22",
// "udp:10.0.0.0/8:53" and "tcp:[fd00::/8]:22" separated by commas.
func (e *env) ports(name string) []api.ProtoPort {
	text := e.get(name)
	if text == "" {
		return nil
	}
	out := []api.ProtoPort{}
	if strings.EqualFold(text, "none") {
		return out
	}
	for word := range strings.SplitSeq(text, ",") {
		protocol, rest, ok := strings.Cut(strings.TrimSpace(word), ":")
		if !ok {
			protocol, rest = "tcp", protocol
		}
		net, port := "", rest
		if i := strings.LastIndexByte(rest, ':'); i >= 0 {
			net, port = strings.Trim(rest[:i], "[]"), rest[i+1:]
		}
		n, err := strconv.ParseUint(port, 10, 16)
		p := api.ProtoPort{Protocol: strings.ToLower(protocol), Port: uint16(n), Net: net}
		probe := &api.FelixConfiguration{Spec: api.FelixConfigurationSpec{FailsafeInboundHostPorts: []api.ProtoPort{p}}}
		probe.Name = "default"
		if err != nil || probe.Validate() != nil {
			e.bad(name, text, `"none", or ports such as tcp:22 and udp:10.0.0.0/8:53 separated by commas`)
			return nil
		}
		out = append(out, p)
	}
	return out
}
