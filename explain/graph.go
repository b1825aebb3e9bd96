package explain

import (
	"cmp"
	"fmt"
	"html"
	"maps"
	"slices"
	"strings"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

// Graph is who may talk to whom, as policies say: from the peers that rules
// name, over the policies, to the groups of endpoints that they apply to. A
// group is the endpoints to which the same policies apply.
type Graph struct {
	Peers    []string
	Policies []string
	Groups   []string
	Edges    []Edge
}

// Edge joins a peer to a policy, or a policy to a group, by their places in the
// lists.
type Edge struct {
	Left      int // in Peers, or in Policies where ToGroup
	Right     int // in Policies, or in Groups where ToGroup
	ToGroup   bool
	Label     string // "allow tcp 80"; empty to a group
	Deny      bool
	Direction policy.Direction // of the traffic, seen from the group
	Staged    bool
}

// maxNames bounds the endpoints named in one group.
const maxNames = 4

// NewGraph draws the policies of several hosts. nameOf gives what people call a
// workload.
func NewGraph(hosts map[string]*policy.State, nameOf func(desired.EndpointKey) string) Graph {
	d := drawing{peers: map[string]int{}, policies: map[string]int{}, edges: map[Edge]bool{}}
	groups := map[string][]string{}
	applied := map[string]applied{}
	for _, node := range slices.Sorted(maps.Keys(hosts)) {
		s := hosts[node]
		for _, key := range sortedKeys(s.Endpoints) {
			ep := s.Endpoints[key]
			a := appliedTo(s, ep)
			groups[a.text] = append(groups[a.text], endpointName(ep, key, node, nameOf))
			applied[a.text] = a
		}
	}
	for _, text := range slices.Sorted(maps.Keys(groups)) {
		group := len(d.g.Groups)
		d.g.Groups = append(d.g.Groups, groupName(groups[text]))
		for _, p := range applied[text].list {
			d.policy(applied[text].state, p, group)
		}
	}
	return d.finish()
}

func endpointName(ep *policy.Endpoint, key desired.EndpointKey, node string, nameOf func(desired.EndpointKey) string) string {
	if ep.Host {
		return "host " + node + " " + ep.Interface
	}
	return nameOf(key)
}

func groupName(names []string) string {
	slices.Sort(names)
	if left := len(names) - maxNames; left > 0 {
		return strings.Join(names[:maxNames], "\n") + fmt.Sprintf("\nand %d more", left)
	}
	return strings.Join(names, "\n")
}

// application is one policy in one direction.
type application struct {
	policy *policy.Policy
	d      policy.Direction
}

// applied is what applies to one endpoint, and a text that is equal for equal ones.
type applied struct {
	state *policy.State
	list  []application
	text  string
}

func appliedTo(s *policy.State, ep *policy.Endpoint) applied {
	a := applied{state: s, text: fmt.Sprint(ep.Host, " ")}
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		var ids []policy.ID
		for _, place := range []policy.Place{policy.PlaceUntracked, policy.PlacePreDNAT, policy.PlaceForward, policy.PlaceNormal} {
			for _, t := range ep.At(place).In(d) {
				ids = append(ids, t.Policies...)
			}
		}
		if len(ids) == 0 {
			ids = ep.Profiles // they decide where no policy does
		}
		for _, id := range ids {
			if p := s.Policies[id]; p != nil {
				a.list = append(a.list, application{p, d})
				a.text += d.String() + " " + id.String() + "\n"
			}
		}
	}
	return a
}

// drawing is a graph under way.
type drawing struct {
	g               Graph
	peers, policies map[string]int
	edges           map[Edge]bool
}

