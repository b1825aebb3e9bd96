package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
)

// foreign is the type, which no wish has, of a hook that is not as we make them.
const foreign = "foreign"

// errGone is the kernel's answer about a table or set that does not exist.
var errGone = unix.ENOENT

// listing is the table as the kernel has it.
type listing struct {
	objects map[desired.NFTKey]desired.NFTObject
	dormant bool // the table is switched off
}

// list reads the whole table. One that does not exist is empty.
func (s *socket) list() (listing, error) {
	out := listing{objects: map[desired.NFTKey]desired.NFTObject{}}
	there, err := false, error(nil)
	err = s.dump(unix.NFT_MSG_GETTABLE, nil, func() { there, out.dormant = false, false }, func(a attributes) {
		if a.text(unix.NFTA_TABLE_NAME) == desired.NFTTable {
			there, out.dormant = true, a.number(unix.NFTA_TABLE_FLAGS) != 0
		}
	})
	if err != nil {
		return out, fmt.Errorf("list tables: %w", err)
	}
	if !there {
		return out, nil
	}
	if err := s.listSets(out.objects); err != nil {
		return out, err
	}
	if err := s.listChains(out.objects, out.dormant); err != nil {
		return out, err
	}
	return out, nil
}

func (s *socket) listSets(into map[desired.NFTKey]desired.NFTObject) error {
	types := map[string]desired.SetType{}
	attrs := appendText(nil, unix.NFTA_SET_TABLE, desired.NFTTable)
	err := s.dump(unix.NFT_MSG_GETSET, attrs, func() { clear(types) }, func(a attributes) {
		if a.number(unix.NFTA_SET_FLAGS)&unix.NFT_SET_ANONYMOUS == 0 { // those belong to a foreign rule, and go with it
			types[a.text(unix.NFTA_SET_NAME)] = setType(a)
		}
	})
	if err != nil && !errors.Is(err, errGone) {
		return fmt.Errorf("list sets: %w", err)
	}
	for name, t := range types {
		o := desired.NFTObject{Type: t}
		if t.Key[0] != 0 {
			if o.Elements, err = s.digest(name, t); err != nil {
				if errors.Is(err, errGone) {
					continue
				}
				return fmt.Errorf("list elements of %s: %w", name, err)
			}
		}
		into[desired.NFTKey{Kind: desired.NFTSet, Name: name}] = o
	}
	return nil
}

// setType reads a set's type. One that we do not make has no key, and so differs from every wish.
func setType(a attributes) desired.SetType {
	flags, key := a.number(unix.NFTA_SET_FLAGS), uint32(a.number(unix.NFTA_SET_KEY_TYPE))
	t := desired.SetType{Interval: flags&unix.NFT_SET_INTERVAL != 0, Verdicts: flags&unix.NFT_SET_MAP != 0}
	if e := attributes(a.get(setExpr)); e != nil {
		t.Counters = e.text(unix.NFTA_EXPR_NAME) == "counter"
	}
	var parts []desired.KeyType
	for ; key != 0; key >>= 6 {
		i := slices.IndexFunc([]desired.KeyType{1, 2, 3, 4, 5}, func(k desired.KeyType) bool { return magic(k) == key&0x3f })
		if i < 0 || len(parts) == len(t.Key) {
			return desired.SetType{}
		}
		parts = append(parts, desired.KeyType(i+1))
	}
	slices.Reverse(parts)
	copy(t.Key[:], parts)
	const known = unix.NFT_SET_INTERVAL | unix.NFT_SET_MAP | concatFlag
	if flags&^known != 0 || t.Verdicts && a.number(unix.NFTA_SET_DATA_TYPE) != verdictType {
		return desired.SetType{}
	}
	return t
}

// element is one element as the kernel lists it.
type element struct {
	desired.Element
	flags   uint64
	counter Counter
}

func (s *socket) rawElements(set string) ([]element, error) {
	var out []element
	attrs := appendText(nil, unix.NFTA_SET_ELEM_LIST_TABLE, desired.NFTTable)
	attrs = appendText(attrs, unix.NFTA_SET_ELEM_LIST_SET, set)
	err := s.dump(unix.NFT_MSG_GETSETELEM, attrs, func() { out = nil }, func(a attributes) {
		attributes(a.get(unix.NFTA_SET_ELEM_LIST_ELEMENTS)).each(func(_ uint16, data []byte) { out = append(out, readElement(data)) })
	})
	return out, err
}

func readElement(a attributes) element {
	value := func(typ uint16) string { return string(attributes(a.get(typ)).get(unix.NFTA_DATA_VALUE)) }
	e := element{flags: a.number(unix.NFTA_SET_ELEM_FLAGS)}
	e.Key, e.End = value(unix.NFTA_SET_ELEM_KEY), value(elemKeyEnd)
	if v := attributes(attributes(a.get(unix.NFTA_SET_ELEM_DATA)).get(unix.NFTA_DATA_VERDICT)); v != nil {
		code := int32(v.number(unix.NFTA_VERDICT_CODE))
		e.Verdict.Do = desired.Action(fmt.Sprintf("verdict %d", code))
		for do, n := range verdictCodes() {
			if n == code {
				e.Verdict.Do = do
			}
		}
		e.Verdict.Chain = v.text(unix.NFTA_VERDICT_CHAIN)
	}
	if x := attributes(a.get(unix.NFTA_SET_ELEM_EXPR)); x.text(unix.NFTA_EXPR_NAME) == "counter" {
		e.counter = readCounter(x.get(unix.NFTA_EXPR_DATA))
	}
	return e
}

func readCounter(a attributes) Counter {
	return Counter{Packets: a.number(unix.NFTA_COUNTER_PACKETS), Bytes: a.number(unix.NFTA_COUNTER_BYTES)}
}

