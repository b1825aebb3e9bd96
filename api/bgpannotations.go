package api

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Annotations of BGPPeer and BGPConfiguration, for what Calico's schema has no field for.
const (
	// AnnotationBFD turns on BFD (RFC 5880): see ParseBFD.
	AnnotationBFD = "maneki.net/bfd"
	// AnnotationLongLived turns on long-lived graceful restart (RFC 9494): see ParseLongLived.
	AnnotationLongLived = "maneki.net/long-lived-restart-time"
	// AnnotationMaxPrefixes is how many prefixes a peer may offer: see ParseMaxPrefixes.
	AnnotationMaxPrefixes = "maneki.net/max-prefixes"
)

// BGPTuning is what the annotations of one object say; nil where they say
// nothing.
type BGPTuning struct {
	BFD         *BFD
	LongLived   *time.Duration
	MaxPrefixes *int
}

// Or is t, completed by o.
func (t BGPTuning) Or(o BGPTuning) BGPTuning {
	return BGPTuning{BFD: cmp.Or(t.BFD, o.BFD), LongLived: cmp.Or(t.LongLived, o.LongLived), MaxPrefixes: cmp.Or(t.MaxPrefixes, o.MaxPrefixes)}
}

// AnnotationError says what is wrong with the value of an annotation.
type AnnotationError struct {
	Name, Value string
	Err         error
}

// ParseBGPTuning reads the annotations above. What cannot be read is among the
// errors, in the order of the names, and else as if it were not there.
func ParseBGPTuning(annotations map[string]string) (BGPTuning, []AnnotationError) {
	var t BGPTuning
	var errs []AnnotationError
	read := func(name string, parse func(text string) error) {
		if text, ok := annotations[name]; ok {
			if err := parse(text); err != nil {
				errs = append(errs, AnnotationError{Name: name, Value: text, Err: err})
			}
		}
	}
	read(AnnotationBFD, func(text string) error { return into(&t.BFD, ParseBFD, text) })
	read(AnnotationLongLived, func(text string) error { return into(&t.LongLived, ParseLongLived, text) })
	read(AnnotationMaxPrefixes, func(text string) error { return into(&t.MaxPrefixes, ParseMaxPrefixes, text) })
	return t, errs
}

func into[T any](to **T, parse func(string) (T, error), text string) error {
	v, err := parse(text)
	if err == nil {
		*to = &v
	}
	return err
}

// maxLongLived is what the field of the protocol can hold (RFC 9494 §3.1).
const maxLongLived = (1<<24 - 1) * time.Second

// ParseLongLived reads how long routes are kept after the restart time: "off",
// or a duration such as "24h". The error says what is allowed.
func ParseLongLived(text string) (time.Duration, error) {
	if text == "off" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second || d > maxLongLived {
		return 0, fmt.Errorf("%q: must be off or a duration of 1s to 16777215s, such as 24h", text)
	}
	return d.Truncate(time.Second), nil
}

// mostPrefixes is more than the internet has.
const mostPrefixes = 10_000_000

// ParseMaxPrefixes reads a number of prefixes. The error says what is allowed.
func ParseMaxPrefixes(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > mostPrefixes {
		return 0, fmt.Errorf("%q: must be 1-%d", text, mostPrefixes)
	}
	return n, nil
}

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
	_, errs := ParseBGPTuning(r.Annotations)
	for _, e := range errs {
		c.add("Metadata.Annotations["+e.Name+"]", clip(e.Value), e.Err.Error())
	}
}
