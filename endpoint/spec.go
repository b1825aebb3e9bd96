package endpoint

import (
	"crypto/sha1" //nolint:gosec // Calico's names, not a secret
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/endpoint/pending"
)

// Orchestrators, as WorkloadEndpointSpec.Orchestrator spells them (spec/calico.md §1.5).
const (
	OrchestratorCNI        = "cni"
	OrchestratorK8s        = "k8s"
	OrchestratorLibnetwork = "libnetwork"
)

// primary is the name of a container's first interface. Names of the first follow Calico's scheme, which knows one
// interface per container; those of further ones are made unique.
const primary = "eth0"

// defaultNamespace is where the endpoints of plain containers live (spec/calico.md §1.5).
const defaultNamespace = "default"

// Annotations of a WorkloadEndpoint for what Calico's schema has no field for.
const (
	// AnnotationNetwork is the name of the CNI network, by which GC finds the endpoint.
	AnnotationNetwork = "maneki.net/network"
)

// ID names one attachment: one interface of one container on one network.
type ID struct {
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`              // inside the container
	Namespace   string `json:"namespace,omitempty"` // of the WorkloadEndpoint; empty means "default"
	Pod         string `json:"pod,omitempty"`       // set for a Kubernetes pod: the endpoint is named after it

	// Port is set for a Port, whose endpoint is named after it; the other fields are then those of portID.
	Port string `json:"port,omitempty"`
}

// Spec is an attachment with everything that the container's side wants.
type Spec struct {
	ID
	Netns *os.File // the container's network namespace; the caller closes it

	Workload        string            // free text shown beside the endpoint, for plain containers
	Labels          map[string]string // of the WorkloadEndpoint
	NamespaceLabels map[string]string // for the pools' namespaceSelector
	ServiceAccount  string
	Profiles        []string // empty: one named after the network, which is created when it is not there

	IPv4, IPv6 bool         // wants an address of the family
	Pools4     []string     // names or CIDRs; empty: by the pools' selectors
	Pools6     []string     // as Pools4
	Addrs      []netip.Addr // these addresses and no others

	MTU             int              // 0: the host's
	MAC             net.HardwareAddr // nil: ee:ee:ee:ee:ee:ee
	AllowForwarding bool             // the container may forward packets
}

// Route is one route inside a container.
type Route struct {
	Dst     netip.Prefix
	Gateway netip.Addr // invalid: on the link
}

// Result is what an attachment gave.
type Result struct {
	HostInterface string
	IfName        string
	MAC           net.HardwareAddr
	MTU           int
	Addresses     []netip.Prefix // single addresses, IPv4 first
	Routes        []Route
	Created       bool // false: the attachment was there before
}

func (id ID) namespace() string {
	if id.Namespace == "" {
		return defaultNamespace
	}
	return id.Namespace
}

func (id ID) String() string {
	return fmt.Sprintf("%s of container %s on network %s", id.IfName, id.ContainerID, id.Network)
}

// handle is the IPAM handle that holds the attachment's addresses (spec/calico.md §3).
func (id ID) handle() string {
	if id.IfName == primary {
		return id.firstHandle()
	}
	return id.firstHandle() + "." + id.IfName
}

func (id ID) firstHandle() string { return id.Network + "." + id.ContainerID }

// alias marks the host's interface as this attachment's.
func (id ID) alias() string {
	if id.Port != "" {
		return aliasPrefix + id.Network + "/" + id.Port
	}
	s := aliasPrefix + id.Network + "/" + id.ContainerID + "/" + id.IfName
	if len(s) > maxAlias { // a container ID may be of any length
		sum := sha1.Sum([]byte(s)) //nolint:gosec // as above
		s = aliasPrefix + hex.EncodeToString(sum[:])
	}
	return s
}

// hostName is the name of the host's interface (spec/calico.md §4): of a pod the prefix and the SHA-1 of
// "<namespace>.<pod>", of a plain container the prefix and the head of its ID, cut to the kernel's 15 characters.
func (id ID) hostName(prefix string) string {
	tail := id.ContainerID
	switch {
	case id.Port != "":
		tail = id.Port
	case id.Pod != "" && id.IfName == primary:
		tail = hexSHA1(id.namespace() + "." + id.Pod)
	case id.Pod != "":
		tail = hexSHA1(id.namespace() + "." + id.Pod + "." + id.IfName)
	case id.IfName != primary:
		tail = hexSHA1(id.ContainerID + "." + id.IfName)
	}
	return prefix + tail[:min(len(tail), maxInterfaceName-len(prefix))]
}

// maxInterfaceName is IFNAMSIZ less the final zero.
const maxInterfaceName = 15

func hexSHA1(s string) string {
	sum := sha1.Sum([]byte(s)) //nolint:gosec // as above
	return hex.EncodeToString(sum[:])
}

// endpoint builds the WorkloadEndpoint without its addresses.
func (id ID) endpoint(node, hostName string) *api.WorkloadEndpoint {
	w := &api.WorkloadEndpoint{}
	w.Namespace = id.namespace()
	if id.Port != "" {
		w.Spec = api.WorkloadEndpointSpec{
			Orchestrator: OrchestratorLibnetwork, Workload: OrchestratorLibnetwork, Node: node, Endpoint: id.Port, InterfaceName: hostName,
		}
		w.Default()
		return w
	}
	w.Annotations = map[string]string{AnnotationNetwork: id.Network}
	w.Spec = api.WorkloadEndpointSpec{
		Orchestrator: OrchestratorCNI, Node: node, ContainerID: id.ContainerID, Endpoint: id.IfName, InterfaceName: hostName,
	}
	if id.Pod != "" {
		w.Spec.Orchestrator, w.Spec.Pod = OrchestratorK8s, id.Pod
	}
	w.Default()
	return w
}

// endpoint adds what the container's side wants.
func (s *Spec) endpoint(node, hostName string) *api.WorkloadEndpoint {
	w := s.ID.endpoint(node, hostName)
	maps.Copy(w.Labels, s.Labels)
	w.Spec.ServiceAccountName, w.Spec.MAC = s.ServiceAccount, s.mac().String()
	if s.Pod == "" {
		w.Spec.Workload = s.Workload
	}
	w.Spec.Profiles = s.Profiles
	if len(s.Profiles) == 0 {
		w.Spec.Profiles = []string{s.Network}
	}
	w.Default() // the labels that storage adds win over the caller's
	return w
}

func (s *Spec) mac() net.HardwareAddr {
	if s.MAC == nil {
		return parseMAC(hostMAC)
	}
	return s.MAC
}

// idOf is the attachment that a stored endpoint belongs to.
func idOf(w *api.WorkloadEndpoint, network string) ID {
	id := ID{Network: network, ContainerID: w.Spec.ContainerID, IfName: w.Spec.Endpoint, Namespace: w.Namespace}
	if w.Spec.Orchestrator == OrchestratorK8s {
		id.Pod = w.Spec.Pod
	}
	return id
}

func fromRecord(r pending.Record) ID {
	return ID{Network: r.Network, ContainerID: r.ContainerID, IfName: r.IfName, Namespace: r.Namespace, Pod: r.Pod, Port: r.Port}
}

func (id ID) record() pending.Record {
	return pending.Record{Network: id.Network, ContainerID: id.ContainerID, IfName: id.IfName, Namespace: id.Namespace, Pod: id.Pod, Port: id.Port}
}

// families reports the families that the attachment will have.
func (s *Spec) families() (v4, v6 bool) {
	if len(s.Addrs) == 0 {
		return s.IPv4, s.IPv6
	}
	for _, a := range s.Addrs {
		v4, v6 = v4 || a.Is4(), v6 || a.Is6()
	}
	return v4, v6
}

// minMTU is the least MTU that IPv6 works over (RFC 8200 §5); IPv4 alone could do with 68.
const minMTU = 1280

// FieldError is one wrong value of a Spec.
type FieldError struct{ Field, Value, Allowed string }

func (e *FieldError) Error() string { return fmt.Sprintf("%s %q: %s", e.Field, e.Value, e.Allowed) }

// check reports the first wrong value. It looks at what the WorkloadEndpoint does not cover.
func (s *Spec) check() error {
	v4, v6 := s.families()
	switch {
	case s.Network == "" || len(s.Network) > 200:
		return &FieldError{"network", s.Network, "a name of 1 to 200 characters"}
	case s.ContainerID == "":
		return &FieldError{"containerID", "", "must be set"}
	case !api.ValidInterfaceName(s.IfName):
		return &FieldError{"ifName", s.IfName, "1-15 letters, digits, '-', '_' and '.'"}
	case !v4 && !v6:
		return &FieldError{"address family", "none", "ask for IPv4, IPv6 or both"}
	case s.MTU != 0 && (s.MTU < minMTU || s.MTU > 65535):
		return &FieldError{"mtu", fmt.Sprint(s.MTU), fmt.Sprintf("0 for the host's, or %d to 65535", minMTU)}
	case s.MAC != nil && (len(s.MAC) != 6 || s.MAC[0]&1 != 0):
		return &FieldError{"mac", s.MAC.String(), "six bytes, not a multicast address"}
	}
	seen := map[netip.Addr]bool{}
	for _, a := range s.Addrs {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() || seen[a] {
			return &FieldError{"address", a.String(), "each an IPv4 or IPv6 address, once"}
		}
		seen[a] = true
	}
	return nil
}
