package labcmd

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/lab"
	"github.com/manekinet/maneki/trace"
)

func newTrace(o *options) *cobra.Command {
	var format string
	var opts trace.Options
	cmd := &cobra.Command{
		Use:   "trace A B",
		Short: "Follow a packet hop by hop through every namespace on its way",
		Long: `Follow a packet from A to B and its answer back through the namespaces of the lab:
which rule, route, veth, tunnel, neighbour and forwarding entry it meets, the encapsulation
and the MTU at each, and where and why it would be lost. A and B are containers, hosts,
routers or addresses. No packet is sent, and packet filters are not looked at.

The exit code is 0 when the packet and its answer arrive, else 1.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "" && format != "json" {
				return exit.New(exit.Usage, "", fmt.Errorf("output %q is not allowed, allowed: json", format))
			}
			l, err := lab.Open(o.root, o.name)
			if err != nil {
				return err
			}
			defer l.Close()
			r, err := l.Trace(cmd.Context(), args[0], args[1], opts)
			if err != nil {
				return err
			}
			if err := r.Print(cmd.OutOrStdout(), format == "json"); err != nil {
				return err
			}
			return r.Err()
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "", "output format: json (default: tables)")
	cmd.Flags().IntVarP(&opts.Size, "size", "s", 0, "bytes of the packet with its IP header (default: what the source's interface takes)")
	cmd.Flags().BoolVar(&opts.OneWay, "one-way", false, "do not trace the answer")
	return cmd
}
