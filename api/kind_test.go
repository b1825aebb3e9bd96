package api

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestLookupKind(t *testing.T) {
	for word, want := range map[string]string{
		"IPPool": "IPPool", "ippool": "IPPool", "IPPOOLS": "IPPool", "pool": "IPPool", "ipp": "IPPool",
		"node": "Node", "no": "Node", "nodes": "Node", "wep": "WorkloadEndpoint", "workloadEndpoint": "WorkloadEndpoint",
		"bgpconfig": "BGPConfiguration", "bgpPeers": "BGPPeer", "bp": "BGPPeer", "clusterinfo": "ClusterInformation",
		"felixconfig": "FelixConfiguration", "reservation": "IPReservation", "pro": "Profile",
		"gnp": "GlobalNetworkPolicy", "np": "NetworkPolicy", "policy": "NetworkPolicy", "pol": "NetworkPolicy", "policies": "NetworkPolicy",
		"snp": "StagedNetworkPolicy", "sgnp": "StagedGlobalNetworkPolicy", "sknp": "StagedKubernetesNetworkPolicy",
		"gnetsets": "GlobalNetworkSet", "netsets": "NetworkSet", "hep": "HostEndpoint", "ipamconfig": "IPAMConfiguration",
		"nodestatus": "CalicoNodeStatus", "bgpf": "BGPFilter", "bf": "BGPFilter", "tier": "Tier", "tiers": "Tier",
		"kubecontrollersconfiguration": "KubeControllersConfiguration", "blockaffinities": "BlockAffinity",
	} {
		k, err := LookupKind(word)
		if err != nil || k.Name != want {
			t.Errorf("LookupKind(%q) = %s, %v; want %s", word, k.Name, err, want)
		}
	}
	if _, err := LookupKind("x"); err == nil || !strings.HasPrefix(err.Error(), "resource type 'x' is not supported") {
		t.Errorf("LookupKind(x): %v", err)
	}
	seen := map[string]string{}
	for _, k := range Kinds() {
		for _, word := range append([]string{strings.ToLower(k.Name), k.Plural}, k.Aliases...) {
			if seen[word] != "" {
				t.Errorf("%q names %s and %s", word, seen[word], k.Name)
			}
			seen[word] = k.Name
		}
		o := k.New()
		o.Default()
		if o.Type().Kind != k.Name || o.Type().APIVersion != GroupVersion {
			t.Errorf("%s says it is %v", k.Name, *o.Type())
		}
	}
}

