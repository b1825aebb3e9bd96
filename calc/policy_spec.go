package calc

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/convert"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/selector"
)

// Labels that an endpoint has besides its own (spec/calico.md §1.5, §2.5, §2.6).
const (
	labelServiceAccount  = "projectcalico.org/serviceaccount"
	namespacePrefix      = "pcns."
	serviceAccountPrefix = "pcsa."
)

// policySpec is a policy of any kind as far as it is the same for all endpoints:
// whom it selects, where it stands, and its rules as they were written.
type policySpec struct {
	id       policy.ID
	tier     string
	order    float64 // +Inf: after all others of the tier
	selector *selector.Selector
	staged   bool

	ingress, egress               bool // the directions that it applies to
	untracked, preDNAT, onForward bool // the host endpoints' hooks
	rules                         [2][]api.Rule
	broken                        string // why it cannot be enforced
}

// stands reports whether two versions of a policy stand at the same place of the
// same tiers, so that no list of policies changes when one takes the other's place.
func (s *policySpec) stands(o *policySpec) bool {
	return s != nil && o != nil && s.tier == o.tier && s.order == o.order && s.staged == o.staged &&
		s.ingress == o.ingress && s.egress == o.egress &&
		s.untracked == o.untracked && s.preDNAT == o.preDNAT && s.onForward == o.onForward
}

// fields are what the kinds of policy have in common, decoded.
type fields struct {
	Tier                   string           `json:"tier"`
	Order                  *float64         `json:"order"`
	Selector               string           `json:"selector"`
	NamespaceSelector      string           `json:"namespaceSelector"`
	ServiceAccountSelector string           `json:"serviceAccountSelector"`
	Types                  []api.PolicyType `json:"types"`
	DoNotTrack             bool             `json:"doNotTrack"`
	PreDNAT                bool             `json:"preDNAT"`
	ApplyOnForward         bool             `json:"applyOnForward"`
	StagedAction           api.StagedAction `json:"stagedAction"`
	Ingress                json.RawMessage  `json:"ingress"`
	Egress                 json.RawMessage  `json:"egress"`
}

// PolicyKinds are the kinds that the calculation compiles.
func policyKinds() []string {
	return []string{
		"NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy", "StagedKubernetesNetworkPolicy",
	}
}

// policyFrom reads a stored policy. It never fails: of one that cannot be read
// it keeps what can, and says in broken what cannot. nil stands for a staged
// policy that would set nothing.
//
// What cannot be enforced as it is written denies: the traffic of whom it
// selects in the directions it names, at its place. If even that cannot be read
// it selects, of a namespaced policy, the workloads of its namespace, and of a
// global one all workloads. Hosts are left out, so that it can be repaired.
func policyFrom(e datastore.Entry) *policySpec {
	s := &policySpec{
		id:    policy.ID{Kind: e.Key.Kind, Namespace: e.Key.Namespace, Name: e.Key.Name},
		order: math.Inf(1), tier: api.TierDefault, ingress: true, egress: true,
		staged: strings.HasPrefix(e.Key.Kind, "Staged"),
	}
	kind, err := api.LookupKind(e.Key.Kind)
	if err != nil {
		s.fail("%v", err)
		return s
	}
	o, err := datastore.DecodeObject(kind, e)
	if err != nil {
		var mistyped *json.UnmarshalTypeError
		if errors.As(err, &mistyped) {
			s.fail("%s: a %s cannot stand here", mistyped.Field, mistyped.Value)
		}
		s.fail("%s", strings.TrimPrefix(err.Error(), "decode "+e.Key.String()+": "))
		s.fill(looseFields(e.Value))
		return s
	}
	s.id.Name = o.Meta().Name
	if k, ok := o.(*api.StagedKubernetesNetworkPolicy); ok {
		p, err := convert.Staged(k)
		if err != nil {
			s.fail("%v", err)
			s.selector = unknownSelector(s.id)
			return s
		}
		o, e.Value = p, nil
	}
	f, rules := fieldsOf(o)
	if f.StagedAction != "" && f.StagedAction != api.StagedSet {
		return nil
	}
	s.rules = rules
	s.fill(f, true)
	s.strict(e.Value)
	return s
}

// fail keeps the first reason why the policy cannot be enforced.
func (s *policySpec) fail(format string, args ...any) {
	if s.broken == "" {
		s.broken = fmt.Sprintf(format, args...)
	}
}

// fieldsOf takes a decoded policy apart; the rules come decoded.
func fieldsOf(o api.Object) (fields, [2][]api.Rule) {
	switch p := o.(type) {
	case *api.NetworkPolicy:
		s := &p.Spec
		return fields{
			Tier: s.Tier, Order: s.Order, Selector: s.Selector, ServiceAccountSelector: s.ServiceAccountSelector, Types: s.Types,
		}, [2][]api.Rule{s.Ingress, s.Egress}
	case *api.StagedNetworkPolicy:
		s := &p.Spec
		return fields{
			Tier: s.Tier, Order: s.Order, Selector: s.Selector, ServiceAccountSelector: s.ServiceAccountSelector, Types: s.Types,
			StagedAction: s.StagedAction,
		}, [2][]api.Rule{s.Ingress, s.Egress}
	case *api.GlobalNetworkPolicy:
		s := &p.Spec
		return fields{
			Tier: s.Tier, Order: s.Order, Selector: s.Selector, ServiceAccountSelector: s.ServiceAccountSelector, Types: s.Types,
			NamespaceSelector: s.NamespaceSelector, DoNotTrack: s.DoNotTrack, PreDNAT: s.PreDNAT, ApplyOnForward: s.ApplyOnForward,
		}, [2][]api.Rule{s.Ingress, s.Egress}
	case *api.StagedGlobalNetworkPolicy:
		s := &p.Spec
		return fields{
			Tier: s.Tier, Order: s.Order, Selector: s.Selector, ServiceAccountSelector: s.ServiceAccountSelector, Types: s.Types,
			NamespaceSelector: s.NamespaceSelector, DoNotTrack: s.DoNotTrack, PreDNAT: s.PreDNAT, ApplyOnForward: s.ApplyOnForward,
			StagedAction: s.StagedAction,
		}, [2][]api.Rule{s.Ingress, s.Egress}
	}
	return fields{}, [2][]api.Rule{}
}

