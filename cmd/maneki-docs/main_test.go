package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/manekinet/maneki/api"
)

// The pages in the source are what the code says today.
func TestPagesAreCurrent(t *testing.T) {
	root, err := sourceRoot()
	if err != nil {
		t.Fatal(err)
	}
	made, err := pages(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range made {
		got, err := os.ReadFile(filepath.Join(root, folder, name))
		if err != nil || string(got) != want {
			t.Errorf("%s/%s is not current (%v): run `make docs`", folder, name, err)
		}
	}
	there, err := filepath.Glob(filepath.Join(root, folder, "*.md"))
	if err != nil || len(there) != len(made) {
		t.Errorf("%d pages are there, %d are written (%v): run `make docs`", len(there), len(made), err)
	}
}

// Every kind has a page, and every field of its spec a row with an explanation,
// but for the parameters of Felix, whose names are the explanation.
func TestPagesAreComplete(t *testing.T) {
	root, err := sourceRoot()
	if err != nil {
		t.Fatal(err)
	}
	made, err := pages(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range api.Kinds() {
		page, ok := made[strings.ToLower(k.Name)+".md"]
		if !ok {
			t.Errorf("no page of %s", k.Name)
			continue
		}
		_, spec, _ := strings.Cut(page, "\n## spec\n")
		spec, _, _ = strings.Cut(spec, "\n## ")
		if strings.Contains(page, "\n## spec\n") != strings.Contains(spec, "| `") {
			t.Errorf("%s: spec has no fields", k.Name)
		}
		if strings.HasPrefix(k.Name, "Felix") {
			continue
		}
		for _, line := range strings.Split(spec, "\n") {
			if strings.HasPrefix(line, "| `") && strings.HasSuffix(line, "|  |") && !strings.Contains(line, "](#") {
				t.Errorf("%s: no explanation: %s", k.Name, line)
			}
		}
	}
	for _, command := range []string{"get", "apply", "datastore snapshot", "node run", "lab up", "cni install"} {
		if !strings.Contains(made["commands.md"], "\n## maneki "+command+"\n") {
			t.Errorf("no section of maneki %s", command)
		}
	}
}
