package ctl

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"text/template"

	"sigs.k8s.io/yaml"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/exit"
)

// List is several resources as one document: an IPPoolList.
type List struct {
	Kind       string       `json:"kind"`
	APIVersion string       `json:"apiVersion"`
	Metadata   ListMeta     `json:"metadata"`
	Items      []api.Object `json:"items"`
}

// ListMeta says at which revision of the store a list was read.
type ListMeta struct {
	ResourceVersion string `json:"resourceVersion,omitempty"`
}

// result is what get found: one resource, or the list of a kind.
type result struct {
	kind   api.Kind
	object api.Object
	list   *List // instead of object
}

func (r result) objects() []api.Object {
	if r.list != nil {
		return r.list.Items
	}
	return []api.Object{r.object}
}

// MarshalJSON gives the resource or the list itself.
func (r result) MarshalJSON() ([]byte, error) {
	if r.list != nil {
		return json.Marshal(r.list)
	}
	return json.Marshal(r.object)
}

// printer writes results in one format.
type printer func(w io.Writer, results []result, c tableContext) error

// tableContext is what tables need to know beside the resources.
type tableContext struct {
	namespaces bool // print the column NAMESPACE
	cells      api.PrintContext
}

const outputHelp = "ps, wide, yaml, json, custom-columns=A,B, go-template=TEXT or go-template-file=FILE"

// printerFor finds the printer for the value of -o.
func printerFor(output string) (printer, error) {
	switch output {
	case "", "ps":
		return tables(func(c api.Column) bool { return c.Narrow }), nil
	case "wide":
		return tables(func(c api.Column) bool { return c.Wide }), nil
	case "yaml", "yml":
		return printYAML, nil
	case "json":
		return printJSON, nil
	}
	key, value, _ := strings.Cut(output, "=")
	bad := func(err error) (printer, error) { return nil, exit.New(exit.Usage, "use "+outputHelp, err) }
	switch {
	case key == "custom-columns" && value == "":
		return bad(fmt.Errorf("need to specify at least one column"))
	case key == "custom-columns":
		return customColumns(strings.Split(value, ",")), nil
	case key == "go-template" && value == "":
		return bad(fmt.Errorf("need to specify a template"))
	case key == "go-template":
		return goTemplate(value)
	case key == "go-template-file" && value == "":
		return bad(fmt.Errorf("need to specify a template file"))
	case key == "go-template-file":
		text, err := os.ReadFile(value)
		if err != nil {
			return nil, exit.New(exit.Input, "", err)
		}
		return goTemplate(string(text))
	}
	return bad(fmt.Errorf("unrecognized output format '%s'", output))
}

// marshalResults leaves out the list around a single result, as calicoctl does.
func marshalResults(results []result, marshal func(v json.Marshaler) ([]byte, error)) ([]byte, error) {
	if len(results) == 1 {
		return marshal(results[0])
	}
	return marshal(resultList(results))
}

type resultList []result

// MarshalJSON gives the JSON array.
func (l resultList) MarshalJSON() ([]byte, error) { return json.Marshal([]result(l)) }

func printYAML(w io.Writer, results []result, _ tableContext) error {
	text, err := marshalResults(results, func(v json.Marshaler) ([]byte, error) { return yaml.Marshal(v) })
	if err != nil {
		return fmt.Errorf("print YAML: %w", err)
	}
	_, err = w.Write(text)
	return err
}

func printJSON(w io.Writer, results []result, _ tableContext) error {
	text, err := marshalResults(results, func(v json.Marshaler) ([]byte, error) { return json.MarshalIndent(v, "", "  ") })
	if err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", text)
	return err
}

func tables(shown func(api.Column) bool) printer {
	return func(w io.Writer, results []result, c tableContext) error {
		for _, r := range results {
			columns := slices.DeleteFunc(slices.Clone(r.kind.Columns), func(c api.Column) bool { return !shown(c) })
			if err := printTable(w, r, columns, c); err != nil {
				return err
			}
		}
		return nil
	}
}

func customColumns(names []string) printer {
	return func(w io.Writer, results []result, c tableContext) error {
		for _, r := range results {
			columns, err := columnsNamed(r.kind, names)
			if err != nil {
				return err
			}
			if err := printTable(w, r, columns, c); err != nil {
				return err
			}
		}
		return nil
	}
}

func columnsNamed(kind api.Kind, names []string) ([]api.Column, error) {
	all := kind.Columns
	if kind.Namespaced {
		all = append([]api.Column{namespaceColumn()}, all...)
	}
	var known []string
	for _, c := range all {
		known = append(known, c.Header)
	}
	var columns []api.Column
	for _, name := range names {
		i := slices.IndexFunc(all, func(c api.Column) bool { return strings.EqualFold(c.Header, strings.TrimSpace(name)) })
		if i < 0 {
			return nil, exit.New(exit.Usage, "", fmt.Errorf("unknown heading %s, valid values are: %s", name, strings.Join(known, ", ")))
		}
		columns = append(columns, all[i])
	}
	return columns, nil
}

func namespaceColumn() api.Column {
	return api.Column{Header: "NAMESPACE", Value: func(o api.Object, _ api.PrintContext) string { return o.Meta().Namespace }}
}

// printTable writes one table and the blank line that follows each.
func printTable(w io.Writer, r result, columns []api.Column, c tableContext) error {
	hasNamespace := func(c api.Column) bool { return c.Header == "NAMESPACE" }
	if c.namespaces && r.kind.Namespaced && !slices.ContainsFunc(columns, hasNamespace) {
		columns = append([]api.Column{namespaceColumn()}, columns...)
	}
	// Every cell, the last one too, ends with a tab: calicoctl pads the last column.
	t := tabwriter.NewWriter(w, 5, 1, 3, ' ', 0)
	for _, column := range columns {
		fmt.Fprint(t, column.Header, "\t")
	}
	fmt.Fprintln(t)
	for _, o := range r.objects() {
		for _, column := range columns {
			fmt.Fprint(t, oneLine(column.Value(o, c.cells)), "\t")
		}
		fmt.Fprintln(t)
	}
	fmt.Fprintln(t)
	return t.Flush()
}

// oneLine keeps a stored value with tabs or newlines from breaking the table.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// goTemplate runs the text over the list of results; the items of a kind's list
// are in .Items, as with calicoctl: {{range .}}{{range .Items}}...
func goTemplate(text string) (printer, error) {
	join := func(sep string, items []string) string { return strings.Join(items, sep) }
	t, err := template.New("output").Funcs(template.FuncMap{"join": join}).Parse(text)
	if err != nil {
		return nil, exit.New(exit.Usage, "", fmt.Errorf("parse template: %w", err))
	}
	return func(w io.Writer, results []result, _ tableContext) error {
		data := make([]any, 0, len(results))
		for _, r := range results {
			if r.list != nil {
				data = append(data, r.list)
			} else {
				data = append(data, r.object)
			}
		}
		if err := t.Execute(w, data); err != nil {
			return exit.New(exit.Usage, "", fmt.Errorf("execute template: %w", err))
		}
		return nil
	}, nil
}
