package api

import (
	"strings"
	"testing"
	"time"
)

func TestParseBFD(t *testing.T) {
	for _, c := range []struct {
		text string
		want BFD
		err  string // part of it; empty for none
	}{
		{"on", BFD{true, 100 * time.Millisecond, 3, "auto"}, ""},
		{"off", BFD{}, ""},
		{"interval=50ms", BFD{true, 50 * time.Millisecond, 3, "auto"}, ""},
		{"on, interval=1s, multiplier=5, multihop=yes", BFD{true, time.Second, 5, "yes"}, ""},
		{"multiplier=255,multihop=no", BFD{true, 100 * time.Millisecond, 255, "no"}, ""},
		{"", BFD{}, "must be on, off"},
		{"true", BFD{}, `"true": must be`},
		{"on,off", BFD{}, `"off": must be`},
		{"off,interval=1s", BFD{}, `"off": must be`},
		{"interval=9ms", BFD{}, "10ms to 60s"},
		{"interval=61s", BFD{}, "10ms to 60s"},
		{"interval=100", BFD{}, "DURATION"},
		{"interval", BFD{}, "interval="},
		{"multiplier=0", BFD{}, "1-255"},
		{"multiplier=256", BFD{}, "1-255"},
		{"multihop=perhaps", BFD{}, "auto|yes|no"},
		{"interval=1s,interval=2s", BFD{}, "given twice"},
		{"on,", BFD{}, `"": must be`},
	} {
		got, err := ParseBFD(c.text)
		if got != c.want || (err == nil) != (c.err == "") || (err != nil && !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%q gives %+v, %v", c.text, got, err)
		}
	}
}

func FuzzParseBFD(f *testing.F) {
	f.Add("on,interval=1s,multiplier=5,multihop=yes")
	f.Fuzz(func(t *testing.T, s string) {
		if b, err := ParseBFD(s); err == nil && b.On && (b.Interval < 10*time.Millisecond || b.Interval > time.Minute || b.Multiplier == 0) {
			t.Fatalf("%q is read as %+v", s, b)
		}
	})
}

func TestParseBGPTuning(t *testing.T) {
	got, errs := ParseBGPTuning(map[string]string{AnnotationBFD: "on", AnnotationLongLived: "24h", AnnotationMaxPrefixes: "5000", "other": "x"})
	if len(errs) > 0 || got.BFD == nil || !got.BFD.On || *got.LongLived != 24*time.Hour || *got.MaxPrefixes != 5000 {
		t.Errorf("%+v %v", got, errs)
	}
	off, errs := ParseBGPTuning(map[string]string{AnnotationBFD: "off", AnnotationLongLived: "off"})
	if len(errs) > 0 || off.BFD.On || *off.LongLived != 0 || off.MaxPrefixes != nil {
		t.Errorf("%+v %v", off, errs)
	}
	if both := off.Or(got); both.BFD.On || *both.LongLived != 0 || *both.MaxPrefixes != 5000 {
		t.Errorf("what is said to be off is not completed by what is on: %+v", both)
	}
	for name, values := range map[string][]string{
		AnnotationLongLived:   {"", "24", "0s", "-1h", "16777216s", "on"},
		AnnotationMaxPrefixes: {"", "0", "-1", "10000001", "many", "1e3"},
		AnnotationBFD:         {"maybe"},
	} {
		for _, v := range values {
			if got, errs := ParseBGPTuning(map[string]string{name: v}); len(errs) != 1 || errs[0].Name != name || got != (BGPTuning{}) {
				t.Errorf("%s: %q gives %+v, %v", name, v, got, errs)
			}
		}
	}
}
