package agent

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sort"
	"strings"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/dataplane/tunnels"
	"github.com/manekinet/maneki/desired"
)

// status is the whole truth about this host, as served on the socket.
func (a *Agent) status() agentapi.Status {
	a.pipe.mu.Lock()
	state, bgpErr, ready, inSync := a.pipe.state, a.pipe.bgpError, a.pipe.isReady, a.pipe.inSync
	a.pipe.mu.Unlock()
	s := agentapi.Status{
		Node: a.opts.Node, Version: a.opts.Version, PID: os.Getpid(), Started: a.started,
		Datastore: a.conn.report(),
		ASNumber:  state.BGP.ASN,
		ClusterID: state.BGP.ClusterID,
		Tables:    a.tables.report(),
		Tunnels:   a.tables.tunnelReport(state),
		Endpoints: endpointReport(state.Endpoints),
		Policy:    policyApplied(policyCount(a.pipe.enforced()), a.tables.nft.Status()),
		Problems:  state.Problems,
	}
	s.IPv4, s.IPv6 = a.node.report()
	s.Paths = a.pathReport(state.MTU, state.Tunnels)
	switch {
	case !a.opts.BGP:
		s.BGP = "disabled"
	case bgpErr != nil:
		s.BGP = bgpErr.Error()
	case inSync && !state.NodeKnown:
		s.BGP = "this host's Node object is missing: no sessions"
	default:
		s.BGP = "running"
		s.Peers = peerReport(a.speaker.Status())
		s.Role, s.Reflectors = role(state), state.Reflection.Reflectors
		s.Reflection = a.control.report(state.Reflection)
	}
	s.NotReady = a.notReady(s, ready, inSync, state.Locked)
	s.Ready = len(s.NotReady) == 0
	return s
}

// role is this host's part among the hosts of the cluster.
func role(state calc.State) string {
	switch {
	case state.BGP.ClusterID.IsValid():
		return agentapi.RoleReflector
	case len(state.Reflection.Reflectors) > 0:
		return agentapi.RoleClient
	}
	for _, p := range state.BGP.Peers {
		if p.Type == bgp.TypeMesh {
			return agentapi.RoleMesh
		}
	}
	return ""
}

func (a *Agent) notReady(s agentapi.Status, ready, inSync, locked bool) []string {
	var why []string
	if !inSync {
		why = append(why, "the datastore has not been read completely")
	}
	if !s.Datastore.Connected {
		why = append(why, "the datastore does not answer: "+s.Datastore.Error)
	}
	for _, alarm := range s.Datastore.Alarms {
		why = append(why, "the datastore reports "+alarm+": see 'maneki datastore members'")
	}
	if inSync && !ready {
		why = append(why, "the first state is being applied")
	}
	if locked {
		why = append(why, "the datastore is locked for a migration")
	}
	for _, t := range s.Tables {
		if t.Failed > 0 {
			why = append(why, fmt.Sprintf("%d of %d %s cannot be applied: %s", t.Failed, t.Wanted, t.Name, t.LastError))
		}
	}
	if s.BGP != "running" && s.BGP != "disabled" {
		why = append(why, "BGP: "+s.BGP)
	}
	return why
}

// tunnelReport is the devices that are wanted, and what they are made of.
func (t *tables) tunnelReport(state calc.State) []agentapi.Tunnel {
	ipip, notCarried := t.maker.IPIP()
	var out []agentapi.Tunnel
	for _, name := range slices.Sorted(maps.Keys(state.Tunnels)) {
		d := state.Tunnels[name]
		r := agentapi.Tunnel{
			Device: name, Encapsulation: d.Encap.String(), Implementation: string(tunnels.Kernel),
			Addresses: d.Addrs.Addrs(), MTU: d.MTU, Hosts: state.Reach[name],
		}
		if d.Encap == desired.EncapIPIP {
			r.Implementation, r.NotCarried = cmp.Or(ipip, "none"), notCarried
		}
		out = append(out, r)
	}
	return out
}

func peerReport(peers []bgp.PeerStatus) []agentapi.BGPPeer {
	out := make([]agentapi.BGPPeer, 0, len(peers))
	for _, p := range peers {
		row := agentapi.BGPPeer{
			Address: p.Peer.Addr, Name: p.Peer.Name, Type: string(p.Peer.Type), State: p.State, Since: p.Since,
			LastError: p.LastError, ASNumber: p.Peer.ASN, Received: p.Received, Accepted: p.Accepted, Advertised: p.Advertised,
			Client: p.Peer.Client, Filters: strings.Fields(p.Peer.Filters), Flaps: p.Flaps,
		}
		if b := p.BFD; b.State != "" {
			row.BFD = &agentapi.BFD{State: b.State, Since: b.Since, Interval: b.Interval.String(), Multihop: b.Multihop, Reason: b.Reason}
			if b.Detection > 0 {
				row.BFD.Detection = b.Detection.String()
			}
		}
		out = append(out, row)
	}
	return out
}

func endpointReport(eps desired.Endpoints) []agentapi.Endpoint {
	out := make([]agentapi.Endpoint, 0, len(eps))
	for k, e := range eps {
		r := agentapi.Endpoint{Namespace: k.Namespace, Name: k.Name, Interface: e.Interface}
		for _, addr := range e.Addrs.Addrs() {
			r.Addresses = append(r.Addresses, netip.PrefixFrom(addr, addr.BitLen()))
		}
		out = append(out, r)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Namespace+"/"+out[i].Name < out[j].Namespace+"/"+out[j].Name })
	return out
}
