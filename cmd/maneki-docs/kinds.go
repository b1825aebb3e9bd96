package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/manekinet/maneki/api"
)

// generated stands above every page.
const generated = "<!-- Written by `make docs` from the code; do not edit. -->\n\n"

// kindPages are the pages of all kinds and their index.
func (s *source) kindPages() map[string]string {
	out := map[string]string{}
	index := &strings.Builder{}
	index.WriteString(generated + "# Reference\n\nWritten from the code. The [commands](commands.md), and a page for every kind of resource:\n\n| kind | scope | also | |\n|---|---|---|---|\n")
	for _, k := range api.Kinds() {
		file := strings.ToLower(k.Name) + ".md"
		out[file] = s.kindPage(k)
		fmt.Fprintf(index, "| [%s](%s) | %s | %s | %s |\n", k.Name, file, scope(k), strings.Join(k.Aliases, ", "), firstSentence(s.structs[typeName(k)].doc, k.Name))
	}
	index.WriteString("\nEvery resource has a head:\n\n")
	index.WriteString("| field | holds | |\n|---|---|---|\n| `apiVersion` | text | `projectcalico.org/v3` |\n| `kind` | text | the name above |\n| `metadata` | [ObjectMeta](#objectmeta) | |\n| `spec` | | what the page says |\n\n## ObjectMeta\n\n")
	s.table(index, s.structs["ObjectMeta"].fields, "ObjectMeta", nil)
	out["README.md"] = index.String()
	return out
}

func typeName(k api.Kind) string {
	name := fmt.Sprintf("%T", k.New())
	return name[strings.LastIndex(name, ".")+1:]
}

func scope(k api.Kind) string {
	if k.Namespaced {
		return "namespaced"
	}
	return "cluster"
}

// firstSentence of a Go comment, without the name it begins with.
func firstSentence(doc, name string) string {
	text := strings.Join(strings.Fields(doc), " ")
	if i := strings.Index(text, ". "); i >= 0 {
		text = text[:i]
	}
	text = strings.TrimSuffix(strings.TrimSuffix(text, "."), ":")
	for _, p := range []string{name + " is ", name + " are "} {
		if after, ok := strings.CutPrefix(text, p); ok {
			return after
		}
	}
	return text
}

func (s *source) kindPage(k api.Kind) string {
	b := &strings.Builder{}
	top := s.structs[typeName(k)]
	fmt.Fprintf(b, "%s# %s\n\n%s\n\n", generated, k.Name, strings.TrimSpace(top.doc))
	fmt.Fprintf(b, "| | |\n|---|---|\n| scope | %s |\n| `maneki get` | %s |\n", scope(k), strings.Join(append([]string{k.Plural}, k.Aliases...), ", "))
	key := "/calico/resources/v3/projectcalico.org/" + k.Plural
	if k.Namespaced {
		key += "/NAMESPACE"
	}
	fmt.Fprintf(b, "| key in etcd | `%s/NAME` |\n", key)
	for _, w := range []struct {
		name string
		in   func(api.Column) bool
	}{{"columns", func(c api.Column) bool { return c.Narrow }}, {"with `-o wide`", func(c api.Column) bool { return c.Wide }}} {
		var headers []string
		for _, c := range k.Columns {
			if w.in(c) {
				headers = append(headers, c.Header)
			}
		}
		fmt.Fprintf(b, "| %s | %s |\n", w.name, strings.Join(headers, ", "))
	}
	b.WriteString("\nThe head is that of [every resource](README.md).\n\n")
	var below []string
	for _, f := range top.fields {
		if _, t := s.word(f.kind); f.name != "" && t != "" {
			fmt.Fprintf(b, "## %s\n\n", f.name)
			s.table(b, s.structs[t].fields, t, &below)
		}
	}
	for i := 0; i < len(below); i++ { // grows as structs name others
		fmt.Fprintf(b, "## %s\n\n", below[i])
		if doc := strings.TrimSpace(s.structs[below[i]].doc); doc != "" {
			fmt.Fprintf(b, "%s\n\n", doc)
		}
		s.table(b, s.structs[below[i]].fields, below[i], &below)
	}
	s.defaults(b, k)
	return b.String()
}

// table explains fields; structs that they hold are added to below.
func (s *source) table(b *strings.Builder, fs []field, owner string, below *[]string) {
	if len(fs) == 0 {
		return
	}
	served := owner == "FelixConfigurationSpec"
	if served {
		b.WriteString("The last column says which parameters the agent acts on; the others are kept, and `apply` warns of them.\n\n| field | holds | | acts |\n|---|---|---|---|\n")
	} else {
		b.WriteString("| field | holds | |\n|---|---|---|\n")
	}
	for _, f := range fs {
		if f.name == "" {
			continue
		}
		text, t := s.word(f.kind)
		if t != "" && below != nil && !slices.Contains(*below, t) {
			*below = append(*below, t)
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |", f.name, cell(text), cell(f.comment))
		if served {
			b.WriteString(map[bool]string{true: " yes |", false: " |"}[api.ServesParameter(f.name)])
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
}

// cell is text that cannot break a table.
func cell(text string) string { return strings.ReplaceAll(text, "|", "\\|") }

// defaults shows what is stored when nothing is said.
func (s *source) defaults(b *strings.Builder, k api.Kind) {
	o := k.New()
	o.Default()
	text, err := json.Marshal(o)
	if err != nil {
		return
	}
	var m map[string]json.RawMessage
	if json.Unmarshal(text, &m) != nil {
		return
	}
	for _, name := range []string{"kind", "apiVersion", "metadata", "status"} {
		delete(m, name)
	}
	var spec map[string]json.RawMessage
	if json.Unmarshal(m["spec"], &spec) != nil {
		return
	}
	maps.DeleteFunc(spec, func(_ string, v json.RawMessage) bool {
		return string(v) == `""` || string(v) == "null" || string(v) == "{}"
	})
	if len(spec) == 0 {
		return
	}
	text, err = json.Marshal(spec)
	if err != nil {
		return
	}
	if text, err = yaml.JSONToYAML(text); err == nil {
		fmt.Fprintf(b, "## Defaults\n\nWhat is stored of a spec that says nothing:\n\n```yaml\n%s```\n", text)
	}
}