func (d *drawing) policy(s *policy.State, a application, group int) {
	p := place(&d.g.Policies, d.policies, a.policy.ID.String())
	d.edges[Edge{Left: p, Right: group, ToGroup: true, Direction: a.d, Staged: a.policy.Staged}] = true
	for _, r := range a.policy.Rules(a.d) {
		if r.Do != policy.Allow && r.Do != policy.Deny {
			continue
		}
		far := &r.Src
		if a.d == policy.Egress {
			far = &r.Dst
		}
		peer := place(&d.g.Peers, d.peers, peerText(s, far))
		d.edges[Edge{
			Left: peer, Right: p, Label: strings.ToLower(r.Do.String()) + " " + trafficText(s, &r),
			Deny: r.Do == policy.Deny, Direction: a.d, Staged: a.policy.Staged,
		}] = true
	}
}

func place(list *[]string, at map[string]int, name string) int {
	i, known := at[name]
	if !known {
		i = len(*list)
		at[name] = i
		*list = append(*list, name)
	}
	return i
}

func (d *drawing) finish() Graph {
	d.g.Edges = slices.SortedFunc(maps.Keys(d.edges), func(a, b Edge) int {
		return cmp.Or(boolInt(a.ToGroup)-boolInt(b.ToGroup), a.Left-b.Left, a.Right-b.Right, int(a.Direction)-int(b.Direction), cmp.Compare(a.Label, b.Label))
	})
	return d.g
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func peerText(s *policy.State, e *policy.Entity) string {
	var words []string
	add := func(text string) { words = append(words, text) }
	for _, id := range []policy.SetID{e.Set, e.Service} {
		if id != "" {
			add(s.Describe(id))
		}
	}
	if e.NotSet != "" {
		add("not " + s.Describe(e.NotSet))
	}
	if e.Nets != nil {
		add(netsOf(len(e.Nets), func(i int) string { return e.Nets[i].String() }))
	}
	if len(e.NotNets) > 0 {
		add("not " + netsOf(len(e.NotNets), func(i int) string { return e.NotNets[i].String() }))
	}
	if len(words) == 0 {
		return "anyone"
	}
	return strings.Join(words, "\n")
}

func netsOf(n int, at func(int) string) string {
	var words []string
	for i := range min(n, maxNames) {
		words = append(words, at(i))
	}
	if n > maxNames {
		words = append(words, fmt.Sprintf("and %d more", n-maxNames))
	}
	if n == 0 {
		return "nobody"
	}
	return strings.Join(words, "\n")
}

func trafficText(s *policy.State, r *policy.Rule) string {
	text := "all"
	if r.Protocol != 0 {
		text = policy.ProtocolName(r.Protocol)
	}
	var ports []string
	for _, p := range r.Dst.Ports {
		ports = append(ports, p.String())
	}
	for _, id := range r.Dst.Named {
		ports = append(ports, s.Describe(id))
	}
	if len(ports) > 0 {
		text += " " + strings.Join(ports, ",")
	}
	if r.ICMP != nil {
		text += " type " + r.ICMP.String()
	}
	return text
}

// colours of an edge.
func (e Edge) colour() string {
	switch {
	case e.ToGroup:
		return "#555555"
	case e.Deny:
		return "#b00020"
	}
	return "#1b7f3b"
}

// DOT is the graph for Graphviz.
func (g Graph) DOT() string {
	var b strings.Builder
	b.WriteString("digraph policy {\n  rankdir=LR;\n  node [fontname=\"sans-serif\", fontsize=11];\n  edge [fontname=\"sans-serif\", fontsize=9];\n")
	column := func(letter, shape string, list []string) {
		for i, name := range list {
			fmt.Fprintf(&b, "  %s%d [shape=%s, label=%s];\n", letter, i, shape, dotText(name))
		}
	}
	column("s", "ellipse", g.Peers)
	column("p", "box", g.Policies)
	column("e", "folder", g.Groups)
	for _, e := range g.Edges {
		from, to := fmt.Sprintf("s%d", e.Left), fmt.Sprintf("p%d", e.Right)
		if e.ToGroup {
			from, to = fmt.Sprintf("p%d", e.Left), fmt.Sprintf("e%d", e.Right)
		}
		attrs := fmt.Sprintf("label=%s, color=\"%s\"", dotText(e.Label), e.colour())
		if e.Direction == policy.Egress {
			attrs += ", dir=back"
		}
		if e.Staged {
			attrs += ", style=dashed"
		}
		fmt.Fprintf(&b, "  %s -> %s [%s];\n", from, to, attrs)
	}
	b.WriteString("}\n")
	return b.String()
}

func dotText(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}

// Sizes of the drawing, in pixels.
const (
	columnWidth = 250
	columnGap   = 190
	lineHeight  = 15
	boxGap      = 18
	margin      = 20
)

// box is a placed label.
type box struct{ x, y, h int }

// SVG is the graph as a picture: peers to the left, policies in the middle,
// endpoints to the right.
func (g Graph) SVG() string {
	peers, h1 := stack(0, g.Peers)
	policies, h2 := stack(1, g.Policies)
	groups, h3 := stack(2, g.Groups)
	height := max(h1, h2, h3) + margin
	width := 2*margin + 3*columnWidth + 2*columnGap
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	for i, e := range g.Edges {
		from, to := peers, policies
		if e.ToGroup {
			from, to = policies, groups
		}
		e.svg(&b, from[e.Left], to[e.Right], i)
	}
	for _, column := range []struct {
		boxes []box
		names []string
		fill  string
	}{{peers, g.Peers, "#eef4ff"}, {policies, g.Policies, "#fff7e0"}, {groups, g.Groups, "#eefaf0"}} {
		for i, at := range column.boxes {
			at.svg(&b, column.names[i], column.fill)
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// stack places a column's labels below each other.
func stack(column int, names []string) ([]box, int) {
	y := margin
	out := make([]box, len(names))
	for i, name := range names {
		h := (strings.Count(name, "\n")+1)*lineHeight + 10
		out[i] = box{x: margin + column*(columnWidth+columnGap), y: y, h: h}
		y += h + boxGap
	}
	return out, y
}

func (at box) svg(b *strings.Builder, name, fill string) {
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" rx="5" fill="%s" stroke="#888888"/>`+"\n", at.x, at.y, columnWidth, at.h, fill)
	for i, line := range strings.Split(name, "\n") {
		const most = 40 // characters that fit
		if len(line) > most {
			line = line[:most-1] + "…"
		}
		fmt.Fprintf(b, `<text x="%d" y="%d">%s</text>`+"\n", at.x+8, at.y+lineHeight*(i+1)+1, html.EscapeString(line))
	}
}

func (e Edge) svg(b *strings.Builder, from, to box, number int) {
	x1, y1, x2, y2 := from.x+columnWidth, from.y+from.h/2, to.x, to.y+to.h/2
	dash := ""
	if e.Staged {
		dash = ` stroke-dasharray="4 3"`
	}
	fmt.Fprintf(b, `<path d="M%d %d C%d %d %d %d %d %d" fill="none" stroke="%s"%s/>`+"\n", x1, y1, x1+columnGap/2, y1, x2-columnGap/2, y2, x2, y2, e.colour(), dash)
	tip, back := x2, -7
	if e.Direction == policy.Egress {
		tip, y2, back = x1, y1, 7
	}
	fmt.Fprintf(b, `<path d="M%d %d l%d -4 l0 8 z" fill="%s"/>`+"\n", tip, y2, back, e.colour())
	if e.Label != "" {
		at := 20 + number%3*20 // percent of the way, so that labels of neighbours do not cover each other
		fmt.Fprintf(b, `<text x="%d" y="%d" fill="%s" font-size="9">%s</text>`+"\n", x1+(x2-x1)*at/100, y1+(to.y+to.h/2-y1)*at/100-3, e.colour(), html.EscapeString(e.Label))
	}
}
