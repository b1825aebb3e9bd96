package api

import (
	"slices"
	"strconv"
	"strings"
)

// The parts of Kubernetes' networking.k8s.io/v1 NetworkPolicy that a
// StagedKubernetesNetworkPolicy repeats and that package convert reads.

// LabelSelector is Kubernetes' selector: all labels and all expressions must
// hold; the empty one selects everything.
type LabelSelector struct {
	MatchLabels      map[string]string          `json:"matchLabels,omitempty"`
	MatchExpressions []LabelSelectorRequirement `json:"matchExpressions,omitempty"`
}

// LabelSelectorRequirement is one expression on one label.
type LabelSelectorRequirement struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"` // "In", "NotIn", "Exists" or "DoesNotExist"
	Values   []string `json:"values,omitempty"`
}

// KubernetesIngressRule allows traffic from any of the peers (none given: from
// anybody) to any of the ports (none given: to all).
type KubernetesIngressRule struct {
	Ports []KubernetesPort `json:"ports,omitempty"`
	From  []KubernetesPeer `json:"from,omitempty"`
}

// KubernetesEgressRule allows traffic to any of the peers on any of the ports.
type KubernetesEgressRule struct {
	Ports []KubernetesPort `json:"ports,omitempty"`
	To    []KubernetesPeer `json:"to,omitempty"`
}

// KubernetesPort is a port, a range of ports or, without port, a protocol.
type KubernetesPort struct {
	Protocol *string      `json:"protocol,omitempty"` // "TCP" (also if nil), "UDP" or "SCTP"
	Port     *IntOrString `json:"port,omitempty"`     // number or name; nil: all
	EndPort  *int         `json:"endPort,omitempty"`  // of a range that starts at port
}

// KubernetesPeer is either a block of addresses or the pods that both selectors
// select; without namespaceSelector the pods of the policy's own namespace.
type KubernetesPeer struct {
	PodSelector       *LabelSelector     `json:"podSelector,omitempty"`
	NamespaceSelector *LabelSelector     `json:"namespaceSelector,omitempty"`
	IPBlock           *KubernetesIPBlock `json:"ipBlock,omitempty"`
}

// KubernetesIPBlock is a CIDR without the CIDRs excepted.
type KubernetesIPBlock struct {
	CIDR   string   `json:"cidr"`
	Except []string `json:"except,omitempty"`
}

// Validate reports what is wrong with the selector, by fields below path, into e.
func (s *LabelSelector) Validate(e *FieldErrors, path string) {
	if s == nil {
		return
	}
	for _, k := range sortedKeys(s.MatchLabels) {
		if !ValidLabelKey(k) {
			e.Add(path+".MatchLabels", clip(k), "not a label key")
		}
		if !ValidLabelValue(s.MatchLabels[k]) {
			e.Add(path+".MatchLabels["+clip(k)+"]", clip(s.MatchLabels[k]), "not a label value")
		}
	}
	for i, r := range s.MatchExpressions {
		r.validate(e, index(path+".MatchExpressions", i))
	}
}

func (r *LabelSelectorRequirement) validate(e *FieldErrors, path string) {
	if !ValidLabelKey(r.Key) {
		e.Add(path+".Key", clip(r.Key), "not a label key")
	}
	switch r.Operator {
	case "In", "NotIn":
		if len(r.Values) == 0 {
			e.Add(path+".Values", "", "operator "+r.Operator+" needs values")
		}
	case "Exists", "DoesNotExist":
		if len(r.Values) > 0 {
			e.Add(path+".Values", clip(strings.Join(r.Values, ",")), "operator "+r.Operator+" has no values")
		}
	default:
		e.Add(path+".Operator", clip(r.Operator), "must be one of In, NotIn, Exists, DoesNotExist")
	}
	for i, v := range r.Values {
		if !ValidLabelValue(v) {
			e.Add(index(path+".Values", i), clip(v), "not a label value")
		}
	}
}

// Validate reports what is wrong with the port, by fields below path, into e.
func (p *KubernetesPort) Validate(e *FieldErrors, path string) {
	if p.Protocol != nil && !slices.Contains([]string{"TCP", "UDP", "SCTP"}, *p.Protocol) {
		e.Add(path+".Protocol", clip(*p.Protocol), "must be one of TCP, UDP, SCTP")
	}
	if p.Port != nil && !validKubernetesPort(*p.Port) {
		e.Add(path+".Port", clip(p.Port.String()), "must be a number 1-65535 or the name of a port: at most 15 lower case letters, digits and '-', one letter at least")
	}
	if p.EndPort == nil {
		return
	}
	value := strconv.Itoa(*p.EndPort)
	switch {
	case p.Port == nil || !p.Port.IsInt:
		e.Add(path+".EndPort", value, "needs port, a number")
	case *p.EndPort < p.Port.Int || *p.EndPort > 65535:
		e.Add(path+".EndPort", value, "must be "+p.Port.String()+"-65535")
	}
}

func validKubernetesPort(p IntOrString) bool {
	if p.IsInt {
		return p.Int >= 1 && p.Int <= 65535
	}
	return len(p.Text) <= 15 && isWord(p.Text, isLowerAlnum, "-") && strings.ContainsAny(p.Text, "abcdefghijklmnopqrstuvwxyz")
}

// Validate reports what is wrong with the peer, by fields below path, into e.
func (p *KubernetesPeer) Validate(e *FieldErrors, path string) {
	p.PodSelector.Validate(e, path+".PodSelector")
	p.NamespaceSelector.Validate(e, path+".NamespaceSelector")
	switch {
	case p.IPBlock == nil && p.PodSelector == nil && p.NamespaceSelector == nil:
		e.Add(path, "", "give podSelector, namespaceSelector or ipBlock")
	case p.IPBlock == nil:
	case p.PodSelector != nil || p.NamespaceSelector != nil:
		e.Add(path+".IPBlock", clip(p.IPBlock.CIDR), "ipBlock excludes podSelector and namespaceSelector")
	default:
		p.IPBlock.validate(e, path+".IPBlock")
	}
}

func (b *KubernetesIPBlock) validate(e *FieldErrors, path string) {
	whole, err := parsePrefix(b.CIDR)
	if err != nil {
		e.Add(path+".CIDR", clip(b.CIDR), "not a CIDR such as 192.168.0.0/16 or fd00::/64")
		return
	}
	for i, s := range b.Except {
		p, err := parsePrefix(s)
		switch {
		case err != nil:
			e.Add(index(path+".Except", i), clip(s), "not a CIDR such as 192.168.0.0/16 or fd00::/64")
		case p.Bits() <= whole.Bits() || !whole.Masked().Contains(p.Addr()):
			e.Add(index(path+".Except", i), clip(s), "must lie strictly inside "+b.CIDR)
		}
	}
}
