package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// IP protocol numbers that policies know by name (spec/calico.md §5.2).
const (
	ProtoICMP    = 1
	ProtoTCP     = 6
	ProtoUDP     = 17
	ProtoICMPv6  = 58
	ProtoSCTP    = 132
	ProtoUDPLite = 136
)

// Packet is the first packet of a connection, as policy looks at it.
type Packet struct {
	Src, Dst         netip.Addr
	Protocol         uint8
	SrcPort, DstPort uint16 // of protocols that have ports
	Type, Code       uint8  // of ICMP and ICMPv6
}

// String is "10.0.0.1:40000 -> 10.0.0.2:80 tcp" or "10.0.0.1 -> 10.0.0.2 icmp type 8 code 0".
func (p Packet) String() string {
	switch {
	case HasPorts(p.Protocol):
		src := p.Src.String()
		if p.SrcPort != 0 {
			src = netip.AddrPortFrom(p.Src, p.SrcPort).String()
		}
		return fmt.Sprintf("%s -> %s %s", src, netip.AddrPortFrom(p.Dst, p.DstPort), ProtocolName(p.Protocol))
	case p.Protocol == ProtoICMP || p.Protocol == ProtoICMPv6:
		return fmt.Sprintf("%s -> %s %s type %d code %d", p.Src, p.Dst, ProtocolName(p.Protocol), p.Type, p.Code)
	}
	return fmt.Sprintf("%s -> %s %s", p.Src, p.Dst, ProtocolName(p.Protocol))
}

// NeighbourDiscovery reports whether a packet is one that a workload must be able
// to send to its host whatever policies say: multicast listener and neighbour
// discovery, ICMPv6 types 130 to 136 (spec/calico.md §5.5).
func (p Packet) NeighbourDiscovery() bool {
	return p.Protocol == ProtoICMPv6 && p.Type >= 130 && p.Type <= 136
}

// Gateway is the address that every workload has as its gateway, which is its
// host: no other host and no workload has it.
func Gateway() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 1, 1}) }

// NameServer reports whether a packet asks the name server that a host has for
// its workloads on the gateway's address.
func (p Packet) NameServer() bool {
	return p.Dst == Gateway() && p.DstPort == 53 && (p.Protocol == ProtoUDP || p.Protocol == ProtoTCP)
}

// HasPorts reports whether rules may ask for ports of the protocol.
func HasPorts(protocol uint8) bool {
	return protocol == ProtoTCP || protocol == ProtoUDP || protocol == ProtoSCTP
}

// protocolNames are the names, in lower case.
func protocolNames() map[uint8]string {
	return map[uint8]string{
		ProtoICMP: "icmp", ProtoTCP: "tcp", ProtoUDP: "udp", ProtoICMPv6: "icmpv6", ProtoSCTP: "sctp", ProtoUDPLite: "udplite",
	}
}

// ProtocolName is the name in lower case, or "protocol 47".
func ProtocolName(n uint8) string {
	if name, ok := protocolNames()[n]; ok {
		return name
	}
	return "protocol " + strconv.Itoa(int(n))
}

// ParseProtocol reads a protocol's name, in any case, or its number 1-255.
func ParseProtocol(s string) (uint8, error) {
	for n, name := range protocolNames() {
		if strings.EqualFold(s, name) {
			return n, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("protocol %q: must be tcp, udp, sctp, icmp, icmpv6, udplite or 1-255", s)
	}
	return uint8(n), nil
}

// family is 4 or 6.
func (p Packet) family() uint8 {
	if p.Dst.Is4() {
		return 4
	}
	return 6
}
