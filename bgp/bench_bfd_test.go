package bgp

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/manekinet/maneki/bgp/bfd"
	"github.com/manekinet/maneki/bgp/bfd/monitor"
)

// BenchmarkBFD keeps sessions of 3 x 100 ms up for some seconds, both ends in this process, and reports the CPU
// time of one end of one session per second, and whether any went down.
func BenchmarkBFD(b *testing.B) {
	for _, sessions := range []int{50, 200, 1000} {
		b.Run(fmt.Sprint(sessions), func(b *testing.B) {
			const each = 3 * time.Second
			hub := netip.MustParseAddr("10.210.0.1")
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			run := func(want map[netip.Addr]monitor.Config) *monitor.Monitor {
				m := monitor.New(quiet(), func(monitor.Change) {})
				m.Set(want)
				wg.Go(func() { m.Run(ctx) })
				return m
			}
			peers := map[netip.Addr]monitor.Config{}
			for i := range sessions {
				addr := netip.AddrFrom4([4]byte{10, 211, byte(i / 200), byte(i%200 + 1)})
				peers[addr] = monitor.Config{Local: hub, Timing: bfd.DefaultTiming()}
				run(map[netip.Addr]monitor.Config{hub: {Local: addr, Timing: bfd.DefaultTiming()}})
			}
			m := run(peers)
			up := func() (n int) {
				for addr := range peers {
					if st, ok := m.Status(addr); ok && st.State == bfd.Up {
						n++
					}
				}
				return n
			}
			within(b, 20*time.Second, "all up", func() bool { return up() == sessions })
			time.Sleep(2 * time.Second) // past the slow packets of the start
			b.ResetTimer()
			before, began := cpu(), time.Now()
			for range b.N {
				time.Sleep(each)
			}
			used, lasted := cpu()-before, time.Since(began)
			b.ReportMetric(float64(used.Microseconds())/lasted.Seconds()/float64(2*sessions), "µs-cpu/s/session")
			b.ReportMetric(float64(sessions-up()), "down")
			cancel()
			wg.Wait()
		})
	}
}
