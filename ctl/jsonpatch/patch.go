package jsonpatch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxOperations bounds one JSON Patch.
const maxOperations = 10_000

// operation is one operation of RFC 6902 §4.
type operation struct {
	Op    string          `json:"op"`
	Path  *string         `json:"path"`
	From  *string         `json:"from"`
	Value json.RawMessage `json:"value"`
}

// document is what the operations work on.
type document struct {
	root   *node
	budget int
}

// Apply applies a JSON Patch (RFC 6902), a list of operations, to a document.
// It is all or nothing. An error names the number of the operation, from 0, with
// its path.
func Apply(doc, patch []byte) ([]byte, error) {
	root, err := parse(doc)
	if err != nil {
		return nil, fmt.Errorf("document: %w", err)
	}
	ops, err := operations(patch)
	if err != nil {
		return nil, fmt.Errorf("patch: %w", err)
	}
	d := &document{root: root, budget: maxNodes}
	for i, op := range ops {
		if err := d.do(op); err != nil {
			path := ""
			if op.Path != nil {
				path = " " + *op.Path
			}
			return nil, fmt.Errorf("operation %d (%s%s): %w", i, op.Op, path, err)
		}
	}
	if d.root == nil {
		return nil, errors.New("the patch removes the whole document")
	}
	return d.root.json(), nil
}

func operations(patch []byte) ([]operation, error) {
	var ops []operation
	d := json.NewDecoder(bytes.NewReader(patch))
	if err := d.Decode(&ops); err != nil || ops == nil {
		return nil, errors.New(`a JSON patch is a list of operations such as [{"op": "replace", "path": "/spec/disabled", "value": true}]`)
	}
	if d.More() {
		return nil, errors.New("text follows the list of operations")
	}
	if len(ops) > maxOperations {
		return nil, fmt.Errorf("%d operations, %d are allowed", len(ops), maxOperations)
	}
	return ops, nil
}

func (d *document) do(op operation) error {
	if op.Path == nil {
		return errors.New(`"path" is missing`)
	}
	path, err := pointer(*op.Path)
	if err != nil {
		return err
	}
	switch op.Op {
	case "add", "replace", "test":
		return d.withValue(op, path)
	case "remove":
		_, err := d.remove(path)
		return err
	case "move", "copy":
		return d.fromOther(op, path)
	}
	return fmt.Errorf(`"op" is %q, it must be add, remove, replace, move, copy or test`, op.Op)
}

func (d *document) withValue(op operation, path []string) error {
	if op.Value == nil {
		return errors.New(`"value" is missing`)
	}
	value, err := build(op.Value, &d.budget, 0)
	if err != nil {
		return err
	}
	switch op.Op {
	case "add":
		return d.add(path, value)
	case "replace":
		return d.replace(path, value)
	}
	have, err := d.find(path)
	if err != nil {
		return err
	}
	if !equal(have, value) {
		return fmt.Errorf("the value there is %s, not %s", clip(have.json()), clip(value.json()))
	}
	return nil
}

func (d *document) fromOther(op operation, path []string) error {
	if op.From == nil {
		return errors.New(`"from" is missing`)
	}
	from, err := pointer(*op.From)
	if err != nil {
		return err
	}
	if op.Op == "copy" {
		value, err := d.find(from)
		if err != nil {
			return err
		}
		c, err := value.clone(&d.budget)
		if err != nil {
			return err
		}
		return d.add(path, c)
	}
	if len(from) < len(path) && slices.Equal(from, path[:len(from)]) {
		return fmt.Errorf("%q cannot move into itself", *op.From)
	}
	value, err := d.find(from)
	if err != nil || slices.Equal(from, path) {
		return err
	}
	if _, err := d.remove(from); err != nil {
		return err
	}
	return d.add(path, value)
}

