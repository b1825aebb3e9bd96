package calc

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/calc/index"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/selector"
)

// IP protocol numbers that rules may name.
const (
	protocolICMP    = 1
	protocolTCP     = 6
	protocolUDP     = 17
	protocolICMPv6  = 58
	protocolSCTP    = 132
	protocolUDPLite = 136
)

// compiled is a policy or profile with the sets that its rules name.
type compiled struct {
	policy   *policy.Policy
	wants    []index.Want
	services []*policy.Set
	problems []string
}

// compiler compiles the rules of one policy or profile.
type compiler struct {
	namespace string // of a namespaced policy; empty otherwise
	profile   bool
	out       compiled
}

// compile resolves a policy's rules. What cannot be enforced as it is written
// makes it broken (policy.Policy.Broken).
func compile(s *policySpec) compiled {
	c := compiler{namespace: s.id.Namespace}
	p := &policy.Policy{ID: s.id, Tier: s.tier, Staged: s.staged, Broken: s.broken}
	c.rules(p, s.rules)
	return c.out
}

// compileProfile is compile for a profile, whose rules are asked when no tier
// has decided.
func compileProfile(name string, spec *api.ProfileSpec) compiled {
	c := compiler{profile: true}
	p := &policy.Policy{ID: policy.ID{Kind: "Profile", Name: name}}
	c.rules(p, [2][]api.Rule{spec.Ingress, spec.Egress})
	return c.out
}

func (c *compiler) rules(p *policy.Policy, rules [2][]api.Rule) {
	c.out.policy = p
	for d, list := range rules {
		direction := policy.Direction(d)
		for i := range list {
			r, ok, err := c.rule(&list[i], direction)
			if err != nil && p.Broken == "" {
				p.Broken = fmt.Sprintf("%s[%d].%v", direction, i, err)
			}
			if !ok {
				continue
			}
			r.Index, r.Text = i, ruleText(&list[i])
			if direction == policy.Egress {
				p.Egress = append(p.Egress, r)
			} else {
				p.Ingress = append(p.Ingress, r)
			}
		}
	}
	if p.Broken != "" {
		p.Ingress, p.Egress = nil, nil
		c.out.wants, c.out.services = nil, nil
		c.out.problems = []string{brokenText(p.ID, p.Staged, p.Broken)}
	}
	slices.SortFunc(c.out.wants, func(a, b index.Want) int { return cmp.Compare(a.ID, b.ID) })
	c.out.wants = slices.CompactFunc(c.out.wants, func(a, b index.Want) bool { return a.ID == b.ID })
}

// brokenText is the problem of a policy that cannot be enforced as written.
func brokenText(id policy.ID, staged bool, why string) string {
	if staged {
		return fmt.Sprintf("%s could not be enforced and would deny what reaches it: %s", id, why)
	}
	return fmt.Sprintf("%s cannot be enforced and denies what reaches it: %s", id, why)
}

// rule resolves one rule; ok is false for a rule that can match nothing.
func (c *compiler) rule(in *api.Rule, d policy.Direction) (out policy.Rule, ok bool, err error) {
	switch in.Action {
	case api.ActionAllow:
		out.Do = policy.Allow
	case api.ActionDeny:
		out.Do = policy.Deny
	case api.ActionLog:
		out.Do = policy.Log
	case api.ActionPass:
		out.Do = policy.Pass
		if c.profile {
			return out, false, fmt.Errorf("action: Pass has no meaning in a profile")
		}
	default:
		return out, false, fmt.Errorf("action: %q is none of Allow, Deny, Log, Pass", in.Action)
	}
	if err := c.protocols(in, &out); err != nil {
		return out, false, err
	}
	for _, e := range []struct {
		name    string
		in      *api.EntityRule
		out     *policy.Entity
		service bool // services are matched with their ports
	}{
		{"source", &in.Source, &out.Src, false},
		{"destination", &in.Destination, &out.Dst, true},
	} {
		if err := c.entity(e.in, e.out, out.Protocol); err != nil {
			return out, false, fmt.Errorf("%s.%w", e.name, err)
		}
		if e.in.Services != nil {
			c.service(e.in.Services, e.out, &out, e.service)
		}
	}
	if in.HTTP != nil {
		// Nobody looks into connections here. To ignore the criterion would allow more than the author did.
		c.problem("a rule with http criteria matches nothing: %s", ruleText(in))
		return out, false, nil
	}
	impossible := out.Family == 6 && out.Protocol == protocolICMP && out.ICMP != nil || out.Family == 4 && out.Protocol == protocolICMPv6 && out.ICMP != nil
	return out, !impossible, nil
}

