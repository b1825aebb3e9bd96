package ctl

import (
	"io"
	"regexp"
	"strings"
	"unicode/utf8"
)

// number is what stands to the right in a grid's cell.
var number = regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?$`)

// writeGrid writes a table with borders of +, - and |: the header centred (a
// space that does not divide goes to the right), numbers to the right, all else
// to the left. It is the table of `node status` and `ipam show`.
func writeGrid(w io.Writer, header []string, rows [][]string) error {
	widths := make([]int, len(header))
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	border := func() {
		for _, width := range widths {
			b.WriteString("+" + strings.Repeat("-", width+2))
		}
		b.WriteString("+\n")
	}
	line := func(row []string, place func(cell string, gap int) (left int)) {
		for i, width := range widths {
			cell := oneLine(row[i])
			gap := width - utf8.RuneCountInString(cell)
			left := place(cell, gap)
			b.WriteString("| " + strings.Repeat(" ", left) + cell + strings.Repeat(" ", gap-left) + " ")
		}
		b.WriteString("|\n")
	}
	border()
	line(header, func(_ string, gap int) int { return gap / 2 })
	border()
	for _, row := range rows {
		line(row, func(cell string, gap int) int {
			if number.MatchString(cell) {
				return gap
			}
			return 0
		})
	}
	border() // also below an empty table: calicoctl draws it twice then
	_, err := io.WriteString(w, b.String())
	return err
}
