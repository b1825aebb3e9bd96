package api

import (
	"fmt"
	"strings"
)

// FieldError is one field that is wrong: its path in Go spelling as calicoctl
// prints it ("IPPool.Spec.CIDR"), the value found, and what is allowed.
type FieldError struct {
	Field  string
	Value  string
	Reason string
}

// FieldErrors collects what Validate found. The zero value is ready to use.
type FieldErrors struct {
	List []FieldError
}

// Add records one wrong field.
func (e *FieldErrors) Add(field, value, reason string) {
	e.List = append(e.List, FieldError{Field: field, Value: value, Reason: reason})
}

// Err returns e when it holds an error, else nil.
func (e *FieldErrors) Err() error {
	if e == nil || len(e.List) == 0 {
		return nil
	}
	return e
}

// Error has the shape of calicoctl's (spec/calico.md §7): one line for one
// field, a list for several.
func (e *FieldErrors) Error() string {
	if len(e.List) == 1 {
		f := e.List[0]
		return fmt.Sprintf("error with field %s = '%s' (%s)", f.Field, f.Value, f.Reason)
	}
	var b strings.Builder
	b.WriteString("error with the following fields:")
	for _, f := range e.List {
		fmt.Fprintf(&b, "\n-  %s = '%s' (%s)", f.Field, f.Value, f.Reason)
	}
	return b.String()
}
