// Package desired is the vocabulary between calculation and appliers: what this host should have, as small values on
// netip types. Every value is comparable, so that two states can be compared with == and printed as goldens, and no
// value points at anything mutable. The package has no behaviour beyond normalising and printing.
//
// A desired state is always whole: a map that holds everything wanted of its kind. What is missing from the map is
// not wanted.
package desired
