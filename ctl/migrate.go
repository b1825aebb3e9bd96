package ctl

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/resource"
)

func (a *app) datastoreCommand() *cobra.Command {
	c := &cobra.Command{Use: "datastore", Short: "Members, snapshots, repair and moves of the datastore"}
	group(c)
	migrate := &cobra.Command{Use: "migrate", Short: "Move the contents to another datastore"}
	group(migrate)
	migrate.AddCommand(
		a.exportCommand(), a.importCommand(),
		a.lockCommand("lock", "Lock the datastore: agents and CNI wait", "Datastore locked.", false),
		a.lockCommand("unlock", "Unlock the datastore", "Datastore unlocked.", true),
	)
	names := &cobra.Command{
		Use:   "migrate-policy-names",
		Short: "Store policies under their own names",
		Long: `Store policies under their own names. Up to v3.31 Calico put "default." in front of
the names of the default tier's policies. Both forms are read; this command may be
repeated at any time.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.withStore(c.Context(), a.migratePolicyNames) },
	}
	c.AddCommand(a.membersCommand(), a.snapshotCommand(), a.restoreCommand(), a.defragCommand(), a.disarmCommand(), migrate, names)
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

// migratePolicyNames moves policies from the key that begins with "default." to
// that of their name, each in one step.
func (a *app) migratePolicyNames(ctx context.Context, store datastore.Store) error {
	migrated := 0
	var failed []error
	for _, name := range api.TieredKinds() {
		kind, err := api.LookupKind(name)
		if err != nil {
			return err
		}
		entries, _, err := store.List(ctx, datastore.Query{Kind: kind.Name})
		if err != nil {
			return a.describe("get", kind.Name, fmt.Errorf("list %s: %w", kind.Name, err))
		}
		bar := a.progress(kind.Plural, len(entries))
		for _, e := range entries {
			moved, err := migratePolicy(ctx, store, kind, e)
			switch {
			case errors.Is(err, datastore.ErrUnavailable):
				bar.end()
				return a.describe("update", e.Key.Kind, err)
			case err != nil:
				failed = append(failed, err)
			case moved:
				migrated++
			}
			bar.add(1)
		}
		bar.end()
	}
	fmt.Fprintf(a.Stdout, "Policy name migration complete, migrated %d policies.\n", migrated)
	if len(failed) > 0 {
		return exit.New(exit.Code(ExitCode(failed[0])), "the others were migrated; remove one of the two, or repeat the command", fmt.Errorf("failed to migrate %d policies: %s", len(failed), bracketed(failed)))
	}
	return nil
}

func migratePolicy(ctx context.Context, store datastore.Store, kind api.Kind, e datastore.Entry) (bool, error) {
	o, err := datastore.DecodeObject(kind, e)
	if err != nil || o.Meta().Name == e.Key.Name {
		return false, err
	}
	value, err := datastore.EncodeObject(o)
	if err != nil {
		return false, err
	}
	if value, err = api.MergeUnknown(e.Value, value, kind); err != nil {
		return false, err
	}
	key := e.Key
	key.Name = o.Meta().Name
	_, err = datastore.Commit(ctx, store, []datastore.Op{
		{Key: key, Value: value, If: datastore.Absent()},
		{Key: e.Key, Delete: true, If: datastore.At(e.Rev)},
	})
	if errors.Is(err, datastore.ErrExists) {
		err = &resource.Error{Class: datastore.ErrExists, Operation: "create", Kind: key.Kind, Namespace: key.Namespace, Name: key.Name}
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", identifier(e.Key.Kind, e.Key.Namespace, e.Key.Name), err)
	}
	return true, nil
}
