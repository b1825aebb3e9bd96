package datastore

import (
	"context"
	"fmt"

	"github.com/manekinet/maneki/api"
)

// Ptr is the pointer to a resource struct, which is its api.Object.
type Ptr[T any] interface {
	*T
	api.Object
}

// Typed is a view of the objects of one kind in a store. Use For.
type Typed[T any, P Ptr[T]] struct {
	store Store
	kind  api.Kind
	err   error
}

// For is the view of one kind: datastore.For[api.IPPool](store). If T is not
// the struct of a kind in api.Kinds every method says so.
func For[T any, P Ptr[T]](s Store) Typed[T, P] {
	k, err := kindOf(P(new(T)))
	return Typed[T, P]{store: s, kind: k, err: err}
}

// Get reads one object, with its resourceVersion, or ErrNotFound.
func (v Typed[T, P]) Get(ctx context.Context, namespace, name string) (P, error) {
	if v.err != nil {
		return nil, v.err
	}
	o, err := GetObject(ctx, v.store, v.kind, namespace, name)
	return as[T, P](o, err)
}

// List reads all objects, of one namespace or (empty) of all, in key order, and
// the revision to watch from. Objects that cannot be read are left out and
// reported one by one in problems.
func (v Typed[T, P]) List(ctx context.Context, namespace string) (objects []P, rev Revision, problems []error, err error) {
	if v.err != nil {
		return nil, "", nil, v.err
	}
	list, rev, problems, err := ListObjects(ctx, v.store, v.kind, namespace)
	for _, o := range list {
		objects = append(objects, o.(P))
	}
	return objects, rev, problems, err
}

// Create stores a new object, or ErrExists. See CreateObject.
func (v Typed[T, P]) Create(ctx context.Context, o P) error { return CreateObject(ctx, v.store, o) }

// Update replaces the version of the object that o was read as: ErrConflict or
// ErrNotFound if that is no longer stored. See UpdateObject.
func (v Typed[T, P]) Update(ctx context.Context, o P) error { return UpdateObject(ctx, v.store, o) }

// Apply creates or replaces. See ApplyObject.
func (v Typed[T, P]) Apply(ctx context.Context, o P) error { return ApplyObject(ctx, v.store, o) }

// Delete removes an object and returns what was stored. See DeleteObject.
func (v Typed[T, P]) Delete(ctx context.Context, namespace, name string, rev Revision) (P, error) {
	if v.err != nil {
		return nil, v.err
	}
	o, err := DeleteObject(ctx, v.store, v.kind, namespace, name, rev)
	return as[T, P](o, err)
}

// Modify reads an object, lets fn change it, and writes it back; if somebody
// else wrote meanwhile it starts again, with the newer object, 100 times at
// most. An error of fn ends it. It returns the object as stored.
func (v Typed[T, P]) Modify(ctx context.Context, namespace, name string, fn func(P) error) (P, error) {
	if v.err != nil {
		return nil, v.err
	}
	o, err := modifyObject(ctx, v.store, v.kind, namespace, name, func(o api.Object) error { return fn(o.(P)) })
	return as[T, P](o, err)
}

// Decode reads one entry of a list or watch.
func (v Typed[T, P]) Decode(e Entry) (P, error) {
	if v.err != nil {
		return nil, v.err
	}
	if e.Key.Kind != v.kind.Name {
		return nil, fmt.Errorf("decode %s: not a %s", e.Key, v.kind.Name)
	}
	o, err := DecodeObject(v.kind, e)
	return as[T, P](o, err)
}

// as converts what the untyped functions return.
func as[T any, P Ptr[T]](o api.Object, err error) (P, error) {
	if err != nil {
		return nil, err
	}
	return o.(P), nil
}
