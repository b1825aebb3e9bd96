// Package house holds the test that keeps the tree a diagram: read top-down,
// the rows below are the data flow, and a package imports only from rows above
// its own (docs/architecture.md).
package house

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/manekinet/maneki/"

// rows lists every top-level folder with Go code. Packages of one row's folder
// may import each other; package-internal cycles are the compiler's business.
func rows() []string {
	return []string{
		"selector",
		"api",
		"exit",
		"atomicfile",
		"agentapi",
		"datastore",
		"config",
		"ipam",
		"resource",
		"convert",
		"autodetect",
		"desired",
		"policy",
		"reconcile",
		"dataplane",
		"bgp",
		"pathmtu",
		"calc",
		"explain",
		"endpoint",
		"cni",
		"docker",
		"controller",
		"agent",
		"trace",
		"lab",
		"ctl",
		"cmd",
		"bench",
		"test",
	}
}

func TestImportsPointUpwards(t *testing.T) {
	row := map[string]int{}
	for i, name := range rows() {
		row[name] = i
	}
	seen := map[string]bool{}
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		rel, _ := filepath.Rel(root, path)
		top, _, _ := strings.Cut(filepath.ToSlash(rel), "/")
		mine, ok := row[top]
		if !ok {
			t.Errorf("%s: folder %q is in no row; add it to rows and to docs/architecture.md", rel, top)
			return nil
		}
		seen[top] = true
		if strings.HasSuffix(path, "_test.go") {
			return nil // a test may look downwards for a fake or a real store
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			imported, _ := strconv.Unquote(spec.Path.Value)
			rest, ours := strings.CutPrefix(imported, module)
			if !ours {
				continue
			}
			target, _, _ := strings.Cut(rest, "/")
			if theirs, known := row[target]; !known || theirs > mine {
				t.Errorf("%s imports %s, which stands below it", rel, imported)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range rows() {
		if !seen[name] {
			t.Errorf("row %q has no Go file: remove it", name)
		}
	}
}
