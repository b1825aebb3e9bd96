// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// The part of the kernel's interface to programs that ipip.c uses: layouts and numbers of include/uapi/linux/bpf.h and
// pkt_cls.h, which never change. With it the object depends on no header of the machine it is compiled on.
#ifndef MANEKI_KERNEL_H
#define MANEKI_KERNEL_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;

#define SEC(name) __attribute__((section(name), used))
#define inline_always static inline __attribute__((always_inline))

// Map definitions that a loader reads from the type information.
#define MAP_UINT(name, value) int(*name)[value]
#define MAP_TYPE(name, value) typeof(value) *name

enum { MAP_ARRAY = 2, MAP_PERCPU_ARRAY = 6, MAP_LPM_TRIE = 11 };
enum { MAP_NO_PREALLOC = 1 };

// Verdicts. NEXT is the same number for tcx (TCX_NEXT) and for clsact in direct-action mode (TC_ACT_UNSPEC): other
// programs have their say, then the stack.
enum { VERDICT_NEXT = -1, VERDICT_DROP = 2 };

// Context of a packet: struct __sk_buff as far as it is used.
struct packet {
	u32 len;
	u32 pkt_type;
	u32 mark;
	u32 queue_mapping;
	u32 protocol;
	u32 vlan_present;
	u32 vlan_tci;
	u32 vlan_proto;
	u32 priority;
	u32 ingress_ifindex;
	u32 ifindex;
	u32 tc_index;
	u32 cb[5];
	u32 hash;
	u32 tc_classid;
	u32 data;
	u32 data_end;
	u32 napi_id;
	u32 family;
	u32 remote_ip4;
	u32 local_ip4;
	u32 remote_ip6[4];
	u32 local_ip6[4];
	u32 remote_port;
	u32 local_port;
	u32 data_meta;
	u64 flow_keys;
	u64 tstamp;
	u32 wire_len;
	u32 gso_segs;
	u64 sk;
	u32 gso_size;
};

// struct bpf_fib_lookup.
struct fib_lookup {
	u8 family;
	u8 l4_protocol;
	u16 sport;
	u16 dport;
	u16 tot_len; // in: bytes that must fit, 0 for any; out: the MTU
	u32 ifindex;
	u32 tos; // the first byte
	u32 src[4];
	u32 dst[4]; // out: the next hop, if there is one
	u32 vlan;
	u8 smac[6];
	u8 dmac[6];
};

enum { FIB_OUTPUT = 2 };
enum { FIB_SUCCESS = 0, FIB_NO_NEIGHBOUR = 7, FIB_FRAGMENTATION_NEEDED = 8 };

// struct bpf_redir_neigh.
struct next_hop {
	u32 family;
	u32 addr[4];
};

enum { AF_INET = 2, AF_INET6 = 10 };

// Flags and mode of bpf_skb_adjust_room.
enum { ROOM_NET = 0, ROOM_MAC = 1 };
enum { ROOM_FIXED_GSO = 1 << 0, ROOM_ENCAP_IPV4 = 1 << 1 };
enum { STORE_RECOMPUTE_CSUM = 1 };

// Helpers by their numbers.
static void *(*map_lookup)(const void *map, const void *key) = (void *)1;
static s64 (*store_bytes)(struct packet *, u32 offset, const void *from, u32 len, u64 flags) = (void *)9;
static s64 (*l3_csum_replace)(struct packet *, u32 offset, u64 from, u64 to, u64 size) = (void *)10;
static s64 (*redirect)(u32 ifindex, u64 flags) = (void *)23;
static s64 (*load_bytes)(const struct packet *, u32 offset, void *to, u32 len) = (void *)26;
static s64 (*change_tail)(struct packet *, u32 len, u64 flags) = (void *)38;
static s64 (*adjust_room)(struct packet *, s32 diff, u32 mode, u64 flags) = (void *)50;
static s64 (*fib_lookup)(struct packet *, struct fib_lookup *, u32 size, u32 flags) = (void *)69;
static s64 (*redirect_neigh)(u32 ifindex, const struct next_hop *, u32 size, u64 flags) = (void *)152;

#define be16(x) ((u16)__builtin_bswap16(x))

#endif
