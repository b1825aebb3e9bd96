package api

import (
	"net"
	"net/netip"
)

// Node is one host of the cluster.
type Node struct {
	Resource
	Spec   NodeSpec   `json:"spec"`
	Status NodeStatus `json:"status"` // always written, if only as {}
}

// NodeSpec is the specification (spec/calico.md §1.4).
type NodeSpec struct {
	BGP                  *NodeBGPSpec       `json:"bgp,omitempty"`                  // nil: the node takes no part in routing
	IPv4VXLANTunnelAddr  string             `json:"ipv4VXLANTunnelAddr,omitempty"`  // of vxlan.calico; the agent's to write
	VXLANTunnelMACAddr   string             `json:"vxlanTunnelMACAddr,omitempty"`   // of vxlan.calico; empty: derived from the name
	IPv6VXLANTunnelAddr  string             `json:"ipv6VXLANTunnelAddr,omitempty"`  // of vxlan-v6.calico; the agent's to write
	VXLANTunnelMACAddrV6 string             `json:"vxlanTunnelMACAddrV6,omitempty"` // of vxlan-v6.calico; empty: derived from the name
	Wireguard            *NodeWireguardSpec `json:"wireguard,omitempty"`            // kept for Calico
	OrchRefs             []OrchRef          `json:"orchRefs,omitempty"`             // the node's names in orchestrators
	Addresses            []NodeAddress      `json:"addresses,omitempty"`            // all addresses known
	Interfaces           []NodeInterface    `json:"interfaces,omitempty"`           // all interfaces known
}

// NodeBGPSpec is a node's part in BGP. The addresses carry the prefix length
// of the node's own subnet, which CrossSubnet is decided by.
type NodeBGPSpec struct {
	ASNumber                *ASNumber `json:"asNumber,omitempty"`                // nil: the cluster's
	IPv4Address             string    `json:"ipv4Address,omitempty"`             // "10.0.0.1/24"
	IPv6Address             string    `json:"ipv6Address,omitempty"`             // "fd00::1/64"
	IPv4IPIPTunnelAddr      string    `json:"ipv4IPIPTunnelAddr,omitempty"`      // of tunl0; the agent's to write
	RouteReflectorClusterID string    `json:"routeReflectorClusterID,omitempty"` // IPv4 form
}

// NodeWireguardSpec holds the addresses of the WireGuard devices.
type NodeWireguardSpec struct {
	InterfaceIPv4Address string `json:"interfaceIPv4Address,omitempty"`
	InterfaceIPv6Address string `json:"interfaceIPv6Address,omitempty"`
}

// OrchRef names the node as an orchestrator knows it.
type OrchRef struct {
	NodeName     string `json:"nodeName,omitempty"` // the name there
	Orchestrator string `json:"orchestrator"`       // "k8s"
}

// NodeAddress is one address of a node and what it is.
type NodeAddress struct {
	Address string `json:"address"`        // with or without prefix length
	Type    string `json:"type,omitempty"` // "CalicoNodeIP", "InternalIP", "ExternalIP"
}

// NodeInterface is one network interface of a node.
type NodeInterface struct {
	Name      string   `json:"name"`                // of the interface
	Addresses []string `json:"addresses,omitempty"` // without prefix length
}

// NodeStatus is what the node reports about itself.
type NodeStatus struct {
	WireguardPublicKey   string   `json:"wireguardPublicKey,omitempty"`
	WireguardPublicKeyV6 string   `json:"wireguardPublicKeyV6,omitempty"`
	PodCIDRs             []string `json:"podCIDRs,omitempty"`
}

// Default fills the head.
func (n *Node) Default() { n.setType("Node") }

