// Package capture reads packets as tcpdump does: it turns the octets of a frame
// into one line of text (the form of `tcpdump -nn -S`), selects packets by the
// usual filter words, and writes the classic pcap file. It opens no socket and
// knows no lab: frames in, text out, and no octets make it panic.
package capture

import "time"

// Link is what a frame begins with; the numbers are those of pcap files
// (https://www.tcpdump.org/linktypes.html).
type Link uint32

// The links that are understood.
const (
	Ethernet Link = 1   // LINKTYPE_ETHERNET
	Raw      Link = 101 // LINKTYPE_RAW: an IPv4 or IPv6 header
	Cooked   Link = 276 // LINKTYPE_LINUX_SLL2: a capture on all interfaces
)

// String is the link's name in pcap, and in words.
func (l Link) String() string {
	switch l {
	case Ethernet:
		return "EN10MB (Ethernet)"
	case Raw:
		return "RAW (Raw IP)"
	case Cooked:
		return "LINUX_SLL2 (Linux cooked v2)"
	default:
		return "unknown"
	}
}

// Packet is one frame and when it was seen.
type Packet struct {
	Time time.Time
	Data []byte
}

// be16 and be32 read what the caller has made sure is there.
func be16(d []byte) uint16 { return uint16(d[0])<<8 | uint16(d[1]) }

func be32(d []byte) uint32 { return uint32(be16(d))<<16 | uint32(be16(d[2:])) }
