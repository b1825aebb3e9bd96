package render

import "github.com/manekinet/maneki/desired"

// Dispatch names the maps by which packets find the chain of their workload. As
// soon as they are in the kernel as wanted, so is everything that they lead to.
func Dispatch() []desired.NFTKey {
	var out []desired.NFTKey
	for _, base := range []string{forwardIn, forwardOut, input} {
		out = append(out, desired.NFTKey{Kind: desired.NFTSet, Name: dispatchName(base)})
	}
	return out
}

func dispatchName(base string) string { return base + "_by_interface" }
