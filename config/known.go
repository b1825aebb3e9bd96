package config

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"

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
}

// WithKnown are the configured endpoints and, after them, the members that the
// file knows to belong to the same cluster. A file that is not there or cannot be
// read adds nothing.
func WithKnown(path string, configured []string) []string {
	k, ok := readKnown(path)
	if !ok || !slices.Equal(k.Configured, configured) {
		return configured
	}
	out := slices.Clone(configured)
	for _, m := range k.Members {
		if !slices.Contains(out, m) && checkEndpoint(m) == nil {
			out = append(out, m)
		}
	}
	return out
}

// Remember writes the file, if it does not say that already.
func Remember(path string, configured, members []string) error {
	if k, ok := readKnown(path); ok && slices.Equal(k.Configured, configured) && slices.Equal(k.Members, members) {
		return nil
	}
	text, err := json.Marshal(known{Configured: configured, Members: members})
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
