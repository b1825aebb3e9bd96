package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/explain"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/resource"
)

type explainFlags struct {
	whatIf     inputFlags
	output     string
	sourcePort uint16
}

func (a *app) explainCommand() *cobra.Command {
	var f explainFlags
	c := &cobra.Command{
		Use:   "explain SOURCE DESTINATION PROTOCOL[/PORT]",
		Short: "Say why a packet passes or not, and what would change that",
		Long: `Say why the first packet of a connection passes or not: tier, policy and rule
at both ends, and the smallest change that would turn the answer.

SOURCE and DESTINATION are a workload (NAMESPACE/NAME, pod, container ID or the
name of a WorkloadEndpoint), a host by its name, or an address. PROTOCOL is tcp,
udp, sctp, icmp, icmpv6 or a number: tcp/80, udp/53, icmp, icmp/8 (its type), 47.`,
		Example: `  maneki explain frontend backend tcp/80
  maneki explain 10.65.0.7 h2 icmp
  maneki explain frontend backend tcp/80 --what-if policy.yaml`,
		Args: cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error { return a.explain(c.Context(), &f, args) },
	}
	c.Flags().StringVar(&f.whatIf.filename, "what-if", "", "file of resources, - for stdin: explain as if they had been applied")
	f.whatIf.registerNamespace(c)
	c.Flags().StringVarP(&f.output, "output", "o", "", "json for the whole document")
	c.Flags().Uint16Var(&f.sourcePort, "source-port", 40000, "port that the packet comes from")
	return c
}

func (a *app) explain(ctx context.Context, f *explainFlags, args []string) error {
	if f.output != "" && f.output != "json" {
		return exit.New(exit.Usage, "use -o json, or leave it out", fmt.Errorf("unrecognized output format '%s'", f.output))
	}
	p, err := parseTraffic(args[2])
	if err != nil {
		return exit.New(exit.Usage, "write tcp/80, udp/53, icmp or 47", err)
	}
	store, log, err := a.openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	if f.whatIf.filename != "" {
		trial := newOverlay(store)
		if err := a.applyTo(ctx, resource.New(trial, log), &f.whatIf); err != nil {
			return err
		}
		store = trial
	}
	view, err := loadView(ctx, store)
	if err != nil {
		return fmt.Errorf("read the datastore: %w", err)
	}
	from, to, err := view.ends(args[0], args[1], f.whatIf.namespace, p.Protocol)
	if err != nil {
		return exit.New(exit.NotFound, "see 'maneki get workloadendpoints -A' and 'maneki get nodes'", err)
	}
	p.Src, p.Dst = from.Addr, to.Addr
	if policy.HasPorts(p.Protocol) {
		p.SrcPort = f.sourcePort
	}
	network := view.network(from.Node, to.Node)
	answer, err := explain.Explain(network, from, to, p)
	if err != nil {
		return fmt.Errorf("explain: %w", err)
	}
	if f.output == "json" {
		text, err := json.MarshalIndent(answer.Document(network), "", "  ")
		if err != nil {
			return fmt.Errorf("print the answer: %w", err)
		}
		_, err = fmt.Fprintf(a.Stdout, "%s\n", text)
		return err
	}
	_, err = fmt.Fprint(a.Stdout, answer.Text(network))
	return err
}

// applyTo writes the resources of a file to a client, in the file's order.
func (a *app) applyTo(ctx context.Context, client *resource.Client, in *inputFlags) error {
	items, err := a.checkedInput(in, "apply")
	if err != nil {
		return err
	}
	for _, i := range items {
		if err := client.Apply(ctx, i.object); err != nil {
			return a.describe("apply", i.id(), err)
		}
	}
	return nil
}

// parseTraffic reads "tcp/80", "icmp", "icmp/8", "47".
func parseTraffic(s string) (policy.Packet, error) {
	name, number, has := strings.Cut(s, "/")
	protocol, err := policy.ParseProtocol(name)
	if err != nil {
		return policy.Packet{}, err
	}
	p := policy.Packet{Protocol: protocol}
	switch {
	case policy.HasPorts(protocol):
		port, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return p, fmt.Errorf("traffic %q: %s needs a port 0-65535, such as %s/80", s, name, name)
		}
		p.DstPort = uint16(port)
	case protocol == policy.ProtoICMP || protocol == policy.ProtoICMPv6:
		p.Type = 8 // echo request (RFC 792)
		if protocol == policy.ProtoICMPv6 {
			p.Type = 128 // RFC 4443 §4.1
		}
		if has {
			t, err := strconv.ParseUint(number, 10, 8)
			if err != nil {
				return p, fmt.Errorf("traffic %q: the ICMP type must be 0-255", s)
			}
			p.Type = uint8(t)
		}
	case has:
		return p, fmt.Errorf("traffic %q: %s has no ports", s, policy.ProtocolName(protocol))
	}
	return p, nil
}

// ends finds both ends, with addresses of one family.
func (v *view) ends(src, dst, namespace string, protocol uint8) (from, to explain.Party, err error) {
	froms, err := v.find(src, namespace)
	if err != nil {
		return from, to, fmt.Errorf("source: %w", err)
	}
	tos, err := v.find(dst, namespace)
	if err != nil {
		return from, to, fmt.Errorf("destination: %w", err)
	}
	for _, f := range froms {
		for _, t := range tos {
			fits := f.Addr.Is4() == t.Addr.Is4()
			switch protocol {
			case policy.ProtoICMP:
				fits = fits && f.Addr.Is4()
			case policy.ProtoICMPv6:
				fits = fits && f.Addr.Is6()
			}
			if fits {
				return f, t, nil
			}
		}
	}
	return from, to, errors.New("source and destination have no addresses of one family for this protocol")
}
