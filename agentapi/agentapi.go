// Package agentapi is the agent's local interface: the JSON documents served on
// its Unix socket and a client for them. The CLI, the laboratory and the
// console read these; nothing else of the agent is reachable from outside.
package agentapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// DefaultSocket is where an agent listens, mode 0600.
const DefaultSocket = "/run/maneki/agent.sock"

// maxDocument bounds what a client reads from the socket, in bytes.
const maxDocument = 64 << 20

// ErrNotRunning means that nothing answers on the socket.
var ErrNotRunning = errors.New("the agent is not running")

// Status is the document at /v1/status: the state of one host.
type Status struct {
	Node       string      `json:"node"`
	Version    string      `json:"version"`
	PID        int         `json:"pid"`
	Started    time.Time   `json:"started"`
	Ready      bool        `json:"ready"`
	NotReady   []string    `json:"notReady,omitempty"` // reasons in words while Ready is false
	Datastore  Datastore   `json:"datastore"`
	IPv4       Address     `json:"ipv4"`
	IPv6       Address     `json:"ipv6"`
	ASNumber   uint32      `json:"asNumber"`
	ClusterID  netip.Addr  `json:"routeReflectorClusterID"`   // invalid when this host is no route reflector
	BGP        string      `json:"bgp"`                       // "running", "disabled" or why it is not running
	Role       string      `json:"role,omitempty"`            // "mesh", "route reflector", "client of route reflectors"; empty without sessions to other hosts
	Reflectors []string    `json:"reflectors,omitempty"`      // nodes that reflect routes to this one
	Reflection *Reflection `json:"routeReflection,omitempty"` // when the reflectors are chosen automatically
	Peers      []BGPPeer   `json:"peers"`
	Tables     []Table     `json:"tables"`
	Tunnels    []Tunnel    `json:"tunnels,omitempty"`
	Endpoints  []Endpoint  `json:"endpoints"`
	Policy     PolicyCount `json:"policy"`
	Paths      *Paths      `json:"paths,omitempty"`    // nil where they are not measured
	Problems   []string    `json:"problems,omitempty"` // objects that could not be used, one line each
}

// The values of Status.Role.
const (
	RoleMesh      = "mesh"
	RoleReflector = "route reflector"
	RoleClient    = "client of route reflectors"
)

// Reflection is what this host knows of the controller that chooses the route
// reflectors.
type Reflection struct {
	Mode   string `json:"mode"`             // "Auto", or "Manual" while what Auto made is taken back
	Leader string `json:"leader,omitempty"` // the node whose controller works
	Report string `json:"report,omitempty"` // what it did last, in words; it may be some seconds old
}

// Datastore says which store is used and whether it answers.
type Datastore struct {
	Type      string    `json:"type"` // "etcdv3" or "embedded"
	Endpoints []string  `json:"endpoints"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"` // of the present state
	Error     string    `json:"error,omitempty"`
	Alarms    []string  `json:"alarms,omitempty"` // of the cluster: "NOSPACE on h1"
}

// Address is the host's address of one family and why it was chosen.
type Address struct {
	Prefix    netip.Prefix `json:"prefix"` // invalid when the host has none
	Interface string       `json:"interface,omitempty"`
	Reason    string       `json:"reason,omitempty"`
}

// BGPPeer is one row of `node status`.
type BGPPeer struct {
	Address    netip.Addr `json:"address"`
	Name       string     `json:"name,omitempty"`
	Type       string     `json:"type"`  // node-to-node mesh, node specific, global
	State      string     `json:"state"` // RFC 4271 name: Idle, Connect, Active, OpenSent, OpenConfirm, Established
	Since      time.Time  `json:"since"`
	LastError  string     `json:"lastError,omitempty"`
	ASNumber   uint32     `json:"asNumber"`
	Received   int        `json:"received"`
	Accepted   int        `json:"accepted"` // of the received, those that no check and no filter refuses
	Advertised int        `json:"advertised"`
	Flaps      uint64     `json:"flaps"`            // how often the session was lost since it was configured
	Client     bool       `json:"client,omitempty"` // this host reflects routes to and from it
	Filters    []string   `json:"filters,omitempty"`
	BFD        *BFD       `json:"bfd,omitempty"` // absent when it is off
}

// BFD is the watch on the path to a peer (RFC 5880).
type BFD struct {
	State     string    `json:"state"` // AdminDown, Down, Init, Up
	Since     time.Time `json:"since"`
	Interval  string    `json:"interval"`            // between packets to the peer, such as "100ms"
	Detection string    `json:"detection,omitempty"` // how long nothing may be heard, such as "300ms"
	Multihop  bool      `json:"multihop,omitempty"`
	Reason    string    `json:"reason,omitempty"` // why it is not up
}

// Since prints a time as BIRD does: the time of day, or the date when that is
// another day than now's.
func Since(t, now time.Time) string {
	t, now = t.Local(), now.Local()
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format(time.TimeOnly)
	}
	return t.Format(time.DateOnly)
}

