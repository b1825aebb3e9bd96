// Package datastore is the interface between Maneki and the place where its
// objects live: five verbs on keyed values with revisions, an optional
// multi-key transaction, typed views, and snapshot-then-watch streams.
//
// Backends (etcd, embedded, memory; kube later) map a Key to their own naming
// and nothing else; what an object means is not their business. Consensus,
// storage and fan-out beyond one machine are the engine's.
package datastore

import (
	"context"
	"errors"
)

// Errors that every backend returns, wrapped with the key concerned.
var (
	ErrNotFound    = errors.New("not found")
	ErrConflict    = errors.New("conflict")                // the revision given is not the stored one
	ErrExists      = errors.New("already exists")          // create of a key that is there
	ErrUnavailable = errors.New("datastore unavailable")   // retry later; nothing is known about the write
	ErrCompacted   = errors.New("revision compacted away") // list again
	// ErrDenied means that the datastore refused us, or that one side does not
	// accept the other's certificate: trying again is of no use until somebody
	// changes the configuration.
	ErrDenied = errors.New("datastore refused access")
)

// Revision identifies a version of a key, or of the whole store for a list.
// It is opaque: only the backend that issued it compares it. Empty means none.
type Revision string

// Kinds of the IPAM objects and of what Maneki's own hosts tell each other; the other kinds are the v3 names of package api.
const (
	KindIPAMBlock     = "IPAMBlock"         // Name: the block's CIDR
	KindBlockAffinity = "IPAMBlockAffinity" // Namespace: the owner, "host:<node>" or "virtual:<name>"; Name: the CIDR
	KindIPAMHandle    = "IPAMHandle"        // Name: the handle ID
	KindIPAMConfig    = "IPAMConfig"        // Name: "default"
	KindIPAMHost      = "IPAMHost"          // Name: the node; the marker that a host uses IPAM
	KindLease         = "Lease"             // Name: what is led; Maneki's own, nothing of Calico's reads it
	KindHeartbeat     = "Heartbeat"         // Name: the node; Maneki's own
)

// Key names one stored value.
type Key struct {
	Kind      string
	Namespace string // empty for cluster-scoped kinds
	Name      string
}

func (k Key) String() string {
	if k.Namespace == "" {
		return k.Kind + "(" + k.Name + ")"
	}
	return k.Kind + "(" + k.Namespace + "/" + k.Name + ")"
}

// Query selects what List and Watch return: one kind, optionally one namespace.
type Query struct {
	Kind      string
	Namespace string // empty: all
}

// Entry is a key with its stored bytes (JSON) and the revision of its last change.
type Entry struct {
	Key   Key
	Value []byte
	Rev   Revision
}

// Precondition says when a write may happen.
type Precondition struct {
	kind preKind
	rev  Revision
}

type preKind uint8

const (
	preNone preKind = iota
	preAbsent
	preRev
)

// Always lets a write happen whatever is stored.
func Always() Precondition { return Precondition{} }

// Absent lets a write happen only if the key is not there (a create). Its
// failure is ErrExists.
func Absent() Precondition { return Precondition{kind: preAbsent} }

// At lets a write happen only if the stored revision is rev. Its failure is
// ErrConflict, or ErrNotFound if the key is gone.
func At(rev Revision) Precondition { return Precondition{kind: preRev, rev: rev} }

// IsAbsent reports whether the key must not be there.
func (p Precondition) IsAbsent() bool { return p.kind == preAbsent }

// Revision returns the revision that must be stored, and whether there is one.
func (p Precondition) Revision() (Revision, bool) { return p.rev, p.kind == preRev }

// Op is one write of a transaction.
type Op struct {
	Key    Key
	Value  []byte // nil with Delete or Check
	Delete bool   // delete the key
	Check  bool   // only check If, write nothing
	If     Precondition
}

// EventType says what happened to a key.
type EventType uint8

// The two things that happen.
const (
	EventPut EventType = iota
	EventDelete
)

// Event is one change seen by a watch. For EventDelete, Entry.Value is nil.
type Event struct {
	Type  EventType
	Entry Entry
}

// Watcher delivers changes in order. Batches are never empty. After Events is
// closed, Err says why: ErrCompacted, ErrUnavailable, or the context's error.
type Watcher interface {
	Events() <-chan []Event
	Err() error
}

// Store is one backend. All methods are safe for concurrent use, honour the
// context, and return the sentinel errors above.
type Store interface {
	// Get returns one entry or ErrNotFound.
	Get(ctx context.Context, key Key) (Entry, error)
	// List returns the entries of the query in the order of their paths (Path)
	// and the revision of the store they were read at, from which a Watch
	// misses nothing.
	List(ctx context.Context, q Query) ([]Entry, Revision, error)
	// Put writes value under key and returns the new revision.
	Put(ctx context.Context, key Key, value []byte, pre Precondition) (Revision, error)
	// Delete removes key; ErrNotFound if it is not there.
	Delete(ctx context.Context, key Key, pre Precondition) error
	// Watch delivers every change of the queries after revision from; empty
	// means from now on. The changes of one query come in order; those of
	// different queries may overtake each other.
	Watch(ctx context.Context, from Revision, qs ...Query) Watcher
	// Close releases connections; watches end.
	Close() error
}

// Transactor is a Store that can change several keys at once: all or nothing.
// etcd, embedded and memory can; Kubernetes cannot.
type Transactor interface {
	// Commit applies ops atomically. If any precondition fails nothing is
	// written and the error is that operation's (ErrExists, ErrConflict,
	// ErrNotFound), wrapped with its key. It returns the revision of the
	// store after the write; every key written has that revision.
	Commit(ctx context.Context, ops []Op) (Revision, error)
}
