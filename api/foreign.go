package api

import (
	"encoding/json"
	"fmt"
	"reflect"
)

// DecodeForeign reads one resource of another project, YAML or JSON, as strictly
// as DecodeStrict reads those of this one: an unknown or repeated field and a
// value of the wrong type are errors that name the field by its path below kind.
// A field whose type reads its own JSON is judged by that alone.
func DecodeForeign[T any](doc []byte, kind string) (*T, error) {
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
	var w walker
	w.check(nodes[0], reflect.TypeFor[T](), kind)
	if err := w.Err(); err != nil {
		return nil, err
	}
	v := new(T)
	if err := json.Unmarshal(nodes[0].json(), v); err != nil {
		return nil, fmt.Errorf("decode %s: %w", kind, err)
	}
	return v, nil
}
