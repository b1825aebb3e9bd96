package desired

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// NFTTable is the name of our one nftables table, of family inet. Everything in it is ours, nothing outside it is.
const NFTTable = "maneki"

// NFTKey names an object of the table.
type NFTKey struct {
	Kind NFTKind
	Name string
}

// NFTKind says what an object is.
type NFTKind uint8

// The kinds. Sets and maps share one name space.
const (
	NFTSet NFTKind = iota + 1
	NFTChain
)

// String is "set pools4" or "chain postrouting".
func (k NFTKey) String() string {
	if k.Kind == NFTSet {
		return "set " + k.Name
	}
	return "chain " + k.Name
}

// Compare orders sets before chains, then by name.
func (k NFTKey) Compare(o NFTKey) int {
	if k.Kind != o.Kind {
		return int(k.Kind) - int(o.Kind)
	}
	return strings.Compare(k.Name, o.Name)
}

// NFTObject says what a set or a chain is: two objects are equal exactly when their contents are. The contents
// themselves, which may be large, stand beside it in NFT.
type NFTObject struct {
	Type     SetType // of a set or map
	Elements Digest  // of a set or map
	Base     Hook    // of a base chain; zero for a regular chain, which is only jumped to
	Rules    RulesID // of a chain
}

// Hook is where a base chain is attached. Its policy is accept.
type Hook struct {
	Type     string // filter or nat
	Name     string // prerouting, input, forward, output or postrouting
	Priority int    // as nft prints it in numbers
}

// NFT is everything in the table. The zero value is an empty table. It is filled by its methods, and not changed after
// it was handed on.
type NFT struct {
	Objects map[NFTKey]NFTObject

	// contents of the objects, by what identifies them
	members  map[Digest]*Members
	elements map[Digest]*Elements
	rules    map[RulesID][]Rule
}

// Grow makes room for about so many objects more, so that adding them is cheap.
func (n *NFT) Grow(objects int) {
	if n.Objects == nil {
		n.Objects = make(map[NFTKey]NFTObject, objects)
		n.rules = make(map[RulesID][]Rule, objects)
	}
}

// AddSet adds a set of addresses, or of addresses, protocols and ports; see SetType.OfMembers.
func (n *NFT) AddSet(name string, t SetType, m *Members) {
	n.put(NFTKey{NFTSet, name}, NFTObject{Type: t, Elements: m.Digest()})
	if n.members == nil {
		n.members = map[Digest]*Members{}
	}
	n.members[m.Digest()] = m
}

// AddElements adds a set or map of any type.
func (n *NFT) AddElements(name string, t SetType, e *Elements) {
	n.put(NFTKey{NFTSet, name}, NFTObject{Type: t, Elements: e.Digest()})
	if n.elements == nil {
		n.elements = map[Digest]*Elements{}
	}
	n.elements[e.Digest()] = e
}

// AddChain adds a base chain, or with the zero Hook a regular one.
func (n *NFT) AddChain(name string, base Hook, rules ...Rule) {
	n.AddRules(name, base, NewRulesID(rules), rules)
}

// AddRules is AddChain for callers who keep the identity of the rules.
func (n *NFT) AddRules(name string, base Hook, id RulesID, rules []Rule) {
	n.put(NFTKey{NFTChain, name}, NFTObject{Base: base, Rules: id})
	if n.rules == nil {
		n.rules = map[RulesID][]Rule{}
	}
	n.rules[id] = rules
}

func (n *NFT) put(k NFTKey, o NFTObject) {
	if n.Objects == nil {
		n.Objects = map[NFTKey]NFTObject{}
	}
	n.Objects[k] = o
}

// Merge adds everything of other, which wins where both have an object.
func (n *NFT) Merge(other NFT) {
	n.Objects = merged(n.Objects, other.Objects)
	n.members = merged(n.members, other.members)
	n.elements = merged(n.elements, other.elements)
	n.rules = merged(n.rules, other.rules)
}

// merged is both, b's where both have one. A large map is cheaper cloned than filled
// anew.
func merged[K comparable, V any](a, b map[K]V) map[K]V {
	if len(a) >= len(b) {
		if a == nil {
			a = map[K]V{}
		}
		maps.Copy(a, b)
		return a
	}
	out := maps.Clone(b)
	for k, v := range a {
		if _, there := b[k]; !there {
			out[k] = v
		}
	}
	return out
}

