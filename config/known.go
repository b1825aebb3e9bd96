package config

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/manekinet/maneki/atomicfile"
)

// KnownFile is where the agent of this host keeps the addresses of the
// datastore's members that it has met.
const KnownFile = "/var/lib/maneki/endpoints.json"

// known is the file's document. It counts only as long as the configuration is
// the one that led to it.
type known struct {
	Configured []string `json:"configured"`
	Members    []string `json:"members"`
	Cluster    string   `json:"cluster"` // its identity, hexadecimal
}

// Known are the members that the file knows beside the configured endpoints, and
// the identity of their cluster. A file that is not there or cannot be read knows
// nothing.
func Known(path string, configured []string) (others []string, cluster uint64) {
	k, ok := readKnown(path)
	if !ok || !slices.Equal(k.Configured, configured) {
		return nil, 0
	}
	for _, m := range k.Members {
		if !slices.Contains(configured, m) && checkEndpoint(m) == nil {
			others = append(others, m)
		}
	}
	cluster, err := strconv.ParseUint(k.Cluster, 16, 64)
	if err != nil {
		return others, 0
	}
	return others, cluster
}

// Remember writes the file, if it does not say that already.
func Remember(path string, configured, members []string, cluster uint64) error {
	want := known{Configured: configured, Members: members, Cluster: strconv.FormatUint(cluster, 16)}
	if k, ok := readKnown(path); ok && slices.Equal(k.Configured, configured) && slices.Equal(k.Members, members) && k.Cluster == want.Cluster {
		return nil
	}
	text, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("remember the datastore's members: %w", err)
	}
	if err := atomicfile.Write(path, text, 0o644); err != nil {
		return fmt.Errorf("remember the datastore's members: %w", err)
	}
	return nil
}

func readKnown(path string) (k known, ok bool) {
	text, err := os.ReadFile(path)
	return k, err == nil && json.Unmarshal(text, &k) == nil
}
