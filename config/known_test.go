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
	if got := WithKnown(path, []string{a}); !slices.Equal(got, []string{a}) {
		t.Errorf("without a file: %v", got)
	}
	if err := Remember(path, []string{a}, []string{c, b, a, "nonsense"}); err != nil {
		t.Fatal(err)
	}
	if got := WithKnown(path, []string{a}); !slices.Equal(got, []string{a, c, b}) {
		t.Errorf("members: %v", got)
	}
	if got := WithKnown(path, []string{b}); !slices.Equal(got, []string{b}) {
		t.Errorf("another configuration: %v", got)
	}
	if err := os.WriteFile(path, []byte(`{"configured`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := WithKnown(path, []string{a}); !slices.Equal(got, []string{a}) {
		t.Errorf("torn file: %v", got)
	}
	if err := Remember(path, []string{a}, []string{b}); err != nil {
		t.Fatal(err)
	}
	if got := WithKnown(path, []string{a}); !slices.Equal(got, []string{a, b}) {
		t.Errorf("after repair: %v", got)
	}
}
