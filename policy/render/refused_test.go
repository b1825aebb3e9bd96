package render_test

import (
	"context"
	"slices"
	"testing"

	"github.com/manekinet/maneki/dataplane/nft"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

// TestARefusedSetIsOfItsPolicies: networks that overlap are none that a set of the kernel takes, and none that calc makes.
// The refusal names the policies that ask the set and no others; with these denying the rest goes in.
func TestARefusedSetIsOfItsPolicies(t *testing.T) {
	r := newRig(t)
	s := variantState(0)
	key := desired.EndpointKey{Namespace: "default", Name: "w2"}
	bad, good := gnp("bad"), gnp("good")
	s.Sets["s:overlap"] = &policy.Set{ID: "s:overlap", Kind: policy.Addresses, Members: members("192.0.2.0/24", "192.0.2.0/25")}
	s.Policies[bad] = &policy.Policy{ID: bad, Tier: "default", Ingress: numbered(rule(policy.Allow, proto(6), fromSet("s:overlap")))}
	s.Policies[good] = &policy.Policy{ID: good, Tier: "default", Ingress: numbered(rule(policy.Allow, proto(17), to(80, 80)))}
	s.Endpoints[key].Normal.Ingress = []policy.Tier{{Name: "default", Policies: []policy.ID{good, bad}, EndDeny: true}}

	var refused []nft.Refusal
	r.applier.OnRefusal(func(list []nft.Refusal) { refused = append(refused, list...) })
	res := r.renderer.Render(s)
	have, err := r.applier.Dump(context.Background())
	must(t, err)
	r.applier.Provide(res.NFT)
	puts, dels := differences(res.NFT, have)
	if errs := r.applier.Apply(context.Background(), puts, dels); len(errs) == 0 {
		t.Fatal("the kernel takes networks that overlap")
	}
	var owners []policy.ID
	for _, f := range refused {
		owners = append(owners, res.Owners(f.Key)...)
	}
	if !slices.Equal(slices.Compact(owners), []policy.ID{bad}) {
		t.Fatalf("refused %v, of %v", refused, owners)
	}

	next := *s.Policies[bad]
	next.Ingress, next.Broken = nil, "refused"
	s.Policies[bad] = &next
	refused = nil
	r.apply(s)
	packet := func(proto uint8, port uint16) policy.Packet {
		return policy.Packet{Src: workloadAddr(1, true), Dst: workloadAddr(2, true), Protocol: proto, SrcPort: 5000 + port, DstPort: port}
	}
	yes, no := r.send("w1", packet(17, 80)), r.send("w1", packet(6, 80))
	if got := r.arrived([]uint64{yes}); len(got[yes]) == 0 || len(got[no]) > 0 || len(refused) > 0 {
		t.Errorf("arrived %v, refused %v", got, refused)
	}
}
