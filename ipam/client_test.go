package ipam

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
)

func one(host, handle string) Request { return Request{Host: host, Handle: handle, Num4: 1} }

func wantDump(t *testing.T, s datastore.Store, want string) {
	t.Helper()
	if diff := cmp.Diff(strings.TrimLeft(want, "\n"), dump(t, s)); diff != "" {
		t.Errorf("stored -want +got:\n%s", diff)
	}
}

func TestAssignAndRelease(t *testing.T) {
	for _, txn := range []bool{true, false} {
		t.Run(fmt.Sprintf("transactions=%v", txn), func(t *testing.T) {
			var s datastore.Store = newStore(t, "p4 10.0.0.0/29 30", "p6 fd00::/125 126")
			if !txn {
				s = datastoretest.NoTxn(s)
			}
			ctx := t.Context()
			c := New(s, Options{})
			b4, b6 := firstBlock("10.0.0.0/29", 30, "a"), firstBlock("fd00::/125", 126, "a")
			got, err := c.AutoAssign(ctx, Request{Host: "a", Handle: "h1", Num4: 1, Num6: 2})
			must(t, err)
			want := []Assignment{{b4.Addr(), b4, "p4"}, {b6.Addr(), b6, "p6"}, {b6.Addr().Next(), b6, "p6"}}
			if diff := cmp.Diff(want, got, cmp.Comparer(func(x, y Assignment) bool { return x == y })); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			wantDump(t, s, fmt.Sprintf(`
affinity host:a %[1]s confirmed
affinity host:a %[2]s confirmed
block %[1]s host:a h1=1
block %[2]s host:a h1=2
handle h1 %[1]s=1 %[2]s=2
`, b4, b6))
			held, err := c.ByHandle(ctx, "h1")
			must(t, err)
			if len(held) != 3 {
				t.Errorf("h1 holds %v", held)
			}
			freed, err := c.ReleaseByHandle(ctx, "h1")
			must(t, err)
			slices.SortFunc(freed, netip.Addr.Compare)
			if !slices.Equal(freed, held) {
				t.Errorf("released %v, want %v", freed, held)
			}
			if freed, err = c.ReleaseByHandle(ctx, "h1"); err != nil || freed != nil {
				t.Errorf("released again: %v, %v", freed, err)
			}
			wantDump(t, s, fmt.Sprintf(`
affinity host:a %[1]s confirmed
affinity host:a %[2]s confirmed
block %[1]s host:a
block %[2]s host:a
`, b4, b6))
		})
	}
}

func TestBadRequests(t *testing.T) {
	c, ctx := New(newStore(t, "p 10.0.0.0/24"), Options{}), t.Context()
	for want, r := range map[string]Request{
		"handle is empty":         {Host: "a", Num4: 1},
		"host is empty":           {Handle: "h", Num4: 1},
		"at least one":            {Host: "a", Handle: "h"},
		"-1 IPv4":                 {Host: "a", Handle: "h", Num4: -1, Num6: 2},
		"limit -1 is negative":    {Host: "a", Handle: "h", Num4: 1, MaxBlocks: -1},
		"no configured Calico po": {Host: "a", Handle: "h", Num6: 1},
		"pool (x) does not exist": {Host: "a", Handle: "h", Num4: 1, Pools4: []string{"x"}},
	} {
		if _, err := c.AutoAssign(ctx, r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	if _, err := c.ReleaseByHandle(ctx, "\r\n"); err == nil {
		t.Error("an empty handle is released")
	}
	if _, err := c.AssignIP(ctx, AssignRequest{Host: "a", Handle: "h"}); err == nil {
		t.Error("no address is assigned")
	}
}

// TestDualStackAllOrNothing: a family that cannot be served leaves nothing of
// the other.
func TestDualStackAllOrNothing(t *testing.T) {
	s := newStore(t, "p4 10.0.0.0/30 30", "p6 fd00::/128 128")
	c, ctx := New(s, Options{}), t.Context()
	if _, err := c.AutoAssign(ctx, Request{Host: "a", Handle: "h", Num4: 1, Num6: 2}); !errors.Is(err, ErrExhausted) {
		t.Fatalf("error %v", err)
	}
	if held := checkStore(t, s); len(held) != 0 {
		t.Errorf("held: %v", held)
	}
	_, err := c.AutoAssign(ctx, Request{Host: "a", Handle: "h", Num4: 1, Num6: 1})
	must(t, err)
	if held := checkStore(t, s); len(held) != 2 {
		t.Errorf("held: %v", held)
	}
}

// TestHalfStates starts from every state that a crash, an old Calico or a
// store without transactions can leave of a claim of host a on the only block,
// and assigns.
func TestHalfStates(t *testing.T) {
	cidr := "10.0.0.0/30"
	own := func() *block { return newBlock(prefix(cidr), "host:a", at(0)) }
	used := func(owner string) *block {
		b := newBlock(prefix(cidr), owner, at(0))
		b.assign(1, ownerAttribute("x", map[string]string{"node": "b"}), none)
		return b
	}
	confirmed := "affinity host:a 10.0.0.0/30 confirmed\nblock 10.0.0.0/30 host:a h=1\nhandle h 10.0.0.0/30=1\n"
	pending, leaving := `{"state":"pending","deleted":false}`, `{"state":"pendingDeletion","deleted":false}`
	for name, tc := range map[string]struct {
		affinity *string
		block    *block
		want     string
	}{
		"nothing":                     {want: confirmed},
		"pending, no block":           {affinity: &pending, want: confirmed},
		"pending, own block":          {affinity: &pending, block: own(), want: confirmed},
		"own block, no affinity":      {block: own(), want: confirmed},
		"leaving, own block":          {affinity: &leaving, block: own(), want: confirmed},
		"leaving, block gone":         {affinity: &leaving, want: confirmed},
		"legacy, own block":           {affinity: new(string), block: own(), want: confirmed},
		"legacy, no block":            {affinity: new(string), want: confirmed},
		"pending, another's block":    {affinity: &pending, block: used("host:b"), want: "block 10.0.0.0/30 host:b h=1 x=1\nhandle h 10.0.0.0/30=1\n"},
		"leaving, block in use freed": {affinity: &leaving, block: used(""), want: "block 10.0.0.0/30  h=1 x=1\nhandle h 10.0.0.0/30=1\n"},
		"nobody's block in use":       {block: used(""), want: "block 10.0.0.0/30  h=1 x=1\nhandle h 10.0.0.0/30=1\n"},
		"nobody's empty block":        {block: newBlock(prefix(cidr), "", at(0)), want: confirmed},
	} {
		for _, txn := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s transactions=%v", name, txn), func(t *testing.T) {
				var s datastore.Store = newStore(t, "p "+cidr+" 30")
				if tc.block != nil {
					putBlock(t, s, tc.block)
				}
				if tc.affinity != nil {
					putAffinity(t, s, "host:a", cidr, *tc.affinity)
				}
				if !txn {
					s = datastoretest.NoTxn(s)
				}
				_, err := New(s, Options{}).AutoAssign(t.Context(), one("a", "h"))
				must(t, err)
				wantDump(t, s, tc.want)
			})
		}
	}
}

