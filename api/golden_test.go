package api

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

// golden is one object per kind: what a user writes, and the exact bytes that
// Calico stores for it (spec/calico.md §1.4; uid and time as given).
type golden struct{ name, typed, stored string }

func goldens() []golden {
	return []golden{
		{
			"IPPool",
			`{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"default-ipv4-ippool","uid":"5f4c","creationTimestamp":"2026-11-21T00:00:00Z"},"spec":{"cidr":"192.168.0.0/16","ipipMode":"Always","natOutgoing":true}}`,
			`{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"default-ipv4-ippool","uid":"5f4c","creationTimestamp":"2026-11-21T00:00:00Z"},"spec":{"cidr":"192.168.0.0/16","vxlanMode":"Never","ipipMode":"Always","natOutgoing":true,"blockSize":26,"nodeSelector":"all()","allowedUses":["Workload","Tunnel"],"assignmentMode":"Automatic"}}`,
		},
		{
			"IPPool of IPv6",
			`{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"p6"},"spec":{"cidr":"FD80:24e2:F998:72d6:0:0::/64","nodeSelector":"rack=='a'"}}`,
			`{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"p6"},"spec":{"cidr":"fd80:24e2:f998:72d6::/64","vxlanMode":"Never","ipipMode":"Never","blockSize":122,"nodeSelector":"rack=='a'","allowedUses":["Workload","Tunnel"],"assignmentMode":"Automatic"}}`,
		},
		{
			"Node",
			`{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"node1"},"spec":{"bgp":{"asNumber":"0.64513","ipv4Address":"10.0.0.1/24","ipv6Address":"fd00::1/64","ipv4IPIPTunnelAddr":"192.168.1.1","routeReflectorClusterID":"244.0.0.1"},"ipv4VXLANTunnelAddr":"192.168.1.2","vxlanTunnelMACAddr":"66:f9:37:c3:7e:94","ipv6VXLANTunnelAddr":"fd00:1::1","vxlanTunnelMACAddrV6":"66:0f:35:f2:60:df","wireguard":{"interfaceIPv4Address":"192.168.1.3"},"orchRefs":[{"nodeName":"node1","orchestrator":"k8s"}],"addresses":[{"address":"10.0.0.1/24","type":"CalicoNodeIP"},{"address":"10.0.0.1","type":"InternalIP"}],"interfaces":[{"name":"eth0","addresses":["10.0.0.1"]}]},"status":{"wireguardPublicKey":"key","podCIDRs":["10.1.0.0/24"]}}`,
			`{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"node1"},"spec":{"bgp":{"asNumber":64513,"ipv4Address":"10.0.0.1/24","ipv6Address":"fd00::1/64","ipv4IPIPTunnelAddr":"192.168.1.1","routeReflectorClusterID":"244.0.0.1"},"ipv4VXLANTunnelAddr":"192.168.1.2","vxlanTunnelMACAddr":"66:f9:37:c3:7e:94","ipv6VXLANTunnelAddr":"fd00:1::1","vxlanTunnelMACAddrV6":"66:0f:35:f2:60:df","wireguard":{"interfaceIPv4Address":"192.168.1.3"},"orchRefs":[{"nodeName":"node1","orchestrator":"k8s"}],"addresses":[{"address":"10.0.0.1/24","type":"CalicoNodeIP"},{"address":"10.0.0.1","type":"InternalIP"}],"interfaces":[{"name":"eth0","addresses":["10.0.0.1"]}]},"status":{"wireguardPublicKey":"key","podCIDRs":["10.1.0.0/24"]}}`,
		},
		{
			"Node without anything",
			`{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"node2"}}`,
			`{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"node2"},"spec":{},"status":{}}`,
		},
		{
			"WorkloadEndpoint",
			`{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"namespace":"default","labels":{"app":"nginx","projectcalico.org/serviceaccount":"default"}},"spec":{"orchestrator":"k8s","node":"node1","containerID":"c1","pod":"nginx","endpoint":"eth0","serviceAccountName":"default","ipNetworks":["192.168.1.5/32"],"profiles":["kns.default","ksa.default.default"],"interfaceName":"calic440f455693","mac":"aa:bb:cc:dd:ee:ff","ports":[{"name":"http","protocol":"TCP","port":80,"hostPort":0,"hostIP":""}]}}`,
			`{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"node1-k8s-nginx-eth0","namespace":"default","labels":{"app":"nginx","projectcalico.org/namespace":"default","projectcalico.org/orchestrator":"k8s","projectcalico.org/serviceaccount":"default"}},"spec":{"orchestrator":"k8s","node":"node1","containerID":"c1","pod":"nginx","endpoint":"eth0","serviceAccountName":"default","ipNetworks":["192.168.1.5/32"],"profiles":["kns.default","ksa.default.default"],"interfaceName":"calic440f455693","mac":"aa:bb:cc:dd:ee:ff","ports":[{"name":"http","protocol":"TCP","port":80,"hostPort":0,"hostIP":""}]}}`,
		},
		{
			"Profile",
			`{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"kns.default"},"spec":{"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}],"labelsToApply":{"pcns.projectcalico.org/name":"default"}}}`,
			`{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"kns.default"},"spec":{"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}],"labelsToApply":{"pcns.projectcalico.org/name":"default"}}}`,
		},
		{
			"Profile with rules",
			`{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"rules"},"spec":{"ingress":[{"action":"Allow","protocol":"TCP","source":{"selector":"app == 'fe'","namespaceSelector":"all()"},"destination":{"ports":[80,"8080:8090","http"]}},{"action":"Deny","source":{"nets":[]}},{"action":"Log","protocol":17,"destination":{"notPorts":[]}}],"egress":[]}}`,
			`{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"rules"},"spec":{"ingress":[{"action":"Allow","protocol":"TCP","source":{"selector":"app == 'fe'","namespaceSelector":"all()"},"destination":{"ports":[80,"8080:8090","http"]}},{"action":"Deny","source":{"nets":[]}},{"action":"Log","protocol":17,"destination":{"notPorts":[]}}],"egress":[]}}`,
		},
		{
			"BGPPeer",
			`{"kind":"BGPPeer","apiVersion":"projectcalico.org/v3","metadata":{"name":"tor"},"spec":{"node":"","nodeSelector":"rack == 'a'","peerIP":"10.0.0.254:179","asNumber":64999,"localASNumber":64512,"peerSelector":"","nextHopMode":"Self","password":{"secretKeyRef":{"name":"s","key":"k"}},"sourceAddress":"UseNodeIP","maxRestartTime":"90s","keepaliveTime":"10s","numAllowedLocalASNumbers":1,"ttlSecurity":2,"reachableBy":"10.0.0.253","filters":["f1"],"reversePeering":"Auto"}}`,
			`{"kind":"BGPPeer","apiVersion":"projectcalico.org/v3","metadata":{"name":"tor"},"spec":{"nodeSelector":"rack == 'a'","peerIP":"10.0.0.254:179","asNumber":64999,"localASNumber":64512,"nextHopMode":"Self","password":{"secretKeyRef":{"name":"s","key":"k"}},"sourceAddress":"UseNodeIP","maxRestartTime":"1m30s","keepaliveTime":"10s","numAllowedLocalASNumbers":1,"ttlSecurity":2,"reachableBy":"10.0.0.253","filters":["f1"],"reversePeering":"Auto"}}`,
		},
		{
			"BGPConfiguration",
			`{"kind":"BGPConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"nodeToNodeMeshEnabled":true,"asNumber":64512,"listenPort":179,"bindMode":"None","serviceClusterIPs":[{"cidr":"10.96.0.0/12"}],"communities":[{"name":"c1","value":"64512:100"}],"prefixAdvertisements":[{"cidr":"192.168.0.0/16","communities":["c1","64512:200"]}],"nodeMeshMaxRestartTime":"120s","ignoredInterfaces":["dummy*"],"programClusterRoutes":"EnabledNoEncapOnly"}}`,
			`{"kind":"BGPConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"logSeverityScreen":"Info","nodeToNodeMeshEnabled":true,"asNumber":64512,"serviceClusterIPs":[{"cidr":"10.96.0.0/12"}],"serviceLoadBalancerAggregation":"Enabled","communities":[{"name":"c1","value":"64512:100"}],"prefixAdvertisements":[{"cidr":"192.168.0.0/16","communities":["c1","64512:200"]}],"listenPort":179,"nodeMeshMaxRestartTime":"2m0s","bindMode":"None","ignoredInterfaces":["dummy*"],"programClusterRoutes":"EnabledNoEncapOnly"}}`,
		},
		{
			"FelixConfiguration",
			`{"kind":"FelixConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"logSeverityScreen":"Info","reportingInterval":"0s","failsafeInboundHostPorts":[]}}`,
			`{"kind":"FelixConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"logSeverityScreen":"Info","reportingInterval":"0s","failsafeInboundHostPorts":[],"nftablesMode":"Auto","nftablesFlowTableOffload":"Disabled","bpfLogLevel":"","bpfConnectTimeLoadBalancing":"TCP","bpfHostNetworkedNATWithoutCTLB":"Enabled","floatingIPs":"Disabled"}}`,
		},
		{
			"ClusterInformation",
			`{"kind":"ClusterInformation","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"clusterGUID":"0123456789abcdef0123456789abcdef","clusterType":"k8s,bgp","calicoVersion":"v3.34.0","datastoreReady":true,"variant":"Calico"}}`,
			`{"kind":"ClusterInformation","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"clusterGUID":"0123456789abcdef0123456789abcdef","clusterType":"k8s,bgp","calicoVersion":"v3.34.0","datastoreReady":true,"variant":"Calico"}}`,
		},
		{
			"IPReservation",
			`{"kind":"IPReservation","apiVersion":"projectcalico.org/v3","metadata":{"name":"r1"},"spec":{"reservedCIDRs":["192.168.1.0/30","FD00::1"]}}`,
			`{"kind":"IPReservation","apiVersion":"projectcalico.org/v3","metadata":{"name":"r1"},"spec":{"reservedCIDRs":["192.168.1.0/30","fd00::1"]}}`,
		},
		{
			"HostEndpoint",
			`{"kind":"HostEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"node1-eth0","labels":{"role":"host"}},"spec":{"node":"node1","interfaceName":"eth0","expectedIPs":["10.0.0.1","FD00::1"],"ports":[{"name":"ssh","protocol":"TCP","port":22}]}}`,
			`{"kind":"HostEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"node1-eth0","labels":{"role":"host"}},"spec":{"node":"node1","interfaceName":"eth0","expectedIPs":["10.0.0.1","fd00::1"],"ports":[{"name":"ssh","protocol":"TCP","port":22}]}}`,
		},
		{
			"NetworkPolicy",
			`{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"allow-web","namespace":"default"},"spec":{"tier":"default","order":100,"selector":"app == 'web'","serviceAccountSelector":"","types":["Ingress"],"ingress":[{"action":"Allow","protocol":"TCP","source":{"selector":"app == 'fe'","namespaceSelector":"all()"},"destination":{"ports":[80,"8080:8090","http"]}}]}}`,
			`{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"allow-web","namespace":"default","labels":{"projectcalico.org/tier":"default"}},"spec":{"tier":"default","order":100,"ingress":[{"action":"Allow","protocol":"TCP","source":{"selector":"app == 'fe'","namespaceSelector":"all()"},"destination":{"ports":[80,"8080:8090","http"]}}],"selector":"app == 'web'","types":["Ingress"]}}`,
		},
		{
			"GlobalNetworkPolicy",
			`{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"deny-all"},"spec":{"order":2000,"selector":"all()","namespaceSelector":"","doNotTrack":false,"preDNAT":false,"applyOnForward":false,"types":["Ingress","Egress"],"performanceHints":["AssumeNeededOnEveryNode"]}}`,
			`{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"deny-all","labels":{"projectcalico.org/tier":"default"}},"spec":{"tier":"default","order":2000,"selector":"all()","types":["Ingress","Egress"],"performanceHints":["AssumeNeededOnEveryNode"]}}`,
		},
		{
			"GlobalNetworkPolicy of hosts",
			`{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"security.pre"},"spec":{"tier":"security","order":0.5,"selector":"role=='host'","preDNAT":true,"applyOnForward":true,"serviceAccountSelector":"has(a)","namespaceSelector":"has(b)","ingress":[{"action":"Pass","source":{"nets":["10.0.0.1/8"]}}]}}`,
			`{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"security.pre","labels":{"projectcalico.org/tier":"security"}},"spec":{"tier":"security","order":0.5,"ingress":[{"action":"Pass","source":{"nets":["10.0.0.0/8"]}}],"selector":"role=='host'","types":["Ingress"],"preDNAT":true,"applyOnForward":true,"serviceAccountSelector":"has(a)","namespaceSelector":"has(b)"}}`,
		},
		{
			"StagedNetworkPolicy",
			`{"kind":"StagedNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"s","namespace":"default"},"spec":{"stagedAction":"Set","selector":"all()","egress":[{"action":"Log"}]}}`,
			`{"kind":"StagedNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"s","namespace":"default","labels":{"projectcalico.org/tier":"default"}},"spec":{"stagedAction":"Set","tier":"default","egress":[{"action":"Log"}],"selector":"all()","types":["Egress"]}}`,
		},
		{
			"StagedNetworkPolicy to delete",
			`{"kind":"StagedNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"s","namespace":"default"},"spec":{"stagedAction":"Delete"}}`,
			`{"kind":"StagedNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"s","namespace":"default","labels":{"projectcalico.org/tier":"default"}},"spec":{"stagedAction":"Delete","tier":"default"}}`,
		},
		{
			"StagedGlobalNetworkPolicy",
			`{"kind":"StagedGlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"s"},"spec":{"doNotTrack":true,"applyOnForward":true,"ingress":[{"action":"Deny"}],"egress":[{"action":"Deny"}]}}`,
			`{"kind":"StagedGlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"s","labels":{"projectcalico.org/tier":"default"}},"spec":{"tier":"default","ingress":[{"action":"Deny"}],"egress":[{"action":"Deny"}],"types":["Ingress","Egress"],"doNotTrack":true,"applyOnForward":true}}`,
		},
		{
			"StagedKubernetesNetworkPolicy",
			`{"kind":"StagedKubernetesNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"k","namespace":"default"},"spec":{"podSelector":{"matchLabels":{"app":"web"},"matchExpressions":[{"key":"t","operator":"In","values":["a","b"]},{"key":"x","operator":"DoesNotExist"}]},"ingress":[{"ports":[{"protocol":"TCP","port":80,"endPort":90},{"port":"http"}],"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}},{"podSelector":{},"namespaceSelector":{}}]}],"egress":[{}]}}`,
			`{"kind":"StagedKubernetesNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"k","namespace":"default"},"spec":{"podSelector":{"matchLabels":{"app":"web"},"matchExpressions":[{"key":"t","operator":"In","values":["a","b"]},{"key":"x","operator":"DoesNotExist"}]},"ingress":[{"ports":[{"protocol":"TCP","port":80,"endPort":90},{"port":"http"}],"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}},{"podSelector":{},"namespaceSelector":{}}]}],"egress":[{}],"policyTypes":["Ingress","Egress"]}}`,
		},
		{
			"Tier",
			`{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"security"},"spec":{"order":500}}`,
			`{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"security"},"spec":{"order":500,"defaultAction":"Deny"},"status":{}}`,
		},
		{
			"Tier built in",
			`{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"kube-baseline"},"spec":{}}`,
			`{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"kube-baseline"},"spec":{"order":10000000,"defaultAction":"Pass"},"status":{}}`,
		},
		{
			"NetworkSet",
			`{"kind":"NetworkSet","apiVersion":"projectcalico.org/v3","metadata":{"name":"s1","namespace":"default","labels":{"k":"v"}},"spec":{"nets":["1.2.3.0/24","2001:DB8::/32"]}}`,
			`{"kind":"NetworkSet","apiVersion":"projectcalico.org/v3","metadata":{"name":"s1","namespace":"default","labels":{"k":"v"}},"spec":{"nets":["1.2.3.0/24","2001:db8::/32"]}}`,
		},
		{
			"GlobalNetworkSet",
			`{"kind":"GlobalNetworkSet","apiVersion":"projectcalico.org/v3","metadata":{"name":"g1","labels":{"k":"v"}},"spec":{"nets":["1.2.3.4/24","2001:db8::1"]}}`,
			`{"kind":"GlobalNetworkSet","apiVersion":"projectcalico.org/v3","metadata":{"name":"g1","labels":{"k":"v"}},"spec":{"nets":["1.2.3.0/24","2001:db8::1"]}}`,
		},
		{
			"BGPFilter",
			`{"kind":"BGPFilter","apiVersion":"projectcalico.org/v3","metadata":{"name":"f1"},"spec":{"exportV4":[{"action":"Accept","cidr":"10.0.0.0/8","matchOperator":"In","prefixLength":{"min":16,"max":24},"source":"RemotePeers","interface":"eth*","peerType":"eBGP","communities":{"values":["65000:1"]},"asPathPrefix":[65001],"priority":512,"operations":[{"addCommunity":{"value":"65000:2"}},{"prependASPath":{"prefix":[65000]}},{"setPriority":{"value":100}}]}],"importV6":[{"action":"Reject","cidr":"FD00::/8","matchOperator":"NotIn"}]}}`,
			`{"kind":"BGPFilter","apiVersion":"projectcalico.org/v3","metadata":{"name":"f1"},"spec":{"exportV4":[{"cidr":"10.0.0.0/8","prefixLength":{"min":16,"max":24},"source":"RemotePeers","interface":"eth*","matchOperator":"In","peerType":"eBGP","communities":{"values":["65000:1"]},"asPathPrefix":[65001],"priority":512,"action":"Accept","operations":[{"addCommunity":{"value":"65000:2"}},{"prependASPath":{"prefix":[65000]}},{"setPriority":{"value":100}}]}],"importV6":[{"cidr":"fd00::/8","matchOperator":"NotIn","action":"Reject"}]}}`,
		},
		{
			"KubeControllersConfiguration",
			`{"kind":"KubeControllersConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"healthChecks":"Enabled","prometheusMetricsPort":9094,"etcdV3CompactionPeriod":"10m","controllers":{"node":{"reconcilerPeriod":"5m","syncLabels":"Enabled","leakGracePeriod":"15m","hostEndpoint":{"autoCreate":"Disabled","createDefaultHostEndpoint":"Enabled","templates":[{"generateName":"t","nodeSelector":"all()","interfaceCIDRs":["10.0.0.0/8"],"interfacePattern":"eth.*","labels":{"a":"b"}}]}},"policy":{},"workloadEndpoint":{},"serviceAccount":{},"namespace":{},"loadBalancer":{"assignIPs":"AllServices"}}}}`,
			`{"kind":"KubeControllersConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"healthChecks":"Enabled","etcdV3CompactionPeriod":"10m0s","prometheusMetricsPort":9094,"controllers":{"node":{"reconcilerPeriod":"5m0s","syncLabels":"Enabled","hostEndpoint":{"autoCreate":"Disabled","createDefaultHostEndpoint":"Enabled","templates":[{"generateName":"t","interfaceCIDRs":["10.0.0.0/8"],"interfacePattern":"eth.*","labels":{"a":"b"},"nodeSelector":"all()"}]},"leakGracePeriod":"15m0s"},"policy":{},"workloadEndpoint":{},"serviceAccount":{},"namespace":{},"loadBalancer":{"assignIPs":"AllServices"}}}}`,
		},
		{
			"CalicoNodeStatus",
			`{"kind":"CalicoNodeStatus","apiVersion":"projectcalico.org/v3","metadata":{"name":"s1"},"spec":{"node":"node1","classes":["Agent","BGP","Routes"],"updatePeriodSeconds":10}}`,
			`{"kind":"CalicoNodeStatus","apiVersion":"projectcalico.org/v3","metadata":{"name":"s1"},"spec":{"node":"node1","classes":["Agent","BGP","Routes"],"updatePeriodSeconds":10},"status":{"lastUpdated":null,"agent":{"birdV4":{},"birdV6":{}},"bgp":{"numberEstablishedV4":0,"numberNotEstablishedV4":0,"numberEstablishedV6":0,"numberNotEstablishedV6":0},"routes":{}}}`,
		},
		{
			"BlockAffinity",
			`{"kind":"BlockAffinity","apiVersion":"projectcalico.org/v3","metadata":{"name":"node1-10-65-79-0-26"},"spec":{"state":"confirmed","node":"node1","type":"host","cidr":"10.65.79.0/26","deleted":"false"}}`,
			`{"kind":"BlockAffinity","apiVersion":"projectcalico.org/v3","metadata":{"name":"node1-10-65-79-0-26"},"spec":{"state":"confirmed","node":"node1","type":"host","cidr":"10.65.79.0/26"}}`,
		},
		{
			"IPAMConfiguration",
			`{"kind":"IPAMConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"strictAffinity":true,"maxBlocksPerHost":4,"autoAllocateBlocks":false}}`,
			`{"kind":"IPAMConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"strictAffinity":true,"maxBlocksPerHost":4,"autoAllocateBlocks":false}}`,
		},
	}
}

