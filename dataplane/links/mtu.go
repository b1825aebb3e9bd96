package links

import "regexp"

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
