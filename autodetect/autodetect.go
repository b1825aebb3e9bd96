// Package autodetect chooses the address by which a host is known to the
// others. It is pure: the interfaces are handed in, and so is the routing
// look-up that can-reach needs. The methods and the exclusions are Calico's
// (spec/calico.md §9).
package autodetect

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// Interface is what detection needs to know of one link, in kernel order.
type Interface struct {
	Name  string
	Up    bool
	Addrs []netip.Prefix // address with the subnet's length, both families
}

// Source looks up the local address the kernel would use towards dst.
type Source func(dst netip.Addr) (netip.Addr, error)

// Choice is the address chosen, where it is, and why, in words.
type Choice struct {
	Prefix    netip.Prefix
	Interface string
	Reason    string
}

// Family is the address family looked for: 4 or 6.
type Family int

// Contains reports whether a is of this family; an IPv4-mapped address is not
// an IPv6 one.
func (f Family) Contains(a netip.Addr) bool {
	if f == 4 {
		return a.Is4()
	}
	return a.Is6() && !a.Is4In6()
}

// excluded are the interfaces that never carry a host's own address: bridges,
// tunnels and veths of container systems, ours among them.
var excluded = regexp.MustCompile(`^(docker.*|cbr.*|dummy.*|podman.*|virbr.*|lxcbr.*|veth.*|lo|br-.*|cali.*|tunl.*|flannel.*|kube-ipvs.*|cni.*|vxlan\.calico|vxlan-v6\.calico|vxlan.*|wireguard\.cali|wg-v6\.cali|nodelocaldns.*)$`)

// Methods lists the accepted spellings, for messages.
const Methods = "first-found, can-reach=DESTINATION, interface=REGEX[,REGEX], skip-interface=REGEX[,REGEX], cidr=CIDR[,CIDR]"

// Detect applies method (empty means first-found). It fails when no interface
// qualifies, saying what was looked at, and when the address chosen stands on
// two interfaces, since no peer could then tell which one answers.
func Detect(method string, family Family, links []Interface, source Source) (Choice, error) {
	candidates, why, err := candidates(method, family, links, source)
	if err != nil {
		return Choice{}, err
	}
	if len(candidates) == 0 {
		return Choice{}, fmt.Errorf("no IPv%d address found by method %q; interfaces seen: %s", family, orFirst(method), describe(family, links))
	}
	c := candidates[0]
	for _, l := range links {
		if l.Name != c.Interface && l.Up && holds(l, c.Prefix.Addr()) {
			return Choice{}, fmt.Errorf("address %s is on both %s and %s: name the address with --ip or remove it from one of them", c.Prefix.Addr(), c.Interface, l.Name)
		}
	}
	c.Reason = why
	if len(candidates) > 1 {
		c.Reason += fmt.Sprintf(" of %d candidates (%s)", len(candidates), names(candidates))
	}
	return c, nil
}

// Match finds the interface that carries addr, to give an address typed by a
// person its subnet. The prefix is a single address when no interface has it.
func Match(addr netip.Addr, links []Interface) (Choice, bool) {
	for _, l := range links {
		for _, p := range l.Addrs {
			if p.Addr() == addr {
				return Choice{Prefix: p, Interface: l.Name, Reason: "given"}, true
			}
		}
	}
	return Choice{Prefix: netip.PrefixFrom(addr, addr.BitLen()), Reason: "given"}, false
}

func candidates(method string, family Family, links []Interface, source Source) ([]Choice, string, error) {
	name, arg, _ := strings.Cut(method, "=")
	switch {
	case method == "" || method == "first-found":
		return usable(family, links, func(l Interface) bool { return !excluded.MatchString(l.Name) }), "first-found", nil
	case name == "interface" && arg != "":
		return byInterface(family, links, arg)
	case name == "skip-interface" && arg != "":
		skip, err := compile(name, arg)
		if err != nil {
			return nil, "", err
		}
		keep := func(l Interface) bool { return !excluded.MatchString(l.Name) && !anyMatch(skip, l.Name) }
		return usable(family, links, keep), "first-found after skip-interface=" + arg, nil
	case name == "can-reach" && arg != "":
		return byReach(family, links, arg, source)
	case name == "cidr" && arg != "":
		return byCIDR(family, links, arg)
	}
	return nil, "", fmt.Errorf("address detection method %q is not one of: %s", method, Methods)
}