// looseFields reads each field of a policy on its own; known is false where the
// selectors could not be read.
func looseFields(value []byte) (f fields, known bool) {
	var doc struct{ Spec map[string]json.RawMessage }
	if json.Unmarshal(value, &doc) != nil || doc.Spec == nil {
		return f, false
	}
	known = true
	for name, into := range map[string]any{ // each is decoded as its own type
		"tier": &f.Tier, "order": &f.Order, "types": &f.Types, "ingress": &f.Ingress, "egress": &f.Egress,
		"doNotTrack": &f.DoNotTrack, "preDNAT": &f.PreDNAT, "applyOnForward": &f.ApplyOnForward,
		"selector": &f.Selector, "namespaceSelector": &f.NamespaceSelector, "serviceAccountSelector": &f.ServiceAccountSelector,
	} {
		raw, there := doc.Spec[name]
		if there && json.Unmarshal(raw, into) != nil {
			known = known && !strings.HasSuffix(strings.ToLower(name), "selector")
			if name == "types" {
				f.Types = []api.PolicyType{api.PolicyIngress, api.PolicyEgress}
			}
		}
	}
	return f, known
}

// fill takes over whom the policy selects and where it stands.
func (s *policySpec) fill(f fields, known bool) {
	s.tier = cmp.Or(f.Tier, api.TierDefault)
	if f.Order != nil {
		s.order = *f.Order
	}
	s.untracked, s.preDNAT, s.onForward = f.DoNotTrack, f.PreDNAT, f.ApplyOnForward
	if s.untracked && s.preDNAT {
		s.fail("doNotTrack and preDNAT exclude each other")
	}
	s.direct(f)
	if !known {
		s.selector = unknownSelector(s.id)
		return
	}
	var err error
	if s.selector, err = endpointSelector(s.id, f); err != nil {
		s.fail("%v", err)
		s.selector = unknownSelector(s.id)
	}
}

// direct takes the directions from types or, without them, from the rules
// (spec/calico.md §5.1).
func (s *policySpec) direct(f fields) {
	has := func(d policy.Direction, raw json.RawMessage) bool { return len(s.rules[d]) > 0 || len(raw) > len("[]") }
	switch egress := has(policy.Egress, f.Egress); {
	case len(f.Types) > 0:
		s.ingress, s.egress = slices.Contains(f.Types, api.PolicyIngress), slices.Contains(f.Types, api.PolicyEgress)
	case !egress:
		s.ingress, s.egress = true, false
	default:
		s.ingress, s.egress = has(policy.Ingress, f.Ingress), true
	}
	for _, t := range f.Types {
		if t != api.PolicyIngress && t != api.PolicyEgress {
			s.fail("types: %q is neither Ingress nor Egress", t)
			s.ingress, s.egress = true, true
		}
	}
	if s.preDNAT && s.egress {
		s.fail("a preDNAT policy applies to Ingress only")
	}
}

// endpointSelector is whom a policy applies to, as a selector over the labels of
// endpoints (spec/calico.md §5.1).
func endpointSelector(id policy.ID, f fields) (*selector.Selector, error) {
	own, err := parseSelector("selector", f.Selector)
	if err != nil {
		return nil, err
	}
	list := []*selector.Selector{own}
	if id.Namespace != "" {
		list = append(list, selector.Equal(api.LabelNamespace, id.Namespace))
	} else if f.NamespaceSelector != "" {
		ns, err := parseSelector("namespaceSelector", f.NamespaceSelector)
		if err != nil {
			return nil, err
		}
		list = append(list, ns.Inherited(namespacePrefix, api.LabelNamespace))
	}
	if f.ServiceAccountSelector != "" {
		sa, err := parseSelector("serviceAccountSelector", f.ServiceAccountSelector)
		if err != nil {
			return nil, err
		}
		list = append(list, sa.Inherited(serviceAccountPrefix, labelServiceAccount))
	}
	return selector.And(list...), nil
}

func parseSelector(field, text string) (*selector.Selector, error) {
	s, err := selector.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", field, err)
	}
	return s, nil
}

// unknownSelector selects whom a policy could at most have been about. Every
// workload has the label of its orchestrator, and no host has.
func unknownSelector(id policy.ID) *selector.Selector {
	if id.Namespace != "" {
		return selector.Equal(api.LabelNamespace, id.Namespace)
	}
	return selector.Has(api.LabelOrchestrator)
}

// strict looks for fields of rules that this build does not know. To ignore a
// criterion would make the rule match more than its author meant.
func (s *policySpec) strict(value []byte) {
	if value == nil {
		return
	}
	var doc struct{ Spec fields }
	if err := json.Unmarshal(value, &doc); err != nil {
		s.fail("%v", err)
		return
	}
	s.strictRules("ingress", doc.Spec.Ingress)
	s.strictRules("egress", doc.Spec.Egress)
}

func (s *policySpec) strictRules(list string, raw json.RawMessage) {
	if len(raw) == 0 {
		return
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	var rules []api.Rule
	if err := d.Decode(&rules); err != nil {
		s.fail("%s: %s", list, strings.TrimPrefix(err.Error(), "json: "))
	}
}