// BGPRoute is one row of the document at /v1/bgp/routes?view=V&peer=A. Views
// are "best", and of one peer "received" and "advertised".
type BGPRoute struct {
	Prefix      netip.Prefix `json:"prefix"`
	NextHop     netip.Addr   `json:"nextHop"` // invalid for an own route, whose next hop is this host
	Peer        netip.Addr   `json:"peer"`    // invalid for an own route
	ASPath      string       `json:"asPath,omitempty"`
	LocalPref   uint32       `json:"localPref"`
	MED         uint32       `json:"med,omitempty"`
	Communities string       `json:"communities,omitempty"`
	Originator  netip.Addr   `json:"originator"` // invalid when not reflected
	Clusters    []netip.Addr `json:"clusters,omitempty"`
	Best        bool         `json:"best"`
	Multipath   bool         `json:"multipath,omitempty"` // as good as the best one, and used beside it
	Stale       bool         `json:"stale,omitempty"`
	Refused     bool         `json:"refused,omitempty"`
	Unreachable bool         `json:"unreachable,omitempty"` // no route of the host leads to the next hop
	Demoted     bool         `json:"demoted,omitempty"`     // the last choice
}

// Table is the state of one kind of kernel object that the agent keeps.
type Table struct {
	Name      string    `json:"name"`
	Wanted    int       `json:"wanted"`
	Present   int       `json:"present"`
	Failed    int       `json:"failed"`
	Healed    uint64    `json:"healed"` // objects put back after somebody else changed them
	LastError string    `json:"lastError,omitempty"`
	LastSync  time.Time `json:"lastSync"`
}

// Tunnel is one tunnel device that this host should have.
type Tunnel struct {
	Device         string       `json:"device"`
	Encapsulation  string       `json:"encapsulation"`  // VXLAN or IPIP
	Implementation string       `json:"implementation"` // "kernel", "programs (tcx)", "programs (clsact)", "none" while there is none
	Addresses      []netip.Addr `json:"addresses"`
	MTU            int          `json:"mtu"`
	Hosts          int          `json:"hosts"` // other hosts that it leads to
	// NotCarried counts packets that the programs refused, and errors that they passed on, by reason.
	NotCarried map[string]uint64 `json:"notCarried,omitempty"`
}

// Endpoint is one local workload.
type Endpoint struct {
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Workload  string         `json:"workload"`
	Interface string         `json:"interface"`
	Addresses []netip.Prefix `json:"addresses"`
}

// Client talks to one agent.
type Client struct {
	http *http.Client
	path string
}

// NewClient returns a client for the agent listening at socket; empty means
// DefaultSocket.
func NewClient(socket string) *Client {
	if socket == "" {
		socket = DefaultSocket
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{path: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Status asks the agent for its state. The error is ErrNotRunning, wrapped,
// when no agent answers.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var s Status
	if err := get(ctx, c, "/v1/status", &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// BGPRoutes asks the agent for a view of its routes; peer is not used by the
// view "best".
func (c *Client) BGPRoutes(ctx context.Context, view string, peer netip.Addr) ([]BGPRoute, error) {
	q := url.Values{"view": {view}}
	if peer.IsValid() {
		q.Set("peer", peer.String())
	}
	var out []BGPRoute
	if err := get(ctx, c, "/v1/bgp/routes?"+q.Encode(), &out); err != nil {
		return nil, err
	}
	return out, nil
}

// document is what the agent serves.
type document interface {
	*Status | *[]BGPRoute | *[]RuleHits | *Policy
}

func get[T document](ctx context.Context, c *Client, path string, into T) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return fmt.Errorf("ask agent for %s: %w", path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%w (socket %s: %w)", ErrNotRunning, c.path, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument))
	if err != nil {
		return fmt.Errorf("read agent's answer to %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("agent answered %s to %s: %s", resp.Status, path, body)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("parse agent's answer to %s: %w", path, err)
	}
	return nil
}

// Paths is what was measured about the ways to other hosts.
type Paths struct {
	WorkloadMTU int      `json:"workloadMTU"` // bytes, of new workloads
	Paths       []Path   `json:"paths"`
	NoOffload   []string `json:"noChecksumOffload,omitempty"` // tunnel devices whose checksums the kernel computes itself
	Findings    []string `json:"findings,omitempty"`          // what is not as it should be, one line each
}

// Path is one way to another host.
type Path struct {
	Node           string `json:"node"`
	Device         string `json:"device,omitempty"` // of the tunnel; empty for the underlay
	IPv6           bool   `json:"ipv6,omitempty"`
	Answered       bool   `json:"answered"`      // the last time
	MTU            int    `json:"mtu,omitempty"` // bytes of the largest packet that passed; 0 while nobody has answered
	Limit          int    `json:"limit,omitempty"`
	ChecksumBroken bool   `json:"checksumBroken,omitempty"`
}

// Line is the paths in one line.
func (p *Paths) Line() string {
	answered, smallest := 0, 0
	for _, path := range p.Paths {
		if !path.Answered {
			continue
		}
		answered++
		if path.Device == "" && (smallest == 0 || path.MTU < smallest) {
			smallest = path.MTU
		}
	}
	line := fmt.Sprintf("Paths to other hosts: %d of %d answered", answered, len(p.Paths))
	if smallest > 0 {
		line += fmt.Sprintf(", %d bytes pass", smallest)
	}
	line += fmt.Sprintf(", workload MTU %d", p.WorkloadMTU)
	if len(p.NoOffload) > 0 {
		line += ", checksum offload off on " + strings.Join(p.NoOffload, ", ")
	}
	if len(p.Findings) > 0 {
		line += "; " + strings.Join(p.Findings, "; ")
	}
	return line
}
