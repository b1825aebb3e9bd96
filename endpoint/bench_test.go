package endpoint_test

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/endpoint"
)

// BenchmarkAttach is one attachment without a datastore's latency: the kernel's work and ours.
func BenchmarkAttach(b *testing.B) {
	for _, dual := range []bool{false, true} {
		b.Run(fmt.Sprintf("dual=%v", dual), func(b *testing.B) {
			r := newRig(b, func(c *endpoint.Config) { c.Log = slog.New(slog.DiscardHandler) })
			s := spec(b, nstest.New(b), "0123456789ab")
			s.IPv6 = dual
			for b.Loop() {
				r.attach(s)
				b.StopTimer()
				if err := r.Detach(b.Context(), s.ID); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkDetach is the other half.
func BenchmarkDetach(b *testing.B) {
	r := newRig(b, func(c *endpoint.Config) { c.Log = slog.New(slog.DiscardHandler) })
	s := spec(b, nstest.New(b), "0123456789ab")
	for b.Loop() {
		b.StopTimer()
		r.attach(s)
		b.StartTimer()
		if err := r.Detach(b.Context(), s.ID); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAttachParallel is what many runtimes at once get: each with a container of its own.
func BenchmarkAttachParallel(b *testing.B) {
	r := newRig(b, func(c *endpoint.Config) { c.Log = slog.New(slog.DiscardHandler) })
	const workers = 20
	b.SetParallelism(workers / 2)
	specs := make(chan endpoint.Spec, 64)
	for i := range cap(specs) {
		s := spec(b, nstest.New(b), fmt.Sprintf("%011d", i))
		specs <- s
	}
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		s := <-specs
		for pb.Next() {
			if _, err := r.Attach(b.Context(), s); err != nil {
				b.Error(err)
				return
			}
			if err := r.Detach(b.Context(), s.ID); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
