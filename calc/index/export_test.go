package index

// Sizes are the numbers of everything kept: items, groups, parents, selections,
// sets, labels looked at.
func (x *Index[K]) Sizes() [6]int {
	return [6]int{len(x.items), len(x.groups), len(x.parents), len(x.selections), len(x.sets), len(x.byKey) + len(x.pivots.byKey) + len(x.pivots.always)}
}
