package ipam

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/manekinet/maneki/api"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

func none(netip.Addr) bool { return false }

// at is the clock of the tests: 2025-11-21 00:00:00 UTC.
func at(seconds int) time.Time { return time.Unix(1763683200+int64(seconds), 0).UTC() }

// TestBlockGolden compares the stored form of a block, byte by byte, with the
// form that Calico writes (spec/calico.md §1.4): a pod's and a tunnel's address
// assigned by two writes to a new block.
func TestBlockGolden(t *testing.T) {
	b := newBlock(prefix("192.168.1.0/29"), "host:node1", at(0))
	pod := ownerAttribute("k8s-pod-network.c0ffee", map[string]string{
		"namespace": "default", "node": "node1", "pod": "nginx", "timestamp": "2025-11-21 00:00:00 +0000 UTC",
	})
	tun := ownerAttribute("ipip-tunnel-addr-node1", map[string]string{"node": "node1", "type": "ipipTunnelAddress"})
	b.assign(1, pod, none)
	b.sequence++
	b.assign(1, tun, func(a netip.Addr) bool { return a == addr("192.168.1.1") })
	b.sequence++
	got, err := b.encode()
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/block.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimSpace(string(want)), string(got)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	back, err := decodeBlock(b.cidr, got)
	if err != nil {
		t.Fatal(err)
	}
	again, err := back.encode()
	if err != nil || string(again) != string(got) {
		t.Errorf("read and written again: %s, %v", again, err)
	}
}

func TestNewBlockJSON(t *testing.T) {
	got, err := newBlock(prefix("fd00::/126"), "host:n", at(0)).encode()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"cidr":"fd00::/126","affinity":"host:n","affinity_claim_time":"2025-11-21T00:00:00Z","allocations":[null,null,null,null],` +
		`"unallocated":[0,1,2,3],"attributes":[],"sequenceNumber":1763683200000000000,"sequenceNumberForAllocation":{},"deleted":false}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestDecodeBlock(t *testing.T) {
	cidr := prefix("10.0.0.0/30")
	for name, tc := range map[string]struct {
		json, err string
		check     func(b *block) bool
	}{
		"legacy affinity and no sequence numbers": {
			json:  `{"cidr":"10.0.0.0/30","hostAffinity":"n1","strictAffinity":true,"allocations":[0,null,null,null],"unallocated":[1,2,3],"attributes":[{"handle_id":"h\r\nx","secondary":null}]}`,
			check: func(b *block) bool { return b.affinity == "host:n1" && b.ordinalsOfHandle("h")[0] == 0 },
		},
		"affinity wins over the legacy one": {
			json:  `{"cidr":"10.0.0.0/30","affinity":"host:n2","hostAffinity":"n1","allocations":[null,null,null,null],"unallocated":[3,2,1,0],"attributes":[]}`,
			check: func(b *block) bool { return b.affinity == "host:n2" && b.free[0] == 3 },
		},
		"an ordinal on no list is free": {
			json:  `{"cidr":"10.0.0.0/30","affinity":null,"allocations":[null,null,null,null],"unallocated":[2],"attributes":[]}`,
			check: func(b *block) bool { return slices.Equal(b.free, []int{2, 0, 1, 3}) && b.affinity == "" },
		},
		"no handle": {
			json:  `{"cidr":"10.0.0.0/30","affinity":null,"allocations":[0,null,null,null],"unallocated":[1,2,3],"attributes":[{"handle_id":null,"secondary":{"a":"b"}}]}`,
			check: func(b *block) bool { return b.live() == 1 && handleOf(b.owner(0)) == "" },
		},
		"not JSON":            {json: `{"cidr":`, err: "unexpected end"},
		"another cidr":        {json: `{"cidr":"10.0.0.4/30"}`, err: `its cidr is "10.0.0.4/30"`},
		"too few allocations": {json: `{"cidr":"10.0.0.0/30","allocations":[null]}`, err: "1 allocations, want 4"},
		"attribute missing":   {json: `{"cidr":"10.0.0.0/30","allocations":[1,null,null,null],"attributes":[{}]}`, err: "attribute 1 of 1"},
		"free and allocated":  {json: `{"cidr":"10.0.0.0/30","allocations":[0,null,null,null],"attributes":[{}],"unallocated":[0]}`, err: "both free and allocated"},
		"free twice":          {json: `{"cidr":"10.0.0.0/30","allocations":[null,null,null,null],"unallocated":[1,1]}`, err: "free twice"},
		"free outside":        {json: `{"cidr":"10.0.0.0/30","allocations":[null,null,null,null],"unallocated":[4]}`, err: "outside"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := decodeBlock(cidr, []byte(tc.json))
			switch {
			case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
				t.Errorf("error %v, want %q", err, tc.err)
			case tc.err == "" && err != nil:
				t.Error(err)
			case tc.err == "" && !tc.check(b):
				t.Errorf("read as %+v", b)
			}
		})
	}
	if _, err := decodeBlock(prefix("10.0.0.0/8"), []byte(`{"cidr":"10.0.0.0/8"}`)); err == nil {
		t.Error("a block of 16 million addresses is accepted")
	}
}