func TestGolden(t *testing.T) {
	covered := map[string]bool{}
	for _, g := range goldens() {
		t.Run(g.name, func(t *testing.T) {
			o, err := DecodeStrict([]byte(g.typed))
			if err != nil {
				t.Fatal(err)
			}
			covered[o.Type().Kind] = true
			o.Default()
			if err := o.Validate(); err != nil {
				t.Fatal(err)
			}
			got, err := Encode(o)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != g.stored {
				t.Errorf("stored form\n got %s\nwant %s", got, g.stored)
			}
			k, err := LookupKind(o.Type().Kind)
			if err != nil {
				t.Fatal(err)
			}
			back, unknown, err := Decode(k, got)
			if err != nil || len(unknown) != 0 {
				t.Fatalf("read back: %v, unknown %v", err, unknown)
			}
			if !reflect.DeepEqual(o, back) {
				t.Errorf("read back\n got %+v\nwant %+v", back, o)
			}
			back.Default()
			again, err := Encode(back)
			if err != nil || string(again) != g.stored {
				t.Errorf("defaults are not stable: %s, %v", again, err)
			}
		})
	}
	for _, k := range Kinds() {
		if !covered[k.Name] {
			t.Errorf("no golden for %s", k.Name)
		}
	}
}

// A time is stored in whole seconds of UTC and the object is not changed by that.
func TestEncodeTime(t *testing.T) {
	n := &Node{}
	n.Name = "n"
	n.Default()
	now := time.Date(2026, 11, 21, 3, 4, 5, 678, time.FixedZone("x", 3600))
	n.CreationTimestamp, n.DeletionTimestamp = &now, &now
	b, err := Encode(n)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), `"creationTimestamp":"2026-11-21T02:04:05Z","deletionTimestamp":"2026-11-21T02:04:05Z"`) {
		t.Errorf("stored %s", b)
	}
	if n.CreationTimestamp != &now || n.CreationTimestamp.Nanosecond() != 678 {
		t.Error("Encode changed the object")
	}
}

