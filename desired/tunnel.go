package desired

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Names of the tunnel devices (spec/calico.md §5.6).
const (
	VXLANDevice  = "vxlan.calico"
	VXLANDevice6 = "vxlan-v6.calico"
	IPIPDevice   = "tunl0"
)

// Encap is how a tunnel packs.
type Encap uint8

// The encapsulations of tunnel devices.
const (
	EncapVXLAN Encap = iota // RFC 7348
	EncapIPIP               // RFC 2003
)

// String is "VXLAN" or "IPIP".
func (e Encap) String() string {
	if e == EncapIPIP {
		return "IPIP"
	}
	return "VXLAN"
}

// Tunnel is a tunnel device that learns nothing: who is behind it follows from the neighbours and the forwarding table
// of a VXLAN device, and from the gateways of the routes by an IPIP device.
type Tunnel struct {
	Encap     Encap
	VNI       int        // of VXLAN: 1 to 16777215
	Port      int        // of VXLAN: UDP, of both ends
	Underlay  string     // of VXLAN: interface that carries the packets
	Uplinks   string     // of IPIP: interfaces that packets come in by, in order, separated by commas
	Hosts     NetSet     // of IPIP: the other ends, which alone packets are taken from
	Local     netip.Addr // source of the packets, an address of this host; its family is that of the underlay
	MAC       string     // of a VXLAN device, as net.HardwareAddr prints it
	Addrs     AddrSet    // the device's addresses, each alone in its subnet; none before IPAM has assigned one
	MTU       int        // bytes of the packets inside; 0 leaves what the kernel chose
	NoOffload bool       // the kernel computes checksums itself, because the card breaks them; false leaves it as it is
	Broken    string     // never wanted: how a device that is there differs in something that is not a field here
}

// Tunnels is every tunnel device that this host should have, by name.
type Tunnels map[string]Tunnel

// String is one line per device.
func (ts Tunnels) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(ts)) {
		t := ts[name]
		if t.Encap == EncapIPIP {
			fmt.Fprintf(&b, "%s ipip local %s uplinks %s hosts %s addr %s mtu %d", name, t.Local, t.Uplinks, t.Hosts, t.Addrs, t.MTU)
		} else {
			fmt.Fprintf(&b, "%s vni %d port %d local %s dev %s mac %s addr %s mtu %d", name, t.VNI, t.Port, t.Local, t.Underlay, t.MAC, t.Addrs, t.MTU)
		}
		if t.NoOffload {
			b.WriteString(" tx-checksum off")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// NeighbourKey is an address behind a tunnel device.
type NeighbourKey struct {
	Dev  string
	Addr netip.Addr
}

// String is "10.0.0.1 dev vxlan.calico".
func (k NeighbourKey) String() string { return k.Addr.String() + " dev " + k.Dev }

// Compare orders by device, then address.
func (k NeighbourKey) Compare(o NeighbourKey) int {
	if c := strings.Compare(k.Dev, o.Dev); c != 0 {
		return c
	}
	return k.Addr.Compare(o.Addr)
}

// Neighbours gives the MAC of each address: permanent ARP or NDP entries.
type Neighbours map[NeighbourKey]string

// String is one line of ip-neighbour(8) per entry, in order.
func (ns Neighbours) String() string {
	var b strings.Builder
	for _, k := range slices.SortedFunc(maps.Keys(ns), NeighbourKey.Compare) {
		fmt.Fprintf(&b, "%s lladdr %s PERMANENT\n", k, ns[k])
	}
	return b.String()
}

// FDBKey is a MAC behind a VXLAN device.
type FDBKey struct{ Dev, MAC string }

// String is "66:f9:37:c3:7e:94 dev vxlan.calico".
func (k FDBKey) String() string { return k.MAC + " dev " + k.Dev }

// Compare orders by device, then MAC.
func (k FDBKey) Compare(o FDBKey) int {
	if c := strings.Compare(k.Dev, o.Dev); c != 0 {
		return c
	}
	return strings.Compare(k.MAC, o.MAC)
}

// FDB gives the host that each MAC lives on: the forwarding table of the VXLAN devices.
type FDB map[FDBKey]netip.Addr

// String is one line of bridge(8) fdb per entry, in order.
func (f FDB) String() string {
	var b strings.Builder
	for _, k := range slices.SortedFunc(maps.Keys(f), FDBKey.Compare) {
		fmt.Fprintf(&b, "%s dst %s self permanent\n", k, f[k])
	}
	return b.String()
}
