package ipam

import (
	"net/netip"
	"slices"
	"testing"

	"go4.org/netipx"
	"pgregory.net/rapid"
)

func uncovered(netip.Prefix) (netip.Addr, bool) { return netip.Addr{}, false }

func TestWalkSeed(t *testing.T) {
	// spec/calico.md §3, measured on Calico.
	if got := walkSeed("node1"); got != 3957252814 {
		t.Errorf("seed of node1 is %d, want 3957252814", got)
	}
}

// TestWalkVisitsEveryBlockOnce, in both families, from a start that the host's
// name decides.
func TestWalkVisitsEveryBlockOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := prefix(rapid.SampledFrom([]string{"10.128.0.0/16", "fd00:1::/64", "0.0.0.0/0", "ffff:ffff:ffff:ffff::/64"}).Draw(t, "pool"))
		depth := rapid.IntRange(0, 9).Draw(t, "depth")
		pool = netip.PrefixFrom(pool.Addr(), pool.Addr().BitLen()-6-depth).Masked()
		host := rapid.StringMatching(`[a-z0-9]{1,8}`).Draw(t, "host")
		w := newWalk(pool, pool.Bits()+depth, host, at(0))
		got := slices.Collect(w.blocks(uncovered))
		if len(got) != 1<<depth {
			t.Fatalf("%d blocks, want %d", len(got), 1<<depth)
		}
		seen := map[netip.Prefix]bool{}
		for _, b := range got {
			if seen[b] || !pool.Contains(b.Addr()) || b.Masked() != b || b.Bits() != pool.Bits()+depth {
				t.Fatalf("block %s of %s", b, pool)
			}
			seen[b] = true
		}
		shuffled := rapid.Permutation(got).Draw(t, "order")
		w.sort(shuffled)
		if !slices.Equal(shuffled, got) {
			t.Fatalf("sort differs from the walk")
		}
		if w != newWalk(pool, pool.Bits()+depth, host, at(99)) {
			t.Fatal("a host starts elsewhere the next time")
		}
	})
}

func TestWalkDependsOnHost(t *testing.T) {
	starts := map[wide]bool{}
	for _, h := range []string{"node1", "node2", "node3", "node4", "a", "b"} {
		starts[newWalk(prefix("10.0.0.0/8"), 26, h, at(0)).start] = true
	}
	if len(starts) < 5 {
		t.Errorf("6 hosts start at %d places", len(starts))
	}
	if newWalk(prefix("10.0.0.0/16"), 32, "a", at(0)) == newWalk(prefix("10.0.0.0/16"), 32, "a", at(1)) {
		t.Error("blocks of one address are walked from the same place again")
	}
}

// TestWalkHugePool: a pool of 2^58 blocks of which all but one are reserved is
// walked in no time.
func TestWalkHugePool(t *testing.T) {
	var b netipx.IPSetBuilder
	b.AddPrefix(prefix("fd00::/64"))
	b.RemovePrefix(prefix("fd00::1234:0:0:40/122"))
	b.RemovePrefix(prefix("fd00::ffff:0:0:81/128")) // covered in part only
	set, err := b.IPSet()
	if err != nil {
		t.Fatal(err)
	}
	st := &settings{reserved: set, ranges: set.Ranges()}
	for _, host := range []string{"node1", "node2", "x"} {
		got := slices.Collect(newWalk(prefix("fd00::/64"), 122, host, at(0)).blocks(st.covered))
		slices.SortFunc(got, func(x, y netip.Prefix) int { return x.Addr().Compare(y.Addr()) })
		want := []netip.Prefix{prefix("fd00::1234:0:0:40/122"), prefix("fd00::ffff:0:0:80/122")}
		if !slices.Equal(got, want) {
			t.Errorf("from %s: %v", host, got)
		}
	}
}

func TestOrdinals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		block := prefix(rapid.SampledFrom([]string{"10.0.0.64/26", "255.255.240.0/20", "fd00::40/122", "ffff::f000/116", "1.2.3.4/32"}).Draw(t, "block"))
		o := rapid.IntRange(0, 1<<hostBits(block)-1).Draw(t, "ordinal")
		a := addrAt(block, o)
		if back, ok := ordinalOf(block, a); !ok || back != o || !block.Contains(a) {
			t.Fatalf("%d of %s is %s is %d", o, block, a, back)
		}
		if _, ok := ordinalOf(block, block.Addr().Prev()); ok {
			t.Fatal("the address before the block is in it")
		}
	})
}

// TestWideArithmetic compares with addresses' own order and succession.
func TestWideArithmetic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := wide{rapid.Uint64().Draw(t, "hi"), rapid.Uint64().Draw(t, "lo")}
		v := wide{rapid.Uint64().Draw(t, "hi2"), rapid.Uint64().Draw(t, "lo2")}
		n := rapid.IntRange(0, 127).Draw(t, "n")
		if w.add(v).sub(v) != w {
			t.Fatal("add and sub")
		}
		if w.shl(n).shr(n) != w.low(128-n) {
			t.Fatalf("shift %d", n)
		}
		if w.shr(n).shl(n).add(w.low(n)) != w {
			t.Fatalf("split at %d", n)
		}
		if w.less(v) != w.addr(false).Less(v.addr(false)) {
			t.Fatal("order")
		}
		if wideOf(w.addr(false)) != w {
			t.Fatal("round trip")
		}
	})
}

// TestHugeConnectedSubnet: a host whose own /64 lies in its /63 pool, and whose
// walk starts in it, claims a block in the other half in no time.
func TestHugeConnectedSubnet(t *testing.T) {
	for _, subnet := range []netip.Prefix{prefix("fd00::/64"), prefix("fd00:0:0:1::/64")} {
		c := New(newStore(t, "p fd00::/63"), Options{Subnets: func() []netip.Prefix { return []netip.Prefix{subnet} }})
		got, err := c.AutoAssign(t.Context(), Request{Host: "a", Handle: "h", Num6: 1})
		must(t, err)
		if subnet.Contains(got[0].Addr) {
			t.Errorf("%s lies in the host's subnet %s", got[0].Addr, subnet)
		}
	}
}