// The tables of spec/calico.md §7 for the goldens, narrow and wide.
func TestColumns(t *testing.T) {
	want := map[string]string{
		"IPPool": `NAME CIDR SELECTOR
default-ipv4-ippool 192.168.0.0/16 all()
NAME CIDR NAT IPIPMODE VXLANMODE DISABLED DISABLEBGPEXPORT SELECTOR ASSIGNMENTMODE
default-ipv4-ippool 192.168.0.0/16 true Always Never false false all() Automatic`,
		"Node": `NAME
node1
NAME ASN IPV4 IPV6
node1 64513 10.0.0.1/24 fd00::1/64`,
		"Node without anything": `NAME
node2
NAME ASN IPV4 IPV6
node2 (64999)  `,
		"WorkloadEndpoint": `WORKLOAD NODE NETWORKS INTERFACE
nginx node1 192.168.1.5/32 calic440f455693
NAME WORKLOAD NODE NETWORKS INTERFACE PROFILES NATS
node1-k8s-nginx-eth0 nginx node1 192.168.1.5/32 calic440f455693 kns.default,ksa.default.default `,
		"Profile": `NAME
kns.default
NAME LABELS
kns.default pcns.projectcalico.org/name=default`,
		"BGPPeer": `NAME PEERIP NODE ASN
tor 10.0.0.254:179 rack == 'a' 64999
NAME PEERIP NODE ASN
tor 10.0.0.254:179 rack == 'a' 64999`,
		"BGPConfiguration": `NAME LOGSEVERITY MESHENABLED ASNUMBER
default Info true 64512
NAME LOGSEVERITY MESHENABLED ASNUMBER
default Info true 64512`,
		"FelixConfiguration": "NAME\ndefault\nNAME\ndefault",
		"ClusterInformation": `NAME CLUSTERGUID CLUSTERTYPE CALICOVERSION DATASTOREREADY
default 0123456789abcdef0123456789abcdef k8s,bgp v3.34.0 true
NAME CLUSTERGUID CLUSTERTYPE CALICOVERSION DATASTOREREADY
default 0123456789abcdef0123456789abcdef k8s,bgp v3.34.0 true`,
		"HostEndpoint": `NAME NODE
node1-eth0 node1
NAME NODE INTERFACE IPS PROFILES
node1-eth0 node1 eth0 10.0.0.1,fd00::1 `,
		"NetworkPolicy": `NAME TIER
allow-web default
NAME TIER ORDER SELECTOR
allow-web default 100 app == 'web'`,
		"GlobalNetworkPolicy": `NAME TIER
deny-all default
NAME TIER ORDER SELECTOR
deny-all default 2000 all()`,
		"GlobalNetworkPolicy of hosts": `NAME TIER
security.pre security
NAME TIER ORDER SELECTOR
security.pre security 0.5 role=='host'`,
		"StagedNetworkPolicy": `NAME TIER
s default
NAME TIER ORDER SELECTOR
s default <nil> all()`,
		"StagedGlobalNetworkPolicy": `NAME TIER
s default
NAME TIER ORDER SELECTOR
s default <nil> `,
		"StagedKubernetesNetworkPolicy": `NAME
k
NAME PODSELECTOR
k app=web,t in (a,b),!x`,
		"Tier": `NAME ORDER
security 500
NAME ORDER
security 500`,
		"Tier built in": `NAME ORDER
kube-baseline 1e+07
NAME ORDER
kube-baseline 1e+07`,
		"NetworkSet":       "NAME\ns1\nNAME NETS\ns1 1.2.3.0/24,2001:db8::/32",
		"GlobalNetworkSet": "NAME\ng1\nNAME NETS\ng1 1.2.3.0/24,2001:db8::1",
		"BGPFilter": `NAME NUMEXPORTV4 NUMIMPORTV4 NUMEXPORTV6 NUMIMPORTV6
f1 1 0 0 1
NAME NUMEXPORTV4 NUMIMPORTV4 NUMEXPORTV6 NUMIMPORTV6
f1 1 0 0 1`,
		"KubeControllersConfiguration": "NAME\ndefault\nNAME\ndefault",
		"CalicoNodeStatus": `NAME NODE
s1 node1
NAME NODE CLASSES
s1 node1 Agent,BGP,Routes`,
		"BlockAffinity": `NAME CIDR NODE
node1-10-65-79-0-26 10.65.79.0/26 node1
NAME CIDR NODE STATE
node1-10-65-79-0-26 10.65.79.0/26 node1 confirmed`,
		"IPAMConfiguration": `NAME STRICTAFFINITY AUTOALLOCATEBLOCKS
default true false
NAME STRICTAFFINITY AUTOALLOCATEBLOCKS MAXBLOCKSPERHOST
default true false 4`,
		"IPReservation": "NAME\nr1\nNAME CIDRS\nr1 192.168.1.0/30,fd00::1",
	}
	for _, g := range goldens() {
		if want[g.name] == "" {
			continue
		}
		o, err := DecodeStrict([]byte(g.stored))
		if err != nil {
			t.Fatal(err)
		}
		k, err := LookupKind(o.Type().Kind)
		if err != nil {
			t.Fatal(err)
		}
		if got := table(k, o, false) + "\n" + table(k, o, true); got != want[g.name] {
			t.Errorf("%s\n got %s\nwant %s", g.name, got, want[g.name])
		}
		delete(want, g.name)
	}
	if len(want) > 0 {
		t.Errorf("not compared: %v", want)
	}
}

func table(k Kind, o Object, wide bool) string {
	var head, row []string
	for _, c := range k.Columns {
		if wide && c.Wide || !wide && c.Narrow {
			head = append(head, c.Header)
			row = append(row, c.Value(o, PrintContext{ASNumber: 64999}))
		}
	}
	return strings.Join(head, " ") + "\n" + strings.Join(row, " ")
}

func TestPeerColumn(t *testing.T) {
	k := bgpPeerKind()
	for want, spec := range map[string]BGPPeerSpec{"n1": {Node: "n1"}, "(global)": {}, "all()": {NodeSelector: "all()"}} {
		if got := k.Columns[2].Value(&BGPPeer{Spec: spec}, PrintContext{}); got != want {
			t.Errorf("NODE %s, want %s", got, want)
		}
	}
}

