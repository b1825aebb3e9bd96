package convert

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/selector"
)

// The ports of a rule are those of its ranges, no port twice, and no two ranges
// could be one.
func TestPortsProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list []api.KubernetesPort
		want := map[int]bool{}
		for range rapid.IntRange(1, 12).Draw(t, "ranges") {
			low := rapid.IntRange(1, 60).Draw(t, "low")
			high := low + rapid.IntRange(0, 9).Draw(t, "length")
			start := api.FromInt(low)
			p := api.KubernetesPort{Port: &start}
			if high > low || rapid.Bool().Draw(t, "end") {
				p.EndPort = &high
			}
			list = append(list, p)
			for i := low; i <= high; i++ {
				want[i] = true
			}
		}
		matches := kubernetesPorts(list).matches()
		if len(matches) != 1 || matches[0].protocol.Text != "TCP" {
			t.Fatalf("matches %+v", matches)
		}
		got, last := map[int]bool{}, -1
		for _, p := range matches[0].ports {
			low, high := bounds(t, p)
			if low <= last+1 {
				t.Fatalf("%v: %s touches the one before", matches[0].ports, p)
			}
			for i := low; i <= high; i++ {
				got[i] = true
			}
			last = high
		}
		for i := range 100 {
			if got[i] != want[i] {
				t.Fatalf("port %d: %v, want %v", i, got[i], want[i])
			}
		}
	})
}

func bounds(t *rapid.T, p api.IntOrString) (low, high int) {
	if p.IsInt {
		return p.Int, p.Int
	}
	a, b, ok := strings.Cut(p.Text, ":")
	low, errLow := strconv.Atoi(a)
	high, errHigh := strconv.Atoi(b)
	if !ok || errLow != nil || errHigh != nil || low >= high {
		t.Fatalf("port %q", p.Text)
	}
	return low, high
}

// A converted pod selector means what Kubernetes' means.
func TestSelectorProperty(t *testing.T) {
	keys, values := []string{"a", "b.c/d"}, []string{"", "x", "y-1"}
	rapid.Check(t, func(t *rapid.T) {
		labels := map[string]string{}
		for _, k := range keys {
			if rapid.Bool().Draw(t, "has") {
				labels[k] = rapid.SampledFrom(values).Draw(t, "label")
			}
		}
		s := &api.LabelSelector{MatchLabels: map[string]string{}}
		want := true
		if rapid.Bool().Draw(t, "matchLabels") {
			k, v := rapid.SampledFrom(keys).Draw(t, "key"), rapid.SampledFrom(values).Draw(t, "value")
			s.MatchLabels[k] = v
			have, ok := labels[k]
			want = want && ok && have == v
		}
		for range rapid.IntRange(0, 3).Draw(t, "expressions") {
			r := api.LabelSelectorRequirement{Key: rapid.SampledFrom(keys).Draw(t, "key"), Operator: rapid.SampledFrom([]string{"In", "NotIn", "Exists", "DoesNotExist"}).Draw(t, "operator")}
			have, ok := labels[r.Key]
			switch r.Operator {
			case "In", "NotIn":
				r.Values = rapid.SliceOfN(rapid.SampledFrom(values), 1, 3).Draw(t, "values")
				in := ok && slices.Contains(r.Values, have)
				want = want && in == (r.Operator == "In")
			default:
				want = want && ok == (r.Operator == "Exists")
			}
			s.MatchExpressions = append(s.MatchExpressions, r)
		}
		for orchestrator, mine := range map[string]bool{"k8s": true, "cni": false, "": false} {
			labels[api.LabelOrchestrator] = orchestrator
			if got := matches(t, Options{}.podSelector(s), labels); got != (want && mine) {
				t.Fatalf("%+v as %q on %v: %v", s, Options{}.podSelector(s), labels, got)
			}
			if got := matches(t, Options{AnyOrchestrator: true}.podSelector(s), labels); got != want {
				t.Fatalf("%+v of any orchestrator on %v: %v", s, labels, got)
			}
		}
	})
}

func matches(t *rapid.T, text string, labels map[string]string) bool {
	parsed, err := selector.Parse(text)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return parsed.Match(labels)
}
