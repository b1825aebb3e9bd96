package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/exit"
)

type labelFlags struct {
	in                inputFlags
	overwrite, remove bool
}

func (a *app) labelCommand() *cobra.Command {
	var f labelFlags
	c := &cobra.Command{
		Use:   "label KIND NAME (KEY=VALUE [--overwrite] | KEY --remove)",
		Short: "Set or remove a label of a resource",
		Example: `  label nodes node1 cluster=frontend --overwrite
  label workloadendpoints node1-k8s-nginx-eth0 -n default app=web
  label nodes node1 cluster --remove`,
		Args: cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			if f.overwrite && f.remove {
				return exit.New(exit.Usage, "", errors.New("--overwrite and --remove cannot be used together"))
			}
			i, err := f.in.one(args[:2])
			if err != nil {
				return err
			}
			key, value, given := strings.Cut(args[2], "=")
			if key == "" || given == f.remove || strings.Contains(value, "=") {
				return exit.New(exit.Usage, "write KEY=VALUE, or KEY --remove", fmt.Errorf("invalid label %s", args[2]))
			}
			return a.label(c.Context(), &f, i, args, key, value)
		},
	}
	c.Flags().BoolVar(&f.overwrite, "overwrite", false, "change the label if it is there with another value")
	c.Flags().BoolVar(&f.remove, "remove", false, "remove the label")
	f.in.registerNamespace(c)
	c.ValidArgsFunction = a.completeKindAndNames(&f.in, 1)
	return c
}

// label changes one label. KIND and NAME are printed as they were typed.
func (a *app) label(ctx context.Context, f *labelFlags, i item, args []string, key, value string) error {
	subject := args[0] + " " + args[1]
	done := ""
	err := a.edit(ctx, i, func(o api.Object) (api.Object, error) {
		labels := o.Meta().Labels
		old, there := labels[key]
		switch {
		case f.remove && !there:
			return nil, exit.New(exit.NotFound, "", fmt.Errorf("cannot remove label of %s, key %s does not exist", subject, key))
		case f.remove:
			done = fmt.Sprintf("Successfully removed label %s from %s", key, subject)
			delete(labels, key)
			return o, nil
		case there && old != value && !f.overwrite:
			return nil, exit.New(exit.Conflict, "", fmt.Errorf("failed to update label of %s, key %s is already present. please use '--overwrite' to set a new value", subject, key))
		case there:
			done = fmt.Sprintf("Successfully updated label %s on %s", key, subject)
		default:
			done = fmt.Sprintf("Successfully set label %s on %s", key, subject)
		}
		if labels == nil {
			labels = map[string]string{}
		}
		labels[key] = value
		o.Meta().Labels = labels
		return o, nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(a.Stdout, done)
	return nil
}
