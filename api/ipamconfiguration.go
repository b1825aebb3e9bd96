package api

import "strconv"

// IPAMConfiguration (name "default") is the cluster's IPAM configuration as a
// resource.
type IPAMConfiguration struct {
	Resource
	Spec IPAMConfigurationSpec `json:"spec"`
}

// IPAMConfigurationSpec is the specification (spec/calico.md §1.1, §3).
type IPAMConfigurationSpec struct {
	StrictAffinity     bool `json:"strictAffinity"`              // a host takes addresses from its own blocks only
	MaxBlocksPerHost   int  `json:"maxBlocksPerHost,omitempty"`  // 0: 20; above 0 needs strictAffinity
	AutoAllocateBlocks bool `json:"autoAllocateBlocks"`          // a host takes a new block when its own are full
	IPCooldownSeconds  int  `json:"ipCooldownSeconds,omitempty"` // how long a released address rests
}

// Default fills the head.
func (i *IPAMConfiguration) Default() { i.setType("IPAMConfiguration") }

// Validate checks the name and the rules of the configuration itself.
func (i *IPAMConfiguration) Validate() error {
	c := newChecker(&i.Resource, "IPAMConfiguration", false)
	if i.Name != "default" && ValidName(i.Name) {
		c.add("Metadata.Name", i.Name, "the one IPAMConfiguration is named default")
	}
	s := &i.Spec
	if !s.StrictAffinity && !s.AutoAllocateBlocks {
		c.add("Spec.AutoAllocateBlocks", "false", "cannot disable both strictAffinity and autoAllocateBlocks")
	}
	c.within("Spec.MaxBlocksPerHost", s.MaxBlocksPerHost, 0, 1_000_000)
	if s.MaxBlocksPerHost > 0 && !s.StrictAffinity {
		c.add("Spec.MaxBlocksPerHost", strconv.Itoa(s.MaxBlocksPerHost), "a limit above 0 requires strictAffinity")
	}
	if s.IPCooldownSeconds < 0 {
		c.add("Spec.IPCooldownSeconds", strconv.Itoa(s.IPCooldownSeconds), "must be 0 (no cool-down) or more")
	}
	return c.Err()
}

func ipamConfigurationKind() Kind {
	spec := func(f func(s *IPAMConfigurationSpec) string) func(Object, PrintContext) string {
		return func(o Object, _ PrintContext) string { return f(&o.(*IPAMConfiguration).Spec) }
	}
	return Kind{
		Name: "IPAMConfiguration", Plural: "ipamconfigurations", Aliases: []string{"ipamconfig", "ipamconfigs"},
		New: func() Object { return &IPAMConfiguration{} },
		Columns: []Column{
			nameColumn(),
			{Header: "STRICTAFFINITY", Narrow: true, Wide: true, Value: spec(func(s *IPAMConfigurationSpec) string { return boolText(s.StrictAffinity) })},
			{Header: "AUTOALLOCATEBLOCKS", Narrow: true, Wide: true, Value: spec(func(s *IPAMConfigurationSpec) string { return boolText(s.AutoAllocateBlocks) })},
			{Header: "MAXBLOCKSPERHOST", Wide: true, Value: spec(func(s *IPAMConfigurationSpec) string { return strconv.Itoa(s.MaxBlocksPerHost) })},
		},
	}
}
