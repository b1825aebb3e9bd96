package convert

import (
	"maps"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
)

// pods is the text of what a policy with these options applies to at all.
func (opts Options) pods() string {
	if opts.AnyOrchestrator {
		return "has(" + api.LabelOrchestrator + ")"
	}
	return api.LabelOrchestrator + " == 'k8s'"
}

// podSelector selects workloads by their labels; nil selects all of them.
func (opts Options) podSelector(s *api.LabelSelector) string {
	return strings.Join(append([]string{opts.pods()}, terms(s)...), " && ")
}

// namespaceSelector selects namespaces by their labels: none given gives no
// selector, the empty one all().
func namespaceSelector(s *api.LabelSelector) string {
	if s == nil {
		return ""
	}
	if t := terms(s); len(t) > 0 {
		return strings.Join(t, " && ")
	}
	return "all()"
}

// terms are the conditions of a selector, labels in the order of their keys,
// expressions in their own.
func terms(s *api.LabelSelector) []string {
	if s == nil {
		return nil
	}
	var t []string
	for _, k := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		t = append(t, k+" == '"+s.MatchLabels[k]+"'")
	}
	for _, r := range s.MatchExpressions {
		switch r.Operator {
		case "In":
			t = append(t, r.Key+" in { '"+strings.Join(r.Values, "', '")+"' }")
		case "NotIn":
			t = append(t, r.Key+" not in { '"+strings.Join(r.Values, "', '")+"' }")
		case "Exists":
			t = append(t, "has("+r.Key+")")
		case "DoesNotExist":
			t = append(t, "! has("+r.Key+")")
		}
	}
	return t
}