func TestEndpointName(t *testing.T) {
	for _, tt := range []struct {
		spec WorkloadEndpointSpec
		name string
	}{
		{WorkloadEndpointSpec{Node: "node1", Orchestrator: "k8s", Pod: "nginx", Endpoint: "eth0", ContainerID: "c"}, "node1-k8s-nginx-eth0"},
		{WorkloadEndpointSpec{Node: "my-node", Orchestrator: "k8s", Pod: "a--b", Endpoint: "eth0"}, "my--node-k8s-a----b-eth0"},
		{WorkloadEndpointSpec{Node: "n", Orchestrator: "cni", ContainerID: "c1", Endpoint: "eth1", Pod: "p"}, "n-cni-c1-eth1"},
		{WorkloadEndpointSpec{Node: "n", Orchestrator: "cni", ContainerID: "My_c1.", Endpoint: "Net_1"}, "n-cni-my--c1----e850553465-net--1--3a8ee10a0c"},
		{WorkloadEndpointSpec{Node: "n", Orchestrator: "libnetwork", Workload: "other", Endpoint: "0123"}, "n-libnetwork-libnetwork-0123"},
		{WorkloadEndpointSpec{Node: "n", Orchestrator: "openstack", Workload: "w", Endpoint: "e"}, "n-openstack-w-e"},
	} {
		got, err := tt.spec.EndpointName()
		if err != nil || got != tt.name {
			t.Errorf("%+v is named %s, %v; want %s", tt.spec, got, err, tt.name)
		}
	}
	for _, bad := range []WorkloadEndpointSpec{{}, {Node: "n", Orchestrator: "cni", Endpoint: "e"}, {Node: "-n", Orchestrator: "cni", ContainerID: "c", Endpoint: "e"}} {
		if got, err := bad.EndpointName(); err == nil {
			t.Errorf("%+v is named %s", bad, got)
		}
	}
	w := WorkloadEndpoint{Spec: WorkloadEndpointSpec{Orchestrator: "k8s", Pod: "nginx"}}
	w.Namespace = "default"
	if got := w.WorkloadID(); got != "default/nginx" {
		t.Errorf("workload ID %s", got)
	}
}

