package ctl

import (
	"context"
	"errors"
	"fmt"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
)

// isLocked reports whether the datastore is locked for a migration: agents stop
// programming and the CNI plugin asks to be called again (spec/calico.md §1.3).
func isLocked(info *api.ClusterInformation) bool {
	return info.Spec.DatastoreReady != nil && !*info.Spec.DatastoreReady
}

// requireLock refuses work that needs the lock; what says what for.
func (a *app) requireLock(ctx context.Context, store datastore.Store, what string) error {
	info, err := datastore.For[api.ClusterInformation](store).Get(ctx, "", "default")
	if err != nil {
		return a.noCluster(err)
	}
	if !isLocked(info) {
		return exit.New(exit.Conflict, "", fmt.Errorf("datastore is not locked. Run the `%s datastore migrate lock` command %s", a.Name, what))
	}
	return nil
}

// noCluster words the error of reading the cluster's information.
func (a *app) noCluster(err error) error {
	if errors.Is(err, datastore.ErrNotFound) {
		return exit.New(exit.NotFound, "the datastore has no cluster; it appears when the first node runs or a resource is created",
			fmt.Errorf("resource does not exist: %s with error: <nil>", identifier("ClusterInformation", "", "default")))
	}
	return a.describe("get", "ClusterInformation", err)
}

// setReady locks or unlocks the datastore.
func (a *app) setReady(ctx context.Context, store datastore.Store, ready bool) error {
	_, err := datastore.For[api.ClusterInformation](store).Modify(ctx, "", "default", func(info *api.ClusterInformation) error {
		info.Spec.DatastoreReady = &ready
		return nil
	})
	if err != nil {
		return a.noCluster(err)
	}
	return nil
}
