package api

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// Goldens lists the names and stored forms of the goldens.
func Goldens() [][2]string {
	var all [][2]string
	for _, g := range goldens() {
		all = append(all, [2]string{g.name, g.stored})
	}
	return all
}

// Without is the document without the fields of the given names, wherever they are.
func Without(t *testing.T, doc string, names []string) string {
	n, err := parseJSON([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	drop(n, names)
	return string(n.json())
}

func drop(n *tree, names []string) {
	for i := len(n.keys) - 1; i >= 0; i-- {
		if slices.Contains(names, n.keys[i]) {
			n.keys, n.values = slices.Delete(n.keys, i, i+1), slices.Delete(n.values, i, i+1)
		}
	}
	for _, v := range n.values {
		drop(v, names)
	}
}

// KindOf is the kind that a document names.
func KindOf(t *testing.T, doc string) string {
	n, err := parseJSON([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	return n.get("kind").textOf()
}

// MissingFields lists the JSON paths of a foreign struct that the kind lacks.
// Metadata is Kubernetes', of which Calico's datastore carries a part.
func MissingFields(theirs reflect.Type, k Kind) []string {
	var missing []string
	compareFields(theirs, reflect.TypeOf(k.New()), "", &missing)
	return missing
}

func compareFields(theirs, ours reflect.Type, path string, missing *[]string) {
	theirs, ours = deref(theirs), deref(ours)
	for theirs.Kind() == reflect.Slice && ours.Kind() == reflect.Slice {
		theirs, ours = deref(theirs.Elem()), deref(ours.Elem())
	}
	if theirs.Kind() != reflect.Struct || isLeaf(theirs) || isLeaf(ours) || ours.Kind() != reflect.Struct {
		return
	}
	known := fieldsOf(ours)
	for _, f := range fieldsOf(theirs) {
		at := strings.TrimPrefix(path+"."+f.name, ".")
		if at == "metadata" {
			continue
		}
		if t, ok := lookup(known, f.name); ok {
			compareFields(f.typ, t, at, missing)
		} else {
			*missing = append(*missing, at)
		}
	}
}

// OrderOf compares the order of the fields that a foreign struct and the kind
// have in common and lists the structs, by their path, where it differs.
func OrderOf(theirs reflect.Type, k Kind) []string {
	var different []string
	compareOrder(theirs, reflect.TypeOf(k.New()), "", &different)
	return different
}

func compareOrder(theirs, ours reflect.Type, path string, different *[]string) {
	theirs, ours = deref(theirs), deref(ours)
	for theirs.Kind() == reflect.Slice && ours.Kind() == reflect.Slice {
		theirs, ours = deref(theirs.Elem()), deref(ours.Elem())
	}
	if theirs.Kind() != reflect.Struct || isLeaf(theirs) || isLeaf(ours) || ours.Kind() != reflect.Struct {
		return
	}
	known := fieldsOf(ours)
	last := -1
	for _, f := range fieldsOf(theirs) {
		at := slices.IndexFunc(known, func(o field) bool { return o.name == f.name })
		if at < 0 || f.name == "metadata" {
			continue
		}
		if at < last {
			*different = append(*different, path+"."+f.name)
		}
		last = max(last, at)
		compareOrder(f.typ, known[at].typ, path+"."+f.name, different)
	}
}
