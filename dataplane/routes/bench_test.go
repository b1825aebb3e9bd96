package routes_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/manekinet/maneki/dataplane/routes"
	"github.com/manekinet/maneki/desired"
)

// many is n block routes, every other one IPv6.
func many(n int) []routes.Entry {
	entries := make([]routes.Entry, n)
	for i := range n {
		r := desired.Route{Gateway: addr("10.0.0.2"), Dev: "eth0", Proto: desired.ProtoBGP}
		dst := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 10), byte(i >> 2), byte(i << 6)}), 26)
		if i%2 == 1 {
			r.Gateway = addr("fd00::2")
			dst = netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x80, 12: byte(i >> 16), 13: byte(i >> 8), 14: byte(i)}), 120)
		}
		entries[i] = routes.Entry{Key: desired.NewRouteKey(dst), Value: r}
	}
	return entries
}

// BenchmarkApply puts and deletes; per operation: all routes once each way. The peer is spec/datapath.md §5.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			_, a := host(b, routes.Options{})
			watch(b, a, nil)
			entries := many(n)
			keys := make([]desired.RouteKey, n)
			for i, e := range entries {
				keys[i] = e.Key
			}
			dump(b, a)
			for b.Loop() {
				if errs := a.Apply(context.Background(), entries, nil); len(errs) > 0 {
					b.Fatal(errs)
				}
				if errs := a.Apply(context.Background(), nil, keys); len(errs) > 0 {
					b.Fatal(errs)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*2*n), "us/route")
		})
	}
}

func BenchmarkDump(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			_, a := host(b, routes.Options{})
			watch(b, a, nil)
			if errs := a.Apply(context.Background(), many(n), nil); len(errs) > 0 {
				b.Fatal(errs)
			}
			for b.Loop() {
				if got := dump(b, a); len(got) != n {
					b.Fatalf("%d routes, want %d", len(got), n)
				}
			}
		})
	}
}
