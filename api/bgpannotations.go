package api

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Annotations of BGPPeer and BGPConfiguration, for what Calico's schema has no field for.
const (
	// AnnotationBFD turns on BFD (RFC 5880): see ParseBFD.
	AnnotationBFD = "maneki.net/bfd"
)

// BFD is the value of AnnotationBFD. The zero value is off.
type BFD struct {
	On         bool
	Interval   time.Duration // between packets, 10 ms to 60 s
	Multiplier uint8         // packets that may be missing
	Multihop   string        // "yes", "no", or "auto": by whether the peer is on a connected subnet
}

const bfdReason = "must be on, off, or settings separated by commas: interval=DURATION (10ms to 60s), multiplier=1-255, multihop=auto|yes|no"

// ParseBFD reads "on", "off", or settings that are separated by commas and imply "on", such as
// "interval=100ms,multiplier=3"; what is left out has these values. The error says what is allowed.
func ParseBFD(text string) (BFD, error) {
	out := BFD{On: true, Interval: 100 * time.Millisecond, Multiplier: 3, Multihop: "auto"}
	bad := func(word string) error { return fmt.Errorf("%q: %s", word, bfdReason) }
	seen := map[string]bool{}
	for _, word := range strings.Split(text, ",") {
		word = strings.TrimSpace(word)
		name, value, set := strings.Cut(word, "=")
		if seen[name] {
			return BFD{}, fmt.Errorf("%q is given twice", name)
		}
		seen[name] = true
		var ok bool
		switch {
		case word == "off" && len(text) == len("off"):
			return BFD{}, nil
		case word == "on":
			ok = true
		case set && name == "interval":
			d, err := time.ParseDuration(value)
			out.Interval, ok = d.Truncate(time.Microsecond), err == nil && d >= 10*time.Millisecond && d <= time.Minute
		case set && name == "multiplier":
			n, err := strconv.ParseUint(value, 10, 8)
			out.Multiplier, ok = uint8(n), err == nil && n > 0
		case set && name == "multihop":
			out.Multihop, ok = value, value == "auto" || value == "yes" || value == "no"
		}
		if !ok {
			return BFD{}, bad(word)
		}
	}
	return out, nil
}

// bgpAnnotations checks the annotations above.
func (c *checker) bgpAnnotations(r *Resource) {
	if text, ok := r.Annotations[AnnotationBFD]; ok {
		if _, err := ParseBFD(text); err != nil {
			c.add("Metadata.Annotations["+AnnotationBFD+"]", clip(text), err.Error())
		}
	}
}
