package ipip_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestTheObjectIsWhatTheSourceSays builds the programs as go generate does and compares every byte.
func TestTheObjectIsWhatTheSourceSays(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^//go:generate (.*)$`).FindSubmatch(doc)
	if line == nil {
		t.Fatal("doc.go has no go:generate line")
	}
	words := strings.Fields(string(line[1]))
	if _, err := exec.LookPath(words[0]); err != nil {
		t.Fatalf("%s is missing: install the Debian package clang-19: %v", words[0], err)
	}
	built := filepath.Join(t.TempDir(), "ipip.o")
	committed := words[len(words)-1]
	words[len(words)-1] = built
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
	}
	is, err := os.ReadFile(committed)
	if err != nil {
		t.Fatal(err)
	}
	if want, err := os.ReadFile(built); err != nil || !bytes.Equal(is, want) {
		t.Errorf("%s differs from what its source gives: run go generate ./dataplane/ipip (%v)", committed, err)
	}
}