func TestPoolSelection(t *testing.T) {
	s := newStore(t)
	sel := func(node, ns string, uses ...api.IPPoolUse) func(*api.IPPoolSpec) {
		return func(p *api.IPPoolSpec) {
			p.NodeSelector, p.NamespaceSelector = node, ns
			if uses != nil {
				p.AllowedUses = uses
			}
		}
	}
	createPool(t, s, "a-rack 10.1.0.0/24", sel("rack == '1'", ""))
	createPool(t, s, "b-team 10.2.0.0/24", sel("all()", "team == 'x'"))
	createPool(t, s, "c-all 10.3.0.0/24", sel("all()", ""))
	createPool(t, s, "d-tunnel 10.4.0.0/24", sel("all()", "", api.UseTunnel))
	createPool(t, s, "e-manual 10.5.0.0/24", func(p *api.IPPoolSpec) { p.AssignmentMode = "Manual" })
	createPool(t, s, "f-off 10.6.0.0/24", func(p *api.IPPoolSpec) { p.Disabled = true })
	createPool(t, s, "g6 fd00::/112", nil)
	c := New(s, Options{})
	for name, tc := range map[string]struct {
		r         Request
		want, err string
	}{
		"by node label":      {r: Request{NodeLabels: map[string]string{"rack": "1"}}, want: "a-rack"},
		"by namespace label": {r: Request{NamespaceLabels: map[string]string{"team": "x"}}, want: "b-team"},
		"nothing special":    {want: "c-all"},
		"tunnel":             {r: Request{Use: api.UseTunnel, NodeLabels: map[string]string{"rack": "2"}}, want: "c-all"},
		"load balancer":      {r: Request{Use: api.UseLoadBalancer}, err: "no configured Calico pools"},
		"named":              {r: Request{Pools4: []string{"e-manual"}}, want: "e-manual"},
		"named by CIDR":      {r: Request{Pools4: []string{"10.1.0.0/24"}}, want: "a-rack"},
		"named in order":     {r: Request{Pools4: []string{"e-manual", "c-all"}}, want: "e-manual"},
		"named, disabled":    {r: Request{Pools4: []string{"f-off"}}, err: "the given pool (f-off) does not exist, or is not enabled"},
		"named, wrong use":   {r: Request{Pools4: []string{"d-tunnel"}}, err: "no configured Calico pools for node n (IPv4, use Workload)"},
		"named, other family": {
			r:   Request{Pools4: []string{"g6"}},
			err: "the given pool (g6) does not exist, or is not enabled",
		},
	} {
		t.Run(name, func(t *testing.T) {
			tc.r.Host, tc.r.Handle, tc.r.Num4 = "n", "h", 1
			got, err := c.AutoAssign(t.Context(), tc.r)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || !errors.Is(err, ErrNoQualifiedPool) {
					t.Errorf("error %v, want %q", err, tc.err)
				}
				return
			}
			must(t, err)
			if got[0].Pool != tc.want {
				t.Errorf("from pool %s, want %s", got[0].Pool, tc.want)
			}
			must(t, c.ReleaseHost(t.Context(), "n")) // a block owned already is used first
		})
	}
}

