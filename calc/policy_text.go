package calc

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/policy"
)

// ruleText is a rule as its author wrote it, in one line for people.
func ruleText(r *api.Rule) string {
	words := []string{strings.ToLower(string(r.Action))}
	if r.IPVersion != nil {
		words = append(words, fmt.Sprintf("ipv%d", *r.IPVersion))
	}
	if r.Protocol != nil {
		words = append(words, protocolText(r.Protocol))
	}
	if r.NotProtocol != nil {
		words = append(words, "not "+protocolText(r.NotProtocol))
	}
	words = append(words, icmpText("", r.ICMP)...)
	words = append(words, icmpText("not ", r.NotICMP)...)
	if from := entityText(&r.Source); from != "" {
		words = append(words, "from", from)
	}
	if to := entityText(&r.Destination); to != "" {
		words = append(words, "to", to)
	}
	if r.HTTP != nil {
		words = append(words, "with http criteria")
	}
	if r.Metadata != nil {
		for _, k := range slices.Sorted(maps.Keys(r.Metadata.Annotations)) {
			words = append(words, "# "+k+"="+clipText(r.Metadata.Annotations[k]))
		}
	}
	return strings.Join(words, " ")
}

func protocolText(p *api.IntOrString) string {
	if n, err := protocolNumber(p); err == nil {
		return strings.ToLower(policy.ProtocolName(n))
	}
	return clipText(p.String())
}

func icmpText(not string, f *api.ICMPFields) []string {
	if f == nil || f.Type == nil {
		return nil
	}
	if f.Code == nil {
		return []string{fmt.Sprintf("%stype %d", not, *f.Type)}
	}
	return []string{fmt.Sprintf("%stype %d code %d", not, *f.Type, *f.Code)}
}

func entityText(e *api.EntityRule) string {
	var words []string
	add := func(there bool, format, value string) {
		if there {
			words = append(words, fmt.Sprintf(format, value))
		}
	}
	add(e.Selector != "", "%s", clipText(e.Selector))
	add(e.NotSelector != "", "not (%s)", clipText(e.NotSelector))
	add(e.NamespaceSelector != "", "namespaces %s", clipText(e.NamespaceSelector))
	if sa := e.ServiceAccounts; sa != nil {
		add(sa.Names != nil, "service accounts %s", listText(sa.Names))
		add(sa.Selector != "", "service accounts %s", clipText(sa.Selector))
	}
	if s := e.Services; s != nil {
		add(true, "service %s", strings.TrimPrefix(s.Namespace+"/"+s.Name, "/"))
	}
	add(e.Nets != nil, "%s", listText(e.Nets))
	add(e.NotNets != nil, "not %s", listText(e.NotNets))
	add(e.Ports != nil, "ports %s", portsText(e.Ports))
	add(e.NotPorts != nil, "not ports %s", portsText(e.NotPorts))
	return strings.Join(words, " ")
}

func portsText(ports []api.IntOrString) string {
	words := make([]string, len(ports))
	for i, p := range ports {
		words[i] = p.String()
	}
	return listText(words)
}

// listText is a list that stays within a line.
func listText(list []string) string {
	const most = 6
	switch {
	case len(list) == 0:
		return "(none)"
	case len(list) > most:
		return clipText(strings.Join(list[:most], ", ")) + fmt.Sprintf(" and %d more", len(list)-most)
	}
	return clipText(strings.Join(list, ", "))
}

// clipText cuts a text that would not fit a line and takes control characters
// out, which a terminal would obey.
func clipText(s string) string {
	const most = 160
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if r := []rune(s); len(r) > most {
		s = string(r[:most-3]) + "..."
	}
	return s
}
