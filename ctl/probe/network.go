package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func netlinkFamilies() []int { return []int{unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER} }

// What Calico marks its objects with (spec/calico.md §5.4, §5.6, §6.3).
const (
	routeProtocolBird  = unix.RTPROT_BIRD
	routeProtocolFelix = 80
	wireguardPriority  = 99  // of its ip rule
	lastWireguardTable = 250 // routeTableRanges begins with 1-250
)

// interfaces finds those that Calico or flannel named. Routes, neighbours and
// forwarding entries go with them.
func (m *machine) interfaces() ([]object, error) {
	links, err := m.handle.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var found []object
	workloads := 0
	for _, l := range links {
		name := l.Attrs().Name
		switch {
		case slices.Contains([]string{"wireguard.cali", "wg-v6.cali", "bpfin.cali", "bpfout.cali"}, name):
			found = append(found, m.link(l, calico, ""))
		case name == "vxlan.calico", name == "vxlan-v6.calico":
			found = append(found, m.link(l, calico, m.keepShared()))
		case name == "tunl0":
			if o, is := m.tunl0(l); is {
				found = append(found, o)
			}
		case strings.HasPrefix(name, "cali"):
			workloads++
		case name == "cni0":
			found = append(found, m.link(l, flannel, keepPorts(l, links)))
		case strings.HasPrefix(name, "flannel"):
			found = append(found, m.link(l, flannel, ""))
		}
	}
	if workloads > 0 {
		found = append(found, object{Leftover: Leftover{calico, fmt.Sprintf("%d interfaces of workloads (cali...)", workloads), "they go with their workloads"}})
	}
	return found, nil
}

// link is an interface that can be deleted.
func (m *machine) link(l netlink.Link, of, keep string) object {
	what := fmt.Sprintf("interface %s (%s)", l.Attrs().Name, l.Type())
	if v, ok := l.(*netlink.Vxlan); ok {
		what = fmt.Sprintf("interface %s (vxlan, VNI %d, port %d)", v.Name, v.VxlanId, v.Port)
	}
	return object{Leftover{of, what, keep}, func() error {
		err := m.handle.LinkDel(l)
		if errors.Is(err, unix.ENODEV) { // the other end of a pair that is gone
			return nil
		}
		return err
	}}
}

// tunl0 exists in every namespace where the kernel's ipip is loaded, and cannot
// be deleted there. It is a leftover when it is in use.
func (m *machine) tunl0(l netlink.Link) (object, bool) {
	addrs, err := m.handle.AddrList(l, netlink.FAMILY_ALL)
	used := err == nil && len(addrs) > 0 || l.Attrs().RawFlags&unix.IFF_UP != 0
	if !used {
		return object{}, false
	}
	o := m.link(l, calico, m.keepShared())
	if l.Type() != "ipip" {
		return o, true
	}
	o.remove = func() error {
		var failed []error
		for i := range addrs {
			failed = append(failed, m.handle.AddrDel(l, &addrs[i]))
		}
		return errors.Join(append(failed, m.handle.LinkSetDown(l))...)
	}
	return o, true
}

// keepPorts: a bridge with containers plugged in is in use.
func keepPorts(bridge netlink.Link, all []netlink.Link) string {
	ports := 0
	for _, l := range all {
		if l.Attrs().MasterIndex == bridge.Attrs().Index {
			ports++
		}
	}
	if ports == 0 {
		return ""
	}
	return fmt.Sprintf("%d containers are plugged in: end them first", ports)
}

// routes finds those that are known by their protocol number, and those of
// flannel's host-gw by the network that its subnet file names.
func (m *machine) routes() ([]object, error) {
	var found []object
	networks := prefixes(flannelNetworks(m.root))
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := m.handle.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return found, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			of, keep := "", ""
			switch {
			case r.Protocol == routeProtocolBird:
				of = calico
			case r.Protocol == routeProtocolFelix:
				of, keep = calico, m.keepShared()
			case r.Protocol == unix.RTPROT_BOOT && r.Gw != nil && within(r.Dst, networks):
				of = flannel
			}
			if of == "" || m.ours && r.Protocol == routeProtocolFelix {
				continue // the second are the agent's own
			}
			found = append(found, object{Leftover{of, "route " + routeText(r), keep}, func() error {
				err := m.handle.RouteDel(&r)
				if errors.Is(err, unix.ESRCH) { // it went with another one
					return nil
				}
				return err
			}})
		}
	}
	return found, nil
}

