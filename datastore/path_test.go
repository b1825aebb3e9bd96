package datastore_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// paths are keys as upstream's calicoctl and IPAM library wrote them to an etcd
// (spec/calico.md §1.1, §1.4).
var paths = []struct {
	key  datastore.Key
	path string
}{
	{datastore.Key{Kind: "IPPool", Name: "default-ipv4-ippool"}, "/calico/resources/v3/projectcalico.org/ippools/default-ipv4-ippool"},
	{datastore.Key{Kind: "Node", Name: "node1"}, "/calico/resources/v3/projectcalico.org/nodes/node1"},
	{datastore.Key{Kind: "BGPPeer", Name: "tor%2f"}, "/calico/resources/v3/projectcalico.org/bgppeers/tor%2f"},
	{
		datastore.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: "node1-k8s-nginx-eth0"},
		"/calico/resources/v3/projectcalico.org/workloadendpoints/default/node1-k8s-nginx-eth0",
	},
	{datastore.Key{Kind: datastore.KindIPAMBlock, Name: "10.65.79.0/26"}, "/calico/ipam/v2/assignment/ipv4/block/10.65.79.0-26"},
	{
		datastore.Key{Kind: datastore.KindIPAMBlock, Name: "fd80:24e2:f998:72d6:94fa:7820:5b81:7500/122"},
		"/calico/ipam/v2/assignment/ipv6/block/fd80:24e2:f998:72d6:94fa:7820:5b81:7500-122",
	},
	{
		datastore.Key{Kind: datastore.KindBlockAffinity, Namespace: "host:node1", Name: "10.65.79.0/26"},
		"/calico/ipam/v2/host/node1/ipv4/block/10.65.79.0-26",
	},
	{
		datastore.Key{Kind: datastore.KindBlockAffinity, Namespace: "host:a/b", Name: "fd00::/122"},
		"/calico/ipam/v2/host/a%2fb/ipv6/block/fd00::-122",
	},
	{
		datastore.Key{Kind: datastore.KindBlockAffinity, Namespace: "virtual:load-balancer", Name: "10.65.79.0/26"},
		"/calico/ipam/v2/virtual/load-balancer/ipv4/block/10.65.79.0-26",
	},
	{datastore.Key{Kind: datastore.KindIPAMHandle, Name: "k8s-pod-network.4f2c"}, "/calico/ipam/v2/handle/k8s-pod-network.4f2c"},
	{datastore.Key{Kind: datastore.KindIPAMHandle, Name: "a/b%2f"}, "/calico/ipam/v2/handle/a%2fb%252f"},
	{datastore.Key{Kind: datastore.KindIPAMConfig, Name: "default"}, "/calico/ipam/v2/config"},
	{datastore.Key{Kind: datastore.KindIPAMHost, Name: "node1"}, "/calico/ipam/v2/host/node1"},
	{datastore.Key{Kind: datastore.KindLease, Name: "controller"}, "/calico/maneki/v1/lease/controller"},
	{datastore.Key{Kind: datastore.KindHeartbeat, Name: "node1"}, "/calico/maneki/v1/heartbeat/node1"},
}

func TestPath(t *testing.T) {
	for _, c := range paths {
		p, err := datastore.Path(c.key)
		if err != nil || p != c.path {
			t.Errorf("Path(%s) = %q, %v, want %q", c.key, p, err, c.path)
		}
		for _, spelling := range []string{c.path, c.path[1:]} {
			k, err := datastore.ParsePath(spelling)
			if err != nil || k != c.key {
				t.Errorf("ParsePath(%q) = %s, %v, want %s", spelling, k, err, c.key)
			}
		}
	}
}

func TestPathRefuses(t *testing.T) {
	for _, c := range []struct {
		key  datastore.Key
		says string
	}{
		{datastore.Key{Kind: "IPPool"}, "name is empty"},
		{datastore.Key{Kind: "Nonsense", Name: "a"}, `unknown kind "Nonsense"`},
		{datastore.Key{Kind: "IPPool", Namespace: "n", Name: "a"}, `namespace "n" given`},
		{datastore.Key{Kind: "IPPool", Name: "a/b"}, `name holds "/"`},
		{datastore.Key{Kind: "WorkloadEndpoint", Name: "a"}, "namespace is empty"},
		{datastore.Key{Kind: "WorkloadEndpoint", Namespace: "n/m", Name: "a"}, `namespace holds "/"`},
		{datastore.Key{Kind: datastore.KindIPAMBlock, Name: "10.0.0.0"}, "not a CIDR"},
		{datastore.Key{Kind: datastore.KindIPAMBlock, Name: "10.0.0.1/26"}, "that would be 10.0.0.0/26"},
		{datastore.Key{Kind: datastore.KindIPAMBlock, Name: "fd00:0::/122"}, "that would be fd00::/122"},
		{datastore.Key{Kind: datastore.KindIPAMBlock, Name: "::ffff:10.0.0.0/122"}, "not a c"},
		{datastore.Key{Kind: datastore.KindIPAMBlock, Namespace: "host:n", Name: "10.0.0.0/26"}, "the kind has none"},
		{datastore.Key{Kind: datastore.KindBlockAffinity, Name: "10.0.0.0/26"}, "neither host:<node> nor virtual:<name>"},
		{datastore.Key{Kind: datastore.KindBlockAffinity, Namespace: "host:", Name: "10.0.0.0/26"}, "neither host:<node>"},
		{datastore.Key{Kind: datastore.KindIPAMConfig, Name: "other"}, `the only one is "default"`},
	} {
		p, err := datastore.Path(c.key)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("Path(%s) = %q, %v, want an error with %q", c.key, p, err, c.says)
		}
	}
}

