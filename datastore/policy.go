package datastore

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
)

// A policy's name is not always that of its key: up to v3.31 Calico stored the
// policies of the default tier under "default.<name>". The name then stands in
// an annotation or, if that is missing, follows from the key. Objects in memory
// carry the name alone; both keys are read, a stored policy stays under the key
// it has, a new one gets its bare name (spec/calico.md §1.2, §1.4).

const (
	nameAnnotation = "projectcalico.org/metadata"
	legacyPrefix   = api.TierDefault + "."
)

// annotatedName is the value of the annotation.
type annotatedName struct {
	Name string `json:"name"`
}

// storePolicyName gives a policy, which is about to be stored under keyName,
// the annotation and the label of its tier. Other objects stay as they are.
func storePolicyName(o api.Object, keyName string) error {
	tier, ok := api.TierOf(o)
	if !ok {
		return nil
	}
	m := o.Meta()
	value, err := json.Marshal(annotatedName{Name: m.Name})
	if err != nil {
		return err
	}
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	m.Annotations[nameAnnotation] = string(value)
	setTierLabel(m, tier)
	m.Name = keyName
	return nil
}

// policyName is the name of an object that was stored under keyName: keyName
// itself but for policies.
func policyName(o api.Object, keyName string) string {
	tier, ok := api.TierOf(o)
	bare, legacy := strings.CutPrefix(keyName, legacyPrefix)
	if !ok || !legacy {
		return keyName
	}
	var said annotatedName
	text := o.Meta().Annotations[nameAnnotation]
	if text != "" && json.Unmarshal([]byte(text), &said) == nil && (said.Name == keyName || said.Name == bare) {
		return said.Name
	}
	if tier != api.TierDefault {
		return keyName
	}
	return bare
}

// loadPolicy takes the annotation off a policy that was stored, and sees to the
// label of its tier.
func loadPolicy(o api.Object) {
	tier, ok := api.TierOf(o)
	if !ok {
		return
	}
	m := o.Meta()
	delete(m.Annotations, nameAnnotation)
	if len(m.Annotations) == 0 {
		m.Annotations = nil
	}
	setTierLabel(m, tier)
}

func setTierLabel(m *api.ObjectMeta, tier string) {
	if m.Labels == nil {
		m.Labels = map[string]string{}
	}
	m.Labels[api.LabelTier] = tier
}

// getEntry reads the entry of the object of the given key, for policies also
// under the key that they had up to v3.31.
func getEntry(ctx context.Context, s Store, k api.Kind, key Key) (Entry, error) {
	e, err := s.Get(ctx, key)
	if !errors.Is(err, ErrNotFound) || !slices.Contains(api.TieredKinds(), k.Name) {
		return e, err
	}
	legacy := key
	legacy.Name = legacyPrefix + key.Name
	old, errOld := s.Get(ctx, legacy)
	switch {
	case errors.Is(errOld, ErrNotFound):
		return e, err
	case errOld != nil:
		return old, errOld
	}
	if o, errDecode := DecodeObject(k, old); errDecode == nil && o.Meta().Name != key.Name {
		return e, err // another policy, whose name begins so
	}
	return old, nil
}

// sortPolicies puts policies, of which the keys are given, into the order of
// their names and leaves out, with a problem, the one under the old key if one
// is stored under both. Objects of other kinds are as they should be.
func sortPolicies(k api.Kind, objects []api.Object, keys []Key) ([]api.Object, []error) {
	if !slices.Contains(api.TieredKinds(), k.Name) {
		return objects, nil
	}
	bare := make(map[Key]bool, len(keys))
	for i, o := range objects {
		if keys[i].Name == o.Meta().Name {
			bare[keys[i]] = true
		}
	}
	var problems []error
	kept := objects[:0]
	for i, o := range objects {
		key := keys[i]
		key.Name = o.Meta().Name
		if key != keys[i] && bare[key] {
			problems = append(problems, fmt.Errorf("decode %s: left out, %s is stored too", keys[i], key))
			continue
		}
		kept = append(kept, o)
	}
	slices.SortStableFunc(kept, func(a, b api.Object) int {
		return cmp.Or(cmp.Compare(a.Meta().Namespace, b.Meta().Namespace), cmp.Compare(a.Meta().Name, b.Meta().Name))
	})
	return kept, problems
}
