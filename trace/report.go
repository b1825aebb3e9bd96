package trace

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Place is one end of a trace.
type Place struct {
	Name string     `json:"name"`           // of the member; empty for an address that nobody known has
	Host string     `json:"host,omitempty"` // of a container
	Kind Kind       `json:"kind,omitempty"`
	Addr netip.Addr `json:"address"`
}

// String is "c1 (192.168.45.64, on h1)".
func (p Place) String() string {
	switch {
	case p.Name == "":
		return p.Addr.String()
	case p.Host == "" || p.Host == p.Name:
		return fmt.Sprintf("%s (%s)", p.Name, p.Addr)
	}
	return fmt.Sprintf("%s (%s, on %s)", p.Name, p.Addr, p.Host)
}

// Hop is one step of the way.
type Hop struct {
	Where  string   `json:"where"`
	Seen   Seen     `json:"seen"`
	Object string   `json:"object"`                  // veth, rule, route, tunnel, neighbour, fdb, link, switch, address
	Encap  string   `json:"encapsulation,omitempty"` // of the packet as it leaves this hop
	MTU    int      `json:"mtu,omitempty"`           // bytes that fit here, outer headers included; 0: no matter
	Size   int      `json:"size"`                    // bytes of the packet here, outer headers included
	What   string   `json:"what"`
	Notes  []string `json:"notes,omitempty"`
	Lost   string   `json:"lost,omitempty"` // why the packet ends here
}

// Path is one direction.
type Path struct {
	From Place `json:"from"`
	To   Place `json:"to"`
	Size int   `json:"size"` // bytes of the packet, its IP header included
	Hops []Hop `json:"hops"`
	// Delivered is true when the packet arrives. Where it is false, the last hop
	// has the reason in Lost, or nothing is known of what comes next.
	Delivered bool     `json:"delivered"`
	Beyond    bool     `json:"beyond,omitempty"` // it leaves what is known
	MTU       int      `json:"mtu,omitempty"`    // largest packet that passes whole; 0 is unknown
	Remedy    []string `json:"remedy,omitempty"`
}

// Report is a trace there, and back unless only one way was asked for.
type Report struct {
	There Path  `json:"there"`
	Back  *Path `json:"back,omitempty"`
}

// OK reports whether the packet arrives, and its answer where that was traced.
func (r Report) OK() bool { return r.There.Delivered && (r.Back == nil || r.Back.Delivered) }

// Write prints the report as tables.
func (r Report) Write(w io.Writer) error {
	if err := r.There.write(w); err != nil {
		return err
	}
	if r.Back != nil {
		fmt.Fprintln(w)
		if err := r.Back.write(w); err != nil {
			return err
		}
	}
	if r.computed() {
		fmt.Fprintln(w, "\n* computed from the datastore: what the host should have; it was not looked at.")
	}
	return nil
}

func (r Report) computed() bool {
	for _, p := range []*Path{&r.There, r.Back} {
		if p == nil {
			continue
		}
		for _, h := range p.Hops {
			if h.Seen != Kernel {
				return true
			}
		}
	}
	return false
}

func (p Path) write(out io.Writer) error {
	fmt.Fprintf(out, "%s -> %s, %d bytes\n", p.From, p.To, p.Size)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "HOP\tWHERE\tOBJECT\tENCAPSULATION\tMTU\tWHAT")
	for i, h := range p.Hops {
		where := h.Where
		if h.Seen != Kernel {
			where += "*"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", i+1, where, h.Object, orDash(h.Encap), mtuText(h.MTU), h.What)
		for _, n := range h.Notes {
			fmt.Fprintf(w, "\t\t\t\t\t  %s\n", n)
		}
		if h.Lost != "" {
			fmt.Fprintf(w, "\t\t\t\t\tLOST: %s\n", h.Lost)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(out, p.Verdict())
	return err
}

// Verdict is the outcome in a sentence.
func (p Path) Verdict() string {
	var b strings.Builder
	last := Hop{}
	if len(p.Hops) > 0 {
		last = p.Hops[len(p.Hops)-1]
	}
	switch {
	case p.Delivered && p.MTU > 0:
		fmt.Fprintf(&b, "Delivered. Packets of up to %d bytes pass whole.", p.MTU)
	case p.Delivered:
		b.WriteString("Delivered.")
	case p.Beyond:
		fmt.Fprintf(&b, "Leaves what is known after hop %d, %s.", len(p.Hops), last.Where)
	default:
		fmt.Fprintf(&b, "Lost at hop %d, %s of %s: %s.", len(p.Hops), last.Object, last.Where, last.Lost)
	}
	for _, r := range p.Remedy {
		fmt.Fprintf(&b, "\n%s", r)
	}
	return b.String()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func mtuText(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

// Print writes the report as tables or as a JSON document.
func (r Report) Print(w io.Writer, asJSON bool) error {
	if !asJSON {
		return r.Write(w)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// Err is nil when the packet and its answer arrive; otherwise it says which does
// not, in a line.
func (r Report) Err() error {
	if r.OK() {
		return nil
	}
	p, which := r.There, "the packet"
	if p.Delivered {
		p, which = *r.Back, "the answer"
	}
	verdict, _, _ := strings.Cut(p.Verdict(), "\n")
	return fmt.Errorf("%s does not arrive: %s", which, strings.ToLower(verdict[:1])+strings.TrimSuffix(verdict[1:], "."))
}
