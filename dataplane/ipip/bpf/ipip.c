// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// IP in IP (RFC 2003) for kernels without their own, on two ends of a veth pair and the underlay's interfaces:
//
//   stack -> tunl0 = tunl0-wire -> maneki_encap -> route of the outer packet -> underlay
//   underlay -> maneki_decap -> tunl0-wire = tunl0 -> stack
//
// The stack sees tunl0 as it would see the kernel's own device: its routes, counters, captures, netfilter hooks and
// MTU. Packets that are merged for segmentation offload stay merged in both directions.
#include "kernel.h"

enum { PROTO_ICMP = 1, PROTO_IPIP = 4, PROTO_TCP = 6 };
enum { ETH_LEN = 14, IP_LEN = 20, ICMP_LEN = 8 };
#define ETH_IP be16(0x0800)
#define DONT_FRAGMENT be16(0x4000)
#define FRAGMENT_MASK be16(0x3fff) // more fragments, or an offset

struct ipv4 {
	u8 version_ihl;
	u8 tos;
	u16 len;
	u16 id;
	u16 frag;
	u8 ttl;
	u8 protocol;
	u16 csum;
	u32 src;
	u32 dst;
};

struct icmp {
	u8 type;
	u8 code;
	u16 csum;
	u8 unused;
	u8 length; // of the quoted packet in words, or 0 (RFC 4884 §4)
	u16 mtu;
};

// What the agent fills in. All are read only here.
struct config {
	u32 local;   // source of our outer packets and destination of those for us
	u32 tunnel;  // index of tunl0
	u32 wire;    // index of tunl0-wire
	u8 mac[6];   // of tunl0
	u8 ttl;      // of outer packets
	u8 unused;
};

struct {
	MAP_UINT(type, MAP_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct config);
} maneki_config SEC(".maps");

struct prefix {
	u32 bits;
	u32 addr;
};

// The hosts at the other ends. Nobody else's packets are unpacked, and none are sent to anybody else.
struct {
	MAP_UINT(type, MAP_LPM_TRIE);
	MAP_UINT(map_flags, MAP_NO_PREALLOC);
	MAP_UINT(max_entries, 65536);
	MAP_TYPE(key, struct prefix);
	MAP_TYPE(value, u32);
} maneki_hosts SEC(".maps");

// Why packets were not carried. The order is that of Reasons in programs.go.
enum reason {
	NO_ROUTE,      // no gateway for the inner packet on tunl0, or no way to that gateway
	UNKNOWN_HOST,  // outer source or gateway is none of the hosts
	TOO_BIG,       // the outer packet does not fit the underlay; the sender was told if it forbids fragments
	FRAGMENT,      // a fragment of an outer packet
	MALFORMED,     // headers that cannot be
	CONGESTION,    // marked on the way although the inner sender does not know ECN (RFC 6040 §4.2)
	RELAYED,       // not lost: an ICMP error about an outer packet, passed on to the inner sender
	FOLLOWED,      // not lost: sent the way that the route leads by now, which is not tunl0 any more
	REASONS,
};

struct {
	MAP_UINT(type, MAP_PERCPU_ARRAY);
	MAP_UINT(max_entries, REASONS);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u64);
} maneki_reasons SEC(".maps");

inline_always int count(u32 why, int verdict)
{
	u64 *n = map_lookup(&maneki_reasons, &why);
	if (n)
		(*n)++;
	return verdict;
}

inline_always const struct config *configured(void)
{
	u32 zero = 0;
	return map_lookup(&maneki_config, &zero);
}

inline_always int known(u32 addr)
{
	struct prefix p = {.bits = 32, .addr = addr};
	return map_lookup(&maneki_hosts, &p) != 0;
}

// words adds 16-bit words as RFC 1071 says.
inline_always u32 words(const void *from, int bytes)
{
	const u16 *w = from;
	u32 s = 0;
#pragma unroll
	for (int i = 0; i < bytes / 2; i++)
		s += w[i];
	s = (s & 0xffff) + (s >> 16);
	return (s & 0xffff) + (s >> 16);
}

// sum is 0xffff for an IPv4 header without options that is intact.
inline_always u32 sum(const struct ipv4 *ip) { return words(ip, IP_LEN); }

