package nft_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/manekinet/maneki/dataplane/nft"
	"github.com/manekinet/maneki/dataplane/nstest"
)

// TestOthers: which foreign base chains there are, and whether one of their rules could drop, also behind jumps.
func TestOthers(t *testing.T) {
	ns := nstest.New(t)
	file := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte(`
table inet maneki {
	chain own {
		type filter hook forward priority 0; policy drop;
	}
}
table inet firewall {
	chain far {
		reject
	}
	chain near {
		ip saddr 10.0.0.1 goto far
	}
	chain in {
		type filter hook input priority 5;
		jump near;
	}
	chain back {
		counter
	}
	chain round {
		jump back
	}
	chain through {
		type filter hook forward priority -5;
		ct state established accept;
		jump round;
	}
}
table ip filter {
	chain FORWARD {
		type filter hook forward priority 0; policy drop;
	}
}
table ip6 filter {
	map m {
		type ipv6_addr : verdict;
	}
	chain FORWARD {
		type filter hook forward priority 0;
		ip6 saddr vmap @m;
	}
	chain POST {
		type nat hook postrouting priority 100;
		masquerade;
	}
}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	ns.Command("nft", "-f", file)
	var got []nft.OtherChain
	var err error
	ns.Do(func() { got, err = nft.Others() })
	if err != nil {
		t.Fatal(err)
	}
	want := []nft.OtherChain{
		{Family: "inet", Table: "firewall", Name: "through", Type: "filter", Hook: "forward", Priority: -5},
		{Family: "ip", Table: "filter", Name: "FORWARD", Type: "filter", Hook: "forward", PolicyDrop: true},
		{Family: "ip6", Table: "filter", Name: "FORWARD", Type: "filter", Hook: "forward", MayDrop: true},
		{Family: "inet", Table: "firewall", Name: "in", Type: "filter", Hook: "input", Priority: 5, MayDrop: true},
		{Family: "ip6", Table: "filter", Name: "POST", Type: "nat", Hook: "postrouting", Priority: 100},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
}

// TestLegacyTables: a table of the older iptables is found where the kernel can make one.
func TestLegacyTables(t *testing.T) {
	ns := nstest.New(t)
	list := func() (out []string) {
		ns.Do(func() {
			var err error
			if out, err = nft.LegacyTables(); err != nil {
				t.Error(err)
			}
		})
		return out
	}
	if got := list(); len(got) != 0 {
		t.Errorf("in a new namespace: %v", got)
	}
	if out, err := ns.TryCommand("iptables-legacy", "-A", "FORWARD", "-j", "DROP"); err != nil {
		t.Logf("no older iptables to try it with: %s", out)
		return
	}
	if got := list(); !slices.Equal(got, []string{"ip filter"}) {
		t.Errorf("got %v", got)
	}
}
