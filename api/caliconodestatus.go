package api

import (
	"slices"
	"strings"
	"time"
)

// CalicoNodeStatus asks a node to report about itself and holds the report.
type CalicoNodeStatus struct {
	Resource
	Spec   CalicoNodeStatusSpec   `json:"spec"`
	Status CalicoNodeStatusStatus `json:"status"`
}

// CalicoNodeStatusSpec is the specification (spec/calico.md §1.4, §6.6).
type CalicoNodeStatusSpec struct {
	Node                string            `json:"node,omitempty"`                // whose status it is
	Classes             []NodeStatusClass `json:"classes,omitempty"`             // "Agent", "BGP", "Routes"
	UpdatePeriodSeconds *uint32           `json:"updatePeriodSeconds,omitempty"` // 0: never updated
}

// NodeStatusClass is one part of the report.
type NodeStatusClass string

// The parts of the report.
const (
	ClassAgent  NodeStatusClass = "Agent"
	ClassBGP    NodeStatusClass = "BGP"
	ClassRoutes NodeStatusClass = "Routes"
)

// CalicoNodeStatusStatus is the report; parts not asked for are empty.
type CalicoNodeStatusStatus struct {
	LastUpdated *time.Time            `json:"lastUpdated"` // null: never
	Agent       CalicoNodeAgentStatus `json:"agent"`
	BGP         CalicoNodeBGPStatus   `json:"bgp"`
	Routes      CalicoNodeRouteStatus `json:"routes"`
}

// CalicoNodeAgentStatus is the state of the two BGP daemons, one per family.
type CalicoNodeAgentStatus struct {
	BIRDV4 BGPDaemonStatus `json:"birdV4"`
	BIRDV6 BGPDaemonStatus `json:"birdV6"`
}

// BGPDaemonStatus is the state of a BGP daemon; the times are as BIRD prints them.
type BGPDaemonStatus struct {
	State                   string `json:"state,omitempty"` // "Ready" or "NotReady"
	Version                 string `json:"version,omitempty"`
	RouterID                string `json:"routerID,omitempty"`
	LastBootTime            string `json:"lastBootTime,omitempty"`
	LastReconfigurationTime string `json:"lastReconfigurationTime,omitempty"`
}

// CalicoNodeBGPStatus lists the node's sessions.
type CalicoNodeBGPStatus struct {
	NumberEstablishedV4    int              `json:"numberEstablishedV4"`
	NumberNotEstablishedV4 int              `json:"numberNotEstablishedV4"`
	NumberEstablishedV6    int              `json:"numberEstablishedV6"`
	NumberNotEstablishedV6 int              `json:"numberNotEstablishedV6"`
	PeersV4                []CalicoNodePeer `json:"peersV4,omitempty"`
	PeersV6                []CalicoNodePeer `json:"peersV6,omitempty"`
}

// CalicoNodePeer is one session.
type CalicoNodePeer struct {
	PeerIP string `json:"peerIP,omitempty"`
	Type   string `json:"type,omitempty"`  // "NodeMesh", "NodePeer" or "GlobalPeer"
	State  string `json:"state,omitempty"` // RFC 4271's states, "Established" among them
	Since  string `json:"since,omitempty"` // "hh:mm:ss"
}

// CalicoNodeRouteStatus lists the node's routes.
type CalicoNodeRouteStatus struct {
	RoutesV4 []CalicoNodeRoute `json:"routesV4,omitempty"`
	RoutesV6 []CalicoNodeRoute `json:"routesV6,omitempty"`
}

// CalicoNodeRoute is one route.
type CalicoNodeRoute struct {
	Type        string                `json:"type,omitempty"` // "FIB" or "RIB"
	Destination string                `json:"destination,omitempty"`
	Gateway     string                `json:"gateway,omitempty"`
	Interface   string                `json:"interface,omitempty"`
	LearnedFrom CalicoNodeRouteOrigin `json:"learnedFrom"`
}

// CalicoNodeRouteOrigin says where a route comes from.
type CalicoNodeRouteOrigin struct {
	SourceType string `json:"sourceType,omitempty"` // "Kernel", "Static", "Direct", "NodeMesh" or "BGPPeer"
	PeerIP     string `json:"peerIP,omitempty"`
}

// MaxUpdatePeriodSeconds is the longest period of updates, one day.
const MaxUpdatePeriodSeconds = 86400

// Default fills the head. What to report and how often must be said.
func (s *CalicoNodeStatus) Default() { s.setType("CalicoNodeStatus") }

// Validate checks that the node, the classes and the period are given. The
// report is not judged: it is nobody's input.
func (s *CalicoNodeStatus) Validate() error {
	c := newChecker(&s.Resource, "CalicoNodeStatus", false)
	if s.Spec.Node == "" {
		c.add("Spec.Node", "", "name the node")
	} else {
		c.name("Spec.Node", s.Spec.Node)
	}
	if len(s.Spec.Classes) == 0 {
		c.add("Spec.Classes", "", "give one or more of Agent, BGP, Routes")
	}
	for i, class := range s.Spec.Classes {
		path := index("Spec.Classes", i)
		switch {
		case class != ClassAgent && class != ClassBGP && class != ClassRoutes:
			c.add(path, clip(string(class)), "must be one of Agent, BGP, Routes")
		case slices.Contains(s.Spec.Classes[:i], class):
			c.add(path, string(class), "given twice")
		}
	}
	if p := s.Spec.UpdatePeriodSeconds; p == nil {
		c.add("Spec.UpdatePeriodSeconds", "", "must be 0-86400")
	} else {
		c.within("Spec.UpdatePeriodSeconds", int(*p), 0, MaxUpdatePeriodSeconds)
	}
	return c.Err()
}

func calicoNodeStatusKind() Kind {
	return Kind{
		Name: "CalicoNodeStatus", Plural: "caliconodestatuses", Aliases: []string{"nodestatus", "nodestatuses"},
		New: func() Object { return &CalicoNodeStatus{} },
		Columns: []Column{
			nameColumn(),
			{Header: "NODE", Narrow: true, Wide: true, Value: func(o Object, _ PrintContext) string { return o.(*CalicoNodeStatus).Spec.Node }},
			{Header: "CLASSES", Wide: true, Value: func(o Object, _ PrintContext) string {
				var names []string
				for _, class := range o.(*CalicoNodeStatus).Spec.Classes {
					names = append(names, string(class))
				}
				return strings.Join(names, ",")
			}},
		},
	}
}
