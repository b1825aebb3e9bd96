package api

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What the calculation reads of a FelixConfiguration is not warned about.
func TestServedParametersAreListed(t *testing.T) {
	files, err := filepath.Glob("../calc/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no source of the calculation: %v", err)
	}
	reads := regexp.MustCompile(`func\(\w+ \*api\.FelixConfigurationSpec\) \S+ \{ return \w+\.(\w+) \}`)
	spec := reflect.TypeFor[FelixConfigurationSpec]()
	found := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range reads.FindAllStringSubmatch(string(text), -1) {
			f, ok := spec.FieldByName(m[1])
			if !ok {
				t.Errorf("%s reads %s, which is no parameter", file, m[1])
				continue
			}
			found++
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); !slices.Contains(servedParameters(), name) {
				t.Errorf("%s reads %s: add it to servedParameters", file, name)
			}
		}
	}
	if found == 0 {
		t.Error("the calculation reads no parameter in the form that is looked for")
	}
}
