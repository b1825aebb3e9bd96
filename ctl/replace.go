package ctl

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/resource"
)

func (a *app) replaceCommand() *cobra.Command {
	var in inputFlags
	var force bool
	c := &cobra.Command{
		Use:   "replace -f FILE",
		Short: "Replace resources that exist",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.write(c.Context(), &in, verb{name: "replace", past: "replaced", force: force, stops: true, do: func(ctx context.Context, client *resource.Client, i item) error {
				return retryWrite(ctx, i, func() error { return replaceOnce(ctx, client, i) })
			}})
		},
	}
	in.register(c)
	c.Flags().BoolVar(&force, "force", false, "also replace what cuts your own session or a host's way to the datastore")
	return c
}
