package convert

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/manekinet/maneki/api"
)

// clusterPolicyPrefix is before the tier and the name of a converted
// ClusterNetworkPolicy, for the same reason as networkPolicyPrefix.
const clusterPolicyPrefix = "kcnp."

// Limits of a ClusterNetworkPolicy (its v1alpha2 definition).
const (
	maxPriority   = 1000
	maxRules      = 25
	maxRuleName   = 100
	maxPort       = 65535
	ruleNameField = "name"
)

// clusterNetworkPolicy is policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy.
type clusterNetworkPolicy struct {
	Kind       string            `json:"kind"`
	APIVersion string            `json:"apiVersion"`
	Metadata   metadata          `json:"metadata"`
	Spec       clusterPolicySpec `json:"spec"`
	Status     json.RawMessage   `json:"status"`
}

type clusterPolicySpec struct {
	Tier     string        `json:"tier"`     // "Admin" or "Baseline"
	Priority *int          `json:"priority"` // 0-1000, ascending
	Subject  clusterPeer   `json:"subject"`
	Ingress  []clusterRule `json:"ingress"`
	Egress   []clusterRule `json:"egress"`
}

type clusterRule struct {
	Name      string            `json:"name"`
	Action    string            `json:"action"` // "Accept", "Deny" or "Pass"
	From      []clusterPeer     `json:"from"`
	To        []clusterPeer     `json:"to"`
	Protocols []clusterProtocol `json:"protocols"`
}

// clusterPeer is a subject or a peer; exactly one field is set.
type clusterPeer struct {
	Namespaces *api.LabelSelector `json:"namespaces"`
	Pods       *namespacedPod     `json:"pods"`
	Networks   []string           `json:"networks"`
}

type namespacedPod struct {
	NamespaceSelector api.LabelSelector `json:"namespaceSelector"`
	PodSelector       api.LabelSelector `json:"podSelector"`
}

// clusterProtocol is a match on the protocol; exactly one field is set.
type clusterProtocol struct {
	TCP                  *clusterPorts `json:"tcp"`
	UDP                  *clusterPorts `json:"udp"`
	SCTP                 *clusterPorts `json:"sctp"`
	DestinationNamedPort string        `json:"destinationNamedPort"`
}

type clusterPorts struct {
	DestinationPort *clusterPort `json:"destinationPort"`
}

// clusterPort is a number or a range.
type clusterPort struct {
	Number int `json:"number"`
	Range  *struct {
		Start int `json:"start"`
		End   int `json:"end"`
	} `json:"range"`
}

func (opts Options) clusterNetworkPolicy(doc []byte) (api.Object, error) {
	const kind = "ClusterNetworkPolicy"
	in, err := api.DecodeForeign[clusterNetworkPolicy](doc, kind)
	if err != nil {
		return nil, err
	}
	var e api.FieldErrors
	in.Metadata.validate(&e, kind, false)
	in.Spec.validate(&e, kind+".Spec")
	if err := e.Err(); err != nil {
		return nil, err
	}
	s := &in.Spec
	tier := api.TierKubeAdmin
	if s.Tier == "Baseline" {
		tier = api.TierKubeBaseline
	}
	order := float64(*s.Priority)
	subject := opts.clusterPeer(s.Subject)
	p := &api.GlobalNetworkPolicy{Spec: api.GlobalNetworkPolicySpec{
		Tier: tier, Order: &order, Selector: subject.Selector, NamespaceSelector: subject.NamespaceSelector,
	}}
	p.Name, p.UID = clusterPolicyPrefix+tier+"."+in.Metadata.Name, in.Metadata.uid()
	if len(s.Ingress) > 0 {
		p.Spec.Types = append(p.Spec.Types, api.PolicyIngress)
	}
	if len(s.Egress) > 0 {
		p.Spec.Types = append(p.Spec.Types, api.PolicyEgress)
	}
	for _, r := range s.Ingress {
		p.Spec.Ingress = append(p.Spec.Ingress, opts.clusterRules(r, r.From, true)...)
	}
	for _, r := range s.Egress {
		p.Spec.Egress = append(p.Spec.Egress, opts.clusterRules(r, r.To, false)...)
	}
	return p, nil
}

