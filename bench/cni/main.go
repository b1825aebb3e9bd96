// Command cni times CNI plugins as a runtime calls them: one process per ADD
// and DEL, in this network namespace. It runs Maneki's shim and Debian's ptp
// with host-local in turn, so that a change of the machine's speed meets both.
//
// It is meant to be run inside a host of the lab; see bench/run.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// plugin is one contender.
type plugin struct {
	name string
	path string // executable
	dir  string // CNI_PATH
	conf string
}

// sample is one call.
type sample struct {
	wall, cpu time.Duration
}

func plugins(shim, dir, state string) []plugin {
	return []plugin{
		{name: "maneki", path: shim, dir: filepath.Dir(shim), conf: `{"cniVersion":"1.0.0","name":"bench","type":"maneki-cni","ipam":{"type":"maneki-ipam"}}`},
		{name: "ptp+host-local", path: filepath.Join(dir, "ptp"), dir: dir, conf: fmt.Sprintf(
			`{"cniVersion":"0.4.0","name":"bench-ptp","type":"ptp","ipMasq":false,"mtu":1500,"ipam":{"type":"host-local","dataDir":%q,"subnet":"10.250.0.0/16","routes":[{"dst":"0.0.0.0/0"}]}}`, state)},
	}
}

func main() {
	shim := flag.String("shim", "/opt/cni/bin/maneki-cni", "Maneki's CNI executable")
	dir := flag.String("peer-dir", "/usr/lib/cni", "folder of ptp and host-local")
	count := flag.Int("n", 200, "containers")
	hold := flag.Duration("hold", 0, "attach the containers, keep them this long, detach; no timing")
	rounds := flag.Int("rounds", 3, "rounds of each measurement, interleaved")
	flag.Parse()
	if err := run(*shim, *dir, *count, *rounds, *hold); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(shim, dir string, count, rounds int, hold time.Duration) error {
	state, err := os.MkdirTemp("", "bench-host-local-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(state)
	spaces, err := newSpaces(count)
	if err != nil {
		return err
	}
	defer closeAll(spaces)
	if hold > 0 {
		return keep(plugins(shim, dir, state)[0], spaces, hold)
	}
	fmt.Printf("| plugin | at once | verb | containers | p50 ms | p99 ms | per second | CPU ms a call |\n|---|---|---|---|---|---|---|---|\n")
	for _, parallel := range []int{1, 20} {
		all := map[string][]sample{}
		took := map[string]time.Duration{}
		for round := range rounds {
			for _, p := range plugins(shim, dir, state) {
				for _, verb := range []string{"ADD", "DEL"} {
					start := time.Now()
					got, err := p.calls(verb, spaces, parallel, round)
					if err != nil {
						return err
					}
					key := p.name + " " + verb
					took[key] += time.Since(start)
					all[key] = append(all[key], got...)
				}
			}
		}
		for _, p := range plugins(shim, dir, state) {
			for _, verb := range []string{"ADD", "DEL"} {
				key := p.name + " " + verb
				report(p.name, verb, parallel, count, all[key], took[key])
			}
		}
	}
	return nil
}

// keep attaches, says so, waits and detaches: others measure meanwhile.
func keep(p plugin, spaces []*os.File, hold time.Duration) error {
	if _, err := p.calls("ADD", spaces, 10, 0); err != nil {
		return err
	}
	fmt.Println("attached")
	time.Sleep(hold)
	_, err := p.calls("DEL", spaces, 10, 0)
	return err
}

func report(name, verb string, parallel, count int, s []sample, took time.Duration) {
	slices.SortFunc(s, func(a, b sample) int { return int(a.wall - b.wall) })
	var cpu time.Duration
	for _, x := range s {
		cpu += x.cpu
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	fmt.Printf("| %s | %d | %s | %d | %.1f | %.1f | %.0f | %.1f |\n", name, parallel, verb, count,
		ms(s[len(s)/2].wall), ms(s[len(s)*99/100].wall), float64(len(s))/took.Seconds(), ms(cpu/time.Duration(len(s))))
}

// calls runs verb for every namespace, at most parallel at once.
func (p plugin) calls(verb string, spaces []*os.File, parallel, round int) ([]sample, error) {
	out := make([]sample, len(spaces))
	errs := make([]error, len(spaces))
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i, ns := range spaces {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			out[i], errs[i] = p.call(verb, containerID(p.name, round, i), ns)
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// containerID looks like a runtime's: interface names are cut from its head.
func containerID(name string, round, i int) string {
	return fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%s %d %d", name, round, i)))
}

func (p plugin) call(verb, id string, ns *os.File) (sample, error) {
	c := exec.Command(p.path)
	c.Env = []string{
		"PATH=" + os.Getenv("PATH"), "CNI_PATH=" + p.dir, "CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + id,
		"CNI_IFNAME=eth0", fmt.Sprintf("CNI_NETNS=/proc/%d/fd/%d", os.Getpid(), ns.Fd()),
	}
	c.Stdin = bytes.NewReader([]byte(p.conf))
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	start := time.Now()
	err := c.Run()
	s := sample{wall: time.Since(start)}
	if err != nil {
		return s, fmt.Errorf("%s %s %s: %w: %s%s", p.name, verb, id, err, stdout.Bytes(), stderr.Bytes())
	}
	if verb == "ADD" && !json.Valid(stdout.Bytes()) {
		return s, fmt.Errorf("%s ADD %s: result is not JSON: %s", p.name, id, stdout.Bytes())
	}
	usage := c.ProcessState.SysUsage().(*syscall.Rusage)
	s.cpu = time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	return s, nil
}

// newSpaces makes n network namespaces, held open by their files alone: they
// go when this program ends.
func newSpaces(n int) ([]*os.File, error) {
	var out []*os.File
	for range n {
		type result struct {
			f   *os.File
			err error
		}
		ch := make(chan result)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				ch <- result{err: fmt.Errorf("make network namespace: %w", err)}
				return
			}
			f, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
			ch <- result{f, err}
		}()
		r := <-ch
		if r.err != nil {
			closeAll(out)
			return nil, r.err
		}
		out = append(out, r.f)
	}
	return out, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
