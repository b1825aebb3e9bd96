package datastore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/google/uuid"

	"github.com/manekinet/maneki/api"
)

// applyAttempts is how often an apply looks again after somebody else's write
// (spec/calico.md §1.2).
const applyAttempts = 10

// Labels that a stored WorkloadEndpoint carries beside its own (spec/calico.md §1.5).
const (
	labelNamespace    = "projectcalico.org/namespace"
	labelOrchestrator = "projectcalico.org/orchestrator"
)

// ObjectKey is the key under which o is stored.
func ObjectKey(o api.Object) Key {
	name := o.Type().Kind
	if k, err := kindOf(o); err == nil {
		name = k.Name
	}
	return Key{Kind: name, Namespace: o.Meta().Namespace, Name: o.Meta().Name}
}

// kindOf finds the kind by the Go type; the kind named in the object, if any,
// must be the same.
func kindOf(o api.Object) (api.Kind, error) {
	t := reflect.TypeOf(o)
	for _, k := range kindTable().byName {
		if reflect.TypeOf(k.New()) != t {
			continue
		}
		if said := o.Type().Kind; said != "" && said != k.Name {
			return api.Kind{}, fmt.Errorf("object says kind %q but is a %s", said, k.Name)
		}
		return k, nil
	}
	return api.Kind{}, fmt.Errorf("no kind is stored as %T", o)
}

// EncodeObject returns the stored form of o: compact JSON in the order of the
// struct, without resourceVersion and selfLink, with the labels that storage
// adds (spec/calico.md §1.2, §1.5). It does not change o.
func EncodeObject(o api.Object) ([]byte, error) {
	k, err := kindOf(o)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", ObjectKey(o), err)
	}
	stored, err := storedCopy(k, o, o.Meta().Name)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", ObjectKey(o), err)
	}
	return json.Marshal(stored)
}

// storedCopy is a deep copy of o as it is stored under the name keyName.
func storedCopy(k api.Kind, o api.Object, keyName string) (api.Object, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	c := k.New()
	if err := json.Unmarshal(b, c); err != nil {
		return nil, err
	}
	*c.Type() = api.TypeMeta{Kind: k.Name, APIVersion: api.GroupVersion}
	m := c.Meta()
	m.ResourceVersion, m.SelfLink = "", ""
	switch r := c.(type) {
	case *api.WorkloadEndpoint:
		if m.Labels == nil {
			m.Labels = map[string]string{}
		}
		m.Labels[labelNamespace] = m.Namespace
		m.Labels[labelOrchestrator] = r.Spec.Orchestrator
	case *api.BlockAffinityView:
		r.Spec.Deleted.AsText = true
	}
	return c, storePolicyName(c, keyName)
}

// DecodeObject reads a stored value. Fields it does not know are ignored; what
// is not JSON of this kind, or belongs to another key, is an error that names
// the key.
func DecodeObject(k api.Kind, e Entry) (api.Object, error) {
	o := k.New()
	if err := json.Unmarshal(e.Value, o); err != nil {
		return nil, fmt.Errorf("decode %s: %w", e.Key, err)
	}
	t, m := o.Type(), o.Meta()
	if t.Kind != "" && t.Kind != k.Name {
		return nil, fmt.Errorf("decode %s: stored kind is %q", e.Key, t.Kind)
	}
	*t = api.TypeMeta{Kind: k.Name, APIVersion: api.GroupVersion}
	name := policyName(o, e.Key.Name)
	if m.Name != "" && m.Name != e.Key.Name && m.Name != name {
		return nil, fmt.Errorf("decode %s: stored metadata.name is %q", e.Key, m.Name)
	}
	if m.Namespace != "" && m.Namespace != e.Key.Namespace {
		return nil, fmt.Errorf("decode %s: stored metadata.namespace is %q", e.Key, m.Namespace)
	}
	m.Name, m.Namespace = name, e.Key.Namespace
	loadPolicy(o)
	if b, ok := o.(*api.BlockAffinityView); ok {
		b.Spec.Deleted.AsText = false
	}
	m.ResourceVersion = string(e.Rev)
	return o, nil
}

// GetObject reads one object; its resourceVersion is filled in.
func GetObject(ctx context.Context, s Store, k api.Kind, namespace, name string) (api.Object, error) {
	e, err := getEntry(ctx, s, k, Key{Kind: k.Name, Namespace: namespace, Name: name})
	if err != nil {
		return nil, err
	}
	return DecodeObject(k, e)
}