// segment is the size of the largest packet that will leave: of a merged packet that of one segment.
inline_always u32 segment(struct packet *p, const struct ipv4 *ip)
{
	u32 header = (ip->version_ihl & 15) * 4;
	u8 offset = 0;
	if (!p->gso_size)
		return p->len - ETH_LEN;
	if (ip->protocol != PROTO_TCP)
		return header + 8 + p->gso_size;
	load_bytes(p, ETH_LEN + header + 12, &offset, 1);
	return header + (offset >> 4) * 4 + p->gso_size;
}

// gateway asks for the route by tunl0, as the stack did: its next hop is the other end (0 for none).
inline_always u32 gateway(struct packet *p, const struct config *c, const struct ipv4 *ip)
{
	struct fib_lookup f = {
		.family = AF_INET, .l4_protocol = ip->protocol, .ifindex = c->tunnel, .tos = ip->tos,
		.src = {ip->src}, .dst = {ip->dst},
	};
	s64 rc = fib_lookup(p, &f, sizeof(f), FIB_OUTPUT);
	if ((rc != FIB_SUCCESS && rc != FIB_NO_NEIGHBOUR) || f.dst[0] == ip->dst || f.family != AF_INET)
		return 0;
	return f.dst[0];
}

// too_big tells the sender of a packet that may not be fragmented which size fits (RFC 1191 §4), as the stack would. It
// seems to come from the packet's destination, so that the way back to its source is the tunnel.
inline_always int too_big(struct packet *p, const struct config *c, const struct ipv4 *in, u16 mtu)
{
	enum { UNREACHABLE = 3, TOO_LARGE = 4, ECHO = 8 };
	// Of TCP the quotation must reach beyond the checksum, which the kernel may still have to fill in.
	struct {
		struct ipv4 ip;
		struct icmp error;
		struct ipv4 in;
		u8 transport[20];
	} q;
	enum { QUOTED = IP_LEN + sizeof(q.transport) };
	count(TOO_BIG, 0);
	if (in->version_ihl != 0x45 || !(in->frag & DONT_FRAGMENT) || in->frag & be16(0x1fff) || mtu < 68 + IP_LEN ||
	    load_bytes(p, ETH_LEN, &q.in, QUOTED) || (in->protocol == PROTO_ICMP && q.transport[0] != ECHO))
		return VERDICT_DROP;
	q.error = (struct icmp){.type = UNREACHABLE, .code = TOO_LARGE, .mtu = be16(mtu - IP_LEN)};
	q.error.csum = ~words(&q.error, ICMP_LEN + QUOTED);
	q.ip = (struct ipv4){
		.version_ihl = 0x45, .len = be16(IP_LEN + ICMP_LEN + QUOTED), .ttl = c->ttl, .protocol = PROTO_ICMP,
		.src = in->dst, .dst = in->src,
	};
	q.ip.csum = ~sum(&q.ip);
	if (change_tail(p, ETH_LEN + QUOTED, 0) || adjust_room(p, IP_LEN + ICMP_LEN, ROOM_MAC, 0) ||
	    store_bytes(p, ETH_LEN, &q, IP_LEN + ICMP_LEN, 0) || store_bytes(p, 0, c->mac, sizeof(c->mac), 0))
		return VERDICT_DROP;
	return redirect(c->wire, 0);
}

// follow sends a packet on that the stack has given to tunl0 by a route that was changed before the packet came here,
// which on a busy host takes milliseconds: the way that the route leads now.
inline_always int follow(struct packet *p, const struct config *c, const struct ipv4 *ip)
{
	struct fib_lookup f = {
		.family = AF_INET, .l4_protocol = ip->protocol, .ifindex = c->wire, .tos = ip->tos,
		.tot_len = segment(p, ip), .src = {ip->src}, .dst = {ip->dst},
	};
	s64 rc = fib_lookup(p, &f, sizeof(f), 0);
	if (rc == FIB_FRAGMENTATION_NEEDED)
		return too_big(p, c, ip, f.tot_len + IP_LEN);
	if ((rc != FIB_SUCCESS && rc != FIB_NO_NEIGHBOUR) || f.ifindex == c->tunnel || f.ifindex == c->wire)
		return count(NO_ROUTE, VERDICT_DROP);
	struct next_hop hop = {.family = f.family, .addr = {f.dst[0], f.dst[1], f.dst[2], f.dst[3]}};
	count(FOLLOWED, 0);
	return redirect_neigh(f.ifindex, &hop, sizeof(hop), 0);
}

