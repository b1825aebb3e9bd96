// Package policy is network policy as one host enforces it: which policies and
// profiles apply to which of its endpoints, in which order, with every selector
// resolved to a set of addresses. calc compiles it from the datastore's
// objects; policy/render turns it into the packet filter; Evaluate says what it
// does with one packet, in words. All three look at the same State, so that what
// is explained is what is enforced.
//
// Order and meaning: spec/calico.md §5.1, §5.2. Nothing here does I/O.
package policy

import (
	"cmp"
	"net/netip"

	"github.com/manekinet/maneki/desired"
)

// State is everything a host enforces. A State is never changed after it was
// made; two States share what did not change between them, so that pointers to
// policies, and digests of sets, tell cheaply what did.
type State struct {
	Endpoints map[desired.EndpointKey]*Endpoint
	Policies  map[ID]*Policy // every policy and profile that an endpoint names
	Sets      map[SetID]*Set // every set that a rule names
	Options   Options
}

// Direction is seen from the endpoint.
type Direction uint8

// The two directions.
const (
	Ingress Direction = iota
	Egress
)

// String is "ingress" or "egress".
func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// ID names a policy or a profile by its resource.
type ID struct {
	Kind      string // "GlobalNetworkPolicy", "NetworkPolicy", "KubernetesNetworkPolicy", "StagedNetworkPolicy", ..., "Profile"
	Namespace string
	Name      string
}

// String is "Kind(name)" or "Kind(namespace/name)".
func (id ID) String() string {
	if id.Namespace == "" {
		return id.Kind + "(" + id.Name + ")"
	}
	return id.Kind + "(" + id.Namespace + "/" + id.Name + ")"
}

// Compare orders by kind, namespace and name, for printing; it is not the order
// in which policies apply.
func (id ID) Compare(o ID) int {
	return cmp.Or(cmp.Compare(id.Kind, o.Kind), cmp.Compare(id.Namespace, o.Namespace), cmp.Compare(id.Name, o.Name))
}

// Endpoint is a workload endpoint of this host, or a host endpoint.
type Endpoint struct {
	Key       desired.EndpointKey // of a host endpoint the namespace is empty
	Host      bool
	Interface string // of the host; "*" for a host endpoint of all interfaces
	Addrs     desired.AddrSet

	// Normal decides what the endpoint itself sends and receives. The others exist for host endpoints only: Forward
	// for traffic through the host (applyOnForward), PreDNAT for what arrives before any DNAT (ingress only), Untracked
	// before connection tracking (doNotTrack).
	Normal, Forward, PreDNAT, Untracked Hook

	// Profiles are asked in order when no tier decided. One that does not exist is in no Policies and says nothing.
	Profiles []ID
}

// Hook is what applies to both directions at one place in the packet's path.
type Hook struct{ Ingress, Egress []Tier }

// In returns one direction's tiers.
func (h Hook) In(d Direction) []Tier {
	if d == Egress {
		return h.Egress
	}
	return h.Ingress
}

// Tier is a tier with the policies that apply to one endpoint in one direction,
// in their order. A tier without such a policy is not listed.
type Tier struct {
	Name     string
	Policies []ID // staged ones included: they decide nothing
	// EndDeny: what no policy of the tier decided is denied. False where the tier's default action is Pass, where only
	// staged policies apply, and in the PreDNAT and Untracked hooks.
	EndDeny bool
	// EndDenyStaged is what EndDeny would be if the staged policies were in force.
	EndDenyStaged bool
}

// Policy is a policy or profile, compiled. Its pointer changes exactly when its
// content does.
type Policy struct {
	ID              ID
	Tier            string // empty for a profile
	Staged          bool
	Ingress, Egress []Rule
	// Broken says why the policy cannot be enforced as it is written. Then its rules are empty and whatever reaches it
	// is denied: a policy that cannot be rendered fails closed (design §6).
	Broken string
}

// Rules returns one direction's rules.
func (p *Policy) Rules(d Direction) []Rule {
	if d == Egress {
		return p.Egress
	}
	return p.Ingress
}

// Action is what a rule does.
type Action uint8

// The actions. Log writes a line and goes on; it never decides. Pass ends the
// tier without a decision.
const (
	Allow Action = iota + 1
	Deny
	Pass
	Log
)

// String is the action as the API spells it.
func (a Action) String() string {
	return [...]string{"?", "Allow", "Deny", "Pass", "Log"}[min(a, Log)]
}

// Rule is one rule with everything resolved. All criteria must hold; a list
// holds when one of its members does.
type Rule struct {
	Index int    // in the policy's list of that direction, from 0; rules of one Index come from one rule of the author
	Text  string // as its author wrote it, one line: `allow tcp from app == 'fe' to ports 80`
	Do    Action

	Family      uint8 // 4, 6, or 0 for both
	Protocol    uint8 // IP protocol number; 0 is any
	NotProtocol uint8 // 0 is none
	ICMP        *ICMP // nil is any
	NotICMP     *ICMP
	Src, Dst    Entity
}

