package agent

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/manekinet/maneki/agentapi"
)

// collector turns the agent's status into metrics when they are asked for, so
// that a figure and `node status` can never disagree.
type collector struct{ agent *Agent }

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.agent.status()
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge := func(name, help string, labels []string, read func(add func(float64, ...string))) {
		desc := prometheus.NewDesc(name, help, labels, nil)
		read(func(v float64, values ...string) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, values...)
		})
	}
	gauge("maneki_ready", "1 when the network of this host is as wanted.", nil, func(add func(float64, ...string)) { add(flag(s.Ready)) })
	gauge("maneki_datastore_connected", "1 when the datastore answers.", nil, func(add func(float64, ...string)) { add(flag(s.Datastore.Connected)) })
	gauge("felix_active_local_endpoints", "Workload endpoints of this host.", nil, func(add func(float64, ...string)) { add(float64(len(s.Endpoints))) })
	gauge("maneki_problems", "Objects that could not be used.", nil, func(add func(float64, ...string)) { add(float64(len(s.Problems))) })
	pathMetrics(s.Paths, gauge, flag)
	table := []string{"table"}
	gauge("maneki_table_wanted", "Kernel objects wanted.", table, func(add func(float64, ...string)) {
		for _, t := range s.Tables {
			add(float64(t.Wanted), t.Name)
		}
	})
	gauge("maneki_table_present", "Kernel objects that are there as wanted.", table, func(add func(float64, ...string)) {
		for _, t := range s.Tables {
			add(float64(t.Present), t.Name)
		}
	})
	gauge("maneki_table_failed", "Kernel objects that could not be applied.", table, func(add func(float64, ...string)) {
		for _, t := range s.Tables {
			add(float64(t.Failed), t.Name)
		}
	})
	healed := prometheus.NewDesc("maneki_table_healed_total", "Kernel objects put back after somebody else changed them.", table, nil)
	for _, t := range s.Tables {
		ch <- prometheus.MustNewConstMetric(healed, prometheus.CounterValue, float64(t.Healed), t.Name)
	}
	c.peers(ch, s.Peers)
}

// bgpStates numbers the states as the BGP MIB does (RFC 4273, bgpPeerState).
func bgpStates() []string {
	return []string{"Idle", "Connect", "Active", "OpenSent", "OpenConfirm", established}
}

// peers writes what is counted per session.
func (c *collector) peers(ch chan<- prometheus.Metric, peers []agentapi.BGPPeer) {
	for _, m := range []struct {
		name, help string
		kind       prometheus.ValueType
		value      func(p agentapi.BGPPeer, up bool) float64
	}{
		{"established", "1 when the session is Established.", prometheus.GaugeValue, func(_ agentapi.BGPPeer, up bool) float64 {
			if up {
				return 1
			}
			return 0
		}},
		{"state", "State of the session: 1 Idle, 2 Connect, 3 Active, 4 OpenSent, 5 OpenConfirm, 6 Established.", prometheus.GaugeValue, func(p agentapi.BGPPeer, _ bool) float64 {
			return float64(slices.Index(bgpStates(), p.State) + 1)
		}},
		{"routes_received", "Routes that the peer announces.", prometheus.GaugeValue, func(p agentapi.BGPPeer, _ bool) float64 { return float64(p.Received) }},
		{"routes_accepted", "Routes of the peer that no check and no filter refuses.", prometheus.GaugeValue, func(p agentapi.BGPPeer, _ bool) float64 { return float64(p.Accepted) }},
		{"routes_advertised", "Routes announced to the peer.", prometheus.GaugeValue, func(p agentapi.BGPPeer, _ bool) float64 { return float64(p.Advertised) }},
		{"flaps_total", "Times that an established session was lost.", prometheus.CounterValue, func(p agentapi.BGPPeer, _ bool) float64 { return float64(p.Flaps) }},
		{"uptime_seconds", "How long the session has been Established, 0 when it is not.", prometheus.GaugeValue, func(p agentapi.BGPPeer, up bool) float64 {
			if up {
				return time.Since(p.Since).Seconds()
			}
			return 0
		}},
	} {
		desc := prometheus.NewDesc("maneki_bgp_peer_"+m.name, m.help, []string{"peer", "type"}, nil)
		for _, p := range peers {
			ch <- prometheus.MustNewConstMetric(desc, m.kind, m.value(p, p.State == established), p.Address.String(), p.Type)
		}
	}
}

// pathMetrics are those of the ways to other hosts.
func pathMetrics(p *agentapi.Paths, gauge func(name, help string, labels []string, read func(add func(float64, ...string))), flag func(bool) float64) {
	if p == nil {
		return
	}
	family := func(v6 bool) string {
		if v6 {
			return "6"
		}
		return "4"
	}
	labels := []string{"node", "device", "family"}
	each := func(value func(agentapi.Path) float64) func(add func(float64, ...string)) {
		return func(add func(float64, ...string)) {
			for _, path := range p.Paths {
				add(value(path), path.Node, path.Device, family(path.IPv6))
			}
		}
	}
	gauge("maneki_path_answered", "1 when the other host answered the last probe.", labels, each(func(p agentapi.Path) float64 { return flag(p.Answered) }))
	gauge("maneki_path_mtu_bytes", "Largest packet that passed; 0 while nobody has answered.", labels, each(func(p agentapi.Path) float64 { return float64(p.MTU) }))
	gauge("maneki_path_limit_bytes", "Largest packet that should pass.", labels, each(func(p agentapi.Path) float64 { return float64(p.Limit) }))
	gauge("maneki_path_checksum_broken", "1 when packets pass only without a checksum.", labels, each(func(p agentapi.Path) float64 { return flag(p.ChecksumBroken) }))
	gauge("maneki_workload_mtu_bytes", "MTU of new workloads.", nil, func(add func(float64, ...string)) { add(float64(p.WorkloadMTU)) })
}
