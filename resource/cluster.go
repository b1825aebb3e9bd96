package resource

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// EnsureInitialized makes sure that the cluster has its ClusterInformation, which
// it returns, and its built-in tiers (spec/calico.md §1.3). The GUID is made once. clusterType is a
// comma-separated list of which missing entries are appended; version replaces
// the stored one; both change nothing when empty. datastoreReady is set only if
// nobody has set it, so that a lock for a migration survives.
func (c *Client) EnsureInitialized(ctx context.Context, version, clusterType string) (*api.ClusterInformation, error) {
	infos := datastore.For[api.ClusterInformation](c.store)
	for range applyAttempts {
		info, err := infos.Modify(ctx, "", "default", func(info *api.ClusterInformation) error {
			complete(&info.Spec, version, clusterType)
			return nil
		})
		if err == nil {
			return info, c.ensureTiers(ctx)
		}
		if !errors.Is(err, ErrNotExist) {
			return nil, fmt.Errorf("initialize cluster information: %w", err)
		}
		info = &api.ClusterInformation{}
		info.Name = "default"
		info.Default()
		complete(&info.Spec, version, clusterType)
		if err = infos.Create(ctx, info); err == nil {
			c.log.Info("initialized datastore", "clusterGUID", info.Spec.ClusterGUID)
			return info, c.ensureTiers(ctx)
		}
		if !errors.Is(err, ErrExists) {
			return nil, fmt.Errorf("initialize cluster information: %w", err)
		}
	}
	return nil, fmt.Errorf("initialize cluster information: %w: it keeps appearing and vanishing", ErrConflict)
}

func complete(s *api.ClusterInformationSpec, version, clusterType string) {
	if s.ClusterGUID == "" {
		s.ClusterGUID = strings.ReplaceAll(uuid.NewString(), "-", "")
	}
	if version != "" {
		s.CalicoVersion = version
	}
	s.ClusterType = appendTypes(s.ClusterType, clusterType)
	if s.DatastoreReady == nil {
		ready := true
		s.DatastoreReady = &ready
	}
}

// appendTypes adds to a comma list what it lacks, keeping its order.
func appendTypes(have, add string) string {
	var types []string
	for t := range strings.SplitSeq(have+","+add, ",") {
		if t = strings.TrimSpace(t); t != "" && !slices.Contains(types, t) {
			types = append(types, t)
		}
	}
	return strings.Join(types, ",")
}
