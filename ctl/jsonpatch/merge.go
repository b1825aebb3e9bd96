package jsonpatch

import (
	"fmt"
	"strings"
)

// Merge applies a JSON Merge Patch (RFC 7386): objects are merged member by
// member, null removes a member, everything else, lists too, is replaced.
func Merge(doc, patch []byte) ([]byte, error) {
	return merge(doc, patch, mergeNode)
}

// Strategic applies a strategic merge patch of Kubernetes to a document whose
// type declares no merge keys: it does what Merge does, and obeys the directive
// "$patch" in an object: "replace" puts the object in the place of the old one,
// "delete" removes it, "merge" is what happens anyway. Directives for the items
// of a list are errors, because lists are replaced as a whole.
func Strategic(doc, patch []byte) ([]byte, error) {
	return merge(doc, patch, strategicNode)
}

type merger func(target, patch *node, path string) (*node, error)

func merge(doc, patch []byte, how merger) ([]byte, error) {
	target, err := parse(doc)
	if err != nil {
		return nil, fmt.Errorf("document: %w", err)
	}
	p, err := parse(patch)
	if err != nil {
		return nil, fmt.Errorf("patch: %w", err)
	}
	result, err := how(target, p, "")
	if err != nil {
		return nil, fmt.Errorf("patch: %w", err)
	}
	if result == nil {
		result = &node{text: []byte("null")}
	}
	return result.json(), nil
}

func mergeNode(target, patch *node, path string) (*node, error) {
	return mergeMembers(target, patch, path, mergeNode)
}

// mergeMembers is MergePatch of RFC 7386 §2.
func mergeMembers(target, patch *node, path string, how merger) (*node, error) {
	if patch.object == nil {
		return patch, nil
	}
	if target == nil || target.object == nil {
		target = newObject()
	}
	for key, value := range patch.object {
		if value.isNull() {
			delete(target.object, key)
			continue
		}
		v, err := how(target.object[key], value, path+"."+key)
		if err != nil {
			return nil, err
		}
		if v == nil {
			delete(target.object, key)
			continue
		}
		target.object[key] = v
	}
	return target, nil
}

// strategicNode returns nil for an object that is to be removed.
func strategicNode(target, patch *node, path string) (*node, error) {
	if patch.isList {
		return patch, checkItems(patch, path)
	}
	if patch.object == nil {
		return patch, nil
	}
	directive := patch.object["$patch"]
	for key := range patch.object {
		if strings.HasPrefix(key, "$") && key != "$patch" {
			return nil, fmt.Errorf("directive %s%s is not supported, lists are replaced as a whole", at(path), key)
		}
	}
	if directive == nil {
		return mergeMembers(target, patch, path, strategicNode)
	}
	delete(patch.object, "$patch")
	switch string(directive.text) {
	case `"merge"`:
		return mergeMembers(target, patch, path, strategicNode)
	case `"replace"`:
		return mergeMembers(nil, patch, path, strategicNode)
	case `"delete"`:
		return nil, nil
	}
	return nil, fmt.Errorf("directive %s$patch is %s, it must be merge, replace or delete", at(path), directive.json())
}

func checkItems(list *node, path string) error {
	for i, item := range list.list {
		for key := range item.object {
			if strings.HasPrefix(key, "$") {
				return fmt.Errorf("directive %s%s of item %d is not supported, lists are replaced as a whole", at(path), key, i)
			}
		}
	}
	return nil
}

// at is the path of an object as a prefix for the name of a member.
func at(path string) string {
	if path == "" {
		return ""
	}
	return path[1:] + "."
}
