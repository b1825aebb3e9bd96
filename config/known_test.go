package config

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestKnown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endpoints.json")
	a, b, c := "http://10.0.0.1:2379", "http://10.0.0.2:2379", "http://10.0.0.3:2379"
	check := func(what string, configured, others []string, cluster uint64) {
		t.Helper()
		if got, id := Known(path, configured); !slices.Equal(got, others) || id != cluster {
			t.Errorf("%s: %v of %x", what, got, id)
		}
	}
	check("without a file", []string{a}, nil, 0)
	if err := Remember(path, []string{a}, []string{c, b, a, "nonsense"}, 0xfedcba9876543210); err != nil {
		t.Fatal(err)
	}
	check("members", []string{a}, []string{c, b}, 0xfedcba9876543210)
	check("another configuration", []string{b}, nil, 0)
	if err := os.WriteFile(path, []byte(`{"configured`), 0o600); err != nil {
		t.Fatal(err)
	}
	check("torn file", []string{a}, nil, 0)
	if err := Remember(path, []string{a}, []string{b}, 7); err != nil {
		t.Fatal(err)
	}
	check("after repair", []string{a}, []string{b}, 7)
}