func (c *compiler) problem(format string, args ...any) {
	c.out.problems = append(c.out.problems, c.out.policy.ID.String()+": "+fmt.Sprintf(format, args...))
}

// protocols fills family, protocol and ICMP criteria. A rule about ICMP is one
// about IPv4, about ICMPv6 one about IPv6.
func (c *compiler) protocols(in *api.Rule, out *policy.Rule) (err error) {
	if in.IPVersion != nil {
		if *in.IPVersion != 4 && *in.IPVersion != 6 {
			return fmt.Errorf("ipVersion: %d is neither 4 nor 6", *in.IPVersion)
		}
		out.Family = uint8(*in.IPVersion)
	}
	if out.Protocol, err = protocolNumber(in.Protocol); err != nil {
		return fmt.Errorf("protocol: %w", err)
	}
	if out.NotProtocol, err = protocolNumber(in.NotProtocol); err != nil {
		return fmt.Errorf("notProtocol: %w", err)
	}
	if out.ICMP, err = icmp(in.ICMP); err != nil {
		return fmt.Errorf("icmp: %w", err)
	}
	if out.NotICMP, err = icmp(in.NotICMP); err != nil {
		return fmt.Errorf("notICMP: %w", err)
	}
	switch {
	case out.Protocol == protocolICMP && out.Family == 0:
		out.Family = 4
	case out.Protocol == protocolICMPv6 && out.Family == 0:
		out.Family = 6
	case out.Protocol != protocolICMP && out.Protocol != protocolICMPv6 && (out.ICMP != nil || out.NotICMP != nil):
		return fmt.Errorf("icmp: needs protocol ICMP or ICMPv6")
	}
	return nil
}

// protocolNumber is a protocol given by name or number; nil gives 0, any.
func protocolNumber(p *api.IntOrString) (uint8, error) {
	if p == nil {
		return 0, nil
	}
	names := map[string]uint8{
		"tcp": protocolTCP, "udp": protocolUDP, "icmp": protocolICMP, "icmpv6": protocolICMPv6, "sctp": protocolSCTP, "udplite": protocolUDPLite,
	}
	if n, ok := names[strings.ToLower(p.Text)]; ok && !p.IsInt {
		return n, nil
	}
	n, err := strconv.ParseUint(p.String(), 10, 8)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is none of TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite, 1-255", p)
	}
	return uint8(n), nil
}

func icmp(f *api.ICMPFields) (*policy.ICMP, error) {
	if f == nil || f.Type == nil && f.Code == nil {
		return nil, nil
	}
	if f.Type == nil {
		return nil, fmt.Errorf("a code needs a type")
	}
	out := &policy.ICMP{Type: uint8(*f.Type)}
	if *f.Type < 0 || *f.Type > 255 {
		return nil, fmt.Errorf("type %d is not 0-254", *f.Type)
	}
	if f.Code != nil {
		if *f.Code < 0 || *f.Code > 255 {
			return nil, fmt.Errorf("code %d is not 0-255", *f.Code)
		}
		code := uint8(*f.Code)
		out.Code = &code
	}
	return out, nil
}

// entity resolves what a rule asks of one end (spec/calico.md §5.2).
func (c *compiler) entity(in *api.EntityRule, out *policy.Entity, protocol uint8) (err error) {
	if out.Nets, err = nets("nets", in.Nets); err != nil {
		return err
	}
	if out.NotNets, err = nets("notNets", in.NotNets); err != nil {
		return err
	}
	whom, err := c.whom(in)
	if err != nil {
		return err
	}
	if whom != nil {
		out.Set = c.want(index.Addresses(whom))
	}
	if in.NotSelector != "" {
		not, err := parseSelector("notSelector", in.NotSelector)
		if err != nil {
			return err
		}
		out.NotSet = c.want(index.Addresses(not))
	}
	hasPorts := protocol == protocolTCP || protocol == protocolUDP || protocol == protocolSCTP
	if (in.Ports != nil || len(in.NotPorts) > 0) && !hasPorts {
		return fmt.Errorf("ports: need protocol TCP, UDP or SCTP")
	}
	if whom == nil {
		whom = selector.And()
	}
	out.AnyPort = in.Ports == nil
	if out.Ports, out.Named, err = c.ports("ports", in.Ports, whom, protocol); err != nil {
		return err
	}
	out.NotPorts, out.NotNamed, err = c.ports("notPorts", in.NotPorts, whom, protocol)
	return err
}

// want notes a set that the policy needs.
func (c *compiler) want(w index.Want) policy.SetID {
	c.out.wants = append(c.out.wants, w)
	return w.ID
}

