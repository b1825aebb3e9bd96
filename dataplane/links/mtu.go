package links

import "regexp"

// MTUPattern matches the interfaces whose MTU counts, unless configured otherwise: Calico's default mtuIfacePattern
// (spec/calico.md §5.6).
const MTUPattern = `^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)`

// FallbackMTU is taken when no interface matches: what the smallest of the large clouds has.
const FallbackMTU = 1460

// HostMTU is the smallest MTU of the interfaces that are up and match, FallbackMTU if there is none.
func HostMTU(interfaces []Interface, pattern *regexp.Regexp) int {
	mtu := 0
	for _, i := range interfaces {
		if i.Up && i.MTU > 0 && pattern.MatchString(i.Name) && (mtu == 0 || i.MTU < mtu) {
			mtu = i.MTU
		}
	}
	if mtu == 0 {
		return FallbackMTU
	}
	return mtu
}

// Overhead is the bytes that an encapsulation adds to every packet.
type Overhead int

// The encapsulations (spec/calico.md §5.6).
const (
	IPIP       Overhead = 20
	VXLAN      Overhead = 50
	VXLAN6     Overhead = 70 // VXLAN over IPv6
	WireGuard  Overhead = 60
	WireGuard6 Overhead = 80 // WireGuard over IPv6
)

// WorkloadMTU is what fits through every encapsulation in use.
func WorkloadMTU(hostMTU int, encapsulations ...Overhead) int {
	most := Overhead(0)
	for _, o := range encapsulations {
		most = max(most, o)
	}
	return hostMTU - int(most)
}
