package api

import (
	"crypto/sha1" //nolint:gosec // names, not secrets
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
)

// WorkloadEndpoint is one interface of one workload (container, pod).
type WorkloadEndpoint struct {
	Resource
	Spec WorkloadEndpointSpec `json:"spec"`
}

// WorkloadEndpointSpec is the specification (spec/calico.md §1.4, §1.5).
type WorkloadEndpointSpec struct {
	Orchestrator               string         `json:"orchestrator,omitempty"`               // "k8s", "cni", "libnetwork", other
	Workload                   string         `json:"workload,omitempty"`                   // name in other orchestrators
	Node                       string         `json:"node,omitempty"`                       // where it runs
	ContainerID                string         `json:"containerID,omitempty"`                // of the runtime
	Pod                        string         `json:"pod,omitempty"`                        // in Kubernetes
	Endpoint                   string         `json:"endpoint,omitempty"`                   // interface name inside the workload
	ServiceAccountName         string         `json:"serviceAccountName,omitempty"`         // in Kubernetes
	IPNetworks                 []string       `json:"ipNetworks,omitempty"`                 // "192.168.1.5/32"
	IPNATs                     []IPNAT        `json:"ipNATs,omitempty"`                     // floating addresses
	IPv4Gateway                string         `json:"ipv4Gateway,omitempty"`                // of its default route
	IPv6Gateway                string         `json:"ipv6Gateway,omitempty"`                // of its default route
	Profiles                   []string       `json:"profiles,omitempty"`                   // in order
	InterfaceName              string         `json:"interfaceName,omitempty"`              // host side
	MAC                        string         `json:"mac,omitempty"`                        // inside the workload
	Ports                      []EndpointPort `json:"ports,omitempty"`                      // names for policy
	AllowSpoofedSourcePrefixes []string       `json:"allowSpoofedSourcePrefixes,omitempty"` // sources it may use beside its own addresses
	QoSControls                *QoSControls   `json:"qosControls,omitempty"`                // limits
}

// IPNAT maps a floating address to one of the endpoint's own.
type IPNAT struct {
	InternalIP string `json:"internalIP"` // of the workload
	ExternalIP string `json:"externalIP"` // the floating one
}

// EndpointPort is a named port that rules may refer to.
type EndpointPort struct {
	Name     string      `json:"name,omitempty"` // for policy
	Protocol IntOrString `json:"protocol"`       // "TCP", "UDP" or "SCTP"
	Port     uint16      `json:"port"`           // 1-65535
	HostPort uint16      `json:"hostPort"`       // 0: none
	HostIP   string      `json:"hostIP"`         // of hostPort
}

// QoSControls limits an endpoint's traffic: bits/s, bits, packets/s, packets, connections.
type QoSControls struct {
	IngressBandwidth      int64        `json:"ingressBandwidth,omitempty"`
	EgressBandwidth       int64        `json:"egressBandwidth,omitempty"`
	IngressBurst          int64        `json:"ingressBurst,omitempty"`
	EgressBurst           int64        `json:"egressBurst,omitempty"`
	IngressPeakrate       int64        `json:"ingressPeakrate,omitempty"`
	EgressPeakrate        int64        `json:"egressPeakrate,omitempty"`
	IngressMinburst       int64        `json:"ingressMinburst,omitempty"`
	EgressMinburst        int64        `json:"egressMinburst,omitempty"`
	IngressPacketRate     int64        `json:"ingressPacketRate,omitempty"`
	EgressPacketRate      int64        `json:"egressPacketRate,omitempty"`
	IngressPacketBurst    int64        `json:"ingressPacketBurst,omitempty"`
	EgressPacketBurst     int64        `json:"egressPacketBurst,omitempty"`
	IngressMaxConnections int64        `json:"ingressMaxConnections,omitempty"`
	EgressMaxConnections  int64        `json:"egressMaxConnections,omitempty"`
	DSCP                  *IntOrString `json:"dscp,omitempty"`
}

// Labels that storage adds to every endpoint (spec/calico.md §1.5).
const (
	LabelNamespace    = "projectcalico.org/namespace"
	LabelOrchestrator = "projectcalico.org/orchestrator"
)

