package convert

import (
	"cmp"
	"encoding/json"
	"slices"
	"strconv"

	"github.com/manekinet/maneki/api"
)

// networkPolicyPrefix is before the name of a converted NetworkPolicy, as
// Calico's policy controller writes it to etcd: one that somebody wrote as a
// Calico policy of the same name is another policy.
const networkPolicyPrefix = "knp.default."

// networkPolicyOrder is the order of every converted NetworkPolicy.
const networkPolicyOrder = 1000

// networkPolicy is networking.k8s.io/v1 NetworkPolicy.
type networkPolicy struct {
	Kind       string            `json:"kind"`
	APIVersion string            `json:"apiVersion"`
	Metadata   metadata          `json:"metadata"`
	Spec       networkPolicySpec `json:"spec"`
	Status     json.RawMessage   `json:"status"`
}

type networkPolicySpec struct {
	PodSelector api.LabelSelector           `json:"podSelector"`
	Ingress     []api.KubernetesIngressRule `json:"ingress"`
	Egress      []api.KubernetesEgressRule  `json:"egress"`
	PolicyTypes []api.PolicyType            `json:"policyTypes"`
}

func (opts Options) networkPolicy(doc []byte) (api.Object, error) {
	const kind = "NetworkPolicy"
	in, err := api.DecodeForeign[networkPolicy](doc, kind)
	if err != nil {
		return nil, err
	}
	var e api.FieldErrors
	in.Metadata.validate(&e, kind, true)
	in.Spec.validate(&e, kind+".Spec")
	if err := e.Err(); err != nil {
		return nil, err
	}
	order := float64(networkPolicyOrder)
	p := &api.NetworkPolicy{Spec: api.NetworkPolicySpec{
		Tier: api.TierDefault, Order: &order, Selector: opts.podSelector(&in.Spec.PodSelector), Types: in.Spec.types(),
	}}
	p.Name, p.UID = networkPolicyPrefix+in.Metadata.Name, in.Metadata.uid()
	p.Namespace = cmp.Or(in.Metadata.Namespace, opts.Namespace)
	for _, r := range in.Spec.Ingress {
		p.Spec.Ingress = append(p.Spec.Ingress, opts.rules(r.Ports, r.From, true)...)
	}
	for _, r := range in.Spec.Egress {
		p.Spec.Egress = append(p.Spec.Egress, opts.rules(r.Ports, r.To, false)...)
	}
	return p, nil
}

func (s *networkPolicySpec) validate(e *api.FieldErrors, path string) {
	s.PodSelector.Validate(e, path+".PodSelector")
	for i, r := range s.Ingress {
		at := index(path+".Ingress", i)
		api.ValidateKubernetesRule(e, at, r.Ports, at+".From", r.From)
	}
	for i, r := range s.Egress {
		at := index(path+".Egress", i)
		api.ValidateKubernetesRule(e, at, r.Ports, at+".To", r.To)
	}
	for i, t := range s.PolicyTypes {
		switch {
		case t != api.PolicyIngress && t != api.PolicyEgress:
			e.Add(index(path+".PolicyTypes", i), string(t), "must be one of Ingress, Egress")
		case slices.Contains(s.PolicyTypes[:i], t):
			e.Add(index(path+".PolicyTypes", i), string(t), "given twice")
		}
	}
}

// types are the directions given, or those that Kubernetes' API server would
// have filled in before Calico saw the policy: Ingress, and Egress if there are
// such rules.
func (s *networkPolicySpec) types() []api.PolicyType {
	if len(s.PolicyTypes) > 0 {
		return s.PolicyTypes
	}
	if len(s.Egress) > 0 {
		return []api.PolicyType{api.PolicyIngress, api.PolicyEgress}
	}
	return []api.PolicyType{api.PolicyIngress}
}

// rules makes one rule for each protocol and peer.
func (opts Options) rules(ports []api.KubernetesPort, peers []api.KubernetesPeer, ingress bool) []api.Rule {
	ends := []api.EntityRule{{}}
	if len(peers) > 0 {
		ends = ends[:0]
		for _, p := range peers {
			ends = append(ends, opts.peer(p))
		}
	}
	return combine(api.Rule{Action: api.ActionAllow}, kubernetesPorts(ports).matches(), ends, ingress)
}

// combine repeats a rule for each protocol and each peer, which is the source of
// ingress and the destination of egress.
func combine(rule api.Rule, matches []protocolMatch, peers []api.EntityRule, ingress bool) []api.Rule {
	var rules []api.Rule
	for _, m := range matches {
		for _, peer := range peers {
			r := rule
			r.Protocol = m.protocol
			if ingress {
				r.Source = peer
			} else {
				r.Destination = peer
			}
			r.Destination.Ports = m.ports
			rules = append(rules, r)
		}
	}
	return rules
}

func (opts Options) peer(p api.KubernetesPeer) api.EntityRule {
	if b := p.IPBlock; b != nil {
		return api.EntityRule{Nets: []string{b.CIDR}, NotNets: slices.Clone(b.Except)}
	}
	return api.EntityRule{Selector: opts.podSelector(p.PodSelector), NamespaceSelector: namespaceSelector(p.NamespaceSelector)}
}

// kubernetesPorts collects the ports by protocol. A port that says nothing
// stands for every protocol; one without a number or name for its protocol.
func kubernetesPorts(ports []api.KubernetesPort) *protocols {
	all := newProtocols()
	for _, p := range ports {
		if p.Protocol == nil && p.Port == nil {
			all.any = true
			continue
		}
		protocol := "TCP"
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		set := all.of(protocol)
		switch {
		case p.Port == nil:
			set.all = true
		case !p.Port.IsInt:
			set.names = append(set.names, p.Port.Text)
		case p.EndPort != nil:
			set.ranges = append(set.ranges, portRange{p.Port.Int, *p.EndPort})
		default:
			set.ranges = append(set.ranges, portRange{p.Port.Int, p.Port.Int})
		}
	}
	return all
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }
