// Command policy measures what policy costs a packet and how long a change of
// policy takes, in network namespaces of its own, with the kernel's peers in the
// same run: linear lists of rules in nftables and in iptables-legacy.
//
//	policy cost [-rounds 3] [-time 1s] [-only regexp]   round trips, new connections, throughput
//	policy change [-n 200]                 from the calculation's input to the first packet that meets the new verdict
//	policy agent -pid N -etcd URL [-n 200] a whole agent, from the write to the first packet that is judged anew; in a host of the lab
package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "policy: cost, change or agent")
		os.Exit(2)
	}
	flags := flag.NewFlagSet("policy", flag.ExitOnError)
	rounds := flags.Int("rounds", 3, "interleaved rounds; the median is shown")
	seconds := flags.Duration("time", time.Second, "of one measurement")
	n := flags.Int("n", 200, "changes")
	pid := flags.Int("pid", 0, "the agent of this host, a client of a datastore elsewhere")
	etcd := flags.String("etcd", "http://127.0.0.1:2379", "datastore")
	shim := flags.String("shim", "/opt/cni/bin/maneki-cni", "Maneki's CNI executable")
	only := flags.String("only", "", "a regular expression: the filters to be measured")
	_ = flags.Parse(os.Args[2:])
	chosen, err := regexp.Compile(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "policy: -only:", err)
		os.Exit(2)
	}
	switch os.Args[1] {
	case "cost":
		err = cost(*rounds, *seconds, chosen)
	case "change":
		err = change(*n)
	case "agent":
		err = withAgent(*pid, *etcd, *shim, *n)
	default:
		err = fmt.Errorf("%q: must be cost, change or agent", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "policy:", err)
		os.Exit(1)
	}
}

func percentile(list []time.Duration, p float64) time.Duration {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[min(len(sorted)-1, int(float64(len(sorted))*p))]
}

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[len(sorted)/2]
}
