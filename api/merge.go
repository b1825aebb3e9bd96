package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
)

// MergeUnknown returns newEncoded with the fields that the kind does not know
// and that oldStored had, so that a write by this program loses nothing that
// another version of Calico stored. Both are JSON objects of the kind. Fields
// of a part that the new object no longer has go with it; the items of a list
// are recognised by what is known of them.
func MergeUnknown(oldStored, newEncoded []byte, k Kind) ([]byte, error) {
	old, err := parseJSON(oldStored)
	if err != nil {
		return nil, fmt.Errorf("merge %s: stored value: %w", k.Name, err)
	}
	t := reflect.TypeOf(k.New())
	var unknown []string
	findUnknown(old, t, "", &unknown)
	if len(unknown) == 0 {
		return newEncoded, nil
	}
	n, err := parseJSON(newEncoded)
	if err != nil {
		return nil, fmt.Errorf("merge %s: new value: %w", k.Name, err)
	}
	if err := merge(old, n, t); err != nil {
		return nil, fmt.Errorf("merge %s: %w", k.Name, err)
	}
	return n.json(), nil
}

// merge adds to n what old has and type t does not know.
func merge(old, n *tree, t reflect.Type) error {
	t = deref(t)
	if isLeaf(t) || old.kind != n.kind {
		return nil
	}
	if t.Kind() == reflect.Slice {
		return mergeList(old, n, t.Elem())
	}
	if n.kind != jsonObject {
		return nil
	}
	var fields []field
	if t.Kind() == reflect.Struct {
		fields = fieldsOf(t)
	}
	for i, key := range old.keys {
		inside, known := reflect.Type(nil), true
		if t.Kind() == reflect.Map {
			inside = t.Elem()
		} else {
			inside, known = lookup(fields, key)
		}
		have := n.get(key)
		switch {
		case !known && have == nil:
			n.set(key, old.values[i])
		case known && have != nil:
			if err := merge(old.values[i], have, inside); err != nil {
				return err
			}
		}
	}
	return nil
}

// mergeList pairs each new item with an old one that is the same as far as the
// type knows, the one at the same place first, and merges the pairs.
func mergeList(old, n *tree, item reflect.Type) error {
	if n.kind != jsonList || isLeaf(deref(item)) {
		return nil
	}
	forms := make([][]byte, len(old.values))
	for i, v := range old.values {
		form, err := knownForm(v, item)
		if err != nil {
			return err
		}
		forms[i] = form
	}
	used := make([]bool, len(forms))
	for i, v := range n.values {
		form, err := knownForm(v, item)
		if err != nil {
			return err
		}
		j := pair(forms, used, form, i)
		if j < 0 {
			continue
		}
		used[j] = true
		if err := merge(old.values[j], v, item); err != nil {
			return err
		}
	}
	return nil
}

func pair(forms [][]byte, used []bool, form []byte, at int) int {
	if at < len(forms) && !used[at] && bytes.Equal(forms[at], form) {
		return at
	}
	for j := range forms {
		if !used[j] && bytes.Equal(forms[j], form) {
			return j
		}
	}
	return -1
}

// knownForm is the item as this program would write it.
func knownForm(n *tree, t reflect.Type) ([]byte, error) {
	v := reflect.New(deref(t))
	if err := json.Unmarshal(n.json(), v.Interface()); err != nil {
		return nil, err
	}
	return json.Marshal(v.Interface())
}
