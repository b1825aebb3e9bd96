// Package ipam hands out addresses. It is Calico's block model on Calico's
// stored JSON (spec/calico.md §1.4, §3): a pool is cut into blocks, a block is
// affine to one host, a host assigns from its own blocks and borrows from
// others only when no block is left, and a handle counts what each owner holds.
//
// The decisions are plain functions on plain values: block.go (one block's
// ordinals), pool.go (which pools a request may use), blockwalk.go (the order
// in which a host tries the blocks of a pool) and handle.go (counters). The
// I/O is one compare-and-swap loop over package datastore: engine.go plans a
// batch of requests on a working copy, commits it, and on a conflict reads
// again. Client runs it for one request; Host runs it for all requests of one
// host, keeps that host's blocks with their revisions in memory so that an
// address costs one transaction and no read, and puts concurrent requests into
// one transaction.
package ipam
