package api

import (
	"fmt"
	"sort"
	"strings"
)

// Kind describes one resource type: how it is named, where it is stored, how
// it is printed. It is data; Kinds is the one list.
type Kind struct {
	Name       string   // "IPPool"
	Plural     string   // lower case, the segment of the storage path: "ippools"
	Aliases    []string // what calicoctl accepts besides name and plural, lower case
	Namespaced bool
	New        func() Object
	Columns    []Column
}

// Column is one column of `get`'s table (spec/calico.md §7).
type Column struct {
	Header string // as printed, upper case
	Wide   bool   // shown with -o wide
	Narrow bool   // shown without -o
	Value  func(o Object, c PrintContext) string
}

// PrintContext is what a table cell may need beside its own object.
type PrintContext struct {
	// ASNumber is the cluster's AS, printed in parentheses where a node has none.
	ASNumber uint32
}

// Kinds lists every resource type served, in the order of the manual.
func Kinds() []Kind {
	return []Kind{
		bgpConfigurationKind(),
		bgpFilterKind(),
		bgpPeerKind(),
		blockAffinityKind(),
		calicoNodeStatusKind(),
		clusterInformationKind(),
		felixConfigurationKind(),
		globalNetworkPolicyKind(),
		globalNetworkSetKind(),
		hostEndpointKind(),
		ipamConfigurationKind(),
		ipPoolKind(),
		ipReservationKind(),
		kubeControllersConfigurationKind(),
		networkPolicyKind(),
		networkSetKind(),
		nodeKind(),
		profileKind(),
		stagedGlobalNetworkPolicyKind(),
		stagedKubernetesNetworkPolicyKind(),
		stagedNetworkPolicyKind(),
		tierKind(),
		workloadEndpointKind(),
	}
}

// LookupKind finds a kind by its name, plural, "kinds" spelling or alias, in
// any case. The error lists what is accepted.
func LookupKind(word string) (Kind, error) {
	w := strings.ToLower(word)
	var known []string
	for _, k := range Kinds() {
		name := strings.ToLower(k.Name)
		if w == name || w == k.Plural || w == name+"s" {
			return k, nil
		}
		for _, a := range k.Aliases {
			if w == a {
				return k, nil
			}
		}
		known = append(known, k.Name)
	}
	sort.Strings(known)
	return Kind{}, fmt.Errorf("resource type '%s' is not supported (known: %s)", word, strings.Join(known, ", "))
}
