package nft

import (
	"crypto/sha256"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
)

const (
	// idType marks a rule's identity among its user data. It is none of nft's own types, so that listings do not show it.
	idType = 0x4d
	idSize = 32 // the rule's ID, and the first half of the hash of its expressions

	verdictType = 0xffffff00 // NFT_DATA_VERDICT

	nfDrop, nfAccept = 0, 1 // linux/netfilter.h

	descConcat, fieldLen = 2, 1 // NFTA_SET_DESC_CONCAT, NFTA_SET_FIELD_LEN
	elemKeyEnd           = 10   // NFTA_SET_ELEM_KEY_END
	setExpr              = 0x11 // NFTA_SET_EXPR
	concatFlag           = 0x80 // NFT_SET_CONCAT
	catchall             = 2    // NFT_SET_ELEM_CATCHALL
)

// hooks gives the kernel's numbers of the hooks of family inet.
func hooks() map[string]uint32 {
	return map[string]uint32{
		"prerouting": unix.NF_INET_PRE_ROUTING, "input": unix.NF_INET_LOCAL_IN, "forward": unix.NF_INET_FORWARD,
		"output": unix.NF_INET_LOCAL_OUT, "postrouting": unix.NF_INET_POST_ROUTING,
	}
}

func hookName(n uint32) string {
	for name, number := range hooks() {
		if number == n {
			return name
		}
	}
	return fmt.Sprintf("hook %d", n)
}

// magic is nft's number of a type, which it finds in a set's key type, six bits for each part.
func magic(t desired.KeyType) uint32 {
	return [...]uint32{0, 7, 8, 12, 13, 41}[t]
}

func (b *batch) table() {
	b.message(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, desired.NFTKey{})
	b.buf = appendText(b.buf, unix.NFTA_TABLE_NAME, desired.NFTTable)
	b.buf = appendNumber(b.buf, unix.NFTA_TABLE_FLAGS, 0) // not dormant
	b.finish()
}

func (b *batch) delTable() {
	b.message(unix.NFT_MSG_DELTABLE, 0, desired.NFTKey{})
	b.buf = appendText(b.buf, unix.NFTA_TABLE_NAME, desired.NFTTable)
	b.finish()
}

func (b *batch) newChain(k desired.NFTKey, h desired.Hook) error {
	b.message(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, k)
	b.buf = appendText(b.buf, unix.NFTA_CHAIN_TABLE, desired.NFTTable)
	b.buf = appendText(b.buf, unix.NFTA_CHAIN_NAME, k.Name)
	if h != (desired.Hook{}) {
		number, ok := hooks()[h.Name]
		if !ok {
			return fmt.Errorf("%s: hook %q: must be prerouting, input, forward, output or postrouting", k, h.Name)
		}
		if h.Type != "filter" && h.Type != "nat" {
			return fmt.Errorf("%s: type %q: must be filter or nat", k, h.Type)
		}
		var at int
		b.buf, at = openNested(b.buf, unix.NFTA_CHAIN_HOOK)
		b.buf = appendNumber(b.buf, unix.NFTA_HOOK_HOOKNUM, number)
		b.buf = appendNumber(b.buf, unix.NFTA_HOOK_PRIORITY, uint32(int32(h.Priority)))
		b.buf = closeNested(b.buf, at)
		b.buf = appendNumber(b.buf, unix.NFTA_CHAIN_POLICY, nfAccept)
		b.buf = appendText(b.buf, unix.NFTA_CHAIN_TYPE, h.Type)
	}
	b.finish()
	return nil
}

func (b *batch) delChain(k desired.NFTKey) {
	b.message(unix.NFT_MSG_DELCHAIN, 0, k)
	b.buf = appendText(b.buf, unix.NFTA_CHAIN_TABLE, desired.NFTTable)
	b.buf = appendText(b.buf, unix.NFTA_CHAIN_NAME, k.Name)
	b.finish()
}

func (b *batch) flushChain(k desired.NFTKey) {
	b.message(unix.NFT_MSG_DELRULE, 0, k)
	b.buf = appendText(b.buf, unix.NFTA_RULE_TABLE, desired.NFTTable)
	b.buf = appendText(b.buf, unix.NFTA_RULE_CHAIN, k.Name)
	b.finish()
}