// ListObjects reads all objects of a kind, of one namespace or (empty) of all,
// in key order, and the revision to watch from. Objects that cannot be read are
// left out and reported one by one in problems.
func ListObjects(ctx context.Context, s Store, k api.Kind, namespace string) (objects []api.Object, rev Revision, problems []error, err error) {
	entries, rev, err := s.List(ctx, Query{Kind: k.Name, Namespace: namespace})
	if err != nil {
		return nil, "", nil, err
	}
	var keys []Key
	for _, e := range entries {
		o, err := DecodeObject(k, e)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		objects = append(objects, o)
		keys = append(keys, e.Key)
	}
	objects, twice := sortPolicies(k, objects, keys)
	return objects, rev, append(problems, twice...), nil
}

// CreateObject stores a new object, ErrExists if there is one. On success o has
// its uid, creationTimestamp, storage labels and resourceVersion; on failure it
// is unchanged.
func CreateObject(ctx context.Context, s Store, o api.Object) error {
	k, err := checkHead(o)
	if err == nil && o.Meta().ResourceVersion != "" {
		err = errors.New("metadata.resourceVersion is set, a new object has none")
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", ObjectKey(o), err)
	}
	return create(ctx, s, k, o)
}

func create(ctx context.Context, s Store, k api.Kind, o api.Object) error {
	key := ObjectKey(o)
	stored, err := storedCopy(k, o, key.Name)
	if err != nil {
		return fmt.Errorf("create %s: %w", key, err)
	}
	if _, isPolicy := api.TierOf(o); isPolicy {
		if old, err := getEntry(ctx, s, k, key); err == nil && old.Key != key {
			return fmt.Errorf("create %s: %w as %s", key, ErrExists, old.Key)
		}
	}
	newIdentity(stored.Meta())
	return write(ctx, s, k, o, stored, Entry{Key: key}, Absent())
}

// UpdateObject replaces the object whose resourceVersion o carries: ErrConflict
// if another one is stored, ErrNotFound if none is. Stored fields that this
// program does not know survive. On success o has the new resourceVersion.
func UpdateObject(ctx context.Context, s Store, o api.Object) error {
	k, err := checkHead(o)
	if err == nil && o.Meta().ResourceVersion == "" {
		err = errors.New("metadata.resourceVersion is empty, an update needs the one that was read")
	}
	if err != nil {
		return fmt.Errorf("update %s: %w", ObjectKey(o), err)
	}
	cur, err := getEntry(ctx, s, k, ObjectKey(o))
	if err != nil {
		return err
	}
	return replace(ctx, s, k, o, cur)
}

// ApplyObject creates the object or replaces the stored one, whose uid and
// creationTimestamp it keeps. If o carries a resourceVersion a stored object
// must still have it (ErrConflict); else the write is tried 10 times.
func ApplyObject(ctx context.Context, s Store, o api.Object) error {
	k, err := checkHead(o)
	if err != nil {
		return fmt.Errorf("apply %s: %w", ObjectKey(o), err)
	}
	for attempt := 0; ; attempt++ {
		cur, err := getEntry(ctx, s, k, ObjectKey(o))
		switch {
		case errors.Is(err, ErrNotFound):
			err = create(ctx, s, k, o)
		case err == nil:
			err = replace(ctx, s, k, o, cur)
		}
		final := err == nil || !isRace(err) || o.Meta().ResourceVersion != "" || attempt+1 == applyAttempts
		if final {
			return err
		}
		if err := pause(ctx, attempt); err != nil {
			return err
		}
	}
}

// DeleteObject removes an object and returns what was stored. With rev empty
// any version is deleted; else ErrConflict if another one is stored. An object
// that cannot be read can be deleted; what is returned then has only its name.
func DeleteObject(ctx context.Context, s Store, k api.Kind, namespace, name string, rev Revision) (api.Object, error) {
	key := Key{Kind: k.Name, Namespace: namespace, Name: name}
	for attempt := 0; ; attempt++ {
		e, err := getEntry(ctx, s, k, key)
		if err != nil {
			return nil, err
		}
		at := e.Rev
		if rev != "" {
			at = rev
		}
		err = s.Delete(ctx, e.Key, At(at))
		if err == nil {
			return decodeOrName(k, e), nil
		}
		if rev != "" || !errors.Is(err, ErrConflict) || attempt+1 == casAttempts {
			return nil, err
		}
		if err := pause(ctx, attempt); err != nil {
			return nil, err
		}
	}
}

