package api

import (
	"slices"
	"strconv"
	"strings"
)

// Action is what a rule does with a packet that matches it (spec/calico.md §5.2).
type Action string

// The four actions. Pass is not allowed in profiles.
const (
	ActionAllow Action = "Allow"
	ActionDeny  Action = "Deny"
	ActionLog   Action = "Log"
	ActionPass  Action = "Pass"
)

// Rule is one rule of a profile or policy. All criteria present must hold; a
// list holds when one of its members does. An empty list that is present
// ("nets": []) matches nobody and is not the same as an absent one.
type Rule struct {
	Action      Action        `json:"action"`                // "Allow", "Deny", "Log" or "Pass"
	IPVersion   *int          `json:"ipVersion,omitempty"`   // 4 or 6; nil: both
	Protocol    *IntOrString  `json:"protocol,omitempty"`    // name or number; nil: all
	ICMP        *ICMPFields   `json:"icmp,omitempty"`        // needs protocol ICMP or ICMPv6
	NotProtocol *IntOrString  `json:"notProtocol,omitempty"` // all but this one
	NotICMP     *ICMPFields   `json:"notICMP,omitempty"`     // all but these
	Source      EntityRule    `json:"source,omitzero"`       // where the packet comes from
	Destination EntityRule    `json:"destination,omitzero"`  // where it goes
	HTTP        *HTTPMatch    `json:"http,omitempty"`        // needs action Allow and TCP
	Metadata    *RuleMetadata `json:"metadata,omitempty"`    // notes
}

// ICMPFields restricts a rule to an ICMP type and code.
type ICMPFields struct {
	Type *int `json:"type,omitempty"` // 0-254
	Code *int `json:"code,omitempty"` // 0-255; needs type
}

// EntityRule describes one end of the traffic.
type EntityRule struct {
	Nets              []string             `json:"nets,omitzero"`               // any of these; an empty list matches nothing
	Selector          string               `json:"selector,omitempty"`          // endpoints and network sets by label
	NamespaceSelector string               `json:"namespaceSelector,omitempty"` // in the namespaces selected; "global()" for those in none
	Services          *ServiceMatch        `json:"services,omitempty"`          // the endpoints of a service
	Ports             []IntOrString        `json:"ports,omitzero"`              // numbers, "first:last" or names; any of these
	NotNets           []string             `json:"notNets,omitzero"`            // none of these
	NotSelector       string               `json:"notSelector,omitempty"`       // not the endpoints selected
	NotPorts          []IntOrString        `json:"notPorts,omitzero"`           // none of these
	ServiceAccounts   *ServiceAccountMatch `json:"serviceAccounts,omitempty"`   // workloads of these accounts
}

// IsZero reports whether nothing is restricted; a present empty list is a restriction.
func (e EntityRule) IsZero() bool {
	return e.Nets == nil && e.NotNets == nil && e.Ports == nil && e.NotPorts == nil &&
		e.Selector == "" && e.NotSelector == "" && e.NamespaceSelector == "" &&
		e.Services == nil && e.ServiceAccounts == nil
}

// ServiceMatch names a Kubernetes service whose endpoints match.
type ServiceMatch struct {
	Name      string `json:"name,omitempty"`      // of the service
	Namespace string `json:"namespace,omitempty"` // of the service; empty: the policy's
}

// ServiceAccountMatch restricts to workloads of service accounts, by name or label.
type ServiceAccountMatch struct {
	Names    []string `json:"names,omitzero"`     // any of these
	Selector string   `json:"selector,omitempty"` // accounts by label
}

// HTTPMatch restricts to HTTP requests; it needs an application-layer proxy.
type HTTPMatch struct {
	Methods []string   `json:"methods,omitzero"` // "GET", ...
	Paths   []HTTPPath `json:"paths,omitzero"`   // any of these
}

// HTTPPath is one path, exact or as a prefix.
type HTTPPath struct {
	Exact  string `json:"exact,omitempty"`  // the whole path
	Prefix string `json:"prefix,omitempty"` // its beginning
}

// RuleMetadata carries annotations of a rule, which become its comments.
type RuleMetadata struct {
	Annotations map[string]string `json:"annotations,omitempty"` // carried along
}

// ruleContext says where a rule stands, which decides what it may say.
type ruleContext struct {
	ingress bool
	profile bool
}

func defaultRules(rules []Rule) {
	for i := range rules {
		for _, e := range []*EntityRule{&rules[i].Source, &rules[i].Destination} {
			maskCIDRs(e.Nets)
			maskCIDRs(e.NotNets)
		}
	}
}

func (c *checker) rules(path string, rules []Rule, ctx ruleContext) {
	for i := range rules {
		c.rule(index(path, i), &rules[i], ctx)
	}
}

func (c *checker) rule(path string, r *Rule, ctx ruleContext) {
	allowed := []string{string(ActionAllow), string(ActionDeny), string(ActionLog)}
	if !ctx.profile {
		allowed = append(allowed, string(ActionPass))
	}
	if r.Action == "" {
		c.add(path+".Action", "", "must be one of "+strings.Join(allowed, ", "))
	}
	c.oneOf(path+".Action", string(r.Action), allowed...)
	if r.IPVersion != nil && *r.IPVersion != 4 && *r.IPVersion != 6 {
		c.add(path+".IPVersion", strconv.Itoa(*r.IPVersion), "must be 4 or 6")
	}
	c.protocol(path+".Protocol", r.Protocol)
	c.protocol(path+".NotProtocol", r.NotProtocol)
	c.icmp(path+".ICMP", r.ICMP, r)
	c.icmp(path+".NotICMP", r.NotICMP, r)
	c.entity(path+".Source", &r.Source, r, ctx.ingress)
	c.entity(path+".Destination", &r.Destination, r, !ctx.ingress)
	c.http(path+".HTTP", r)
	if r.Metadata != nil {
		for _, k := range sortedKeys(r.Metadata.Annotations) {
			if !ValidLabelKey(k) {
				c.add(path+".Metadata.Annotations", clip(k), "not an annotation key")
			}
		}
	}
}

