package ctl

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/manekinet/maneki/agentapi"
)

// TestGridIsARectangle draws tables of any text: every line is as wide as the
// border, and every cell is there.
func TestGridIsARectangle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		columns := rapid.IntRange(1, 6).Draw(t, "columns")
		row := rapid.SliceOfN(rapid.StringN(0, 12, -1), columns, columns)
		header := row.Draw(t, "header")
		rows := rapid.SliceOfN(row, 0, 5).Draw(t, "rows")
		var b strings.Builder
		if err := writeGrid(&b, header, rows); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
		if len(lines) != len(rows)+4 {
			t.Fatalf("%d lines for %d rows:\n%s", len(lines), len(rows), &b)
		}
		for _, l := range lines {
			if utf8.RuneCountInString(l) != len(lines[0]) {
				t.Fatalf("a line is not as wide as the border:\n%s", &b)
			}
		}
		for i, r := range rows {
			for _, cell := range r {
				if !strings.Contains(lines[i+3], oneLine(cell)) {
					t.Fatalf("cell %q is not in %q", cell, lines[i+3])
				}
			}
		}
	})
}

func TestSince(t *testing.T) {
	now := time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)
	tests := map[time.Time]string{
		time.Date(2026, 11, 21, 8, 50, 58, 0, time.UTC):  "08:50:58",
		time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC):    "00:00:00",
		time.Date(2026, 11, 20, 23, 59, 59, 0, time.UTC): "2026-11-20",
		time.Date(2025, 11, 21, 8, 50, 58, 0, time.UTC):  "2025-11-21",
	}
	for at, want := range tests {
		if got := agentapi.Since(at, now); got != want {
			t.Errorf("since(%s) = %q, want %q", at, got, want)
		}
	}
}
