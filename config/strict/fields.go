package strict

import (
	"encoding/json"
	"reflect"
	"sort"
	"strconv"
	"strings"
)

// maxDepth bounds the walk; no resource is a tenth as deep.
const maxDepth = 100

// unknown is a field of a document that its type does not have.
type unknown struct {
	steps   []string // path from the top; list indices as "[3]"
	known   []string // fields the type has, sorted
	nearest string   // the one that was probably meant, or ""
}

func (u unknown) path() string { return strings.ReplaceAll(strings.Join(u.steps, "."), ".[", "[") }

var (
	unmarshaler = reflect.TypeFor[json.Unmarshaler]()
	rawMessage  = reflect.TypeFor[json.RawMessage]()
)

// unknownField finds the first field of raw that t has no place for, in the
// order of sorted names. encoding/json would accept fields in the wrong case and
// tell neither the path nor the line.
func unknownField(raw json.RawMessage, t reflect.Type, at []string, depth int) (unknown, bool) {
	for t.Kind() == reflect.Pointer && !t.Implements(unmarshaler) {
		t = t.Elem()
	}
	if depth > maxDepth || t == rawMessage || t.Implements(unmarshaler) || reflect.PointerTo(t).Implements(unmarshaler) {
		return unknown{}, false
	}
	switch t.Kind() {
	case reflect.Struct:
		return unknownInStruct(raw, t, at, depth)
	case reflect.Map:
		return unknownInMap(raw, t.Elem(), at, depth)
	case reflect.Slice, reflect.Array:
		return unknownInList(raw, t.Elem(), at, depth)
	}
	return unknown{}, false
}

func unknownInStruct(raw json.RawMessage, t reflect.Type, at []string, depth int) (unknown, bool) {
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) != nil {
		return unknown{}, false // of the wrong type: json.Unmarshal reports it
	}
	fields := make(map[string]reflect.Type)
	collectFields(t, fields)
	for _, name := range sortedKeys(object) {
		here := append(at[:len(at):len(at)], name)
		ft, ok := fields[name]
		if !ok {
			known := sortedKeys(fields)
			return unknown{steps: here, known: known, nearest: nearest(name, known)}, true
		}
		if bad, found := unknownField(object[name], ft, here, depth+1); found {
			return bad, true
		}
	}
	return unknown{}, false
}

func unknownInMap(raw json.RawMessage, elem reflect.Type, at []string, depth int) (unknown, bool) {
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) != nil {
		return unknown{}, false
	}
	for _, name := range sortedKeys(object) {
		if bad, found := unknownField(object[name], elem, append(at[:len(at):len(at)], name), depth+1); found {
			return bad, true
		}
	}
	return unknown{}, false
}

func unknownInList(raw json.RawMessage, elem reflect.Type, at []string, depth int) (unknown, bool) {
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return unknown{}, false
	}
	for i, item := range list {
		here := append(at[:len(at):len(at)], "["+strconv.Itoa(i)+"]")
		if bad, found := unknownField(item, elem, here, depth+1); found {
			return bad, true
		}
	}
	return unknown{}, false
}

// collectFields gathers the JSON names of t's fields, those of untagged embedded
// structs included, as encoding/json promotes them.
func collectFields(t reflect.Type, into map[string]reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct:
			collectFields(f.Type, into)
		case !f.IsExported():
		case name == "":
			into[f.Name] = f.Type
		default:
			into[name] = f.Type
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// nearest returns the known name that differs from name in case or in at most
// two letters, else "".
func nearest(name string, known []string) string {
	best, bestDistance := "", 3
	for _, k := range known {
		if strings.EqualFold(k, name) {
			return k
		}
		if d := distance(strings.ToLower(name), strings.ToLower(k)); d < bestDistance && d < len(k)/2+1 {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance is Levenshtein's: the fewest letters to insert, remove or change.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
