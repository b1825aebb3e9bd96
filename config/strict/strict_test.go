package strict_test

import (
	"strings"
	"testing"
	"time"

	"github.com/manekinet/maneki/config/strict"
)

type head struct {
	Kind string `json:"kind"`
}

type sample struct {
	head
	Spec struct {
		CIDR     string            `json:"cidr"`
		Size     int               `json:"blockSize"`
		On       bool              `json:"enabled"`
		Labels   map[string]string `json:"labels"`
		When     *time.Time        `json:"when"`
		Children []struct {
			Name string `json:"name"`
		} `json:"children"`
	} `json:"spec"`
	Hidden string `json:"-"`
}

func TestSplit(t *testing.T) {
	text := "# comment\n---\nkind: A\n---\n\n# nothing\n---\nkind: B\nspec: {}\n--- {kind: C}\n"
	docs := strict.Split("f", []byte(text))
	want := []struct {
		line int
		has  string
	}{{3, "kind: A"}, {8, "kind: B"}, {10, "kind: C"}}
	if len(docs) != len(want) {
		t.Fatalf("got %d documents, want %d: %+v", len(docs), len(want), docs)
	}
	for i, w := range want {
		if docs[i].Line != w.line || !strings.Contains(string(docs[i].Text), w.has) {
			t.Errorf("document %d: line %d %q, want line %d with %q", i, docs[i].Line, docs[i].Text, w.line, w.has)
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	tests := []struct {
		name, text, want string
	}{
		{"good", "kind: A\nspec:\n  cidr: 10.0.0.0/8\n  labels: {anything: goes}\n  when: 2026-01-02T03:04:05Z\n", ""},
		{"good JSON", `{"kind":"A","spec":{"blockSize":26}}`, ""},
		{"unknown at top", "kind: A\ncolour: red\n", `f:3: unknown field "colour" (known here: kind, spec)`},
		{"unknown below", "kind: A\nspec:\n  cidr: 1\n  colour: red\n", `f:5: unknown field "spec.colour" (known here: blockSize, children, cidr, enabled, labels, when)`},
		{"misspelt", "spec:\n  blocksize: 26\n", `f:3: unknown field "spec.blocksize", did you mean "blockSize"?`},
		{"misspelt by a letter", "spec:\n  cidrs: 1\n", `f:3: unknown field "spec.cidrs", did you mean "cidr"?`},
		{"in a list", "spec:\n  children:\n  - name: a\n  - nmae: b\n", `f:5: unknown field "spec.children[1].nmae", did you mean "name"?`},
		{"hidden", "Hidden: x\n", `f:2: unknown field "Hidden" (known here: kind, spec)`},
		{"twice", "kind: A\nkind: B\n", `f:3: not valid YAML or JSON: key "kind" already set in map`},
		{"wrong type", "kind: A\nspec:\n  blockSize: big\n", `f:4: field "spec.blockSize" is of type string, it must be a whole number (int)`},
		{"wrong bool", "spec:\n  enabled: 3\n", `f:3: field "spec.enabled" is of type number, it must be true or false`},
		{"wrong struct", "spec: hello\n", `f:2: field "spec" is of type string, it must be a mapping`},
		{"own type", "spec:\n  when: yesterday\n", `f:3: field "spec.when" is "yesterday": parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006"`},
		{"scalar document", "hello\n", `f:2: the document is of type string, it must be a mapping`},
		{"tab", "kind: A\nspec:\n\tcidr: x\n", `f:4: not valid YAML or JSON: found character that cannot start any token`},
		{"bad indent", "kind: A\n  spec: b\n", `f:3: not valid YAML or JSON: mapping values are not allowed in this context`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			docs := strict.Split("f", []byte("---\n"+tt.text))
			if len(docs) != 1 {
				t.Fatalf("%d documents", len(docs))
			}
			var s sample
			err := strict.Decode(docs[0], &s)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("kind: A\nspec:\n  cidr: x\n---\n{}"))
	f.Add([]byte("spec: {children: [{name: a}, {b: c}]}"))
	f.Add([]byte("--- \n- a\n- b\n...\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, d := range strict.Split("f", text) {
			var s sample
			err := strict.Decode(d, &s)
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("error of more than one line: %q", err)
			}
		}
	})
}
