package api_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"github.com/manekinet/maneki/api"
)

// upstream makes Calico's own type of a kind; nil for the kinds that its public
// API does not have.
func upstream(kind string) any {
	switch kind {
	case "BGPConfiguration":
		return &v3.BGPConfiguration{}
	case "BGPFilter":
		return &v3.BGPFilter{}
	case "BGPPeer":
		return &v3.BGPPeer{}
	case "BlockAffinity":
		return &v3.BlockAffinity{}
	case "CalicoNodeStatus":
		return &v3.CalicoNodeStatus{}
	case "ClusterInformation":
		return &v3.ClusterInformation{}
	case "FelixConfiguration":
		return &v3.FelixConfiguration{}
	case "GlobalNetworkPolicy":
		return &v3.GlobalNetworkPolicy{}
	case "GlobalNetworkSet":
		return &v3.GlobalNetworkSet{}
	case "HostEndpoint":
		return &v3.HostEndpoint{}
	case "IPAMConfiguration":
		return &v3.IPAMConfiguration{}
	case "IPPool":
		return &v3.IPPool{}
	case "IPReservation":
		return &v3.IPReservation{}
	case "KubeControllersConfiguration":
		return &v3.KubeControllersConfiguration{}
	case "NetworkPolicy":
		return &v3.NetworkPolicy{}
	case "NetworkSet":
		return &v3.NetworkSet{}
	case "Profile":
		return &v3.Profile{}
	case "StagedGlobalNetworkPolicy":
		return &v3.StagedGlobalNetworkPolicy{}
	case "StagedKubernetesNetworkPolicy":
		return &v3.StagedKubernetesNetworkPolicy{}
	case "StagedNetworkPolicy":
		return &v3.StagedNetworkPolicy{}
	case "Tier":
		return &v3.Tier{}
	}
	return nil
}

// newerFields are the fields that Calico got after the release of the types
// compared with.
func newerFields(kind string) []string {
	switch kind {
	case "BGPConfiguration":
		return []string{"programClusterRoutes"}
	case "BGPFilter":
		return []string{"peerType", "communities", "asPathPrefix", "priority", "operations"}
	case "BGPPeer":
		return []string{"keepaliveTime"}
	case "BlockAffinity":
		return []string{"type"}
	case "FelixConfiguration":
		return []string{"nftablesFlowTableOffload"}
	case "IPAMConfiguration":
		return []string{"autoAllocateBlocks"}
	case "KubeControllersConfiguration":
		return []string{"interfacePattern", "status"} // status: they always write one
	case "Tier":
		return []string{"status"}
	}
	return nil
}

// Calico's own types of v3.31 read what is stored here, unknown fields
// forbidden, and what they write is read here, unknown fields forbidden, as the
// same object.
func TestRoundTripThroughUpstream(t *testing.T) {
	covered := map[string]bool{}
	for _, g := range api.Goldens() {
		name, stored := g[0], g[1]
		kind := api.KindOf(t, stored)
		theirs := upstream(kind)
		if theirs == nil || name == "Profile with rules" { // whose empty lists their types do not keep
			continue
		}
		covered[kind] = true
		t.Run(name, func(t *testing.T) {
			newer := newerFields(kind)
			stored := api.Without(t, stored, newer)
			d := json.NewDecoder(bytes.NewReader([]byte(stored)))
			d.DisallowUnknownFields()
			if err := d.Decode(theirs); err != nil {
				t.Fatalf("they cannot read %s: %v", stored, err)
			}
			written, err := json.Marshal(theirs)
			if err != nil {
				t.Fatal(err)
			}
			back, err := api.DecodeStrict(written)
			if err != nil {
				t.Fatalf("cannot read what they wrote: %v\n%s", err, written)
			}
			back.Default()
			again, err := api.Encode(back)
			if err != nil {
				t.Fatal(err)
			}
			if got := api.Without(t, string(again), newer); got != stored {
				t.Errorf("came back as\n %s, was\n %s", got, stored)
			}
		})
	}
	for _, k := range api.Kinds() {
		if upstream(k.Name) != nil && !covered[k.Name] {
			t.Errorf("%s went through nothing", k.Name)
		}
	}
}

// Every field of Calico's types has its place in the kinds here.
func TestUpstreamFields(t *testing.T) {
	for _, k := range api.Kinds() {
		theirs := upstream(k.Name)
		if theirs == nil {
			continue
		}
		for _, field := range api.MissingFields(reflect.TypeOf(theirs), k) {
			if k.Name == "IPPool" && (field == "spec.ipip" || field == "spec.nat-outgoing") {
				continue // of the API before v3, "do not use"
			}
			t.Errorf("%s has no %s", k.Name, field)
		}
	}
}

// What is stored has its fields in the order of Calico's types.
func TestUpstreamOrder(t *testing.T) {
	for _, k := range api.Kinds() {
		if theirs := upstream(k.Name); theirs != nil {
			for _, field := range api.OrderOf(reflect.TypeOf(theirs), k) {
				t.Errorf("%s%s stands too early", k.Name, field)
			}
		}
	}
}
