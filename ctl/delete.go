package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/resource"
)

func (a *app) deleteCommand() *cobra.Command {
	var in inputFlags
	var skip, force bool
	c := &cobra.Command{
		Use:   "delete (KIND NAME... | -f FILE)",
		Short: "Delete resources",
		Args:  cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			items, err := a.targets(&in, args)
			if err != nil {
				return err
			}
			if len(items) == 0 {
				fmt.Fprintln(a.Stdout, errNoResources)
				return nil
			}
			return a.delete(c.Context(), items, skip, force)
		},
	}
	in.register(c)
	c.Flags().BoolVar(&force, "force", false, "also delete what cuts your own session or a host's way to the datastore")
	c.ValidArgsFunction = a.completeKindAndNames(&in, 0)
	c.Flags().BoolVarP(&skip, "skip-not-exists", "s", false, "count resources that do not exist as deleted")
	return c
}

// targets are the resources named by KIND NAME... or by -f.
func (a *app) targets(in *inputFlags, args []string) ([]item, error) {
	switch {
	case in.filename != "" && len(args) > 0:
		return nil, exit.New(exit.Usage, "give KIND and NAME, or -f, not both", errors.New("resources are named twice"))
	case in.filename != "":
		return in.read(a.Stdin)
	case len(args) < 2:
		return nil, exit.New(exit.Usage, "give a KIND and at least one NAME, or -f FILE", errNoResources)
	}
	kind, err := api.LookupKind(args[0])
	if err != nil {
		return nil, exit.New(exit.Usage, "", err)
	}
	var items []item
	for _, name := range args[1:] {
		i, err := in.named(kind, name)
		if err != nil {
			return nil, err
		}
		items = append(items, i)
	}
	return items, nil
}

// named is a resource known by kind and name alone.
func (in *inputFlags) named(kind api.Kind, name string) (item, error) {
	if name == "" {
		return item{}, exit.New(exit.Usage, "", errors.New("resource name may not be empty"))
	}
	o := kind.New()
	*o.Type() = api.TypeMeta{Kind: kind.Name, APIVersion: api.GroupVersion}
	o.Meta().Name = name
	if err := in.placeInNamespace(kind, o); err != nil {
		return item{}, exit.New(exit.Usage, "", err)
	}
	return item{kind: kind, object: o}, nil
}

func (a *app) delete(ctx context.Context, items []item, skipMissing, force bool) error {
	store, log, err := a.openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	client := resource.New(store, log)
	if !force {
		v := verb{name: "delete", do: func(ctx context.Context, c *resource.Client, i item) error { return c.Delete(ctx, i.object) }}
		if err := a.checkLifelines(ctx, store, items, v); err != nil {
			return err
		}
	}
	a.warnOnce(impact(ctx, client, items, "delete"))
	var failed []error
	done, kind := 0, singleKind(items)
	for _, i := range items {
		err := client.Delete(ctx, i.object)
		if err == nil || skipMissing && errors.Is(err, datastore.ErrNotFound) {
			done++
			continue
		}
		failed = append(failed, a.describe("delete", i.id(), err))
	}
	if done > 0 || len(failed) == 0 {
		if err := a.report(tally{verb: verb{name: "delete", past: "deleted"}, kind: kind, total: len(items), done: done}); err != nil {
			return err
		}
	}
	return deleteError(kind, failed)
}

// deleteError has one line per resource that is still there.
func deleteError(kind string, failed []error) error {
	if len(failed) == 0 {
		return nil
	}
	of := "resource"
	if kind != "" {
		of = "'" + kind + "' resource"
	}
	var lines []string
	for _, err := range failed {
		lines = append(lines, fmt.Sprintf("Failed to delete %s: %s", of, bare(err)))
	}
	return exit.New(exit.Code(ExitCode(failed[0])), remedyOf(failed[0]), errors.New(strings.Join(lines, "\n")))
}
