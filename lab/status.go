package lab

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/manekinet/maneki/agentapi"
)

// Status is what `lab status` shows.
type Status struct {
	Name       string            `json:"name"`
	Hosts      []HostStatus      `json:"hosts"`
	Routers    []NodeStatus      `json:"routers,omitempty"`
	Containers []ContainerStatus `json:"containers,omitempty"`
}

// NodeStatus is a router: its addresses and whether it runs.
type NodeStatus struct {
	Name      string         `json:"name"`
	Addresses []netip.Prefix `json:"addresses"`
	Running   bool           `json:"running"`
}

// HostStatus is a host and its processes; a pid of 0 means not running.
type HostStatus struct {
	NodeStatus
	Subnet   string `json:"subnet"`
	AgentPID int    `json:"agentPID"`
	Ready    bool   `json:"ready"`
	EtcdPID  int    `json:"etcdPID,omitempty"`
	// BGP is nil when the agent did not say.
	BGP *BGPStatus `json:"bgp,omitempty"`
}

// BGPStatus counts the BGP sessions of a host.
type BGPStatus struct {
	State       string `json:"state"` // "running", "disabled" or why it is not running
	Established int    `json:"established"`
	Total       int    `json:"total"`
}

// String is the cell of the table.
func (b *BGPStatus) String() string {
	switch {
	case b == nil:
		return "-"
	case b.State != bgpRunning && b.Total == 0:
		return b.State
	default:
		return fmt.Sprintf("%d/%d up", b.Established, b.Total)
	}
}

const (
	bgpRunning     = "running"
	bgpEstablished = "Established"
	statusTimeout  = 2 * time.Second
)

// Status looks at every member and asks every agent.
func (l *Lab) Status(ctx context.Context) Status {
	st := Status{Name: l.cfg.Name, Containers: l.Containers()}
	for _, r := range l.plan.Routers {
		st.Routers = append(st.Routers, l.nodeStatus(r))
	}
	for _, n := range l.plan.Hosts {
		h := HostStatus{NodeStatus: l.nodeStatus(n), Subnet: n.Ports[0].Subnet}
		if p := readPID(l.path(n.Name, "agent.pid")); p.Alive() {
			h.AgentPID = p.PID
			h.Ready = l.Ready(ctx, n.Name)
			h.BGP = l.bgpStatus(ctx, n.Name)
		}
		if p := readPID(l.path(n.Name, "etcd.pid")); p.Alive() {
			h.EtcdPID = p.PID
		}
		st.Hosts = append(st.Hosts, h)
	}
	return st
}

// AgentStatus asks the agent of a host for its status document. Its socket is
// reached through the root directory of the host's pause process.
func (l *Lab) AgentStatus(ctx context.Context, host string) (*agentapi.Status, error) {
	if _, err := l.host(host); err != nil {
		return nil, err
	}
	p, err := l.pause(host)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	st, err := agentapi.NewClient(fmt.Sprintf("/proc/%d/root%s", p.PID, agentapi.DefaultSocket)).Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask agent of %s: %w", host, err)
	}
	return st, nil
}

func (l *Lab) bgpStatus(ctx context.Context, host string) *BGPStatus {
	st, err := l.AgentStatus(ctx, host)
	if err != nil {
		return nil // the agent is starting, or its command line moves the socket
	}
	b := &BGPStatus{State: st.BGP, Total: len(st.Peers)}
	for _, p := range st.Peers {
		if p.State == bgpEstablished {
			b.Established++
		}
	}
	return b
}

func (l *Lab) nodeStatus(n NodePlan) NodeStatus {
	st := NodeStatus{Name: n.Name, Running: readPID(l.path(n.Name, "pause.pid")).Alive()}
	for _, p := range n.Ports {
		st.Addresses = append(st.Addresses, p.Addresses...)
	}
	return st
}

// State is one word for the host.
func (h HostStatus) State() string {
	switch {
	case !h.Running:
		return "gone"
	case h.AgentPID == 0:
		return "no agent"
	case h.Ready:
		return "ready"
	default:
		return "not ready"
	}
}

// WriteTable prints the status as tables.
func (st Status) WriteTable(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintf(w, "HOST\tSUBNET\tADDRESS\tAGENT\tBGP\tSTATE\n")
	for _, h := range st.Hosts {
		agent := "-"
		if h.AgentPID != 0 {
			agent = fmt.Sprintf("pid %d", h.AgentPID)
		}
		if h.EtcdPID != 0 {
			agent += fmt.Sprintf(", etcd %d", h.EtcdPID)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", h.Name, h.Subnet, joinPrefixes(h.Addresses), agent, h.BGP, h.State())
	}
	for _, r := range st.Routers {
		state := "forwarding"
		if !r.Running {
			state = "gone"
		}
		fmt.Fprintf(w, "%s\t-\t%s\t-\t-\t%s\n", r.Name, joinPrefixes(r.Addresses), state)
	}
	if len(st.Containers) > 0 {
		fmt.Fprintf(w, "\nCONTAINER\tHOST\tADDRESS\tNAMESPACE\tLABELS\tSTATE\n")
	}
	for _, c := range st.Containers {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Name, c.Host, joinAddrs(c.Addresses), c.Namespace, joinLabels(c.Labels), c.State())
	}
	return w.Flush()
}

// State is one word for the container.
func (c ContainerStatus) State() string {
	switch {
	case !c.Attached:
		return "interrupted"
	case c.PID == 0:
		return "dead"
	default:
		return "running"
	}
}

func joinPrefixes(list []netip.Prefix) string {
	var s []string
	for _, p := range list {
		s = append(s, p.String())
	}
	return strings.Join(s, " ")
}

func joinAddrs(list []netip.Addr) string {
	if len(list) == 0 {
		return "-"
	}
	var s []string
	for _, a := range list {
		s = append(s, a.String())
	}
	return strings.Join(s, " ")
}

func joinLabels(labels map[string]string) string {
	if len(labels) == 0 {
		return "-"
	}
	var s []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		s = append(s, k+"="+labels[k])
	}
	return strings.Join(s, ",")
}