func (b *batch) newRule(k desired.NFTKey, r desired.Rule) error {
	compiled, err := expressions(r)
	if err != nil {
		return &refusal{about: k, err: err}
	}
	exprs, err := marshal(compiled)
	if err != nil {
		return &refusal{about: k, err: fmt.Errorf("rule %q: %w", r, err)}
	}
	b.message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, k)
	b.buf = appendText(b.buf, unix.NFTA_RULE_TABLE, desired.NFTTable)
	b.buf = appendText(b.buf, unix.NFTA_RULE_CHAIN, k.Name)
	b.buf = appendAttr(b.buf, unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, exprs)
	id := r.ID()
	data := append([]byte{idType, idSize}, id[:]...)
	b.buf = appendAttr(b.buf, unix.NFTA_RULE_USERDATA, append(data, fingerprint(exprs)...))
	b.finish()
	return nil
}

// fingerprint is half the hash of a rule's expressions.
func fingerprint(exprs attributes) []byte {
	sum := sha256.Sum256(canonical(exprs))
	return sum[:16]
}

func (b *batch) newSet(k desired.NFTKey, t desired.SetType) {
	parts := t.Parts()
	var size, typ, flags uint32
	for _, p := range parts {
		typ = typ<<6 | magic(p)
		size += uint32(p.Size())
		if len(parts) > 1 {
			size = (size + 3) &^ 3
		}
	}
	if t.Interval {
		flags |= unix.NFT_SET_INTERVAL
		if len(parts) > 1 {
			flags |= concatFlag
		}
	}
	if t.Verdicts {
		flags |= unix.NFT_SET_MAP
	}
	b.message(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, k)
	b.buf = appendText(b.buf, unix.NFTA_SET_TABLE, desired.NFTTable)
	b.buf = appendText(b.buf, unix.NFTA_SET_NAME, k.Name)
	b.buf = appendNumber(b.buf, unix.NFTA_SET_FLAGS, flags)
	b.buf = appendNumber(b.buf, unix.NFTA_SET_KEY_TYPE, typ)
	b.buf = appendNumber(b.buf, unix.NFTA_SET_KEY_LEN, size)
	b.buf = appendNumber(b.buf, unix.NFTA_SET_ID, b.seq) // must be unique within the batch
	if t.Verdicts {
		b.buf = appendNumber(b.buf, unix.NFTA_SET_DATA_TYPE, verdictType)
	}
	if parts[0] == desired.TypeInterface {
		// For nft(8), which would otherwise read names backwards: NFTNL_UDATA_SET_KEYBYTEORDER, this machine's.
		b.buf = appendAttr(b.buf, unix.NFTA_SET_USERDATA, append([]byte{0, 4}, native(1)...))
	}
	if flags&concatFlag != 0 {
		b.concatFields(parts)
	}
	if t.Counters {
		var at int
		b.buf, at = openNested(b.buf, setExpr)
		b.buf = appendText(b.buf, unix.NFTA_EXPR_NAME, "counter")
		var data int
		b.buf, data = openNested(b.buf, unix.NFTA_EXPR_DATA)
		b.buf = closeNested(b.buf, data)
		b.buf = closeNested(b.buf, at)
	}
	b.finish()
}

// concatFields tells the kernel where the parts of a key with ranges end.
func (b *batch) concatFields(parts []desired.KeyType) {
	var desc, concat, elem int
	b.buf, desc = openNested(b.buf, unix.NFTA_SET_DESC)
	b.buf, concat = openNested(b.buf, descConcat)
	for _, p := range parts {
		b.buf, elem = openNested(b.buf, unix.NFTA_LIST_ELEM)
		b.buf = appendNumber(b.buf, fieldLen, uint32(p.Size()))
		b.buf = closeNested(b.buf, elem)
	}
	b.buf = closeNested(b.buf, concat)
	b.buf = closeNested(b.buf, desc)
}

func (b *batch) delSet(k desired.NFTKey) {
	b.message(unix.NFT_MSG_DELSET, 0, k)
	b.buf = appendText(b.buf, unix.NFTA_SET_TABLE, desired.NFTTable)
	b.buf = appendText(b.buf, unix.NFTA_SET_NAME, k.Name)
	b.finish()
}

