package reconcile

import "context"

// Applier is one kind of object. A Table calls it from one goroutine only.
type Applier[K comparable, V comparable] interface {
	// Dump lists the objects that are ours: those that a Table may change and delete. What belongs to others is left
	// out, and so is never touched.
	Dump(ctx context.Context) (map[K]V, error)
	// Put creates the object or replaces the one that is there.
	Put(ctx context.Context, key K, value V) error
	// Delete removes the object. One that is already gone is no error.
	Delete(ctx context.Context, key K) error
}

// Entry is one object.
type Entry[K comparable, V comparable] struct {
	Key   K
	Value V
}

// BatchApplier is an Applier that does many objects at once faster than one by one.
type BatchApplier[K comparable, V comparable] interface {
	Applier[K, V]
	// Apply puts, then deletes, then returns the errors by key; a key that is absent from the result succeeded. An
	// error of one object does not stop the others.
	Apply(ctx context.Context, puts []Entry[K, V], dels []K) map[K]error
}
