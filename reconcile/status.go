package reconcile

import (
	"maps"
	"time"
)

// Status says how a table stands.
type Status[K comparable] struct {
	Wanted  int         // objects wanted
	Present int         // of those, objects that are there as wanted
	Held    int         // unwanted objects whose deletion is on hold
	Extra   int         // unwanted objects that are still there and not on hold
	Failed  map[K]error // last error of every object that could not be put or deleted
	DumpErr error       // why the objects could not be listed; nil when the last listing succeeded

	Started       bool      // the first Set has come and the objects have been listed
	LastSync      time.Time // when everything was last seen to be as wanted, by listing or after a change
	LastError     error     // the newest error of any kind, also when it is over
	LastErrorTime time.Time

	Applied uint64 // objects put
	Deleted uint64 // objects deleted
	Healed  uint64 // of both, those that somebody else had changed
	Dumps   uint64 // listings
	Errors  uint64 // attempts that failed, listings included
}

// InSync reports whether everything is as wanted.
func (s Status[K]) InSync() bool {
	return s.Started && s.Present == s.Wanted && s.Extra == 0 && len(s.Failed) == 0 && s.DumpErr == nil
}

// counters is what a table remembers for Status; guarded by Table.mu.
type counters struct {
	dumpErr         error
	lastSync        time.Time
	lastErr         error
	lastErrTime     time.Time
	applied         uint64
	deleted, healed uint64
	dumps, errors   uint64
}

func (c *counters) fail(err error, now time.Time) {
	c.lastErr, c.lastErrTime = err, now
	c.errors++
}

// Status says how the table stands now. It looks at what is remembered, not at the kernel.
func (t *Table[K, V]) Status() Status[K] {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.status
	s := Status[K]{
		Wanted: len(t.want), Started: t.want != nil && t.have != nil,
		Failed: make(map[K]error, len(t.failed)), DumpErr: c.dumpErr,
		LastSync: c.lastSync, LastError: c.lastErr, LastErrorTime: c.lastErrTime,
		Applied: c.applied, Deleted: c.deleted, Healed: c.healed, Dumps: c.dumps, Errors: c.errors,
	}
	for k, f := range t.failed {
		s.Failed[k] = f.err
	}
	for k, h := range t.have {
		switch w, wanted := t.want[k]; {
		case wanted && w == h:
			s.Present++
		case !wanted && t.held(k, h):
			s.Held++
		case !wanted:
			s.Extra++
		}
	}
	return s
}

// Have is a copy of the objects that are there, as far as is known; nil before the first listing.
func (t *Table[K, V]) Have() map[K]V {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.have)
}

// Has reports whether an object with that key is there, as far as is known, wanted or not.
func (t *Table[K, V]) Has(key K) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.have[key]
	return ok
}

// Want is a copy of what was last Set; nil before the first Set.
func (t *Table[K, V]) Want() map[K]V {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.want)
}
