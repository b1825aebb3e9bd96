package ctl

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
)

func (a *app) versionCommand() *cobra.Command {
	var clientOnly bool
	var poll time.Duration
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this program and of the cluster",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if poll < 0 {
				return exit.New(exit.Usage, "use a span such as 1s, or 0 for once", fmt.Errorf("--poll %s is negative", poll))
			}
			fmt.Fprintln(a.Stdout, "Client Version:   ", orUnknown(a.Version))
			fmt.Fprintln(a.Stdout, "Git commit:       ", orUnknown(a.GitRevision))
			if clientOnly {
				return nil
			}
			return a.clusterVersion(c.Context(), poll)
		},
	}
	c.Flags().BoolVar(&clientOnly, "client", false, "only this program's version, without a datastore")
	c.Flags().DurationVar(&poll, "poll", 0, "ask for the cluster's version again and again, this often, and print changes")
	return c
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// clusterVersion prints version and type of the cluster, once or at each change
// until the context ends.
func (a *app) clusterVersion(ctx context.Context, poll time.Duration) error {
	store, _, err := a.openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	view := datastore.For[api.ClusterInformation](store)
	var version, clusterType string
	for {
		info, err := view.Get(ctx, "", "default")
		if err != nil {
			err = a.noClusterVersion(err)
			if poll == 0 {
				return err
			}
			fmt.Fprintln(a.Stderr, err)
			version, clusterType = "", ""
		} else {
			if v := orUnknown(info.Spec.CalicoVersion); v != version {
				version = v
				fmt.Fprintln(a.Stdout, "Cluster Version:  ", v)
			}
			if t := orUnknown(info.Spec.ClusterType); t != clusterType {
				clusterType = t
				fmt.Fprintln(a.Stdout, "Cluster Type:     ", t)
			}
		}
		if poll == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(poll):
		}
	}
}

func (a *app) noClusterVersion(err error) error {
	remedy := ""
	if errors.Is(err, datastore.ErrNotFound) {
		err = fmt.Errorf("resource does not exist: %s with error: <nil>", identifier("ClusterInformation", "", "default"))
		remedy = fmt.Sprintf("it appears when the first node runs; '%s version --client' needs no cluster", a.Name)
		return exit.New(exit.NotFound, remedy, fmt.Errorf("Unable to retrieve Cluster Version or Type: %w", err)) //nolint:staticcheck // calicoctl's wording
	}
	return exit.New(exit.Code(ExitCode(err)), remedy, fmt.Errorf("Unable to retrieve Cluster Version or Type: %w", err)) //nolint:staticcheck // calicoctl's wording
}