// flushSet takes all elements out.
func (b *batch) flushSet(k desired.NFTKey) {
	b.message(unix.NFT_MSG_DELSETELEM, 0, k)
	b.buf = appendText(b.buf, unix.NFTA_SET_ELEM_LIST_TABLE, desired.NFTTable)
	b.buf = appendText(b.buf, unix.NFTA_SET_ELEM_LIST_SET, k.Name)
	b.finish()
}

// elements adds or deletes elements, in as many messages as it takes.
func (b *batch) elements(typ, flags uint16, k desired.NFTKey, t desired.SetType, list []desired.Element) {
	for len(list) > 0 {
		b.message(typ, flags, k)
		b.buf = appendText(b.buf, unix.NFTA_SET_ELEM_LIST_TABLE, desired.NFTTable)
		b.buf = appendText(b.buf, unix.NFTA_SET_ELEM_LIST_SET, k.Name)
		var at int
		b.buf, at = openNested(b.buf, unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		n := 0
		for n < len(list) && len(b.buf)-at < maxAttr-1024 { // an element takes less than a kilobyte
			b.element(t, list[n])
			n++
		}
		b.buf = closeNested(b.buf, at)
		b.finish()
		list = list[n:]
	}
}

// element appends one element. A range of a single part is two: where it starts, and the first key behind it.
func (b *batch) element(t desired.SetType, e desired.Element) {
	concat := len(t.Parts()) > 1
	b.oneElement(t, e, 0, concat && t.Interval)
	if t.Interval && !concat {
		if next, ok := after(e.End); ok { // a range without an end reaches to the last key
			b.oneElement(t, desired.Element{Key: next}, unix.NFT_SET_ELEM_INTERVAL_END, false)
		}
	}
}

func (b *batch) oneElement(t desired.SetType, e desired.Element, flags uint32, withEnd bool) {
	var at int
	b.buf, at = openNested(b.buf, unix.NFTA_LIST_ELEM)
	b.value(unix.NFTA_SET_ELEM_KEY, e.Key)
	if withEnd {
		b.value(elemKeyEnd, e.End)
	}
	if flags != 0 {
		b.buf = appendNumber(b.buf, unix.NFTA_SET_ELEM_FLAGS, flags)
	} else if t.Verdicts {
		var data, verdict int
		b.buf, data = openNested(b.buf, unix.NFTA_SET_ELEM_DATA)
		b.buf, verdict = openNested(b.buf, unix.NFTA_DATA_VERDICT)
		b.buf = appendNumber(b.buf, unix.NFTA_VERDICT_CODE, uint32(verdictCode(e.Verdict.Do)))
		if e.Verdict.Chain != "" {
			b.buf = appendText(b.buf, unix.NFTA_VERDICT_CHAIN, e.Verdict.Chain)
		}
		b.buf = closeNested(b.buf, verdict)
		b.buf = closeNested(b.buf, data)
	}
	b.buf = closeNested(b.buf, at)
}

func (b *batch) value(typ uint16, key string) {
	var at int
	b.buf, at = openNested(b.buf, typ)
	b.buf = appendAttr(b.buf, unix.NFTA_DATA_VALUE, []byte(key))
	b.buf = closeNested(b.buf, at)
}

// verdictCodes of the kernel (netfilter.h, nf_tables.h).
func verdictCodes() map[desired.Action]int32 {
	return map[desired.Action]int32{
		desired.Accept: nfAccept, desired.Drop: nfDrop, desired.Return: unix.NFT_RETURN,
		desired.Jump: unix.NFT_JUMP, desired.Goto: unix.NFT_GOTO,
	}
}

func verdictCode(a desired.Action) int32 {
	if code, ok := verdictCodes()[a]; ok {
		return code
	}
	return nfDrop // of nothing that we make
}

// after is the next key in order; false after the last.
func after(key string) (string, bool) {
	b := []byte(key)
	for i := range slices.Backward(b) {
		if b[i]++; b[i] != 0 {
			return string(b), true
		}
	}
	return "", false
}

// before is the key before; false before the first.
func before(key string) (string, bool) {
	b := []byte(key)
	for i := range slices.Backward(b) {
		if b[i]--; b[i] != 0xff {
			return string(b), true
		}
	}
	return "", false
}
