package strict

import (
	"encoding/json"
	"errors"
	"reflect"
	"sort"
	"strconv"
	"strings"
)

// maxDepth bounds the walk; no resource is a tenth as deep.
const maxDepth = 100

// fieldError is a field of a document that its type does not have or cannot read.
type fieldError struct {
	steps  []string // path from the top; list indices as "[3]"
	reason string
}

func joinPath(steps []string) string { return strings.ReplaceAll(strings.Join(steps, "."), ".[", "[") }

func unknownName(steps []string, known []string) *fieldError {
	name := steps[len(steps)-1]
	reason := "unknown field " + strconv.Quote(joinPath(steps))
	if n := nearest(name, known); n != "" {
		reason += ", did you mean " + strconv.Quote(n) + "?"
	} else {
		reason += " (known here: " + strings.Join(known, ", ") + ")"
	}
	return &fieldError{steps: steps, reason: reason}
}

var (
	unmarshaler = reflect.TypeFor[json.Unmarshaler]()
	rawMessage  = reflect.TypeFor[json.RawMessage]()
)

// checkFields finds the first field of raw that t has no place for, or whose own
// type refuses its text, in the order of sorted names; nil when there is none.
// encoding/json would accept fields in the wrong case and tell neither the path
// nor the line.
func checkFields(raw json.RawMessage, t reflect.Type, at []string, depth int) *fieldError {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if depth > maxDepth || t == rawMessage {
		return nil
	}
	if reflect.PointerTo(t).Implements(unmarshaler) {
		return checkScalar(raw, t, at)
	}
	switch t.Kind() {
	case reflect.Struct:
		return checkStruct(raw, t, at, depth)
	case reflect.Map:
		return checkMap(raw, t.Elem(), at, depth)
	case reflect.Slice, reflect.Array:
		return checkList(raw, t.Elem(), at, depth)
	}
	return nil
}

// checkScalar tries a type that reads its own JSON; its error has no path yet.
func checkScalar(raw json.RawMessage, t reflect.Type, at []string) *fieldError {
	err := json.Unmarshal(raw, reflect.New(t).Interface())
	if err == nil || len(at) == 0 {
		return nil
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return nil
	}
	return &fieldError{steps: at, reason: "field " + strconv.Quote(joinPath(at)) + " is " + string(raw) + ": " + strings.TrimPrefix(err.Error(), "json: ")}
}

func checkStruct(raw json.RawMessage, t reflect.Type, at []string, depth int) *fieldError {
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) != nil {
		return nil // of the wrong type: json.Unmarshal reports it
	}
	fields := make(map[string]reflect.Type)
	collectFields(t, fields)
	for _, name := range sortedKeys(object) {
		here := append(at[:len(at):len(at)], name)
		ft, ok := fields[name]
		if !ok {
			return unknownName(here, sortedKeys(fields))
		}
		if bad := checkFields(object[name], ft, here, depth+1); bad != nil {
			return bad
		}
	}
	return nil
}

func checkMap(raw json.RawMessage, elem reflect.Type, at []string, depth int) *fieldError {
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) != nil {
		return nil
	}
	for _, name := range sortedKeys(object) {
		if bad := checkFields(object[name], elem, append(at[:len(at):len(at)], name), depth+1); bad != nil {
			return bad
		}
	}
	return nil
}

func checkList(raw json.RawMessage, elem reflect.Type, at []string, depth int) *fieldError {
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return nil
	}
	for i, item := range list {
		here := append(at[:len(at):len(at)], "["+strconv.Itoa(i)+"]")
		if bad := checkFields(item, elem, here, depth+1); bad != nil {
			return bad
		}
	}
	return nil
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