SEC("tc")
int maneki_encap(struct packet *p)
{
	const struct config *c = configured();
	struct ipv4 in;
	if (!c || p->protocol != ETH_IP)
		return VERDICT_DROP; // what a device says of itself, such as IPv6 router solicitations
	if (load_bytes(p, ETH_LEN, &in, sizeof(in)) || in.version_ihl >> 4 != 4 || !in.ttl)
		return count(MALFORMED, VERDICT_DROP);
	u32 peer = gateway(p, c, &in);
	if (!peer)
		return follow(p, c, &in);
	if (!known(peer))
		return count(UNKNOWN_HOST, VERDICT_DROP);

	struct fib_lookup f = {
		.family = AF_INET, .l4_protocol = PROTO_IPIP, .ifindex = c->wire, .tos = in.tos,
		.tot_len = segment(p, &in) + IP_LEN, .src = {c->local}, .dst = {peer},
	};
	s64 rc = fib_lookup(p, &f, sizeof(f), 0);
	if (rc == FIB_FRAGMENTATION_NEEDED)
		return too_big(p, c, &in, f.tot_len);
	if ((rc != FIB_SUCCESS && rc != FIB_NO_NEIGHBOUR) || f.ifindex == c->tunnel || f.ifindex == c->wire)
		return count(NO_ROUTE, VERDICT_DROP);

	struct ipv4 out = {
		.version_ihl = 0x45,
		.tos = in.tos, // RFC 2003 §3.1; for its two ECN bits the normal mode of RFC 6040 §4.1
		.len = be16((u16)(p->len - ETH_LEN + IP_LEN)),
		.id = in.id,
		// Always: RFC 2003 §3.1 asks for it where the inner packet has it and allows it elsewhere. The other end
		// may be such a program too, which cannot put fragments together.
		.frag = DONT_FRAGMENT,
		.ttl = c->ttl, .protocol = PROTO_IPIP, .src = c->local, .dst = peer,
	};
	out.csum = ~sum(&out);
	if (adjust_room(p, IP_LEN, ROOM_MAC, ROOM_FIXED_GSO | ROOM_ENCAP_IPV4) || store_bytes(p, ETH_LEN, &out, sizeof(out), 0))
		return count(MALFORMED, VERDICT_DROP);
	struct next_hop hop = {.family = f.family, .addr = {f.dst[0], f.dst[1], f.dst[2], f.dst[3]}};
	return redirect_neigh(f.ifindex, &hop, sizeof(hop), 0);
}

// congestion gives the ECN bits of the unpacked packet, or -1 for one that must be dropped (RFC 6040 §4.2, figure 4).
inline_always int congestion(u8 inner, u8 outer)
{
	enum { NOT_ECT = 0, ECT1 = 1, ECT0 = 2, CE = 3 };
	inner &= 3;
	outer &= 3;
	if (outer == CE)
		return inner == NOT_ECT ? -1 : CE;
	if (outer == ECT1 && inner == ECT0)
		return ECT1;
	return inner;
}

// unpack takes an outer packet for us off.
inline_always int unpack(struct packet *p, const struct config *c, const struct ipv4 *out)
{
	struct ipv4 in;
	if (out->frag & FRAGMENT_MASK)
		return count(FRAGMENT, VERDICT_NEXT);
	if (!known(out->src))
		return count(UNKNOWN_HOST, VERDICT_NEXT);
	if (out->version_ihl != 0x45 || sum(out) != 0xffff || load_bytes(p, ETH_LEN + IP_LEN, &in, sizeof(in)) ||
	    in.version_ihl >> 4 != 4 || !in.ttl)
		return count(MALFORMED, VERDICT_DROP);
	int ecn = congestion(in.tos, out->tos);
	if (ecn < 0)
		return count(CONGESTION, VERDICT_DROP);
	if (adjust_room(p, -IP_LEN, ROOM_MAC, ROOM_FIXED_GSO))
		return count(MALFORMED, VERDICT_DROP);
	if (ecn != (in.tos & 3)) {
		u8 tos = (in.tos & 0xfc) | ecn;
		l3_csum_replace(p, ETH_LEN + 10, in.version_ihl | in.tos << 8, in.version_ihl | tos << 8, 2);
		store_bytes(p, ETH_LEN + 1, &tos, 1, 0);
	}
	// The stack takes on tunl0 what is addressed to it.
	if (store_bytes(p, 0, c->mac, sizeof(c->mac), 0))
		return count(MALFORMED, VERDICT_DROP);
	return redirect(c->wire, 0);
}

