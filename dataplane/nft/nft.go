// Package nft keeps our nftables table, `inet maneki`, as desired.NFT says. It speaks netlink; no program is run.
//
// Everything in the table is ours, whatever wrote it: foreign sets, chains and rules in it are removed. All other tables
// are left alone. Every rule carries its own text, by which it is recognised; a rule without one is somebody else's.
package nft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/dataplane/notify"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/reconcile"
)

const (
	// socketBuffer in bytes: a batch is sent as one message, and each rule is echoed.
	socketBuffer = 16 << 20
	// chunk bounds the elements of one message: its length is a 16-bit number of bytes, and one that is too long is cut
	// without an error. An element with a key of 16 bytes takes 32 bytes.
	chunk = 1000
	// textType marks a rule's text among its user data. It is none of nft's own types, so that listings do not show it.
	textType userdata.Type = 0x4d
	maxText  int           = 254 // bytes: its length is one byte, the terminating zero included
)

// Entry is one object for Apply.
type Entry = reconcile.Entry[desired.NFTKey, desired.NFTObject]

// Applier is the table of one network namespace. It is safe for use by one goroutine at a time.
type Applier struct {
	conn  *nftables.Conn
	table *nftables.Table
	have  desired.NFT // as of the last listing or writing
}

var _ reconcile.BatchApplier[desired.NFTKey, desired.NFTObject] = (*Applier)(nil)

// New opens netlink in the namespace of the calling thread.
func New() (*Applier, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer))
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &Applier{conn: conn, table: &nftables.Table{Name: desired.NFTTable, Family: nftables.TableFamilyINet}, have: desired.NFT{}}, nil
}

// Close releases the socket. The table stays.
func (a *Applier) Close() error { return a.conn.CloseLasting() }

// Watch calls changed whenever something in the table has changed, by whomever. See notify.Follow for the rest.
func Watch(ctx context.Context, changed func()) error {
	name := append([]byte(desired.NFTTable), 0)
	matters := func(m syscall.NetlinkMessage) bool {
		const header = 4 // struct nfgenmsg; the table's name is the first attribute of all kinds but the generation
		if len(m.Data) < header+4 || m.Header.Type&0xff == unix.NFT_MSG_NEWGEN {
			return false
		}
		return bytes.HasPrefix(m.Data[header+4:], name)
	}
	return notify.Follow(ctx, unix.NETLINK_NETFILTER, []uint{unix.NFNLGRP_NFTABLES}, matters, changed)
}

// Dump lists the table. One that does not exist is empty.
func (a *Applier) Dump(context.Context) (map[desired.NFTKey]desired.NFTObject, error) {
	out := desired.NFT{}
	there, err := a.exists()
	if err != nil {
		return nil, err
	}
	if !there {
		a.have = out
		return copyOf(out), nil
	}
	sets, err := a.conn.GetSets(a.table)
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	for _, s := range sets {
		if s.Anonymous {
			continue // of a foreign rule
		}
		if out[desired.NFTKey{Kind: desired.NFTSet, Name: s.Name}], err = a.set(s); err != nil {
			return nil, err
		}
	}
	chains, err := a.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name != desired.NFTTable {
			continue
		}
		if out[desired.NFTKey{Kind: desired.NFTChain, Name: c.Name}], err = a.chain(c); err != nil {
			return nil, err
		}
	}
	a.have = out
	return copyOf(out), nil
}

func copyOf(n desired.NFT) desired.NFT {
	c := desired.NFT{}
	for k, v := range n {
		c[k] = v
	}
	return c
}

func (a *Applier) exists() (bool, error) {
	tables, err := a.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == desired.NFTTable }), nil
}

// set reads a set. One of another type than we make counts as one without members and of the wrong family.
func (a *Applier) set(s *nftables.Set) (desired.NFTObject, error) {
	o := desired.NFTObject{V4: s.KeyType.Bytes == 4}
	elements, err := a.conn.GetSetElements(s)
	if err != nil {
		return o, fmt.Errorf("list elements of %s: %w", s.Name, err)
	}
	if s.IsMap || !s.Interval || s.KeyType.Bytes != 4 && s.KeyType.Bytes != 16 {
		o.Type = "foreign"
		return o, nil
	}
	o.Members = members(elements)
	return o, nil
}