// The four parts of a name can be told apart again.
func TestEndpointNameRoundTrip(t *testing.T) {
	part := rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,4}[a-z0-9])?`)
	rapid.Check(t, func(t *rapid.T) {
		s := WorkloadEndpointSpec{Node: part.Draw(t, "node"), Orchestrator: "cni", ContainerID: part.Draw(t, "id"), Endpoint: part.Draw(t, "endpoint")}
		name, err := s.EndpointName()
		if err != nil {
			t.Fatal(err)
		}
		got, ok := SplitEndpointName(name)
		if want := [4]string{s.Node, "cni", s.ContainerID, s.Endpoint}; !ok || got != want {
			t.Fatalf("%s splits into %q, want %q", name, got, want)
		}
	})
	for _, bad := range []string{"", "a", "a-b-c", "a-b-c-d-e"} {
		if parts, ok := SplitEndpointName(bad); ok {
			t.Errorf("%q splits into %q", bad, parts)
		}
	}
}

// Whatever container ID CNI allows, the endpoint has a name, and each its own.
func TestEndpointNameOfAnyContainer(t *testing.T) {
	id := rapid.StringMatching(`[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,150}`)
	rapid.Check(t, func(t *rapid.T) {
		names := map[string]string{}
		for _, c := range []string{id.Draw(t, "id"), id.Draw(t, "other")} {
			w := &WorkloadEndpoint{Spec: WorkloadEndpointSpec{
				Node: "node1", Orchestrator: "cni", ContainerID: c, Endpoint: "eth0", InterfaceName: "cali1", IPNetworks: []string{"10.0.0.1/32"},
			}}
			w.Default()
			if err := w.Validate(); err != nil {
				t.Fatal(err)
			}
			if other, ok := names[w.Name]; ok && other != c {
				t.Fatalf("%q and %q are both %s", other, c, w.Name)
			}
			names[w.Name] = c
		}
	})
}

func TestScalars(t *testing.T) {
	for in, want := range map[string]string{`"90s"`: `"1m30s"`, `"0"`: `"0s"`, `"1h"`: `"1h0m0s"`, `"1.5s"`: `"1.5s"`} {
		var d Duration
		if err := json.Unmarshal([]byte(in), &d); err != nil {
			t.Errorf("duration %s: %v", in, err)
		}
		if got, err := json.Marshal(d); err != nil || string(got) != want {
			t.Errorf("duration %s is written %s, %v", in, got, err)
		}
	}
	for in, want := range map[string]string{`80`: `80`, `"80"`: `"80"`, `"8080:8090"`: `"8080:8090"`, `"http"`: `"http"`, `-1`: `-1`} {
		var v IntOrString
		if err := json.Unmarshal([]byte(in), &v); err != nil {
			t.Errorf("int or string %s: %v", in, err)
		}
		if got, err := json.Marshal(v); err != nil || string(got) != want {
			t.Errorf("int or string %s is written %s, %v", in, got, err)
		}
	}
	for in, want := range map[string]ASNumber{`64512`: 64512, `"64512"`: 64512, `"1.0"`: 65536, `4294967295`: 4294967295, `"65535.65535"`: 4294967295} {
		var a ASNumber
		if err := json.Unmarshal([]byte(in), &a); err != nil || a != want {
			t.Errorf("AS number %s is %d, %v", in, a, err)
		}
	}
	for _, bad := range []string{`-1`, `4294967296`, `"1.65536"`, `"a"`, `1.5`, `"1.2.3"`, `null1`} {
		var a ASNumber
		if err := json.Unmarshal([]byte(bad), &a); err == nil {
			t.Errorf("AS number %s is %d", bad, a)
		}
	}
}

func TestParsePeerIP(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1": "10.0.0.1:0", "10.0.0.1:1179": "10.0.0.1:1179", "fd00::1": "[fd00::1]:0", "[fd00::1]:1179": "[fd00::1]:1179",
		"fe80::1%eth0": "[fe80::1%eth0]:0", "[fe80::1%eth0]:179": "[fe80::1%eth0]:179", "fe80::1%br-0.100": "[fe80::1%br-0.100]:0",
	} {
		got, err := ParsePeerIP(in)
		if err != nil || got.String() != want {
			t.Errorf("ParsePeerIP(%s) = %s, %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "10.0.0", "10.0.0.1:0", "10.0.0.1:", "fe80::1", "[fe80::1]:179", "fd00::1%eth0", "fe80::1%", "fe80::1%a/b", "fe80::1%sixteencharacters", "fe80::1%a b", "::ffff:10.0.0.1", "host:179"} {
		if got, err := ParsePeerIP(bad); err == nil {
			t.Errorf("ParsePeerIP(%q) = %s", bad, got)
		}
	}
}

func TestNodeBGPAddr(t *testing.T) {
	n := &Node{Spec: NodeSpec{BGP: &NodeBGPSpec{IPv4Address: "10.0.0.1/24", IPv6Address: "fd00::1"}}}
	for family, want := range map[int]string{4: "10.0.0.1/24", 6: "fd00::1/128"} {
		if p, ok := n.BGPAddr(family); !ok || p != netip.MustParsePrefix(want) {
			t.Errorf("IPv%d address %s, %v", family, p, ok)
		}
	}
	if p, ok := (&Node{}).BGPAddr(4); ok {
		t.Errorf("a node without BGP has address %s", p)
	}
	if p, ok := (&Node{Spec: NodeSpec{BGP: &NodeBGPSpec{}}}).BGPAddr(6); ok {
		t.Errorf("a node without address has address %s", p)
	}
}

func TestPoolAllocatable(t *testing.T) {
	p := &IPPool{}
	if !p.Allocatable() {
		t.Error("a plain pool gives out no addresses")
	}
	p.Status = &IPPoolStatus{Conditions: []Condition{{Type: "Allocatable", Status: "False"}}}
	if p.Allocatable() {
		t.Error("a pool that a controller closed gives out addresses")
	}
	p = &IPPool{Spec: IPPoolSpec{Disabled: true}}
	if p.Allocatable() {
		t.Error("a disabled pool gives out addresses")
	}
}

// Pool rules against plain arithmetic.
func TestPoolCIDRProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")
		bits := rapid.IntRange(1, 32).Draw(t, "bits")
		block := rapid.IntRange(16, 34).Draw(t, "block")
		addr, _ := netip.AddrFromSlice(raw)
		cidr := netip.PrefixFrom(addr, bits)
		p := &IPPool{Spec: IPPoolSpec{CIDR: cidr.String(), BlockSize: block}}
		p.Name = "p"
		p.Default()
		err := p.Validate()
		masked := cidr == cidr.Masked()
		linkLocal := cidr.Overlaps(netip.MustParsePrefix("169.254.0.0/16"))
		good := masked && !linkLocal && block >= 20 && block <= 32 && block >= bits
		if good != (err == nil) {
			t.Fatalf("%s with blocks /%d: %v", cidr, block, err)
		}
	})
}

func TestFieldErrors(t *testing.T) {
	var e FieldErrors
	if e.Err() != nil {
		t.Error("no error is an error")
	}
	e.Add("IPPool.Spec.CIDR", "x", "why")
	if got, want := e.Err().Error(), "error with field IPPool.Spec.CIDR = 'x' (why)"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	e.Add("A", "b", "c")
	if got, want := fmt.Sprint(e.Err()), "error with the following fields:\n-  IPPool.Spec.CIDR = 'x' (why)\n-  A = 'b' (c)"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
