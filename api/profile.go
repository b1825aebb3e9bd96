package api

import "strings"

// Profile gives the endpoints that name it rules, for when no policy decides,
// and labels.
type Profile struct {
	Resource
	Spec ProfileSpec `json:"spec"`
}

// ProfileSpec is the specification (spec/calico.md §1.4).
type ProfileSpec struct {
	Ingress       []Rule            `json:"ingress,omitzero"`        // rules for packets to the endpoint
	Egress        []Rule            `json:"egress,omitzero"`         // rules for packets from the endpoint
	LabelsToApply map[string]string `json:"labelsToApply,omitempty"` // added to the endpoint's own
}

// Default fills the head and respells CIDRs in rules.
func (p *Profile) Default() {
	p.setType("Profile")
	defaultRules(p.Spec.Ingress)
	defaultRules(p.Spec.Egress)
}

// Validate checks the rules, which may not Pass, and the labels.
func (p *Profile) Validate() error {
	c := newChecker(&p.Resource, "Profile", false)
	c.rules("Spec.Ingress", p.Spec.Ingress, ruleContext{ingress: true, profile: true})
	c.rules("Spec.Egress", p.Spec.Egress, ruleContext{profile: true})
	c.labels("Spec.LabelsToApply", p.Spec.LabelsToApply)
	return c.Err()
}

func profileKind() Kind {
	return Kind{
		Name: "Profile", Plural: "profiles", Aliases: []string{"pro", "pros"},
		New: func() Object { return &Profile{} },
		Columns: []Column{
			nameColumn(),
			{Header: "LABELS", Wide: true, Value: func(o Object, _ PrintContext) string {
				return mapText(o.(*Profile).Spec.LabelsToApply)
			}},
		},
	}
}

// DefaultAllowProfile is the name of the profile that exists without being
// stored and allows everything (spec/calico.md §1.2).
const DefaultAllowProfile = "projectcalico-default-allow"

// NewDefaultAllowProfile makes that profile as a datastore would return it.
func NewDefaultAllowProfile() *Profile {
	p := &Profile{Spec: ProfileSpec{
		Ingress: []Rule{{Action: ActionAllow}},
		Egress:  []Rule{{Action: ActionAllow}},
	}}
	p.setType("Profile")
	p.Name, p.ResourceVersion = DefaultAllowProfile, "1"
	return p
}

func mapText(m map[string]string) string {
	parts := make([]string, 0, len(m))
	for _, k := range sortedKeys(m) {
		parts = append(parts, k+"="+m[k])
	}
	return strings.Join(parts, ",")
}
