// Package trace follows a packet hop by hop from one address to another and
// says in words by which kernel objects it goes: routes and the rules that led
// to them, veth pairs, tunnels, neighbours and forwarding entries; how it is
// encapsulated and how large it may be at each; and where it would be lost.
//
// The walk (Run) is pure: it works on views of network namespaces. Look makes a
// view of the namespace that the calling thread is in; it asks the kernel itself
// for routes (RTM_GETROUTE with RTM_F_FIB_MATCH), so that rules, metrics and
// source checks count as they do for packets. Cluster makes a view of a host
// from the datastore: what its agent would program. No packet is sent.
//
// Others' packet filters that a packet has to pass and that could drop it are
// named; their rules are not evaluated. What our own policy says is package
// explain's.
package trace
