package calc_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/manekinet/maneki/autodetect"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/datastore"
)

// loaded is a host with 100 endpoints and a number of policies, each of which
// selects some of them and names others, among remote endpoints of a cluster.
func loaded(policies, remote int) (*calc.Core, calc.Batch) {
	core := calc.New(calc.Options{Node: "n1", InterfacePrefix: "cali"})
	links := []autodetect.Interface{{Name: "eth0", Up: true}}
	var b calc.Batch
	add := func(k datastore.Key, format string, args ...any) {
		b.Events = append(b.Events, put(k, fmt.Appendf(nil, format, args...)))
	}
	endpoint := func(i int, node string) {
		add(datastore.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: fmt.Sprintf("%s-k8s-pod%d-eth0", node, i)},
			`{"metadata":{"labels":{"app":"app-%d","pod-template-hash":"%x"}},"spec":{"node":%q,"orchestrator":"k8s","pod":"pod%d","endpoint":"eth0","interfaceName":"cali%d","ipNetworks":["10.%d.%d.%d/32"],"profiles":["kns.default"]}}`,
			i%100, i%1000, node, i, i, i>>16, i>>8&255, i&255)
	}
	for i := range 100 {
		endpoint(i, "n1")
		links = append(links, autodetect.Interface{Name: fmt.Sprintf("cali%d", i), Up: true})
	}
	for i := range remote {
		endpoint(100+i, fmt.Sprintf("n%d", 2+i/100))
	}
	add(datastore.Key{Kind: "Profile", Name: "kns.default"}, `{"spec":{"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}],"labelsToApply":{"pcns.projectcalico.org/name":"default"}}}`)
	for i := range policies {
		b.Events = append(b.Events, policyOf(i, 80))
	}
	b.Links = links
	return core, b
}

func policyOf(i, port int) datastore.Event {
	return put(datastore.Key{Kind: "NetworkPolicy", Namespace: "default", Name: fmt.Sprintf("p%d", i)}, fmt.Appendf(nil,
		`{"spec":{"order":%d,"selector":"app == 'app-%d'","types":["Ingress","Egress"],"ingress":[{"action":"Allow","protocol":"TCP","source":{"selector":"app == 'app-%d'"},"destination":{"ports":[%d]}}],"egress":[{"action":"Allow"}]}}`,
		i, i%100, (i+1)%100, port))
}

// The whole of the calculation when everything becomes known at once.
func BenchmarkPolicyStart(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprintf("policies=%d", n), func(b *testing.B) {
			for b.Loop() {
				core, batch := loaded(n, 0)
				if s := core.Apply(batch); len(s.Policy.Policies) != n+1 {
					b.Fatalf("%d policies, problems %q", len(s.Policy.Policies), s.Problems)
				}
			}
		})
	}
}

// One policy changes among many.
func BenchmarkPolicyChange(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprintf("policies=%d", n), func(b *testing.B) {
			core, batch := loaded(n, 0)
			last := core.Apply(batch).Policy
			for i := 0; b.Loop(); i++ {
				s := core.Apply(calc.Batch{Events: []datastore.Event{policyOf(7, 81+i%2)}}).Policy
				if s == last {
					b.Fatal("the change changes nothing")
				}
				last = s
			}
		})
	}
}

// One policy comes and goes among 1000 that all apply to all 100 endpoints.
func BenchmarkPolicyOneMore(b *testing.B) {
	core, batch := loaded(0, 0)
	more := func(i int) datastore.Event {
		return put(datastore.Key{Kind: "GlobalNetworkPolicy", Name: fmt.Sprintf("p%04d", i)}, fmt.Appendf(nil,
			`{"spec":{"selector":"has(app)","types":["Ingress"],"ingress":[{"action":"Allow","protocol":"TCP","source":{"selector":"app == 'app-%d'"},"destination":{"ports":[%d]}}]}}`, i%100, i))
	}
	for i := range 1000 {
		batch.Events = append(batch.Events, more(2*i))
	}
	core.Apply(batch)
	events := []datastore.Event{more(999), more(999)}
	events[1].Type = datastore.EventDelete
	for i := 0; b.Loop(); i++ {
		if s := core.Apply(calc.Batch{Events: events[i%2 : i%2+1]}); len(s.Policy.Policies) != 1002-i%2 {
			b.Fatalf("%d policies, problems %q", len(s.Policy.Policies), s.Problems)
		}
	}
}

// A round in which nothing of policy changes, as at every attachment.
func BenchmarkPolicyIdle(b *testing.B) {
	core, batch := loaded(1000, 50_000)
	core.Apply(batch)
	for b.Loop() {
		core.Apply(calc.Batch{})
	}
}

// BenchmarkPolicyMemory reports what 50 000 endpoints of other hosts add.
func BenchmarkPolicyMemory(b *testing.B) {
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		before := heap()
		core, batch := loaded(1000, 50_000)
		s := core.Apply(batch)
		batch = calc.Batch{}
		b.ReportMetric(float64(heap()-before)/1e6, "MB")
		runtime.KeepAlive(core)
		if len(s.Policy.Endpoints) != 100 {
			b.Fatal("lost")
		}
	}
}
