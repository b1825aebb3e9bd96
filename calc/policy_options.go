package calc

import (
	"math"
	"strconv"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

// annotationTermination on FelixConfiguration default cuts established
// connections that a new policy forbids.
const annotationTermination = "maneki.net/flow-termination"

// defaultLogPrefix is Calico's.
const defaultLogPrefix = "calico-packet"

// endpointToHost applies where no FelixConfiguration says otherwise. Felix's own
// default is Drop, but every way to install Calico sets another: a node and its
// pods reach each other. Return leaves it to the host's other rules, and to
// host endpoints.
const endpointToHost = "Return"

// policyOptions are the settings of FelixConfiguration that bear on policy, this
// node's before those of all.
func (c *Core) policyOptions(t tunnelState, p *problems) policy.Options {
	text := c.felixText
	deny := text(func(s *api.FelixConfigurationSpec) *string { return s.NftablesFilterDenyAction },
		text(func(s *api.FelixConfigurationSpec) *string { return s.IptablesFilterDenyAction }, "Drop"))
	o := policy.Options{
		Reject:            strings.EqualFold(deny, "Reject"),
		KeepInvalid:       c.felixBool(func(s *api.FelixConfigurationSpec) *bool { return s.DisableConntrackInvalidCheck }),
		LogPrefix:         text(func(s *api.FelixConfigurationSpec) *string { return s.LogPrefix }, defaultLogPrefix),
		InterfacePrefix:   c.opts.InterfacePrefix,
		LogLimitPerSecond: perSecond(text(func(s *api.FelixConfigurationSpec) *string { return s.LogActionRateLimit }, "")),
	}
	switch strings.ToLower(text(func(s *api.FelixConfigurationSpec) *string { return s.DefaultEndpointToHostAction }, endpointToHost)) {
	case "accept":
		o.EndpointToHost = policy.EndpointToHostAccept
	case "return":
		o.EndpointToHost = policy.EndpointToHostReturn
	}
	in := c.felixPorts(func(s *api.FelixConfigurationSpec) []api.ProtoPort { return s.FailsafeInboundHostPorts })
	if in == nil {
		in = failsafes([]uint16{22}, 68)
	}
	out := c.felixPorts(func(s *api.FelixConfigurationSpec) []api.ProtoPort { return s.FailsafeOutboundHostPorts })
	if out == nil {
		out = failsafes(nil, 53, 67)
	}
	o.FailsafeInbound, o.FailsafeOutbound = compileFailsafes(in, p), compileFailsafes(out, p)
	for _, d := range t.devices {
		switch d.Encap {
		case desired.EncapVXLAN:
			o.VXLANPort = uint16(d.Port)
		case desired.EncapIPIP:
			o.IPIP = true
		}
	}
	if f := c.felix["default"]; f != nil {
		o.TerminateFlows = f.Annotations[annotationTermination] == "true"
	}
	return o
}

// failsafes are the ports that Calico keeps open: those given and, of both
// directions, BGP, etcd, Typha, Kubernetes' API and etcd's ports of old
// (spec/calico.md §5.5).
func failsafes(tcp []uint16, udp ...uint16) []api.ProtoPort {
	var out []api.ProtoPort
	for _, port := range append(tcp, 179, 2379, 2380, 5473, 6443, 6666, 6667) {
		out = append(out, api.ProtoPort{Protocol: "tcp", Port: port})
	}
	for _, port := range udp {
		out = append(out, api.ProtoPort{Protocol: "udp", Port: port})
	}
	return out
}

func compileFailsafes(list []api.ProtoPort, p *problems) []policy.Failsafe {
	out := make([]policy.Failsafe, 0, len(list))
	for _, f := range list {
		name := api.FromText(f.Protocol)
		if f.Protocol == "" {
			name.Text = "tcp"
		}
		n, err := protocolNumber(&name)
		if err != nil {
			p.add("FelixConfiguration: failsafe port %d: protocol %v; it is not served", f.Port, err)
			continue
		}
		safe := policy.Failsafe{Protocol: n, Port: f.Port}
		if f.Net != "" {
			if safe.Net, err = parseNet(f.Net); err != nil {
				p.add("FelixConfiguration: failsafe port %d: net %q is neither a network nor an address; it is not served", f.Port, f.Net)
				continue
			}
		}
		out = append(out, safe)
	}
	return out
}

// perSecond reads a rate such as "10/second" or "30/minute", rounded up; 0 where
// there is none.
func perSecond(text string) int {
	count, unit, ok := strings.Cut(strings.TrimSpace(text), "/")
	n, err := strconv.Atoi(count)
	if !ok || err != nil || n <= 0 {
		return 0
	}
	seconds, known := map[string]float64{"second": 1, "minute": 60, "hour": 3600, "day": 86400}[strings.ToLower(unit)]
	if !known {
		return 0
	}
	return int(math.Ceil(float64(n) / seconds))
}
