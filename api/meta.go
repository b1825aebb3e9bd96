package api

import (
	"time"
)

// TypeMeta names the kind of an object, as in every Kubernetes-style document.
type TypeMeta struct {
	Kind       string `json:"kind,omitempty"`
	APIVersion string `json:"apiVersion,omitempty"`
}

// ObjectMeta is the part of Kubernetes' metadata that Calico's datastore
// carries. The field order is the order of the stored JSON.
type ObjectMeta struct {
	Name              string            `json:"name,omitempty"`              // lower case letters, digits, - and .
	GenerateName      string            `json:"generateName,omitempty"`      // refused
	Namespace         string            `json:"namespace,omitempty"`         // of kinds that live in one; default "default"
	SelfLink          string            `json:"selfLink,omitempty"`          // not used
	UID               string            `json:"uid,omitempty"`               // given at creation
	ResourceVersion   string            `json:"resourceVersion,omitempty"`   // of the object read; apply with it fails if it was changed since
	Generation        int64             `json:"generation,omitempty"`        // not used
	CreationTimestamp *time.Time        `json:"creationTimestamp,omitempty"` // given at creation
	DeletionTimestamp *time.Time        `json:"deletionTimestamp,omitempty"` // not used
	Labels            map[string]string `json:"labels,omitempty"`            // for selectors
	Annotations       map[string]string `json:"annotations,omitempty"`       // for people and programs
	OwnerReferences   []OwnerReference  `json:"ownerReferences,omitempty"`   // kept
	Finalizers        []string          `json:"finalizers,omitempty"`        // kept
}

// OwnerReference is Kubernetes' pointer to the object this one belongs to.
type OwnerReference struct {
	APIVersion         string `json:"apiVersion"`
	Kind               string `json:"kind"`
	Name               string `json:"name"`
	UID                string `json:"uid"`
	Controller         *bool  `json:"controller,omitempty"`
	BlockOwnerDeletion *bool  `json:"blockOwnerDeletion,omitempty"`
}

// Object is one v3 resource. Every kind is a pointer to a struct that embeds
// Resource and so needs to write only Default and Validate.
type Object interface {
	Type() *TypeMeta
	Meta() *ObjectMeta
	// Default fills the fields nobody typed, as Calico's CRDs do.
	Default()
	// Validate reports every field that is wrong, as a *FieldErrors, or nil.
	Validate() error
}

// Resource is the common head of every v3 object.
type Resource struct {
	TypeMeta
	ObjectMeta `json:"metadata"`
}

// Type returns the kind and apiVersion, for reading and writing.
func (r *Resource) Type() *TypeMeta { return &r.TypeMeta }

// Meta returns the metadata, for reading and writing.
func (r *Resource) Meta() *ObjectMeta { return &r.ObjectMeta }
