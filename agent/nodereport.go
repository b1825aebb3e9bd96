package agent

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/desired"
)

// notAvailable stands where a route has no gateway or interface.
const notAvailable = "N/A"

// nodeReport is the report of the classes asked for.
func (a *Agent) nodeReport(classes []api.NodeStatusClass) api.CalicoNodeStatusStatus {
	now := time.Now().UTC().Truncate(time.Second)
	out := api.CalicoNodeStatusStatus{LastUpdated: &now}
	s := a.status()
	if slices.Contains(classes, api.ClassAgent) {
		a.pipe.mu.Lock()
		routerID, since := a.pipe.state.BGP.RouterID, a.pipe.reconfigured
		a.pipe.mu.Unlock()
		out.Agent = daemonReport(s, routerID, since)
	}
	if slices.Contains(classes, api.ClassBGP) {
		out.BGP = sessionReport(s.Peers, time.Now())
	}
	if slices.Contains(classes, api.ClassRoutes) {
		v := routeView{have: a.tables.routes.Have(), peers: a.speaker.Status(), direct: a.tables.direct()}
		for _, p := range v.peers {
			if offers, err := a.speaker.Routes(bgp.ViewReceived, p.Peer.Addr); err == nil {
				v.offers = append(v.offers, offers...)
			}
		}
		out.Routes = v.report()
	}
	return out
}

// daemonReport shows the one speaker in the place of Calico's two: of a family
// in which the host has no address it is NotReady.
func daemonReport(s agentapi.Status, routerID netip.Addr, reconfigured time.Time) api.CalicoNodeAgentStatus {
	d := api.BGPDaemonStatus{State: "NotReady", Version: s.Version, LastBootTime: stamp(s.Started), LastReconfigurationTime: stamp(reconfigured)}
	if routerID.IsValid() {
		d.RouterID = routerID.String()
	}
	of := func(has bool) api.BGPDaemonStatus {
		if has && s.BGP == "running" {
			r := d
			r.State = "Ready"
			return r
		}
		return d
	}
	return api.CalicoNodeAgentStatus{BIRDV4: of(s.IPv4.Prefix.IsValid()), BIRDV6: of(s.IPv6.Prefix.IsValid())}
}

// stamp prints a time as BIRD's `show status` does.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime)
}

// sessionReport counts and lists the sessions by family.
func sessionReport(peers []agentapi.BGPPeer, now time.Time) api.CalicoNodeBGPStatus {
	var out api.CalicoNodeBGPStatus
	for _, p := range peers {
		up, down, list := &out.NumberEstablishedV4, &out.NumberNotEstablishedV4, &out.PeersV4
		if p.Address.Unmap().Is6() {
			up, down, list = &out.NumberEstablishedV6, &out.NumberNotEstablishedV6, &out.PeersV6
		}
		if p.State == established {
			*up++
		} else {
			*down++
		}
		*list = append(*list, api.CalicoNodePeer{
			PeerIP: p.Address.Unmap().String(), Type: peerKind(bgp.PeerType(p.Type)), State: p.State, Since: agentapi.Since(p.Since, now),
		})
	}
	return out
}

const established = "Established"

// peerKind is the API's word for a peer type.
func peerKind(t bgp.PeerType) string {
	switch t {
	case bgp.TypeMesh:
		return "NodeMesh"
	case bgp.TypeGlobal:
		return "GlobalPeer"
	}
	return "NodePeer"
}

// routeView is what the report of routes is made from.
type routeView struct {
	have   map[desired.RouteKey]desired.Route // in the kernel, ours
	direct map[netip.Prefix]string            // connected subnets with their interface
	peers  []bgp.PeerStatus
	offers []bgp.Route // all that peers offer
}

// report lists the kernel's routes as FIB, and as RIB what peers offer and the
// kernel does not have.
func (v routeView) report() api.CalicoNodeRouteStatus {
	var routes []api.CalicoNodeRoute
	inKernel := map[netip.Prefix]desired.Route{}
	for key, r := range v.have {
		if r.Proto == desired.ProtoBGP {
			inKernel[key.Dst] = r
			continue
		}
		source := "Kernel"
		if r.Type == desired.Blackhole {
			source = "Static"
		}
		hops := r.Hops()
		if len(hops) == 0 { // a blackhole, or delivered here
			hops = []desired.NextHop{{}}
		}
		for _, hop := range hops {
			routes = append(routes, v.route("FIB", key.Dst, hop.Gateway, hop.Dev, api.CalicoNodeRouteOrigin{SourceType: source}))
		}
	}
	for dst, dev := range v.direct {
		routes = append(routes, v.route("FIB", dst, netip.Addr{}, dev, api.CalicoNodeRouteOrigin{SourceType: "Direct"}))
	}
	for _, o := range v.offers {
		kind, dev := "RIB", ""
		if k, ok := inKernel[o.Prefix]; ok && (o.Best || o.Multipath) {
			kind = "FIB"
			for _, hop := range k.Hops() {
				if hop.Gateway == o.NextHop.WithZone("") {
					dev = hop.Dev
				}
			}
		}
		routes = append(routes, v.route(kind, o.Prefix, o.NextHop, dev, v.origin(o.Peer)))
	}
	slices.SortFunc(routes, func(a, b api.CalicoNodeRoute) int {
		pa, pb := netip.MustParsePrefix(a.Destination), netip.MustParsePrefix(b.Destination)
		return cmp.Or(pa.Compare(pb), cmp.Compare(a.Type, b.Type), cmp.Compare(a.LearnedFrom.PeerIP, b.LearnedFrom.PeerIP), cmp.Compare(a.Gateway, b.Gateway))
	})
	var out api.CalicoNodeRouteStatus
	for _, r := range routes {
		if netip.MustParsePrefix(r.Destination).Addr().Is4() {
			out.RoutesV4 = append(out.RoutesV4, r)
		} else {
			out.RoutesV6 = append(out.RoutesV6, r)
		}
	}
	return out
}

func (v routeView) route(kind string, dst netip.Prefix, gateway netip.Addr, dev string, from api.CalicoNodeRouteOrigin) api.CalicoNodeRoute {
	r := api.CalicoNodeRoute{Type: kind, Destination: dst.String(), Gateway: notAvailable, Interface: dev, LearnedFrom: from}
	if gateway.IsValid() {
		r.Gateway = gateway.String()
		if r.Interface == "" {
			r.Interface = v.towards(gateway)
		}
	}
	r.Interface = cmp.Or(r.Interface, notAvailable)
	return r
}

// towards is the interface whose subnet holds a next hop, empty when none does.
func (v routeView) towards(hop netip.Addr) string {
	for subnet, dev := range v.direct {
		if subnet.Contains(hop) {
			return dev
		}
	}
	return ""
}

func (v routeView) origin(peer netip.Addr) api.CalicoNodeRouteOrigin {
	o := api.CalicoNodeRouteOrigin{SourceType: "BGPPeer", PeerIP: peer.String()}
	for _, p := range v.peers {
		if p.Peer.Addr == peer && p.Peer.Type == bgp.TypeMesh {
			o.SourceType = "NodeMesh"
		}
	}
	return o
}
