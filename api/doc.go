// Package api holds the wire types of Calico's projectcalico.org/v3 resources
// and of the IPAM objects stored beside them, with their defaults and their
// validation. It does no I/O: what a datastore holds is decoded here, what a
// user typed is judged here, and nothing else happens.
//
// Adding a kind is one file: the struct, its Default and Validate methods, and
// a function returning its Kind row, which Kinds lists.
package api

// GroupVersion is the apiVersion of every v3 resource.
const GroupVersion = "projectcalico.org/v3"

// DefaultASNumber is the AS number of a node when neither the node nor the
// global BGPConfiguration names one (spec/calico.md §6.1).
const DefaultASNumber = 64512
