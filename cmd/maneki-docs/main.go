// Command maneki-docs writes the reference pages below docs/reference from the
// code: one per kind of resource, from package api, and one of all commands,
// from the command tree. `make docs` runs it; its test fails when the pages are
// not what it would write.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/manekinet/maneki/atomicfile"
)

// folder of the pages, from the top of the source.
const folder = "docs/reference"

func main() {
	root, err := sourceRoot()
	if err == nil {
		err = write(root)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// sourceRoot is the folder of go.mod at or above the working directory.
func sourceRoot() (string, error) {
	at, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(at, "go.mod")); err == nil {
			return at, nil
		}
		if up := filepath.Dir(at); up != at {
			at = up
			continue
		}
		return "", errors.New("run it inside the source: no go.mod above the working directory")
	}
}

// pages are all pages by file name.
func pages(root string) (map[string]string, error) {
	source, err := readSource(filepath.Join(root, "api"))
	if err != nil {
		return nil, err
	}
	out := source.kindPages()
	out["commands.md"] = commandPage()
	return out, nil
}

// write replaces the pages and removes those of kinds that are gone.
func write(root string) error {
	made, err := pages(root)
	if err != nil {
		return err
	}
	dir := filepath.Join(root, folder)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	there, err := filepath.Glob(filepath.Join(dir, "*.md"))
	if err != nil {
		return err
	}
	for _, path := range there {
		if _, ok := made[filepath.Base(path)]; !ok {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	for name, text := range made {
		if err := atomicfile.Write(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
