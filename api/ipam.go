package api

// The IPAM objects keep Calico's v1 JSON (spec/calico.md §1.4); field names and
// their mixed casing are the contract.

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
	Affinity          *string           `json:"affinity"` // "host:<node>" or "virtual:<name>"; null when nobody owns it
	AffinityClaimTime *string           `json:"affinity_claim_time,omitempty"`
	Allocations       []*int            `json:"allocations"` // per ordinal: index into Attributes, or null
	Unallocated       []int             `json:"unallocated"` // FIFO of free ordinals
	Attributes        []IPAMAttribute   `json:"attributes"`
	SequenceNumber    uint64            `json:"sequenceNumber"`
	SequenceNumberFor map[string]uint64 `json:"sequenceNumberForAllocation"` // ordinal in decimal -> sequence at assignment
	Deleted           bool              `json:"deleted"`

	// Read from blocks of old releases, never written.
	HostAffinity   *string `json:"hostAffinity,omitempty"`
	StrictAffinity bool    `json:"strictAffinity,omitempty"`
}

// IPAMAttribute says whom an address belongs to. ReleasedAt is set, alone, on
// an ordinal that is cooling down.
type IPAMAttribute struct {
	HandleID   *string           `json:"handle_id,omitempty"`
	Secondary  map[string]string `json:"secondary,omitempty"`
	ReleasedAt *string           `json:"releasedAt,omitempty"`
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
}

// DefaultIPAMConfig is what holds when nothing is stored.
func DefaultIPAMConfig() IPAMConfig {
	return IPAMConfig{AutoAllocateBlocks: true}
}
