package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"

	yaml "sigs.k8s.io/yaml/goyaml.v3"
)

// MaxInput is how many bytes a user's input may have.
const MaxInput = 8 << 20

// maxYAMLTokens bounds a YAML document before it is parsed: the parser needs
// about 200 bytes per scalar. JSON is cheaper and has no such bound.
const maxYAMLTokens = 500_000

// SplitDocuments reads YAML (any number of documents) or JSON (any number of
// objects) and returns each object as compact JSON in the order of the input.
// A top-level list, a kind List and a kind such as IPPoolList stand for their
// items. Empty documents are left out. The input is limited to MaxInput bytes
// and its expansion by YAML aliases to a fixed size.
func SplitDocuments(r io.Reader) ([][]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxInput+1))
	if err != nil {
		return nil, fmt.Errorf("read input: %w", err)
	}
	if len(data) > MaxInput {
		return nil, fmt.Errorf("input is larger than %d MiB; split it", MaxInput>>20)
	}
	nodes, err := parseInput(data)
	if err != nil {
		return nil, err
	}
	var docs [][]byte
	for _, n := range nodes {
		items, err := flatten(n, 0)
		if err != nil {
			return nil, err
		}
		for _, item := range items {
			docs = append(docs, item.json())
		}
	}
	return docs, nil
}

// parseInput reads every document of the input. What begins like JSON and is
// JSON is read as JSON; the rest is YAML, of which JSON's flow style is a part.
func parseInput(data []byte) ([]*tree, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	b := &budget{left: maxSize}
	start := bytes.TrimLeft(data, " \t\r\n")
	if len(start) == 0 || start[0] != '{' && start[0] != '[' {
		return parseYAML(data, b)
	}
	nodes, err := parseJSONStream(data, b)
	if err == nil {
		return nodes, nil
	}
	if nodes, errYAML := parseYAML(data, &budget{left: maxSize}); errYAML == nil {
		return nodes, nil
	}
	return nil, err
}

func parseJSONStream(data []byte, b *budget) ([]*tree, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var nodes []*tree
	for {
		if !d.More() { // the end, or a bracket that closes nothing
			if _, err := d.Token(); !errors.Is(err, io.EOF) {
				return nil, jsonError(err)
			}
			return nodes, nil
		}
		n, err := readJSON(d, b, 0)
		if err != nil {
			return nil, jsonError(err)
		}
		nodes = append(nodes, n)
	}
}

// parseYAML reads the documents one at a time, so that only one syntax tree is
// in memory.
func parseYAML(data []byte, b *budget) ([]*tree, error) {
	var nodes []*tree
	for _, c := range splitYAML(data) {
		if n := countTokens(c.text); n > maxYAMLTokens {
			return nil, fmt.Errorf("the document at line %d has more than %d values; split it or write JSON", c.line, maxYAMLTokens)
		}
		d := yaml.NewDecoder(bytes.NewReader(c.text))
		for {
			var y yaml.Node
			err := d.Decode(&y)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("invalid YAML in the document at line %d: %s", c.line, clip(strings.TrimPrefix(err.Error(), "yaml: ")))
			}
			n, err := fromYAML(&y, b, 0)
			if err != nil {
				return nil, fmt.Errorf("invalid YAML in the document at line %d: %w", c.line, err)
			}
			if n.kind != jsonNull {
				nodes = append(nodes, n)
			}
		}
	}
	return nodes, nil
}

type yamlChunk struct {
	text []byte
	line int // of the input, from 1
}

// splitYAML cuts at the lines that start a document. YAML forbids "---" at the
// start of a line everywhere else, also inside texts. A chunk of directives and
// comments only is no document.
func splitYAML(data []byte) []yamlChunk {
	var chunks []yamlChunk
	start, line, first := 0, 1, 1
	for pos := 0; pos < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		if isMarker(data[pos:end]) && pos > start {
			chunks = append(chunks, yamlChunk{data[start:pos], first})
			start, first = pos, line
		}
		pos = end
	}
	chunks = append(chunks, yamlChunk{data[start:], first})
	return slices.DeleteFunc(chunks, func(c yamlChunk) bool { return isPreamble(c.text) })
}

func isMarker(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(rest) == 0 || strings.IndexByte(" \t\r\n", rest[0]) >= 0)
}

func isPreamble(text []byte) bool {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && line[0] != '%' {
			return false
		}
	}
	return true
}

// countTokens is at least the number of scalars and collections in the text:
// each but the first follows one of these characters.
func countTokens(text []byte) int {
	n := 0
	for _, c := range text {
		switch c {
		case '\n', ',', ':', '[', '{', '-', '?':
			n++
		}
	}
	return n
}

