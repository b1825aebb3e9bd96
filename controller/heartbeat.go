package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/manekinet/maneki/datastore"
)

// How often a host says that it is alive. Reflectors are few and are to be
// missed soon. The others share a rate: beatsPerSecond for the whole cluster,
// whatever its size.
const (
	reflectorBeat  = 2 * time.Second
	hostBeat       = 10 * time.Second
	beatsPerSecond = 10
	missedBeats    = 3 // of which a host is taken for dead
)

// Beat is a heartbeat: that the host's agent lives, and how its BGP sessions to
// the cluster's other hosts stand.
type Beat struct {
	Count       uint64   `json:"count"`             // makes every beat a change
	Every       float64  `json:"everySeconds"`      // when the next one is to be expected
	Sessions    int      `json:"sessions"`          // wanted with hosts of the cluster
	Established int      `json:"established"`       // of these: up, and the other end's routes are here
	Clients     int      `json:"clients"`           // of the established: those that this host reflects to
	Missing     []string `json:"missing,omitempty"` // nodes of the sessions that are not established, MaxMissing at most
}

// MaxMissing bounds the names in a beat. A host that misses more is not taken to
// be complete, whoever it misses.
const MaxMissing = 256

// sameState reports that two beats say the same of the sessions.
func sameState(a, b Beat) bool {
	return a.Sessions == b.Sessions && a.Established == b.Established && a.Clients == b.Clients && slices.Equal(a.Missing, b.Missing)
}

// BeatInterval is how often a host beats in a cluster of so many hosts.
func BeatInterval(hosts int, reflector bool) time.Duration {
	if reflector {
		return reflectorBeat
	}
	return max(hostBeat, time.Duration(hosts)*time.Second/beatsPerSecond)
}

// Beater writes one host's heartbeat.
type Beater struct {
	Store datastore.Store
	Node  string
	// Look returns the counts of sessions, the number of hosts in the cluster and
	// whether this host is a reflector.
	Look func() (b Beat, hosts int, reflector bool)
	Log  *slog.Logger
}

// Run beats until ctx is done. The last beat stays: an agent that is back within
// the time of three beats has not been missed.
func (b *Beater) Run(ctx context.Context) error {
	var last Beat
	var at time.Time
	tick := reflectorBeat / 2
	for {
		now, hosts, reflector := b.Look()
		interval := BeatInterval(hosts, reflector)
		changed := !sameState(now, last) && time.Since(at) >= interval/missedBeats
		if at.IsZero() || time.Since(at) >= interval-tick/2 || changed {
			now.Count, now.Every = last.Count+1, interval.Seconds()
			if err := b.put(ctx, now); err != nil {
				b.Log.Debug("heartbeat could not be written", "err", err)
			}
			last, at = now, time.Now()
		}
		if !sleep(ctx, tick) {
			return ctx.Err()
		}
	}
}

func (b *Beater) put(ctx context.Context, beat Beat) error {
	value, err := json.Marshal(beat)
	if err != nil {
		return fmt.Errorf("encode heartbeat: %w", err)
	}
	_, err = b.Store.Put(ctx, heartbeatKey(b.Node), value, datastore.Always())
	return err
}

// Forget removes the heartbeat, when nobody looks at heartbeats any more.
func (b *Beater) Forget(ctx context.Context) error {
	err := b.Store.Delete(ctx, heartbeatKey(b.Node), datastore.Always())
	if errors.Is(err, datastore.ErrNotFound) {
		return nil
	}
	return err
}

func heartbeatKey(node string) datastore.Key {
	return datastore.Key{Kind: datastore.KindHeartbeat, Name: node}
}

// census watches the heartbeats and judges by its own clock who is alive.
type census struct {
	seen  map[string]sighting
	began time.Time // of the first look
	last  time.Time // of the last one
}

type sighting struct {
	beat Beat
	rev  datastore.Revision
	at   time.Time // when this revision was first seen
}

// blind is a pause between two looks after which nobody is judged by what was
// missed in it: the datastore did not answer, or this process did not run.
const blind = 3 * time.Second

// look takes all heartbeats as they are now.
func (c *census) look(entries []datastore.Entry, now time.Time) {
	missed := time.Duration(0)
	if gap := now.Sub(c.last); !c.last.IsZero() && gap > blind {
		missed = gap
	}
	c.last = now
	if c.began.IsZero() {
		c.began = now
	}
	seen := make(map[string]sighting, len(entries))
	for _, e := range entries {
		old, known := c.seen[e.Key.Name]
		if known && old.rev == e.Rev {
			old.at = old.at.Add(missed)
			seen[e.Key.Name] = old
			continue
		}
		s := sighting{rev: e.Rev, at: now}
		if json.Unmarshal(e.Value, &s.beat) != nil {
			continue // no heartbeat of ours
		}
		seen[e.Key.Name] = s
	}
	c.seen = seen
}

// alive returns the last beat of a host, and whether the host is alive: it has
// beaten within the time of three beats.
func (c *census) alive(node string, now time.Time) (Beat, bool) {
	s, ok := c.seen[node]
	if !ok {
		return Beat{}, false
	}
	every := time.Duration(s.beat.Every * float64(time.Second))
	return s.beat, now.Sub(s.at) <= missedBeats*max(every, reflectorBeat)
}

// waiting reports that a host which has never been seen to beat may still do so:
// heartbeats begin only when they are needed.
func (c *census) waiting(node string, hosts int, now time.Time) bool {
	_, seen := c.seen[node]
	return !seen && now.Sub(c.began) < BeatInterval(hosts, false)*3/2
}
