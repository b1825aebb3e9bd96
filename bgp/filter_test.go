package bgp

import (
	"net/netip"
	"testing"
	"time"

	"github.com/manekinet/maneki/bgp/filter"
)

// TestFilters: rules of both directions on a live session, changed while it is up.
func TestFilters(t *testing.T) {
	prefix := netip.MustParsePrefix
	p := mesh("10.0.45.2")
	p.ASN, p.Filters = 64999, "guard last"
	a := start(t, "10.0.45.1", Options{}, p)
	q := mesh("10.0.45.1")
	b := start(t, "10.0.45.2", Options{}, q)
	b.cfg.ASN = 64999
	within := func(s string, accept bool, ops ...filter.Operation) filter.Rule {
		return filter.Rule{CIDR: prefix(s), Match: filter.In, Accept: accept, Operations: ops}
	}
	a.cfg.Filters = map[string]filter.Filter{
		"guard": {
			Import4: []filter.Rule{within("10.80.0.0/16", true, filter.Operation{AddCommunity: "64512:5"}, filter.Operation{SetPriority: 512})},
			Export4: []filter.Rule{within("10.90.1.0/24", false), within("10.90.2.0/24", true, filter.Operation{PrependASPath: []uint32{64512, 64512}})},
		},
		"last": {Import4: []filter.Rule{{}}},
	}
	a.announce("10.90.1.0/26", "10.90.2.0/26", "10.90.3.0/26")
	b.announce("10.80.1.0/26", "0.0.0.0/0", "10.90.1.64/26")
	eventually(t, "what the filters let in", func() bool { return a.has("10.80.1.0/26") && a.peer("10.0.45.2").Received == 3 }, a, b)
	if st := a.peer("10.0.45.2"); st.Accepted != 1 {
		t.Errorf("accepted %d of %d, want 1 of 3", st.Accepted, st.Received)
	}
	if got := a.Best()[prefix("10.80.1.0/26")]; got.LocalPref != 1<<31-1-512 {
		t.Errorf("imported with LOCAL_PREF %d", got.LocalPref)
	}
	eventually(t, "what the filters let out", func() bool { return b.has("10.90.2.0/26") && b.has("10.90.3.0/26") }, a, b)
	time.Sleep(20 * time.Millisecond)
	if b.has("10.90.1.0/26") {
		t.Error("a refused route was sent")
	}
	if got := b.Best()[prefix("10.90.2.0/26")].ASPath; got != "64512 64512 64512" {
		t.Errorf("path %q", got)
	}
	since := a.peer("10.0.45.2").Since

	a.cfg.Filters["guard"] = filter.Filter{Export4: []filter.Rule{within("10.90.2.0/24", false)}}
	a.set()
	eventually(t, "the new export", func() bool { return b.has("10.90.1.0/26") && !b.has("10.90.2.0/26") && b.has("10.90.3.0/26") }, a, b)
	if n := len(a.Best()); n != 0 {
		t.Errorf("the last filter lets %d routes in", n)
	}
	delete(a.cfg.Filters, "last")
	a.set()
	eventually(t, "nothing through a filter that does not exist", func() bool { return len(b.Best()) == 0 && len(a.Best()) == 0 }, a, b)
	p.Filters, p.Local = "guard", a.addr
	a.cfg.Peers[p.Addr] = p
	a.set()
	eventually(t, "no import rules", func() bool { return len(a.Best()) == 3 }, a, b)
	if a.peer("10.0.45.2").Since != since {
		t.Error("a change of filters reset the session")
	}
}
