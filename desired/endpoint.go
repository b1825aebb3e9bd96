package desired

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// EndpointKey names a WorkloadEndpoint of this host.
type EndpointKey struct{ Namespace, Name string }

// String is "namespace/name".
func (k EndpointKey) String() string { return k.Namespace + "/" + k.Name }

// Compare orders keys by namespace, then name.
func (k EndpointKey) Compare(o EndpointKey) int {
	if c := strings.Compare(k.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(k.Name, o.Name)
}

// Endpoint is the host's side of one local workload: what keeping its interface, sysctls and routes in order needs.
type Endpoint struct {
	Interface string  // host side of the veth pair, "cali" and 11 hex digits
	MAC       string  // of the workload's side, as net.HardwareAddr prints it; empty when unknown
	Addrs     AddrSet // the workload's addresses, both families
}

// Endpoints is every workload attached to this host.
type Endpoints map[EndpointKey]Endpoint

// AddrSet is an immutable set of addresses that can be compared with ==. The zero value is the empty set.
type AddrSet struct{ text string }

// NewAddrSet is the set of the valid addresses given; order and repetition do not matter. IPv4-mapped addresses count
// as IPv4.
func NewAddrSet(addrs ...netip.Addr) AddrSet {
	sorted := make([]netip.Addr, 0, len(addrs))
	for _, a := range addrs {
		if a.IsValid() {
			sorted = append(sorted, a.Unmap())
		}
	}
	slices.SortFunc(sorted, netip.Addr.Compare)
	sorted = slices.Compact(sorted)
	words := make([]string, len(sorted))
	for i, a := range sorted {
		words[i] = a.String()
	}
	return AddrSet{strings.Join(words, ",")}
}

// Addrs is the addresses in ascending order, IPv4 first.
func (s AddrSet) Addrs() []netip.Addr {
	if s.text == "" {
		return nil
	}
	words := strings.Split(s.text, ",")
	addrs := make([]netip.Addr, len(words))
	for i, w := range words {
		addrs[i] = netip.MustParseAddr(w) // written by NewAddrSet
	}
	return addrs
}

// Has4 reports whether the set holds an IPv4 address.
func (s AddrSet) Has4() bool { return slices.ContainsFunc(s.Addrs(), netip.Addr.Is4) }

// Has6 reports whether the set holds an IPv6 address.
func (s AddrSet) Has6() bool { return slices.ContainsFunc(s.Addrs(), netip.Addr.Is6) }

// String is the addresses in ascending order, separated by commas.
func (s AddrSet) String() string { return s.text }

// Format makes %v and %+v print the addresses, also inside other structs, where a Stringer is not called.
func (s AddrSet) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.text) }
