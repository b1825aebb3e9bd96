// Package ipip is IP in IP (RFC 2003) for kernels that have no such device: two eBPF programs, the hooks that they are
// attached to, and the maps that steer them. Package tunnels makes the device around them.
//
// Everything is attached without a link or a pinned file: by BPF_PROG_ATTACH to tcx (Linux 6.6), or as a filter of
// clsact on older kernels. So it stays when the agent ends, however it ends, goes with the interface or the network
// namespace, and needs no file system. A new agent loads its own programs, fills their maps, and then takes the place of
// the old ones in one step, so that no packet meets a hook without a program.
//
// The object bpf/ipip.o is built from bpf/ipip.c by go generate with clang 19, byte for byte.
package ipip

//go:generate clang-19 -target bpfel -mcpu=v3 -O2 -g -Wall -Wextra -Werror -fdebug-compilation-dir=. -Qn -c bpf/ipip.c -o bpf/ipip.o
