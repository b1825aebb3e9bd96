package api

import (
	"encoding/json"
	"fmt"
)

// The IPAM objects keep Calico's v1 JSON (spec/calico.md §1.4); field names and
// their mixed casing are the contract. Members that this release does not know
// are carried along unharmed, because Calico may write the same objects.

// AffinityState is the state of a host's claim on a block.
type AffinityState string

// The states of the two-phase claim (spec/calico.md §3). The empty state is
// the legacy form and counts as confirmed.
const (
	AffinityPending         AffinityState = "pending"
	AffinityConfirmed       AffinityState = "confirmed"
	AffinityPendingDeletion AffinityState = "pendingDeletion"
)

// IPAMBlock is one allocation block, stored at
// /calico/ipam/v2/assignment/ipv{4,6}/block/<cidr>.
type IPAMBlock struct {
	CIDR              string            `json:"cidr"`
	Affinity          *string           `json:"affinity"`                      // "host:<node>" or "virtual:<name>"; null when nobody owns it
	AffinityClaimTime *string           `json:"affinity_claim_time,omitempty"` // RFC 3339, whole seconds
	Allocations       []*int            `json:"allocations"`                   // per ordinal: index into Attributes, or null
	Unallocated       []int             `json:"unallocated"`                   // FIFO of free ordinals
	Attributes        []IPAMAttribute   `json:"attributes"`
	SequenceNumber    uint64            `json:"sequenceNumber"`
	SequenceNumberFor map[string]uint64 `json:"sequenceNumberForAllocation"` // ordinal in decimal -> sequence at assignment
	Deleted           bool              `json:"deleted"`

	// Read from blocks of old releases, never written.
	HostAffinity   *string `json:"hostAffinity,omitempty"`
	StrictAffinity bool    `json:"strictAffinity,omitempty"`

	Extra map[string]json.RawMessage `json:"-"` // members unknown here
}

// IPAMAttribute says whom an address belongs to. ReleasedAt is set, alone, on
// an ordinal that is cooling down; it is RFC 3339 text.
type IPAMAttribute struct {
	HandleID   *string           `json:"handle_id,omitempty"`
	Secondary  map[string]string `json:"secondary,omitempty"`
	ReleasedAt *string           `json:"releasedAt,omitempty"`

	Extra map[string]json.RawMessage `json:"-"` // members unknown here
}

// BlockAffinity is a host's claim on a block, stored at
// /calico/ipam/v2/host/<node>/ipv{4,6}/block/<cidr>. An empty stored value is
// the legacy form of a confirmed one.
type BlockAffinity struct {
	State   AffinityState `json:"state"`
	Deleted bool          `json:"deleted"`
}

// IPAMHandle counts, per block CIDR, the addresses that one owner holds.
type IPAMHandle struct {
	Block   map[string]int `json:"block"`
	Deleted bool           `json:"deleted"`
}

// IPAMConfig is the cluster's IPAM configuration at /calico/ipam/v2/config.
type IPAMConfig struct {
	StrictAffinity     bool `json:"strict_affinity"`
	AutoAllocateBlocks bool `json:"auto_allocate_blocks"`
	MaxBlocksPerHost   int  `json:"maxBlocksPerHost"`
	IPCooldownSeconds  int  `json:"ipCooldownSeconds"`

	Extra map[string]json.RawMessage `json:"-"` // members unknown here
}

// DefaultIPAMConfig is what holds when nothing is stored.
func DefaultIPAMConfig() IPAMConfig {
	return IPAMConfig{AutoAllocateBlocks: true}
}

// Validate applies the rules of spec/calico.md §3 on what may be configured.
func (c IPAMConfig) Validate() error {
	var e FieldErrors
	if !c.StrictAffinity && !c.AutoAllocateBlocks {
		e.Add("IPAMConfig.AutoAllocateBlocks", "false", "cannot disable both strictAffinity and autoAllocateBlocks")
	}
	if c.MaxBlocksPerHost < 0 {
		e.Add("IPAMConfig.MaxBlocksPerHost", fmt.Sprint(c.MaxBlocksPerHost), "must be 0 (no limit set) or more")
	}
	if c.MaxBlocksPerHost > 0 && !c.StrictAffinity {
		e.Add("IPAMConfig.MaxBlocksPerHost", fmt.Sprint(c.MaxBlocksPerHost), "a limit above 0 requires strictAffinity")
	}
	if c.IPCooldownSeconds < 0 {
		e.Add("IPAMConfig.IPCooldownSeconds", fmt.Sprint(c.IPCooldownSeconds), "must be 0 (no cool-down) or more")
	}
	return e.Err()
}

// MarshalJSON writes the known members in their order, then the unknown ones.
func (b IPAMBlock) MarshalJSON() ([]byte, error) {
	type plain IPAMBlock
	return marshalWithExtra(plain(b), b.Extra)
}

// UnmarshalJSON keeps unknown members in Extra.
func (b *IPAMBlock) UnmarshalJSON(data []byte) error {
	type plain IPAMBlock
	if err := json.Unmarshal(data, (*plain)(b)); err != nil {
		return err
	}
	var err error
	b.Extra, err = unknownMembers(data, "cidr", "affinity", "affinity_claim_time", "allocations", "unallocated", "attributes",
		"sequenceNumber", "sequenceNumberForAllocation", "deleted", "hostAffinity", "strictAffinity")
	return err
}

// MarshalJSON writes the known members in their order, then the unknown ones.
func (a IPAMAttribute) MarshalJSON() ([]byte, error) {
	type plain IPAMAttribute
	return marshalWithExtra(plain(a), a.Extra)
}

// UnmarshalJSON keeps unknown members in Extra.
func (a *IPAMAttribute) UnmarshalJSON(data []byte) error {
	type plain IPAMAttribute
	if err := json.Unmarshal(data, (*plain)(a)); err != nil {
		return err
	}
	var err error
	a.Extra, err = unknownMembers(data, "handle_id", "secondary", "releasedAt")
	return err
}

// MarshalJSON writes the known members in their order, then the unknown ones.
func (c IPAMConfig) MarshalJSON() ([]byte, error) {
	type plain IPAMConfig
	return marshalWithExtra(plain(c), c.Extra)
}

// UnmarshalJSON keeps unknown members in Extra.
func (c *IPAMConfig) UnmarshalJSON(data []byte) error {
	type plain IPAMConfig
	if err := json.Unmarshal(data, (*plain)(c)); err != nil {
		return err
	}
	var err error
	c.Extra, err = unknownMembers(data, "strict_affinity", "auto_allocate_blocks", "maxBlocksPerHost", "ipCooldownSeconds")
	return err
}

// marshalWithExtra writes v, a struct, and appends the members of extra.
func marshalWithExtra[T any](v T, extra map[string]json.RawMessage) ([]byte, error) {
	head, err := json.Marshal(v)
	if err != nil || len(extra) == 0 {
		return head, err
	}
	tail, err := json.Marshal(extra)
	if err != nil {
		return nil, err
	}
	if len(head) == len("{}") {
		return tail, nil
	}
	return append(append(head[:len(head)-1], ','), tail[1:]...), nil
}

// unknownMembers returns the members of a JSON object that known does not
// name, or nil.
func unknownMembers(data []byte, known ...string) (map[string]json.RawMessage, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, err
	}
	for _, k := range known {
		delete(all, k)
	}
	if len(all) == 0 {
		return nil, nil
	}
	return all, nil
}
