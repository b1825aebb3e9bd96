// Package labcmd is the command line of the laboratory: `maneki lab ...`.
package labcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/lab"
)

// options are the flags that every lab command has.
type options struct {
	name string
	root string
}

// Command returns the `lab` command with all its sub-commands. Errors carry a
// code of package exit.
func Command() *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Hosts, routers and containers on this machine, for trying and testing",
		Long: `Build a network of several hosts out of namespaces on this machine and run the
real agent on each of them. Nothing outside the lab is touched.

  maneki lab demo                            see it all work, then clean up
  maneki lab up                              three hosts h1, h2, h3; stays
  maneki lab run h1 c1                       a container on h1
  maneki lab exec c1 -- maneki lab ping ADDR
  maneki lab exec --host h1 -- maneki node status
  maneki lab down                            remove it`,
		SilenceUsage: true, SilenceErrors: true,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&o.name, "name", "", "name of the lab (default \"lab\")")
	cmd.PersistentFlags().StringVar(&o.root, "root", lab.DefaultRoot, "directory of the labs' state")
	_ = cmd.PersistentFlags().MarkHidden("root")
	for _, sub := range []*cobra.Command{
		newUp(o), newDown(o), newStatus(o), newGraph(o), newDemo(o),
		newRun(o), newRm(o), newExec(o), newAgent(o), newCapture(o), newTrace(o), newLink(o), newLoss(o),
		newPing(), newListen(), newConnect(), newAddr(), newRoutes(), newPause(),
	} {
		classify(sub)
		cmd.AddCommand(sub)
	}
	return cmd
}

// classify gives a command's errors their exit code, and ends it in an orderly
// way on ^C.
func classify(cmd *cobra.Command) {
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Name() != "pause" { // which handles its signals itself
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			cmd.SetContext(ctx)
		}
		return withCode(run(cmd, args))
	}
}

func withCode(err error) error {
	var coded *exit.Error
	if err == nil || errors.As(err, &coded) {
		return err
	}
	if errors.Is(err, context.Canceled) {
		return exit.New(exit.General, "", errors.New("interrupted"))
	}
	for _, c := range []struct {
		class error
		code  exit.Code
	}{
		{lab.ErrNotRoot, exit.Denied},
		{lab.ErrNotFound, exit.NotFound},
		{lab.ErrBusy, exit.Busy},
		{lab.ErrInput, exit.Input},
	} {
		if errors.Is(err, c.class) {
			return exit.New(c.code, "", err)
		}
	}
	return exit.New(exit.General, "", err)
}

func newUp(o *options) *cobra.Command {
	var file string
	var hosts int
	var noAgents bool
	cmd := &cobra.Command{
		Use:   "up [FILE]",
		Short: "Build a lab from a topology file and start it",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && file != "" {
				return exit.New(exit.Usage, "", errors.New("give the topology once: FILE or -f FILE"))
			}
			if len(args) == 1 {
				file = args[0]
			}
			t, err := topology(cmd.InOrStdin(), file, hosts)
			if err != nil {
				return err
			}
			l, err := lab.Up(cmd.Context(), lab.Config{Name: o.name, Root: o.root, Topology: t, NoAgents: noAgents})
			if err != nil {
				return err
			}
			defer l.Close()
			return l.Status(cmd.Context()).WriteTable(cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "topology in YAML, - for standard input (default: three hosts on one subnet)")
	cmd.Flags().IntVar(&hosts, "hosts", 3, "number of hosts when there is no file")
	cmd.Flags().BoolVar(&noAgents, "no-agents", false, "only hosts and links: start no agent")
	return cmd
}

// maxTopologyFile is far beyond what the limits of a topology allow.
const maxTopologyFile = 1 << 20

func topology(stdin io.Reader, file string, hosts int) (lab.Topology, error) {
	if file == "" {
		if hosts < 1 || hosts > lab.MaxHosts {
			return lab.Topology{}, exit.New(exit.Usage, "", fmt.Errorf("hosts %d is not allowed, want 1 to %d", hosts, lab.MaxHosts))
		}
		return lab.DefaultTopology(hosts), nil
	}
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return lab.Topology{}, exit.New(exit.Input, "", fmt.Errorf("read topology: %w", err))
		}
		defer f.Close()
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, maxTopologyFile+1))
	if err != nil {
		return lab.Topology{}, exit.New(exit.Input, "", fmt.Errorf("read topology %s: %w", file, err))
	}
	if len(raw) > maxTopologyFile {
		return lab.Topology{}, exit.New(exit.Input, "", fmt.Errorf("read topology %s: larger than %d bytes", file, maxTopologyFile))
	}
	return lab.ParseTopology(raw)
}

func newDown(o *options) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Remove a lab, or what a crash left of it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names := []string{o.name}
			if all {
				var err error
				if names, err = lab.Names(o.root); err != nil {
					return err
				}
			}
			return down(cmd.Context(), cmd.OutOrStdout(), o.root, names)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "remove every lab of this machine")
	return cmd
}

func down(ctx context.Context, out io.Writer, root string, names []string) error {
	var errs []error
	for _, name := range names {
		got, err := lab.Down(ctx, root, name)
		errs = append(errs, err)
		if name == "" {
			name = lab.DefaultName
		}
		switch {
		case err != nil:
		case !got.State && got.Processes == 0:
			fmt.Fprintf(out, "there is no lab %s\n", name)
		default:
			fmt.Fprintf(out, "lab %s removed (%d processes)\n", name, got.Processes)
		}
	}
	if len(names) == 0 {
		fmt.Fprintln(out, "there is no lab")
	}
	return errors.Join(errs...)
}

// parseLabels reads repeated k=v flags.
func parseLabels(list []string) (map[string]string, error) {
	labels := map[string]string{}
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			return nil, exit.New(exit.Usage, "", fmt.Errorf("label %q is not allowed, want KEY=VALUE", kv))
		}
		labels[k] = v
	}
	return labels, nil
}
