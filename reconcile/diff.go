// Package reconcile keeps one kind of object in the kernel, or anywhere else, the way it is wanted: the caller says
// what the whole should be, an Applier knows how to list, put and delete one object, and a Table does the rest:
// comparing, applying in a safe order, repeating what failed, repairing what somebody else changed, and telling how
// things stand.
package reconcile

// Diff says what turns have into want: entries to add, entries to change (with their wanted value), and entries to
// delete (with the value they have). Entries equal in both appear nowhere.
func Diff[K comparable, V comparable](want, have map[K]V) (adds, changes, dels map[K]V) {
	adds, changes, dels = map[K]V{}, map[K]V{}, map[K]V{}
	for k, w := range want {
		switch h, ok := have[k]; {
		case !ok:
			adds[k] = w
		case h != w:
			changes[k] = w
		}
	}
	for k, h := range have {
		if _, ok := want[k]; !ok {
			dels[k] = h
		}
	}
	return adds, changes, dels
}
