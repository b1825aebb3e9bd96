package nft

import (
	"errors"
	"fmt"
	"maps"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
)

// transaction is one change of the table in the making.
type transaction struct {
	a        *Applier
	b        *batch
	provided [3]desired.NFT
	sets     map[string]content // as they will be
}

// transaction orders the messages so that everything is there before it is referred to, and goes when nothing refers to
// it any more: sets, chains, elements, rules, verdicts; then the deletions in the opposite order.
func (a *Applier) transaction(b *batch, puts []Entry, dels []desired.NFTKey) (*transaction, error) {
	t := &transaction{a: a, b: b, provided: a.using, sets: maps.Clone(a.written)}
	b.table()
	t.makeSets(puts)
	if err := t.makeChains(puts); err != nil {
		return nil, err
	}
	for _, verdicts := range []bool{false, true} {
		for _, e := range puts {
			if e.Key.Kind == desired.NFTSet && e.Value.Type.Verdicts == verdicts {
				if err := t.fill(e); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, e := range puts {
		if e.Key.Kind == desired.NFTChain {
			if err := t.rules(e); err != nil {
				return nil, err
			}
		}
	}
	t.deletions(dels)
	return t, nil
}

func (t *transaction) makeSets(puts []Entry) {
	for _, e := range puts {
		if e.Key.Kind != desired.NFTSet {
			continue
		}
		have, there := t.a.have[e.Key]
		if there && have.Type != e.Value.Type {
			t.b.delSet(e.Key) // refused if rules refer to it; then the table is made anew
			delete(t.sets, e.Key.Name)
		}
		if !there || have.Type != e.Value.Type {
			t.b.newSet(e.Key, e.Value.Type)
		}
	}
}

func (t *transaction) makeChains(puts []Entry) error {
	for _, e := range puts {
		if e.Key.Kind != desired.NFTChain {
			continue
		}
		have, there := t.a.have[e.Key]
		switch {
		case there && have.Base != e.Value.Base:
			t.b.flushChain(e.Key)
			t.b.delChain(e.Key)
		case there:
			t.b.flushChain(e.Key)
			continue
		}
		if err := t.b.newChain(e.Key, e.Value.Base); err != nil {
			return err
		}
	}
	return nil
}

// errNotAtHand is the error of an object that was wanted too long ago: newer wishes have taken its place.
var errNotAtHand = errors.New("not at hand")

func (t *transaction) rules(e Entry) error {
	for _, p := range t.provided {
		rules, ok := p.Rules(e.Value.Rules)
		if !ok {
			continue
		}
		for _, r := range rules {
			if err := t.b.newRule(e.Key, r); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("%s: its rules are %w", e.Key, errNotAtHand)
}

// fill brings a set's elements to what is wanted, from what was written last, else from nothing.
func (t *transaction) fill(e Entry) error {
	k, o := e.Key, e.Value
	next, ok := t.content(o)
	if !ok {
		return fmt.Errorf("%s: its elements are %w", k, errNotAtHand)
	}
	have, there := t.a.have[k]
	there = there && have.Type == o.Type
	old := t.a.written[k.Name]
	if there && old.digest(o.Type) != have.Elements {
		if old, ok = t.content(have); !ok || have.Elements == (desired.Digest{}) {
			old = content{}
			if have.Elements != (desired.Digest{}) {
				t.b.flushSet(k)
			}
		}
	}
	if !there {
		old = content{}
	}
	var add, del []desired.Element
	if o.Type.OfMembers() {
		plus, minus := next.members.Since(old.members)
		add, del = memberElements(o.Type, plus), memberElements(o.Type, minus)
	} else {
		add, del = next.elements.Since(old.elements)
	}
	t.b.elements(unix.NFT_MSG_DELSETELEM, 0, k, o.Type, del)
	t.b.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE|unix.NLM_F_EXCL, k, o.Type, add)
	t.sets[k.Name] = next
	return nil
}

func (c content) digest(t desired.SetType) desired.Digest {
	if t.OfMembers() {
		return c.members.Digest()
	}
	return c.elements.Digest()
}

func memberElements(t desired.SetType, list []desired.Member) []desired.Element {
	out := make([]desired.Element, len(list))
	for i, m := range list {
		out[i] = t.MemberElement(m)
	}
	return out
}

func (t *transaction) content(o desired.NFTObject) (content, bool) {
	for _, p := range t.provided {
		if o.Type.OfMembers() {
			if m, ok := p.Members(o.Elements); ok {
				return content{members: m}, true
			}
		} else if e, ok := p.Elements(o.Elements); ok {
			return content{elements: e}, true
		}
	}
	return content{}, false
}

func (t *transaction) deletions(dels []desired.NFTKey) {
	each := func(kind desired.NFTKind, do func(desired.NFTKey)) {
		for _, k := range dels {
			if _, there := t.a.have[k]; there && k.Kind == kind {
				do(k)
			}
		}
	}
	each(desired.NFTChain, t.b.flushChain)
	each(desired.NFTSet, func(k desired.NFTKey) {
		t.b.delSet(k)
		delete(t.sets, k.Name)
	})
	each(desired.NFTChain, t.b.delChain)
}
