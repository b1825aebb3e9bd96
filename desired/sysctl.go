package desired

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Sysctls is every kernel parameter that this host should have: path below /proc/sys, with slashes, to value. Slashes
// because interface names may hold dots.
type Sysctls map[string]string

// HostSysctls is what a host needs to be a router (ip-sysctl.rst of the kernel).
func HostSysctls(v4, v6 bool) Sysctls {
	s := Sysctls{}
	if v4 {
		s["net/ipv4/ip_forward"] = "1"
	}
	if v6 {
		s["net/ipv6/conf/all/forwarding"] = "1"
	}
	return s
}

// EndpointSysctls is what the host side of a workload's veth pair needs, whatever sets it first: the attachment before
// the interface is up, the reconciler afterwards (spec/calico.md §4). rp_filter is left as the system has it.
func EndpointSysctls(iface string, v4, v6 bool) Sysctls {
	s := Sysctls{}
	if v4 {
		conf := "net/ipv4/conf/" + iface + "/"
		s[conf+"forwarding"] = "1"
		// The host answers ARP for everything the workload asks for: its gateway 169.254.1.1 is nobody's address.
		s[conf+"proxy_arp"] = "1"
		s["net/ipv4/neigh/"+iface+"/proxy_delay"] = "0"
		// 127/8 destinations reached through NAT (hostPort) may enter here.
		s[conf+"route_localnet"] = "1"
	}
	if v6 {
		conf := "net/ipv6/conf/" + iface + "/"
		s[conf+"disable_ipv6"] = "0"
		s[conf+"forwarding"] = "1"
		s[conf+"proxy_ndp"] = "1"
		// The interface's link-local address is the same on every veth, by intent: detection would take a second.
		s[conf+"accept_dad"] = "0"
	}
	// A workload must not reconfigure the host by router advertisements (CVE-2020-13597), also where IPv6 is unused.
	s["net/ipv6/conf/"+iface+"/accept_ra"] = "0"
	return s
}

// Merge adds the parameters of another map; the last one wins.
func (s Sysctls) Merge(o Sysctls) { maps.Copy(s, o) }

// String is one "path = value" line per parameter, in order.
func (s Sysctls) String() string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&b, "%s = %s\n", k, s[k])
	}
	return b.String()
}