// Members is the content of a set of members, if n has it.
func (n NFT) Members(d Digest) (*Members, bool) {
	m, ok := n.members[d]
	return m, ok || d == Digest{}
}

// Elements is the content of another set or map, if n has it.
func (n NFT) Elements(d Digest) (*Elements, bool) {
	e, ok := n.elements[d]
	return e, ok || d == Digest{}
}

// Rules is the content of a chain, if n has it.
func (n NFT) Rules(id RulesID) ([]Rule, bool) {
	r, ok := n.rules[id]
	return r, ok || id == RulesID{}
}

// DropUnused removes the sets and regular chains that no rule and no map refers to.
func (n *NFT) DropUnused() {
	used := map[NFTKey]bool{}
	var visit func(NFTKey)
	visit = func(k NFTKey) {
		o, there := n.Objects[k]
		if !there || used[k] {
			return
		}
		used[k] = true
		for _, r := range n.rules[o.Rules] {
			for _, set := range r.Sets() {
				visit(NFTKey{NFTSet, set})
			}
			visit(NFTKey{NFTChain, r.Chain})
		}
		if k.Kind == NFTSet && !o.Type.OfMembers() {
			for el := range n.elements[o.Elements].All() {
				visit(NFTKey{NFTChain, el.Verdict.Chain})
			}
		}
	}
	for k, o := range n.Objects {
		if o.Base != (Hook{}) {
			visit(k)
		}
	}
	maps.DeleteFunc(n.Objects, func(k NFTKey, _ NFTObject) bool { return !used[k] })
}

// String is the table as nft(8) lists it.
func (n NFT) String() string {
	if len(n.Objects) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", NFTTable)
	for _, k := range slices.SortedFunc(maps.Keys(n.Objects), NFTKey.Compare) {
		o := n.Objects[k]
		if k.Kind == NFTSet {
			n.printSet(&b, k.Name, o)
			continue
		}
		fmt.Fprintf(&b, "\tchain %s {\n", k.Name)
		if o.Base != (Hook{}) {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", o.Base.Type, o.Base.Name, o.Base.Priority)
		}
		for _, r := range n.rules[o.Rules] {
			fmt.Fprintf(&b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

func (n NFT) printSet(b *strings.Builder, name string, o NFTObject) {
	word := map[bool]string{false: "set", true: "map"}[o.Type.Verdicts]
	fmt.Fprintf(b, "\t%s %s {\n\t\t%s\n", word, name, strings.ReplaceAll(o.Type.String(), "; ", "\n\t\t"))
	var lines []string
	if o.Type.OfMembers() {
		for _, m := range slices.SortedFunc(n.members[o.Elements].All(), Member.Compare) {
			lines = append(lines, m.String())
		}
	} else {
		for _, el := range n.elements[o.Elements].List() {
			lines = append(lines, o.Type.Text(el))
		}
	}
	const few = 8
	switch {
	case len(lines) == 0:
	case len(lines) <= few && !o.Type.Verdicts:
		fmt.Fprintf(b, "\t\telements = { %s }\n", strings.Join(lines, ", "))
	default:
		fmt.Fprintf(b, "\t\telements = {\n\t\t\t%s\n\t\t}\n", strings.Join(lines, ",\n\t\t\t"))
	}
	b.WriteString("\t}\n")
}

// RuleID identifies a rule by its text.
type RuleID [16]byte

// RulesID identifies a list of rules: two lists with the same texts in the same order have the same one. The zero value
// is that of the empty list.
type RulesID struct {
	N   int
	Sum [16]byte
}

// NewRulesID is the identity of a list.
func NewRulesID(rules []Rule) RulesID {
	ids := make([]RuleID, len(rules))
	for i, r := range rules {
		ids[i] = r.ID()
	}
	return JoinRuleIDs(ids)
}

// JoinRuleIDs is the identity of the list of the rules that have these identities.
func JoinRuleIDs(ids []RuleID) RulesID {
	if len(ids) == 0 {
		return RulesID{}
	}
	h := sha256.New()
	for _, id := range ids {
		h.Write(id[:])
	}
	out := RulesID{N: len(ids)}
	copy(out.Sum[:], h.Sum(nil))
	return out
}
