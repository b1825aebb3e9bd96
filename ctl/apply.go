package ctl

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/resource"
)

// writeAttempts is how often apply and replace start again when somebody else
// writes the same resource (spec/calico.md §1.2).
const writeAttempts = 10

func (a *app) applyCommand() *cobra.Command {
	var in inputFlags
	var dryRun, force bool
	var confirm time.Duration
	c := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Create resources, or replace them where they exist",
		Long: `Create resources, or replace them where they exist.

The specification is replaced as a whole. A resource that carries the
resourceVersion of an earlier 'get -o yaml' is refused if it was changed since,
and its labels and annotations are replaced too. Without a resourceVersion the
labels and annotations given are added to those that are there.

A policy of a host endpoint that would cut your own SSH session, or a host's way
to the datastore, is refused unless --force or --confirm is given.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			// With a confirmation to come, a change that cuts the operator off takes itself back.
			v := verb{name: "apply", past: "applied", force: force || confirm != 0, do: applyOne}
			switch {
			case dryRun:
			case confirm != 0:
				return a.writeConfirmed(c.Context(), &in, v, confirm)
			default:
				return a.write(c.Context(), &in, v)
			}
			changes, err := a.rehearse(c.Context(), &in, v)
			if err == nil && len(changes) > 0 {
				a.printDryRun(v, changes)
			}
			return err
		},
	}
	in.register(c)
	c.Flags().BoolVar(&force, "force", false, "also apply what cuts your own session or a host's way to the datastore")
	c.Flags().DurationVar(&confirm, "confirm", 0, "take everything back after this time (1s to 1h) unless you type yes")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be done, by the rules that hold for the real thing")
	return c
}

func applyOne(ctx context.Context, client *resource.Client, i item) error {
	return retryWrite(ctx, i, func() error {
		err := replaceOnce(ctx, client, i)
		if !errors.Is(err, datastore.ErrNotFound) {
			return err
		}
		return client.Create(ctx, withoutIdentity(i))
	})
}

// retryWrite repeats write while it loses against other writers; not when the
// resource says which version it was made from.
func retryWrite(ctx context.Context, i item, write func() error) error {
	pinned := i.object.Meta().ResourceVersion != ""
	for attempt := 1; ; attempt++ {
		err := write()
		lost := errors.Is(err, datastore.ErrConflict) || errors.Is(err, datastore.ErrExists)
		if !lost || pinned || attempt == writeAttempts {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(attempt) * 10 * time.Millisecond):
		}
	}
}

// replaceOnce replaces the stored resource. Without a resourceVersion the
// metadata that is stored stays, and labels and annotations are added to it.
func replaceOnce(ctx context.Context, client *resource.Client, i item) error {
	next, err := copyObject(i.kind, i.object)
	if err != nil {
		return err
	}
	m := next.Meta()
	if m.ResourceVersion != "" {
		return client.Replace(ctx, next)
	}
	current, err := client.Get(ctx, i.kind, m.Namespace, m.Name)
	if err != nil {
		return err
	}
	labels, annotations := merged(current.Meta().Labels, m.Labels), merged(current.Meta().Annotations, m.Annotations)
	*m = *current.Meta()
	m.Labels, m.Annotations = labels, annotations
	return client.Replace(ctx, next)
}

func merged(under, over map[string]string) map[string]string {
	if len(under) == 0 {
		return over
	}
	all := maps.Clone(under)
	maps.Copy(all, over)
	return all
}

// withoutIdentity is the resource to create from what was typed: a uid, time or
// resourceVersion of another life does not count.
func withoutIdentity(i item) api.Object {
	m := i.object.Meta()
	*m = api.ObjectMeta{Name: m.Name, Namespace: m.Namespace, Labels: m.Labels, Annotations: m.Annotations}
	return i.object
}
