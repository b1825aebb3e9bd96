package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/trace"
)

// traceFlags are the flags of `maneki trace`.
type traceFlags struct {
	socket, output, node string
	size                 int
	oneWay, entries      bool
}

// nodenameFile is where the agent writes this host's Node (spec/calico.md §4).
const nodenameFile = "/var/lib/calico/nodename"

// maxPacket is the largest IP packet.
const maxPacket = 65535

func (a *app) traceCommand() *cobra.Command {
	var f traceFlags
	c := &cobra.Command{
		Use:   "trace A B",
		Short: "Follow a packet hop by hop and say where it would be lost",
		Long: `Follow a packet from A to B and its answer back, hop by hop: the rule, route, veth,
tunnel, neighbour and forwarding entry used at each, the encapsulation and the MTU, and
where and why the packet would be lost. A and B are hosts, workloads (name, pod
NAMESPACE/POD, endpoint, container ID, host interface) or addresses. No packet is sent.
Packet filters of others that could drop the packet are named; for policy see explain.

This host and its workloads are looked at as they are; other hosts are computed from
the datastore, marked with *, since nothing connects the agents of two hosts.

The exit code is 0 when the packet and its answer arrive, else 1.`,
		Args: cobra.RangeArgs(0, 2),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case f.output != "" && f.output != "json":
				return exit.New(exit.Usage, "use -o json, or leave it out", fmt.Errorf("unrecognized output format '%s'", f.output))
			case f.size < 0 || f.size > maxPacket:
				return exit.New(exit.Usage, "", fmt.Errorf("size %d is not allowed, want 1 to %d, or 0 for what the interface takes", f.size, maxPacket))
			case len(args) != 2 && !f.entries:
				return exit.New(exit.Usage, "see 'maneki trace --help'", fmt.Errorf("want two ends A and B, got %d", len(args)))
			}
			return a.trace(c.Context(), f, args)
		},
	}
	c.Flags().StringVar(&f.socket, "socket", agentapi.DefaultSocket, "where the agent listens")
	c.Flags().StringVarP(&f.output, "output", "o", "", "json for the report as a document")
	c.Flags().StringVar(&f.node, "node", "", "this host's Node (default: what the agent or /var/lib/calico/nodename says)")
	c.Flags().IntVarP(&f.size, "size", "s", 0, "bytes of the packet with its IP header (default: what the source's interface takes)")
	c.Flags().BoolVar(&f.oneWay, "one-way", false, "do not trace the answer")
	c.Flags().BoolVar(&f.entries, "entries", false, "print what the datastore says, for the laboratory")
	_ = c.Flags().MarkHidden("entries")
	return c
}

func (a *app) trace(ctx context.Context, f traceFlags, args []string) error {
	store, _, err := a.openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	cluster, err := trace.Read(ctx, store)
	if err != nil {
		return a.describe("get", "hosts and workloads", err)
	}
	if f.entries {
		return json.NewEncoder(a.Stdout).Encode(cluster)
	}
	from, to, err := cluster.Find(args[0], args[1])
	if err != nil {
		return exit.New(exit.NotFound, "", err)
	}
	if os.Geteuid() != 0 {
		return exit.New(exit.Denied, "run the command as root", errors.New("trace looks into the namespaces of workloads"))
	}
	w := &trace.Here{Cluster: cluster, Ends: []netip.Addr{from.Addr, to.Addr}}
	defer w.Close()
	if w.Self, w.Running, err = a.self(ctx, f); err != nil {
		return err
	}
	report := trace.Run(w, from, to, trace.Options{Size: f.size, OneWay: f.oneWay})
	if err := report.Print(a.Stdout, f.output == "json"); err != nil {
		return err
	}
	return exit.New(exit.General, "", report.Err())
}

// self says which Node this host is, and whether its agent runs.
func (a *app) self(ctx context.Context, f traceFlags) (node string, running bool, err error) {
	s, err := a.Status(ctx, f.socket)
	if err == nil {
		return s.Node, true, nil
	}
	if f.node != "" {
		return f.node, false, nil
	}
	text, err := os.ReadFile(nodenameFile)
	if err != nil {
		return "", false, exit.New(exit.NotRunning, "name this host's Node with --node", fmt.Errorf("no agent runs here, and none has left the name of the Node: %w", err))
	}
	return strings.TrimSpace(string(text)), false, nil
}
