package labcmd

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/lab"
)

// splitCable reads MEMBER or MEMBER:DEVICE.
func splitCable(text string) (member, device string) {
	member, device, _ = strings.Cut(text, ":")
	return member, device
}

func newLink(o *options) *cobra.Command {
	actions := []string{"cut", "restore", "list"}
	return &cobra.Command{
		Use:   "link {cut|restore} MEMBER[:DEVICE] | link list",
		Short: "Pull or plug the cable of a host or router",
		Long: `Pull the cable of a host or router out of its switch, or plug it in again: its device
loses its carrier, and keeps its addresses and routes. DEVICE is needed where a router
has several. list shows the cables, and what they lose.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			action := args[0]
			if !slices.Contains(actions, action) {
				return exit.New(exit.Usage, "", fmt.Errorf("action %q is not allowed, allowed: %s", action, strings.Join(actions, ", ")))
			}
			if (action == "list") != (len(args) == 1) {
				return exit.New(exit.Usage, "", fmt.Errorf("want link cut MEMBER, link restore MEMBER or link list"))
			}
			l, err := lab.Open(o.root, o.name)
			if err != nil {
				return err
			}
			defer l.Close()
			if action == "list" {
				return listCables(cmd.OutOrStdout(), l)
			}
			member, device := splitCable(args[1])
			return l.CutCable(member, device, action == "cut")
		},
	}
}

func listCables(out io.Writer, l *lab.Lab) error {
	cables, err := l.Cables()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "MEMBER\tDEVICE\tSUBNET\tSTATE\tLOSS")
	for _, c := range cables {
		state, loss := "plugged in", "-"
		if c.Cut {
			state = "cut"
		}
		if c.Loss > 0 {
			loss = strconv.FormatFloat(c.Loss, 'g', -1, 64) + " %"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", c.Member, c.Device, c.Subnet, state, loss)
	}
	return w.Flush()
}

func newLoss(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "loss MEMBER[:DEVICE] PERCENT",
		Short: "Have a cable lose packets, in both directions; 0 ends it",
		Long: `Have the switch drop this share of the frames from and to a host or router, each by
chance and without any delay. 0 ends it. It is a rule of nftables on the switch's port.`,
		Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			percent, err := strconv.ParseFloat(strings.TrimSuffix(args[1], "%"), 64)
			if err != nil {
				return exit.New(exit.Usage, "", fmt.Errorf("loss %q is not allowed, want a number of percent", args[1]))
			}
			l, err := lab.Open(o.root, o.name)
			if err != nil {
				return err
			}
			defer l.Close()
			member, device := splitCable(args[0])
			return l.SetLoss(member, device, percent)
		},
	}
}