// TestUnknownMembersSurvive: what a newer Calico stores is written back.
func TestUnknownMembersSurvive(t *testing.T) {
	in := `{"cidr":"10.0.0.0/30","affinity":null,"allocations":[0,null,null,null],"unallocated":[1,2,3],"attributes":[{"handle_id":"h","alternate":{"pod":"p2"}}],"novelty":7}`
	b, err := decodeBlock(prefix("10.0.0.0/30"), []byte(in))
	if err != nil {
		t.Fatal(err)
	}
	b.assign(1, ownerAttribute("h", nil), none)
	out, err := b.encode()
	if err != nil {
		t.Fatal(err)
	}
	var w api.IPAMBlock
	if err := json.Unmarshal(out, &w); err != nil {
		t.Fatal(err)
	}
	if string(w.Extra["novelty"]) != "7" || string(w.Attributes[0].Extra["alternate"]) != `{"pod":"p2"}` {
		t.Errorf("written back as %s", out)
	}
	if *w.Allocations[1] != 1 {
		t.Errorf("an attribute with unknown members is shared: %s", out)
	}
}

// TestReuseOrder: freed ordinals go to the tail, so an address comes back after
// a full cycle.
func TestReuseOrder(t *testing.T) {
	b := newBlock(prefix("10.0.0.0/30"), "host:n", at(0))
	var order []string
	for i := range 7 {
		got := b.assign(1, ownerAttribute(fmt.Sprint(i), nil), none)
		order = append(order, got[0].String())
		b.release(b.ordinalsOfHandle(fmt.Sprint(i)), at(i), 0)
	}
	want := []string{"10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.0", "10.0.0.1", "10.0.0.2"}
	if !slices.Equal(order, want) {
		t.Errorf("order %v", order)
	}
	if len(b.attrs) != 0 || !b.idle() {
		t.Errorf("left over: %+v", b)
	}
}

func TestAttributesAreShared(t *testing.T) {
	b := newBlock(prefix("10.0.0.0/29"), "host:n", at(0))
	b.assign(2, ownerAttribute("h", map[string]string{"a": "1"}), none)
	b.assign(1, ownerAttribute("h", map[string]string{"a": "2"}), none)
	b.assign(1, ownerAttribute("h", map[string]string{"a": "1"}), none)
	if !slices.Equal(b.alloc[:4], []int{0, 0, 1, 0}) || len(b.attrs) != 2 {
		t.Errorf("alloc %v, %d attributes", b.alloc, len(b.attrs))
	}
	b.release([]int{0, 1, 3}, at(0), 0)
	if b.alloc[2] != 0 || len(b.attrs) != 1 {
		t.Errorf("after release: alloc %v, %d attributes", b.alloc, len(b.attrs))
	}
}

func TestCooldown(t *testing.T) {
	b := newBlock(prefix("10.0.0.0/30"), "host:n", at(0))
	b.assign(3, ownerAttribute("h", nil), none)
	b.release([]int{1}, at(5), 10*time.Second)
	b.release([]int{0}, at(7).Add(time.Millisecond), 10*time.Second)
	if b.live() != 1 || len(b.free) != 1 || b.idle() {
		t.Fatalf("while cooling: live %d free %v", b.live(), b.free)
	}
	data, err := b.encode()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), `{"releasedAt":"2025-11-21T00:00:05Z"},{"releasedAt":"2025-11-21T00:00:08Z"}`) {
		t.Errorf("stored as %s", data)
	}
	if b, err = decodeBlock(b.cidr, data); err != nil {
		t.Fatal(err)
	}
	for sec, want := range map[int]int{14: 0, 15: 1, 17: 1, 18: 2} {
		if got := b.clone().collect(at(sec), 10*time.Second); got != want {
			t.Errorf("at %d s: %d collected, want %d", sec, got, want)
		}
	}
	b.collect(at(20), 10*time.Second)
	if !slices.Equal(b.free, []int{3, 1, 0}) || len(b.attrs) != 1 {
		t.Errorf("free %v, attributes %+v", b.free, b.attrs)
	}
	if err := b.assignAddr(addr("10.0.0.2"), ownerAttribute("x", nil)); err == nil {
		t.Error("an address in use is assigned again")
	}
	b.release([]int{2}, at(30), 10*time.Second)
	if err := b.assignAddr(addr("10.0.0.2"), ownerAttribute("x", nil)); err != nil {
		t.Errorf("an address that cools down cannot be asked for: %v", err)
	}
	if b.live() != 1 || len(b.free) != 3 {
		t.Errorf("live %d free %v", b.live(), b.free)
	}
}