// A set that has grown is moved to a larger hash table behind our back. A listing goes on from message to message by
// position (nft_rhash_walk in net/netfilter/nft_set_hash.c), so that one made meanwhile has elements twice and others not at
// all. It is made again, within these bounds.
const (
	rereads     = 20
	rereadPause = 5 * time.Millisecond
)

// repeats reports whether some element is listed twice.
func repeats(list []element) bool {
	seen := make(map[string]struct{}, len(list))
	for _, e := range list {
		seen[e.Key] = struct{}{}
	}
	return len(seen) < len(list)
}

// listElements reads a set's elements, ranges put together; false where there are elements that we never make.
func (s *socket) listElements(set string, t desired.SetType) ([]element, bool, error) {
	raw, err := s.rawElements(set)
	for n := 0; err == nil && n < rereads && !t.Interval && repeats(raw); n++ {
		time.Sleep(rereadPause)
		raw, err = s.rawElements(set)
	}
	if err != nil {
		return nil, false, err
	}
	if slices.ContainsFunc(raw, func(e element) bool { return e.flags&^unix.NFT_SET_ELEM_INTERVAL_END != 0 }) {
		return nil, false, nil // one that matches everything
	}
	if !t.Interval || len(t.Parts()) > 1 {
		return raw, true, nil
	}
	out, ok := ranges(raw)
	return out, ok, nil
}

// ranges puts starts and ends together. The kernel lists them in no order that we rely on.
func ranges(raw []element) ([]element, bool) {
	end := func(e element) int { return int(e.flags & unix.NFT_SET_ELEM_INTERVAL_END) }
	slices.SortFunc(raw, func(x, y element) int {
		if c := bytes.Compare([]byte(x.Key), []byte(y.Key)); c != 0 {
			return c
		}
		return end(y) - end(x) // an end comes before the next start
	})
	var out []element
	open := false
	for _, e := range raw {
		switch {
		case end(e) == 0 && open:
			return nil, false
		case end(e) == 0:
			out, open = append(out, e), true
		case open:
			out[len(out)-1].End, _ = before(e.Key)
			open = false
		case !isZero([]byte(e.Key)): // nft writes an end at zero in front of the first range
			return nil, false
		}
	}
	if open {
		last := &out[len(out)-1]
		last.End = string(bytes.Repeat([]byte{0xff}, len(last.Key)))
	}
	return out, true
}

// otherElements is the digest of elements that we never make.
func otherElements() desired.Digest { return desired.Digest{Size: -1} }

func (s *socket) digest(set string, t desired.SetType) (desired.Digest, error) {
	list, ok, err := s.listElements(set, t)
	if err != nil {
		return desired.Digest{}, err
	}
	if !ok {
		return otherElements(), nil
	}
	if !t.OfMembers() {
		plain := make([]desired.Element, len(list))
		for i, e := range list {
			plain[i] = e.Element
		}
		return desired.ElementsDigest(plain), nil
	}
	members := make([]desired.Member, len(list))
	for i, e := range list {
		if members[i], ok = t.Member(e.Element); !ok {
			return otherElements(), nil
		}
	}
	return desired.MembersDigest(members), nil
}

func (s *socket) listChains(into map[desired.NFTKey]desired.NFTObject, dormant bool) error {
	bases, rules := map[string]desired.Hook{}, map[string][]desired.RuleID{}
	err := s.dump(unix.NFT_MSG_GETCHAIN, nil, func() { clear(bases) }, func(a attributes) {
		if a.text(unix.NFTA_CHAIN_TABLE) == desired.NFTTable {
			bases[a.text(unix.NFTA_CHAIN_NAME)] = readHook(a, dormant)
		}
	})
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	attrs := appendText(nil, unix.NFTA_RULE_TABLE, desired.NFTTable)
	err = s.dump(unix.NFT_MSG_GETRULE, attrs, func() { clear(rules) }, func(a attributes) {
		chain := a.text(unix.NFTA_RULE_CHAIN)
		rules[chain] = append(rules[chain], ruleID(a))
	})
	if err != nil && !errors.Is(err, errGone) {
		return fmt.Errorf("list rules: %w", err)
	}
	for name, base := range bases {
		into[desired.NFTKey{Kind: desired.NFTChain, Name: name}] = desired.NFTObject{Base: base, Rules: desired.JoinRuleIDs(rules[name])}
	}
	return nil
}

func readHook(a attributes, dormant bool) desired.Hook {
	h := attributes(a.get(unix.NFTA_CHAIN_HOOK))
	if h == nil {
		return desired.Hook{}
	}
	out := desired.Hook{
		Type: a.text(unix.NFTA_CHAIN_TYPE), Name: hookName(uint32(h.number(unix.NFTA_HOOK_HOOKNUM))),
		Priority: int(int32(h.number(unix.NFTA_HOOK_PRIORITY))),
	}
	if dormant || a.number(unix.NFTA_CHAIN_POLICY) != nfAccept {
		out.Type = foreign
	}
	return out
}

// ruleID is the identity that we wrote with a rule. A rule without one, or with other expressions than when it was
// written, is somebody else's, and has one that no rule has.
func ruleID(a attributes) desired.RuleID {
	var id desired.RuleID
	data := a.get(unix.NFTA_RULE_USERDATA)
	if len(data) == 2+idSize && data[0] == idType && bytes.Equal(data[2+len(id):], fingerprint(a.get(unix.NFTA_RULE_EXPRESSIONS))) {
		copy(id[:], data[2:])
		return id
	}
	binary.BigEndian.PutUint64(id[:], a.number(unix.NFTA_RULE_HANDLE))
	return id
}
