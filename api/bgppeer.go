package api

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// BGPPeer is a BGP session, or several, beside or instead of the full mesh.
type BGPPeer struct {
	Resource
	Spec BGPPeerSpec `json:"spec"`
}

// BGPPeerSpec is the specification (spec/calico.md §1.4, §5.2a, §6.1).
type BGPPeerSpec struct {
	Node                     string       `json:"node,omitempty"`                     // the session is that node's; not with nodeSelector; without both it is every node's
	NodeSelector             string       `json:"nodeSelector,omitempty"`             // the nodes that have the session
	PeerIP                   string       `json:"peerIP,omitempty"`                   // "a.b.c.d", "a.b.c.d:port", "x::y", "[x::y]:port", "fe80::y%eth0"
	ASNumber                 ASNumber     `json:"asNumber,omitempty"`                 // of the peer; 1-4294967295 or "hi.lo"; not with peerSelector
	LocalASNumber            *ASNumber    `json:"localASNumber,omitempty"`            // ours towards this peer
	PeerSelector             string       `json:"peerSelector,omitempty"`             // the peers are the nodes selected; not with peerIP
	KeepOriginalNextHop      bool         `json:"keepOriginalNextHop,omitempty"`      // routes are passed on with the next hop they came with
	NextHopMode              string       `json:"nextHopMode,omitempty"`              // "Auto", "Self" or "Keep"
	Password                 *BGPPassword `json:"password,omitempty"`                 // TCP MD5, RFC 2385
	SourceAddress            string       `json:"sourceAddress,omitempty"`            // "UseNodeIP" or "None"
	MaxRestartTime           *Duration    `json:"maxRestartTime,omitempty"`           // how long stale routes are kept for a peer that restarts, RFC 4724
	KeepaliveTime            *Duration    `json:"keepaliveTime,omitempty"`            // between two KEEPALIVEs
	NumAllowedLocalASNumbers *int         `json:"numAllowedLocalASNumbers,omitempty"` // how often our own AS may be in a path
	TTLSecurity              *int         `json:"ttlSecurity,omitempty"`              // hops, 1-255
	ReachableBy              string       `json:"reachableBy,omitempty"`              // gateway to the peer
	Filters                  []string     `json:"filters,omitempty"`                  // names of BGPFilters, in order
	LocalWorkloadSelector    string       `json:"localWorkloadSelector,omitempty"`    // the peers are the local workloads selected
	ReversePeering           string       `json:"reversePeering,omitempty"`           // "Auto" or "Manual"
}

// Default fills the head; what is absent stays absent (spec/calico.md §1.4).
func (p *BGPPeer) Default() { p.setType("BGPPeer") }

// Validate checks the fields and their combinations (spec/calico.md §5.2a).
func (p *BGPPeer) Validate() error {
	c := newChecker(&p.Resource, "BGPPeer", false)
	s := &p.Spec
	c.bgpAnnotations(&p.Resource)
	if s.Node != "" {
		c.name("Spec.Node", s.Node)
	}
	c.oneOf("Spec.NextHopMode", s.NextHopMode, "Auto", "Self", "Keep")
	c.oneOf("Spec.SourceAddress", s.SourceAddress, "UseNodeIP", "None")
	c.oneOf("Spec.ReversePeering", s.ReversePeering, "Auto", "Manual")
	c.notNegative("Spec.MaxRestartTime", s.MaxRestartTime)
	c.notNegative("Spec.KeepaliveTime", s.KeepaliveTime)
	c.withinPtr("Spec.NumAllowedLocalASNumbers", s.NumAllowedLocalASNumbers, 0, 255)
	c.withinPtr("Spec.TTLSecurity", s.TTLSecurity, 0, 255)
	c.optAddr("Spec.ReachableBy", s.ReachableBy, 0)
	for i, f := range s.Filters {
		c.name(index("Spec.Filters", i), f)
	}
	c.password("Spec.Password", s.Password)
	c.selector("Spec.NodeSelector", s.NodeSelector, false)
	c.selector("Spec.PeerSelector", s.PeerSelector, false)
	c.selector("Spec.LocalWorkloadSelector", s.LocalWorkloadSelector, false)
	if s.PeerIP != "" {
		if _, err := ParsePeerIP(s.PeerIP); err != nil {
			c.add("Spec.PeerIP", clip(s.PeerIP), err.Error())
		}
	}
	c.peerCombinations(s)
	return c.Err()
}