// whom is the selector of an end: nil if the rule does not select by labels. In
// a namespaced policy a selector, also one that leaves out, and service accounts
// are about the policy's own namespace unless the rule names others.
func (c *compiler) whom(in *api.EntityRule) (*selector.Selector, error) {
	selects := in.Selector != "" || in.NotSelector != "" || in.ServiceAccounts != nil
	var list []*selector.Selector
	switch {
	case in.NamespaceSelector != "":
		ns, err := parseSelector("namespaceSelector", in.NamespaceSelector)
		if err != nil {
			return nil, err
		}
		list = append(list, ns.Inherited(namespacePrefix, api.LabelNamespace))
	case c.namespace != "" && selects:
		list = append(list, selector.Equal(api.LabelNamespace, c.namespace))
	}
	if sa := in.ServiceAccounts; sa != nil {
		if sa.Selector != "" {
			s, err := parseSelector("serviceAccounts.selector", sa.Selector)
			if err != nil {
				return nil, err
			}
			list = append(list, s.Inherited(serviceAccountPrefix, labelServiceAccount))
		}
		if sa.Names != nil {
			list = append(list, selector.In(labelServiceAccount, sa.Names...))
		}
	}
	if in.Selector != "" {
		s, err := parseSelector("selector", in.Selector)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	if len(list) == 0 {
		return nil, nil
	}
	return selector.And(list...), nil
}

// nets parses networks and addresses; a list that is present stays present.
func nets(field string, in []string) ([]netip.Prefix, error) {
	if in == nil {
		return nil, nil
	}
	out := make([]netip.Prefix, 0, len(in))
	for i, text := range in {
		p, err := parseNet(text)
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %q is neither a network nor an address", field, i, text)
		}
		out = append(out, p)
	}
	return out, nil
}

// parseNet reads "10.0.0.0/8", or an address as the network of it alone.
func parseNet(text string) (netip.Prefix, error) {
	if !strings.Contains(text, "/") {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return netip.Prefix{}, err
		}
		a = a.WithZone("").Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("prefix %s is IPv4 mapped into IPv6", text)
	}
	return p.Masked(), nil
}

// ports resolves numbers, ranges and names of ports.
func (c *compiler) ports(field string, in []api.IntOrString, whom *selector.Selector, protocol uint8) (ranges []policy.PortRange, named []policy.SetID, err error) {
	for i, p := range in {
		r, isNumber, err := portRange(p)
		switch {
		case err != nil:
			return nil, nil, fmt.Errorf("%s[%d]: %w", field, i, err)
		case isNumber:
			ranges = append(ranges, r)
		default:
			named = append(named, c.want(index.NamedPort(whom, protocol, p.Text)))
		}
	}
	return ranges, named, nil
}

// portRange reads 80, "80", "8080:8090"; anything else is a name.
func portRange(p api.IntOrString) (r policy.PortRange, isNumber bool, err error) {
	low, high, isRange := strings.Cut(p.String(), ":")
	if !isRange {
		high = low
	}
	a, errA := strconv.ParseUint(low, 10, 16)
	b, errB := strconv.ParseUint(high, 10, 16)
	switch {
	case errA == nil && errB == nil && a <= b:
		return policy.PortRange{From: uint16(a), To: uint16(b)}, true, nil
	case isRange || p.IsInt || p.Text == "":
		return r, false, fmt.Errorf("%q is neither a port 0-65535, a range min:max nor a name", p)
	}
	if _, err := strconv.ParseInt(low, 10, 64); err == nil { // a number, but none of a port
		return r, false, fmt.Errorf("%q is not a port 0-65535", p)
	}
	return r, false, nil
}

// service resolves a Kubernetes service. Without Kubernetes' own store nobody
// knows a service's endpoints: the set is empty, so that the rule matches nobody.
// A rule that would deny or pass on must not vanish in that way; it denies
// everything that meets its other criteria.
func (c *compiler) service(in *api.ServiceMatch, out *policy.Entity, r *policy.Rule, withPorts bool) {
	name := strings.TrimPrefix(cmp.Or(in.Namespace, c.namespace)+"/"+in.Name, "/")
	if r.Do == policy.Deny || r.Do == policy.Pass {
		c.problem("the endpoints of service %s are not known without Kubernetes; the rule denies whatever meets its other criteria", name)
		r.Do = policy.Deny
		return
	}
	c.problem("the endpoints of service %s are not known without Kubernetes; the rule matches nobody", name)
	set := &policy.Set{ID: policy.SetID("w:" + name), Kind: policy.Addresses, Selector: "service " + name}
	if withPorts {
		set.ID, set.Kind = policy.SetID("v:"+name), policy.AddressPorts
	}
	out.Service = set.ID
	c.out.services = append(c.out.services, set)
}
