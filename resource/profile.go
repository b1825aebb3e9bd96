package resource

import (
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

func isDefaultAllow(kind, name string) bool {
	return kind == "Profile" && name == api.DefaultAllowProfile
}

// withDefaultAllow puts the profile that is never stored where its name belongs.
// One that another program stored under the name does not count.
func withDefaultAllow(objects []api.Object) []api.Object {
	objects = slices.DeleteFunc(objects, func(o api.Object) bool { return o.Meta().Name == api.DefaultAllowProfile })
	at, _ := slices.BinarySearchFunc(objects, api.DefaultAllowProfile, func(o api.Object, name string) int {
		return strings.Compare(o.Meta().Name, name)
	})
	return slices.Insert(objects, at, api.Object(api.NewDefaultAllowProfile()))
}

func builtIn(operation string, key datastore.Key) error {
	return &Error{
		Class: ErrUnsupported, Operation: operation, Kind: key.Kind, Name: key.Name,
		Reason: "the profile is built in",
	}
}
