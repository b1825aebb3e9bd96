package resource

import (
	"errors"
	"fmt"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// The classes of an Error. The first three are the datastore's own, so that
// errors.Is works with either name.
var (
	ErrNotExist    = datastore.ErrNotFound
	ErrExists      = datastore.ErrExists
	ErrConflict    = datastore.ErrConflict
	ErrUnsupported = errors.New("operation is not supported")
)

// Error says what was not possible with which resource. Its text is that of
// calicoctl (spec/calico.md §7).
type Error struct {
	Class     error  // one of the Err... above
	Operation string // "create", "update", "delete" or "get"
	Kind      string
	Namespace string
	Name      string
	Reason    string // for ErrConflict and ErrUnsupported: why; may be empty
}

// Identifier is "Kind(name)" or "Kind(namespace/name)".
func (e *Error) Identifier() string {
	return datastore.Key{Kind: e.Kind, Namespace: e.Namespace, Name: e.Name}.String()
}

func (e *Error) Error() string {
	switch e.Class {
	case ErrNotExist:
		return fmt.Sprintf("resource does not exist: %s with error: <nil>", e.Identifier())
	case ErrExists:
		return fmt.Sprintf("resource already exists: %s with error: <nil>", e.Identifier())
	case ErrConflict:
		if e.Reason == "" {
			return "update conflict: " + e.Identifier()
		}
		return fmt.Sprintf("update conflict: %s (%s)", e.Identifier(), e.Reason)
	}
	return fmt.Sprintf("operation %s is not supported on %s: %s", e.Operation, e.Name, e.Reason)
}

// Unwrap returns the class.
func (e *Error) Unwrap() error { return e.Class }

// classify turns the datastore's sentinel errors into an Error and leaves
// everything else as it is.
func classify(err error, operation string, key datastore.Key) error {
	var done *Error
	var fields *api.FieldErrors
	if err == nil || errors.As(err, &done) || errors.As(err, &fields) {
		return err
	}
	for _, class := range []error{ErrNotExist, ErrExists, ErrConflict} {
		if errors.Is(err, class) {
			return &Error{Class: class, Operation: operation, Kind: key.Kind, Namespace: key.Namespace, Name: key.Name}
		}
	}
	return fmt.Errorf("%s %s: %w", operation, key, err)
}

// stale is the conflict of a caller whose resourceVersion is not the stored one.
func stale(operation string, key datastore.Key, have, stored string) error {
	return &Error{
		Class: ErrConflict, Operation: operation, Kind: key.Kind, Namespace: key.Namespace, Name: key.Name,
		Reason: fmt.Sprintf("resourceVersion %s is out of date, the latest is %s", have, stored),
	}
}