// Validate checks addresses, MACs and the cluster ID.
func (n *Node) Validate() error {
	c := newChecker(&n.Resource, "Node", false)
	if b := n.Spec.BGP; b != nil {
		c.hostAddr("Spec.BGP.IPv4Address", b.IPv4Address, 4)
		c.hostAddr("Spec.BGP.IPv6Address", b.IPv6Address, 6)
		c.optAddr("Spec.BGP.IPv4IPIPTunnelAddr", b.IPv4IPIPTunnelAddr, 4)
		c.optAddr("Spec.BGP.RouteReflectorClusterID", b.RouteReflectorClusterID, 4)
	}
	c.optAddr("Spec.IPv4VXLANTunnelAddr", n.Spec.IPv4VXLANTunnelAddr, 4)
	c.optAddr("Spec.IPv6VXLANTunnelAddr", n.Spec.IPv6VXLANTunnelAddr, 6)
	c.mac("Spec.VXLANTunnelMACAddr", n.Spec.VXLANTunnelMACAddr)
	c.mac("Spec.VXLANTunnelMACAddrV6", n.Spec.VXLANTunnelMACAddrV6)
	if w := n.Spec.Wireguard; w != nil {
		c.optAddr("Spec.Wireguard.InterfaceIPv4Address", w.InterfaceIPv4Address, 4)
		c.optAddr("Spec.Wireguard.InterfaceIPv6Address", w.InterfaceIPv6Address, 6)
	}
	for i, a := range n.Spec.Addresses {
		c.addrOrHostAddr(index("Spec.Addresses", i)+".Address", a.Address)
		c.oneOf(index("Spec.Addresses", i)+".Type", a.Type, "CalicoNodeIP", "InternalIP", "ExternalIP")
	}
	for i, s := range n.Status.PodCIDRs {
		c.cidr(index("Status.PodCIDRs", i), s)
	}
	return c.Err()
}

// hostAddr checks an address with or without a prefix length: "10.0.0.1/24".
func (c *checker) hostAddr(path, s string, family int) {
	if s == "" {
		return
	}
	p, err := parsePrefix(s)
	if err != nil {
		c.optAddr(path, s, family)
		return
	}
	if (family == 4) != p.Addr().Is4() {
		c.add(path, s, "not an "+familyWord(family)+"address with its subnet's prefix length")
	}
}

func (c *checker) addrOrHostAddr(path, s string) {
	if _, err := parsePrefix(s); err != nil {
		c.addr(path, s, 0)
	}
}

func (c *checker) optAddr(path, s string, family int) {
	if s != "" {
		c.addr(path, s, family)
	}
}

func (c *checker) mac(path, s string) {
	if s == "" {
		return
	}
	if m, err := net.ParseMAC(s); err != nil || len(m) != 6 {
		c.add(path, clip(s), "not an Ethernet address such as 66:f9:37:c3:7e:94")
	}
}

// BGPAddr returns the node's address of the family (4 or 6) with the prefix
// length of its subnet; a bare address counts as a subnet of its own.
func (n *Node) BGPAddr(family int) (netip.Prefix, bool) {
	if n.Spec.BGP == nil {
		return netip.Prefix{}, false
	}
	s := n.Spec.BGP.IPv4Address
	if family == 6 {
		s = n.Spec.BGP.IPv6Address
	}
	if p, err := parsePrefix(s); err == nil {
		return p, true
	}
	if a, err := parseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	return netip.Prefix{}, false
}

func nodeKind() Kind {
	bgp := func(f func(b *NodeBGPSpec) string) func(Object, PrintContext) string {
		return func(o Object, _ PrintContext) string {
			if b := o.(*Node).Spec.BGP; b != nil {
				return f(b)
			}
			return ""
		}
	}
	return Kind{
		Name: "Node", Plural: "nodes", Aliases: []string{"no", "nos"},
		New: func() Object { return &Node{} },
		Columns: []Column{
			nameColumn(),
			{Header: "ASN", Wide: true, Value: func(o Object, p PrintContext) string {
				if b := o.(*Node).Spec.BGP; b != nil && b.ASNumber != nil {
					return b.ASNumber.String()
				}
				return "(" + ASNumber(p.ASNumber).String() + ")"
			}},
			{Header: "IPV4", Wide: true, Value: bgp(func(b *NodeBGPSpec) string { return b.IPv4Address })},
			{Header: "IPV6", Wide: true, Value: bgp(func(b *NodeBGPSpec) string { return b.IPv6Address })},
		},
	}
}
