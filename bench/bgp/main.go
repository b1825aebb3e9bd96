// Command bgp measures a route reflector: Maneki's speaker, BIRD 2 and FRR in
// turn, each in a process of its own, with simulated clients that all dial at
// once. It makes a network namespace for itself; needs root, Debian's bird2 and
// frr. The result is tables for bench/results.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

// roleEnv makes this program one of the processes that it starts.
const roleEnv = "MANEKI_BENCH_ROLE"

const (
	roleInside  = "inside"  // the measurement, in its own namespace
	roleSpeaker = "speaker" // Maneki's speaker; argument: a speakerSpec
	roleSwarm   = "swarm"   // the clients; argument: a swarmSpec
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var err error
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(inside(ctx))
	case roleSpeaker:
		err = runSpeaker(ctx, os.Args[1])
	case roleSwarm:
		err = runSwarm(ctx, os.Args[1])
	default:
		err = measure(ctx)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "bench/bgp:", err)
		os.Exit(1)
	}
}

// inside runs this program again in a network namespace of its own.
func inside(ctx context.Context) int {
	cmd := child(roleInside, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	err := cmd.Start()
	if err == nil {
		stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // what it started dies with it
		err = cmd.Wait()
		stop()
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench/bgp: make a network namespace (needs root):", err)
		return 1
	}
	return 0
}

// child is this program in a role; it ends with its parent.
func child(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// prepare makes 10.0.0.0/8 local to the namespace.
func prepare() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	a, err := netlink.ParseAddr("10.0.0.1/8")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(lo, a); err != nil {
		return fmt.Errorf("add %s: %w", a, err)
	}
	return nil
}

func measure(ctx context.Context) error {
	sizes := flag.String("clients", "50,200,500,1000", "numbers of clients")
	blocks := flag.String("blocks", "1,10", "numbers of routes that each announces")
	daemons := flag.String("daemons", "maneki,bird,frr,frr-tuned", "what is measured")
	flaps := flag.Int("flaps", 100, "how often one client of Maneki's flaps")
	otherFlaps := flag.Int("other-flaps", 5, "the same of the other daemons")
	patience := flag.Duration("patience", time.Minute, "longest wait for everybody to have everything")
	ofClients := flag.Bool("of-clients", true, "measure a client of Maneki's reflector, too")
	starts := flag.Int("starts", 100, "cold starts of Maneki with 50 clients x 4 routes, in which no route may be missed")
	others := flag.Int("other-starts", 10, "the same of the other daemons")
	flag.Parse()
	if err := prepare(); err != nil {
		return err
	}
	ns, err := numbers(*sizes)
	if err != nil {
		return err
	}
	rs, err := numbers(*blocks)
	if err != nil {
		return err
	}
	p := plan{sizes: ns, blocks: rs, daemons: strings.Split(*daemons, ","), flaps: max(*flaps, 1), otherFlaps: max(*otherFlaps, 1), patience: *patience}
	if err := p.reflectors(ctx); err != nil {
		return err
	}
	if *ofClients {
		if err := p.clientsOf(ctx); err != nil {
			return err
		}
	}
	if *starts+*others == 0 {
		return nil
	}
	return p.coldStarts(ctx, *starts, *others)
}

func numbers(list string) ([]int, error) {
	var out []int
	for word := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 || n > 1000 {
			return nil, fmt.Errorf("%q: want numbers from 1 to 1000", word)
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return out, nil
}