// relayed is what the inner sender is told of an error about an outer packet, as type << 8 | code; 0 for nothing
// (RFC 2003 §4): that a host behind the tunnel's end cannot be reached, or that packets must be smaller.
inline_always u32 relayed(const struct icmp *e)
{
	enum { UNREACHABLE = 3, TIME_EXCEEDED = 11, NET = 0, HOST = 1, TOO_LARGE = 4 };
	if (e->type == UNREACHABLE && e->code == TOO_LARGE)
		return UNREACHABLE << 8 | TOO_LARGE;
	if ((e->type == UNREACHABLE && (e->code == NET || e->code == HOST)) || (e->type == TIME_EXCEEDED && e->code == 0))
		return UNREACHABLE << 8 | HOST;
	return 0;
}

// relay turns an ICMP error about an outer packet of ours into one about the packet inside, for its sender. The stack
// then routes it there. An intact header adds 0 to a checksum (RFC 1071), so taking the outer one out of the quotation
// leaves the ICMP checksum as it is but for the words changed here.
inline_always int relay(struct packet *p, const struct config *c, struct ipv4 *ip)
{
	struct {
		struct icmp error;
		struct ipv4 out, in;
		u8 transport[8];
	} q;
	if (ip->version_ihl != 0x45 || ip->frag & FRAGMENT_MASK || load_bytes(p, ETH_LEN + IP_LEN, &q, sizeof(q)))
		return VERDICT_NEXT;
	u32 type = relayed(&q.error);
	if (!type || q.out.version_ihl != 0x45 || q.out.protocol != PROTO_IPIP || q.out.src != c->local || sum(&q.out) != 0xffff ||
	    q.in.version_ihl >> 4 != 4 || !known(q.out.dst))
		return VERDICT_NEXT;
	struct icmp e = {.type = type >> 8, .code = type & 0xff};
	if (q.error.length > IP_LEN / 4)
		e.length = q.error.length - IP_LEN / 4;
	if (e.code == 4) {
		u16 mtu = be16(q.error.mtu);
		if (mtu < 68 + IP_LEN) // RFC 791 promises 68
			return VERDICT_NEXT;
		e.mtu = be16(mtu - IP_LEN);
	}
	const u16 *was = (const u16 *)&q.error, *is = (const u16 *)&e;
	u32 s = (u16)~q.error.csum + (u16)~was[0] + (u16)~was[2] + (u16)~was[3] + is[0] + is[2] + is[3];
	s = (s & 0xffff) + (s >> 16);
	e.csum = ~((s & 0xffff) + (s >> 16));

	if (adjust_room(p, -IP_LEN, ROOM_NET, 0))
		return VERDICT_NEXT;
	ip->len = be16(be16(ip->len) - IP_LEN);
	ip->dst = q.in.src;
	ip->csum = 0;
	ip->csum = ~sum(ip);
	if (store_bytes(p, ETH_LEN, ip, sizeof(*ip), STORE_RECOMPUTE_CSUM) ||
	    store_bytes(p, ETH_LEN + IP_LEN, &e, sizeof(e), STORE_RECOMPUTE_CSUM))
		return count(MALFORMED, VERDICT_DROP);
	return count(RELAYED, VERDICT_NEXT);
}

SEC("tc")
int maneki_decap(struct packet *p)
{
	struct ipv4 ip;
	if (p->protocol != ETH_IP || p->vlan_present || load_bytes(p, ETH_LEN, &ip, sizeof(ip)))
		return VERDICT_NEXT;
	if (ip.protocol != PROTO_IPIP && ip.protocol != PROTO_ICMP)
		return VERDICT_NEXT;
	const struct config *c = configured();
	if (!c || ip.dst != c->local)
		return VERDICT_NEXT;
	return ip.protocol == PROTO_IPIP ? unpack(p, c, &ip) : relay(p, c, &ip);
}

// The helpers for routes are open to programs under the GPL only.
char maneki_license[] SEC("license") = "GPL";
