// Package jsonpatch changes JSON documents in the three ways that `patch` knows:
// JSON Patch (RFC 6902, with the pointers of RFC 6901), JSON Merge Patch (RFC
// 7386), and the strategic merge patch of Kubernetes for types that name no
// merge keys, where maps are merged and lists are replaced. It does no I/O.
//
// Numbers are never rounded: what a patch does not touch keeps its text.
package jsonpatch
