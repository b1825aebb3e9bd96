// Package nft keeps our nftables table, `inet maneki`, as desired.NFT says. It speaks netlink; no program is run.
//
// Everything in the table is ours, whatever wrote it: foreign sets, chains and rules in it are removed. All other tables
// are left alone. Every rule carries its own identity and a hash of its expressions, by which it is recognised; one
// without them is somebody else's.
package nft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/dataplane/notify"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/reconcile"
)

// Entry is one object for Apply.
type Entry = reconcile.Entry[desired.NFTKey, desired.NFTObject]

// Applier is the table of one network namespace. Provide, Watch and Counters are safe for concurrent use; the rest is for
// one goroutine at a time.
type Applier struct {
	conn    *socket
	have    map[desired.NFTKey]desired.NFTObject // as of the last listing or writing
	written map[string]content                   // of sets, as last written: what changes start from

	mu       sync.Mutex
	contents [2]desired.NFT // the newest, and the one before, of which some may still be asked for
}

// content is what a set holds.
type content struct {
	members  *desired.Members
	elements *desired.Elements
}

var _ reconcile.BatchApplier[desired.NFTKey, desired.NFTObject] = (*Applier)(nil)

// New opens netlink in the namespace of the calling thread.
func New() (*Applier, error) {
	conn, err := open()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &Applier{conn: conn, have: map[desired.NFTKey]desired.NFTObject{}, written: map[string]content{}}, nil
}

// Close releases the socket. The table stays.
func (a *Applier) Close() error { return a.conn.close() }

// Provide hands over the contents of the objects that are wanted from now on. It comes before the Set of the Table.
func (a *Applier) Provide(n desired.NFT) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.contents = [2]desired.NFT{n, a.contents[0]}
}

func (a *Applier) provided() [2]desired.NFT {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.contents
}

// Watch calls changed whenever something in the table has changed that the Applier itself did not change. See
// notify.Follow for the rest.
func (a *Applier) Watch(ctx context.Context, changed func()) error {
	name := append([]byte(desired.NFTTable), 0)
	matters := func(m syscall.NetlinkMessage) bool {
		const header = 4 // struct nfgenmsg; the table's name is the first attribute of all kinds but the generation
		if len(m.Data) < header+4 || m.Header.Type&0xff == unix.NFT_MSG_NEWGEN {
			return false
		}
		return bytes.HasPrefix(m.Data[header+4:], name)
	}
	return notify.FollowOthers(ctx, unix.NETLINK_NETFILTER, []uint{unix.NFNLGRP_NFTABLES}, a.conn.port, matters, changed)
}

// Dump lists the table. One that does not exist is empty.
func (a *Applier) Dump(context.Context) (map[desired.NFTKey]desired.NFTObject, error) {
	l, err := a.conn.list()
	if err != nil {
		return nil, err
	}
	a.have = l.objects
	return maps.Clone(l.objects), nil
}

// Put creates or replaces one object.
func (a *Applier) Put(ctx context.Context, k desired.NFTKey, o desired.NFTObject) error {
	return a.Apply(ctx, []Entry{{Key: k, Value: o}}, nil)[k]
}

// Delete removes one object. One that is gone is no error.
func (a *Applier) Delete(ctx context.Context, k desired.NFTKey) error {
	return a.Apply(ctx, nil, []desired.NFTKey{k})[k]
}

// Apply changes the table in one transaction, so that no packet meets half of it. Where the kernel refuses to change
// what is there, because it is not what was listed, the whole table is made anew, in one transaction as well.
func (a *Applier) Apply(_ context.Context, puts []Entry, dels []desired.NFTKey) map[desired.NFTKey]error {
	next := maps.Clone(a.have)
	for _, e := range puts {
		next[e.Key] = e.Value
	}
	for _, k := range dels {
		delete(next, k)
	}
	err := a.change(puts, dels)
	if r := (*refusal)(nil); errors.As(err, &r) {
		if again := a.rebuild(next); again != nil {
			err = errors.Join(err, again)
		} else {
			err = nil
		}
	}
	if err == nil {
		a.have = next
		return nil
	}
	errs := map[desired.NFTKey]error{}
	for _, e := range puts {
		errs[e.Key] = err
	}
	for _, k := range dels {
		errs[k] = err
	}
	return errs
}

// rebuild replaces the whole table. Objects whose content is not at hand are not wanted any more.
func (a *Applier) rebuild(next map[desired.NFTKey]desired.NFTObject) error {
	provided := a.provided()
	maps.DeleteFunc(next, func(k desired.NFTKey, o desired.NFTObject) bool { return !at(provided, k, o) })
	b := a.conn.batch()
	b.table() // deleting a table that is not there is an error
	b.delTable()
	have, written := a.have, a.written
	a.have, a.written = map[desired.NFTKey]desired.NFTObject{}, map[string]content{}
	var puts []Entry
	for k, o := range next {
		puts = append(puts, Entry{Key: k, Value: o})
	}
	t, err := a.transaction(b, puts, nil)
	if err == nil {
		err = t.commit()
	}
	if err != nil {
		a.have, a.written = have, written
	}
	return err
}

// at reports whether an object's content is at hand.
func at(provided [2]desired.NFT, k desired.NFTKey, o desired.NFTObject) bool {
	for _, p := range provided {
		_, rules := p.Rules(o.Rules)
		_, members := p.Members(o.Elements)
		_, elements := p.Elements(o.Elements)
		switch {
		case k.Kind == desired.NFTChain && rules && o.Base.Type != foreign,
			k.Kind == desired.NFTSet && o.Type.OfMembers() && members,
			k.Kind == desired.NFTSet && !o.Type.OfMembers() && elements && o.Type.Key[0] != 0:
			return true
		}
	}
	return false
}

// change touches only what differs.
func (a *Applier) change(puts []Entry, dels []desired.NFTKey) error {
	t, err := a.transaction(a.conn.batch(), puts, dels)
	if err != nil {
		return err
	}
	return t.commit()
}
