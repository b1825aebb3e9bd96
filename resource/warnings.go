package resource

import (
	"fmt"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// Warnings says, one line each, what of the resource is stored but does nothing
// in this release, for whoever writes it to show.
func Warnings(o api.Object) []string {
	key := datastore.ObjectKey(o)
	switch o := o.(type) {
	case *api.FelixConfiguration:
		if names := o.Unserved(); len(names) > 0 {
			return []string{fmt.Sprintf("%s: stored, but without effect in this release: %s", key, strings.Join(names, ", "))}
		}
	case *api.NetworkPolicy:
		return ruleWarnings(key, o.Spec.Ingress, o.Spec.Egress)
	case *api.GlobalNetworkPolicy:
		return ruleWarnings(key, o.Spec.Ingress, o.Spec.Egress)
	}
	return nil
}

// ruleWarnings names rules that are enforced, but not as their author may think.
func ruleWarnings(key datastore.Key, ingress, egress []api.Rule) []string {
	var out []string
	for direction, rules := range map[string][]api.Rule{"ingress": ingress, "egress": egress} {
		for i, r := range rules {
			at := fmt.Sprintf("%s: %s[%d]", key, direction, i)
			if r.HTTP != nil {
				out = append(out, at+": matches nothing: no proxy looks into connections for http criteria")
			}
			if r.Source.Services != nil || r.Destination.Services != nil {
				effect := "matches nobody"
				if r.Action == api.ActionDeny || r.Action == api.ActionPass {
					effect = "denies whatever meets its other criteria"
				}
				out = append(out, at+": "+effect+": the endpoints of services are not known without Kubernetes")
			}
		}
	}
	slices.Sort(out)
	return out
}
