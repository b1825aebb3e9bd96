package nft

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
)

// OtherChain is a base chain of somebody else's, through which packets pass besides ours.
type OtherChain struct {
	Family   string // as nft(8) names it: inet, ip or ip6
	Table    string
	Name     string
	Type     string // filter, route or nat
	Hook     string // prerouting, input, forward, output or postrouting
	Priority int
	// PolicyDrop: what no rule accepts is dropped.
	PolicyDrop bool
	// MayDrop: some rule that can be reached from it drops, rejects or queues, or asks a map whose verdicts are not known.
	MayDrop bool
}

// String is "ip filter FORWARD".
func (c OtherChain) String() string { return c.Family + " " + c.Table + " " + c.Name }

// Danger says how the chain may drop packets that ours accepts, as the rest of a sentence that begins with its name;
// empty if it cannot.
func (c OtherChain) Danger() string {
	switch {
	case c.PolicyDrop:
		return "drops what none of its rules accepts (policy drop)"
	case c.MayDrop:
		return "has rules that drop"
	}
	return ""
}

// Others lists the base chains for IPv4 and IPv6 that are not in our table, in the namespace of the calling thread. What
// iptables-nft makes is among them; what the older iptables makes is not: see LegacyTables.
func Others() ([]OtherChain, error) {
	var out []OtherChain
	for _, f := range []struct {
		number uint8
		name   string
	}{{unix.NFPROTO_INET, "inet"}, {unix.NFPROTO_IPV4, "ip"}, {unix.NFPROTO_IPV6, "ip6"}} {
		s, err := open()
		if err != nil {
			return nil, fmt.Errorf("list packet filters: %w", err)
		}
		s.family = f.number
		found, err := s.others(f.name)
		_ = s.close()
		if err != nil {
			return nil, fmt.Errorf("list packet filters of family %s: %w", f.name, err)
		}
		out = append(out, found...)
	}
	slices.SortFunc(out, func(a, b OtherChain) int {
		return cmp.Or(cmp.Compare(a.Hook, b.Hook), cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.String(), b.String()))
	})
	return out, nil
}

// place names a chain within a family.
type place struct{ table, chain string }

// reach is what the rules of a chain lead to.
type reach struct {
	drops bool
	to    []string // other chains of the table
}

func (s *socket) others(family string) ([]OtherChain, error) {
	var bases []OtherChain
	err := s.dump(unix.NFT_MSG_GETCHAIN, nil, func() { bases = nil }, func(a attributes) {
		hook := attributes(a.get(unix.NFTA_CHAIN_HOOK))
		table := a.text(unix.NFTA_CHAIN_TABLE)
		if hook == nil || family == "inet" && table == desired.NFTTable {
			return
		}
		const nfDrop = 0
		policy := a.get(unix.NFTA_CHAIN_POLICY)
		bases = append(bases, OtherChain{
			Family: family, Table: table, Name: a.text(unix.NFTA_CHAIN_NAME), Type: a.text(unix.NFTA_CHAIN_TYPE),
			Hook: hookName(uint32(hook.number(unix.NFTA_HOOK_HOOKNUM))), Priority: int(int32(hook.number(unix.NFTA_HOOK_PRIORITY))),
			PolicyDrop: policy != nil && a.number(unix.NFTA_CHAIN_POLICY) == nfDrop,
		})
	})
	if err != nil || len(bases) == 0 {
		return nil, err
	}
	rules := map[place]reach{}
	err = s.dump(unix.NFT_MSG_GETRULE, nil, func() { clear(rules) }, func(a attributes) {
		at := place{a.text(unix.NFTA_RULE_TABLE), a.text(unix.NFTA_RULE_CHAIN)}
		r := rules[at]
		attributes(a.get(unix.NFTA_RULE_EXPRESSIONS)).each(func(_ uint16, e []byte) { r.expression(e) })
		rules[at] = r
	})
	if err != nil && !errors.Is(err, errGone) {
		return nil, err
	}
	for i := range bases {
		bases[i].MayDrop = mayDrop(rules, place{bases[i].Table, bases[i].Name})
	}
	return bases, nil
}

// Attributes of expressions of linux/netfilter/nf_tables.h and nf_tables_compat.h that unix has not, or by other names.
const (
	immediateData = 2
	lookupDreg    = 3
	targetName    = 1
	verdictDrop   = 0
	verdictJump   = -3
	verdictGoto   = -4
)

// expression adds what one expression of a rule does.
func (r *reach) expression(e attributes) {
	data := attributes(e.get(unix.NFTA_EXPR_DATA))
	switch e.text(unix.NFTA_EXPR_NAME) {
	case "immediate":
		v := attributes(attributes(data.get(immediateData)).get(unix.NFTA_DATA_VERDICT))
		if v == nil {
			return
		}
		switch int32(v.number(unix.NFTA_VERDICT_CODE)) {
		case verdictDrop:
			r.drops = true
		case verdictJump, verdictGoto:
			r.to = append(r.to, v.text(unix.NFTA_VERDICT_CHAIN))
		}
	case "reject", "queue":
		r.drops = true
	case "target": // of iptables-nft
		switch data.text(targetName) {
		case "REJECT", "DROP", "NFQUEUE", "TARPIT":
			r.drops = true
		}
	case "lookup":
		if dreg := data.get(lookupDreg); dreg != nil && data.number(lookupDreg) == unix.NFT_REG_VERDICT {
			r.drops = true
		}
	}
}

func mayDrop(rules map[place]reach, from place) bool {
	seen := map[place]bool{}
	list := []place{from}
	for len(list) > 0 {
		at := list[0]
		list = list[1:]
		if seen[at] {
			continue
		}
		seen[at] = true
		if rules[at].drops {
			return true
		}
		for _, chain := range rules[at].to {
			list = append(list, place{at.table, chain})
		}
	}
	return false
}

// LegacyTables names the tables of the older iptables (not iptables-nft) that the namespace of the calling thread has, as
// "ip filter" or "ip6 nat". Their rules cannot be listed by netlink. A table is there from when somebody first looked at it,
// so that it may be empty.
func LegacyTables() ([]string, error) {
	var out []string
	for _, f := range []struct{ family, file string }{{"ip", "ip_tables_names"}, {"ip6", "ip6_tables_names"}} {
		text, err := os.ReadFile("/proc/thread-self/net/" + f.file)
		if errors.Is(err, os.ErrNotExist) {
			continue // the kernel has none of it
		}
		if err != nil {
			return nil, fmt.Errorf("list the tables of iptables: %w", err)
		}
		for _, table := range strings.Fields(string(text)) {
			out = append(out, f.family+" "+table)
		}
	}
	slices.Sort(out)
	return out, nil
}
