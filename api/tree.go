package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	yaml "sigs.k8s.io/yaml/goyaml.v3"
)

// tree is one JSON value as it was written: the order of keys, duplicates and
// the exact text of numbers are kept, so that they can be judged.
type tree struct {
	kind   jsonKind
	text   string // the text, or the literal of a number or boolean
	keys   []string
	values []*tree // of a list, or beside keys
}

type jsonKind uint8

const (
	jsonNull jsonKind = iota
	jsonBool
	jsonNumber
	jsonText
	jsonList
	jsonObject
)

// Limits on what a document may become in memory.
const (
	maxDepth = 64       // nesting; the deepest kind has 9 levels
	maxSize  = 64 << 20 // bytes of nodes after aliases are followed
	treeCost = 64       // bytes that one node counts
)

// get returns the value of the last occurrence of key, as encoding/json would take it.
func (n *tree) get(key string) *tree {
	if n == nil || n.kind != jsonObject {
		return nil
	}
	for i := len(n.keys) - 1; i >= 0; i-- {
		if n.keys[i] == key {
			return n.values[i]
		}
	}
	return nil
}

// set replaces or adds a key.
func (n *tree) set(key string, v *tree) {
	for i := range n.keys {
		if n.keys[i] == key {
			n.values[i] = v
			return
		}
	}
	n.keys, n.values = append(n.keys, key), append(n.values, v)
}

// textOf is the text of a text node, else empty.
func (n *tree) textOf() string {
	if n == nil || n.kind != jsonText {
		return ""
	}
	return n.text
}

// encode writes the value as compact JSON.
func (n *tree) encode(b *bytes.Buffer) {
	switch n.kind {
	case jsonNull:
		b.WriteString("null")
	case jsonBool, jsonNumber:
		b.WriteString(n.text)
	case jsonText:
		encodeText(b, n.text)
	case jsonList:
		b.WriteByte('[')
		for i, v := range n.values {
			if i > 0 {
				b.WriteByte(',')
			}
			v.encode(b)
		}
		b.WriteByte(']')
	case jsonObject:
		b.WriteByte('{')
		for i, v := range n.values {
			if i > 0 {
				b.WriteByte(',')
			}
			encodeText(b, n.keys[i])
			b.WriteByte(':')
			v.encode(b)
		}
		b.WriteByte('}')
	}
}

func encodeText(b *bytes.Buffer, s string) {
	q, err := json.Marshal(s)
	if err != nil { // a string always has a JSON form
		q = []byte(`""`)
	}
	b.Write(q)
}

func (n *tree) json() []byte {
	var b bytes.Buffer
	n.encode(&b)
	return b.Bytes()
}

// snippet is the value for an error message.
func (n *tree) snippet() string {
	if n.kind == jsonText {
		return clip(n.text)
	}
	return clip(string(n.json()))
}

// budget counts down what a document may still cost.
type budget struct{ left int }

func (b *budget) spend(n int) error {
	b.left -= treeCost + n
	if b.left < 0 {
		return fmt.Errorf("document is larger than %d MiB in memory", maxSize>>20)
	}
	return nil
}

// parseJSON reads exactly one JSON value.
func parseJSON(data []byte) (*tree, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	n, err := readJSON(d, &budget{left: maxSize}, 0)
	if err != nil {
		return nil, jsonError(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("invalid JSON: something follows the object")
	}
	return n, nil
}

func jsonError(err error) error {
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("invalid JSON at byte %d: %w", syntax.Offset, err)
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("invalid JSON: the input ends inside a value")
	}
	return err
}

// readJSON reads one value. The decoder checks that brackets and keys are where
// they belong.
func readJSON(d *json.Decoder, b *budget, depth int) (*tree, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("document is nested deeper than %d levels", maxDepth)
	}
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	var n *tree
	switch v := t.(type) {
	case nil:
		n = &tree{kind: jsonNull}
	case bool:
		n = &tree{kind: jsonBool, text: strconv.FormatBool(v)}
	case json.Number:
		n = &tree{kind: jsonNumber, text: v.String()}
	case string:
		n = &tree{kind: jsonText, text: v}
	case json.Delim:
		if v == '[' {
			return readJSONList(d, b, depth)
		}
		return readJSONObject(d, b, depth)
	}
	return n, b.spend(len(n.text))
}

