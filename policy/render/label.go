package render

import (
	"fmt"
	"strings"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

// Reports of denied packets are limited for each label: enough to see what goes
// on, few enough to stay cheap under a flood.
const (
	reportsPerSecond = 10
	reportBurst      = 20
)

// labelText identifies a label; equal ones share a chain.
func labelText(l policy.Label) string {
	v := l.Verdict
	return fmt.Sprintf("%s %s %d %q %s %d %d %v", v.Endpoint, v.Direction, l.Place, v.Tier, v.Policy, v.Rule, v.Reason, l.Rules)
}

// deny makes the chain that denies for a reason, and names it. In the places
// before routing a packet is dropped whatever the options say: there an answer
// could not be sent yet.
func (r *Renderer) deny(l policy.Label) (chain, string) {
	name := denyPrefix + hash(labelText(l))
	var rules []desired.Rule
	if r.opts.ReportGroup != 0 {
		rules = append(rules, desired.Rule{
			Limit: desired.Limit{PerSecond: reportsPerSecond, Burst: reportBurst},
			Log:   desired.Log{Group: r.opts.ReportGroup, Prefix: labelOf(name)},
		})
	}
	early := l.Place == policy.PlaceUntracked || l.Place == policy.PlacePreDNAT
	if r.settings.reject && !early {
		rules = append(rules, desired.Rule{Match: []desired.Match{desired.Proto(policy.ProtoTCP)}, Counter: true, Do: desired.Reset},
			desired.Rule{Counter: true, Do: desired.Reject})
	} else {
		rules = append(rules, desired.Rule{Counter: true, Do: desired.Drop})
	}
	return newChain(name, rules), labelOf(name)
}

// The names of a deny chain and of its label differ in how they begin.
const (
	denyPrefix  = "deny-"
	labelPrefix = "maneki:"
)

// labelOf is the prefix of reports from a deny chain.
func labelOf(chain string) string { return labelPrefix + strings.TrimPrefix(chain, denyPrefix) }

// ChainOf is the chain that denies what is reported with a label, and counts it.
func ChainOf(label string) string { return denyPrefix + strings.TrimPrefix(label, labelPrefix) }

func newChain(name string, rules []desired.Rule) chain {
	return chain{name: name, rules: rules, id: desired.NewRulesID(rules)}
}

// denyKey is a label that stands for one rule or none.
type denyKey struct {
	verdict policy.Verdict
	place   policy.Place
}

// denyRule adds the chain of a reason to the result and returns the rule that
// goes there. Endpoints share these chains.
func (b *builder) denyRule(l policy.Label, match ...desired.Match) desired.Rule {
	key := denyKey{l.Verdict, l.Place}
	c, known := b.r.denies[key]
	if !known {
		c, _ = b.r.deny(l)
		b.r.denies[key] = c
	}
	b.out.NFT.AddRules(c.name, desired.Hook{}, c.id, c.rules)
	b.out.Labels[labelOf(c.name)] = l
	return desired.Rule{Match: match, Do: desired.Goto, Chain: c.name}
}