// The parameters that must be honoured keep the names that Calico gives them
// (spec/calico.md §5.7).
func TestFelixNames(t *testing.T) {
	want := strings.Fields(`logSeverityScreen logFilePath healthEnabled healthHost healthPort healthTimeoutOverrides
		prometheusMetricsEnabled prometheusMetricsHost prometheusMetricsPort debugPort featureDetectOverride
		interfacePrefix interfaceExclude defaultEndpointToHostAction workloadSourceSpoofing floatingIPs
		failsafeInboundHostPorts failsafeOutboundHostPorts iptablesBackend nftablesMode chainInsertMode
		iptablesFilterAllowAction iptablesMangleAllowAction iptablesFilterDenyAction iptablesMarkMask
		routeRefreshInterval interfaceRefreshInterval iptablesRefreshInterval ipsetsRefreshInterval maxIpsetSize
		logPrefix disableConntrackInvalidCheck deviceRouteProtocol removeExternalRoutes routeSource routeTableRanges
		routeSyncDisabled programClusterRoutes ipForwarding ipipEnabled ipipMTU vxlanEnabled vxlanPort vxlanVNI
		vxlanMTU allowVXLANPacketsFromWorkloads allowIPIPPacketsFromWorkloads externalNodesList mtuIfacePattern
		natPortRange natOutgoingAddress natOutgoingExclusions serviceLoopPrevention kubeNodePortRanges
		endpointReportingEnabled endpointReportingDelay reportingInterval endpointStatusPathPrefix
		deviceRouteSourceAddress logActionRateLimit iptablesNATOutgoingInterfaceFilter nodeSelector
		wireguardKeepAlive ipv6Support ipv4NormalRoutePriority`)
	fields := fieldsOf(reflect.TypeFor[FelixConfigurationSpec]())
	seen := map[string]bool{}
	for _, f := range fields {
		if seen[f.name] {
			t.Errorf("%s is there twice", f.name)
		}
		seen[f.name] = true
	}
	for _, name := range want {
		if !seen[name] {
			t.Errorf("%s is missing", name)
		}
	}
	if len(fields) < 180 {
		t.Errorf("%d parameters, Calico has over 180", len(fields))
	}
}

