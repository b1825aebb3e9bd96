package ctl

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestUnifiedDiffApplies: going through the diff gives both texts back, and
// what is outside of its hunks is the same in both.
func TestUnifiedDiffApplies(t *testing.T) {
	line := rapid.SampledFrom([]string{"a", "b", "c", "", "- x", "+ y"})
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.SliceOfN(line, 0, 30).Draw(t, "a"), rapid.SliceOfN(line, 0, 30).Draw(t, "b")
		var olds, news []string
		for _, e := range compareLines(a, b) {
			if e.mark != '+' {
				olds = append(olds, e.line)
			}
			if e.mark != '-' {
				news = append(news, e.line)
			}
		}
		if strings.Join(olds, "\n") != strings.Join(a, "\n") || strings.Join(news, "\n") != strings.Join(b, "\n") {
			t.Fatalf("%q and %q became %q and %q", a, b, olds, news)
		}
		var out bytes.Buffer
		if err := writeUnified(&out, "old", "new", join(a), join(b)); err != nil {
			t.Fatal(err)
		}
		checkHunks(t, out.String(), a, b)
	})
}

func join(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

// checkHunks reads a diff as patch does and applies it to a.
func checkHunks(t *rapid.T, diff string, a, b []string) {
	var got []string
	next := 0 // of a
	for _, line := range strings.Split(strings.TrimSuffix(diff, "\n"), "\n")[2:] {
		var start, count, newStart, newCount int
		if n, _ := fmt.Sscanf(line, "@@ -%d,%d +%d,%d @@", &start, &count, &newStart, &newCount); n == 4 {
			if count > 0 {
				start--
			}
			got = append(got, a[next:start]...)
			next = start
			if want := newStart; newCount > 0 && len(got) != want-1 || newCount == 0 && len(got) != want {
				t.Fatalf("hunk %q begins at line %d of the new text\n%s", line, len(got)+1, diff)
			}
			continue
		}
		switch line[0] {
		case ' ', '-':
			if a[next] != line[1:] {
				t.Fatalf("line %d is %q, the diff says %q\n%s", next+1, a[next], line[1:], diff)
			}
			next++
			if line[0] == ' ' {
				got = append(got, line[1:])
			}
		case '+':
			got = append(got, line[1:])
		default:
			t.Fatalf("line %q", line)
		}
	}
	got = append(got, a[next:]...)
	if strings.Join(got, "\n") != strings.Join(b, "\n") || len(got) != len(b) {
		t.Fatalf("%q patched is %q, want %q\n%s", a, got, b, diff)
	}
}

func TestOlderThan(t *testing.T) {
	for _, tt := range []struct {
		version, minimum string
		want             bool
	}{
		{"6.18.44-fc-v657", "2.6.24", false},
		{"2.6.18-el5", "2.6.24", true},
		{"2.6.24", "2.6.24", false},
		{"3.0", "2.6.24", false},
		{"2.6", "2.6.24", true},
		{"", "2.6.24", true},
		{"10.0", "9.9.9", false},
	} {
		if got := olderThan(tt.version, tt.minimum); got != tt.want {
			t.Errorf("olderThan(%q, %q) = %t", tt.version, tt.minimum, got)
		}
	}
}
