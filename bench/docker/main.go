// Command docker times `docker run` on a network of Maneki's driver and on one of Docker's own bridge driver, in turn, so
// that a change of the machine's speed meets both. It is meant to be run on a host of the lab whose dockerd has an image
// busybox; see bench/run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

// network is one contender.
type network struct {
	name   string
	driver string
	subnet netip.Prefix
	create []string
}

func networks() []network {
	return []network{
		{
			name: "bench-maneki", driver: "maneki", subnet: netip.MustParsePrefix("10.60.0.0/16"),
			create: []string{"--driver", "maneki", "--ipam-driver", "maneki-ipam", "--ipam-opt", "maneki.create-pool=true"},
		},
		{name: "bench-bridge", driver: "bridge", subnet: netip.MustParsePrefix("10.61.0.0/16"), create: []string{"--driver", "bridge"}},
	}
}

type bench struct {
	docker string
	ping   *icmp.PacketConn
	seq    int
}

func main() {
	docker := flag.String("docker", "/usr/bin/docker", "Docker's command")
	n := flag.Int("n", 20, "containers of each network, one at a time")
	batch := flag.Int("batch", 50, "containers of each network at once")
	once := flag.Bool("once", false, "only a batch on Maneki's network, left running; says how many have started")
	flag.Parse()
	if err := run(*docker, *n, *batch, *once); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(docker string, n, batch int, once bool) error {
	c, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return fmt.Errorf("open ICMP socket: %w", err)
	}
	defer c.Close()
	b := &bench{docker: docker, ping: c}
	for _, w := range networks() {
		_ = b.command("network", "rm", w.name) // of a run that was interrupted
		if err := b.command(append([]string{"network", "create", "--subnet", w.subnet.String(), w.name}, w.create...)...); err != nil {
			return err
		}
		if !once {
			defer func() { _ = b.command("network", "rm", w.name) }()
		}
	}
	if once {
		return b.killed(batch)
	}
	if err := b.oneByOne(n); err != nil {
		return err
	}
	return b.atOnce(batch)
}

func (b *bench) command(args ...string) error {
	out, err := exec.Command(b.docker, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// start is docker run; addr is the container's address.
func (b *bench) start(w network, name string, addr netip.Addr) error {
	return b.command("run", "-d", "--name", name, "--net", w.name, "--ip", addr.String(), "--stop-timeout", "0", "busybox", "sleep", "600")
}

// answer waits for the first echo reply of an address.
func (b *bench) answer(a netip.Addr) error {
	deadline := time.Now().Add(10 * time.Second)
	reply := make([]byte, 256)
	for time.Now().Before(deadline) {
		b.seq++
		m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: b.seq & 0xffff}}
		text, err := m.Marshal(nil)
		if err != nil {
			return err
		}
		if _, err := b.ping.WriteTo(text, &net.IPAddr{IP: a.AsSlice()}); err != nil {
			time.Sleep(time.Millisecond)
			continue
		}
		if err := b.ping.SetReadDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
			return err
		}
		for {
			_, from, err := b.ping.ReadFrom(reply)
			if err != nil {
				break // sent again
			}
			if from.String() == a.String() {
				return nil
			}
		}
	}
	return errors.New("no answer from " + a.String())
}

func (b *bench) oneByOne(n int) error {
	took, removed := map[string][]time.Duration{}, map[string][]time.Duration{}
	for i := range n {
		for _, w := range networks() {
			name, addr := fmt.Sprintf("bench-%s-%d", w.driver, i), at(w, i)
			start := time.Now()
			if err := b.start(w, name, addr); err != nil {
				return err
			}
			if err := b.answer(addr); err != nil {
				return err
			}
			took[w.driver] = append(took[w.driver], time.Since(start))
			start = time.Now()
			if err := b.command("rm", "-f", name); err != nil {
				return err
			}
			removed[w.driver] = append(removed[w.driver], time.Since(start))
		}
	}
	fmt.Println("| network | containers | docker run to first ping, p50 ms | p99 ms | docker rm -f, p50 ms |")
	fmt.Println("|---|---|---|---|---|")
	for _, w := range networks() {
		fmt.Printf("| %s | %d | %s | %s | %s |\n", w.driver, n, at100(took[w.driver], 50), at100(took[w.driver], 99), at100(removed[w.driver], 50))
	}
	fmt.Println()
	return nil
}

func at(w network, i int) netip.Addr {
	a := w.subnet.Addr().As4()
	a[2], a[3] = byte(1+i/200), byte(10+i%200)
	return netip.AddrFrom4(a)
}

// at100 is a percentile in milliseconds.
func at100(d []time.Duration, p int) string {
	slices.Sort(d)
	return fmt.Sprintf("%.0f", float64(d[min(len(d)-1, len(d)*p/100)].Microseconds())/1000)
}

// atOnce starts all containers of a network together.
func (b *bench) atOnce(n int) error {
	fmt.Println("| network | containers at once | all started and answering, s | removed, s |")
	fmt.Println("|---|---|---|---|")
	for _, w := range networks() {
		start := time.Now()
		if failed := b.batch(w, n); len(failed) > 0 {
			return errors.Join(failed...)
		}
		for i := range n {
			if err := b.answer(at(w, 400+i)); err != nil {
				return err
			}
		}
		up := time.Since(start)
		args := []string{"rm", "-f"}
		for i := range n {
			args = append(args, fmt.Sprintf("bench-%s-batch-%d", w.driver, i))
		}
		start = time.Now()
		if err := b.command(args...); err != nil {
			return err
		}
		fmt.Printf("| %s | %d | %.1f | %.1f |\n", w.driver, n, up.Seconds(), time.Since(start).Seconds())
	}
	return nil
}

func (b *bench) batch(w network, n int) []error {
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() { errs[i] = b.start(w, fmt.Sprintf("bench-%s-batch-%d", w.driver, i), at(w, 400+i)) })
	}
	wg.Wait()
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

// killed is a batch while somebody kills the agent.
func (b *bench) killed(n int) error {
	w := networks()[0]
	start := time.Now()
	failed := b.batch(w, n)
	took := time.Since(start)
	for _, err := range failed {
		fmt.Fprintln(os.Stderr, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, b.docker, "ps", "-aq").Output()
	if err != nil {
		return fmt.Errorf("docker ps: %w", err)
	}
	var args []string
	if args = strings.Fields(string(out)); len(args) > 0 {
		if err := b.command(append([]string{"rm", "-f"}, args...)...); err != nil {
			return err
		}
	}
	for _, w := range networks() {
		if err := b.command("network", "rm", w.name); err != nil {
			return err
		}
	}
	fmt.Printf("| %d | %d | %d | %.1f |", n, n-len(failed), len(failed), took.Seconds())
	return nil
}
