package agent

import (
	"github.com/prometheus/client_golang/prometheus"
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
	peer := []string{"peer", "type"}
	gauge("maneki_bgp_peer_established", "1 when the session is Established.", peer, func(add func(float64, ...string)) {
		for _, p := range s.Peers {
			add(flag(p.State == "Established"), p.Address.String(), p.Type)
		}
	})
	gauge("maneki_bgp_peer_routes_received", "Routes that the peer announces.", peer, func(add func(float64, ...string)) {
		for _, p := range s.Peers {
			add(float64(p.Received), p.Address.String(), p.Type)
		}
	})
}