func prefixes(texts []string) (out []netip.Prefix) {
	for _, text := range texts {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// within reports whether a destination is a part of one of the networks.
func within(dst *net.IPNet, networks []netip.Prefix) bool {
	if dst == nil {
		return false
	}
	addr, ok := netip.AddrFromSlice(dst.IP)
	ones, _ := dst.Mask.Size()
	return ok && slices.ContainsFunc(networks, func(p netip.Prefix) bool { return ones > p.Bits() && p.Contains(addr.Unmap()) })
}

func routeText(r netlink.Route) string {
	text := "default"
	if r.Dst != nil {
		text = r.Dst.String()
	}
	if r.Gw != nil {
		text += " via " + r.Gw.String()
	}
	if r.Type == unix.RTN_BLACKHOLE {
		text = "blackhole " + text
	}
	switch r.Protocol {
	case routeProtocolBird:
		text += " proto bird"
	case routeProtocolFelix:
		text += " proto 80"
	}
	return text
}

// rules finds the one that leads packets into WireGuard's table.
func (m *machine) rules() ([]object, error) {
	var found []object
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := m.handle.RuleList(family)
		if err != nil {
			return found, fmt.Errorf("list rules: %w", err)
		}
		for _, r := range rules {
			if r.Priority != wireguardPriority || r.Mark == 0 || r.Table < 1 || r.Table > lastWireguardTable {
				continue
			}
			r.Family = family
			what := fmt.Sprintf("rule %d: fwmark 0x%x lookup %d (WireGuard)", r.Priority, r.Mark, r.Table)
			found = append(found, object{Leftover{calico, what, ""}, func() error { return m.handle.RuleDel(&r) }})
		}
	}
	return found, nil
}

// nftables finds whole tables of Calico and flannel, and their chains in the
// tables that iptables-nft shares with others. iptables-legacy cannot be seen.
func (m *machine) nftables() ([]object, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list nftables: %w", err)
	}
	var found []object
	for _, t := range tables {
		of := map[string]string{"calico": calico, "flannel-ipv4": flannel, "flannel-ipv6": flannel}[t.Name]
		if of == "" {
			continue
		}
		found = append(found, object{Leftover{of, fmt.Sprintf("nftables table %s %s", familyName(t.Family), t.Name), ""}, func() error {
			c.DelTable(t)
			return c.Flush()
		}})
	}
	chains, err := c.ListChains()
	if err != nil {
		return found, fmt.Errorf("list nftables chains: %w", err)
	}
	return append(found, sharedChains(c, chains)...), nil
}

func familyName(f nftables.TableFamily) string {
	names := map[nftables.TableFamily]string{
		nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
		nftables.TableFamilyARP: "arp", nftables.TableFamilyNetdev: "netdev", nftables.TableFamilyBridge: "bridge",
	}
	return names[f]
}

// chainOwner says whose chain it is, by the prefixes of spec/calico.md §5.4 and
// spec/flannel.md §8.
func chainOwner(name string) string {
	switch {
	case strings.HasPrefix(name, "cali-"):
		return calico
	case strings.HasPrefix(name, "FLANNEL-"):
		return flannel
	}
	return ""
}

// sharedChains groups chains by table and owner: they refer to each other, so
// that only all of them together can be removed.
func sharedChains(c *nftables.Conn, chains []*nftables.Chain) []object {
	type group struct {
		family    nftables.TableFamily
		table, of string
	}
	members := map[group][]*nftables.Chain{}
	var order []group
	for _, ch := range chains {
		of := chainOwner(ch.Name)
		if of == "" || slices.Contains([]string{"calico", "flannel-ipv4", "flannel-ipv6", "maneki"}, ch.Table.Name) {
			continue
		}
		g := group{ch.Table.Family, ch.Table.Name, of}
		if members[g] == nil {
			order = append(order, g)
		}
		members[g] = append(members[g], ch)
	}
	var found []object
	for _, g := range order {
		what := fmt.Sprintf("%d chains (%s...) in nftables table %s %s, and the rules that jump to them", len(members[g]), members[g][0].Name, familyName(g.family), g.table)
		found = append(found, object{Leftover{g.of, what, ""}, func() error { return removeChains(c, chains, members[g]) }})
	}
	return found
}

// removeChains deletes the rules that lead to the chains, then their own rules,
// then the chains, in one transaction.
func removeChains(c *nftables.Conn, all, gone []*nftables.Chain) error {
	for _, ch := range all {
		if ch.Table.Name != gone[0].Table.Name || ch.Table.Family != gone[0].Table.Family {
			continue
		}
		if slices.Contains(gone, ch) {
			c.FlushChain(ch)
			continue
		}
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return fmt.Errorf("list rules of chain %s: %w", ch.Name, err)
		}
		for _, r := range rules {
			if !jumpsTo(r, gone) {
				continue
			}
			if err := c.DelRule(r); err != nil {
				return fmt.Errorf("remove a rule of chain %s: %w", ch.Name, err)
			}
		}
	}
	for _, ch := range gone {
		c.DelChain(ch)
	}
	return c.Flush()
}

func jumpsTo(r *nftables.Rule, chains []*nftables.Chain) bool {
	for _, e := range r.Exprs {
		v, ok := e.(*expr.Verdict)
		if ok && slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return c.Name == v.Chain }) {
			return true
		}
	}
	return false
}

// sets finds Calico's ipsets. A kernel without ipset has none.
func (m *machine) sets() ([]object, error) {
	all, err := m.handle.IpsetListAll()
	if err != nil {
		return nil, nil //nolint:nilerr // as said above
	}
	var found []object
	for _, s := range all {
		if name := s.SetName; strings.HasPrefix(name, "cali40") || strings.HasPrefix(name, "cali60") || strings.HasPrefix(name, "cali4t") || strings.HasPrefix(name, "cali6t") {
			found = append(found, object{Leftover{calico, "ipset " + name, ""}, func() error { return m.handle.IpsetDestroy(name) }})
		}
	}
	return found, nil
}
