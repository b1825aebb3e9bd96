package ctl_test

import (
	"strings"
	"testing"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore/memory"
)

// TestEveryKind: what the command line offers for one kind it offers for all.
func TestEveryKind(t *testing.T) {
	s := system{store: keepOpen{memory.New()}}
	if code, _, stderr := s.run(pool("p1", "10.65.0.0/16", "Never"), "apply", "-f", "-"); code != 0 {
		t.Fatal(stderr)
	}
	for _, k := range api.Kinds() {
		for _, format := range []string{"ps", "wide", "yaml", "json"} {
			args := []string{"get", k.Plural, "-o", format}
			if k.Namespaced {
				args = append(args, "-A")
			}
			code, stdout, stderr := s.run("", args...)
			if code != 0 || stderr != "" || stdout == "" {
				t.Errorf("%v: exit %d: %q %s", args, code, stdout, stderr)
			}
			if format == "yaml" && !strings.Contains(stdout, "kind: "+k.Name+"List\nmetadata:\n  resourceVersion: \"") {
				t.Errorf("%v: the list has no revision:\n%s", args, stdout)
			}
		}
		for _, args := range [][]string{
			{"patch", k.Name, "nosuch", "-p", "{}"}, {"label", k.Name, "nosuch", "a=b"}, {"delete", k.Name, "nosuch"}, {"get", k.Name, "nosuch"},
		} {
			code, stdout, stderr := s.run("", args...)
			if code != 4 && code != 3 || stdout != "" || strings.Count(stderr, "\n") != 1 {
				t.Errorf("%v: exit %d: %q %q", args, code, stdout, stderr)
			}
		}
		if k.Name == "BlockAffinity" {
			if code, _, stderr := s.run("", "get", k.Name, "-w"); code != 2 || !strings.Contains(stderr, "cannot be watched") {
				t.Errorf("watch: exit %d: %s", code, stderr)
			}
		}
		if code, stdout, _ := s.run("", "__complete", "get", k.Plural, ""); code != 0 || !strings.HasSuffix(stdout, ":4\n") {
			t.Errorf("complete %s: %q", k.Plural, stdout)
		}
	}
}
