package capture

import "encoding/binary"

// CookedHeader is what stands before a packet in a capture on all interfaces
// (LINKTYPE_LINUX_SLL2).
type CookedHeader struct {
	EtherType uint16
	Interface uint32 // index
	Hardware  uint16 // ARPHRD_ value
	Type      byte   // PACKET_HOST, _BROADCAST, _MULTICAST, _OTHERHOST, _OUTGOING
	Address   []byte // of the sender on the link, at most 8 octets
}

// Frame puts the header before a packet.
func (h CookedHeader) Frame(packet []byte) []byte {
	address := h.Address[:min(len(h.Address), 8)]
	b := make([]byte, 0, cookedLen+len(packet))
	b = binary.BigEndian.AppendUint16(b, h.EtherType)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint32(b, h.Interface)
	b = binary.BigEndian.AppendUint16(b, h.Hardware)
	b = append(b, h.Type, byte(len(address)))
	b = append(b, address...)
	b = b[:cookedLen] // the capacity is there, and zero
	return append(b, packet...)
}

// Direction is "In" or "Out", or who else a cooked frame was for; "" for other
// frames.
func Direction(link Link, frame []byte) string {
	if link != Cooked || len(frame) < cookedLen {
		return ""
	}
	names := [...]string{"In", "B", "M", "P", "Out"}
	if t := int(frame[10]); t < len(names) {
		return names[t]
	}
	return "?"
}
