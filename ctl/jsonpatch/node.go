package jsonpatch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

const (
	maxDepth = 200     // levels of nesting
	maxNodes = 1 << 20 // values in one document; copies must not grow without end
)

// node is one JSON value: an object, a list, or the text of anything else.
type node struct {
	object map[string]*node // not nil for an object
	list   []*node
	isList bool
	text   []byte // compact JSON of a string, number, true, false or null
}

var errTooBig = fmt.Errorf("the document has more than %d values", maxNodes)

// parse reads one JSON value.
func parse(data []byte) (*node, error) {
	var raw json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	budget := maxNodes
	return build(raw, &budget, 0)
}

func build(raw json.RawMessage, budget *int, depth int) (*node, error) {
	if *budget--; *budget < 0 {
		return nil, errTooBig
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("the document is nested deeper than %d levels", maxDepth)
	}
	raw = bytes.TrimSpace(raw)
	switch raw[0] {
	case '{':
		var members map[string]json.RawMessage
		if err := json.Unmarshal(raw, &members); err != nil {
			return nil, err
		}
		n := &node{object: make(map[string]*node, len(members))}
		for key, value := range members {
			v, err := build(value, budget, depth+1)
			if err != nil {
				return nil, err
			}
			n.object[key] = v
		}
		return n, nil
	case '[':
		var items []json.RawMessage
		if err := json.Unmarshal(raw, &items); err != nil {
			return nil, err
		}
		n := &node{isList: true, list: make([]*node, 0, len(items))}
		for _, item := range items {
			v, err := build(item, budget, depth+1)
			if err != nil {
				return nil, err
			}
			n.list = append(n.list, v)
		}
		return n, nil
	}
	return &node{text: bytes.Clone(raw)}, nil
}

// json writes the value, members in the order of their names.
func (n *node) json() []byte {
	var b bytes.Buffer
	n.write(&b)
	return b.Bytes()
}

func (n *node) write(b *bytes.Buffer) {
	switch {
	case n.object != nil:
		b.WriteByte('{')
		for i, key := range slices.Sorted(maps.Keys(n.object)) {
			if i > 0 {
				b.WriteByte(',')
			}
			name, _ := json.Marshal(key) // a string always has a form
			b.Write(name)
			b.WriteByte(':')
			n.object[key].write(b)
		}
		b.WriteByte('}')
	case n.isList:
		b.WriteByte('[')
		for i, item := range n.list {
			if i > 0 {
				b.WriteByte(',')
			}
			item.write(b)
		}
		b.WriteByte(']')
	default:
		b.Write(n.text)
	}
}

func (n *node) isNull() bool { return string(n.text) == "null" }

func newObject() *node { return &node{object: map[string]*node{}} }

// clone is a deep copy that takes what it holds from the budget.
func (n *node) clone(budget *int) (*node, error) {
	if *budget--; *budget < 0 {
		return nil, errTooBig
	}
	c := &node{isList: n.isList, text: n.text}
	if n.object != nil {
		c.object = make(map[string]*node, len(n.object))
		for key, value := range n.object {
			v, err := value.clone(budget)
			if err != nil {
				return nil, err
			}
			c.object[key] = v
		}
	}
	for _, item := range n.list {
		v, err := item.clone(budget)
		if err != nil {
			return nil, err
		}
		c.list = append(c.list, v)
	}
	return c, nil
}

// equal compares as RFC 6902 §4.6 says: texts by their characters, numbers by
// their value, objects without regard to order.
func equal(a, b *node) bool {
	switch {
	case a.object != nil || b.object != nil:
		return a.object != nil && b.object != nil && maps.EqualFunc(a.object, b.object, equal)
	case a.isList || b.isList:
		return a.isList && b.isList && slices.EqualFunc(a.list, b.list, equal)
	case bytes.Equal(a.text, b.text):
		return true
	case a.text[0] == '"' && b.text[0] == '"':
		var s, t string
		return json.Unmarshal(a.text, &s) == nil && json.Unmarshal(b.text, &t) == nil && s == t
	}
	m, errM := parseNumber(string(a.text))
	n, errN := parseNumber(string(b.text))
	return errM == nil && errN == nil && m == n
}

// number is a JSON number as sign, digits without zeros at either end, and the
// power of ten of the last digit. Two are the same number if they are equal.
type number struct {
	negative bool
	digits   string
	exponent int64
}

var errNoNumber = errors.New("not a number")

func parseNumber(text string) (number, error) {
	if text == "" || text[0] != '-' && (text[0] < '0' || text[0] > '9') {
		return number{}, errNoNumber
	}
	var n number
	rest := strings.TrimPrefix(text, "-")
	n.negative = rest != text
	if i := strings.IndexAny(rest, "eE"); i >= 0 {
		e, err := strconv.ParseInt(rest[i+1:], 10, 32)
		if err != nil {
			return number{}, errNoNumber
		}
		n.exponent, rest = e, rest[:i]
	}
	whole, fraction, _ := strings.Cut(rest, ".")
	n.exponent -= int64(len(fraction))
	n.digits = strings.TrimLeft(whole+fraction, "0")
	short := strings.TrimRight(n.digits, "0")
	n.exponent += int64(len(n.digits) - len(short))
	n.digits = short
	if short == "" {
		return number{}, nil
	}
	return n, nil
}
