package api

// ClusterInformation (name "default") identifies the cluster and says whether
// its datastore may be used.
type ClusterInformation struct {
	Resource
	Spec ClusterInformationSpec `json:"spec"`
}

// ClusterInformationSpec is the specification (spec/calico.md §1.3).
type ClusterInformationSpec struct {
	ClusterGUID    string `json:"clusterGUID,omitempty"`    // 32 hex digits
	ClusterType    string `json:"clusterType,omitempty"`    // comma-separated list
	CalicoVersion  string `json:"calicoVersion,omitempty"`  // of who wrote it first
	DatastoreReady *bool  `json:"datastoreReady,omitempty"` // false: locked for a migration
	Variant        string `json:"variant,omitempty"`        // "Calico"
}

// Default fills the head.
func (c *ClusterInformation) Default() { c.setType("ClusterInformation") }

// Validate checks the head: there is one ClusterInformation, "default".
func (c *ClusterInformation) Validate() error {
	k := newChecker(&c.Resource, "ClusterInformation", false)
	if c.Name != "default" && ValidName(c.Name) {
		k.add("Metadata.Name", c.Name, "the one ClusterInformation is named default")
	}
	return k.Err()
}

func clusterInformationKind() Kind {
	spec := func(f func(s *ClusterInformationSpec) string) func(Object, PrintContext) string {
		return func(o Object, _ PrintContext) string { return f(&o.(*ClusterInformation).Spec) }
	}
	return Kind{
		Name: "ClusterInformation", Plural: "clusterinformations", Aliases: []string{"clusterinfo", "clusterinfos"},
		New: func() Object { return &ClusterInformation{} },
		Columns: []Column{
			nameColumn(),
			{Header: "CLUSTERGUID", Narrow: true, Wide: true, Value: spec(func(s *ClusterInformationSpec) string { return s.ClusterGUID })},
			{Header: "CLUSTERTYPE", Narrow: true, Wide: true, Value: spec(func(s *ClusterInformationSpec) string { return s.ClusterType })},
			{Header: "CALICOVERSION", Narrow: true, Wide: true, Value: spec(func(s *ClusterInformationSpec) string { return s.CalicoVersion })},
			{Header: "DATASTOREREADY", Narrow: true, Wide: true, Value: spec(func(s *ClusterInformationSpec) string {
				return boolText(s.DatastoreReady != nil && *s.DatastoreReady)
			})},
		},
	}
}