func (opts Options) clusterRules(r clusterRule, peers []clusterPeer, ingress bool) []api.Rule {
	action := api.Action(r.Action)
	if r.Action == "Accept" {
		action = api.ActionAllow
	}
	rule := api.Rule{Action: action}
	if r.Name != "" {
		rule.Metadata = &api.RuleMetadata{Annotations: map[string]string{ruleNameField: r.Name}}
	}
	var ends []api.EntityRule
	for _, p := range peers {
		ends = append(ends, opts.clusterPeer(p))
	}
	return combine(rule, clusterMatches(r.Protocols), ends, ingress)
}

func (opts Options) clusterPeer(p clusterPeer) api.EntityRule {
	switch {
	case p.Pods != nil:
		return api.EntityRule{Selector: opts.podSelector(&p.Pods.PodSelector), NamespaceSelector: namespaceSelector(&p.Pods.NamespaceSelector)}
	case p.Namespaces != nil:
		return api.EntityRule{Selector: opts.podSelector(nil), NamespaceSelector: namespaceSelector(p.Namespaces)}
	}
	return api.EntityRule{Nets: slices.Clone(p.Networks)}
}

// clusterMatches collects the ports by protocol. A named port is one of any
// protocol that has ports.
func clusterMatches(list []clusterProtocol) []protocolMatch {
	all := newProtocols()
	for _, p := range list {
		for _, l := range p.layers() {
			port := l.ports.DestinationPort
			set := all.of(l.name)
			if port.Range != nil {
				set.ranges = append(set.ranges, portRange{port.Range.Start, port.Range.End})
			} else {
				set.ranges = append(set.ranges, portRange{port.Number, port.Number})
			}
		}
		if p.DestinationNamedPort != "" {
			for _, protocol := range []string{"TCP", "UDP", "SCTP"} {
				set := all.of(protocol)
				set.names = append(set.names, p.DestinationNamedPort)
			}
		}
	}
	return all.matches()
}

// layer is one protocol that is set.
type layer struct {
	name  string
	ports *clusterPorts
}

func (p *clusterProtocol) layers() []layer {
	return slices.DeleteFunc([]layer{{"TCP", p.TCP}, {"UDP", p.UDP}, {"SCTP", p.SCTP}}, func(l layer) bool { return l.ports == nil })
}

func (s *clusterPolicySpec) validate(e *api.FieldErrors, path string) {
	if s.Tier != "Admin" && s.Tier != "Baseline" {
		e.Add(path+".Tier", s.Tier, "must be one of Admin, Baseline")
	}
	switch {
	case s.Priority == nil:
		e.Add(path+".Priority", "", "must be 0-1000")
	case *s.Priority < 0 || *s.Priority > maxPriority:
		e.Add(path+".Priority", strconv.Itoa(*s.Priority), "must be 0-1000")
	}
	s.Subject.validate(e, path+".Subject", false)
	for _, d := range []struct {
		name  string
		rules []clusterRule
	}{{"Ingress", s.Ingress}, {"Egress", s.Egress}} {
		if len(d.rules) > maxRules {
			e.Add(path+"."+d.name, strconv.Itoa(len(d.rules))+" rules", fmt.Sprintf("at most %d rules", maxRules))
		}
		for i := range d.rules {
			d.rules[i].validate(e, index(path+"."+d.name, i), d.name == "Ingress")
		}
	}
}