func TestBlockLimit(t *testing.T) {
	s := newStore(t, "p 10.0.0.0/24 31")
	c, ctx := New(s, Options{}), t.Context()
	_, err := c.AutoAssign(ctx, Request{Host: "a", Handle: "h", Num4: 40}) // 20 blocks by default
	must(t, err)
	_, err = c.AutoAssign(ctx, one("a", "h"))
	if !errors.Is(err, ErrBlockLimit) || !strings.Contains(err.Error(), "cannot allocate new block due to per host block limit") {
		t.Errorf("error %v", err)
	}
	_, err = c.AutoAssign(ctx, Request{Host: "b", Handle: "h", Num4: 5, MaxBlocks: 2})
	if !errors.Is(err, ErrBlockLimit) {
		t.Errorf("request's limit: error %v", err)
	}
	must(t, c.SetConfig(ctx, api.IPAMConfig{StrictAffinity: true, AutoAllocateBlocks: true, MaxBlocksPerHost: 3}))
	if _, err = c.AutoAssign(ctx, Request{Host: "c", Handle: "h", Num4: 7, MaxBlocks: 9}); !errors.Is(err, ErrBlockLimit) {
		t.Errorf("cluster's limit: error %v", err)
	}
	_, err = c.AutoAssign(ctx, Request{Host: "c", Handle: "h", Num4: 6, MaxBlocks: 9})
	must(t, err)
	checkStore(t, s)
}

func TestBorrowing(t *testing.T) {
	s := newStore(t, "p 10.0.0.0/30 31")
	c, ctx := New(s, Options{}), t.Context()
	for _, r := range []Request{one("a", "a1"), one("b", "b1"), one("b", "b2"), one("b", "b3")} {
		if _, err := c.AutoAssign(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	held := checkStore(t, s)
	if len(held) != 4 {
		t.Errorf("held %v", held)
	}
	borrowed, err := c.Borrowed(ctx)
	must(t, err)
	if len(borrowed) != 1 || borrowed[0].Node != "b" || borrowed[0].Affinity != "host:a" || borrowed[0].Handle != "b3" {
		t.Errorf("borrowed %+v", borrowed)
	}
	if _, err := c.AutoAssign(ctx, one("b", "b4")); !errors.Is(err, ErrExhausted) ||
		!strings.Contains(err.Error(), "assigned 0 out of 1 requested IPv4 addresses") {
		t.Errorf("error %v", err)
	}
}

func TestStrictAffinity(t *testing.T) {
	s := newStore(t, "p 10.0.0.0/30 31")
	c, ctx := New(s, Options{}), t.Context()
	must(t, c.SetConfig(ctx, api.IPAMConfig{StrictAffinity: true, AutoAllocateBlocks: true}))
	_, err := c.AutoAssign(ctx, one("a", "a1"))
	must(t, err)
	_, err = c.AutoAssign(ctx, Request{Host: "b", Handle: "b", Num4: 3})
	if !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "strict affinity") {
		t.Errorf("error %v", err)
	}
	a1, err := c.ByHandle(ctx, "a1")
	must(t, err)
	if _, err := c.AssignIP(ctx, AssignRequest{Addr: a1[0].Next(), Host: "b", Handle: "b"}); err == nil {
		t.Error("an address of another host's block is assigned")
	}
	must(t, c.SetConfig(ctx, api.IPAMConfig{StrictAffinity: true}))
	if _, err := c.AutoAssign(ctx, one("c", "c")); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "automatic allocation") {
		t.Errorf("error %v", err)
	}
}

