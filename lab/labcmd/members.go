package labcmd

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/lab"
)

func newStatus(o *options) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show hosts, agents and containers",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "" && format != "json" {
				return exit.New(exit.Usage, "", fmt.Errorf("output %q is not allowed, allowed: json", format))
			}
			l, err := lab.Open(o.root, o.name)
			if err != nil {
				return err
			}
			defer l.Close()
			st := l.Status(cmd.Context())
			if format == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(st)
			}
			return st.WriteTable(cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "", "output format: json (default: a table)")
	return cmd
}

func newGraph(o *options) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "graph",
		Short: "Draw the lab",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "" && format != "dot" {
				return exit.New(exit.Usage, "", fmt.Errorf("output %q is not allowed, allowed: dot", format))
			}
			l, err := lab.Open(o.root, o.name)
			if err != nil {
				return err
			}
			defer l.Close()
			picture := l.Status(cmd.Context())
			text := picture.Graph(l.Plan())
			if format == "dot" {
				text = picture.Dot(l.Plan())
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "", "output format: dot (default: a picture in ASCII)")
	return cmd
}

func newRun(o *options) *cobra.Command {
	var labels []string
	var namespace string
	cmd := &cobra.Command{
		Use:   "run HOST NAME [-- COMMAND [ARG...]]",
		Short: "Attach a container to a host through CNI; prints its address",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); dash >= 0 && dash != 2 || dash < 0 && len(args) != 2 {
				return exit.New(exit.Usage, "", errors.New("want HOST NAME, and a command only after --"))
			}
			kv, err := parseLabels(labels)
			if err != nil {
				return err
			}
			l, err := lab.Change(cmd.Context(), o.root, o.name)
			if err != nil {
				return err
			}
			defer l.Close()
			c := lab.Container{Host: args[0], Name: args[1], Namespace: namespace, Labels: kv}
			st, err := l.Run(cmd.Context(), lab.ContainerSpec{Container: c, Command: args[2:]})
			if err != nil {
				return err
			}
			for _, a := range st.Addresses {
				fmt.Fprintln(cmd.OutOrStdout(), a)
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&labels, "label", nil, "label KEY=VALUE of the workload; may be repeated")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "namespace of the workload (default \"default\")")
	return cmd
}

func newRm(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME...",
		Short: "Detach containers and end their processes",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Change(cmd.Context(), o.root, o.name)
			if err != nil {
				return err
			}
			defer l.Close()
			var errs []error
			for _, name := range args {
				errs = append(errs, l.RemoveContainer(cmd.Context(), name))
			}
			return errors.Join(errs...)
		},
	}
}

func newExec(o *options) *cobra.Command {
	var host string
	cmd := &cobra.Command{
		Use:   "exec {NAME | --host HOST} [--] COMMAND [ARG...]",
		Short: "Run a command in a container, or on a host or router",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			member := host
			if member == "" {
				member, args = args[0], args[1:]
			}
			if len(args) > 0 && args[0] == "--" {
				args = args[1:]
			}
			if len(args) == 0 {
				return exit.New(exit.Usage, "", errors.New("lab exec: no command given"))
			}
			return lab.Exec(o.root, o.name, member, args)
		},
	}
	cmd.Flags().StringVar(&host, "host", "", "run on this host instead of in a container")
	// What follows the first word belongs to the command, flags included.
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func newAgent(o *options) *cobra.Command {
	actions := []string{"start", "stop", "restart", "kill", "log"}
	return &cobra.Command{
		Use:   "agent {start|stop|restart|kill|log} HOST",
		Short: "Start, stop, restart or kill -9 the agent of a host, or show its log",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			action, host := args[0], args[1]
			if !slices.Contains(actions, action) {
				return exit.New(exit.Usage, "", fmt.Errorf("action %q is not allowed, allowed: %s", action, strings.Join(actions, ", ")))
			}
			if action == "log" {
				return showLog(cmd, o, host)
			}
			l, err := lab.Change(cmd.Context(), o.root, o.name)
			if err != nil {
				return err
			}
			defer l.Close()
			sig := unix.SIGTERM
			if action == "kill" {
				sig = unix.SIGKILL
			}
			if action != "start" {
				if err := l.StopAgent(cmd.Context(), host, sig); err != nil {
					return err
				}
			}
			if action == "start" || action == "restart" {
				return l.StartAgent(cmd.Context(), host)
			}
			return nil
		},
	}
}

func showLog(cmd *cobra.Command, o *options, host string) error {
	l, err := lab.Open(o.root, o.name)
	if err != nil {
		return err
	}
	defer l.Close()
	path, err := l.AgentLog(host)
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	_, err = cmd.OutOrStdout().Write(raw)
	return err
}

func newPause() *cobra.Command {
	var labName, member, kind string
	cmd := &cobra.Command{
		Use:    "pause",
		Short:  "Keep the namespaces of a member alive (started by lab up)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return lab.Pause(member, lab.Kind(kind)) },
	}
	cmd.Flags().StringVar(&labName, "lab", "", "name of the lab")
	cmd.Flags().StringVar(&member, "member", "", "name of the member")
	cmd.Flags().StringVar(&kind, "kind", "", "switch, router, host or container")
	return cmd
}
