package ctl

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/resource"
)

func (a *app) replaceCommand() *cobra.Command {
	var in inputFlags
	c := &cobra.Command{
		Use:   "replace -f FILE",
		Short: "Replace resources that exist",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.write(c.Context(), &in, verb{name: "replace", past: "replaced", stops: true, do: func(ctx context.Context, client *resource.Client, i item) error {
				return retryWrite(ctx, i, func() error { return replaceOnce(ctx, client, i) })
			}})
		},
	}
	in.register(c)
	return c
}