// flatten replaces lists by their items.
func flatten(n *tree, depth int) ([]*tree, error) {
	if depth > 4 {
		return nil, errors.New("lists of resources are nested deeper than 4 levels")
	}
	var items []*tree
	kind := n.get("kind").textOf()
	switch {
	case n.kind == jsonList:
		items = n.values
	case n.kind != jsonObject:
		return nil, fmt.Errorf("a resource is a mapping with apiVersion, kind, metadata and spec, not '%s'", n.snippet())
	case strings.HasSuffix(kind, "List"):
		list := n.get("items")
		if list == nil || list.kind != jsonList {
			return nil, fmt.Errorf("error with field %s.items = '' (must be a list of resources)", clip(kind))
		}
		items = listItems(n, list.values, strings.TrimSuffix(kind, "List"))
	default:
		return []*tree{n}, nil
	}
	var out []*tree
	for _, item := range items {
		more, err := flatten(item, depth+1)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

// listItems gives the items of an <item>List the kind and version that they may
// leave out.
func listItems(list *tree, items []*tree, item string) []*tree {
	if item == "" {
		return items
	}
	for _, v := range items {
		if v.kind != jsonObject {
			continue
		}
		if v.get("kind") == nil {
			v.set("kind", &tree{kind: jsonText, text: item})
		}
		if version := list.get("apiVersion"); v.get("apiVersion") == nil && version != nil {
			v.set("apiVersion", version)
		}
	}
	return items
}

// DecodeStrict reads one resource as a user wrote it, YAML or JSON. An unknown
// kind, another apiVersion, an unknown or repeated field and a value of the
// wrong type are errors that name the field by its path, its value and what is
// allowed. Defaults are not filled and combinations not checked: call Default
// and Validate.
func DecodeStrict(doc []byte) (Object, error) {
	if len(doc) > MaxInput {
		return nil, fmt.Errorf("input is larger than %d MiB; split it", MaxInput>>20)
	}
	nodes, err := parseInput(doc)
	if err != nil {
		return nil, err
	}
	if len(nodes) != 1 {
		return nil, fmt.Errorf("one resource is wanted, the input has %d", len(nodes))
	}
	n := nodes[0]
	if n.kind != jsonObject {
		return nil, fmt.Errorf("a resource is a mapping with apiVersion, kind, metadata and spec, not '%s'", n.snippet())
	}
	k, err := kindOfDocument(n)
	if err != nil {
		return nil, err
	}
	o := k.New()
	w := walker{}
	w.check(n, reflect.TypeOf(o), k.Name)
	if err := w.Err(); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(n.json(), o); err != nil {
		return nil, fmt.Errorf("decode %s: %w", k.Name, err)
	}
	return o, nil
}

// kindOfDocument judges apiVersion and kind, which decide what the rest means.
func kindOfDocument(n *tree) (Kind, error) {
	var e FieldErrors
	version, kind := n.get("apiVersion").textOf(), n.get("kind").textOf()
	if kind == "" {
		e.Add("kind", "", "must name a resource type, for example IPPool")
		return Kind{}, e.Err()
	}
	k, err := LookupKind(kind)
	if err != nil {
		return Kind{}, err
	}
	if k.Name != kind {
		e.Add("kind", clip(kind), "must be spelled "+k.Name)
	}
	if version != GroupVersion {
		e.Add("apiVersion", clip(version), "must be "+GroupVersion)
	}
	return k, e.Err()
}

// Decode reads a stored object of the kind. Fields that the kind does not have
// do not hinder: their paths are returned, in the order of the text, and
// MergeUnknown carries them over a write.
func Decode(k Kind, data []byte) (o Object, unknown []string, err error) {
	o = k.New()
	if err := json.Unmarshal(data, o); err != nil {
		return nil, nil, fmt.Errorf("decode %s: %w", k.Name, err)
	}
	n, err := parseJSON(data)
	if err != nil {
		return nil, nil, fmt.Errorf("decode %s: %w", k.Name, err)
	}
	findUnknown(n, reflect.TypeOf(o), "", &unknown)
	return o, unknown, nil
}

// Encode writes o as compact JSON in the order of its struct, times in whole
// seconds of UTC.
func Encode(o Object) ([]byte, error) {
	m := o.Meta()
	created, deleted := m.CreationTimestamp, m.DeletionTimestamp
	if created != nil {
		t := created.UTC().Truncate(1e9)
		m.CreationTimestamp = &t
	}
	if deleted != nil {
		t := deleted.UTC().Truncate(1e9)
		m.DeletionTimestamp = &t
	}
	b, err := json.Marshal(o)
	m.CreationTimestamp, m.DeletionTimestamp = created, deleted
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", o.Type().Kind, err)
	}
	return b, nil
}

// field is one JSON field of a struct.
type field struct {
	name string
	typ  reflect.Type
}

// fieldsOf lists the JSON fields of a struct type; the fields of a struct
// embedded without a name are its own.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "" && f.Anonymous:
			fields = append(fields, fieldsOf(f.Type)...)
		case name == "":
			fields = append(fields, field{f.Name, f.Type})
		case name != "-":
			fields = append(fields, field{name, f.Type})
		}
	}
	return fields
}

