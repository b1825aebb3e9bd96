package cni_test

import (
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/manekinet/maneki/dataplane/nstest"
)

// addDel runs the executable once for each of n new containers, width at a time, then again to delete them, and
// returns the wall times of both passes.
func addDel(b testing.TB, n, width int, call func(command string, i int, container *nstest.NS) error) (add, del time.Duration) {
	containers := make([]*nstest.NS, n)
	for i := range containers {
		containers[i] = nstest.New(b)
	}
	pass := func(command string) time.Duration {
		start := time.Now()
		var wg sync.WaitGroup
		slots := make(chan struct{}, width)
		for i := range containers {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				if err := call(command, i, containers[i]); err != nil {
					b.Errorf("%s: %v", command, err)
				}
			})
		}
		wg.Wait()
		return time.Since(start)
	}
	return pass("ADD"), pass("DEL")
}

func plugin(dir, name string, ns *nstest.NS, conf string) func(string, int, *nstest.NS) error {
	return func(command string, i int, container *nstest.NS) error {
		cmd := exec.Command(dir + "/" + name)
		cmd.Env = []string{
			"CNI_COMMAND=" + command, fmt.Sprintf("CNI_CONTAINERID=%011d", i), "CNI_IFNAME=eth0", "CNI_NETNS=" + container.Path(), "CNI_PATH=" + dir,
		}
		cmd.Stdin = strings.NewReader(conf)
		var out []byte
		var err error
		ns.Do(func() { out, err = cmd.Output() })
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
}

// BenchmarkExecutable is a whole ADD and DEL as a runtime sees them, without the latency of a datastore, beside ptp
// with host-local in the same run.
func BenchmarkExecutable(b *testing.B) {
	const n = 60
	for _, width := range []int{1, 20} {
		b.Run(fmt.Sprintf("maneki/width=%d", width), func(b *testing.B) {
			r := newRig(b)
			var add, del time.Duration
			for b.Loop() {
				x, y := addDel(b, n, width, plugin(binDir(b), "maneki-cni", r.host, r.conf("")))
				add, del = add+x, del+y
			}
			b.ReportMetric(float64(add.Microseconds())/float64(n*b.N), "add-us")
			b.ReportMetric(float64(del.Microseconds())/float64(n*b.N), "del-us")
		})
		b.Run(fmt.Sprintf("ptp/width=%d", width), func(b *testing.B) {
			host := nstest.New(b)
			conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"ptp","type":"ptp","ipam":{"type":"host-local","dataDir":%q,"subnet":"10.1.0.0/16","routes":[{"dst":"0.0.0.0/0"}]}}`, b.TempDir())
			var add, del time.Duration
			for b.Loop() {
				x, y := addDel(b, n, width, plugin("/usr/lib/cni", "ptp", host, conf))
				add, del = add+x, del+y
			}
			b.ReportMetric(float64(add.Microseconds())/float64(n*b.N), "add-us")
			b.ReportMetric(float64(del.Microseconds())/float64(n*b.N), "del-us")
		})
	}
}