func (c *checker) peerCombinations(s *BGPPeerSpec) {
	for _, rule := range []struct {
		wrong               bool
		path, value, reason string
	}{
		{s.Node != "" && s.NodeSelector != "", "Spec.Node", s.Node, "node and nodeSelector exclude each other"},
		{s.PeerIP != "" && s.PeerSelector != "", "Spec.PeerIP", s.PeerIP, "peerIP and peerSelector exclude each other"},
		{s.PeerSelector != "" && s.ASNumber != 0, "Spec.ASNumber", s.ASNumber.String(), "must be empty with peerSelector: the AS number is the selected node's"},
		{s.PeerIP == "" && s.PeerSelector == "" && s.LocalWorkloadSelector == "", "Spec.PeerIP", "", "give peerIP, peerSelector or localWorkloadSelector"},
		{s.PeerIP != "" && s.PeerSelector == "" && s.ASNumber == 0, "Spec.ASNumber", "0", "peerIP needs the peer's asNumber"},
		{s.LocalWorkloadSelector != "" && s.ASNumber == 0, "Spec.ASNumber", "0", "localWorkloadSelector needs asNumber"},
		{s.LocalWorkloadSelector != "" && (s.PeerIP != "" || s.PeerSelector != ""), "Spec.LocalWorkloadSelector", s.LocalWorkloadSelector, "excludes peerIP and peerSelector"},
		{s.ReachableBy != "" && s.PeerIP == "", "Spec.ReachableBy", s.ReachableBy, "needs peerIP"},
		{s.KeepOriginalNextHop && s.NextHopMode != "", "Spec.NextHopMode", s.NextHopMode, "keepOriginalNextHop and nextHopMode exclude each other"},
	} {
		if rule.wrong {
			c.add(rule.path, clip(rule.value), rule.reason)
		}
	}
}

// ParsePeerIP reads a peer's address with an optional port; the port is 0 when
// absent. An IPv6 address with a port stands in brackets. A link-local address
// has the interface as its zone.
func ParsePeerIP(s string) (netip.AddrPort, error) {
	const want = "must be an IP address or address:port (IPv6: [address]:port)"
	ap := netip.AddrPort{}
	if a, err := netip.ParseAddr(s); err == nil {
		ap = netip.AddrPortFrom(a, 0)
	} else if ap, err = netip.ParseAddrPort(s); err != nil || ap.Port() == 0 {
		return netip.AddrPort{}, errors.New(want)
	}
	switch a := ap.Addr(); {
	case a.Is4In6():
		return netip.AddrPort{}, errors.New(want)
	case a.Is6() && a.IsLinkLocalUnicast() != (a.Zone() != ""):
		return netip.AddrPort{}, errors.New("a link-local address needs its interface, and no other address has one: fe80::1%eth0")
	case a.Zone() != "" && !validInterface(a.Zone()):
		return netip.AddrPort{}, fmt.Errorf("%q is not the name of an interface: at most 15 characters without blanks and '/'", a.Zone())
	}
	return ap, nil
}

// validInterface is dev_valid_name of net/core/dev.c.
func validInterface(name string) bool {
	return name != "" && len(name) < 16 && name != "." && name != ".." && !strings.ContainsAny(name, "/: \t\n\v\f\r")
}

func (c *checker) password(path string, p *BGPPassword) {
	if p == nil {
		return
	}
	if p.SecretKeyRef == nil || p.SecretKeyRef.Name == "" || p.SecretKeyRef.Key == "" {
		c.add(path+".SecretKeyRef", "", "give the name and the key of a secret")
	}
}

func bgpPeerKind() Kind {
	spec := func(f func(s *BGPPeerSpec) string) func(Object, PrintContext) string {
		return func(o Object, _ PrintContext) string { return f(&o.(*BGPPeer).Spec) }
	}
	return Kind{
		Name: "BGPPeer", Plural: "bgppeers", Aliases: []string{"bgpp", "bgpps", "bp", "bps"},
		New: func() Object { return &BGPPeer{} },
		Columns: []Column{
			nameColumn(),
			{Header: "PEERIP", Narrow: true, Wide: true, Value: spec(func(s *BGPPeerSpec) string { return s.PeerIP })},
			{Header: "NODE", Narrow: true, Wide: true, Value: spec(func(s *BGPPeerSpec) string {
				switch {
				case s.Node != "":
					return s.Node
				case s.NodeSelector != "":
					return s.NodeSelector
				}
				return "(global)"
			})},
			{Header: "ASN", Narrow: true, Wide: true, Value: spec(func(s *BGPPeerSpec) string { return s.ASNumber.String() })},
		},
	}
}