func lookup(fields []field, name string) (reflect.Type, bool) {
	for _, f := range fields {
		if f.name == name {
			return f.typ, true
		}
	}
	return nil, false
}

// isLeaf reports whether a type reads its own JSON, so that its inside is no
// business of the walks below.
func isLeaf(t reflect.Type) bool {
	return t.Kind() != reflect.Struct && t.Kind() != reflect.Slice && t.Kind() != reflect.Map ||
		reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]())
}

func deref(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// walker compares a document with a Go type.
type walker struct{ FieldErrors }

func (w *walker) check(n *tree, t reflect.Type, path string) {
	t = deref(t)
	switch {
	case n.kind == jsonNull:
	case isLeaf(t):
		w.leaf(n, t, path)
	case t.Kind() == reflect.Slice:
		if n.kind != jsonList {
			w.Add(path, n.snippet(), "must be a list")
			return
		}
		for i, v := range n.values {
			w.check(v, t.Elem(), index(path, i))
		}
	case n.kind != jsonObject:
		w.Add(path, n.snippet(), "must be a mapping of fields")
	default:
		w.object(n, t, path)
	}
}

func (w *walker) object(n *tree, t reflect.Type, path string) {
	var fields []field
	if t.Kind() == reflect.Struct {
		fields = fieldsOf(t)
	}
	seen := make(map[string]bool, len(n.keys))
	for i, key := range n.keys {
		at := path + "." + clip(key)
		if seen[key] {
			w.Add(at, n.values[i].snippet(), "given twice")
			continue
		}
		seen[key] = true
		if t.Kind() == reflect.Map {
			w.check(n.values[i], t.Elem(), at)
			continue
		}
		ft, known := lookup(fields, key)
		if !known {
			w.Add(at, n.values[i].snippet(), unknownReason(key, fields))
			continue
		}
		w.check(n.values[i], ft, at)
	}
}

func unknownReason(key string, fields []field) string {
	best, distance := "", 3
	for _, f := range fields {
		if strings.EqualFold(f.name, key) {
			return "unknown field; did you mean " + f.name + "?"
		}
		if d := editDistance(key, f.name, distance); d < distance {
			best, distance = f.name, d
		}
	}
	if best != "" {
		return "unknown field; did you mean " + best + "?"
	}
	if len(fields) <= 12 {
		names := make([]string, len(fields))
		for i, f := range fields {
			names[i] = f.name
		}
		return "unknown field; known here: " + strings.Join(names, ", ")
	}
	return "unknown field"
}

// editDistance is Levenshtein's distance of two short words, or limit if it is
// not below that.
func editDistance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit || len(a) > 64 {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

func (w *walker) leaf(n *tree, t reflect.Type, path string) {
	err := json.Unmarshal(n.json(), reflect.New(t).Interface())
	if err == nil {
		return
	}
	var wrong *json.UnmarshalTypeError
	if !errors.As(err, &wrong) {
		w.Add(path, n.snippet(), leafReason(t, err))
		return
	}
	w.Add(path, n.snippet(), typeReason(t, n.kind))
}

func leafReason(t reflect.Type, err error) string {
	if t.PkgPath() == "time" {
		return "must be a time such as 2026-11-21T00:00:00Z"
	}
	return err.Error()
}

func typeReason(t reflect.Type, found jsonKind) string {
	switch t.Kind() {
	case reflect.String:
		if found == jsonNumber || found == jsonBool {
			return "must be text; put it in quotes"
		}
		return "must be text"
	case reflect.Bool:
		return "must be true or false"
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		return "must be a whole number 0-" + strconv.FormatUint(1<<uint(t.Bits())-1, 10)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "must be a whole number"
	case reflect.Float64:
		return "must be a number"
	}
	return "must be a " + t.Kind().String()
}

// findUnknown lists the paths that the type has no field for.
func findUnknown(n *tree, t reflect.Type, path string, out *[]string) {
	t = deref(t)
	if isLeaf(t) {
		return
	}
	if n.kind == jsonList && t.Kind() == reflect.Slice {
		for i, v := range n.values {
			findUnknown(v, t.Elem(), index(path, i), out)
		}
	}
	if n.kind != jsonObject || t.Kind() == reflect.Slice {
		return
	}
	var fields []field
	if t.Kind() == reflect.Struct {
		fields = fieldsOf(t)
	}
	for i, key := range n.keys {
		at := strings.TrimPrefix(path+"."+key, ".")
		if t.Kind() == reflect.Map {
			findUnknown(n.values[i], t.Elem(), at, out)
		} else if ft, known := lookup(fields, key); known {
			findUnknown(n.values[i], ft, at, out)
		} else {
			*out = append(*out, at)
		}
	}
}