func TestCollectUnreadableTime(t *testing.T) {
	junk := "yesterday"
	b := newBlock(prefix("10.0.0.0/30"), "", at(0))
	b.assign(1, api.IPAMAttribute{ReleasedAt: &junk}, none)
	if b.collect(at(0), time.Hour) != 1 || !b.idle() {
		t.Error("an unreadable time blocks its address for ever")
	}
}

// TestBlockProperties: whatever happens to a block, every ordinal is free, in
// use or cooling down, exactly once, no attribute is unused, and reading what
// was written changes nothing.
func TestBlockProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.SampledFrom([]int{27, 30, 32}).Draw(t, "bits")
		b := newBlock(netip.PrefixFrom(addr("10.1.0.0"), bits), "host:n", at(0))
		inUse := map[netip.Addr]string{}
		now := 0
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			now += rapid.IntRange(0, 4).Draw(t, "wait")
			cooldown := time.Duration(rapid.SampledFrom([]int{0, 3}).Draw(t, "cooldown")) * time.Second
			h := fmt.Sprint("h", rapid.IntRange(0, 3).Draw(t, "handle"))
			b.collect(at(now), cooldown)
			if rapid.Bool().Draw(t, "assign") {
				for _, a := range b.assign(rapid.IntRange(1, 5).Draw(t, "n"), ownerAttribute(h, nil), none) {
					if inUse[a] != "" {
						t.Fatalf("%s was given to %s and to %s", a, inUse[a], h)
					}
					inUse[a] = h
				}
			} else {
				freed := b.ordinalsOfHandle(h)
				for _, a := range b.addrs(freed) {
					delete(inUse, a)
				}
				b.release(freed, at(now), cooldown)
			}
			b.sequence++
			data, err := b.encode()
			if err != nil {
				t.Fatal(err)
			}
			if b, err = decodeBlock(b.cidr, data); err != nil {
				t.Fatal(err)
			}
			if b.live() != len(inUse) {
				t.Fatalf("%d in use, want %d", b.live(), len(inUse))
			}
			used := make([]bool, len(b.attrs))
			for _, i := range b.alloc {
				if i != noAttribute {
					used[i] = true
				}
			}
			if slices.Contains(used, false) {
				t.Fatalf("unused attribute in %+v", b.attrs)
			}
		}
	})
}

func FuzzDecodeBlock(f *testing.F) {
	f.Add([]byte(`{"cidr":"10.0.0.0/30","affinity":null,"allocations":[0,null,null,null],"unallocated":[1,2,3],"attributes":[{"handle_id":"h"}],"sequenceNumberForAllocation":{"0":1}}`))
	f.Add([]byte(`{"cidr":"10.0.0.0/30","hostAffinity":"x","allocations":[null,null,null,null]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := decodeBlock(prefix("10.0.0.0/30"), data)
		if err != nil {
			return
		}
		b.collect(at(0), time.Second)
		b.assign(2, ownerAttribute("h", nil), none)
		out, err := b.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeBlock(b.cidr, out); err != nil {
			t.Fatalf("%s is written as %s: %v", data, out, err)
		}
	})
}

// BenchmarkFullBlock is the cost of one write's encoding and one read's
// decoding of a /26 whose 64 addresses have different owners.
func BenchmarkFullBlock(b *testing.B) {
	full := newBlock(prefix("10.0.0.0/26"), "host:n", at(0))
	for i := range 64 {
		full.assign(1, ownerAttribute(fmt.Sprintf("k8s-pod-network.%064d", i), map[string]string{
			"namespace": "default", "node": "n", "pod": fmt.Sprint("pod-", i), "timestamp": "2025-11-21 00:00:00 +0000 UTC",
		}), none)
	}
	data, err := full.encode()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("encode", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if _, err := full.encode(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if _, err := decodeBlock(full.cidr, data); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("assign", func(b *testing.B) {
		for b.Loop() {
			c := full.clone()
			c.release([]int{5}, at(0), 0)
			c.assign(1, ownerAttribute("h", nil), none)
		}
	})
}
