package ctl

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/datastore"
)

func (a *app) datastoreCommand() *cobra.Command {
	c := &cobra.Command{Use: "datastore", Short: "Move and repair the datastore"}
	group(c)
	migrate := &cobra.Command{Use: "migrate", Short: "Move the contents to another datastore"}
	group(migrate)
	migrate.AddCommand(
		a.lockCommand("lock", "Lock the datastore: agents and CNI wait", "Datastore locked.", false),
		a.lockCommand("unlock", "Unlock the datastore", "Datastore unlocked.", true),
	)
	c.AddCommand(migrate)
	return c
}

func (a *app) lockCommand(name, short, done string, ready bool) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: short, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withStore(c.Context(), func(ctx context.Context, store datastore.Store) error {
				if err := a.setReady(ctx, store, ready); err != nil {
					return err
				}
				fmt.Fprintln(a.Stdout, done)
				return nil
			})
		},
	}
}

// withStore opens the datastore for one piece of work.
func (a *app) withStore(ctx context.Context, do func(ctx context.Context, store datastore.Store) error) error {
	store, _, err := a.openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	return do(ctx, store)
}
