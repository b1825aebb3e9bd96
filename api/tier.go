package api

import "strconv"

// Tier is a step of policy evaluation: its policies decide together, tiers are
// asked in ascending order.
type Tier struct {
	Resource
	Spec   TierSpec   `json:"spec"`
	Status TierStatus `json:"status"` // always written, if only as {}
}

// TierSpec is the specification (spec/calico.md §1.3, §1.4, §5.1).
type TierSpec struct {
	Order         *float64 `json:"order,omitempty"`         // nil counts as 1000000
	DefaultAction *Action  `json:"defaultAction,omitempty"` // "Deny" (also when nil) or "Pass": what happens to packets that no rule of the tier decides
}

// TierStatus is what controllers report about a tier.
type TierStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
}

// The names of the tiers that every cluster has (spec/calico.md §1.3).
const (
	TierDefault      = "default"
	TierKubeAdmin    = "kube-admin"
	TierKubeBaseline = "kube-baseline"
)

// BuiltInTiers makes the three tiers that every cluster has, in the order they
// are asked in.
func BuiltInTiers() []*Tier {
	tiers := []*Tier{builtInTier(TierKubeAdmin), builtInTier(TierDefault), builtInTier(TierKubeBaseline)}
	for _, t := range tiers {
		t.Default()
	}
	return tiers
}

// IsBuiltInTier reports whether name is one of the three.
func IsBuiltInTier(name string) bool { return builtInTier(name) != nil }

// builtInTier is the named tier as far as it is fixed, or nil.
func builtInTier(name string) *Tier {
	order, action := 0.0, ActionPass
	switch name {
	case TierDefault:
		order, action = 1e6, ActionDeny
	case TierKubeAdmin:
		order = 1e3
	case TierKubeBaseline:
		order = 1e7
	default:
		return nil
	}
	t := &Tier{Spec: TierSpec{Order: &order, DefaultAction: &action}}
	t.Name = name
	return t
}

// Default fills the action, which is Deny, and what is fixed of a built-in tier.
func (t *Tier) Default() {
	t.setType("Tier")
	fixed := builtInTier(t.Name)
	if fixed != nil && t.Spec.Order == nil {
		t.Spec.Order = fixed.Spec.Order
	}
	if t.Spec.DefaultAction != nil {
		return
	}
	action := ActionDeny
	if fixed != nil {
		action = *fixed.Spec.DefaultAction
	}
	t.Spec.DefaultAction = &action
}

// Validate checks the action and that a built-in tier stays what it is.
func (t *Tier) Validate() error {
	c := newChecker(&t.Resource, "Tier", false)
	action := ""
	if t.Spec.DefaultAction != nil {
		action = string(*t.Spec.DefaultAction)
		if action == "" {
			c.add("Spec.DefaultAction", "", "must be one of Deny, Pass")
		}
		c.oneOf("Spec.DefaultAction", action, string(ActionDeny), string(ActionPass))
	}
	fixed := builtInTier(t.Name)
	if fixed == nil {
		return c.Err()
	}
	if t.Spec.Order != nil && *t.Spec.Order != *fixed.Spec.Order {
		c.add("Spec.Order", orderText(t.Spec.Order), "the order of the tier "+t.Name+" is fixed: "+strconv.FormatFloat(*fixed.Spec.Order, 'f', -1, 64))
	}
	if want := string(*fixed.Spec.DefaultAction); action != "" && action != want {
		c.add("Spec.DefaultAction", clip(action), "the default action of the tier "+t.Name+" is fixed: "+want)
	}
	return c.Err()
}

func tierKind() Kind {
	return Kind{
		Name: "Tier", Plural: "tiers",
		New: func() Object { return &Tier{} },
		Columns: []Column{
			nameColumn(),
			{Header: "ORDER", Narrow: true, Wide: true, Value: func(o Object, _ PrintContext) string {
				return orderText(o.(*Tier).Spec.Order)
			}},
		},
	}
}