// EndpointName is the name that the spec implies: node, orchestrator, workload
// and endpoint joined by '-', a '-' inside one of them doubled (spec/calico.md §1.5). CNI allows container IDs and
// interface names that cannot be part of an object's name, capitals for example; their part is made by nameSegment.
func (s *WorkloadEndpointSpec) EndpointName() (string, error) {
	parts := []struct{ field, value string }{
		{"Node", s.Node},
		{"Orchestrator", s.Orchestrator},
		s.workloadSegment(),
		{"Endpoint", s.Endpoint},
	}
	if s.Orchestrator == "cni" {
		for i := range parts[2:] {
			parts[2+i].value = nameSegment(parts[2+i].value)
		}
	}
	var name strings.Builder
	for i, p := range parts {
		if p.value == "" {
			return "", fmt.Errorf("%s must be set", p.field)
		}
		if strings.HasPrefix(p.value, "-") || strings.HasSuffix(p.value, "-") {
			return "", fmt.Errorf("%s '%s' must not start or end with '-'", p.field, clip(p.value))
		}
		if i > 0 {
			name.WriteByte('-')
		}
		name.WriteString(strings.ReplaceAll(p.value, "-", "--"))
	}
	return name.String(), nil
}

// maxSegment keeps a name with one long part within the length of names.
const maxSegment = 128

// nameSegment is a part of a name: the text itself if it can be one, otherwise what of it can, and the head of its
// SHA-1, so that two texts never give one name.
func nameSegment(s string) string {
	if s == "" || len(s) <= maxSegment && ValidName(s) {
		return s
	}
	word := []byte(strings.ToLower(s[:min(len(s), maxSegment-sumLength-1)]))
	for i, c := range word {
		if !isLowerAlnum(c) {
			word[i] = '-'
		}
	}
	sum := sha1.Sum([]byte(s)) //nolint:gosec // a name, not a secret
	return strings.Trim(string(word)+"-"+hex.EncodeToString(sum[:])[:sumLength], "-")
}

// sumLength is how much of a SHA-1, in hexadecimal digits, is in a name.
const sumLength = 10

// workloadSegment is the third part of the name, which depends on the orchestrator.
func (s *WorkloadEndpointSpec) workloadSegment() struct{ field, value string } {
	switch s.Orchestrator {
	case "k8s":
		return struct{ field, value string }{"Pod", s.Pod}
	case "cni":
		return struct{ field, value string }{"ContainerID", s.ContainerID}
	case "libnetwork":
		return struct{ field, value string }{"Workload", "libnetwork"}
	}
	return struct{ field, value string }{"Workload", s.Workload}
}

// WorkloadID is the v1 workload ID "<namespace>/<third segment>".
func (w *WorkloadEndpoint) WorkloadID() string {
	return w.Namespace + "/" + w.Spec.workloadSegment().value
}

// SplitEndpointName takes a name apart into node, orchestrator, workload and
// endpoint; ok is false when it has not four parts.
func SplitEndpointName(name string) (parts [4]string, ok bool) {
	n := 0
	var part strings.Builder
	for i := 0; i < len(name); i++ {
		if name[i] != '-' {
			part.WriteByte(name[i])
			continue
		}
		if i+1 < len(name) && name[i+1] == '-' {
			part.WriteByte('-')
			i++
			continue
		}
		if n == 3 {
			return parts, false
		}
		parts[n] = part.String()
		part.Reset()
		n++
	}
	parts[n] = part.String()
	return parts, n == 3
}

// Default fills the head, the name that the spec implies, the labels that
// storage adds, and respells addresses.
func (w *WorkloadEndpoint) Default() {
	w.setType("WorkloadEndpoint")
	if w.Namespace == "" {
		w.Namespace = "default"
	}
	if w.Name == "" {
		if name, err := w.Spec.EndpointName(); err == nil {
			w.Name = name
		}
	}
	labels := make(map[string]string, len(w.Labels)+2)
	for k, v := range w.Labels {
		labels[k] = v
	}
	labels[LabelNamespace] = w.Namespace
	if w.Spec.Orchestrator != "" {
		labels[LabelOrchestrator] = w.Spec.Orchestrator
	}
	w.Labels = labels
	canonicalCIDRs(w.Spec.IPNetworks)
	canonicalCIDRs(w.Spec.AllowSpoofedSourcePrefixes)
}

