package calc

import (
	"net/netip"
	"slices"
	"testing"
)

// A reflector passes on services outside the cluster's range and the addresses
// of the annotation; another host passes on neither.
func TestServicesPassedOn(t *testing.T) {
	external := netip.MustParsePrefix("203.0.113.0/24")
	s := services{
		spread: []netip.Prefix{external},
		listed: map[netip.Addr]bool{netip.MustParseAddr("203.0.113.7"): true, netip.MustParseAddr("10.96.0.10"): true},
	}
	if got := s.passOn(true); !slices.Equal(got, []netip.Prefix{external, netip.MustParsePrefix("10.96.0.10/32")}) {
		t.Errorf("a reflector passes on %v", got)
	}
	if got := s.passOn(false); len(got) != 0 {
		t.Errorf("another host passes on %v", got)
	}
}