func readJSONList(d *json.Decoder, b *budget, depth int) (*tree, error) {
	n := &tree{kind: jsonList}
	for d.More() {
		v, err := readJSON(d, b, depth+1)
		if err != nil {
			return nil, err
		}
		n.values = append(n.values, v)
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	return n, b.spend(0)
}

func readJSONObject(d *json.Decoder, b *budget, depth int) (*tree, error) {
	n := &tree{kind: jsonObject}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		key, ok := t.(string)
		if !ok {
			return nil, errors.New("invalid JSON: a key is not text")
		}
		v, err := readJSON(d, b, depth+1)
		if err != nil {
			return nil, err
		}
		n.keys, n.values = append(n.keys, key), append(n.values, v)
		if err := b.spend(len(key)); err != nil {
			return nil, err
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	return n, b.spend(0)
}

// fromYAML turns a parsed YAML node into a JSON value, following aliases as far
// as the budget reaches.
func fromYAML(y *yaml.Node, b *budget, depth int) (*tree, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("line %d: document is nested deeper than %d levels (or an alias contains itself)", y.Line, maxDepth)
	}
	if err := b.spend(len(y.Value)); err != nil {
		return nil, err
	}
	switch y.Kind {
	case yaml.DocumentNode:
		return fromYAML(y.Content[0], b, depth)
	case yaml.AliasNode:
		return fromYAML(y.Alias, b, depth+1)
	case yaml.SequenceNode:
		n := &tree{kind: jsonList}
		for _, c := range y.Content {
			v, err := fromYAML(c, b, depth+1)
			if err != nil {
				return nil, err
			}
			n.values = append(n.values, v)
		}
		return n, nil
	case yaml.MappingNode:
		return mappingFromYAML(y, b, depth)
	}
	return scalarFromYAML(y)
}

func mappingFromYAML(y *yaml.Node, b *budget, depth int) (*tree, error) {
	n := &tree{kind: jsonObject}
	for i := 0; i+1 < len(y.Content); i += 2 {
		k, c := y.Content[i], y.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("line %d: a key must be plain text", k.Line)
		}
		if k.ShortTag() == "!!merge" {
			return nil, fmt.Errorf("line %d: merge keys (<<) are not supported; write the fields out", k.Line)
		}
		v, err := fromYAML(c, b, depth+1)
		if err != nil {
			return nil, err
		}
		n.keys, n.values = append(n.keys, k.Value), append(n.values, v)
	}
	return n, nil
}

func scalarFromYAML(y *yaml.Node) (*tree, error) {
	switch y.ShortTag() {
	case "!!null":
		return &tree{kind: jsonNull}, nil
	case "!!bool":
		return &tree{kind: jsonBool, text: strconv.FormatBool(strings.EqualFold(y.Value, "true"))}, nil
	case "!!int":
		text := strings.ReplaceAll(y.Value, "_", "")
		if v, err := strconv.ParseInt(text, 0, 64); err == nil {
			return &tree{kind: jsonNumber, text: strconv.FormatInt(v, 10)}, nil
		}
		if v, err := strconv.ParseUint(text, 0, 64); err == nil {
			return &tree{kind: jsonNumber, text: strconv.FormatUint(v, 10)}, nil
		}
		return nil, fmt.Errorf("line %d: number %s is out of range", y.Line, clip(y.Value))
	case "!!float":
		v, err := strconv.ParseFloat(strings.ReplaceAll(y.Value, "_", ""), 64)
		if err != nil || math.IsInf(v, 0) || math.IsNaN(v) {
			return nil, fmt.Errorf("line %d: %s is not a number that JSON knows", y.Line, clip(y.Value))
		}
		q, err := json.Marshal(v)
		return &tree{kind: jsonNumber, text: string(q)}, err
	case "!!str", "!!timestamp":
		return &tree{kind: jsonText, text: y.Value}, nil
	}
	return nil, fmt.Errorf("line %d: the tag %s is not supported", y.Line, clip(y.Tag))
}
