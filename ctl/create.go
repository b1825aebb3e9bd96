package ctl

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/resource"
)

func (a *app) createCommand() *cobra.Command {
	var in inputFlags
	var force bool
	var skipExists bool
	c := &cobra.Command{
		Use:   "create -f FILE",
		Short: "Create resources that do not exist yet",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.write(c.Context(), &in, verb{name: "create", past: "created", force: force, do: func(ctx context.Context, client *resource.Client, i item) error {
				err := client.Create(ctx, withoutIdentity(i))
				if skipExists && errors.Is(err, datastore.ErrExists) {
					return nil
				}
				return err
			}})
		},
	}
	in.register(c)
	c.Flags().BoolVar(&force, "force", false, "also create what cuts your own session or a host's way to the datastore")
	c.Flags().BoolVar(&skipExists, "skip-exists", false, "count resources that exist already as created")
	return c
}