// members turns interval starts and ends into prefixes. The kernel lists them in no order that we rely on.
func members(elements []nftables.SetElement) desired.NetSet {
	slices.SortFunc(elements, func(x, y nftables.SetElement) int {
		if c := bytes.Compare(x.Key, y.Key); c != 0 {
			return c
		}
		return btoi(y.IntervalEnd) - btoi(x.IntervalEnd) // an end comes before the next start
	})
	var out []netip.Prefix
	var start netip.Addr
	for _, e := range elements {
		at, _ := netip.AddrFromSlice(e.Key)
		if start.IsValid() {
			out = append(out, between(start, at.Prev())...)
			start = netip.Addr{}
		}
		if !e.IntervalEnd {
			start = at
		}
	}
	if start.IsValid() {
		out = append(out, between(start, last(start))...)
	}
	return desired.NewNetSet(out...)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// chain reads a chain. A rule without our text makes it differ from every chain that is wanted.
func (a *Applier) chain(c *nftables.Chain) (desired.NFTObject, error) {
	o := desired.NFTObject{Type: string(c.Type)}
	if c.Hooknum != nil && c.Priority != nil {
		o.Hook, o.Priority = hookName(*c.Hooknum), int(*c.Priority)
	}
	if c.Policy != nil && *c.Policy != nftables.ChainPolicyAccept {
		o.Type = "foreign"
	}
	list, err := a.conn.GetRules(a.table, c)
	if err != nil {
		return o, fmt.Errorf("list rules of %s: %w", c.Name, err)
	}
	var rules []desired.Rule
	for _, r := range list {
		text, _ := userdata.GetString(r.UserData, textType)
		rule, err := desired.ParseRule(text)
		if err != nil {
			o.Type = "foreign"
			continue
		}
		rules = append(rules, rule)
	}
	o.Rules = desired.NewRules(rules...)
	return o, nil
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
// what is there, the whole table is made anew, in one transaction as well.
func (a *Applier) Apply(_ context.Context, puts []Entry, dels []desired.NFTKey) map[desired.NFTKey]error {
	next := copyOf(a.have)
	for _, e := range puts {
		next[e.Key] = e.Value
	}
	for _, k := range dels {
		delete(next, k)
	}
	err := a.change(puts, dels)
	if err != nil {
		err = errors.Join(err, a.rebuild(next))
		if err != nil && a.matches(next) {
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

// matches asks the kernel whether the table is as it should be.
func (a *Applier) matches(want desired.NFT) bool {
	have, err := a.Dump(context.Background())
	return err == nil && desired.NFT(have).String() == want.String()
}

// change touches only what differs.
func (a *Applier) change(puts []Entry, dels []desired.NFTKey) error {
	a.conn.AddTable(a.table)
	for _, kind := range []desired.NFTKind{desired.NFTSet, desired.NFTChain} {
		for _, e := range puts {
			if e.Key.Kind != kind {
				continue
			}
			if err := a.write(e.Key, e.Value); err != nil {
				return err
			}
		}
	}
	for _, kind := range []desired.NFTKind{desired.NFTChain, desired.NFTSet} { // what refers goes before what is referred to
		for _, k := range dels {
			if _, there := a.have[k]; !there || k.Kind != kind {
				continue
			}
			if kind == desired.NFTSet {
				a.conn.DelSet(&nftables.Set{Table: a.table, Name: k.Name})
				continue
			}
			c := &nftables.Chain{Table: a.table, Name: k.Name}
			a.conn.FlushChain(c)
			a.conn.DelChain(c)
		}
	}
	if err := a.conn.Flush(); err != nil {
		return fmt.Errorf("change nftables: %w", err)
	}
	return nil
}

// rebuild replaces the whole table.
func (a *Applier) rebuild(all desired.NFT) error {
	there, err := a.exists()
	if err != nil {
		return err
	}
	if there {
		a.conn.DelTable(a.table)
	}
	a.have = desired.NFT{}
	var puts []Entry
	for k, o := range all {
		puts = append(puts, Entry{Key: k, Value: o})
	}
	return a.change(puts, nil)
}

// write adds one object to the transaction, emptied first if it is there.
func (a *Applier) write(k desired.NFTKey, o desired.NFTObject) error {
	if k.Kind == desired.NFTSet {
		return a.writeSet(k.Name, o)
	}
	c, err := newChain(a.table, k.Name, o)
	if err != nil {
		return err
	}
	a.conn.AddChain(c)
	a.conn.FlushChain(c)
	for _, r := range o.Rules.List() {
		exprs, err := expressions(r)
		if err != nil {
			return err
		}
		text := r.String()
		if len(text) > maxText {
			return fmt.Errorf("chain %s: rule of %d characters: at most %d are allowed", k.Name, len(text), maxText)
		}
		a.conn.AddRule(&nftables.Rule{Table: a.table, Chain: c, Exprs: exprs, UserData: userdata.AppendString(nil, textType, text)})
	}
	return nil
}

func (a *Applier) writeSet(name string, o desired.NFTObject) error {
	s := &nftables.Set{Table: a.table, Name: name, Interval: true, KeyType: nftables.TypeIP6Addr}
	if o.V4 {
		s.KeyType = nftables.TypeIPAddr
	}
	if err := a.conn.AddSet(s, nil); err != nil {
		return fmt.Errorf("add set %s: %w", name, err)
	}
	a.conn.FlushSet(s)
	var elements []nftables.SetElement
	for _, r := range o.Members.Ranges() {
		if r.From().Is4() != o.V4 {
			return fmt.Errorf("set %s: %s is of the other family", name, r)
		}
		elements = append(elements, nftables.SetElement{Key: r.From().AsSlice()})
		if end := r.To().Next(); end.IsValid() { // an interval without an end reaches to the last address
			elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	for part := range slices.Chunk(elements, chunk) {
		if err := a.conn.SetAddElements(s, part); err != nil {
			return fmt.Errorf("add elements to %s: %w", name, err)
		}
	}
	return nil
}
