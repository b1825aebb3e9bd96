package lab

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// graphWidth is where a row of boxes is broken.
const graphWidth = 100

// box is one host or router in the picture.
type box struct{ lines []string }

func (b box) width() int {
	w := 0
	for _, l := range b.lines {
		w = max(w, utf8.RuneCountInString(l))
	}
	return w + 4
}

// Graph draws the lab in ASCII: one bus per subnet, with a box for each router
// and host on it and the containers inside their hosts.
func (st Status) Graph(p *Plan) string {
	var b strings.Builder
	for i, sw := range p.Switches {
		if i > 0 {
			b.WriteString("\n")
		}
		var nets []string
		for _, n := range sw.Prefixes {
			nets = append(nets, n.String())
		}
		title := fmt.Sprintf("%s  %s", sw.Subnet, strings.Join(nets, "  "))
		for _, row := range breakRows(st.boxesOn(sw.Subnet, p)) {
			b.WriteString(drawRow(title, row))
			title = sw.Subnet + " (continued)"
		}
		if len(st.boxesOn(sw.Subnet, p)) == 0 {
			b.WriteString("=== " + title + " ===\n")
		}
	}
	return b.String()
}

func (st Status) boxesOn(subnet string, p *Plan) []box {
	var boxes []box
	for _, r := range p.Routers {
		for _, port := range r.Ports {
			if port.Subnet == subnet {
				lines := []string{r.Name + " (router)", joinPrefixes(port.Addresses)}
				boxes = append(boxes, box{lines})
			}
		}
	}
	for _, h := range st.Hosts {
		if h.Subnet != subnet {
			continue
		}
		lines := []string{fmt.Sprintf("%s (%s)", h.Name, h.State()), joinPrefixes(h.Addresses)}
		for _, c := range st.Containers {
			if c.Host == h.Name {
				lines = append(lines, fmt.Sprintf("[%s] %s", c.Name, joinAddrs(c.Addresses)))
			}
		}
		boxes = append(boxes, box{lines})
	}
	return boxes
}

func breakRows(boxes []box) [][]box {
	var rows [][]box
	width := 0
	for _, b := range boxes {
		if len(rows) == 0 || width+b.width()+2 > graphWidth {
			rows = append(rows, nil)
			width = 0
		}
		rows[len(rows)-1] = append(rows[len(rows)-1], b)
		width += b.width() + 2
	}
	return rows
}

func drawRow(title string, row []box) string {
	total, height := 0, 0
	for _, b := range row {
		total += b.width() + 2
		height = max(height, len(b.lines))
	}
	lines := make([]string, height+4)
	lines[0] = "=== " + title + " " + strings.Repeat("=", max(3, total-len(title)-7))
	for _, b := range row {
		w := b.width()
		half := (w - 1) / 2
		edge := "+" + strings.Repeat("-", w-2) + "+  "
		lines[1] += strings.Repeat(" ", half) + "|" + strings.Repeat(" ", w-half+1)
		lines[2] += "+" + strings.Repeat("-", half-1) + "+" + strings.Repeat("-", w-half-2) + "+  "
		for i := range height {
			text := ""
			if i < len(b.lines) {
				text = b.lines[i]
			}
			lines[3+i] += "| " + text + strings.Repeat(" ", w-4-utf8.RuneCountInString(text)) + " |  "
		}
		lines[3+height] += edge
	}
	var out strings.Builder
	for _, l := range lines {
		out.WriteString(strings.TrimRight(l, " ") + "\n")
	}
	return out.String()
}

// Dot draws the lab in the language of Graphviz.
func (st Status) Dot(p *Plan) string {
	var b strings.Builder
	fmt.Fprintf(&b, "graph %q {\n  node [shape=box];\n", st.Name)
	for _, sw := range p.Switches {
		label := sw.Subnet
		for _, n := range sw.Prefixes {
			label += "\n" + n.String()
		}
		fmt.Fprintf(&b, "  %q [shape=ellipse, label=%q];\n", sw.Subnet, label)
	}
	for _, r := range p.Routers {
		fmt.Fprintf(&b, "  %q [shape=diamond];\n", r.Name)
		for _, port := range r.Ports {
			fmt.Fprintf(&b, "  %q -- %q [label=%q];\n", r.Name, port.Subnet, joinPrefixes(port.Addresses))
		}
	}
	for _, h := range st.Hosts {
		fmt.Fprintf(&b, "  %q [label=%q];\n", h.Name, h.Name+"\n"+h.State())
		fmt.Fprintf(&b, "  %q -- %q [label=%q];\n", h.Name, h.Subnet, joinPrefixes(h.Addresses))
	}
	for _, c := range st.Containers {
		fmt.Fprintf(&b, "  %q [shape=component, label=%q];\n", c.Name, c.Name+"\n"+joinAddrs(c.Addresses))
		fmt.Fprintf(&b, "  %q -- %q;\n", c.Name, c.Host)
	}
	b.WriteString("}\n")
	return b.String()
}
