// Package pathmtu measures what really passes between this host and every other
// one: how large a packet may be on the underlay, and whether packets with
// checksums come out of a tunnel as they went in.
//
// It is Datagram PLPMTUD (RFC 8899) between agents: a UDP packet of a chosen
// size with DF set is answered by a small one. A size is good when it is
// answered, and too large only when a smaller one is answered while it is not;
// nothing is concluded from silence. Through a tunnel the same packet is sent
// with and without a UDP checksum: where only the one without arrives, the
// network card breaks the inner checksum that the kernel left to it (as some do
// with CHECKSUM_PARTIAL inside UDP).
//
// Sockets are bound to one own address each, and to the device of a tunnel.
// Packets of senders that are not hosts of the cluster are not answered, an
// answer is never larger than its question, and answers are limited per second.
package pathmtu
