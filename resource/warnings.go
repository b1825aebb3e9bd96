package resource

import (
	"fmt"
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
	case *api.NetworkPolicy, *api.GlobalNetworkPolicy:
		return []string{fmt.Sprintf("%s: stored, but this release does not enforce policies", key)}
	}
	return nil
}
