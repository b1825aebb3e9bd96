package ipam_test

import (
	"context"
	"net/netip"
	"testing"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/memory"
	"github.com/manekinet/maneki/ipam"
)

// TestABlockNeverCutsTheHostOff: the pool 10.0.0.0/24 has four blocks, and the
// host's own subnet lies in the second half of it.
func TestABlockNeverCutsTheHostOff(t *testing.T) {
	ctx := context.Background()
	store := memory.New()
	p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: "10.0.0.0/24", BlockSize: 26, NodeSelector: "all()", AssignmentMode: "Automatic", AllowedUses: []api.IPPoolUse{api.UseWorkload}}}
	p.Kind, p.APIVersion, p.Name = "IPPool", api.GroupVersion, "p"
	if err := datastore.For[api.IPPool](store).Create(ctx, p); err != nil {
		t.Fatal(err)
	}
	subnet := netip.MustParsePrefix("10.0.0.130/25")
	c := ipam.New(store, ipam.Options{Subnets: func() []netip.Prefix { return []netip.Prefix{subnet} }})
	for range 128 {
		got, err := c.AutoAssign(ctx, ipam.Request{Host: "h1", Handle: "x", Num4: 1})
		if err != nil {
			t.Fatal(err)
		}
		if subnet.Contains(got[0].Addr) {
			t.Fatalf("%s lies in the host's subnet %s", got[0].Addr, subnet)
		}
	}
	if got, err := c.AutoAssign(ctx, ipam.Request{Host: "h1", Handle: "x", Num4: 1}); err == nil {
		t.Fatalf("both free halves are used up, yet %s was assigned", got[0].Addr)
	}
	// A subnet that holds the whole pool was meant to.
	subnet = netip.MustParsePrefix("10.0.0.130/8")
	if _, err := c.AutoAssign(ctx, ipam.Request{Host: "h1", Handle: "x", Num4: 1}); err != nil {
		t.Fatal(err)
	}
}
