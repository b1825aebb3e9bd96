package api

import "strings"

// IPReservation lists addresses that automatic assignment never hands out.
type IPReservation struct {
	Resource
	Spec IPReservationSpec `json:"spec"`
}

// IPReservationSpec is the specification (spec/calico.md §1.4).
type IPReservationSpec struct {
	ReservedCIDRs []string `json:"reservedCIDRs,omitempty"` // addresses that are not given out
}

// Default fills the head and respells the CIDRs as networks.
func (r *IPReservation) Default() {
	r.setType("IPReservation")
	maskCIDRs(r.Spec.ReservedCIDRs)
}

// Validate checks every reserved CIDR or address.
func (r *IPReservation) Validate() error {
	c := newChecker(&r.Resource, "IPReservation", false)
	for i, s := range r.Spec.ReservedCIDRs {
		c.net(index("Spec.ReservedCIDRs", i), s)
	}
	return c.Err()
}

func ipReservationKind() Kind {
	return Kind{
		Name: "IPReservation", Plural: "ipreservations", Aliases: []string{"reservation", "reservations"},
		New: func() Object { return &IPReservation{} },
		Columns: []Column{
			nameColumn(),
			{Header: "CIDRS", Wide: true, Value: func(o Object, _ PrintContext) string {
				return strings.Join(o.(*IPReservation).Spec.ReservedCIDRs, ",")
			}},
		},
	}
}