// ICMP is a type and, if given, a code of the rule's family.
type ICMP struct {
	Type uint8
	Code *uint8
}

// Entity is what a rule asks of one end.
type Entity struct {
	Nets    []netip.Prefix // nil: any; empty but not nil: matches nobody
	NotNets []netip.Prefix
	Set     SetID // the address is in this set; empty: any
	NotSet  SetID // the address is not in this set
	Service SetID // of a destination: address, protocol and port are in this set; of a source: the address is

	// Ports and Named together: the port is in one of the ranges, or address, protocol and port are in one of the sets.
	// AnyPort is true where the rule does not ask; false with both empty matches nobody.
	AnyPort  bool
	Ports    []PortRange
	Named    []SetID
	NotPorts []PortRange
	NotNamed []SetID
}

// PortRange is From to To, both included.
type PortRange struct{ From, To uint16 }

// SetID names a set by what it selects: equal selectors share one set.
//
//	s:<digest>                      addresses that a selector selects (selector.Selector.ID)
//	n:<protocol>:<port>:<digest>    address, protocol, port of a named port on what a selector selects
//	v:<namespace>/<name>            address, protocol, port of a service's endpoints
//	w:<namespace>/<name>            their addresses
type SetID string

// SetKind is what the members of a set are.
type SetKind uint8

// The kinds.
const (
	Addresses    SetKind = iota + 1 // Member.Net, of both families, no member within another
	AddressPorts                    // Member.Net is one address, with Proto and Port
)

// Set is a set and how it was selected.
type Set struct {
	ID       SetID
	Kind     SetKind
	Selector string // canonical text, for people
	Members  *desired.Members
}

// Options are the settings of FelixConfiguration that bear on policy
// (spec/calico.md §5.5, §5.7).
type Options struct {
	Reject            bool // Deny answers with an ICMP error or a TCP reset instead of silence
	KeepInvalid       bool // packets that connection tracking calls invalid are not denied (disableConntrackInvalidCheck)
	EndpointToHost    EndpointToHost
	FailsafeInbound   []Failsafe
	FailsafeOutbound  []Failsafe
	LogPrefix         string // of lines that Log rules write to the kernel's log
	InterfacePrefix   string // of workload interfaces
	TerminateFlows    bool   // established connections that a new policy forbids are cut (maneki.net/flow-termination)
	VXLANPort         uint16 // of tunnels between hosts, whose packets pass host endpoints; 0: there are none
	IPIP              bool   // the same for IP in IP
	LogLimitPerSecond int    // of Log rules and of reports of denied packets; 0 is the default
}

// EndpointToHost is what becomes of packets from a workload to its own host that
// the workload's egress policy allowed (defaultEndpointToHostAction).
type EndpointToHost uint8

// Return leaves it to whatever other rules the host has, and to a host endpoint.
const (
	EndpointToHostDrop EndpointToHost = iota
	EndpointToHostAccept
	EndpointToHostReturn
)

// Failsafe is a port that no host endpoint's policy can close.
type Failsafe struct {
	Protocol uint8
	Port     uint16
	Net      netip.Prefix // the other end; invalid: any
}

// ReportGroup is the NFLOG group that denied packets are reported to. The prefix
// of a report is the label of a Verdict. Nobody else is known to use the number.
const ReportGroup uint16 = 2603

// Verdict is why a packet was let through or not, as one rule or one default:
// what `maneki drops` names.
type Verdict struct {
	Endpoint  desired.EndpointKey
	Direction Direction
	Tier      string // of the policy, or the tier at whose end it was decided
	Policy    ID     // zero unless a policy or profile decided
	Rule      int    // index of the rule; -1 unless a rule decided
	Reason    Reason
}

// Reason is which kind of decision it was.
type Reason uint8

// The reasons.
const (
	ByRule            Reason = iota + 1 // Policy and Rule say which
	ByTierEnd                           // no policy of the tier decided, and the tier's default action is Deny
	ByNoProfile                         // no tier applied and no profile matched
	ByBrokenPolicy                      // the policy cannot be enforced as written; it denies
	ByInvalid                           // connection tracking calls the packet invalid
	ByEndpointToHost                    // to the workload's own host (defaultEndpointToHostAction)
	BySpoofing                          // the source is not the workload's
	ByTunnelGuard                       // a tunnel packet from who may not send one
	ByFailsafe                          // allowed whatever policies say
	ByNoPolicy                          // nothing applies here: allowed
	ByEstablished                       // belongs to a connection that was allowed before
	ByUnknownEndpoint                   // a workload interface that no endpoint is known for
)