// Validate checks the name against the spec, and every field.
func (w *WorkloadEndpoint) Validate() error {
	c := newChecker(&w.Resource, "WorkloadEndpoint", true)
	s := &w.Spec
	if want, err := s.EndpointName(); err != nil {
		c.add("Spec", "", err.Error())
	} else if w.Name != want {
		c.add("Metadata.Name", clip(w.Name), "the spec implies the name "+want)
	}
	own := map[netip.Addr]bool{}
	for i, n := range s.IPNetworks {
		if p, ok := c.singleAddr(index("Spec.IPNetworks", i), n); ok {
			own[p] = true
		}
	}
	for i, n := range s.IPNATs {
		path := index("Spec.IPNATs", i)
		c.addr(path+".ExternalIP", n.ExternalIP, 0)
		if a, ok := c.addr(path+".InternalIP", n.InternalIP, 0); ok && !own[a] {
			c.add(path+".InternalIP", n.InternalIP, "is not one of ipNetworks")
		}
	}
	c.optAddr("Spec.IPv4Gateway", s.IPv4Gateway, 4)
	c.optAddr("Spec.IPv6Gateway", s.IPv6Gateway, 6)
	c.mac("Spec.MAC", s.MAC)
	if s.InterfaceName == "" || !ValidInterfaceName(s.InterfaceName) {
		c.add("Spec.InterfaceName", clip(s.InterfaceName), interfaceReason)
	}
	for i, n := range s.AllowSpoofedSourcePrefixes {
		c.net(index("Spec.AllowSpoofedSourcePrefixes", i), n)
	}
	for i, p := range s.Ports {
		c.endpointPort(index("Spec.Ports", i), p)
	}
	for i, p := range s.Profiles {
		c.name(index("Spec.Profiles", i), p)
	}
	return c.Err()
}

const interfaceReason = "an interface name is 1-15 letters, digits, '-', '_' and '.'"

// ValidInterfaceName reports whether s is a network device name that can be
// used without surprises: IFNAMSIZ allows 15 bytes.
func ValidInterfaceName(s string) bool {
	if s == "" || len(s) > 15 || s == "." || s == ".." {
		return false
	}
	for i := 0; i < len(s); i++ {
		if !isAlnum(s[i]) && strings.IndexByte("-_.", s[i]) < 0 {
			return false
		}
	}
	return true
}

// singleAddr checks a /32, a /128 or a bare address.
func (c *checker) singleAddr(path, s string) (netip.Addr, bool) {
	if a, err := parseAddr(s); err == nil {
		return a, true
	}
	p, err := parsePrefix(s)
	if err != nil {
		c.add(path, clip(s), "not an address such as 192.168.1.5/32")
		return netip.Addr{}, false
	}
	if !p.IsSingleIP() {
		c.add(path, s, "IP network contains multiple addresses")
		return netip.Addr{}, false
	}
	return p.Addr(), true
}

func (c *checker) endpointPort(path string, p EndpointPort) {
	if p.Name == "" && p.HostPort == 0 {
		c.add(path+".Name", "", "a port needs a name or a hostPort")
	}
	if !hasPorts(protocolName(&p.Protocol)) {
		c.add(path+".Protocol", clip(p.Protocol.String()), "must be one of TCP, UDP, SCTP")
	}
	if p.Port == 0 {
		c.add(path+".Port", "0", "must be 1-65535")
	}
	c.optAddr(path+".HostIP", p.HostIP, 0)
}

func workloadEndpointKind() Kind {
	spec := func(f func(s *WorkloadEndpointSpec) string) func(Object, PrintContext) string {
		return func(o Object, _ PrintContext) string { return f(&o.(*WorkloadEndpoint).Spec) }
	}
	name := nameColumn()
	name.Narrow = false
	return Kind{
		Name: "WorkloadEndpoint", Plural: "workloadendpoints", Aliases: []string{"wep", "weps"}, Namespaced: true,
		New: func() Object { return &WorkloadEndpoint{} },
		Columns: []Column{
			name,
			{Header: "WORKLOAD", Narrow: true, Wide: true, Value: spec(func(s *WorkloadEndpointSpec) string {
				for _, v := range []string{s.Pod, s.Workload, s.ContainerID} {
					if v != "" {
						return v
					}
				}
				return ""
			})},
			{Header: "NODE", Narrow: true, Wide: true, Value: spec(func(s *WorkloadEndpointSpec) string { return s.Node })},
			{Header: "NETWORKS", Narrow: true, Wide: true, Value: spec(func(s *WorkloadEndpointSpec) string { return strings.Join(s.IPNetworks, ",") })},
			{Header: "INTERFACE", Narrow: true, Wide: true, Value: spec(func(s *WorkloadEndpointSpec) string { return s.InterfaceName })},
			{Header: "PROFILES", Wide: true, Value: spec(func(s *WorkloadEndpointSpec) string { return strings.Join(s.Profiles, ",") })},
			{Header: "NATS", Wide: true, Value: spec(func(s *WorkloadEndpointSpec) string {
				parts := make([]string, len(s.IPNATs))
				for i, n := range s.IPNATs {
					parts[i] = n.InternalIP + "->" + n.ExternalIP
				}
				return strings.Join(parts, ",")
			})},
		},
	}
}
