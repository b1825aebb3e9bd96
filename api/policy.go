package api

import (
	"slices"
	"strconv"
	"strings"
)

// PolicyType is a direction that a policy applies to.
type PolicyType string

// The two directions, seen from the endpoint.
const (
	PolicyIngress PolicyType = "Ingress"
	PolicyEgress  PolicyType = "Egress"
)

// HintAssumeNeededOnEveryNode is the one performance hint of a policy: program
// it before an endpoint needs it.
const HintAssumeNeededOnEveryNode = "AssumeNeededOnEveryNode"

// LabelTier is the label that storage adds to every policy (spec/calico.md §1.2).
const LabelTier = "projectcalico.org/tier"

// StagedAction says what would become of the policy that a staged one stands for.
type StagedAction string

// The staged actions. The empty one counts as Set.
const (
	StagedSet    StagedAction = "Set"
	StagedDelete StagedAction = "Delete"
	StagedLearn  StagedAction = "Learn"
	StagedIgnore StagedAction = "Ignore"
)

// TierOf is the tier that a policy of one of the four kinds with a tier belongs
// to; ok is false for every other kind.
func TierOf(o Object) (tier string, ok bool) {
	switch p := o.(type) {
	case *NetworkPolicy:
		tier = p.Spec.Tier
	case *GlobalNetworkPolicy:
		tier = p.Spec.Tier
	case *StagedNetworkPolicy:
		tier = p.Spec.Tier
	case *StagedGlobalNetworkPolicy:
		tier = p.Spec.Tier
	default:
		return "", false
	}
	if tier == "" {
		tier = TierDefault
	}
	return tier, true
}

// TieredKinds names the kinds of which TierOf knows the tier.
func TieredKinds() []string {
	return []string{"GlobalNetworkPolicy", "NetworkPolicy", "StagedGlobalNetworkPolicy", "StagedNetworkPolicy"}
}

// policyFields are the fields that the four kinds with a tier have in common.
type policyFields struct {
	tier            *string
	types           *[]PolicyType
	ingress, egress []Rule
	selectors       []policySelector
	hints           []string
}

// policySelector is one selector of a policy, by its Go path.
type policySelector struct{ path, text string }

// defaultPolicy fills the tier, the label of the tier and the directions, which
// follow from the rules (spec/calico.md §5.1).
func (r *Resource) defaultPolicy(f policyFields) {
	if *f.tier == "" {
		*f.tier = TierDefault
	}
	labels := make(map[string]string, len(r.Labels)+1)
	for k, v := range r.Labels {
		labels[k] = v
	}
	if ValidName(*f.tier) {
		labels[LabelTier] = *f.tier
	}
	r.Labels = labels
	defaultRules(f.ingress)
	defaultRules(f.egress)
	if len(*f.types) > 0 {
		return
	}
	switch {
	case len(f.egress) == 0:
		*f.types = []PolicyType{PolicyIngress}
	case len(f.ingress) == 0:
		*f.types = []PolicyType{PolicyEgress}
	default:
		*f.types = []PolicyType{PolicyIngress, PolicyEgress}
	}
}

// policy checks what the four kinds have in common (spec/calico.md §5.2, §5.2a).
func (c *checker) policy(f policyFields) {
	if *f.tier != "" {
		c.name("Spec.Tier", *f.tier)
	}
	for _, s := range f.selectors {
		c.selector(s.path, s.text, false)
	}
	c.policyTypes("Spec.Types", *f.types)
	c.rules("Spec.Ingress", f.ingress, ruleContext{ingress: true})
	c.rules("Spec.Egress", f.egress, ruleContext{})
	for i, h := range f.hints {
		path := index("Spec.PerformanceHints", i)
		if h == "" {
			c.add(path, "", "must be "+HintAssumeNeededOnEveryNode)
		}
		c.oneOf(path, h, HintAssumeNeededOnEveryNode)
		if slices.Contains(f.hints[:i], h) {
			c.add(path, clip(h), "given twice")
		}
	}
}

func (c *checker) policyTypes(path string, types []PolicyType) {
	for i, t := range types {
		switch {
		case t != PolicyIngress && t != PolicyEgress:
			c.add(index(path, i), clip(string(t)), "must be one of Ingress, Egress")
		case slices.Contains(types[:i], t):
			c.add(index(path, i), string(t), "given twice")
		}
	}
}

// hostHooks checks the combinations of the fields that move a global policy to
// another hook (spec/calico.md §5.2a).
func (c *checker) hostHooks(doNotTrack, preDNAT, applyOnForward bool, f policyFields) {
	for _, rule := range []struct {
		wrong               bool
		path, value, reason string
	}{
		{doNotTrack && preDNAT, "Spec.PreDNAT", "true", "doNotTrack and preDNAT exclude each other"},
		{doNotTrack && !applyOnForward, "Spec.ApplyOnForward", "false", "must be true with doNotTrack"},
		{preDNAT && !applyOnForward, "Spec.ApplyOnForward", "false", "must be true with preDNAT"},
		{preDNAT && len(f.egress) > 0, "Spec.Egress", strconv.Itoa(len(f.egress)) + " rules", "a preDNAT policy has ingress rules only"},
		{preDNAT && slices.Contains(*f.types, PolicyEgress), "Spec.Types", "Egress", "a preDNAT policy applies to Ingress only"},
	} {
		if rule.wrong {
			c.add(rule.path, rule.value, rule.reason)
		}
	}
}

// stagedAction checks the action; a policy staged for deletion says nothing
// else, which empty tells.
func (c *checker) stagedAction(a StagedAction, empty bool) {
	c.oneOf("Spec.StagedAction", string(a), string(StagedSet), string(StagedDelete), string(StagedLearn), string(StagedIgnore))
	if a == StagedDelete && !empty {
		c.add("Spec.StagedAction", string(a), "with Delete only the tier may be given")
	}
}

// orderText prints an order as calicoctl does: <nil>, 2000, 1e+06.
func orderText(order *float64) string {
	if order == nil {
		return "<nil>"
	}
	return strconv.FormatFloat(*order, 'g', -1, 64)
}

// policyRow is what the table of a policy shows.
type policyRow struct {
	tier     string
	order    *float64
	selector string
}

func policyColumns(row func(o Object) policyRow) []Column {
	return []Column{
		nameColumn(),
		{Header: "TIER", Narrow: true, Wide: true, Value: func(o Object, _ PrintContext) string { return row(o).tier }},
		{Header: "ORDER", Wide: true, Value: func(o Object, _ PrintContext) string { return orderText(row(o).order) }},
		{Header: "SELECTOR", Wide: true, Value: func(o Object, _ PrintContext) string { return row(o).selector }},
	}
}

// joinClipped joins a list with commas and cuts it at 80 characters, as
// calicoctl's tables do.
func joinClipped(list []string) string {
	const limit = 80
	s := strings.Join(list, ",")
	if len(s) > limit {
		return s[:limit-3] + "..."
	}
	return s
}