// Every field of every kind survives: an object with each field set to
// something is written and read back unchanged.
func TestEveryFieldSurvives(t *testing.T) {
	for _, k := range Kinds() {
		o := k.New()
		fill(reflect.ValueOf(o).Elem(), 0)
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatalf("%s: %v", k.Name, err)
		}
		back, unknown, err := Decode(k, b)
		if err != nil || len(unknown) > 0 {
			t.Fatalf("%s: %v, unknown %v", k.Name, err, unknown)
		}
		if !reflect.DeepEqual(o, back) {
			t.Errorf("%s changes:\n got %+v\nwant %+v", k.Name, back, o)
		}
		again, err := json.Marshal(back)
		if err != nil || string(again) != string(b) {
			t.Errorf("%s is written differently the second time:\n%s\n%s", k.Name, b, again)
		}
	}
}

// fill sets every field to a value that is not zero.
func fill(v reflect.Value, depth int) {
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)))
		return
	case IntOrString:
		v.Set(reflect.ValueOf(FromText("http")))
		return
	case StoredBool:
		v.Set(reflect.ValueOf(StoredBool{On: true}))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), depth+1)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), depth)
		fill(v.Index(1), depth)
	case reflect.Map:
		e := reflect.New(v.Type().Elem()).Elem()
		fill(e, depth)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key"), e)
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint16, reflect.Uint32:
		v.SetUint(9)
	case reflect.Float64:
		v.SetFloat(2.5)
	default:
		panic("no value for " + v.Type().String())
	}
}

// Every parameter can be asked whether it is served, whatever it holds.
func TestUnservedKnowsEveryParameter(t *testing.T) {
	f := &FelixConfiguration{}
	if got := f.Unserved(); len(got) != 0 {
		t.Errorf("nothing set, but %v", got)
	}
	fill(reflect.ValueOf(f).Elem(), 0)
	if got, all := f.Unserved(), fieldsOf(reflect.TypeFor[FelixConfigurationSpec]()); len(got) != len(all)-len(servedParameters()) {
		t.Errorf("%d of %d parameters are not served", len(got), len(all))
	}
	for _, name := range servedParameters() {
		if _, ok := lookup(fieldsOf(reflect.TypeFor[FelixConfigurationSpec]()), name); !ok {
			t.Errorf("%s is served but is no parameter", name)
		}
	}
}