func TestConfigRules(t *testing.T) {
	s := newStore(t)
	c, ctx := New(s, Options{}), t.Context()
	if cfg, err := c.Config(ctx); err != nil || !cfg.AutoAllocateBlocks || cfg.StrictAffinity {
		t.Errorf("default %+v, %v", cfg, err)
	}
	for _, bad := range []api.IPAMConfig{
		{},
		{AutoAllocateBlocks: true, MaxBlocksPerHost: 1},
		{StrictAffinity: true, MaxBlocksPerHost: -1},
		{AutoAllocateBlocks: true, IPCooldownSeconds: -1},
	} {
		if err := c.SetConfig(ctx, bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
	_, err := s.Put(ctx, configKey(), []byte(`{"strict_affinity":false,"auto_allocate_blocks":true,"novelty":1}`), datastore.Always())
	must(t, err)
	must(t, c.SetConfig(ctx, api.IPAMConfig{StrictAffinity: true, AutoAllocateBlocks: true, IPCooldownSeconds: 3}))
	e, err := s.Get(ctx, configKey())
	must(t, err)
	want := `{"strict_affinity":true,"auto_allocate_blocks":true,"maxBlocksPerHost":0,"ipCooldownSeconds":3,"novelty":1}`
	if string(e.Value) != want {
		t.Errorf("stored %s", e.Value)
	}
}

func TestReservationsAndInUse(t *testing.T) {
	s := newStore(t, "p 10.0.0.0/29 30")
	reserve(t, s, "10.0.0.0/30", "10.0.0.5")
	c, ctx := New(s, Options{InUse: func(a netip.Addr) bool { return a == addr("10.0.0.4") }}), t.Context()
	got, err := c.AutoAssign(ctx, Request{Host: "a", Handle: "h", Num4: 2})
	must(t, err)
	if addrsOf(got) != "10.0.0.6 10.0.0.7" {
		t.Errorf("got %s", addrsOf(got))
	}
	if _, err := c.AutoAssign(ctx, one("a", "h")); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "1 passed over") {
		t.Errorf("error %v", err)
	}
	if _, err := c.AssignIP(ctx, AssignRequest{Addr: addr("10.0.0.5"), Host: "a", Handle: "h"}); err != nil {
		t.Errorf("a reserved address cannot be named: %v", err)
	}
	usage, err := c.Usage(ctx)
	must(t, err)
	u := usage[0]
	if u.Total != 8 || u.InUse != 3 || u.Reserved != 4 || u.Free != 1 {
		t.Errorf("usage %+v", u)
	}
}

func TestAssignIP(t *testing.T) {
	for _, txn := range []bool{true, false} {
		var s datastore.Store = newStore(t, "p 10.0.0.0/29 30", "t 10.1.0.0/30 30")
		modifyPool(t, s, "t", func(p *api.IPPoolSpec) { p.AllowedUses = []api.IPPoolUse{api.UseTunnel} })
		if !txn {
			s = datastoretest.NoTxn(s)
		}
		c, ctx := New(s, Options{}), t.Context()
		r := AssignRequest{Addr: addr("10.0.0.6"), Host: "a", Handle: "h"}
		got, err := c.AssignIP(ctx, r)
		must(t, err)
		if got != (Assignment{addr("10.0.0.6"), prefix("10.0.0.4/30"), "p"}) {
			t.Errorf("got %+v", got)
		}
		if _, err := c.AssignIP(ctx, r); !errors.Is(err, ErrAssigned) || !strings.Contains(err.Error(), "address already assigned in block") {
			t.Errorf("again: %v", err)
		}
		_, err = c.AssignIP(ctx, AssignRequest{Addr: addr("10.0.0.5"), Host: "b", Handle: "g"}) // borrowed
		must(t, err)
		if _, err := c.AssignIP(ctx, AssignRequest{Addr: addr("10.9.0.1"), Host: "a", Handle: "h"}); !errors.Is(err, ErrNoQualifiedPool) {
			t.Errorf("outside: %v", err)
		}
		if _, err := c.AssignIP(ctx, AssignRequest{Addr: addr("10.1.0.1"), Host: "a", Handle: "h", Use: api.UseWorkload}); !errors.Is(err, ErrNoQualifiedPool) {
			t.Errorf("wrong use: %v", err)
		}
		wantDump(t, s, "affinity host:a 10.0.0.4/30 confirmed\nblock 10.0.0.4/30 host:a g=1 h=1\nhandle g 10.0.0.4/30=1\nhandle h 10.0.0.4/30=1\n")
		checkStore(t, s)
	}
}

func TestReleaseExactly(t *testing.T) {
	for _, txn := range []bool{true, false} {
		var s datastore.Store = newStore(t, "p 10.0.0.0/29 29")
		if !txn {
			s = datastoretest.NoTxn(s)
		}
		c, ctx := New(s, Options{}), t.Context()
		got, err := c.AutoAssign(ctx, Request{Host: "a", Handle: "h", Num4: 3})
		must(t, err)
		al, err := c.Lookup(ctx, got[0].Addr)
		must(t, err)
		if al.Handle != "h" || al.Node != "a" || al.Pool != "p" || al.Affinity != "host:a" || al.Sequence == 0 {
			t.Errorf("looked up %+v", al)
		}
		for _, o := range []ReleaseOptions{
			{Addr: al.Addr, Handle: "other"},
			{Addr: al.Addr, Handle: "h", Sequence: al.Sequence + 1},
		} {
			if _, err := c.ReleaseExactly(ctx, ReleaseOptions{Addr: got[1].Addr}, o); !errors.Is(err, ErrStale) {
				t.Errorf("%+v: error %v", o, err)
			}
		}
		if held := checkStore(t, s); len(held) != 3 {
			t.Errorf("a refused release changed %v", held)
		}
		missing, err := c.ReleaseExactly(ctx, ReleaseOptions{al.Addr, "h", al.Sequence}, ReleaseOptions{Addr: addr("10.0.0.7")})
		must(t, err)
		if !slices.Equal(missing, []netip.Addr{addr("10.0.0.7")}) {
			t.Errorf("missing %v", missing)
		}
		if _, err := c.Lookup(ctx, al.Addr); !errors.Is(err, ErrNotAssigned) {
			t.Errorf("looked up after release: %v", err)
		}
		missing, err = c.Release(ctx, got[1].Addr, got[2].Addr, addr("8.8.8.8"))
		must(t, err)
		if len(missing) != 1 || len(checkStore(t, s)) != 0 || len(handles(t, s)) != 0 {
			t.Errorf("missing %v, stored:\n%s", missing, dump(t, s))
		}
	}
}

// TestReleaseSameAddressTwice: one call naming an address twice releases it once.
func TestReleaseSameAddressTwice(t *testing.T) {
	s := newStore(t, "p 10.0.0.0/29 29")
	c, ctx := New(s, Options{}), t.Context()
	got, err := c.AutoAssign(ctx, Request{Host: "a", Handle: "h", Num4: 2})
	must(t, err)
	if _, err = c.Release(ctx, got[0].Addr, got[0].Addr); err != nil {
		t.Fatal(err)
	}
	if held := checkStore(t, s); len(held) != 1 {
		t.Errorf("held %v", held)
	}
}

func TestReleaseHostAndPool(t *testing.T) {
	for _, txn := range []bool{true, false} {
		var s datastore.Store = newStore(t, "p 10.0.0.0/29 30")
		if !txn {
			s = datastoretest.NoTxn(s)
		}
		c, ctx := New(s, Options{}), t.Context()
		for _, r := range []Request{one("a", "a1"), one("a", "a2"), {Host: "b", Handle: "b", Num4: 5}} { // one borrowed from a
			_, err := c.AutoAssign(ctx, r)
			must(t, err)
		}
		_, err := s.Put(ctx, datastore.Key{Kind: datastore.KindIPAMHost, Name: "a"}, nil, datastore.Always())
		must(t, err)
		must(t, c.ReleaseHost(ctx, "a"))
		held := checkStore(t, s)
		for a, h := range held {
			if h != "b" {
				t.Errorf("%s is still held by %s", a, h)
			}
		}
		aBlock := firstBlock("10.0.0.0/29", 30, "a")
		if d := dump(t, s); len(held) != 5 || !strings.Contains(d, fmt.Sprintf("block %s  b=1", aBlock)) || strings.Contains(d, "host:a") {
			t.Errorf("stored:\n%s", d)
		}
		if _, err := s.Get(ctx, datastore.Key{Kind: datastore.KindIPAMHost, Name: "a"}); !errors.Is(err, datastore.ErrNotFound) {
			t.Errorf("the host's marker is still there: %v", err)
		}
		must(t, c.ReleasePool(ctx, prefix("10.0.0.0/29")))
		if d := dump(t, s); strings.Contains(d, "affinity") || len(checkStore(t, s)) != 5 {
			t.Errorf("stored:\n%s", d)
		}
		if _, err := c.ReleaseByHandle(ctx, "b"); err != nil {
			t.Fatal(err)
		}
		wantDump(t, s, "") // blocks that nobody owns go with their last address
		must(t, c.ReleaseHost(ctx, "a"))
	}
}

// TestReclaim: when no block is left, an empty one that another host claimed at
// least a minute ago changes hands, and its former owner notices.
func TestReclaim(t *testing.T) {
	for _, txn := range []bool{true, false} {
		var s datastore.Store = newStore(t, "p 10.0.0.0/30 30")
		if !txn {
			s = datastoretest.NoTxn(s)
		}
		now := at(0)
		c, ctx := New(s, Options{Now: func() time.Time { return now }}), t.Context()
		must(t, c.SetConfig(ctx, api.IPAMConfig{StrictAffinity: true, AutoAllocateBlocks: true}))
		a := NewHost(c, "a")
		_, err := a.AutoAssign(ctx, one("a", "a1"))
		must(t, err)
		_, err = a.ReleaseByHandle(ctx, "a1")
		must(t, err)
		now = at(59)
		if _, err := c.AutoAssign(ctx, one("b", "b1")); !errors.Is(err, ErrExhausted) {
			t.Errorf("after 59 s: %v", err)
		}
		now = at(61)
		if _, err := c.AutoAssign(ctx, one("b", "b1")); err != nil {
			t.Errorf("after 61 s: %v", err)
		}
		if _, err := a.AutoAssign(ctx, one("a", "a2")); !errors.Is(err, ErrExhausted) {
			t.Errorf("the former owner: %v", err)
		}
		wantDump(t, s, "affinity host:b 10.0.0.0/30 confirmed\nblock 10.0.0.0/30 host:b b1=1\nhandle b1 10.0.0.0/30=1\n")
	}
}

// TestPrune: empty blocks of pools that no longer select the node are given up,
// others stay.
func TestPrune(t *testing.T) {
	s := newStore(t, "p1 10.0.0.0/30 30", "p2 10.1.0.0/30 30", "p3 10.2.0.0/30 30")
	h, ctx := NewHost(New(s, Options{}), "a"), t.Context()
	for i, pool := range []string{"p1", "p2", "p3"} {
		r := one("a", fmt.Sprint("h", i+1))
		r.Pools4 = []string{pool}
		_, err := h.AutoAssign(ctx, r)
		must(t, err)
	}
	_, err := h.ReleaseByHandle(ctx, "h1")
	must(t, err)
	for _, p := range []string{"p1", "p2"} {
		modifyPool(t, s, p, func(p *api.IPPoolSpec) { p.NodeSelector = "has(gpu)" })
	}
	_, err = h.AutoAssign(ctx, one("a", "h4"))
	must(t, err)
	d := dump(t, s)
	if strings.Contains(d, "10.0.0.0/30") || !strings.Contains(d, "block 10.1.0.0/30 host:a h2=1") || !strings.Contains(d, "block 10.2.0.0/30 host:a h3=1 h4=1") {
		t.Errorf("stored:\n%s", d)
	}
}

func TestCooldownAcrossTheStore(t *testing.T) {
	s := newStore(t, "p 10.0.0.0/31 31")
	now := at(0)
	c, ctx := New(s, Options{Now: func() time.Time { return now }}), t.Context()
	must(t, c.SetConfig(ctx, api.IPAMConfig{AutoAllocateBlocks: true, IPCooldownSeconds: 30}))
	_, err := c.AutoAssign(ctx, Request{Host: "a", Handle: "h", Num4: 2})
	must(t, err)
	_, err = c.ReleaseByHandle(ctx, "h")
	must(t, err)
	if _, err := c.AutoAssign(ctx, one("a", "h")); !errors.Is(err, ErrExhausted) {
		t.Errorf("before the cool-down is over: %v", err)
	}
	u, err := c.Usage(ctx)
	must(t, err)
	if u[0].Cooling != 2 || u[0].InUse != 0 || u[0].Free != 0 {
		t.Errorf("usage %+v", u[0])
	}
	must(t, c.ReleaseHost(ctx, "a"))
	if n, err := c.Collect(ctx); n != 0 || err != nil || !strings.Contains(dump(t, s), "block 10.0.0.0/31 ") {
		t.Errorf("collected %d, %v; stored:\n%s", n, err, dump(t, s))
	}
	now = at(30)
	if n, err := c.Collect(ctx); n != 2 || err != nil {
		t.Errorf("collected %d, %v", n, err)
	}
	wantDump(t, s, "")
	_, err = c.AutoAssign(ctx, one("a", "h"))
	must(t, err)
}

func TestCorruptBlockIsPassedOver(t *testing.T) {
	s := newStore(t, "p 10.0.0.0/29 30")
	ctx := t.Context()
	bad := firstBlock("10.0.0.0/29", 30, "a")
	_, err := s.Put(ctx, blockKey(bad), []byte(`{"cidr":"no"}`), datastore.Always())
	must(t, err)
	putAffinity(t, s, "host:a", bad.String(), `{"state":"confirmed"}`)
	c := New(s, Options{})
	got, err := c.AutoAssign(ctx, one("a", "h"))
	must(t, err)
	if bad.Contains(got[0].Addr) {
		t.Errorf("assigned %s", got[0].Addr)
	}
	blocks, corrupt, err := c.Blocks(ctx)
	must(t, err)
	if len(blocks) != 1 || len(corrupt) != 1 || !strings.Contains(corrupt[0].Error(), bad.String()) {
		t.Errorf("blocks %v, corrupt %v", blocks, corrupt)
	}
	if _, err := c.Lookup(ctx, bad.Addr()); err == nil || errors.Is(err, ErrNotAssigned) {
		t.Errorf("looked up: %v", err)
	}
	e, err := s.Get(ctx, blockKey(bad))
	must(t, err)
	if string(e.Value) != `{"cidr":"no"}` {
		t.Errorf("the corrupt block was changed: %s", e.Value)
	}
}

// TestForeignBlockSize: no block is created over one of another size.
func TestForeignBlockSize(t *testing.T) {
	s := newStore(t, "p 10.0.0.0/24 26")
	b := newBlock(prefix("10.0.0.64/28"), "host:x", at(0))
	b.assign(16, ownerAttribute("x", nil), none)
	putBlock(t, s, b)
	c, ctx := New(s, Options{}), t.Context()
	got, err := c.AutoAssign(ctx, Request{Host: "a", Handle: "h", Num4: 192})
	must(t, err)
	for _, g := range got {
		if prefix("10.0.0.64/26").Contains(g.Addr) {
			t.Fatalf("assigned %s", g.Addr)
		}
	}
	if _, err := c.AutoAssign(ctx, one("a", "h")); !errors.Is(err, ErrExhausted) {
		t.Errorf("error %v", err)
	}
	if al, err := c.Lookup(ctx, addr("10.0.0.65")); err != nil || al.Handle != "x" {
		t.Errorf("looked up %+v, %v", al, err)
	}
}

func TestHugePool(t *testing.T) {
	s := newStore(t, "p6 fd00::/48")
	reserve(t, s, "fd00::/49")
	c, ctx := New(s, Options{}), t.Context()
	for _, host := range []string{"a", "b", "node1"} {
		got, err := c.AutoAssign(ctx, Request{Host: host, Handle: host, Num6: 3})
		must(t, err)
		if prefix("fd00::/49").Contains(got[0].Addr) {
			t.Errorf("%s is reserved", got[0].Addr)
		}
	}
	u, err := c.Usage(ctx)
	must(t, err)
	if u[0].Total != math.Ldexp(1, 80) || u[0].Reserved != math.Ldexp(1, 79) || u[0].InUse != 9 || len(u[0].Blocks) != 3 {
		t.Errorf("usage %+v", u[0])
	}
}

func TestUsageOfOrphans(t *testing.T) {
	s := newStore(t, "p 10.0.0.0/30 31")
	c, ctx := New(s, Options{}), t.Context()
	_, err := c.AutoAssign(ctx, one("a", "h"))
	must(t, err)
	_, err = datastore.For[api.IPPool](s).Delete(ctx, "", "p", "")
	must(t, err)
	u, err := c.Usage(ctx)
	must(t, err)
	if len(u) != 1 || u[0].Pool != "" || u[0].InUse != 1 || u[0].Total != 2 {
		t.Errorf("usage %+v", u)
	}
	_, err = c.ReleaseByHandle(ctx, "h")
	must(t, err)
}

func TestAllocationNames(t *testing.T) {
	for _, tc := range []struct {
		attrs   map[string]string
		typ, to string
	}{
		{map[string]string{"pod": "p", "namespace": "ns", "node": "n"}, "pod", "ns/p"},
		{map[string]string{"type": "vxlanTunnelAddress", "node": "n"}, "vxlanTunnelAddress", "n"},
		{map[string]string{"service": "s", "namespace": "ns"}, "service", "ns/s"},
		{map[string]string{"node": "n"}, "", "h"},
	} {
		a := Allocation{Attrs: tc.attrs, Node: tc.attrs["node"], Handle: "h"}
		if a.Type() != tc.typ || a.AllocatedTo() != tc.to {
			t.Errorf("%v: %q %q", tc.attrs, a.Type(), a.AllocatedTo())
		}
	}
}

// TestCarriageReturnHandles: allocations of old migrations are released by the
// clean handle.
func TestCarriageReturnHandles(t *testing.T) {
	s := newStore(t, "p 10.0.0.0/30 30")
	b := newBlock(prefix("10.0.0.0/30"), "host:a", at(0))
	b.assign(1, ownerAttribute("h\r\njunk", nil), none)
	putBlock(t, s, b)
	ctx := t.Context()
	_, err := s.Put(ctx, handleKey("h"), []byte(`{"block":{"10.0.0.0/30":1}}`), datastore.Always())
	must(t, err)
	freed, err := New(s, Options{}).ReleaseByHandle(ctx, "h\r")
	must(t, err)
	if len(freed) != 1 || len(handles(t, s)) != 0 {
		t.Errorf("released %v", freed)
	}
}

func TestWith(t *testing.T) {
	key := datastore.Key{Kind: "IPReservation", Name: "with"}
	for _, txn := range []bool{true, false} {
		var s datastore.Store = newStore(t, "p 10.0.0.0/30 30")
		if !txn {
			s = datastoretest.NoTxn(s)
		}
		c, ctx := New(s, Options{}), t.Context()
		r := one("a", "h1")
		r.With = []datastore.Op{{Key: key, Value: []byte(`{}`), If: datastore.Absent()}}
		_, err := c.AutoAssign(ctx, r)
		must(t, err)
		written, err := s.Get(ctx, key)
		must(t, err)
		if h, err := s.Get(ctx, handleKey("h1")); txn && (err != nil || h.Rev != written.Rev) {
			t.Errorf("not one transaction: %s and %s, %v", h.Rev, written.Rev, err)
		}
		r.Handle = "h2"
		if _, err := c.AutoAssign(ctx, r); !errors.Is(err, datastore.ErrExists) {
			t.Errorf("error %v", err)
		}
		if held := checkStore(t, s); len(held) != 1 {
			t.Errorf("held %v", held)
		}
		// A handle that exists already is no fault of the caller's.
		r.Handle, r.With[0].If = "h1", datastore.At(written.Rev)
		_, err = c.AutoAssign(ctx, r)
		must(t, err)
		if _, err := c.AutoAssign(ctx, r); !errors.Is(err, datastore.ErrConflict) {
			t.Errorf("error %v", err)
		}
		if held := checkStore(t, s); len(held) != 2 {
			t.Errorf("held %v", held)
		}
	}
}

// TestManyAddressesAtOnce needs more operations than one transaction holds.
func TestManyAddressesAtOnce(t *testing.T) {
	s := newStore(t, "p 10.0.0.0/23 31")
	c, ctx := New(s, Options{}), t.Context()
	got, err := c.AutoAssign(ctx, Request{Host: "a", Handle: "h", Num4: 400, MaxBlocks: 300})
	must(t, err)
	if held := checkStore(t, s); len(got) != 400 || len(held) != 400 {
		t.Errorf("got %d, held %d", len(got), len(held))
	}
	freed, err := c.ReleaseByHandle(ctx, "h")
	must(t, err)
	if len(freed) != 400 || len(checkStore(t, s)) != 0 {
		t.Errorf("released %d", len(freed))
	}
}

func TestTunnelAddress(t *testing.T) {
	s := newStore(t)
	createPool(t, s, "v4 10.0.0.0/24", func(p *api.IPPoolSpec) { p.VXLANMode, p.IPIPMode = api.EncapCrossSubnet, api.EncapNever })
	createPool(t, s, "v6 fd00::/112", func(p *api.IPPoolSpec) { p.VXLANMode = api.EncapAlways })
	c, ctx := New(s, Options{}), t.Context()
	h := NewHost(c, "n")
	ensure := func(kind TunnelKind) netip.Addr {
		t.Helper()
		a, err := h.EnsureTunnelAddr(ctx, TunnelRequest{Kind: kind})
		must(t, err)
		again, err := c.EnsureTunnelAddr(ctx, TunnelRequest{Host: "n", Kind: kind})
		must(t, err)
		if a != again {
			t.Errorf("%s: %s and then %s", kind, a, again)
		}
		return a
	}
	first := ensure(TunnelVXLAN)
	al, err := c.Lookup(ctx, first)
	must(t, err)
	if al.Handle != "vxlan-tunnel-addr-n" || al.Attrs["type"] != "vxlanTunnelAddress" || al.Node != "n" {
		t.Errorf("allocated as %+v", al)
	}
	if a := ensure(TunnelVXLANv6); !prefix("fd00::/112").Contains(a) {
		t.Errorf("IPv6 tunnel address %s", a)
	}
	if a := ensure(TunnelIPIP); a.IsValid() {
		t.Errorf("IPIP address %s without such a pool", a)
	}
	if a := ensure(TunnelWireguard); !prefix("10.0.0.0/24").Contains(a) {
		t.Errorf("WireGuard address %s", a)
	}
	// The pool changes its encapsulation: the address goes, and a new pool gives another.
	createPool(t, s, "x4 10.1.0.0/24", func(p *api.IPPoolSpec) { p.VXLANMode = api.EncapAlways })
	modifyPool(t, s, "v4", func(p *api.IPPoolSpec) { p.Disabled = true })
	if a := ensure(TunnelVXLAN); !prefix("10.1.0.0/24").Contains(a) {
		t.Errorf("tunnel address %s", a)
	}
	if _, err := c.Lookup(ctx, first); !errors.Is(err, ErrNotAssigned) {
		t.Errorf("the old address: %v", err)
	}
	modifyPool(t, s, "x4", func(p *api.IPPoolSpec) { p.VXLANMode = api.EncapNever })
	if a := ensure(TunnelVXLAN); a.IsValid() || len(handles(t, s)["vxlan-tunnel-addr-n"]) > 0 {
		t.Errorf("tunnel address %s stays", a)
	}
	must(t, h.ReleaseTunnelAddr(ctx, TunnelVXLANv6))
	must(t, c.ReleaseTunnelAddr(ctx, "n", TunnelWireguard))
	if held := checkStore(t, s); len(held) != 0 {
		t.Errorf("held %v", held)
	}
	if _, err := c.EnsureTunnelAddr(ctx, TunnelRequest{Host: "n", Kind: "gre"}); err == nil {
		t.Error("an unknown kind is accepted")
	}
}

func TestLoadBalancerUse(t *testing.T) {
	s := newStore(t)
	createPool(t, s, "lb 10.0.0.0/30 30", func(p *api.IPPoolSpec) { p.AllowedUses = []api.IPPoolUse{api.UseLoadBalancer} })
	_, err := NewHost(New(s, Options{}), "a").AutoAssign(t.Context(), Request{Handle: "svc", Num4: 1, Use: api.UseLoadBalancer})
	must(t, err)
	wantDump(t, s, "affinity virtual:load-balancer 10.0.0.0/30 confirmed\nblock 10.0.0.0/30 virtual:load-balancer svc=1\nhandle svc 10.0.0.0/30=1\n")
}

// TestCancelledRequest leaves nothing behind.
func TestCancelledRequest(t *testing.T) {
	s := newStore(t, "p 10.0.0.0/30 30")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(s, Options{}).AutoAssign(ctx, one("a", "h")); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	wantDump(t, s, "")
}