// byInterface tries the expressions in the order given, so that the first one
// is the operator's preference.
func byInterface(family Family, links []Interface, arg string) ([]Choice, string, error) {
	exprs, err := compile("interface", arg)
	if err != nil {
		return nil, "", err
	}
	for _, re := range exprs {
		if found := usable(family, links, func(l Interface) bool { return re.MatchString(l.Name) }); len(found) > 0 {
			return found, "interface matches " + re.String(), nil
		}
	}
	return nil, "", nil
}

func byReach(family Family, links []Interface, arg string, source Source) ([]Choice, string, error) {
	dst, err := netip.ParseAddr(arg)
	if err != nil {
		return nil, "", fmt.Errorf("address detection can-reach=%s: the destination must be an IP address", arg)
	}
	if !family.Contains(dst) {
		return nil, "", nil
	}
	src, err := source(dst)
	if err != nil {
		return nil, "", fmt.Errorf("address detection can-reach=%s: no route to it: %w", arg, err)
	}
	c, ok := Match(src, links)
	if !ok {
		return nil, "", fmt.Errorf("address detection can-reach=%s: the source address %s is on no interface", arg, src)
	}
	return []Choice{c}, "the kernel's source address towards " + arg, nil
}

func byCIDR(family Family, links []Interface, arg string) ([]Choice, string, error) {
	for _, word := range strings.Split(arg, ",") {
		want, err := netip.ParsePrefix(strings.TrimSpace(word))
		if err != nil {
			return nil, "", fmt.Errorf("address detection cidr=%s: %q is not a CIDR", arg, word)
		}
		var found []Choice
		for _, c := range usable(family, links, func(Interface) bool { return true }) {
			if want.Contains(c.Prefix.Addr()) {
				found = append(found, c)
			}
		}
		if len(found) > 0 {
			return found, "inside " + want.String(), nil
		}
	}
	return nil, "", nil
}

func usable(family Family, links []Interface, keep func(Interface) bool) []Choice {
	var out []Choice
	for _, l := range links {
		if !l.Up || !keep(l) {
			continue
		}
		for _, p := range l.Addrs {
			if family.Contains(p.Addr()) && p.Addr().IsGlobalUnicast() {
				out = append(out, Choice{Prefix: p, Interface: l.Name})
				break
			}
		}
	}
	return out
}

func compile(method, arg string) ([]*regexp.Regexp, error) {
	var out []*regexp.Regexp
	for _, word := range strings.Split(arg, ",") {
		re, err := regexp.Compile(strings.TrimSpace(word))
		if err != nil {
			return nil, fmt.Errorf("address detection %s=%s: %q is not a regular expression: %w", method, arg, word, err)
		}
		out = append(out, re)
	}
	return out, nil
}

func anyMatch(exprs []*regexp.Regexp, s string) bool {
	for _, re := range exprs {
		if re.MatchString(s) {
			return true
		}
	}
	return false
}

func holds(l Interface, a netip.Addr) bool {
	for _, p := range l.Addrs {
		if p.Addr() == a {
			return true
		}
	}
	return false
}

func orFirst(method string) string {
	if method == "" {
		return "first-found"
	}
	return method
}

func names(cs []Choice) string {
	var out []string
	for _, c := range cs {
		out = append(out, c.Interface+" "+c.Prefix.String())
	}
	return strings.Join(out, ", ")
}

func describe(family Family, links []Interface) string {
	var out []string
	for _, l := range links {
		state := "up"
		if !l.Up {
			state = "down"
		}
		if excluded.MatchString(l.Name) {
			state += ", excluded by name"
		}
		addr := fmt.Sprintf("no IPv%d address", family)
		for _, p := range l.Addrs {
			if family.Contains(p.Addr()) {
				addr = p.String()
				break
			}
		}
		out = append(out, fmt.Sprintf("%s (%s, %s)", l.Name, state, addr))
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, "; ")
}
