package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
)

// BlockAffinityView is the v3 kind BlockAffinity: a host's claim on a block as
// a resource. The claim itself is the v1 object BlockAffinity, of which this is
// a view (spec/calico.md §1.1).
type BlockAffinityView struct {
	Resource
	Spec BlockAffinityViewSpec `json:"spec"`
}

// BlockAffinityViewSpec is the specification (spec/calico.md §1.2, §2.3).
type BlockAffinityViewSpec struct {
	State   AffinityState `json:"state"`            // "confirmed", "pending" or "pendingDeletion"
	Node    string        `json:"node"`             // who holds the block
	Type    string        `json:"type,omitempty"`   // "host" (also if empty) or "virtual"
	CIDR    string        `json:"cidr"`             // of the block
	Deleted StoredBool    `json:"deleted,omitzero"` // it is on its way out
}

// StoredBool is a boolean that users see as such and that storage keeps as the
// text "true" or "false" (spec/calico.md §1.2). Both forms are read.
type StoredBool struct {
	On     bool
	AsText bool // written as text, the storage form
}

// IsZero reports whether the field is left out: false, in the users' form.
func (b StoredBool) IsZero() bool { return b == StoredBool{} }

// MarshalJSON writes the boolean or its text.
func (b StoredBool) MarshalJSON() ([]byte, error) {
	text := boolText(b.On)
	if b.AsText {
		text = `"` + text + `"`
	}
	return []byte(text), nil
}

// UnmarshalJSON reads either form.
func (b *StoredBool) UnmarshalJSON(data []byte) error {
	text := bytes.Trim(data, `"`)
	asText := len(text) != len(data)
	switch string(text) {
	case "true":
		*b = StoredBool{On: true, AsText: asText}
	case "false":
		*b = StoredBool{AsText: asText}
	default:
		return errors.New("must be true or false")
	}
	return nil
}

// Default fills the head and the users' form of deleted.
func (b *BlockAffinityView) Default() {
	b.setType("BlockAffinity")
	b.Spec.Deleted.AsText = false
	b.Spec.CIDR = canonicalCIDR(b.Spec.CIDR)
}

// Validate checks the fields.
func (b *BlockAffinityView) Validate() error {
	c := newChecker(&b.Resource, "BlockAffinity", false)
	s := &b.Spec
	if s.State == "" {
		c.add("Spec.State", "", "must be one of confirmed, pending, pendingDeletion")
	}
	c.oneOf("Spec.State", string(s.State), string(AffinityConfirmed), string(AffinityPending), string(AffinityPendingDeletion))
	c.oneOf("Spec.Type", s.Type, "host", "virtual")
	c.name("Spec.Node", s.Node)
	c.cidr("Spec.CIDR", s.CIDR)
	return c.Err()
}

// BlockAffinityName is the name of the view of a claim: the owner and the CIDR
// with '-' for '.', ':' and '/'. What would be longer than a name may be is cut
// and made unique by a hash (spec/calico.md §2.3).
func BlockAffinityName(owner string, cidr netip.Prefix) string {
	block := strings.NewReplacer(".", "-", ":", "-", "/", "-").Replace(cidr.String())
	name := owner + "-" + block
	if len(name) < maxNameLength {
		return name
	}
	const hashed = 11
	sum := sha256.Sum256([]byte(owner + "+" + block))
	keep := max(0, min(len(owner), maxNameLength-1-len(block)-hashed-2))
	return owner[:keep] + "-" + block + "-" + hex.EncodeToString(sum[:])[:hashed]
}

func blockAffinityKind() Kind {
	spec := func(f func(s *BlockAffinityViewSpec) string) func(Object, PrintContext) string {
		return func(o Object, _ PrintContext) string { return f(&o.(*BlockAffinityView).Spec) }
	}
	return Kind{
		Name: "BlockAffinity", Plural: "blockaffinities", Aliases: []string{"affinity", "affinities"},
		New: func() Object { return &BlockAffinityView{} },
		Columns: []Column{
			nameColumn(),
			{Header: "CIDR", Narrow: true, Wide: true, Value: spec(func(s *BlockAffinityViewSpec) string { return s.CIDR })},
			{Header: "NODE", Narrow: true, Wide: true, Value: spec(func(s *BlockAffinityViewSpec) string { return s.Node })},
			{Header: "STATE", Wide: true, Value: spec(func(s *BlockAffinityViewSpec) string { return string(s.State) })},
		},
	}
}
