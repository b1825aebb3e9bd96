package agent

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/controller"
)

// A heartbeat counts the sessions with hosts of the cluster only, and names the
// hosts that are missing once, whatever the family.
func TestCountSessions(t *testing.T) {
	addr := netip.MustParseAddr
	state := calc.Reflection{NodeOf: map[netip.Addr]string{
		addr("10.0.0.2"): "h2", addr("10.0.0.3"): "h3", addr("fd00::3"): "h3", addr("10.0.0.4"): "h4",
	}}
	peer := func(a, state string, eor, cluster, client bool) bgp.PeerStatus {
		return bgp.PeerStatus{Peer: bgp.Peer{Addr: addr(a), Cluster: cluster, Client: client}, State: state, EoR: eor}
	}
	got := countSessions([]bgp.PeerStatus{
		peer("10.0.0.2", "Established", true, true, true),
		peer("10.0.0.3", "Active", false, true, true),
		peer("fd00::3", "Established", false, true, true), // its routes are not here yet
		peer("10.0.0.4", "Established", true, true, false),
		peer("10.0.0.254", "Active", false, false, false), // a router
	}, state)
	want := controller.Beat{Sessions: 4, Established: 2, Clients: 1, Missing: []string{"h3"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