// protocolNames are the protocols that rules may name (spec/calico.md §5.2).
func protocolNames() []string {
	return []string{"TCP", "UDP", "ICMP", "ICMPv6", "SCTP", "UDPLite"}
}

func (c *checker) protocol(path string, p *IntOrString) {
	if p == nil {
		return
	}
	n := p.Int
	if !p.IsInt {
		if slices.Contains(protocolNames(), p.Text) {
			return
		}
		var err error
		if n, err = strconv.Atoi(p.Text); err != nil {
			n = 0
		}
	}
	if n < 1 || n > 255 {
		c.add(path, clip(p.String()), "must be one of "+strings.Join(protocolNames(), ", ")+" or 1-255")
	}
}

func (c *checker) icmp(path string, f *ICMPFields, r *Rule) {
	if f == nil {
		return
	}
	if p := protocolName(r.Protocol); p != "ICMP" && p != "ICMPv6" {
		c.add(path, "", "needs protocol ICMP or ICMPv6")
	}
	c.withinPtr(path+".Type", f.Type, 0, 254)
	c.withinPtr(path+".Code", f.Code, 0, 255)
	if f.Code != nil && f.Type == nil {
		c.add(path+".Code", strconv.Itoa(*f.Code), "an ICMP code needs a type")
	}
}

// protocolName is the name of a protocol given by name or by number, or the
// empty text.
func protocolName(p *IntOrString) string {
	if p == nil {
		return ""
	}
	switch p.String() {
	case "1":
		return "ICMP"
	case "6":
		return "TCP"
	case "17":
		return "UDP"
	case "58":
		return "ICMPv6"
	case "132":
		return "SCTP"
	case "136":
		return "UDPLite"
	}
	return p.Text
}

func hasPorts(protocol string) bool {
	return protocol == "TCP" || protocol == "UDP" || protocol == "SCTP"
}

// entity checks one end of a rule; services may stand only where serviceEnd is
// true: the source of ingress, the destination of egress.
func (c *checker) entity(path string, e *EntityRule, r *Rule, serviceEnd bool) {
	for i, s := range e.Nets {
		c.net(index(path+".Nets", i), s)
	}
	for i, s := range e.NotNets {
		c.net(index(path+".NotNets", i), s)
	}
	c.selector(path+".Selector", e.Selector, false)
	c.selector(path+".NotSelector", e.NotSelector, false)
	c.selector(path+".NamespaceSelector", e.NamespaceSelector, true)
	if e.ServiceAccounts != nil {
		c.selector(path+".ServiceAccounts.Selector", e.ServiceAccounts.Selector, false)
	}
	c.ports(path+".Ports", e.Ports, r)
	c.ports(path+".NotPorts", e.NotPorts, r)
	if e.Services == nil {
		return
	}
	if !serviceEnd {
		c.add(path+".Services", e.Services.Name, "services stand only in the source of ingress rules and the destination of egress rules")
	}
	if e.Services.Name == "" {
		c.add(path+".Services.Name", "", "must be set")
	}
	rest := *e
	rest.Services = nil
	if !rest.IsZero() {
		c.add(path+".Services", e.Services.Name, "services cannot be combined with ports, nets, selectors or service accounts")
	}
}

func (c *checker) ports(path string, ports []IntOrString, r *Rule) {
	if ports != nil && !hasPorts(protocolName(r.Protocol)) {
		c.add(path, "", "ports need protocol TCP, UDP or SCTP")
	}
	for i, p := range ports {
		if !validPort(p) {
			c.add(index(path, i), clip(p.String()), "must be a port 0-65535, a range min:max or the name of a port")
		}
	}
}

// validPort accepts a number, "min:max", or a name of up to 128 letters,
// digits, '-', '_' and '.'.
func validPort(p IntOrString) bool {
	if p.IsInt {
		return p.Int >= 0 && p.Int <= 65535
	}
	low, high, isRange := strings.Cut(p.Text, ":")
	if !isRange {
		if _, err := strconv.Atoi(p.Text); err == nil {
			_, err = strconv.ParseUint(p.Text, 10, 16)
			return err == nil
		}
		return len(p.Text) <= 128 && isWord(p.Text, func(b byte) bool { return isAlnum(b) || strings.IndexByte("-_.", b) >= 0 }, "")
	}
	a, errA := strconv.ParseUint(low, 10, 16)
	b, errB := strconv.ParseUint(high, 10, 16)
	return errA == nil && errB == nil && a <= b
}

func (c *checker) http(path string, r *Rule) {
	if r.HTTP == nil {
		return
	}
	if r.Action != ActionAllow {
		c.add(path, string(r.Action), "HTTP criteria need action Allow")
	}
	if r.Protocol != nil && protocolName(r.Protocol) != "TCP" {
		c.add(path, r.Protocol.String(), "HTTP criteria need protocol TCP or none")
	}
	for i, p := range r.HTTP.Paths {
		if (p.Exact == "") == (p.Prefix == "") {
			c.add(index(path+".Paths", i), p.Exact, "give either exact or prefix")
		}
	}
}