func (r *clusterRule) validate(e *api.FieldErrors, path string, ingress bool) {
	if len(r.Name) > maxRuleName {
		e.Add(path+".Name", r.Name[:maxRuleName]+"...", fmt.Sprintf("at most %d bytes", maxRuleName))
	}
	if !slices.Contains([]string{"Accept", "Deny", "Pass"}, r.Action) {
		e.Add(path+".Action", r.Action, "must be one of Accept, Deny, Pass")
	}
	peers, foreign, field, other := r.From, r.To, ".From", ".To"
	if !ingress {
		peers, foreign, field, other = r.To, r.From, ".To", ".From"
	}
	if len(foreign) > 0 {
		e.Add(path+other, "", "does not belong to this direction")
	}
	if n := len(peers); n < 1 || n > maxRules {
		e.Add(path+field, strconv.Itoa(n)+" peers", fmt.Sprintf("give 1-%d peers", maxRules))
	}
	networks := false
	for i := range peers {
		peers[i].validate(e, index(path+field, i), !ingress)
		networks = networks || len(peers[i].Networks) > 0
	}
	if len(r.Protocols) > maxRules {
		e.Add(path+".Protocols", strconv.Itoa(len(r.Protocols))+" protocols", fmt.Sprintf("at most %d protocols", maxRules))
	}
	for i := range r.Protocols {
		at := index(path+".Protocols", i)
		r.Protocols[i].validate(e, at)
		if name := r.Protocols[i].DestinationNamedPort; name != "" && networks {
			e.Add(at+".DestinationNamedPort", name, "networks have no named ports")
		}
	}
}

func (p *clusterPeer) validate(e *api.FieldErrors, path string, networksAllowed bool) {
	set := 0
	if p.Namespaces != nil {
		set++
		p.Namespaces.Validate(e, path+".Namespaces")
	}
	if p.Pods != nil {
		set++
		p.Pods.NamespaceSelector.Validate(e, path+".Pods.NamespaceSelector")
		p.Pods.PodSelector.Validate(e, path+".Pods.PodSelector")
	}
	if p.Networks != nil {
		set++
		p.validateNetworks(e, path+".Networks", networksAllowed)
	}
	want := "give exactly one of namespaces, pods"
	if networksAllowed {
		want += ", networks"
	}
	if set != 1 {
		e.Add(path, strconv.Itoa(set)+" of them", want)
	}
}

func (p *clusterPeer) validateNetworks(e *api.FieldErrors, path string, allowed bool) {
	if !allowed {
		e.Add(path, "", "networks stand only in the peers of egress rules")
	}
	if n := len(p.Networks); n < 1 || n > maxRules {
		e.Add(path, strconv.Itoa(n)+" networks", fmt.Sprintf("give 1-%d networks", maxRules))
	}
	for i, s := range p.Networks {
		if cidr, err := netip.ParsePrefix(s); err != nil || cidr.Addr().Is4In6() {
			e.Add(index(path, i), s, "not a CIDR such as 192.168.0.0/16 or fd00::/64")
		}
	}
}

func (p *clusterProtocol) validate(e *api.FieldErrors, path string) {
	layers := p.layers()
	set := len(layers)
	if p.DestinationNamedPort != "" {
		set++
		text := api.FromText(p.DestinationNamedPort)
		named := api.KubernetesPort{Port: &text}
		var wrong api.FieldErrors
		if named.Validate(&wrong, ""); wrong.Err() != nil {
			e.Add(path+".DestinationNamedPort", p.DestinationNamedPort, "not the name of a port")
		}
	}
	if set != 1 {
		e.Add(path, strconv.Itoa(set)+" of them", "give exactly one of tcp, udp, sctp, destinationNamedPort")
	}
	for _, l := range layers {
		at := path + "." + l.name + ".DestinationPort"
		if l.ports.DestinationPort == nil {
			e.Add(at, "", "give a number or a range")
			continue
		}
		l.ports.DestinationPort.validate(e, at)
	}
}

func (p *clusterPort) validate(e *api.FieldErrors, path string) {
	switch r := p.Range; {
	case r != nil && p.Number != 0:
		e.Add(path+".Number", strconv.Itoa(p.Number), "number and range exclude each other")
	case r != nil && (r.Start < 1 || r.End > maxPort || r.Start >= r.End):
		e.Add(path+".Range", fmt.Sprintf("%d-%d", r.Start, r.End), "must be two ports 1-65535, the smaller first")
	case r == nil && (p.Number < 1 || p.Number > maxPort):
		e.Add(path+".Number", strconv.Itoa(p.Number), "must be 1-65535")
	}
}