// modifyObject is the get-change-write loop under Typed.Modify.
func modifyObject(ctx context.Context, s Store, k api.Kind, namespace, name string, fn func(api.Object) error) (api.Object, error) {
	key := Key{Kind: k.Name, Namespace: namespace, Name: name}
	for attempt := 0; ; attempt++ {
		e, err := getEntry(ctx, s, k, key)
		if err != nil {
			return nil, err
		}
		o, err := DecodeObject(k, e)
		if err != nil {
			return nil, err
		}
		if err := fn(o); err != nil {
			return nil, err
		}
		o.Meta().ResourceVersion = string(e.Rev)
		err = replace(ctx, s, k, o, e)
		if err == nil {
			return o, nil
		}
		if !isRace(err) || attempt+1 == casAttempts {
			return nil, err
		}
		if err := pause(ctx, attempt); err != nil {
			return nil, err
		}
	}
}

// replace writes o over cur, which was just read. It writes nothing when the
// stored form would stay the same.
func replace(ctx context.Context, s Store, k api.Kind, o api.Object, cur Entry) error {
	m := o.Meta()
	if m.ResourceVersion != "" && m.ResourceVersion != string(cur.Rev) {
		return fmt.Errorf("update %s: %w: resourceVersion is %s, not %s", cur.Key, ErrConflict, cur.Rev, m.ResourceVersion)
	}
	old, unreadable := DecodeObject(k, cur)
	if unreadable == nil {
		m.Name = old.Meta().Name // a policy may have been asked for by its key
	}
	stored, err := storedCopy(k, o, cur.Key.Name)
	if err != nil {
		return fmt.Errorf("update %s: %w", cur.Key, err)
	}
	if unreadable != nil { // what cannot be read is replaced as a whole
		newIdentity(stored.Meta())
		return write(ctx, s, k, o, stored, Entry{Key: cur.Key}, At(cur.Rev))
	}
	if said := m.UID; said != "" && m.ResourceVersion != "" && old.Meta().UID != "" && said != old.Meta().UID {
		return fmt.Errorf("update %s: %w: uid is %s, not %s", cur.Key, ErrConflict, old.Meta().UID, said)
	}
	if uid := old.Meta().UID; uid != "" {
		stored.Meta().UID = uid
	}
	if created := old.Meta().CreationTimestamp; created != nil {
		stored.Meta().CreationTimestamp = created
	}
	newIdentity(stored.Meta())
	return write(ctx, s, k, o, stored, cur, At(cur.Rev))
}

// write puts stored under the key of cur, with what the value of cur, if it has
// one, has beside it, and tells o the outcome.
func write(ctx context.Context, s Store, k api.Kind, o, stored api.Object, cur Entry, pre Precondition) error {
	key, old, name := cur.Key, cur.Value, o.Meta().Name
	value, err := json.Marshal(stored)
	if err != nil {
		return fmt.Errorf("encode %s: %w", key, err)
	}
	if old != nil {
		if value, err = api.MergeUnknown(old, value, k); err != nil {
			return fmt.Errorf("update %s: keep unknown fields: %w", key, err)
		}
	}
	rev, at := pre.Revision()
	if !at || string(old) != string(value) {
		if rev, err = s.Put(ctx, key, value, pre); err != nil {
			return err
		}
	}
	*o.Type(), *o.Meta() = *stored.Type(), *stored.Meta()
	o.Meta().Name, o.Meta().ResourceVersion = name, string(rev)
	loadPolicy(o)
	return nil
}

func checkHead(o api.Object) (api.Kind, error) {
	k, err := kindOf(o)
	if err != nil {
		return k, err
	}
	if m := o.Meta(); m.Name == "" && m.GenerateName != "" {
		return k, errors.New("metadata.generateName is not supported, give metadata.name")
	}
	_, err = buildPath(ObjectKey(o))
	return k, err
}

// newIdentity gives a new object what only the store may decide.
func newIdentity(m *api.ObjectMeta) {
	if m.UID == "" {
		m.UID = uuid.NewString()
	}
	if m.CreationTimestamp == nil {
		now := time.Now().UTC().Truncate(time.Second)
		m.CreationTimestamp = &now
	}
}

func decodeOrName(k api.Kind, e Entry) api.Object {
	o, err := DecodeObject(k, e)
	if err != nil {
		o = k.New()
		*o.Type() = api.TypeMeta{Kind: k.Name, APIVersion: api.GroupVersion}
		*o.Meta() = api.ObjectMeta{Namespace: e.Key.Namespace, Name: e.Key.Name, ResourceVersion: string(e.Rev)}
	}
	return o
}