func TestParsePathRefuses(t *testing.T) {
	for _, path := range []string{
		"",
		"/",
		"/calico",
		"/calico/v1/Ready",
		"/registry/pods/default/a",
		"/calico/ipam/v2/configuration",
		"/calico/ipam/v2/handle/",
		"/calico/ipam/v2/handle/a/b",
		"/calico/ipam/v2/host/",
		"/calico/ipam/v2/host/n/",
		"/calico/ipam/v2/host/n/ipv4/block/10.0.0.1-26",
		"/calico/ipam/v2/host/n/ipv6/block/10.0.0.0-26",
		"/calico/ipam/v2/virtual/load-balancer",
		"/calico/ipam/v2/assignment/ipv6/block/fd00:0:0:0:0:0:0:0-122",
		"/calico/resources/v3/projectcalico.org/ippools/",
		"/calico/resources/v3/projectcalico.org/ippools/a/b",
		"/calico/resources/v3/projectcalico.org/workloadendpoints/a",
		"/calico/resources/v3/projectcalico.org/workloadendpoints//a",
		"/calico/resources/v3/projectcalico.org/nonsenses/a",
		"calico//ipam/v2/config",
	} {
		if k, err := datastore.ParsePath(path); err == nil {
			t.Errorf("ParsePath(%q) = %s, want an error", path, k)
		}
	}
}

func drawKey(t *rapid.T) datastore.Key {
	name := rapid.StringMatching(`[a-z0-9%/.:_-]{1,12}`)
	plain := rapid.StringMatching(`[a-z0-9%.:_-]{1,12}`)
	cidr := func() string {
		b := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")
		a := netip.AddrFrom16([16]byte(b))
		if rapid.Bool().Draw(t, "v4") {
			a = netip.AddrFrom4([4]byte(b[:4]))
		}
		return netip.PrefixFrom(a.Unmap(), rapid.IntRange(0, a.Unmap().BitLen()).Draw(t, "bits")).Masked().String()
	}
	switch rapid.IntRange(0, 7).Draw(t, "kind") {
	case 0:
		return datastore.Key{Kind: datastore.KindIPAMBlock, Name: cidr()}
	case 1:
		owner := rapid.SampledFrom([]string{"host:", "virtual:"}).Draw(t, "owner") + name.Draw(t, "owner name")
		return datastore.Key{Kind: datastore.KindBlockAffinity, Namespace: owner, Name: cidr()}
	case 2:
		return datastore.Key{Kind: datastore.KindIPAMHandle, Name: name.Draw(t, "handle")}
	case 3:
		return datastore.Key{Kind: datastore.KindIPAMHost, Name: name.Draw(t, "host")}
	case 4:
		return datastore.Key{Kind: datastore.KindIPAMConfig, Name: "default"}
	case 5:
		return datastore.Key{Kind: datastore.KindLease, Name: name.Draw(t, "lease")}
	case 6:
		return datastore.Key{Kind: datastore.KindHeartbeat, Name: name.Draw(t, "host")}
	}
	k := rapid.SampledFrom(api.Kinds()).Draw(t, "resource")
	key := datastore.Key{Kind: k.Name, Name: plain.Draw(t, "name")}
	if k.Namespaced {
		key.Namespace = plain.Draw(t, "namespace")
	}
	return key
}

// Every key has one path, different keys have different paths, and the path
// lies in the range of exactly those queries that match the key.
func TestPathProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawKey(t), drawKey(t)
		pa, err := datastore.Path(a)
		if err != nil {
			t.Fatal(err)
		}
		pb, err := datastore.Path(b)
		if err != nil {
			t.Fatal(err)
		}
		back, err := datastore.ParsePath(pa)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(a, back); diff != "" {
			t.Fatalf("round trip of %s: %s", pa, diff)
		}
		if (pa == pb) != (a == b) {
			t.Fatalf("%s and %s have the paths %s and %s", a, b, pa, pb)
		}
		for _, q := range []datastore.Query{{Kind: a.Kind}, {Kind: a.Kind, Namespace: a.Namespace}} {
			if in(t, q, pa) != true {
				t.Fatalf("%s is not in the ranges of %v", pa, q)
			}
			if a.Kind == b.Kind && in(t, q, pb) != q.Matches(b) {
				t.Fatalf("%s: in the ranges of %v %v, matches %v", pb, q, in(t, q, pb), q.Matches(b))
			}
		}
	})
}

func in(t *rapid.T, q datastore.Query, path string) bool {
	rs, err := datastore.Ranges(q)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range rs {
		if i > 0 && r.Start < rs[i-1].End {
			t.Fatalf("ranges of %v overlap or are not in order: %q", q, rs)
		}
		if r.Contains(path) {
			return true
		}
	}
	return false
}

// What ParsePath accepts is exactly what Path writes.
func FuzzParsePath(f *testing.F) {
	for _, c := range paths {
		f.Add(c.path)
		f.Add(strings.TrimPrefix(c.path, "/"))
	}
	f.Add("/calico/ipam/v2/handle/%2F%25")
	f.Add("/calico/ipam/v2/host/%/ipv4/block/0.0.0.0-0")
	f.Fuzz(func(t *testing.T, path string) {
		k, err := datastore.ParsePath(path)
		if err != nil {
			return
		}
		p, err := datastore.Path(k)
		if err != nil {
			t.Fatalf("ParsePath(%q) = %s, but Path: %v", path, k, err)
		}
		if p != path && p != "/"+path {
			t.Fatalf("ParsePath(%q) = %s, but its path is %q", path, k, p)
		}
	})
}
