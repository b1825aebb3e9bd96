// Package strict decodes YAML and JSON that people typed: a field that nobody
// knows, a field given twice or a value of the wrong type is an error that names
// the line and the path of the field. It does no I/O.
package strict

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// MaxBytes bounds one input. etcd refuses values over 1.5 MiB, so a file of this
// size already holds more than any cluster's configuration.
const MaxBytes = 64 << 20

// Document is one YAML or JSON document and where it came from.
type Document struct {
	Source string // file name, or "stdin"
	Line   int    // line of the source at which Text starts, from 1
	Text   []byte
}

// Error is what is wrong with a document.
type Error struct {
	Source string
	Line   int    // 0 when not known
	Path   string // dotted path of the field, "" for the document
	Reason string
}

// Error has the form "source:line: reason".
func (e *Error) Error() string {
	var b strings.Builder
	if e.Source != "" {
		b.WriteString(e.Source)
		if e.Line > 0 {
			b.WriteString(":" + strconv.Itoa(e.Line))
		}
		b.WriteString(": ")
	}
	b.WriteString(e.Reason)
	return b.String()
}

// Split cuts a stream at its "---" lines. Documents that hold only comments and
// white space are left out.
func Split(source string, text []byte) []Document {
	var docs []Document
	start, line := 1, 0
	var current []byte
	flush := func() {
		if hasContent(current) {
			docs = append(docs, Document{Source: source, Line: start, Text: current})
		}
		current = nil
	}
	for _, l := range bytes.SplitAfter(text, []byte("\n")) {
		line++
		trimmed := bytes.TrimRight(l, " \t\r\n")
		if bytes.Equal(trimmed, []byte("---")) || bytes.HasPrefix(l, []byte("--- ")) {
			flush()
			start = line + 1
			if rest := bytes.TrimPrefix(l, []byte("---")); hasContent(rest) {
				start, current = line, append(current, rest...)
			}
			continue
		}
		current = append(current, l...)
	}
	flush()
	return docs
}

func hasContent(text []byte) bool {
	for _, l := range bytes.Split(text, []byte("\n")) {
		l = bytes.TrimSpace(l)
		if len(l) > 0 && l[0] != '#' && !bytes.Equal(l, []byte("...")) {
			return true
		}
	}
	return false
}

// JSON turns the document into JSON. Syntax errors and duplicate keys are *Error.
func (d Document) JSON() (json.RawMessage, error) {
	raw, err := yaml.YAMLToJSONStrict(d.Text)
	if err != nil {
		return nil, d.syntaxError(err)
	}
	return raw, nil
}

// Decode reads the document into the value that into points to. T is a pointer,
// or an interface that holds one. Errors are *Error.
func Decode[T any](d Document, into T) error {
	raw, err := d.JSON()
	if err != nil {
		return err
	}
	return DecodeJSON(d, raw, into)
}

// DecodeJSON is Decode for a part of the document that is JSON already; d says
// where to look for the lines of errors.
func DecodeJSON[T any](d Document, raw json.RawMessage, into T) error {
	if bad := checkFields(raw, reflect.TypeOf(into), nil, 0); bad != nil {
		return &Error{Source: d.Source, Line: d.LineOf(bad.steps), Path: joinPath(bad.steps), Reason: bad.reason}
	}
	err := json.Unmarshal(raw, into)
	if err == nil {
		return nil
	}
	var mismatch *json.UnmarshalTypeError
	if errors.As(err, &mismatch) {
		reason := fmt.Sprintf("field %q is of type %s, it must be %s", mismatch.Field, mismatch.Value, typeWords(mismatch.Type))
		if mismatch.Field == "" {
			reason = fmt.Sprintf("the document is of type %s, it must be %s", mismatch.Value, typeWords(mismatch.Type))
		}
		return &Error{Source: d.Source, Line: d.LineOf(strings.Split(mismatch.Field, ".")), Path: mismatch.Field, Reason: reason}
	}
	return &Error{Source: d.Source, Line: d.Line, Reason: strings.TrimPrefix(err.Error(), "json: ")}
}

func typeWords(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "a mapping"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Pointer:
		return typeWords(t.Elem())
	default:
		return "a whole number (" + t.Kind().String() + ")"
	}
}

var yamlLine = regexp.MustCompile(`line (\d+)(?:: column \d+)?: ?`)

// syntaxError moves the YAML library's line numbers from the document to the
// source and makes one line of its lists.
func (d Document) syntaxError(err error) error {
	text := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
	text = strings.TrimPrefix(text, "yaml: ")
	text = strings.TrimPrefix(text, "unmarshal errors:")
	e := &Error{Source: d.Source, Line: d.Line}
	var reasons []string
	for _, part := range strings.Split(text, "\n") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		if m := yamlLine.FindStringSubmatch(part); m != nil {
			n, convErr := strconv.Atoi(m[1])
			if convErr == nil && len(reasons) == 0 {
				e.Line = d.Line + n - 1
			}
			part = strings.Replace(part, m[0], "", 1)
		}
		reasons = append(reasons, part)
	}
	e.Reason = "not valid YAML or JSON: " + strings.Join(reasons, "; ")
	return e
}

// LineOf finds the line of a field by looking for each step of its path after
// the one before. It is exact unless a key of the path also occurs as a key on
// the way to it.
func (d Document) LineOf(steps []string) int {
	lines := strings.Split(string(d.Text), "\n")
	at := 0
	for _, step := range steps {
		step, _, _ = strings.Cut(step, "[") // a list's index says nothing about its lines
		if step == "" {
			continue
		}
		found := -1
		for i := at; i < len(lines); i++ {
			if hasKey(lines[i], step) {
				found = i
				break
			}
		}
		if found < 0 {
			return d.Line
		}
		at = found
	}
	return d.Line + at
}

func hasKey(line, key string) bool {
	for rest := line; ; {
		i := strings.Index(rest, key)
		if i < 0 {
			return false
		}
		before := strings.TrimRight(rest[:i], ` "'`)
		after := strings.TrimLeft(rest[i+len(key):], ` "'`)
		if strings.HasPrefix(after, ":") && (before == "" || strings.ContainsAny(before[len(before)-1:], "-{,[")) {
			return true
		}
		rest = rest[i+len(key):]
	}
}
