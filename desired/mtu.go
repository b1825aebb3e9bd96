package desired

// Overhead is the bytes that an encapsulation adds to every packet (spec/calico.md §5.6).
type Overhead int

// The encapsulations.
const (
	OverheadIPIP       Overhead = 20
	OverheadVXLAN      Overhead = 50
	OverheadVXLAN6     Overhead = 70 // over IPv6
	OverheadWireGuard  Overhead = 60
	OverheadWireGuard6 Overhead = 80 // over IPv6
)

// WorkloadMTU is what fits through every encapsulation in use.
func WorkloadMTU(hostMTU int, encapsulations ...Overhead) int {
	most := Overhead(0)
	for _, o := range encapsulations {
		most = max(most, o)
	}
	return hostMTU - int(most)
}

// MTUPattern matches the interfaces whose MTU counts, unless configured otherwise: Calico's default mtuIfacePattern
// (spec/calico.md §5.6).
const MTUPattern = `^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)`
