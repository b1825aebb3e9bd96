// Package resource creates, reads, replaces and deletes v3 resources with the
// rules that concern more than the object itself (spec/calico.md §1.2, §1.3,
// §1.5, §3):
//
//   - every object written is defaulted and validated first;
//   - IP pools do not overlap, do not cover blocks of another size, keep their
//     CIDR and block size, and are emptied of claims before they go;
//   - a node takes what belongs to it along when it is deleted;
//   - the profile projectcalico-default-allow exists without being stored;
//   - the cluster has one ClusterInformation, whose GUID never changes, and three
//     tiers that cannot be deleted; a policy's tier exists, a tier with policies
//     stays;
//   - a new BGP peer's filters exist;
//   - claims on blocks are shown as BlockAffinity, and an IPAMConfiguration is
//     what IPAM goes by.
//
// What concerns one object alone is in package api, how it is stored in
// package datastore. Errors are *Error, which say what was not possible with
// which resource and match ErrNotExist, ErrExists, ErrConflict or
// ErrUnsupported, or *api.FieldErrors, which say what is wrong with the input;
// anything else comes from the datastore.
package resource