// pointer splits a JSON pointer (RFC 6901).
func pointer(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	if text[0] != '/' {
		return nil, fmt.Errorf("%q is no JSON pointer, it must be empty or begin with /", text)
	}
	tokens := strings.Split(text[1:], "/")
	if len(tokens) > maxDepth {
		return nil, fmt.Errorf("a pointer has %d parts, %d are allowed", len(tokens), maxDepth)
	}
	for i, token := range tokens {
		for j := strings.IndexByte(token, '~'); j >= 0; {
			if j+1 == len(token) || token[j+1] != '0' && token[j+1] != '1' {
				return nil, fmt.Errorf("%q is no JSON pointer, after ~ comes 0 or 1", text)
			}
			next := strings.IndexByte(token[j+1:], '~')
			if next < 0 {
				break
			}
			j += 1 + next
		}
		tokens[i] = strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
	}
	return tokens, nil
}

// find returns the value at path.
func (d *document) find(path []string) (*node, error) {
	n := d.root
	for _, token := range path {
		next, err := child(n, token)
		if err != nil {
			return nil, err
		}
		n = next
	}
	if n == nil {
		return nil, errors.New("the document was removed")
	}
	return n, nil
}

func child(n *node, token string) (*node, error) {
	switch {
	case n == nil:
		return nil, errors.New("the document was removed")
	case n.object != nil:
		v, ok := n.object[token]
		if !ok {
			return nil, fmt.Errorf("there is no %q", token)
		}
		return v, nil
	case n.isList:
		i, err := index(token, len(n.list)-1)
		if err != nil {
			return nil, err
		}
		return n.list[i], nil
	}
	return nil, fmt.Errorf("there is no %q inside %s", token, clip(n.json()))
}

// index reads the index of a list whose last valid one is last.
func index(token string, last int) (int, error) {
	i, err := strconv.Atoi(token)
	if err != nil || i < 0 || strconv.Itoa(i) != token {
		return 0, fmt.Errorf("%q is no index of a list", token)
	}
	if i > last {
		return 0, fmt.Errorf("index %d is beyond the end of the list, which has %d items", i, last+1)
	}
	return i, nil
}

// add puts value at path: a member is set, an item is inserted.
func (d *document) add(path []string, value *node) error {
	if len(path) == 0 {
		d.root = value
		return nil
	}
	parent, err := d.find(path[:len(path)-1])
	if err != nil {
		return err
	}
	token := path[len(path)-1]
	switch {
	case parent.object != nil:
		parent.object[token] = value
	case parent.isList && token == "-":
		parent.list = append(parent.list, value)
	case parent.isList:
		i, err := index(token, len(parent.list))
		if err != nil {
			return err
		}
		parent.list = slices.Insert(parent.list, i, value)
	default:
		return fmt.Errorf("there is no place for %q inside %s", token, clip(parent.json()))
	}
	return nil
}

// replace puts value in the place of the one at path, which must be there.
func (d *document) replace(path []string, value *node) error {
	if _, err := d.find(path); err != nil {
		return err
	}
	if len(path) > 0 {
		parent, err := d.find(path[:len(path)-1])
		if err != nil {
			return err
		}
		if parent.isList {
			i, err := index(path[len(path)-1], len(parent.list)-1)
			if err != nil {
				return err
			}
			parent.list[i] = value
			return nil
		}
	}
	return d.add(path, value)
}

// remove takes the value at path away and returns it.
func (d *document) remove(path []string) (*node, error) {
	value, err := d.find(path)
	if err != nil {
		return nil, err
	}
	if len(path) == 0 {
		d.root = nil
		return value, nil
	}
	parent, err := d.find(path[:len(path)-1])
	if err != nil {
		return nil, err
	}
	token := path[len(path)-1]
	if parent.object != nil {
		delete(parent.object, token)
		return value, nil
	}
	i, err := index(token, len(parent.list)-1)
	if err != nil {
		return nil, err
	}
	parent.list = slices.Delete(parent.list, i, i+1)
	return value, nil
}

// clip keeps a value short enough for an error.
func clip(text []byte) string {
	const most = 60
	if runes := []rune(string(text)); len(runes) > most {
		return string(runes[:most]) + "..."
	}
	return string(text)
}
